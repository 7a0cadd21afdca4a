"""Drives one engine in real time: a single timer per replica, whatever the number of requests.

The timer rings when the engine's next prefill or job ends, and every `step_seconds` while someone reads a
stream; then all streams with new tokens are woken in one go. Rings closer than `GRAIN_SECONDS` are merged.
"""

import asyncio
from collections.abc import Callable

from meritorder_sim.engine import Engine, Job
from meritorder_sim.wire import Asked

GRAIN_SECONDS = 0.003
STEP_SECONDS = 0.05


class Ticket:
    """A request in the engine, as its HTTP handler sees it."""

    __slots__ = ("_pump", "_woken", "asked", "job")

    def __init__(self, pump: "Pump", job: Job, asked: Asked) -> None:
        self._pump = pump
        self._woken: asyncio.Future[None] | None = None
        self.job = job
        self.asked = asked

    @property
    def tokens(self) -> int:
        return self._pump.engine.tokens(self.job)

    @property
    def finished(self) -> bool:
        return self.job.finished_at is not None

    async def news(self, seen: int) -> int:
        """Wait for more than `seen` tokens, or the end of the request; return their number."""
        while not self.finished and self.tokens <= seen:
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken
        return self.tokens

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class Pump:
    """Owns the engine of one replica in a running loop; `clock` gives seconds."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], float],
        on_started: Callable[[Ticket], None],
        on_finished: Callable[[Ticket], None],
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._on_started = on_started
        self._on_finished = on_finished
        self._step = step_seconds
        self._tickets: dict[int, Ticket] = {}
        self._streaming: dict[int, Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._rang_at = float("-inf")
        self._stepped_at = float("-inf")

    def submit(self, asked: Asked) -> Ticket:
        """Hand a request to the engine."""
        job = self.engine.submit(
            self._clock(), prompt_tokens=asked.prompt_tokens, output_tokens=asked.output_tokens
        )
        ticket = Ticket(self, job, asked)
        self._tickets[job.number] = ticket
        self._settle()
        return ticket

    def cancel(self, ticket: Ticket) -> bool:
        """Take a request out; returns whether it was still there."""
        self.engine.cancel(self._clock(), ticket.job)
        self._streaming.pop(ticket.job.number, None)
        self._settle()
        return self._tickets.pop(ticket.job.number, None) is not None

    def set_slowdown(self, factor: float) -> None:
        self.engine.set_slowdown(self._clock(), factor)
        self._settle()

    def set_paused(self, paused: bool) -> None:
        (self.engine.pause if paused else self.engine.resume)(self._clock())
        self._settle()

    def refresh(self) -> float:
        """Bring the engine to the present and return that time."""
        self._settle()
        return self._clock()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._settle()

    def _settle(self) -> None:
        """Advance the engine, report milestones, wake who has news, and set the timer again."""
        now = self._rang_at = self._clock()
        progress = self.engine.advance(now)
        for job in progress.started:
            ticket = self._tickets[job.number]
            self._on_started(ticket)
            if ticket.asked.stream:
                self._streaming[job.number] = ticket
                ticket.wake()
        for job in progress.finished:
            ticket = self._tickets.pop(job.number)
            self._streaming.pop(job.number, None)
            self._on_finished(ticket)
            ticket.wake()
        if self._streaming and now >= self._stepped_at + self._step:
            self._stepped_at = now
            for ticket in self._streaming.values():
                ticket.wake()
        self._arm()

    def _arm(self) -> None:
        at = self.engine.next_change_at()
        if at is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if self._streaming:
            at = min(at, self._stepped_at + self._step)
        at = max(at, self._rang_at + GRAIN_SECONDS)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(max(at - self._clock(), 0.0), self._ring)
