"""Learn from one pass: each pool's new sample becomes evidence for its limit, and for one limit per size
class.

Only a sample newer than the last one teaches anything. What is missing teaches nothing, so it can never raise
a limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meritorder_api.policy import InferencePolicySpec, Mode, SizeClasses, SLAMetric
from meritorder_api.reasons import Action, Reason, Verdict
from meritorder_core import cost
from meritorder_core.evidence import Evidence, Rules
from meritorder_core.inputs import Counts, Inputs, Sample
from meritorder_core.learned import LimitMemory, PoolMemory
from meritorder_core.limits import step
from meritorder_core.sane import MOST_CLASSES
from meritorder_core.verdict import Judgement
from meritorder_core.view import Step

ENOUGH_FOR_A_MEAN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStep:
    """What one pass does to a pool."""

    name: str
    memory: PoolMemory
    steps: tuple[tuple[int | None, Step], ...] = ()
    """Per limit: None for the pool's own, else the size class. Empty: there was no new sample."""


def learn_pool(
    spec: InferencePolicySpec,
    name: str,
    memory: PoolMemory,
    inputs: Inputs,
    judged: Judgement,
    *,
    later: Sequence[str],
    limited: bool,
    policy_rate: float,
) -> PoolStep:
    """Learn from the pool's sample; `later` are the pools after it in order, `limited` whether its limit is
    enforced."""
    seen = inputs.pools.get(name)
    sample = seen.observation if seen is not None else None
    if not isinstance(sample, Sample) or sample.at <= memory.sampled_at:
        return PoolStep(name=name, memory=memory)
    window = float(spec.sla.window_seconds)
    # Over a whole window: right after a start, what was seen is of a few seconds, and a burst.
    in_flight = sample.window.latency_sum_seconds / max(sample.window.seconds, window)
    memory = replace(
        memory,
        sampled_at=sample.at,
        peak=cost.remember_peak(memory.peak, in_flight, now=inputs.now, window=window),
        edge=cost.known_edge(memory),
    )
    if not memory.ready:
        held = Step(
            memory=memory.main, action=Action.HOLD, reason=Reason.NO_READY_REPLICAS, before=memory.main.limit
        )
        return PoolStep(name=name, memory=memory, steps=((None, held),))
    rules = _rules(
        spec, name, limited=limited and spec.mode is Mode.ENFORCE, rate=policy_rate, last=not later
    )
    target = spec.sla.target_milliseconds
    sizes = _sizes(spec, memory, sample, inputs, later)
    own = _without_classes(sample.recent, [sample.classes[size] for size in sizes if size in sample.classes])
    spilled = _spilled(sample.recent.total, [_recent(inputs, other) for other in later])
    new = _evidence(sample, own, memory.ready, target, judged, rules, spilled)
    main = step(memory.main, new, rules, inputs.now)
    steps: list[tuple[int | None, Step]] = [(None, main)]
    classes: dict[int, LimitMemory] = {}
    for size in sizes:
        known = memory.classes.get(size) or _new_class(memory, inputs.now)
        counts = sample.classes.get(size) or replace(
            sample.recent, total=0.0, slow=0.0, latency_sum_seconds=0.0, completion_tokens=None
        )
        gone_by = _spilled(counts.total, [_recent(inputs, other, size) for other in later])
        evidence = _evidence(sample, counts, memory.ready, target, judged, rules, gone_by)
        result = step(known, evidence, replace(rules, one_of_many=True, never_drained=False), inputs.now)
        steps.append((size, result))
        classes[size] = result.memory
    memory = replace(memory, main=main.memory, classes=classes)
    return PoolStep(name=name, memory=replace(memory, edge=cost.known_edge(memory)), steps=tuple(steps))


def _new_class(memory: PoolMemory, now: float) -> LimitMemory:
    """A size class begins with the limit that its pool has."""
    return LimitMemory(limit=memory.main.limit, changed_at=now, fresh_from=now)


def _rules(spec: InferencePolicySpec, name: str, *, limited: bool, rate: float, last: bool) -> Rules:
    bounds = spec.pool(name).concurrency
    return Rules(
        window=float(spec.sla.window_seconds),
        allowed=allowed_share(spec),
        minimum=float(bounds.minimum),
        maximum=float(bounds.maximum),
        enforced=limited,
        never_drained=last,
        policy_rate=rate,
    )


def allowed_share(spec: InferencePolicySpec) -> float:
    """The share of requests that may be slow: 0.05 for a p95."""
    return (100 - spec.sla.percentile) / 100


def _sizes(
    spec: InferencePolicySpec, memory: PoolMemory, sample: Sample, inputs: Inputs, later: Sequence[str]
) -> tuple[int, ...]:
    """The size classes that have a limit: those that were ever seen, here or further down the order."""
    if spec.size_classes is SizeClasses.OFF or spec.sla.metric is not SLAMetric.END_TO_END:
        return ()
    sizes = set(memory.classes) | set(sample.classes)
    for other in later:
        seen = inputs.pools.get(other)
        if seen is not None and isinstance(seen.observation, Sample):
            sizes |= set(seen.observation.classes)
    return tuple(sorted(sizes)[:MOST_CLASSES])


def _recent(inputs: Inputs, name: str, size: int | None = None) -> float | None:
    seen = inputs.pools.get(name)
    if seen is None or not isinstance(seen.observation, Sample):
        return None
    if size is None:
        return seen.observation.recent.total
    counts = seen.observation.classes.get(size)
    return counts.total if counts is not None else 0.0


def _spilled(own: float, later: Sequence[float | None]) -> float | None:
    """The share of what came to a pool, or by it, that went on to a later one."""
    known = [total for total in later if total is not None]
    if not known or own + sum(known) <= 0:
        return None
    return sum(known) / (own + sum(known))


def _without_classes(recent: Counts, classes: Sequence[Counts]) -> Counts:
    """The requests that are in no size class."""
    if not classes:
        return recent
    return replace(
        recent,
        total=max(recent.total - sum(each.total for each in classes), 0.0),
        slow=max(recent.slow - sum(each.slow for each in classes), 0.0),
        latency_sum_seconds=max(
            recent.latency_sum_seconds - sum(each.latency_sum_seconds for each in classes), 0.0
        ),
        completion_tokens=_tokens_without(recent, classes),
    )


def _tokens_without(recent: Counts, classes: Sequence[Counts]) -> float | None:
    """Completion tokens of the requests in no size class; None where not each class tells its own."""
    told = [each.completion_tokens for each in classes if each.total > 0]
    if recent.completion_tokens is None or None in told:
        return None
    return max(recent.completion_tokens - sum(tokens for tokens in told if tokens is not None), 0.0)


def _evidence(
    sample: Sample,
    counts: Counts,
    ready: int,
    target: int,
    judged: Judgement,
    rules: Rules,
    spilled: float | None,
) -> Evidence:
    window, interval = sample.window, judged.interval
    met = judged.verdict is Verdict.MEETS or (
        judged.verdict is Verdict.UNSURE and interval is not None and interval.share <= rules.safe
    )
    return Evidence(
        at=sample.at,
        span=counts.seconds,
        ready=ready,
        load=sample.recent.mean_in_flight / ready,
        total=counts.total,
        slow=min(counts.slow, counts.total),
        seconds=counts.latency_sum_seconds,
        slow_error=min(counts.slow_error, counts.total),
        tokens=counts.completion_tokens or 0.0,
        gauge=None if sample.in_flight is None else sample.in_flight / ready,
        spilled=spilled,
        stalled=sample.stalled,
        pressure=_pressure(sample, counts, target),
        attained=_attained(sample, target),
        met_load=window.mean_in_flight / ready if met else None,
        met_seconds=window.latency_sum_seconds / window.total if window.total > 0 else 0.0,
    )


def _attained(sample: Sample, target: int) -> float | None:
    """The percentile over the target."""
    attained = sample.attained_milliseconds
    return attained / target if attained is not None and attained > 0 else None


def _pressure(sample: Sample, counts: Counts, target: int) -> float | None:
    """The percentile over the target, moved on from the window to now by how the mean moved."""
    pressure = _attained(sample, target)
    if pressure is None:
        return None
    window = sample.window
    if counts.total > 0 and window.total > 0 and window.latency_sum_seconds > 0:
        mean = counts.latency_sum_seconds / counts.total
        ratio = mean / (window.latency_sum_seconds / window.total)
        # A few fast ones prove little; that requests take longer is believed at once.
        pressure *= max(ratio, 0.3) if counts.total >= ENOUGH_FOR_A_MEAN else max(ratio, 1.0)
    return pressure


def policy_rate(
    spec: InferencePolicySpec, inputs: Inputs, served: Mapping[str, float], *, least_seconds: float = 0.0
) -> float:
    """Requests per second of the whole policy: as the clients saw them, else as the pools did.

    Over `least_seconds` where what was seen is of fewer.
    """
    if isinstance(inputs.client, Counts) and inputs.client.total > 0:
        return per_second(inputs.client, least_seconds)
    return sum(served.get(pool.name, 0.0) for pool in spec.pools)


def per_second(counts: Counts, least_seconds: float) -> float:
    """Requests per second, over at least so many seconds."""
    seconds = max(counts.seconds, least_seconds)
    return counts.total / seconds if seconds > 0 else 0.0
