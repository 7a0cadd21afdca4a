"""`operator-cost`: what 200 policies of 4 pools cost the operator, the API server and Prometheus.

API server with etcd, Prometheus and operator are real; the routers are series of a synthetic exporter with
counters that move, and this benchmark writes `status.programmed` in their place. Four phases: few
policies, many that were just created, the same once they have learned, and at rest.
"""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.exporter import POOLS, policy_name
from bench.figures import grown
from bench.parts import (
    APPLY,
    NAMESPACE,
    POLICIES,
    Operator,
    control_plane,
    create_policy,
    metric_lines,
    only,
    start,
    status_patch,
)
from bench.results import Check, Result, Row, machine_facts, package_versions, today
from bench.screen import Screen
from servers.control_plane import ControlPlane
from servers.prometheus import Prometheus
from support.ports import free_port
from support.processes import cpu_seconds, memory_bytes
from support.waiting import wait_until

NAME = "operator-cost"
PRICES = {"l40s": "1.86", "l4": "0.80", "a100": "3.43", "h100": "6.88"}
ROUTERS = 2
INTERVAL_SECONDS = 5
"""The policies' own (the default), and Prometheus's scrape interval."""
READY = 2
LOOK_SECONDS = 5.0
READS = frozenset({"GET", "LIST", "WATCH", "CONNECT"})
CPU_TARGET, MEMORY_TARGET = 15.0, 200.0
QUIET_SECONDS = 40.0
"""Without a write for so long, all have come to rest: figures are written every 30 s."""

Counts = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes and times."""

    few: int
    many: int
    settling_seconds: tuple[float, float]
    """For the limits to grow, with few policies and with many: these over a whole wave of the traffic."""
    measured_seconds: float
    rest_seconds: float
    """At most, for all to come to rest."""


FULL = Plan(few=20, many=200, settling_seconds=(45, 240), measured_seconds=60, rest_seconds=420)
QUICK = Plan(few=5, many=20, settling_seconds=(20, 20), measured_seconds=20, rest_seconds=180)


@dataclass(slots=True, kw_only=True)
class Phase:
    """What was measured in one phase."""

    policies: int
    seconds: float
    cpu_percent: float
    cpu_most_percent: float
    """Of the worst interval."""
    memory_mb: float
    requests: Counts
    """The operator's, at the API server, by verb and resource (and everyone's leases)."""
    requests_seconds: float
    queries: float
    """At Prometheus."""
    queries_seconds: float
    """Between the two looks at that counter: on a busy machine, looking itself takes its time."""
    passes: float
    pass_milliseconds: float
    query_milliseconds: float
    statuses: float

    @property
    def queries_per_interval(self) -> float:
        return self.queries / self.queries_seconds * INTERVAL_SECONDS

    @property
    def writes_per_second(self) -> float:
        return sum(self.writes().values()) / self.requests_seconds

    def writes(self) -> Counts:
        """Writes, leases aside."""
        return {
            key: count
            for key, count in self.requests.items()
            if key[0] not in READS and key[1] not in ("leases", "subjectaccessreviews", "tokenreviews")
        }

    def figures(self) -> dict[str, Any]:
        return {
            "policies": self.policies,
            "seconds": round(self.seconds, 1),
            "cpuPercentOfACore": round(self.cpu_percent, 1),
            "cpuPercentWorstInterval": round(self.cpu_most_percent, 1),
            "residentMegabytes": round(self.memory_mb, 1),
            "apiRequestsPerSecond": {
                f"{verb} {resource}": round(count / self.requests_seconds, 3)
                for (verb, resource), count in self.requests.items()
            },
            "writesPerSecondApartFromLeases": round(self.writes_per_second, 3),
            "prometheusQueriesPerInterval": round(self.queries_per_interval, 2),
            "passesPerSecond": round(self.passes / self.seconds, 1),
            "passMeanMilliseconds": round(self.pass_milliseconds, 2),
            "queryMeanMilliseconds": round(self.query_milliseconds, 2),
            "statusWritesPerSecond": round(self.statuses / self.seconds, 3),
        }


@dataclass(slots=True)
class Bench:
    """Everything that runs."""

    plane: ControlPlane
    prometheus: Prometheus
    exporter_port: int
    targets: Path
    operator: Operator | None = None
    policies: int = 0
    own: Counts = field(default_factory=dict)
    """Requests of this benchmark itself, which are not the operator's."""
    looked_at: float = 0.0

    def grow(self, count: int) -> None:
        """Have so many policies, and routers of them that are scraped."""
        entries = [
            {
                "targets": [f"127.0.0.1:{self.exporter_port}"],
                "labels": {
                    "namespace": NAMESPACE,
                    "instance": f"{policy_name(number)}-{router}",
                    "__metrics_path__": f"/metrics/{number}/{router}",
                },
            }
            for number in range(count)
            for router in range(ROUTERS)
        ]
        fresh = self.targets.with_suffix(".new")
        fresh.write_text(json.dumps(entries))
        fresh.rename(self.targets)
        self.prometheus.wait_for_targets(count * ROUTERS, 60)
        for number in range(self.policies, count):
            create_policy(self.plane, policy_name(number), a_spec(policy_name(number)))
        self.policies = count

    def look(self) -> bool:
        """Do what is due, and see that the operator lives; return whether it had to be started again."""
        self.program()
        return self.operator is not None and self.operator.check(measured=False)

    def program(self) -> None:
        """Say for each policy what its routers applied, as the router servers do: on change, every 5 s at
        most.
        """
        if time.monotonic() - self.looked_at < LOOK_SECONDS:
            return
        self.looked_at = time.monotonic()
        listed = self.plane.request("GET", POLICIES)["items"]
        self._count("LIST")
        for policy in listed:
            status = policy.get("status") or {}
            sequence = (status.get("routing") or {}).get("sequence")
            if sequence is None or (status.get("programmed") or {}).get("sequence") == sequence:
                continue
            programmed = {
                "sequence": sequence,
                "agents": ROUTERS,
                "applied": ROUTERS,
                "silent": 0,
                "fill": "Fill",
                "ready": dict.fromkeys(POOLS, READY),
            }
            path, body = status_patch(
                policy["metadata"]["name"], {"programmed": programmed}, "meritorder-router"
            )
            self.plane.request("PATCH", path, body, **APPLY)
            self._count("APPLY")

    def _count(self, verb: str) -> None:
        key = (verb, "inferencepolicies")
        self.own[key] = self.own.get(key, 0) + 1

    def traffic(self, word: str) -> None:
        """`rest` or `traffic`."""
        httpx.post(f"http://127.0.0.1:{self.exporter_port}/{word}", trust_env=False).raise_for_status()

    def requests(self) -> Counts:
        """The API server's count of all but our own requests."""
        return {key: count - self.own.get(key, 0) for key, count in self.plane.request_counts().items()}

    def queries(self) -> float:
        """Queries that Prometheus has answered."""
        return sum(
            value
            for name, value in metric_lines(f"{self.prometheus.url}/metrics")
            if name.startswith("prometheus_http_requests_total") and 'handler="/api/v1/query' in name
        )


def run(folder: Path, screen: Screen, *, quick: bool) -> Result:
    """Measure."""
    plan = QUICK if quick else FULL
    machine = machine_facts()
    with ExitStack() as stack:
        with screen.step("Starting etcd, API server and controller manager"):
            plane = control_plane(stack, folder)
        with screen.step("Starting the exporter, Prometheus and the operator"):
            bench = _start(stack, plane, folder)
        found: dict[str, Phase] = {}
        seconds = plan.measured_seconds
        with screen.step(f"Creating {plan.few} policies of {len(POOLS)} pools"):
            bench.grow(plan.few)
        screen.wait("their limits grow", plan.settling_seconds[0], bench.look)
        found["few"] = _measure(bench, screen, f"{plan.few} policies under traffic", seconds)
        with screen.step(f"Creating {plan.many - plan.few} more"):
            bench.grow(plan.many)
        found["learning"] = _measure(bench, screen, f"{plan.many} policies that learn from nothing", seconds)
        screen.wait("their limits grow", plan.settling_seconds[1], bench.look)
        found["many"] = _measure(bench, screen, f"{plan.many} policies under traffic", seconds)
        bench.traffic("rest")
        settled = _settle(bench, screen, plan.rest_seconds)
        found["rest"] = _measure(bench, screen, f"{plan.many} policies at rest", seconds)
        versions = {
            "Kubernetes": plane.version,
            "Prometheus": _prometheus_version(bench.prometheus),
            **package_versions("kopf", "lightkube", "httpx", "pydantic"),
        }
        restarts = bench.operator.restarts if bench.operator is not None else 0
    return _result(plan, found, settled, restarts, versions, machine)


def _start(stack: ExitStack, plane: ControlPlane, folder: Path) -> Bench:
    port = free_port()
    exporter = start(
        stack, [sys.executable, "-m", "bench.exporter", str(port)], folder / "log" / "exporter.log"
    )
    exporter.wait_for(
        lambda: httpx.post(f"http://127.0.0.1:{port}/traffic", trust_env=False).is_success,
        30,
        "the exporter answers",
        retry_on=(httpx.TransportError,),
    )
    targets = folder / "targets.json"
    targets.write_text("[]")
    config = {
        "global": {"scrape_interval": f"{INTERVAL_SECONDS}s", "scrape_timeout": f"{INTERVAL_SECONDS}s"},
        "scrape_configs": [{"job_name": "routers", "file_sd_configs": [{"files": [str(targets)]}]}],
    }
    prometheus = stack.enter_context(Prometheus(folder / "prometheus", config=yaml.safe_dump(config)))
    bench = Bench(plane, prometheus, port, targets)
    bench.operator = Operator(stack, plane, prometheus.url, folder)
    return bench


def a_spec(name: str) -> dict[str, Any]:
    """A policy of four pools; what is not said is at its default."""
    return {
        "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
        "pools": [
            {
                "name": pool,
                "backend": {"service": {"name": f"{name}-{pool}", "port": 8000}},
                "cost": {"perReplicaHour": PRICES[pool]},
            }
            for pool in POOLS
        ],
        "behavior": {"intervalSeconds": INTERVAL_SECONDS},
    }


def _measure(bench: Bench, screen: Screen, what: str, seconds: float) -> Phase:
    assert bench.operator is not None
    operator = bench.operator
    pid = operator.child.pid
    marks: list[tuple[float, float]] = []
    memory = 0.0

    def look() -> None:
        nonlocal memory
        bench.program()
        operator.check(measured=True)
        memory = max(memory, memory_bytes(pid) / 1e6)
        if not marks or time.monotonic() - marks[-1][0] >= INTERVAL_SECONDS:
            marks.append((time.monotonic(), cpu_seconds(pid)))

    own = _own(operator)
    requests_at, requests = time.monotonic(), bench.requests()
    queries_at, queries = time.monotonic(), bench.queries()
    began, used = time.monotonic(), cpu_seconds(pid)
    screen.wait(what, seconds, look)
    past, used = time.monotonic() - began, cpu_seconds(pid) - used
    queries_past, queries = time.monotonic() - queries_at, bench.queries() - queries
    requests_past, made = time.monotonic() - requests_at, grown(requests, bench.requests())
    own_after = _own(operator)
    passes = own_after["passes"] - own["passes"]
    asked = own_after["queries"] - own["queries"]
    if passes < bench.policies * past / INTERVAL_SECONDS / 2:
        # What does nothing costs nothing: such figures would look good and mean nothing.
        raise RuntimeError(
            f"{passes:g} passes in {past:.0f} s over {bench.policies} policies: too few to judge by"
        )
    phase = Phase(
        policies=bench.policies,
        seconds=past,
        cpu_percent=used / past * 100,
        cpu_most_percent=max(((b[1] - a[1]) / (b[0] - a[0]) * 100 for a, b in pairwise(marks)), default=0.0),
        memory_mb=memory,
        requests=made,
        requests_seconds=requests_past,
        queries=queries,
        queries_seconds=queries_past,
        passes=passes,
        pass_milliseconds=(own_after["pass_seconds"] - own["pass_seconds"]) / max(1, passes) * 1000,
        query_milliseconds=(own_after["query_seconds"] - own["query_seconds"]) / max(1, asked) * 1000,
        statuses=own_after["statuses"] - own["statuses"],
    )
    screen.say(
        f"CPU {phase.cpu_percent:.1f} % of a core, {phase.memory_mb:.0f} MB, "
        f"{phase.queries_per_interval:.1f} queries per interval, "
        f"{phase.writes_per_second:.2f} writes per second"
    )
    return phase


def _own(operator: Operator) -> Mapping[str, float]:
    """What the operator counts itself."""
    lines = metric_lines(operator.metrics_url)

    return {
        "passes": only(lines, "meritorder_reconcile_duration_seconds_count"),
        "pass_seconds": only(lines, "meritorder_reconcile_duration_seconds_sum"),
        "queries": only(lines, "meritorder_query_total"),
        "query_seconds": only(lines, "meritorder_query_duration_seconds_sum"),
        "statuses": only(lines, "meritorder_status_writes_total"),
    }


def _settle(bench: Bench, screen: Screen, most: float) -> float:
    """Wait until nothing is written any more; return after how many seconds the last write came."""
    assert bench.operator is not None
    operator = bench.operator
    began = changed_at = time.monotonic()
    statuses = _own(operator)["statuses"]

    def still() -> bool:
        nonlocal statuses, changed_at
        is_new = bench.look()
        now = _own(operator)["statuses"]
        if is_new or now != statuses:
            statuses, changed_at = now, time.monotonic()
        return time.monotonic() - changed_at >= QUIET_SECONDS or time.monotonic() - began >= most

    with screen.step("All traffic ended; waiting until nothing is written any more"):
        wait_until(still, most + 30, "all come to rest", interval_seconds=2)
    screen.say(f"the last status was written {changed_at - began:.0f} s after the traffic's end")
    return changed_at - began


def _prometheus_version(prometheus: Prometheus) -> str:
    return str(prometheus.client.get("/api/v1/status/buildinfo").json()["data"]["version"])


def _result(
    plan: Plan,
    found: Mapping[str, Phase],
    settled: float,
    restarts: int,
    versions: dict[str, str],
    machine: dict[str, Any],
) -> Result:
    few, learning, many, rest = (found[name] for name in ("few", "learning", "many", "rest"))
    phases = (few, learning, many, rest)

    def row(what: str, form: str, *values: float) -> Row:
        return Row(what=what, cells=tuple(format(value, form) for value in values))

    keys = sorted({key for phase in phases for key in phase.requests if key[1] in _SHOWN})
    rows = (
        row("CPU, % of one core", ".1f", *(phase.cpu_percent for phase in phases)),
        row("CPU in the worst interval, %", ".1f", *(phase.cpu_most_percent for phase in phases)),
        row("resident memory, most, MB", ".0f", *(phase.memory_mb for phase in phases)),
        row("passes per second", ".1f", *(phase.passes / phase.seconds for phase in phases)),
        row("time of a pass, mean ms", ".1f", *(phase.pass_milliseconds for phase in phases)),
        row(
            f"Prometheus queries per interval of {INTERVAL_SECONDS} s",
            ".1f",
            *(phase.queries_per_interval for phase in phases),
        ),
        row("time of a query, mean ms", ".1f", *(phase.query_milliseconds for phase in phases)),
        row(
            "API writes per second, leases aside",
            ".2f",
            *(phase.writes_per_second for phase in phases),
        ),
        *(
            row(
                f"API requests per second: {verb} {resource}",
                ".2f",
                *(phase.requests.get((verb, resource), 0) / phase.requests_seconds for phase in phases),
            )
            for verb, resource in keys
        ),
    )
    return Result(
        name=NAME,
        sentence=f"One meritorder-operator with {plan.few} and {plan.many} policies of {len(POOLS)} pools "
        f"and {ROUTERS} routers each, interval and scrape {INTERVAL_SECONDS} s, window 60 s; each phase was "
        f"measured for {plan.measured_seconds:g} s; the last status was written {settled:.0f} s after the "
        f"traffic ended.",
        columns=(
            f"{few.policies} under traffic",
            f"{learning.policies} just created",
            f"{many.policies} under traffic",
            f"{rest.policies} at rest",
        ),
        rows=rows,
        checks=(
            Check(
                name=f"CPU of one core, {many.policies} policies under traffic",
                value=round(many.cpu_percent, 1),
                relation="<",
                target=CPU_TARGET,
                unit="%",
            ),
            Check(
                name="resident memory",
                value=round(max(phase.memory_mb for phase in phases)),
                relation="<",
                target=MEMORY_TARGET,
                unit="MB",
            ),
            Check(
                name="times the operator ended by itself", value=restarts, relation="==", target=0, unit=""
            ),
            Check(
                name="API writes at rest, leases aside",
                value=sum(rest.writes().values()),
                relation="==",
                target=0,
                unit="",
            ),
            Check(
                name=f"queries per interval, {many.policies} policies to {few.policies}",
                value=round(many.queries_per_interval / max(few.queries_per_interval, 1e-9), 2),
                relation="<=",
                target=1.05,
                unit="times",
            ),
        ),
        setup={
            "policies": [few.policies, many.policies],
            "poolsEach": len(POOLS),
            "routersEach": ROUTERS,
            "intervalSeconds": INTERVAL_SECONDS,
            "scrapeSeconds": INTERVAL_SECONDS,
            "settlingSeconds": list(plan.settling_seconds),
            "measuredSeconds": plan.measured_seconds,
            "versions": versions,
        },
        figures={
            "settledSeconds": round(settled),
            "phases": {name: phase.figures() for name, phase in found.items()},
        },
        machine=machine,
        at=today(),
    )


_SHOWN = frozenset({"inferencepolicies", "leases", "events"})
