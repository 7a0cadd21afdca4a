"""`history`, `recommend` and `top` at a width of 100: goldens of what a terminal shows, from a status."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType

from cli import test_on_a_cluster
from meritorder_api.resource import InferencePolicy
from meritorder_cli.explain import history
from meritorder_cli.recommend import figures, recommend
from meritorder_cli.report.words import age
from meritorder_cli.top import Order, ordered, top

POLICY: dict[str, Any] = test_on_a_cluster.POLICY
STATUS: dict[str, Any] = test_on_a_cluster.STATUS
NOW = 1_777_888_900.0
"""2026-05-04T10:01:40Z."""
ROUTING = {
    "sequence": 4,
    "revision": "r",
    "pools": [{"name": "l40s", "limitPerReplica": "3", "weightPercent": 25}, {"name": "h100"}],
}


def policy(name: str = "chat", spec: dict[str, Any] | None = None, **status: Any) -> InferencePolicy:
    manifest = {**POLICY, "metadata": {"name": name, "namespace": "ml"}, "status": status}
    return InferencePolicy.parse({**manifest, "spec": {**POLICY["spec"], **(spec or {})}})


def full() -> dict[str, Any]:
    l40s, h100 = STATUS["pools"]
    return {
        **STATUS,
        "routing": ROUTING,
        "pools": [
            {**l40s, "neededReplicas": 1, "pricePerReplicaHour": "1.86", "requestsPerSecond": "4.1"},
            {
                **h100,
                "neededReplicas": 1,
                "neededAtLeast": True,
                "pricePerReplicaHour": "6.88",
                "requestsPerSecond": "12.9",
            },
        ],
        "cheapestMix": {
            "replicas": {"l40s": 1, "h100": 1},
            "perHour": "8.74",
            "message": "1 l40s + 1 h100 would carry this peak at $8.74/h; 2 + 1 run at $10.60/h",
        },
        "savings": {
            "baseline": "h100",
            "baselinePerHour": "20.64",
            "realisedPerHour": "10.04",
            "possiblePerHour": "11.90",
            "percent": 49,
        },
        "summary": {
            "attained": "2.44s",
            "target": "2s",
            "cheapest": "l40s 24%",
            "costPerHour": "10.60",
            "saved": "49%",
        },
    }


def shown(what: RenderableType) -> list[str]:
    console = Console(width=100, file=StringIO(), highlight=False)
    console.print(what)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_history_tells_age_action_reason_and_message() -> None:
    assert shown(history(policy(**full()), NOW)) == [
        "age  action  reason         message",
        "48s  Cut     SlowedDown     l40s slowed down, p95 2.44 s > 2.00 s over 19 requests: limit 39.5 -> 3",
        "                            per replica; h100 takes 76 %",
        " 1m  Start   FirstDecision  first routing",
    ]
    assert shown(history(policy(), NOW)) == ["no decision has changed anything yet"]


def test_recommend_tells_what_would_run_and_the_money() -> None:
    assert shown(recommend(policy(**full()))) == [
        "ml/chat: 95 % of requests within 2.00 s",
        "enforcing: this is what it routes",
        "Cut (SlowedDown): l40s slowed down, p95 2.44 s > 2.00 s over 19 requests: limit 39.5 -> 3 per",
        "replica; h100 takes 76 %",
        "",
        "pool  limit/replica  weight  ready  needed  cheapest mix  $/h ready  $/h needed",
        "l40s              3    25 %      2       1             1       3.72        1.86",
        "h100      unlimited       –      1     ≤ 1             1       6.88      ≤ 6.88",  # noqa: RUF001
        "",
        "1 l40s + 1 h100 would carry this peak at $8.74/h; 2 + 1 run at $10.60/h",
        "all on h100: $20.64/h; saved now: $10.04/h (49 %); with what is needed: $11.90/h",
        "l40s: 1 of 2 replicas are not needed; they cost $1.86/h",
    ]


def test_recommend_shows_the_recommendation_where_nothing_is_enforced() -> None:
    status = {**full(), "recommendation": {**ROUTING, "sequence": 5}}
    found = figures(policy(spec={"mode": "Recommend"}, **status))
    assert (found["mode"], found["routing"]["sequence"]) == ("Recommend", 5)
    assert [pool["neededPerHour"] for pool in found["pools"]] == ["1.86", "6.88"]


def test_top_puts_the_dearest_first_and_sums_up() -> None:
    policies = [policy("code", {"suspend": True}), policy(**full())]
    assert shown(top(policies, Order.COST, namespaces=True, now=NOW)) == [
        "namespace  policy       target  attained  SLA      cheapest pool  req/s    $/h  saved  change",
        "ml         chat             2s     2.44s  missed   l40s 24%        17.0  10.60    49%  Cut 48s",
        "ml         code paused      2s         –  unknown  –                  –      –      –  –",  # noqa: RUF001
        "2 policies, 1 of them missing the SLA, $10.60/h",
    ]


def test_top_puts_trouble_first_where_asked() -> None:
    well = full()
    well["conditions"] = [{**STATUS["conditions"][0], "status": "True"}]
    well["summary"] = {"costPerHour": "99.00"}
    policies = [policy("dear", **well), policy("slow", **full())]
    assert [one.metadata.name for one in ordered(policies, Order.SLA)] == ["slow", "dear"]
    assert [one.metadata.name for one in ordered(policies, Order.COST)] == ["dear", "slow"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (59, "59s"), (61, "1m"), (3600, "1h"), (11_520, "3h12m"), (86_400 * 5 + 14_400, "5d4h")],
)
def test_ages_are_as_kubectl_says_them(seconds: float, said: str) -> None:
    assert age(seconds) == said
