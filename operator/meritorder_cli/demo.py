"""The built-in example: three simulated pools and open-loop traffic with a burst, while one pool slows down
and recovers.
"""

import asyncio
import random
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import yaml

from meritorder_cli.document import ClientSide
from meritorder_cli.standalone import Output, Running, Task, perform
from meritorder_sim.arrivals import Mix, Phase, Schedule, Uniform, plan
from meritorder_sim.load import LoadView, Target, run_load
from meritorder_sim.load_report import Record, percentile

LENGTH = 90.0
"""Seconds for which the times below and in `example/pools.yaml` are meant."""
_LAST = 3.0
"""Traffic ends so long before the demo does, for what is in flight to come back."""
_BASE, _PEAK = 26.0, 72.0
_BURST = (24.0, 42.0)
_MIX = Mix(
    prompt_tokens=Uniform(300, 500), output_tokens=Uniform(40, 64), stream_percent=10.0, max_tokens="none"
)


def demonstrate(seconds: float, seed: int, listen: str, output: Output) -> int:
    """Run the demo for so many seconds; returns the exit code."""
    scale = seconds / LENGTH
    with tempfile.TemporaryDirectory(prefix="meritorder-") as folder:
        policy, pools = Path(folder) / "policy.yaml", Path(folder) / "pools.yaml"
        policy.write_text(_example("policy.yaml"), encoding="utf-8")
        pools.write_text(stretched(_example("pools.yaml"), scale), encoding="utf-8")
        task = Task(
            files=[policy],
            pools_path=pools,
            listen=listen,
            seconds=seconds,
            seed=seed,
            note="short on purpose: a demo",
        )
        return perform(task, output, companion=_Traffic(seed, scale).run)


def stretched(pools_file: str, scale: float) -> str:
    """The pools file with the times of its events stretched."""
    content = yaml.safe_load(pools_file)
    for pool in content["pools"]:
        for event in pool.get("events", ()):
            event["at"] = round(event["at"] * scale, 3)
    return yaml.safe_dump(content, sort_keys=False)


def schedule(scale: float) -> Schedule:
    """Load over time: a ramp, a steady part, a burst, steady again."""
    begin, end = _BURST
    return Schedule(
        phases=(
            Phase(8 * scale, 4.0, _BASE),
            Phase((begin - 8) * scale, _BASE),
            Phase((end - begin) * scale, _PEAK),
            Phase(max((LENGTH - end) * scale - _LAST, 1.0), _BASE),
        )
    )


class _Traffic:
    """The clients of the demo."""

    def __init__(self, seed: int, scale: float) -> None:
        self._seed = seed
        self._scale = scale

    async def run(self, running: Running) -> None:
        """Send everything, and tell what the clients counted."""
        view = LoadView(asyncio.get_running_loop().time)
        session = running.session
        target = session.policy.spec.sla.target_milliseconds / 1000
        offset = session.elapsed
        running.client = lambda: count(
            view.records, target, session.ledger.warmup_seconds - offset, session.policy.spec.sla.percentile
        )
        planned = plan(schedule(self._scale), _MIX, random.Random(self._seed))
        begin, end = _BURST
        async with asyncio.TaskGroup() as group:
            group.create_task(
                run_load(Target(url=running.url.removesuffix("/v1")), planned, view=view, stop=running.stop)
            )
            group.create_task(
                self._tell(running, begin, f"burst: load goes from {_BASE:.0f} to {_PEAK:.0f} requests/s")
            )
            group.create_task(self._tell(running, end, "the burst is over"))

    async def _tell(self, running: Running, at: float, message: str) -> None:
        await asyncio.sleep(max(at * self._scale - running.session.elapsed, 0))
        running.session.ledger.happened(running.session.started_at + running.session.elapsed, message)


def count(records: Sequence[Record], target: float, warmup: float, wanted: int) -> ClientSide:
    """What clients saw after the warm-up; a failed request is slow."""
    judged = [record for record in records if record.ended >= warmup]
    times = [record.e2e for record in judged if not record.failed]
    attained = percentile(times, wanted)
    return ClientSide(
        requests=len(judged),
        slow=sum(record.failed or record.e2e > target for record in judged),
        failed=sum(record.failed for record in judged),
        attained_seconds=None if attained is None else round(attained, 3),
    )


def _example(name: str) -> str:
    return (files("meritorder_cli") / "example" / name).read_text(encoding="utf-8")
