"""What is known of a pool, and of the promise as a whole: verdicts with error bars.

"The p95 is at most T" and "at most 5 % are slower than T" are the same statement, and the second is a count
with an error bar. Unknown is never read as 0, and idle is not missing: no requests is a fact, no series is
not.
"""

from dataclasses import dataclass

from meritorder_api import reasons
from meritorder_api.reasons import Reason, Verdict
from meritorder_core.inputs import Counts, Missing, Observation
from meritorder_core.outcome import ConditionReport
from meritorder_core.sentences import bound, percent
from meritorder_core.stats import Interval, wilson

NOT_ABSENT = frozenset(
    {reasons.Missing.TOO_FEW_SAMPLES, reasons.Missing.NOT_MEASURED, reasons.Missing.NO_PRICE}
)
"""Missing for lack of events, not of metrics: no posture fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict, its word and its error bar."""

    verdict: Verdict
    reason: str
    interval: Interval | None = None


def absent(observation: Observation) -> bool:
    """Whether a pool's metrics are missing, in the sense that postures speak of."""
    return isinstance(observation, Missing) and observation.reason not in NOT_ABSENT


def judge(observation: Observation, *, allowed: float, minimum_samples: int, promised_at: float) -> Judgement:
    """Judge a pool over its window."""
    if isinstance(observation, Missing):
        return Judgement(verdict=Verdict.UNKNOWN, reason=observation.reason.value)
    if observation.stalled:
        return Judgement(
            verdict=Verdict.MISSES, reason=Reason.STALLED.value, interval=Interval(1.0, 1.0, 1.0)
        )
    if observation.window.total <= 0:
        return Judgement(verdict=Verdict.IDLE, reason=Reason.IDLE.value)
    if observation.at - observation.window.seconds < promised_at:
        return Judgement(verdict=Verdict.UNKNOWN, reason=reasons.Missing.TOO_FEW_SAMPLES.value)
    return by_count(observation.window, allowed=allowed, minimum_samples=minimum_samples)


def by_count(window: Counts, *, allowed: float, minimum_samples: int) -> Judgement:
    """Judge a count of slow requests."""
    interval = wilson(window.slow, window.total, slow_error=window.slow_error)
    if window.total < minimum_samples:
        reason = reasons.Missing.TOO_FEW_SAMPLES.value
        return Judgement(verdict=Verdict.UNKNOWN, reason=reason, interval=interval)
    if interval.high <= allowed:
        verdict = Verdict.MEETS
    elif interval.low > allowed:
        verdict = Verdict.MISSES
    else:
        verdict = Verdict.UNSURE
    return Judgement(verdict=verdict, reason=verdict.value, interval=interval)


def sla_met(
    client: Counts | Missing,
    *,
    allowed: float,
    minimum_samples: int,
    now: float,
    promised_at: float,
    target: str,
) -> ConditionReport:
    """Judge the promise from the clients' side: False only where it is surely broken."""
    if isinstance(client, Missing):
        return ConditionReport(status=None, reason=client.reason.value, message=client.message)
    if client.total <= 0:
        return ConditionReport(status=None, reason=Reason.NO_TRAFFIC, message="no requests in the window")
    if now - client.seconds < promised_at:
        return ConditionReport(
            status=None,
            reason=Reason.TOO_FEW_SAMPLES,
            message=f"the promise was changed {now - promised_at:.0f} s ago: the window holds older requests",
        )
    judged = by_count(client, allowed=allowed, minimum_samples=minimum_samples)
    interval = judged.interval or Interval(0.0, 0.0, 1.0)
    numbers = (
        f"{percent(interval.share, digits=1)} of {client.total:.0f} requests were slower than {target} "
        f"(between {percent(interval.low, digits=1)} and {percent(interval.high, digits=1)}); "
        f"{bound(allowed)} allowed"
    )
    if judged.verdict is Verdict.UNKNOWN:
        message = (
            f"{client.total:.0f} requests in {client.seconds:.0f} s; {minimum_samples} needed for a verdict"
        )
        return ConditionReport(status=None, reason=Reason.TOO_FEW_SAMPLES, message=message)
    if judged.verdict is Verdict.MEETS:
        return ConditionReport(status=True, reason=Reason.MEETS, message=numbers)
    if judged.verdict is Verdict.MISSES:
        return ConditionReport(status=False, reason=Reason.MISSES, message=numbers)
    if interval.share <= allowed:
        return ConditionReport(status=True, reason=Reason.LIKELY_MEETS, message=f"likely: {numbers}")
    return ConditionReport(status=None, reason=Reason.LIKELY_MISSES, message=f"likely not: {numbers}")
