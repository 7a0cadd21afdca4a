"""`run`: puts policy, servers, Envoy, decision and screen together, and takes them apart again in order.

What is started first ends last: simulated pools, Envoy, the session, the traffic of a demo. However the run
ends (its time is up, Ctrl-C, an error), children are gone when it returns.
"""

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from meritorder_api.resource import InferencePolicy
from meritorder_api.table import TableSLA
from meritorder_api.wire import moment
from meritorder_cli.backends import Backends, Place, parse_backends, put_behind
from meritorder_cli.complaint import DONE, Complaint, WrongUse
from meritorder_cli.document import ClientSide, Document, PoolFacts
from meritorder_cli.manifests import read_policy
from meritorder_cli.pool_child import PoolChild
from meritorder_cli.prometheus import FromPrometheus, check_url, ignored
from meritorder_cli.report import build
from meritorder_cli.scenario import describe
from meritorder_cli.screen import Screen
from meritorder_cli.session import STEP_SECONDS, Session
from meritorder_cli.summary import summarize
from meritorder_router.agent.embedded import CannotStart, EmbeddedRouter
from meritorder_router.agent.envoy import NoEnvoy, Taken, refuse_taken
from meritorder_router.render.place import Address
from meritorder_sim.pools_file import PoolsFile, PoolsFileError, load_pools_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be run."""

    files: Sequence[Path]
    listen: str
    pools_path: Path | None = None
    backends: Sequence[str] = ()
    prometheus_url: str | None = None
    seconds: float | None = None
    seed: int = 0
    note: str = ""
    """Said on the screen and in the report, beside the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What is shown and written."""

    live: bool = True
    report: Path | None = None
    json: Path | None = None


@dataclass(slots=True, kw_only=True)
class Running:
    """A run that is on: what a demo's traffic gets to know."""

    session: Session
    url: str
    stop: asyncio.Event
    client: Callable[[], ClientSide | None] = field(default=lambda: None)
    """What the traffic's own side counted; asked at the end."""


Companion = Callable[[Running], Coroutine[Any, Any, None]]
"""Runs beside the session and is cancelled with it."""


def perform(task: Task, output: Output, companion: Companion | None = None) -> int:
    """Run to the end; show, write and return the exit code."""
    _writable(output)
    console = Console(highlight=False)
    live = output.live and console.is_terminal
    logging.basicConfig(
        level=logging.CRITICAL if live else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    document = uvloop.run(_run(task, console, live, companion))
    console.print()
    console.print(summarize(document))
    _write(document, output, console)
    return DONE


async def _run(task: Task, console: Console, live: bool, companion: Companion | None) -> Document:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with _started(task, stop) as running:
        session = running.session
        screen = Screen(console, session, live=live, url=running.url, lasts=task.seconds, note=task.note)
        beside = asyncio.create_task(companion(running)) if companion is not None else None
        if beside is not None:
            beside.add_done_callback(
                lambda done: stop.set() if not done.cancelled() and done.exception() else None
            )
        try:
            with screen:
                await session.run(seconds=task.seconds, stop=stop, watch=screen.show)
        finally:
            if beside is not None:
                beside.cancel()
                (outcome,) = await asyncio.gather(beside, return_exceptions=True)
        if beside is not None and isinstance(outcome, Exception):
            raise outcome
        return _document(task, session, running.client())


@asynccontextmanager
async def _started(task: Task, stop: asyncio.Event) -> AsyncIterator[Running]:
    """Everything that a run needs, started in order and ended in the other one."""
    policy = read_policy(task.files)
    address = _listen_address(task.listen)
    file = _pools_file(task.pools_path)
    places: dict[str, list[Place]] = parse_backends(task.backends)
    pools = [pool.name for pool in policy.spec.pools]
    simulated = [pool.name for pool in file.pools if pool.name in pools] if file is not None else []
    if file is not None:
        _named_once(file, pools, places)
    if not simulated:
        put_behind(policy.spec, places, source="--backend")  # refused before anything is started
    if task.prometheus_url is not None:
        check_url(task.prometheus_url)
    try:
        refuse_taken(address)
    except Taken as error:
        raise Complaint(f"{error} with --listen") from error
    async with AsyncExitStack() as stack:
        child: PoolChild | None = None
        if file is not None and simulated and task.pools_path is not None:
            child = await stack.enter_async_context(PoolChild(task.pools_path, simulated, seed=task.seed))
        child_started = time.time()

        def behind() -> InferencePolicy:
            standing = {**places, **(child.places if child is not None else {})}
            spec = put_behind(policy.spec, standing, source="--backend")
            return policy.model_copy(update={"spec": spec})

        served = behind()
        backends = Backends(served.spec)
        silent = await backends.first_look()
        router = await stack.enter_async_context(_router(address, served))
        references = _references(file)
        refine = None
        if task.prometheus_url is not None:
            refine = await stack.enter_async_context(FromPrometheus(served, task.prometheus_url))
        session = Session(served, backends, router, references=references, refine=refine)
        for name, message in ignored(served) if refine is None else []:
            session.ledger.happened(session.started_at, message, name)
        await session.decide()
        # Only now does Envoy listen: its first request finds a routing.
        try:
            await router.start()
        except CannotStart as error:
            raise Complaint(str(error)) from error
        for name in silent:
            session.ledger.happened(session.started_at, f"{name}: nothing answers there yet", name)
        if child is not None and file is not None:
            child.listen_to(lambda: backends.change(behind().spec))
            teller = asyncio.create_task(_tell(session, file, simulated, child_started))
            stack.callback(teller.cancel)
        yield Running(session=session, url=f"http://{address.local}/v1", stop=stop)


@asynccontextmanager
async def _router(address: Address, policy: InferencePolicy) -> AsyncIterator[EmbeddedRouter]:
    """An Envoy that is ready to be started, and is ended."""
    sla = TableSLA(metric=policy.spec.sla.metric, target_milliseconds=policy.spec.sla.target_milliseconds)
    router = EmbeddedRouter(listen=address, policy=policy.metadata.name, sla=sla)
    try:
        router.prepare()
    except (CannotStart, NoEnvoy) as error:
        raise Complaint(str(error)) from error
    try:
        yield router
    finally:
        await router.stop()


async def _tell(session: Session, file: PoolsFile, simulated: Sequence[str], started: float) -> None:
    """Note the pools file's events when they happen."""
    events = [
        (event.at, pool.name, describe(pool.name, event))
        for pool in file.pools
        if pool.name in simulated
        for event in pool.events
    ]
    for at, pool, message in sorted(events):
        await asyncio.sleep(max(started + at - time.time(), 0))
        session.ledger.happened(time.time(), message, pool)


def _listen_address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise WrongUse(f"`--listen`: {error}") from error


def _pools_file(path: Path | None) -> PoolsFile | None:
    if path is None:
        return None
    try:
        return load_pools_file(path)
    except PoolsFileError as error:
        raise WrongUse(str(error)) from error


def _named_once(file: PoolsFile, pools: Sequence[str], places: dict[str, list[Place]]) -> None:
    names = [pool.name for pool in file.pools]
    strange = [name for name in names if name not in pools]
    if strange:
        raise WrongUse(
            f"the pools file has `{strange[0]}`, which the policy does not have (it has {', '.join(pools)})"
        )
    both = [name for name in names if name in places]
    if both:
        raise WrongUse(f"pool `{both[0]}` is both in the pools file and in `--backend`; name it once")


def _references(file: PoolsFile | None) -> dict[str, Decimal]:
    if file is None:
        return {}
    return {
        pool.name: pool.reference_cost_per_million_tokens
        for pool in file.pools
        if pool.reference_cost_per_million_tokens is not None
    }


def _document(task: Task, session: Session, client: ClientSide | None) -> Document:
    spec, ledger = session.policy.spec, session.ledger
    contender = ledger.contender()
    return Document(
        seed=task.seed,
        sla=spec.sla.dump(),
        policy=session.policy.metadata.name,
        fallback_pool=contender.pools[-1].name,
        started_at=moment(session.started_at),
        seconds=round(session.elapsed, 1),
        warmup_seconds=ledger.warmup_seconds,
        step_seconds=ledger.step_seconds or STEP_SECONDS,
        interval_seconds=float(spec.behavior.interval_seconds),
        simulated=task.pools_path is not None,
        note=task.note,
        pools=[_facts(session, pool.name) for pool in contender.pools],
        contenders=[contender],
        decisions=ledger.decisions,
        events=ledger.events,
        series=ledger.ticks,
        client=client,
    )


def _facts(session: Session, name: str) -> PoolFacts:
    pool = session.policy.spec.pool(name)
    return PoolFacts(
        name=name,
        accelerator=pool.accelerator.type if pool.accelerator is not None else None,
        price_per_replica_hour=session.ledger.price(name),
        reference_cost_per_million_tokens=session.ledger.reference(name),
        replicas=session.backends.ready.get(name),
    )


def _writable(output: Output) -> None:
    """Complain about a file that cannot be written before the run, not after it."""
    for path in (output.report, output.json):
        if path is not None and (not path.absolute().parent.is_dir() or path.is_dir()):
            why = "it is a folder" if path.is_dir() else "its folder does not exist"
            raise WrongUse(f"{path} cannot be written: {why}")


def _write(document: Document, output: Output, console: Console) -> None:
    run = document.to_json()
    try:
        if output.json is not None:
            output.json.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        if output.report is not None:
            output.report.write_text(build(run), encoding="utf-8")
    except OSError as error:
        raise Complaint(
            f"{error.filename} cannot be written: {(error.strerror or str(error)).lower()}"
        ) from error
    for path in (output.report, output.json):
        if path is not None:
            console.print(f"written: {path}", soft_wrap=True)
