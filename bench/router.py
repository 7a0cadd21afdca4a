"""`router`: what a request and a token cost on the way through ours and through the routers in use today.

All contenders stand in front of the same three pools, one worker each on one core; load and pools have the
others. They take turns, round by round, so that a machine whose speed drifts treats them alike; figures are
medians over the rounds. The ratios that are judged are of contenders asked side by side, at the same time:
on a machine with other work, turns of seconds differ more than contenders do. What counts against a contender
is the processor time of all its processes; latency is what it adds to that of asking a pool directly in the
same round.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from assets.find import cache_home
from assets.get import go
from bench.contenders import (
    CONTENDERS,
    DIRECT,
    OURS,
    POOLS,
    Missing,
    Running,
    Site,
    await_answers,
    pinned,
    start_pools,
)
from bench.drawing import Bar, Panel, draw
from bench.figures import quantile
from bench.results import Check, Result, Row, machine_facts, today
from bench.screen import Screen
from bench.tree import cpu_seconds, resident_bytes
from support.ports import free_ports
from support.processes import DiedEarly

NAME: Final = "router"
LOAD: Final = Path(__file__).parent / "load"
LEAST_KEPT: Final = 0.95
"""Of an asked rate, below which a contender cannot keep it, and its latency says nothing."""
FEWER: Final = 10
"""Times fewer streams are asked of a contender that cannot answer the higher rate."""
VLLM, PLAIN = "vllm-router", "envoy"
TIMES_VLLM, TIMES_PLAIN, ADDED_MILLISECONDS = 1.0, 0.8, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes and times."""

    rounds: int
    side_rounds: int
    side_seconds: float
    connections: int = 64
    warm_seconds: float
    closed_seconds: float
    rates: tuple[int, int] = (100, 1000)
    open_seconds: tuple[float, float]
    streams: int
    tokens: int
    """Per stream, 20 a second."""


FULL: Final = Plan(
    rounds=3,
    side_rounds=15,
    side_seconds=2,
    warm_seconds=0.5,
    closed_seconds=3,
    open_seconds=(4, 3),
    streams=500,
    tokens=60,
)
QUICK: Final = Plan(
    rounds=1,
    side_rounds=3,
    side_seconds=0.5,
    warm_seconds=0.2,
    closed_seconds=0.5,
    open_seconds=(0.5, 0.5),
    streams=50,
    tokens=10,
)

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What was measured of one contender in one round. Latency in ms, processor time in µs."""

    per_second: float
    per_core: float
    """Requests per second of the contender's processor time; 0 for none (direct)."""
    request_cpu: float
    latency: dict[int, tuple[float, float] | None]
    """By rate: p50 and p99; None: it could not keep the rate."""
    open_cpu: dict[int, float]
    """By rate: processor time per request."""
    streams: int
    event_cpu: float
    event_latency: tuple[float, float]
    memory_mb: float
    errors: int
    client_share: float
    """Of a core, by the load generator, while as many requests as possible were asked."""


@dataclass(slots=True)
class Bench:
    """Everything that runs."""

    site: Site
    load: Path
    cores: Sequence[int]
    plan: Plan
    running: dict[str, Running] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    """Requests per second and core of ours as a multiple of another one's, asked side by side."""

    def port(self, name: str) -> int:
        if name == DIRECT:
            return next(iter(self.site.pools.values()))
        return self.running[name].port

    def cost(self, name: str) -> float:
        """Processor time of a contender so far, in seconds."""
        return 0.0 if name == DIRECT else cpu_seconds(self.running[name].child.pid)

    def ask(self, name: str, command: str, **options: float) -> tuple[Report, float]:
        """Run a client; return what it says, and what that cost the contender in seconds."""
        return self.ask_all([name], command, **options)[name]

    def ask_all(
        self, names: Sequence[str], command: str, **options: float
    ) -> dict[str, tuple[Report, float]]:
        """Run a client for each of them at the same time."""
        flags = [part for key, value in options.items() for part in (f"-{key}", f"{value:g}")]
        before = {name: self.cost(name) for name in names}
        clients = {
            name: subprocess.Popen(
                pinned(self.cores, [self.load, command, *flags, f"127.0.0.1:{self.port(name)}"]),
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in names
        }
        try:
            said = {name: client.communicate(timeout=180)[0] for name, client in clients.items()}
        finally:
            for client in clients.values():
                client.kill()
        return {name: (json.loads(said[name]), self.cost(name) - before[name]) for name in names}


def split_cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One core for the contender, the others for load and pools; on a machine of one core, all share it."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0],), tuple(cores[1:]) or (cores[0],)


def load_generator() -> Path:
    """Clients and pools, built when their source is new."""
    sources = [*sorted(LOAD.glob("*.go")), LOAD / "go.mod"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    binary = cache_home() / f"bench-load-{digest}" / "load"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        made = binary.with_name(f"load.{os.getpid()}")
        subprocess.run(
            [go(), "build", "-trimpath", "-buildvcs=false", "-o", made, "."],
            cwd=LOAD,
            check=True,
            env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"},
        )
        made.rename(binary)
    return binary


def run(folder: Path, screen: Screen, *, quick: bool, only: Sequence[str] = ()) -> Result:
    """Measure."""
    machine = machine_facts()
    mine, others = split_cores()
    plan = QUICK if quick else FULL
    with ExitStack() as stack:
        with screen.step("Building the load generator, starting three pools"):
            load = load_generator()
            pools = dict(zip(POOLS, free_ports(len(POOLS)), strict=True))
            site = Site(stack=stack, folder=folder, cores=mine, pools=pools)
            start_pools(site, load, others)
        bench = Bench(site=site, load=load, cores=others, plan=plan)
        _start(bench, screen, only)
        names = [DIRECT, *bench.running]
        total = plan.rounds * len(names)
        with screen.bar(f"{plan.rounds} rounds of {', '.join(names)}", total) as show:
            for done in range(total):
                round_number, place = divmod(done, len(names))
                # Another one begins each round, so that none always follows the same one.
                name = names[(place + round_number) % len(names)]
                bench.turns.setdefault(name, []).append(turn(bench, name))
                show(done + 1)
                if place + 1 == len(names):
                    screen.say(_so_far(bench, round_number))
        compared = [name for name in (OURS, PLAIN, VLLM) if name in bench.running]
        if len(compared) > 1 and compared[0] == OURS:
            with screen.bar(f"{', '.join(compared)} side by side", plan.side_rounds) as show:
                for done in range(plan.side_rounds):
                    side_by_side(bench, compared[done % len(compared) :] + compared[: done % len(compared)])
                    show(done + 1)
    return _result(bench, machine, folder)


def _start(bench: Bench, screen: Screen, only: Sequence[str]) -> None:
    known = {contender.name: contender for contender in CONTENDERS}
    for name, contender in known.items():
        if only and name not in only:
            continue
        with screen.step(f"Starting {contender.what}"):
            try:
                running = contender.start(bench.site)
                await_answers(running.port, running.child)
            except Missing as why:
                bench.missing[name] = str(why)
            except (DiedEarly, AssertionError) as why:
                bench.missing[name] = f"it did not start: {str(why).splitlines()[0]}"
            else:
                bench.running[name] = running
        if name in bench.missing:
            screen.say(f"left out: {name}: {bench.missing[name]}")


def turn(bench: Bench, name: str) -> Turn:
    """Measure one contender once."""
    plan = bench.plan
    bench.ask(name, "closed", connections=plan.connections, seconds=plan.warm_seconds)
    most, used = bench.ask(name, "closed", connections=plan.connections, seconds=plan.closed_seconds)
    errors = int(most["errors"])
    latency: dict[int, tuple[float, float] | None] = {}
    open_cpu: dict[int, float] = {}
    for rate, seconds in zip(plan.rates, plan.open_seconds, strict=True):
        if most["items"] / most["seconds"] < rate:
            # It would only pile up what it cannot answer.
            latency[rate], open_cpu[rate] = None, 0.0
            continue
        found, cost = bench.ask(name, "open", rate=rate, seconds=seconds)
        kept = found["items"] / found["seconds"] >= LEAST_KEPT * rate and not found["late"]
        latency[rate] = (found["p50"], found["p99"]) if kept else None
        open_cpu[rate] = cost / max(1, found["items"]) * 1e6
        errors += int(found["errors"])
    # One that cannot answer the higher rate would take minutes over all the streams.
    keeps_up = most["items"] / most["seconds"] >= plan.rates[-1]
    streams = plan.streams if keeps_up else max(1, plan.streams // FEWER)
    events, spent = bench.ask(name, "streams", streams=streams, tokens=plan.tokens)
    memory = 0.0 if name == DIRECT else resident_bytes(bench.running[name].child.pid) / 2**20
    return Turn(
        per_second=most["items"] / most["seconds"],
        per_core=most["items"] / used if used else 0.0,
        request_cpu=used / max(1, most["items"]) * 1e6,
        latency=latency,
        open_cpu=open_cpu,
        streams=streams,
        event_cpu=spent / max(1, events["items"]) * 1e6,
        event_latency=(events["p50"], events["p99"]),
        memory_mb=memory,
        errors=errors + int(events["errors"]),
        client_share=most["cpuSeconds"] / most["seconds"],
    )


def side_by_side(bench: Bench, names: Sequence[str]) -> None:
    """Ask all of them at once: they then have the same machine, whatever else it does, and share their core
    by turns of milliseconds. Ratios are steady where those of turns of seconds are not.
    """
    plan = bench.plan
    found = bench.ask_all(names, "closed", connections=plan.connections // 2, seconds=plan.side_seconds)
    each = {name: report["items"] / max(cost, 1e-9) for name, (report, cost) in found.items()}
    for name in names:
        if name != OURS and each[name]:
            bench.times.setdefault(name, []).append(each[OURS] / each[name])


def _so_far(bench: Bench, number: int) -> str:
    found = (f"{name} {turns[number].per_core:.0f}" for name, turns in bench.turns.items() if name != DIRECT)
    return f"round {number + 1}, requests per second and core: {', '.join(found)}"


# What came out


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(quantile(values, 0.5), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def _added(bench: Bench, name: str, rate: int, which: int) -> list[float]:
    """What a contender adds to the latency of the same round's direct requests, in ms, per round."""
    added = []
    for own, direct in zip(bench.turns[name], bench.turns[DIRECT], strict=True):
        mine, base = own.latency[rate], direct.latency[rate]
        if mine is not None and base is not None:
            added.append(mine[which] - base[which])
    return added


def _of(turns: Sequence[Turn], value: Callable[[Turn], float]) -> dict[str, float]:
    return _spread([value(each) for each in turns])


def _figures(bench: Bench, name: str) -> dict[str, Any]:
    turns = bench.turns[name]
    figures: dict[str, Any] = {
        "requestsPerSecondPerCore": _of(turns, lambda each: each.per_core),
        "requestsPerSecond": _of(turns, lambda each: each.per_second),
        "requestCpuMicroseconds": _of(turns, lambda each: each.request_cpu),
        "streams": min(each.streams for each in turns),
        "eventCpuMicroseconds": _of(turns, lambda each: each.event_cpu),
        "eventLatencyMilliseconds": {
            "p50": _of(turns, lambda each: each.event_latency[0]),
            "p99": _of(turns, lambda each: each.event_latency[1]),
        },
        "residentMegabytes": _of(turns, lambda each: each.memory_mb),
        "errors": sum(each.errors for each in turns),
        "loadGeneratorShareOfACore": _of(turns, lambda each: each.client_share),
    }
    for rate in bench.plan.rates:
        kept = [latency for each in turns if (latency := each.latency[rate]) is not None]
        if len(kept) < len(turns):
            figures[f"at{rate}"] = "not kept"
            continue
        figures[f"at{rate}"] = {
            "p50": _spread([latency[0] for latency in kept]),
            "p99": _spread([latency[1] for latency in kept]),
            "addedP50": _spread(_added(bench, name, rate, 0) or [0.0]),
            "addedP99": _spread(_added(bench, name, rate, 1) or [0.0]),
            "requestCpuMicroseconds": _spread([each.open_cpu[rate] for each in turns]),
        }
    return figures


def _cell(found: Mapping[str, float], form: str = ".0f") -> str:
    return f"{found['median']:{form}} ({found['least']:{form}} to {found['most']:{form}})"


def _row(title: str, figures: Mapping[str, Any], plan: Plan, *, direct: bool) -> Row:
    cells = ["—" if direct else _cell(figures["requestsPerSecondPerCore"])]
    cells.append("—" if direct else f"{figures['requestCpuMicroseconds']['median']:.0f}")
    for rate in plan.rates:
        at = figures[f"at{rate}"]
        if isinstance(at, str):
            cells.append("not kept")
        elif direct:
            cells.append(f"[{at['p50']['median']:.2f} / {at['p99']['median']:.2f}]")
        else:
            cells.append(f"{_cell(at['addedP50'], '.2f')} / {at['addedP99']['median']:.2f}")
    fewer = f", {figures['streams']} streams" if figures["streams"] < plan.streams else ""
    cells.append("—" if direct else _cell(figures["eventCpuMicroseconds"], ".1f") + fewer)
    latency = figures["eventLatencyMilliseconds"]
    cells.append(f"{latency['p50']['median']:.2f} / {latency['p99']['median']:.1f}")
    cells.append("—" if direct else f"{figures['residentMegabytes']['median']:.0f}")
    cells.append(str(figures["errors"]))
    return Row(what=title, cells=tuple(cells))


def _checks(bench: Bench, ratios: Mapping[str, list[float]]) -> tuple[Check, ...]:
    checks = []
    for other, least in ((VLLM, TIMES_VLLM), (PLAIN, TIMES_PLAIN)):
        if other in ratios:
            checks.append(
                Check(
                    name=f"requests per second and core, side by side, ours / {other}",
                    value=round(quantile(ratios[other], 0.5), 2),
                    relation=">=",
                    target=least,
                    unit="",
                )
            )
    rate = bench.plan.rates[0]
    if OURS in bench.running and (added := _added(bench, OURS, rate, 0)):
        checks.append(
            Check(
                name=f"latency that ours adds at {rate} requests/s, p50",
                value=round(quantile(added, 0.5), 2),
                relation="<=",
                target=ADDED_MILLISECONDS,
                unit="ms",
            )
        )
    return tuple(checks)


def _result(bench: Bench, machine: Mapping[str, Any], folder: Path) -> Result:
    plan = bench.plan
    titles = {DIRECT: "direct [p50 / p99]", **{each.name: each.what for each in CONTENDERS}}
    figures = {name: _figures(bench, name) for name in titles if name in bench.turns}
    ratios = bench.times
    left_out = "".join(f" Left out: {name} ({why})." for name, why in bench.missing.items())
    low, high = plan.rates
    picture = _picture(bench, figures, titles, folder)
    return Result(
        name=NAME,
        sentence="Small chat completions and streams through each router, one worker on one core, before "
        f"three pools that answer at once; {plan.rounds} rounds in which all take turns; medians (least to "
        "most). "
        "Requests per second and core, and µs, are of the processor time of all of a contender's processes, "
        f"at {plan.connections} connections. Latency is what is added to direct: p50 / p99. "
        f"{plan.streams} streams of 20 events a second: processor time per event, and how old an event is "
        f"when it arrives, p50 / p99.{left_out}",
        columns=(
            "req/s per core",
            "µs/req",
            f"added at {low}/s, ms",
            f"added at {high}/s, ms",
            "µs/event",
            "event age, ms",
            "RSS, MiB",
            "errors",
        ),
        rows=tuple(_row(titles[name], found, plan, direct=name == DIRECT) for name, found in figures.items()),
        checks=_checks(bench, ratios),
        setup={
            "rounds": plan.rounds,
            "sideBySideRounds": plan.side_rounds,
            "sideBySideSeconds": plan.side_seconds,
            "connections": plan.connections,
            "closedSeconds": plan.closed_seconds,
            "openSeconds": dict(zip(map(str, plan.rates), plan.open_seconds, strict=True)),
            "streams": plan.streams,
            "eventsPerStream": plan.tokens,
            "contendersCores": len(bench.site.cores),
            "versions": {name: running.version for name, running in bench.running.items()},
            "missing": bench.missing,
        },
        figures={
            "contenders": figures,
            "oursTimesSideBySide": {
                name: {**_spread(values), "each": [round(v, 3) for v in values]}
                for name, values in ratios.items()
            },
        },
        machine=machine,
        at=today(),
        pictures=(picture,) if picture is not None else (),
    )


def _picture(
    bench: Bench, figures: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], folder: Path
) -> Path | None:
    def bars(value: Callable[[Mapping[str, Any]], Mapping[str, float] | None]) -> tuple[Bar, ...]:
        found = ((name, value(figures[name])) for name in figures if name != DIRECT)
        return tuple(
            Bar(
                label=titles[name],
                value=spread["median"] if spread else None,
                least=spread["least"] if spread else 0.0,
                most=spread["most"] if spread else 0.0,
                ours=name == OURS,
            )
            for name, spread in found
        )

    low, high = bench.plan.rates

    def added(rate: int) -> Callable[[Mapping[str, Any]], Mapping[str, float] | None]:
        def of(found: Mapping[str, Any]) -> Mapping[str, float] | None:
            at = found[f"at{rate}"]
            return None if isinstance(at, str) else at["addedP50"]

        return of

    panels = (
        Panel(
            "Requests per second and core", "more is better", bars(lambda f: f["requestsPerSecondPerCore"])
        ),
        Panel(
            "Processor time per streamed event, µs",
            "less is better",
            bars(lambda f: f["eventCpuMicroseconds"]),
        ),
        Panel(f"Latency added at {low} requests/s, p50, ms", "less is better", bars(added(low))),
        Panel(f"Latency added at {high} requests/s, p50, ms", "less is better", bars(added(high))),
    )
    return draw(panels, folder / f"{NAME}.png")
