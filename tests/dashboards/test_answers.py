"""Every query of every dashboard is taken by the real Prometheus, and answered from the live processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from dashboards.conftest import Watched
from e2e.story import NAMESPACE, POLICY
from meritorder_dashboards.__main__ import ALL, RUNBOOKS
from meritorder_dashboards.grafana import model
from servers.pods import create_pod
from servers.prometheus import Series
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ONLY_IN_FAILURE = {
    ("meritorder-fleet", "Queries that fail"),
    ("meritorder-router", "Turned away"),
    ("meritorder-fleet", "annotation Alerts"),
    ("meritorder-policy", "annotation Alerts"),
    ("meritorder-router", "annotation Alerts"),
}
"""What answers only where something is wrong: `test_what_only_failures_show_is_shown` makes it go wrong."""

AT_A_LIMIT = "meritorder_pool_replicas_cheapest"
"""Answers once a pool was driven to its limit, which depends on the load: here it may, and need not."""

Where = tuple[str, str]


def filled(expr: str, *, policy: str = POLICY) -> str:
    """The query as Grafana sends it: one policy chosen, all pools and routers, steps for a scrape of 2 s."""
    values = {
        "__rate_interval": "8s",
        "__interval_ms": "2000",
        "__interval": "2s",
        "__range": "3m",
        "namespace": NAMESPACE,
        "policy": policy,
        "pool": ".+",
        "router": ".+",
    }
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


def queries() -> Iterator[tuple[Where, str]]:
    """Dashboard and panel of each query, and the query."""
    for dashboard in ALL:
        made = model(dashboard, runbooks=RUNBOOKS)
        for row in made["panels"]:
            for panel in [row, *row.get("panels", [])]:
                for target in panel.get("targets", []):
                    yield (made["uid"], panel["title"]), filled(target["expr"])
        for annotation in made["annotations"]["list"]:
            yield (made["uid"], f"annotation {annotation['name']}"), filled(annotation["expr"])


def some(series: list[Series]) -> bool:
    """Whether there is a number in it."""
    return any(one.value == one.value for one in series)


def test_prometheus_takes_every_query(system: Watched) -> None:
    refused = {}
    for where, expr in queries():
        answer = system.prometheus.client.get("/api/v1/parse_query", params={"query": expr}).json()
        if answer["status"] != "success":
            refused[where] = (expr, answer["error"])

    assert refused == {}


def test_every_panel_has_data(system: Watched) -> None:
    asked = [(where, expr) for where, expr in queries() if where not in ONLY_IN_FAILURE]
    assert len(asked) > 90
    unanswered = dict.fromkeys((where, expr) for where, expr in asked if AT_A_LIMIT not in expr)

    def all_answered() -> bool:
        for where, expr in list(unanswered):
            if some(system.prometheus.query(expr)):
                del unanswered[where, expr]
        return not unanswered

    try:
        wait_until(all_answered, 120, "every query has an answer", interval_seconds=1)
    except Exception:
        assert list(unanswered) == []


def test_the_choices_at_the_top_have_values(system: Watched) -> None:
    found = {}
    for dashboard in ALL:
        for variable in dashboard.variables:
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable.values)
            assert match is not None
            series = system.prometheus.query(filled(match[1]))
            found[variable.name] = {one.labels.get(match[2]) for one in series}

    assert NAMESPACE in found["namespace"]
    assert POLICY in found["policy"]
    assert found["pool"] == {"l40s", "a100", "h100"}
    assert found["router"] == {f"127.0.0.1:{router.metrics_port}" for router in system.routers}


def test_what_only_failures_show_is_shown(system: Watched) -> None:
    missing = {where: expr for where, expr in queries() if where in ONLY_IN_FAILURE}
    assert set(missing) == ONLY_IN_FAILURE
    without = next(expr for (_, title), expr in queries() if title == "Pods without their router")
    assert system.prometheus.value(without) == 0

    pools = system.control_plane.request("GET", _PATH)["spec"]["pools"]
    dear = [one | {"cost": {"query": "sum("}} if one["name"] == "a100" else one for one in pools]
    system.patch_spec({"pools": dear})
    create_pod(
        system.control_plane,
        NAMESPACE,
        "bare",
        labels={"meritorder.dev/inject": "true"},
        annotations={"meritorder.dev/policy": POLICY},
    )
    rule = {"alert": "MeritorderSLAMissed", "expr": "vector(1)", "labels": {"severity": "warning"}}
    rules = yaml.safe_dump({"groups": [{"name": "tried", "rules": [rule]}]})
    config = yaml.safe_load(system.scrape_config) | {"rule_files": ["rules.yml"]}
    system.prometheus.reload(yaml.safe_dump(config), rules)

    def shown() -> bool:
        for url in system.server_urls:
            httpx.get(f"{url}/v1/table", verify=False, trust_env=False)
        for where, expr in list(missing.items()):
            if some(system.prometheus.query(expr)):
                del missing[where]
        return not missing and system.prometheus.value(without) == 1

    try:
        wait_until(shown, 60, "failures are shown", interval_seconds=1)
    except Exception:
        assert (list(missing), system.prometheus.value(without)) == ([], 1)


def test_every_metric_of_every_process_is_documented(system: Watched) -> None:
    ports = [system.operator_metrics_port, *system.server_metrics_ports]
    urls = [f"http://127.0.0.1:{port}/metrics" for port in ports]
    urls += [
        f"http://127.0.0.1:{router.metrics_port}{path}"
        for router in system.routers
        for path in ("/metrics", "/metrics/agent")
    ]
    text = "".join(httpx.get(url, trust_env=False).text for url in urls)
    families = set(re.findall(r"^# TYPE (\w+) ", text, re.M))
    families = {name for name in families if not name.endswith("_created")}
    words = set(re.findall(r"`(\w+)`", DOCUMENT.read_text()))

    def documented(name: str) -> bool:
        return name in words or any(
            name.removesuffix(end) in words for end in ("_update_rejected", "_update_failure")
        )

    assert len(families) > 50
    assert sorted(name for name in families if not documented(name)) == []
    own = {word for word in words if word.startswith("meritorder_")}
    assert sorted(own - families) == []


_PATH = f"/apis/meritorder.dev/v1alpha1/namespaces/{NAMESPACE}/inferencepolicies/{POLICY}"
