"""A standalone run: read Envoy, decide, route, once per step, until it is stopped.

The slow loop of an operator and the hand-over to the router in one process: same core, other edges. A pass
that cannot read Envoy says so and holds. Whoever watches gets every `Tick`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Protocol

from meritorder_api.policy import Mode
from meritorder_api.resource import InferencePolicy
from meritorder_api.table import RoutingTable
from meritorder_cli.backends import Backends, Place
from meritorder_cli.complaint import Complaint
from meritorder_cli.document import Tick
from meritorder_cli.ledger import Ledger
from meritorder_cli.measure import Ring, gather
from meritorder_cli.readings import Meter, Reading
from meritorder_cli.routes import table
from meritorder_core.decide import decide
from meritorder_core.inputs import Inputs
from meritorder_core.learned import Learned
from meritorder_core.outcome import Decision, Plan, PlannedPool
from meritorder_router.agent.applier import Applied
from meritorder_router.agent.scrape import Scrape
from meritorder_router.agent.validate import Refused

STEP_SECONDS = 1.0


class Router(Protocol):
    """The Envoy of this run."""

    async def apply(self, table: RoutingTable) -> Applied | Refused:
        """Serve by this table from now on."""

    async def scrape(self) -> Scrape | None:
        """What Envoy counted; None while it does not answer."""


class Refine(Protocol):
    """Takes the inputs as Envoy tells them, with the readings that they come from, and puts in what another
    source knows better.
    """

    async def __call__(self, inputs: Inputs, ring: Ring) -> Inputs: ...


Watcher = Callable[[Tick, Decision | None], None]


class Session:
    """One policy, its servers and its Envoy."""

    def __init__(
        self,
        policy: InferencePolicy,
        backends: Backends,
        router: Router,
        *,
        references: Mapping[str, Decimal] | None = None,
        learned: Learned | None = None,
        refine: Refine | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy
        self.backends = backends
        self.started_at = clock()
        self.ring = Ring(policy.spec)
        self.ledger = Ledger(policy.spec, started_at=self.started_at, references=references)
        self.decision: Decision | None = None
        self.learned = learned or Learned.initial()
        self._router = router
        self._refine = refine
        self._clock = clock
        self._meter = Meter()
        self._plan: Plan | None = None
        self._applied: RoutingTable | None = None
        self._sequence = 0
        self._decided_on: Reading | None = None
        self._due = self.started_at
        self._unread = False
        self._probing: asyncio.Task[list[tuple[str, Place, bool]]] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self.started_at

    async def run(self, *, seconds: float | None, stop: asyncio.Event, watch: Watcher | None = None) -> None:
        """Step once a second until `stop`, or for so many seconds. `decide` must have been called once."""
        end = None if seconds is None else self.started_at + seconds
        at = self.started_at
        while not stop.is_set():
            tick = await self.step()
            if tick is not None and watch is not None:
                watch(tick, self.decision)
            at = max(at + STEP_SECONDS, self._clock())
            if end is not None and at > end + STEP_SECONDS / 2:
                break
            try:
                async with asyncio.timeout(max(at - self._clock(), 0)):
                    await stop.wait()
            except TimeoutError:
                continue
        if self._probing is not None:
            self._probing.cancel()
        await self._read()
        self.ledger.read(self.ring, self.backends.ready)

    async def step(self) -> Tick | None:
        """Read, decide if it is time, and write the book."""
        await self._read()
        await self._probe()
        if self._clock() >= self._due - STEP_SECONDS / 4:
            await self.decide()
        return self.ledger.read(self.ring, self.backends.ready)

    async def decide(self) -> None:
        """One pass of the decision, and its routing."""
        now = self._clock()
        spec = self.policy.spec
        self._due = now + spec.behavior.interval_seconds
        inputs = gather(spec, self.ring, last=self._decided_on, ready=self.backends.ready, now=now)
        if self._refine is not None:
            inputs = await self._refine(inputs, self.ring)
        self._decided_on = self.ring.newest
        decision = decide(
            spec, self.learned, inputs, current=self._plan, generation=self.policy.metadata.generation
        )
        self.learned = decision.learned
        self.decision = decision
        self.ledger.decided(decision)
        if decision.enforced:
            self._plan = decision.plan
        elif self._plan is None:
            # Recommend and suspend keep the last enforced routing, else the fallback pool serves alone.
            self._plan = Plan(pools=(PlannedPool(name=decision.fallback_pool),))
        await self._route()

    async def _route(self) -> None:
        if self._plan is None:
            return
        wanted = table(self.policy, self._plan, self.backends.pools, sequence=self._sequence + 1)
        if wanted is None or (self._applied is not None and _same(wanted, self._applied)):
            return
        self._sequence += 1
        self._applied = wanted
        result = await self._router.apply(wanted)
        if isinstance(result, Refused):
            raise Complaint(f"Envoy refuses the routing table: {result.reason}")

    async def _read(self) -> None:
        scrape = await self._router.scrape()
        if scrape is None:
            if not self._unread:
                self.ledger.happened(self._clock(), "Envoy does not answer; limits hold")
            self._unread = True
            return
        if self._unread:
            self.ledger.happened(self._clock(), "Envoy answers again")
        self._unread = False
        self.ring.add(self._meter.read(scrape, self._clock()))

    async def _probe(self) -> None:
        """Take in the last look at the servers and begin the next; a hanging server holds up nothing."""
        if self._probing is not None and not self._probing.done():
            return
        changed = self._probing.result() if self._probing is not None else []
        self._probing = asyncio.create_task(self.backends.probe())
        for pool, (host, port), answers in changed:
            word = "answers again" if answers else "does not answer"
            self.ledger.happened(self._clock(), f"{pool}: {host}:{port} {word}", pool)
        if changed:
            await self._route()

    @property
    def recommends(self) -> bool:
        """Whether decisions are shown and not acted on."""
        return self.policy.spec.mode is Mode.RECOMMEND or self.policy.spec.suspend


def _same(one: RoutingTable, other: RoutingTable) -> bool:
    """Whether two tables differ in nothing but their sequence."""
    blank = {"sequence": 0, "routing_revision": "", "table_revision": ""}
    return one.model_copy(update=blank) == other.model_copy(update=blank)
