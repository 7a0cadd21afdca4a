"""`doctor` finds what is planted on a real API server and a real Prometheus, names the fix, and finds nothing
where all is well."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cli.command import meritorder
from cli.doctor_world import POLICY, SYSTEM, WEBHOOK, World, engine_series, router_series, webhook
from meritorder_api.names import GROUP, PLURAL
from prometheus.exporter import Exporter
from servers.control_plane import ControlPlane
from servers.prometheus import Prometheus

LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}"


class Targets:
    """What Prometheus scrapes in a namespace: a router and a vLLM."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self.router, self.engine = Exporter(), Exporter()

    def scrape(self, namespace: str) -> None:
        """Scrape them as the chart's monitors would."""
        self.label("router", self.router, namespace=namespace)
        self.label("engine", self.engine, namespace=namespace, service="chat-l40s")

    def label(self, kind: str, exporter: Exporter, **labels: str) -> None:
        self.prometheus.set_targets(kind, [exporter.address], labels)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes what tells a price, and what a test adds."""
    with Exporter() as price:
        price.set("gpu_price", 6.88)
        jobs: dict[str, list[str]] = {"router": [], "engine": [], "price": [price.address]}
        with Prometheus(tmp_path_factory.mktemp("doctor"), targets=jobs) as prometheus:
            prometheus.wait_for("gpu_price offset 1s")
            yield prometheus


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane, server: Prometheus) -> Iterator[World]:
    world = World(control_plane, server)
    world.install()
    yield world
    for path in (f"{WEBHOOK}/meritorder-injection", f"/api/v1/namespaces/{SYSTEM}"):
        control_plane.client.delete(path)
    for kind in ("clusterroles", "clusterrolebindings"):
        for name in ("meritorder-operator", "meritorder-router"):
            control_plane.client.delete(f"/apis/rbac.authorization.k8s.io/v1/{kind}/{name}")


@pytest.fixture
def targets(server: Prometheus) -> Iterator[Targets]:
    targets = Targets(server)
    with targets.router, targets.engine:
        router_series(targets.router)
        engine_series(targets.engine)
        yield targets


@pytest.fixture
def world(installed: World, targets: Targets, namespace: str) -> World:
    """A well installation, with a policy that is well."""
    installed.settle(namespace)
    targets.scrape(namespace)
    for metric in ("meritorder_router_applied_sequence", "vllm:num_requests_running"):
        installed.prometheus.wait_for(f'{metric}{{namespace="{namespace}"}}')
    return installed


def test_finds_nothing_where_all_is_well(world: World) -> None:
    report = world.report()
    assert list(report.findings) == []
    assert (report.unchecked, report.policies) == ((), 1)
    done = meritorder("doctor", "-n", world.namespace, "--kubeconfig", str(world.plane.kubeconfig))
    assert (done.returncode, done.stdout, done.stderr) == (0, "all is well; 1 policy looked at\n", "")


def test_exits_with_1_and_prints_json_for_scripts(world: World) -> None:
    world.pools(l40s={"backend": {"service": {"name": "chat-l4", "port": 8000}}})
    done = meritorder(
        "doctor", "-n", world.namespace, "-o", "json", "--kubeconfig", str(world.plane.kubeconfig)
    )
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert said["well"] is False
    found = next(one for one in said["findings"] if one["check"] == "ServiceMissing")
    assert found["object"] == f"Service `{world.namespace}/chat-l4`"
    assert "`chat-h100`, `chat-l40s`" in found["message"]
    assert "`spec.pools[0].backend.service.name`" in found["fix"]


Plant = Callable[[World], None]


def pools(**changes: Any) -> Plant:
    return lambda world: world.pools(**changes)


def second_policy(world: World) -> None:
    other = {**POLICY, "metadata": {"name": "other"}}
    world.policy(other, agents=0, applied=0)


PLANTS: dict[str, tuple[Plant, str, str, str]] = {
    "a Service that does not exist": (
        pools(l40s={"backend": {"service": {"name": "chat-l4", "port": 8000}}}),
        "ServiceMissing",
        "Service `NS/chat-l4`",
        "spec.pools[0].backend.service.name",
    ),
    "a port that the Service has not": (
        pools(h100={"backend": {"service": {"name": "chat-h100", "port": 80}}}),
        "ServicePortMissing",
        "it has 8000",
        "spec.pools[1].backend.service.port",
    ),
    "no ready endpoint": (
        lambda world: world.remove("/apis/discovery.k8s.io/v1/namespaces/NS/endpointslices/chat-h100-1"),
        "NoReadyEndpoints",
        "no ready replica",
        "describe service chat-h100",
    ),
    "two policies that name one Service": (
        second_policy,
        "PoolShared",
        "pool `l40s` of policy `NS/other`",
        "give each a Service of its own",
    ),
    "a target between two bounds": (
        lambda world: world.edit({"spec": {"sla": {"targetMilliseconds": 3000}}}),
        "SLABetweenBounds",
        "2.5 s and 5 s",
        "`spec.sla.targetMilliseconds` to 2500 or 5000",
    ),
    "a target in seconds": (
        lambda world: world.edit({"spec": {"sla": {"targetMilliseconds": 3}}}),
        "UnitConfusion",
        "0.003 s is below the first bound",
        "`spec.sla.targetMilliseconds` to 3000",
    ),
    "another engine than there is": (
        pools(l40s={"metrics": {"engine": "SGLang"}}),
        "NoSeries",
        "are series of VLLM",
        "`spec.pools[0].metrics.engine` to VLLM",
    ),
    "a selector that picks nothing": (
        pools(l40s={"metrics": {"engine": "VLLM", "selector": {"service": "chat-l4"}}}),
        "NoSeries",
        'service="chat-l40s"',
        "`spec.pools[0].metrics.selector`",
    ),
    "an engine without that histogram": (
        pools(l40s={"metrics": {"engine": "Triton"}}),
        "NotSupportedByEngine",
        "no histogram for EndToEndLatency",
        "`spec.pools[0].metrics.engine` to Router",
    ),
    "a price that gives nothing": (
        pools(h100={"cost": {"query": "gpu_prices"}}),
        "PriceUnknown",
        "0 series",
        "`spec.pools[1].cost.query`",
    ),
    "a custom query in milliseconds": (
        pools(
            l40s={
                "metrics": {
                    "engine": "Custom",
                    "custom": {
                        "total": "vector(100)",
                        "slow": "vector(1)",
                        "inFlight": "vector(20)",
                        "latencySum": "vector(100000)",
                    },
                }
            }
        ),
        "UnitConfusion",
        "in milliseconds",
        "/ 1000",
    ),
    "no agent": (
        lambda world: world.status(agents=0, applied=0),
        "NoAgents",
        "no router serves it",
        "meritorder.dev/inject",
    ),
    "silent agents": (
        lambda world: world.status(applied=1, silent=1),
        "AgentsSilent",
        "1 of 2 agents",
        "port 8443",
    ),
    "an agent that lacks a key": (
        lambda world: world.status(
            applied=1, refused=[{"agent": "app-0", "code": "KeyNotMounted", "reason": "key `k` is not there"}]
        ),
        "KeyNotMounted",
        "key `k` is not there",
        "delete the pod",
    ),
    "agents that are behind": (
        lambda world: world.status(sequence=3),
        "AgentsBehind",
        "0 of 2 agents",
        "router servers' log",
    ),
    "a gateway that nobody makes": (
        lambda world: world.edit({"spec": {"gateway": {"replicas": 2}}}),
        "GatewayMissing",
        "Deployment `NS/chat-gateway`",
        "--gateway-image",
    ),
    "a pod without a router": (
        lambda world: world.pod("app-1", **{"meritorder.dev/inject": "true"}),
        "NotInjected",
        "Pod `NS/app-1`",
        "delete pod app-1",
    ),
    "nothing to trust": (
        lambda world: world.remove("/api/v1/namespaces/NS/configmaps/meritorder-ca"),
        "CANotThere",
        "`NS/meritorder-ca`",
        "right to create ConfigMaps",
    ),
    "a key whose Secret is not there": (
        pools(
            h100={
                "backend": {
                    "service": {"name": "chat-h100", "port": 8000},
                    "apiKeySecretRef": {"name": "keys", "key": "k"},
                }
            }
        ),
        "SecretMissing",
        "Secret `NS/keys`",
        "create secret generic keys --from-literal=k=",
    ),
}


@pytest.mark.parametrize("planted", PLANTS)
def test_finds_what_is_wrong_with_a_policy(world: World, planted: str) -> None:
    plant, check, seen, fix = PLANTS[planted]
    plant(world)
    found = world.findings()
    assert check in [one.check for one in found], found
    one = next(one for one in found if one.check == check)
    assert seen.replace("NS", world.namespace) in f"{one.object}: {one.message}"
    assert fix.replace("NS", world.namespace) in one.fix


def only(world: World, check: str, **options: Any) -> str:
    """The one finding of all, as text."""
    found = world.findings(**options)
    assert [one.check for one in found] == [check], found
    return f"{found[0].object}: {found[0].message} -> {found[0].fix}"


def test_finds_a_webhook_without_ca_and_with_the_wrong_failure_policy(world: World) -> None:
    with world.without(f"{WEBHOOK}/meritorder-injection"):
        assert "injection.enabled=true" in only(world, "WebhookMissing")
        wrong = webhook()
        wrong["webhooks"][1]["failurePolicy"] = "Ignore"
        del wrong["webhooks"][0]["clientConfig"]["caBundle"]
        world.plane.request("POST", WEBHOOK, wrong)
        found = {one.check: one for one in world.findings()}
        world.plane.client.delete(f"{WEBHOOK}/meritorder-injection").raise_for_status()
    assert set(found) == {"WebhookWithoutCA", "WebhookFailurePolicy"}
    assert "--webhook=meritorder-injection" in found["WebhookWithoutCA"].fix
    assert "webhooks[1].failurePolicy: Fail" in found["WebhookFailurePolicy"].fix


def test_finds_a_lease_that_nobody_holds(world: World) -> None:
    world.lease("operator", age=4000)
    try:
        assert "logs deployment/meritorder-operator" in only(world, "LeaseNotHeld")
        world.lease("operator", age=-90)
        assert "s in the future" in only(world, "ClockSkew")
    finally:
        world.lease("operator", age=0)


def test_finds_rights_that_a_part_lacks(world: World) -> None:
    with world.without(f"{ROLES}/meritorder-router"):
        found = world.findings()
    assert {one.check for one in found} == {"RBACDenied"}
    assert f"ServiceAccount `{SYSTEM}/meritorder-router`" in {one.object for one in found}
    assert any("resources: [endpointslices], verbs: [list, watch]" in one.fix for one in found)


def test_finds_an_older_crd(world: World) -> None:
    crd = world.plane.request("GET", CRD)
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    kept = spec.pop("cheapestMix")
    world.plane.request("PUT", CRD, crd)
    try:
        said = only(world, "CRDOutdated")
    finally:
        crd = world.plane.request("GET", CRD)
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["status"]["properties"]["cheapestMix"] = kept
        world.plane.request("PUT", CRD, crd)
    assert "`status.cheapestMix`" in said
    assert "meritorder crd | kubectl apply" in said


def test_finds_a_prometheus_that_does_not_answer(world: World) -> None:
    said = only(world, "PrometheusUnreachable", prometheus_url="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 refused the connection" in said
    assert "prometheus.url" in said


def test_finds_routers_without_the_namespace_label(world: World, targets: Targets) -> None:
    targets.label("router", targets.router)
    world.prometheus.wait_for('meritorder_router_applied_sequence{namespace=""}')
    gone = f'absent(meritorder_router_applied_sequence{{namespace="{world.namespace}"}})'
    world.prometheus.wait_for(gone)
    said = only(world, "NamespaceLabelMissing")
    assert "__meta_kubernetes_pod_namespace" in said
