"""`/healthz`: whether the loops still pass."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from meritorder_operator.health import HealthServer
from meritorder_operator.loops import Loops
from meritorder_operator.telemetry import Durations
from support.ports import free_port
from support.waiting import until


class Passes:
    """In the reconciler's place: each pass ends once it may."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.ended = 0

    async def reconcile(self, view: Any) -> bool:
        await self.may_end.wait()
        self.ended += 1
        return False


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def manifest(interval: int = 5) -> dict[str, Any]:
    return {
        "apiVersion": "meritorder.dev/v1alpha1",
        "kind": "InferencePolicy",
        "metadata": {"name": "chat", "namespace": "ml", "uid": "1", "resourceVersion": "1", "generation": 1},
        "spec": {
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000, "windowSeconds": 6 * interval},
            "pools": [
                {
                    "name": "l40s",
                    "backend": {"service": {"name": "l40s", "port": 8000}},
                    "cost": {"perReplicaHour": "1.86"},
                }
            ],
            "behavior": {"intervalSeconds": interval},
        },
        "status": {"routing": {"sequence": 1}},
    }


def some_loops(clock: Clock, passes: Passes) -> Loops:
    loops = Loops(
        cluster=None,  # type: ignore[arg-type]  # nothing is listed here
        namespaces=(),
        forget=lambda _: None,
        durations=Durations(CollectorRegistry()),
        clock=clock,
        wall=clock,
    )
    loops.begin(passes)  # type: ignore[arg-type]  # what it does of a reconciler is all that is called
    return loops


@pytest.mark.parametrize(("interval", "allowed"), [(5, 60), (10, 100)])
async def test_no_pass_for_a_minute_or_ten_intervals_is_unhealthy(interval: int, allowed: int) -> None:
    clock, passes = Clock(), Passes()
    loops = some_loops(clock, passes)
    assert loops.stuck() is None
    clock.now += 1000  # a standby, or a leader without policies, has no passes
    assert loops.stuck() is None
    loops.saw("ADDED", manifest(interval))
    clock.now += allowed
    assert loops.stuck() is None
    clock.now += 1
    assert loops.stuck() == (
        f"no policy has had a pass for {allowed + 1} s; there must be one within {allowed} s"
    )
    passes.may_end.set()
    await until(lambda: passes.ended > 0 and loops.stuck() is None, 5, "a pass ended")
    await loops.stop()


async def test_healthz_answers_503_with_what_is_wrong() -> None:
    clock, passes = Clock(), Passes()
    loops = some_loops(clock, passes)
    health = HealthServer(CollectorRegistry(), healthy=loops.stuck, ready=lambda: None)
    port = free_port()
    await health.start("127.0.0.1", port, port)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.get("/healthz")).status_code == 200
            loops.saw("ADDED", manifest())
            clock.now += 61
            answer = await client.get("/healthz")
            assert answer.status_code == 503
            assert answer.text == "no policy has had a pass for 61 s; there must be one within 60 s\n"
    finally:
        await loops.stop()
        await health.stop()
