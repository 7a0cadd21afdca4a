"""A closed loop in simulated time: open-loop traffic, pools that slow down under load, scrapes, and the real
decision.

Deterministic by seed. Requests are real events in the simulator's batching engine; counters are scraped every
`scrape` seconds and the decision sees what Prometheus would show it: increases between scrapes, some time
late.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from meritorder_api.policy import InferencePolicySpec
from meritorder_core.decide import decide
from meritorder_core.inputs import (
    Counts,
    Inputs,
    Missing,
    PerMillionTokens,
    PoolInputs,
    Price,
    ReplicaHour,
    Sample,
)
from meritorder_core.learned import Learned
from meritorder_core.outcome import Decision, Plan
from meritorder_sim.engine import Engine, Job
from meritorder_sim.profiles import LinearProfile

START = 1_000_000.0
"""Simulated Unix time of the first arrival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSetup:
    """What stands behind a pool."""

    profile: LinearProfile
    replicas: int = 1
    max_batch: int = 256


@dataclass(slots=True, kw_only=True)
class Request:
    """One request's fate; times in seconds since the start."""

    arrived: float
    pool: str
    finished: float = math.inf
    slow: bool = False
    shed: bool = False


@dataclass(slots=True)
class _Counters:
    total: int = 0
    slow: int = 0
    seconds: float = 0.0
    tokens: int = 0
    prompt: int = 0

    def copy(self) -> "_Counters":
        return _Counters(self.total, self.slow, self.seconds, self.tokens, self.prompt)


@dataclass(slots=True)
class _Pool:
    setup: PoolSetup
    engines: list[Engine]
    in_flight: int = 0
    per_engine: list[int] = field(default_factory=list)
    counters: _Counters = field(default_factory=_Counters)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """(finished at, judged milliseconds)"""
    scrapes: list[tuple[float, _Counters, int]] = field(default_factory=list)
    slowdown: float = 1.0
    errors: float = 0.0
    missing: Missing | None = None
    sampled_at: float | None = None


Sizes = Callable[[random.Random], tuple[int, int]]


class Loop:
    """Run a policy against pools; change the world with `at`."""

    def __init__(
        self,
        spec: InferencePolicySpec,
        pools: Mapping[str, PoolSetup],
        *,
        rate: Callable[[float], float],
        sizes: Sizes = lambda _: (1000, 200),
        seed: int = 1,
        scrape: float = 2.0,
        interval: float = 2.0,
        lag: float = 0.4,
        prices: Mapping[str, Price] | None = None,
        fixed: Mapping[str, int] | None = None,
        usage: Callable[[float], float] = lambda _: 1.0,
    ) -> None:
        """`usage` is the share of the answers that tell their tokens, over time."""
        self.spec = spec
        self.rate = rate
        self.sizes = sizes
        self.random = random.Random(seed)
        self.scrape, self.interval, self.lag = scrape, interval, lag
        self.fixed = fixed
        self.usage = usage
        self._telling = random.Random(seed)
        self.pools = {name: _Pool(setup, []) for name, setup in pools.items()}
        for name in self.pools:
            self.scale(name, pools[name].replicas)
        self.prices: dict[str, Price] = dict(prices or {})
        for pool in spec.pools:
            if pool.name in self.prices:
                continue
            if pool.cost.per_million_tokens is not None:
                tokens = pool.cost.per_million_tokens
                self.prices[pool.name] = PerMillionTokens(
                    input=float(tokens.input), output=float(tokens.output)
                )
            else:
                self.prices[pool.name] = ReplicaHour(dollars=float(pool.cost.per_replica_hour or 0))
        self.now = 0.0
        self.learned = Learned.initial()
        self.plan: Plan | None = None
        self.generation = 1
        self.decisions: list[Decision] = []
        self.requests: list[Request] = []
        self._jobs: dict[int, tuple[Request, str, int, int]] = {}
        self._events: list[tuple[float, int, str, Callable[[], None]]] = []
        self._number = 0
        self._wakes: dict[tuple[str, int], float] = {}
        self._decide()
        self._every(scrape, scrape * 0.5, self._scrape)
        self._every(interval, interval * 0.5 + lag, self._decide)
        self._schedule_arrival()

    # --- the world ---

    def at(self, time: float, change: Callable[[], None]) -> None:
        """Change the world at a time."""
        self._push(time, change)

    def slow_down(self, name: str, factor: float) -> None:
        pool = self.pools[name]
        pool.slowdown = factor
        for i, engine in enumerate(pool.engines):
            engine.set_slowdown(self.now, factor)
            self._rearm(name, i)

    def scale(self, name: str, replicas: int) -> None:
        pool = self.pools[name]
        while len(pool.engines) < replicas:
            now = getattr(self, "now", 0.0)
            pool.engines.append(
                Engine(pool.setup.profile, max_batch=pool.setup.max_batch, now=now, slowdown=pool.slowdown)
            )
            pool.per_engine.append(0)

    def run(self, until: float) -> None:
        """Run to a time, in seconds since the start."""
        while self._events and self._events[0][0] <= until:
            time, _, _, act = heappop(self._events)
            self.now = time
            act()
        self.now = until

    # --- events ---

    def _push(self, time: float, act: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._events, (time, self._number, "", act))

    def _every(self, period: float, offset: float, act: Callable[[], None]) -> None:
        def again(k: int = 0) -> None:
            act()
            self._push(offset + (k + 1) * period, lambda: again(k + 1))

        self._push(offset, again)

    def _schedule_arrival(self) -> None:
        """Poisson arrivals of a rate that may change every quarter of a second (gaps have no memory)."""
        rate = self.rate(self.now)
        gap = self.random.expovariate(rate) if rate > 0 else math.inf
        if gap <= 0.25:
            self._push(self.now + gap, self._arrive)
        else:
            self._push(self.now + 0.25, self._schedule_arrival)

    def _arrive(self) -> None:
        prompt, output = self.sizes(self.random)
        self._route(prompt, output)
        self._schedule_arrival()

    def _cap(self, name: str, size: int) -> float:
        if self.fixed is not None:
            return self.fixed.get(name, math.inf)
        assert self.plan is not None
        planned = next(pool for pool in self.plan.pools if pool.name == name)
        ready = len(self.pools[name].engines)
        limit = planned.limit_per_replica
        for most, class_limit in planned.class_limits:
            if size <= most:
                limit = class_limit
                break
        return math.inf if limit is None else math.floor(limit * ready + 1e-9)

    def _route(self, prompt: int, output: int) -> None:
        order = [pool.name for pool in self.plan.pools] if self.plan is not None else list(self.pools)
        size = size_class(output)
        chosen = None
        for name in order:
            if self.pools[name].engines and self.pools[name].in_flight < self._cap(name, size):
                chosen = name
                break
        if chosen is None:
            if self.plan is not None and self.plan.shed:
                self.requests.append(
                    Request(arrived=self.now, pool="", slow=True, shed=True, finished=self.now)
                )
                return
            chosen = order[-1]
        pool = self.pools[chosen]
        request = Request(arrived=self.now, pool=chosen)
        self.requests.append(request)
        if pool.errors and self.random.random() < pool.errors:
            request.finished, request.slow = self.now, True
            pool.counters.total += 1
            pool.counters.slow += 1
            return
        i = min(range(len(pool.engines)), key=lambda k: pool.per_engine[k])
        pool.in_flight += 1
        pool.per_engine[i] += 1
        job = pool.engines[i].submit(self.now, prompt_tokens=prompt, output_tokens=output)
        self._jobs[id(job)] = (request, chosen, i, size)
        self._rearm(chosen, i)

    def _rearm(self, name: str, i: int) -> None:
        at = self.pools[name].engines[i].next_change_at()
        if at is None:
            return
        self._wakes[name, i] = at
        self._push(at, lambda: self._wake(name, i, at))

    def _wake(self, name: str, i: int, at: float) -> None:
        if self._wakes.get((name, i)) != at:
            return
        for job in self.pools[name].engines[i].advance(self.now).finished:
            self._finish(name, i, job)
        self._rearm(name, i)

    def _finish(self, name: str, i: int, job: Job) -> None:
        request, _, _, _ = self._jobs.pop(id(job))
        pool = self.pools[name]
        pool.in_flight -= 1
        pool.per_engine[i] -= 1
        assert job.first_token_at is not None
        assert job.finished_at is not None
        whole = job.finished_at - job.arrived_at
        first = job.first_token_at - job.arrived_at
        metric = self.spec.sla.metric.value
        if metric == "TimeToFirstToken":
            judged = first
        elif metric == "TimePerOutputToken":
            judged = (whole - first) / max(job.output_tokens - 1, 1)
        else:
            judged = whole
        request.finished = self.now
        request.slow = judged * 1000 > self.spec.sla.target_milliseconds
        pool.counters.total += 1
        pool.counters.slow += request.slow
        pool.counters.seconds += whole
        share = self.usage(self.now)
        if share >= 1 or self._telling.random() < share:
            pool.counters.tokens += job.output_tokens
        pool.counters.prompt += job.prompt_tokens
        pool.latencies.append((self.now, judged * 1000))

    # --- what the decision sees ---

    def _scrape(self) -> None:
        for pool in self.pools.values():
            pool.scrapes.append((self.now, pool.counters.copy(), pool.in_flight))

    def _decide(self) -> None:
        decision = decide(
            self.spec, self.learned, self._inputs(), current=self.plan, generation=self.generation
        )
        self.learned = decision.learned
        if decision.enforced or self.plan is None:
            self.plan = decision.plan
        self.decisions.append(decision)

    def _inputs(self) -> Inputs:
        window = float(self.spec.sla.window_seconds)
        seen = {name: self._pool_inputs(name, window) for name in self.pools}
        samples = [pool.observation.window for pool in seen.values() if isinstance(pool.observation, Sample)]
        client = Counts(
            seconds=window,
            total=sum(each.total for each in samples),
            slow=sum(each.slow for each in samples),
            latency_sum_seconds=sum(each.latency_sum_seconds for each in samples),
        )
        return Inputs(
            now=START + self.now,
            pools=seen,
            client=client,
            client_attained_milliseconds=None,
            effective_interval_seconds=max(self.scrape, self.interval),
        )

    def _pool_inputs(self, name: str, window: float) -> PoolInputs:
        pool = self.pools[name]
        ready = len(pool.engines)
        price = self.prices[name]
        empty = Counts(seconds=self.scrape, total=0, slow=0, latency_sum_seconds=0)
        if pool.missing is not None:
            return PoolInputs(observation=pool.missing, price=price, ready_replicas=ready)
        if len(pool.scrapes) < 2:
            idle = Sample(at=START + self.now, window=empty, recent=empty)
            return PoolInputs(observation=idle, price=price, ready_replicas=ready)
        newest, _, gauge = pool.scrapes[-1]
        reach = window
        while True:
            start = max(bisect_right(pool.scrapes, newest - reach - 1e-6, key=lambda s: s[0]) - 1, 0)
            whole = _increase(pool.scrapes[start], pool.scrapes[-1])
            if whole.total >= self.spec.sla.minimum_samples or reach >= 10 * window or start == 0:
                break
            reach += window
        last = pool.sampled_at if pool.sampled_at is not None else pool.scrapes[-2][0]
        if last >= newest:
            last = pool.scrapes[-2][0]
        before = max(bisect_right(pool.scrapes, last + 1e-6, key=lambda s: s[0]) - 1, 0)
        pool.sampled_at = newest
        first = bisect_right(pool.latencies, newest - window, key=lambda pair: pair[0])
        latencies = sorted(value for at, value in pool.latencies[first:] if at <= newest)
        attained = None
        if latencies:
            attained = latencies[
                min(math.ceil(len(latencies) * self.spec.sla.percentile / 100), len(latencies)) - 1
            ]
        sample = Sample(
            at=START + newest,
            window=whole,
            recent=_increase(pool.scrapes[before], pool.scrapes[-1]),
            in_flight=float(gauge),
            attained_milliseconds=attained,
        )
        return PoolInputs(observation=sample, price=price, ready_replicas=ready)

    # --- what came of it ---

    def share(self, name: str, start: float, end: float) -> float:
        """Share of the requests that arrived in [start, end) and went to the pool."""
        arrived = [request for request in self.requests if start <= request.arrived < end]
        return sum(request.pool == name for request in arrived) / max(len(arrived), 1)

    def carried(self, name: str, start: float, end: float) -> float:
        """Requests per second that the pool finished in [start, end)."""
        return sum(r.pool == name and start <= r.finished < end for r in self.requests) / (end - start)

    def slow_windows(self, start: float, end: float, *, pool: str | None = None) -> list[float]:
        """Slow share per tumbling window, by completion; windows of fewer than 20 are left out."""
        length = float(self.spec.sla.window_seconds)
        rows: dict[int, list[int]] = {}
        for request in self.requests:
            if start <= request.finished < end and (pool is None or request.pool == pool):
                row = rows.setdefault(int((request.finished - start) / length), [0, 0])
                row[0] += 1
                row[1] += request.slow
        return [rows[k][1] / rows[k][0] for k in sorted(rows) if rows[k][0] >= 20]

    def limits(self, name: str) -> list[tuple[float, float]]:
        """(seconds since the start, limit per replica) at each decision."""
        return [
            (d.at - START, pool.limit_per_replica)
            for d in self.decisions
            for pool in d.plan.pools
            if pool.name == name and pool.limit_per_replica is not None
        ]

    def changes(self, start: float = 0.0) -> list[str]:
        """The decisions that changed something, as lines for people."""
        return [
            f"{d.at - START:7.1f} {d.action.value}/{d.reason.value}: {d.message}"
            for d in self.decisions
            if d.action.value != "Hold" and d.at - START >= start
        ]


def reversals(limits: list[tuple[float, float]], window: float) -> int:
    """Turns by more than max(10 %, 1) and then as much the other way within 10 windows, as design 7 counts
    them."""
    turns: list[tuple[float, float]] = []
    for time, limit in limits:
        if not turns:
            turns.append((time, limit))
            continue
        if limit == turns[-1][1]:
            continue
        if len(turns) >= 2 and (turns[-1][1] - turns[-2][1]) * (limit - turns[-1][1]) > 0:
            turns[-1] = (time, limit)
        else:
            turns.append((time, limit))
    count = 0
    for (_, a), (t1, b), (t2, c) in zip(turns, turns[1:], turns[2:], strict=False):
        threshold = max(0.1 * b, 1.0)
        if abs(b - a) > threshold and abs(c - b) > threshold and t2 - t1 <= 10 * window:
            count += 1
    return count


def size_class(tokens: int) -> int:
    """The power of two that holds so many tokens."""
    return 1 << max(tokens - 1, 1).bit_length()


def _increase(first: tuple[float, _Counters, int], last: tuple[float, _Counters, int]) -> Counts:
    a, b = first[1], last[1]
    return Counts(
        seconds=max(last[0] - first[0], 1e-3),
        total=b.total - a.total,
        slow=b.slow - a.slow,
        latency_sum_seconds=b.seconds - a.seconds,
        prompt_tokens=b.prompt - a.prompt,
        completion_tokens=b.tokens - a.tokens,
    )
