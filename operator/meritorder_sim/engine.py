"""Continuous batching of one replica, without a clock: `now` comes in, in seconds, and never goes back.

At most `max_batch` jobs run, the rest waits first come, first served. A running job is in prefill first,
for a time fixed at its admission, then every decoding job gets its tokens at the same speed, which depends
on the number of running jobs and their mean input length. So one virtual clock counts prefill milliseconds
and another counts tokens: a job ends when its clock reaches a target that is known at its start, and only
changes of the batch cost work (O(log n) each), never single tokens. The same engine serves the live server
(woken by a timer) and a discrete-event simulation (which asks `next_change_at`).
"""

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from meritorder_sim.profiles import LatencyProfile


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request inside a replica; times in the caller's seconds, None until they happen."""

    number: int
    prompt_tokens: int
    output_tokens: int
    arrived_at: float
    admitted_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    cancelled_at: float | None = None
    decode_origin: float = 0.0
    frozen_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Progress:
    """What happened since the last `advance`, in order of time."""

    started: list[Job] = field(default_factory=list)
    finished: list[Job] = field(default_factory=list)


class Engine:
    """One replica: `submit` and `cancel` jobs, `advance` to a time, read tokens at any moment."""

    def __init__(self, profile: LatencyProfile, *, max_batch: int, now: float, slowdown: float = 1.0) -> None:
        self.profile = profile
        self.max_batch = max_batch
        self._slowdown = slowdown
        self._paused = False
        self._now = now
        self._numbers = 0
        self._waiting: deque[Job] = deque()
        self._waiting_count = 0
        self._prefill: list[tuple[float, int, Job]] = []
        self._decode: list[tuple[float, int, Job]] = []
        self._running: dict[int, Job] = {}
        self._prompt_sum = 0
        self._prefill_clock = 0.0
        self._token_clock = 0.0
        self._token_seconds = 1.0
        self._progress = Progress()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return self._waiting_count

    @property
    def slowdown(self) -> float:
        return self._slowdown

    @property
    def running_jobs(self) -> tuple[Job, ...]:
        return tuple(self._running.values())

    @property
    def token_seconds(self) -> float:
        """Seconds per output token of every decoding job at this moment."""
        return self._token_seconds

    def submit(self, now: float, *, prompt_tokens: int, output_tokens: int) -> Job:
        """Add a job; 0 output tokens means that it ends with its prefill (an embedding)."""
        self._run_to(now)
        self._numbers += 1
        job = Job(
            number=self._numbers,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            arrived_at=self._now,
        )
        self._waiting.append(job)
        self._waiting_count += 1
        self._admit()
        return job

    def cancel(self, now: float, job: Job) -> None:
        """Take a job out; its slot is free at once. Nothing happens if it has ended."""
        self._run_to(now)
        if job.finished_at is not None or job.cancelled_at is not None:
            return
        job.frozen_tokens = self.tokens(job)
        job.cancelled_at = self._now
        if job.admitted_at is None:
            self._waiting_count -= 1
        else:
            self._leave(job)
            self._admit()

    def set_slowdown(self, now: float, factor: float) -> None:
        """Make everything `factor` times slower than the profile from now on, also what runs already."""
        self._run_to(now)
        self._slowdown = factor
        self._retime()

    def pause(self, now: float) -> None:
        """Stop all progress (a hung engine) until `resume`."""
        self._run_to(now)
        self._paused = True

    def resume(self, now: float) -> None:
        self._run_to(now)
        self._paused = False

    def advance(self, now: float) -> Progress:
        """Run to `now` and return which jobs got their first token and which ended since the last call."""
        self._run_to(now)
        progress, self._progress = self._progress, Progress()
        return progress

    def next_change_at(self) -> float | None:
        """When the next prefill or job ends if nothing else happens; None when nothing will."""
        change = self._next_change()
        return None if change is None else change[0]

    def tokens(self, job: Job) -> int:
        """Return how many output tokens `job` has produced at the engine's present time."""
        if job.finished_at is not None:
            return job.output_tokens
        if job.cancelled_at is not None:
            return job.frozen_tokens
        if job.first_token_at is None:
            return 0
        decoded = int(self._token_clock - job.decode_origin + 1e-9)
        return min(1 + decoded, job.output_tokens)

    def _run_to(self, now: float) -> None:
        while (change := self._next_change()) is not None and change[0] <= now:
            self._move(change[0])
            if change[1] is self._prefill:
                self._end_prefill()
            else:
                self._end_decode()
            self._admit()
        self._move(max(now, self._now))

    def _next_change(self) -> tuple[float, list[tuple[float, int, Job]]] | None:
        if self._paused:
            return None
        for heap in (self._prefill, self._decode):
            while heap and heap[0][2].cancelled_at is not None:
                heappop(heap)
        prefill_at = decode_at = float("inf")
        if self._prefill:
            left = max(self._prefill[0][0] - self._prefill_clock, 0.0)
            prefill_at = self._now + left * self._slowdown / 1000.0
        if self._decode:
            decode_at = self._now + max(self._decode[0][0] - self._token_clock, 0.0) * self._token_seconds
        if not self._prefill and not self._decode:
            return None
        return (prefill_at, self._prefill) if prefill_at <= decode_at else (decode_at, self._decode)

    def _move(self, to: float) -> None:
        elapsed = to - self._now
        self._now = to
        if not self._paused:
            self._prefill_clock += elapsed * 1000.0 / self._slowdown
            self._token_clock += elapsed / self._token_seconds

    def _end_prefill(self) -> None:
        target, _, job = heappop(self._prefill)
        self._prefill_clock = max(self._prefill_clock, target)
        job.first_token_at = self._now
        self._progress.started.append(job)
        if job.output_tokens <= 1:
            self._finish(job)
            return
        job.decode_origin = self._token_clock
        heappush(self._decode, (self._token_clock + job.output_tokens - 1, job.number, job))

    def _end_decode(self) -> None:
        target, _, job = heappop(self._decode)
        self._token_clock = max(self._token_clock, target)
        self._finish(job)

    def _finish(self, job: Job) -> None:
        job.finished_at = self._now
        self._leave(job)
        self._progress.finished.append(job)

    def _leave(self, job: Job) -> None:
        del self._running[job.number]
        self._prompt_sum -= job.prompt_tokens
        if not self._running:
            # An idle replica starts its clocks anew, so that their floats never grow coarse.
            self._prefill.clear()
            self._decode.clear()
            self._prefill_clock = self._token_clock = 0.0
        self._retime()

    def _admit(self) -> None:
        while self._waiting_count and len(self._running) < self.max_batch:
            job = self._waiting.popleft()
            if job.cancelled_at is not None:
                continue
            self._waiting_count -= 1
            job.admitted_at = self._now
            self._running[job.number] = job
            self._prompt_sum += job.prompt_tokens
            prefill = self.profile.prefill_ms(len(self._running), job.prompt_tokens)
            heappush(self._prefill, (self._prefill_clock + prefill, job.number, job))
            self._retime()
        if not self._waiting_count:
            self._waiting.clear()

    def _retime(self) -> None:
        running = len(self._running)
        if running:
            tpot = self.profile.tpot_ms(running, self._prompt_sum / running)
            self._token_seconds = tpot * self._slowdown / 1000.0
