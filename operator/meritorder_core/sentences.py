"""What a decision says to people: one sentence with numbers for every outcome.

Whoever reads "l40s p95 2.31 s > 2.00 s over 412 requests: limit 48 -> 31 per replica; h100 takes 22 %" needs
no graph.
"""

import math
from collections.abc import Sequence

from meritorder_api.policy import SLA
from meritorder_api.reasons import Action, Reason
from meritorder_core.view import Step


def latency(milliseconds: float) -> str:
    """Write a latency as people say it."""
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"


def dollars(amount: float) -> str:
    """Write an amount; cents, or as many decimals as a small one needs."""
    if amount and abs(amount) < 0.1:
        return f"${amount:.3f}" if abs(amount) >= 0.001 else f"${amount:.6f}"
    return f"${amount:,.2f}"


def signed_dollars(amount: float) -> str:
    return f"{'-' if amount < 0 else '+'}${abs(amount):.2f}"


def number(value: float) -> str:
    """Write a limit: at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def percent(share: float, *, digits: int | None = None) -> str:
    """Write a share of the requests; without `digits` small ones with one decimal, others with none."""
    if digits is None:
        digits = 1 if 0 < share < 0.0995 else 0
    return f"{share * 100:.{digits}f} %"


def bound(share: float) -> str:
    """Write a share that is allowed: with no more decimals than it has."""
    return f"{number(share * 100)} %"


def seconds_left(seconds: float) -> str:
    """Write how long something that has not happened yet will take: rounded up, so never "0 s"."""
    return f"{max(math.ceil(seconds - 0.001), 1)} s"


_WHY = {
    Reason.SLOWED_DOWN: "slowed down",
    Reason.ERRORS: "fails",
    Reason.STALLED: "completes nothing",
    Reason.PROBE: "trying a step past its known edge",
    Reason.RECOVERED: "recovered",
    Reason.RETRY_DUE: "tried again",
}


def changed(name: str, size: int | None, step: Step, sla: SLA, *, attained: float | None, takes: str) -> str:
    """Say what changed one limit; `takes` is who takes what it no longer does, with its comma or empty."""
    return f"{_subject(name, size)} {_evidence(step, sla, attained)}: {_limits(step)}{takes}"


def _subject(name: str, size: int | None) -> str:
    """A pool, or a size class of its requests."""
    return name if size is None else f"{name} up to {size} tokens"


def _evidence(step: Step, sla: SLA, attained: float | None) -> str:
    target = latency(sla.target_milliseconds)
    over = f"over {step.total:.0f} request{'' if round(step.total) == 1 else 's'}"
    why = f"{_WHY[step.reason]}, " if step.reason in _WHY else ""
    if step.action is Action.RETRY:
        return f"{'found no room' if step.before > 0 else 'was drained'} for {number(step.waited)} s"
    if step.reason is Reason.STALLED:
        return "has requests in flight and completes none"
    if step.action is Action.GROW and step.slow <= 0:
        return f"{why}no request slower than {target} {over}"
    if (
        step.action in (Action.CUT, Action.DRAIN)
        and attained is not None
        and attained > sla.target_milliseconds
    ):
        return f"{why}p{sla.percentile} {latency(attained)} > {target} {over}"
    share = step.slow / step.total if step.total > 0 else 0.0
    # A failed request counts as slow. At the minimum it is not load that makes a pool miss: often errors do.
    verb = "failed or slower" if step.reason is Reason.ERRORS or step.action is Action.DRAIN else "slower"
    return f"{why}{percent(share)} {verb} than {target} {over}"


def _limits(step: Step) -> str:
    if step.action is Action.DRAIN:
        return f"drained (limit {number(step.before)} -> 0), next look in {step.detail}"
    if step.action is Action.RETRY:
        return f"a look with limit {number(step.after)} per replica"
    return f"limit {number(step.before)} -> {number(step.after)} per replica"


_HOLDS = {
    Reason.NO_READY_REPLICAS: "{name} has no ready replica",
    Reason.MISSES_AT_MINIMUM: "{name} is drained, {detail}",
    Reason.SETTLING: "{name} settles at limit {limit}: {detail}",
    Reason.AT_CAPACITY: "{name} is at its capacity with limit {limit} per replica, {detail}",
    Reason.AT_MAXIMUM: "{name} is at its maximum of {limit} per replica",
    Reason.NOT_LIMIT_BOUND: "{name} has room: {detail}",
    Reason.IDLE: "{name} is idle",
    Reason.WITHIN_MARGIN: "{name} is well at limit {limit} per replica",
}


def held(name: str, size: int | None, step: Step) -> str:
    """Say why a limit stays."""
    text = _HOLDS.get(step.reason, "{name} holds limit {limit} per replica")
    return text.format(name=_subject(name, size), limit=number(step.after), detail=step.detail)


def missing(names: Sequence[tuple[str, str]], total: int) -> str:
    """Say which pools' metrics are missing."""
    listed = "; ".join(f"{name}: {message}" for name, message in names)
    return f"metrics of {len(names)} of {total} pools are missing ({listed})"


def mix_text(counts: dict[str, int]) -> str:
    """Write replicas per pool: "2 l40s + 1 h100"."""
    return " + ".join(f"{count} {name}" for name, count in counts.items() if count) or "no replica"
