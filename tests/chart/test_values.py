"""What values the chart takes, what it refuses, and what it makes of them; without a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from assets.find import MissingBinary
from chart import reference
from chart.objects import by_kind, container_of, named
from meritorder_api.metric_names import AGENT_METRICS_PATH, METRICS_PATH
from meritorder_api.names import (
    DEFAULT_SERVER_PORT,
    GATEWAY_LABEL,
    INJECT_LABEL,
    METRICS_PORT_NAME,
    ROUTER_CONTAINER,
)
from meritorder_operator.__main__ import main as operator_command
from meritorder_router.server.main import serve_command
from servers.helm import Helm, setting
from support.required import cannot_run

CHART = reference.CHART
SETS = sorted((CHART / "ci").glob("*.yaml"))
SYSTEM = "meritorder-system"


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    try:
        return Helm(tmp_path_factory.mktemp("helm"))
    except MissingBinary as reason:
        cannot_run(reason)


def test_nothing_drifted() -> None:
    assert reference.drifted() == []


def test_a_value_without_a_comment_is_refused() -> None:
    with pytest.raises(reference.Undocumented, match=r"a\.b has no comment before it"):
        list(reference.values("# Something.\na:\n  b: 1\n"))


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.stem)
def test_each_set_of_values_passes_the_strict_lint(values: Path, helm: Helm) -> None:
    said = helm("lint", "--strict", CHART, "--values", values)
    assert "1 chart(s) linted, 0 chart(s) failed" in said


REFUSED = {
    "certificates.provider": ("vault", 'must be one of the following: "operator", "cert-manager"'),
    "operator.replicas": (0, "Must be greater than or equal to 1"),
    "router.replicas": ("2", "Invalid type. Expected: integer, given: string"),
    "operater": ({}, "Additional property operater is not allowed"),
    "logging.level": ("verbose", "must be one of the following"),
    "namespaces": ("team-a", "Invalid type. Expected: array, given: string"),
    "namespaces ": (["Team"], "namespaces has `Team`, which is no name of a namespace; it must be small"),
    "prometheus.url": ("prometheus:9090", "prometheus.url is `prometheus:9090`; it must begin with http://"),
    "prometheus.url ": (
        "http://me:you@p",
        "`http://me:you@p`; it must begin with http:// or https:// and hold",
    ),
    "prometheus.tokenSecret.name": (
        "t",
        "prometheus has credentials or a CA but no URL; prometheus.url must",
    ),
    "policies.allowedMetricsUrls": (["ftp://x"], "policies.allowedMetricsUrls has `ftp://x`; it must begin"),
    "image.digest": (
        "sha256:12",
        "image.digest is `sha256:12`; it must be sha256: and 64 hexadecimal digits",
    ),
    "podMonitor.interval": ("often", "podMonitor.interval is `often`; it must be a duration such as 5s"),
    "podMonitor.enabled": ("yes", "podMonitor.enabled must be one of the following"),
    "injection.excludedNamespaces": ([SYSTEM], "the namespace of the release, which is always left out"),
    "injection.timeoutSeconds": (60, "Must be less than or equal to 30"),
    "networkPolicies.egress.apiServerPorts": ([], "Array must have at least 1 items"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_value_is_refused_in_one_sentence(name: str, helm: Helm) -> None:
    value, sentence = REFUSED[name]
    done = helm.run("template", "m", CHART, "-n", SYSTEM, *setting(**{name.strip(): value}))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if sentence in line]
    assert len([other for other in done.stderr.splitlines() if other.startswith("- ")]) <= 1, line


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"prometheus.url": "http://p", "prometheus.username": "u"},
            "prometheus.username is set; prometheus.passwordSecret.name must name the Secret with its",
        ),
        (
            {"prometheus": {"url": "http://p", "username": "u", "passwordSecret": {"name": "p"},
                            "tokenSecret": {"name": "t"}}},
            "prometheus.username and prometheus.tokenSecret.name are both set; give one of them",
        ),
        (
            {"namespaces": ["a"], "policies.secretNamespaces": ["b"]},
            "policies.secretNamespaces has `b`, whose policies are not served; it must be one of namesp",
        ),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_refused(
    values: Mapping[str, Any], sentence: str, helm: Helm
) -> None:
    done = helm.run("template", "m", CHART, "-n", SYSTEM, *setting(**values))
    assert done.returncode == 1
    assert sentence in done.stderr


def variables(command: Any) -> set[str]:
    """Environment variables that it reads."""
    found = (parameter.envvar or () for parameter in command.params)
    return {name for one in found for name in ([one] if isinstance(one, str) else one)}


def options(command: Any) -> set[str]:
    """What a command takes, by its own account."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.stem)
def test_each_argument_and_variable_is_one_that_the_command_knows(values: Path, helm: Helm) -> None:
    made = helm.template(CHART, "m", SYSTEM, "--values", values)
    for component, command in (("operator", operator_command), ("router", serve_command)):
        container = container_of(named(made, "Deployment", component))
        arguments = container["args"]
        named_ones = {one["name"] for one in container["env"] if one["name"].startswith("MERITORDER_")}
        assert named_ones <= variables(command)
        assert {argument.partition("=")[0] for argument in arguments} <= options(command)


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.stem)
def test_every_port_and_selector_meets_something(values: Path, helm: Helm) -> None:
    """Services, budgets, network policies and monitors select what is there, and ports that it has."""
    made = helm.template(CHART, "m", SYSTEM, "--values", values)
    pods = {
        str(one["metadata"]["name"]): (
            one["spec"]["template"]["metadata"]["labels"],
            {port["name"] for port in container_of(one)["ports"]},
        )
        for one in by_kind(made, "Deployment")
    }

    def selected(labels: Mapping[str, str]) -> list[str]:
        return [name for name, (own, _) in pods.items() if labels.items() <= own.items()]

    for service in by_kind(made, "Service"):
        (pod,) = selected(service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= pods[pod][1]
    for budget in by_kind(made, "PodDisruptionBudget"):
        assert len(selected(budget["spec"]["selector"]["matchLabels"])) == 1
    for policy in by_kind(made, "NetworkPolicy"):
        (pod,) = selected(policy["spec"]["podSelector"]["matchLabels"])
        open_ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert open_ports == pods[pod][1], "what is served is let in, and nothing else"
    for monitor in by_kind(made, "ServiceMonitor"):
        (service,) = [
            one
            for one in by_kind(made, "Service")
            if monitor["spec"]["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
        ]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_names_and_labels_are_those_that_kubernetes_recommends(helm: Helm) -> None:
    made = helm.template(CHART, "prod", SYSTEM, *setting(commonLabels={"team": "x"}))
    for one in made:
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "meritorder"
        assert labels["app.kubernetes.io/instance"] == "prod"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["team"] == "x"
        if one["kind"] != "CustomResourceDefinition":
            assert re.match(r"prod-meritorder\b", one["metadata"]["name"])


def test_two_sorts_of_namespaces_have_two_sorts_of_webhooks(helm: Helm) -> None:
    (made,) = by_kind(
        helm.template(CHART, "meritorder", SYSTEM, *setting(injection={"excludedNamespaces": ["data"]})),
        "MutatingWebhookConfiguration",
    )
    optional, required = made["webhooks"]
    assert (optional["failurePolicy"], required["failurePolicy"]) == ("Ignore", "Fail")
    for webhook, operator in ((optional, "NotIn"), (required, "In")):
        assert webhook["clientConfig"] == {
            "service": {"name": "meritorder-router", "namespace": SYSTEM, "path": "/inject", "port": 443}
        }
        assert webhook["objectSelector"] == {"matchLabels": {INJECT_LABEL: "true"}}
        kind, place = webhook["namespaceSelector"]["matchExpressions"]
        assert kind == {"key": "meritorder.dev/injection", "operator": operator, "values": ["required"]}
        assert place["operator"] == "NotIn"
        assert {SYSTEM, "kube-system", "data"} <= set(place["values"])


def test_what_is_monitored_by_itself_follows_the_cluster(helm: Helm) -> None:
    kinds = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}

    def made(*arguments: str) -> set[str]:
        return {one["kind"] for one in helm.template(CHART, "m", SYSTEM, *arguments)} & kinds

    assert made() == set()
    assert made("--api-versions=monitoring.coreos.com/v1") == kinds
    off = setting(podMonitor__enabled=False, prometheusRule__enabled=False)
    assert made("--api-versions=monitoring.coreos.com/v1", *off) == {"ServiceMonitor"}


def test_pod_monitors_read_the_container_that_is_injected(helm: Helm) -> None:
    made = by_kind(helm.template(CHART, "m", SYSTEM, *setting(podMonitor__enabled=True)), "PodMonitor")
    asked = {one["spec"]["selector"]["matchExpressions"][0]["key"] for one in made}
    assert asked == {INJECT_LABEL, GATEWAY_LABEL}
    for monitor in made:
        endpoints = monitor["spec"]["podMetricsEndpoints"]
        assert [one["path"] for one in endpoints] == [METRICS_PATH, AGENT_METRICS_PATH]
        for endpoint in endpoints:
            assert endpoint["port"] == METRICS_PORT_NAME
            assert endpoint["relabelings"][0]["regex"] == ROUTER_CONTAINER
            assert endpoint["honorLabels"] is False


def test_namespaced_has_no_rights_beyond_its_namespaces(helm: Helm) -> None:
    made = helm.template(
        CHART, "m", SYSTEM, *setting(namespaces=["a", "b"], injection__enabled=False, aggregatedRoles=False)
    )
    (cluster,) = by_kind(made, "ClusterRole")
    assert cluster["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    assert {one["metadata"]["namespace"] for one in by_kind(made, "Role")} == {"a", "b", SYSTEM}


def test_the_servers_listen_where_agents_and_the_webhook_ask(helm: Helm) -> None:
    made = helm.template(CHART, "meritorder", SYSTEM)
    server = container_of(named(made, "Deployment", "router"))
    assert f"--listen=0.0.0.0:{DEFAULT_SERVER_PORT}" in server["args"]
    operator = container_of(named(made, "Deployment", "operator"))
    url = f"https://meritorder-router.{SYSTEM}.svc"
    assert {"name": "MERITORDER_SIDECAR_SERVER_URLS", "value": url} in server["env"]
    assert {"name": "MERITORDER_GATEWAY_SERVER_URL", "value": url} in operator["env"]
    (service,) = [one for one in by_kind(made, "Service") if one["metadata"]["name"] == "meritorder-router"]
    assert {"name": "https", "port": 443, "targetPort": "https"} in service["spec"]["ports"]
