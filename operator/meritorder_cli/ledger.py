"""The book of a run: what was served, where, how fast and for how much, from readings and decisions as they
come.

Memory is bounded however long the run lasts: totals are sums, the series is thinned by half when it grows
too long, and of the decisions the newest are kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Action, Reason
from meritorder_api.wire import money
from meritorder_cli import flapping
from meritorder_cli.document import (
    Contender,
    DecisionRecord,
    Event,
    PoolFigures,
    PoolTick,
    Requests,
    Tick,
    Warmup,
    Windows,
)
from meritorder_cli.measure import HISTOGRAMS, Ring
from meritorder_cli.readings import Reading
from meritorder_core.outcome import Decision, PoolReport, SavingsReport
from meritorder_core.shares import whole_percents
from meritorder_operator.prometheus.histogram import percentile

MOST_TICKS = 2400
MOST_DECISIONS = 1000
_MOST_LIMITS = 4096
_RATE_SECONDS = 3.0
_LEAST_IN_WINDOW = 20


@dataclass(slots=True, kw_only=True)
class _PoolSums:
    replica_seconds: float = 0.0
    needed_seconds: float = 0.0
    bill: float = 0.0
    bill_needed: float = 0.0
    limits: list[tuple[float, float]] = field(default_factory=list)


class Ledger:
    """Fed with each reading and the decision in force; says what the view, the report and the JSON show.

    Times are Unix seconds outside and seconds since the start inside.
    """

    def __init__(
        self, spec: InferencePolicySpec, *, started_at: float, references: Mapping[str, Decimal] | None = None
    ) -> None:
        self._spec = spec
        self._started = started_at
        self._references = dict(references or {})
        self._sums = {pool.name: _PoolSums() for pool in spec.pools}
        self._first: Reading | None = None
        self._warm: Reading | None = None
        self._edge: Reading | None = None
        self._last: Reading | None = None
        self._window = 0
        self._windows = [0, 0]
        self._bills_known = True
        self._decision: Decision | None = None
        self._stride = 1
        self._skipped = 0
        self.step_seconds = 0.0
        self.ticks: list[Tick] = []
        self.decisions: list[DecisionRecord] = []
        self.events: list[Event] = []
        self._metrics_gone = ""

    @property
    def warmup_seconds(self) -> float:
        """The first window is left out of every figure."""
        return float(self._spec.sla.window_seconds)

    def decided(self, decision: Decision) -> None:
        """Take note of a decision: kept when it changed something, or holds for a new reason."""
        before, self._decision = self._decision, decision
        if before is not None:
            self._note_metrics(decision)
        at = max(decision.at - self._started, 0.0)
        for report in decision.pools:
            if report.limit_per_replica is None or report.name not in self._sums:
                continue
            course = self._sums[report.name].limits
            if not course or course[-1][1] != report.limit_per_replica:
                course.append((at, report.limit_per_replica))
                del course[:-_MOST_LIMITS]
        if (
            before is not None
            and (before.action, before.reason) == (decision.action, decision.reason)
            and (decision.action is Action.HOLD or before.message == decision.message)
        ):
            return
        self.decisions.append(
            DecisionRecord(
                at=round(at, 1),
                action=decision.action.value,
                reason=decision.reason.value,
                message=decision.message,
                limits={pool.name: pool.limit_per_replica for pool in decision.plan.pools},
            )
        )
        del self.decisions[:-MOST_DECISIONS]

    def _note_metrics(self, decision: Decision) -> None:
        """Say once that metrics are missing, and once that they came back: the decision's own sentence may be
        about the other pools. On the very first pass nothing was read yet.
        """
        report = decision.metrics_available
        gone = report.reason if report.status is False else ""
        if gone == self._metrics_gone:
            return
        self._metrics_gone = gone
        if not gone:
            self.happened(decision.at, "the metrics of all pools are there again")
        elif decision.reason not in (Reason.METRICS_MISSING, Reason.SAFEST):
            self.happened(decision.at, report.message)

    def happened(self, at: float, message: str, pool: str | None = None) -> None:
        """Take note of something that happened to the run."""
        self.events.append(Event(at=round(max(at - self._started, 0.0), 1), message=message, pool=pool))
        del self.events[:-MOST_DECISIONS]

    def read(self, ring: Ring, ready: Mapping[str, int]) -> Tick | None:
        """Take the ring's newest reading; returns the moment, None on the first."""
        reading = ring.newest
        if reading is None:
            return None
        at = reading.at - self._started
        if self._first is None or self._last is None:
            self._first = self._last = self._edge = reading
            return None
        elapsed = reading.at - self._last.at
        if self._warm is not None:
            self._pay(elapsed, ready)
        self._close_windows(reading, at)
        tick = self._tick(ring, reading, at, ready)
        self._last = reading
        self._keep(tick, elapsed)
        return tick

    def contender(self, name: str = "meritorder") -> Contender:
        """The figures of the run so far, the warm-up left out."""
        first = self._first or Reading(at=self._started, counters={})
        last = self._last or first
        warm = self._warm or last
        hours = (last.at - warm.at) / 3600
        courses = self._courses(since=warm.at - self._started)
        horizon = 10.0 * self._spec.sla.window_seconds
        cost, cost_on_fallback = self._reference(warm, last)
        sums = self._sums.values()
        return Contender(
            name=name,
            windows=Windows(total=self._windows[0], met=self._windows[1]),
            requests=Requests(
                total=round(_grown(last, warm, "client")),
                slow=round(_grown(last, warm, "client_slow")),
                failed=round(last.failed() - warm.failed()),
            ),
            warmup=Warmup(
                requests=round(_grown(warm, first, "client")), slow=round(_grown(warm, first, "client_slow"))
            ),
            attained_seconds=self._attained(last, warm),
            reversals_per_hour=_per_hour(sum(flapping.reversals(one, horizon) for one in courses), hours),
            limit_changes_per_hour=_per_hour(sum(flapping.changes(one) for one in courses), hours),
            reference_cost=cost,
            reference_cost_on_fallback=cost_on_fallback,
            bill=money(sum(one.bill for one in sums)) if self._bills_known else None,
            bill_needed=money(sum(one.bill_needed for one in sums)) if self._bills_known else None,
            pools=[self._figures(pool, warm, last) for pool in self._order()],
        )

    def _figures(self, pool: str, warm: Reading, last: Reading) -> PoolFigures:
        sums = self._sums[pool]
        tokens = last.knows("completion_tokens", pool)
        return PoolFigures(
            name=pool,
            requests=round(last.answered(pool) - warm.answered(pool)),
            prompt_tokens=round(_grown(last, warm, "prompt_tokens", pool)) if tokens else None,
            completion_tokens=round(_grown(last, warm, "completion_tokens", pool)) if tokens else None,
            attained_seconds=self._attained(last, warm, pool),
            replica_hours=round(sums.replica_seconds / 3600, 6),
            final_limit_per_replica=sums.limits[-1][1] if sums.limits else None,
        )

    def _courses(self, *, since: float) -> list[list[tuple[float, float]]]:
        """The limits that are enforced, over time."""
        return [
            [point for point in sums.limits if point[0] >= since]
            for pool, sums in self._sums.items()
            if pool != self._fallback()
        ]

    def _order(self) -> list[str]:
        if self._decision is None:
            return [pool.name for pool in self._spec.pools]
        return [pool.name for pool in self._decision.plan.pools]

    def _fallback(self) -> str:
        return self._decision.fallback_pool if self._decision is not None else self._spec.pools[-1].name

    def _reports(self) -> dict[str, PoolReport]:
        return {} if self._decision is None else {report.name: report for report in self._decision.pools}

    def reference(self, pool: str) -> float | None:
        """US dollars per million completion tokens, where the run was given one."""
        return float(self._references[pool]) if pool in self._references else None

    def price(self, pool: str) -> float | None:
        """US dollars per replica and hour, as the last decision knew it."""
        report = self._reports().get(pool)
        if report is not None and report.price_per_replica_hour is not None:
            return report.price_per_replica_hour
        declared = self._spec.pool(pool).cost.per_replica_hour
        return None if declared is None else float(declared)

    def _pay(self, elapsed: float, ready: Mapping[str, int]) -> None:
        reports = self._reports()
        for pool in self._spec.pools:
            sums, report = self._sums[pool.name], reports.get(pool.name)
            replicas = ready.get(pool.name, 0)
            wanted = _needed(report)
            needed = replicas if wanted is None else wanted
            sums.replica_seconds += replicas * elapsed
            sums.needed_seconds += needed * elapsed
            price = self.price(pool.name)
            if price is None:
                metered = report.cost_per_hour if report is not None else None
                self._bills_known = self._bills_known and metered is not None
                sums.bill += (metered or 0.0) * elapsed / 3600
                sums.bill_needed += (metered or 0.0) * elapsed / 3600
                continue
            sums.bill += replicas * price * elapsed / 3600
            sums.bill_needed += needed * price * elapsed / 3600

    def _close_windows(self, reading: Reading, at: float) -> None:
        length = self._spec.sla.window_seconds
        passed = math.floor((at + 0.05) / length)
        if passed <= self._window or self._edge is None:
            return
        total = _grown(reading, self._edge, "client")
        slow = _grown(reading, self._edge, "client_slow")
        if self._window == 0:
            self._warm = reading
        elif passed == self._window + 1 and total >= _LEAST_IN_WINDOW:
            self._windows[0] += 1
            self._windows[1] += slow <= total * (1 - self._spec.sla.percentile / 100) + 1e-9
        self._window, self._edge = passed, reading

    def _tick(self, ring: Ring, reading: Reading, at: float, ready: Mapping[str, int]) -> Tick:
        older = ring.before(_RATE_SECONDS) or reading
        seconds = max(reading.at - older.at, 1e-9)
        names = self._order()
        answered = {name: reading.answered(name) - older.answered(name) for name in names}
        total = sum(answered.values())
        reports = self._reports()
        plan = {} if self._decision is None else {pool.name: pool for pool in self._decision.plan.pools}
        shares = [answered[name] / total if total else None for name in names]
        pools = []
        for name, share, percent in zip(names, shares, whole_percents(shares), strict=True):
            report = reports.get(name)
            planned = plan.get(name)
            count = ready.get(name)
            enforced = planned.limit_per_replica if planned is not None else None
            price = self.price(name)
            bill = price * count if price is not None and count is not None else None
            if price is None and report is not None:
                bill = report.cost_per_hour  # of a metered pool: its tokens at the provider's price
            rate = answered[name] / seconds
            pools.append(
                PoolTick(
                    name=name,
                    state=report.verdict.value if report is not None else "Unknown",
                    requests_per_second=round(rate, 2),
                    share=_rounded(share, 4),
                    share_percent=percent,
                    attained_milliseconds=_rounded(ring.attained(name), 0),
                    slow_share=_rounded(report.slow_share if report is not None else None, 4),
                    in_flight=reading.in_flight.get(name, 0.0),
                    limit=math.floor(enforced * count + 1e-9)
                    if enforced is not None and count is not None
                    else None,
                    limit_per_replica=report.limit_per_replica if report is not None else None,
                    ready=count,
                    needed=_needed(report),
                    cost_per_hour=_rounded(bill, 4),
                    cost_per_thousand=_rounded(bill / rate / 3.6, 4) if bill is not None and rate else None,
                )
            )
        client_total = _grown(reading, older, "client")
        window = ring.before(self._spec.sla.window_seconds) or reading
        in_window = _grown(reading, window, "client")
        reference, on_fallback = self._reference_rates(older, reading, seconds)
        savings = self._decision.savings if self._decision is not None else None
        met = self._decision.sla_met if self._decision is not None else None
        return Tick(
            at=round(at, 2),
            pools=pools,
            requests_per_second=round(client_total / seconds, 2),
            attained_milliseconds=_rounded(ring.attained(), 0),
            slow_share=round(_grown(reading, window, "client_slow") / in_window, 4) if in_window else None,
            sla_met=met.status if met is not None else None,
            sla_reason=str(met.reason) if met is not None else "",
            cost_per_hour=_total([pool.cost_per_hour for pool in pools]),
            needed_per_hour=self._needed_bill(reports),
            needed_is_bound=any(report.needed_at_least for report in reports.values()),
            baseline_is_bound=self._fallback() in reports and not reports[self._fallback()].limit_measured,
            baseline_per_hour=savings.baseline_per_hour if isinstance(savings, SavingsReport) else None,
            reference_per_hour=reference,
            reference_on_fallback_per_hour=on_fallback,
        )

    def _needed_bill(self, reports: Mapping[str, PoolReport]) -> float | None:
        bills: list[float | None] = []
        for pool in self._spec.pools:
            report, price = reports.get(pool.name), self.price(pool.name)
            needed = _needed(report)
            if price is None:
                bills.append(report.cost_per_hour if report is not None else None)
            else:
                bills.append(None if needed is None else needed * price)
        return _total(bills)

    def _keep(self, tick: Tick, elapsed: float) -> None:
        """Append to the series; at its full length every second entry goes, as of what is to come."""
        self.step_seconds = self.step_seconds or round(elapsed, 2)
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self.ticks.append(tick)
        if len(self.ticks) >= MOST_TICKS:
            self.ticks = self.ticks[::2]
            self._stride *= 2
            self.step_seconds *= 2

    def _attained(self, newer: Reading, older: Reading, pool: str | None = None) -> float | None:
        histogram = HISTOGRAMS.get(self._spec.sla.metric)
        if histogram is None:
            return None
        value = percentile(newer.buckets(older, histogram, pool), self._spec.sla.percentile / 100)
        return None if value is None else round(value / 1000, 3)

    def _reference(self, older: Reading, newer: Reading) -> tuple[str | None, str | None]:
        """The tokens' cost, and the same on the fallback pool; a failed request is a mean one there."""
        own, other = self._token_costs(older, newer)
        if own is None or other is None:
            return None, None
        return money(own), money(other)

    def _reference_rates(
        self, older: Reading, newer: Reading, seconds: float
    ) -> tuple[float | None, float | None]:
        own, other = self._token_costs(older, newer)
        if own is None or other is None:
            return None, None
        return round(own / seconds * 3600, 4), round(other / seconds * 3600, 4)

    def _token_costs(self, older: Reading, newer: Reading) -> tuple[float | None, float | None]:
        fallback = self._fallback()
        if any(pool.name not in self._references for pool in self._spec.pools):
            return None, None
        tokens = {
            pool.name: _grown(newer, older, "completion_tokens", pool.name) for pool in self._spec.pools
        }
        answered = sum(newer.answered(pool) - older.answered(pool) for pool in tokens)
        failed = newer.failed() - older.failed()
        mean = sum(tokens.values()) / answered if answered else 0.0
        lost = failed * mean * float(self._references[fallback])
        own = sum(count * float(self._references[pool]) for pool, count in tokens.items()) + lost
        other = sum(tokens.values()) * float(self._references[fallback]) + lost
        return own / 1e6, other / 1e6


def _needed(report: PoolReport | None) -> int | None:
    """Replicas that a pool needs; one never driven to its limit has carried its peak with what is ready."""
    if report is None or report.needed_replicas is None:
        return None
    if report.needed_at_least and report.ready_replicas is not None:
        return min(report.needed_replicas, report.ready_replicas)
    return report.needed_replicas


def _grown(newer: Reading, older: Reading, what: str, pool: str = "") -> float:
    return newer.count(what, pool) - older.count(what, pool)


def _per_hour(count: int, hours: float) -> float:
    return round(count / hours, 2) if hours > 0 else 0.0


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 4) if len(known) == len(values) else None
