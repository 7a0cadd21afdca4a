"""The headline of a decision, and the conditions it implies: what applies first, the most urgent first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meritorder_api.policy import Mode, OnMissingMetrics, WhenInfeasible, WhenSaturated
from meritorder_api.reasons import Action, Reason, Verdict
from meritorder_core import sentences
from meritorder_core.inputs import Missing, Sample
from meritorder_core.outcome import ConditionReport
from meritorder_core.plan import same_routing
from meritorder_core.view import Step

if TYPE_CHECKING:
    from meritorder_core.decide import Pass

URGENCY = (Action.DRAIN, Action.CUT, Action.RETRY, Action.GROW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """Action, reason and sentence of a decision."""

    action: Action
    reason: Reason
    message: str


Teller = Callable[["Pass"], Headline | None]


def headline(done: Pass) -> Headline:
    """Say what was decided: the first of `TELLERS` that applies."""
    for teller in TELLERS:
        said = teller(done)
        if said is not None:
            return said
    return Headline(action=Action.HOLD, reason=Reason.WITHIN_MARGIN, message="nothing to change")


def _suspended(done: Pass) -> Headline | None:
    if not done.spec.suspend:
        return None
    return _hold(Reason.SUSPENDED, "suspended: the last routing keeps serving, nothing is learned")


def _recommends(done: Pass) -> Headline | None:
    """Recommend: say what would be routed."""
    if done.spec.mode is not Mode.RECOMMEND:
        return None
    limits = ", ".join(
        f"{pool.name} {sentences.number(pool.limit_per_replica)} per replica"
        for pool in done.plan.pools
        if pool.limit_per_replica is not None
    )
    message = f"recommended, not enforced: {limits or 'all'}; the rest to {done.order[-1]}"
    moved = any(step.before != step.after for each in done.steps for _, step in each.steps)
    reordered = done.order != done.start.learned.order
    action = Action.RECONFIGURE if moved or reordered else Action.HOLD
    return Headline(action=action, reason=Reason.RECOMMEND_MODE, message=message)


def _first(done: Pass) -> Headline | None:
    """The first routing needs no metrics."""
    routed = done.current is not None or done.spec.mode is Mode.RECOMMEND
    if not done.start.first and routed:
        return None
    limits = ", ".join(
        f"{pool.name} at {sentences.number(pool.limit_per_replica)} per replica"
        for pool in done.plan.pools
        if pool.limit_per_replica is not None
    )
    message = f"first routing: {limits or 'one pool'}; {done.order[-1]} takes the rest"
    return Headline(action=Action.START, reason=Reason.FIRST_DECISION, message=message)


def _edited(done: Pass) -> Headline | None:
    if not done.start.edited:
        return None
    message = f"the spec changed: {'; '.join(done.start.edited)}; limits are kept as where to start from"
    return Headline(action=Action.RECONFIGURE, reason=Reason.SPEC_CHANGED, message=message)


def _respecified(done: Pass) -> Headline | None:
    """The spec changed what is routed, though nothing that the evidence speaks of."""
    if not done.start.respecified or done.current is None or done.situation.infeasible:
        return None
    before = {pool.name: pool.limit_per_replica for pool in done.current.pools}
    held = {each.name: step.before for each in done.steps for size, step in each.steps if size is None}
    last, parts = done.order[-1], []
    if done.plan.shed != done.current.shed:
        does = "what no pool takes gets 429" if done.plan.shed else f"the overflow goes to {last}"
        parts.append(f"whenSaturated is {done.spec.behavior.when_saturated.value}, {does}")
    for pool in done.plan.pools:
        was, is_ = before.get(pool.name), held.get(pool.name, pool.limit_per_replica)
        if pool.name == last or not was or not is_ or was == is_:
            continue
        parts.append(
            f"limit of {pool.name} {sentences.number(was)} -> {sentences.number(is_)} per replica, as its "
            "`concurrency` allows"
        )
    if not parts:
        return None
    message = f"the spec changed: {'; '.join(parts)}"
    return Headline(action=Action.RECONFIGURE, reason=Reason.SPEC_CHANGED, message=message)


def _safest(done: Pass) -> Headline | None:
    """Metrics are missing and the spec wants such pools closed."""
    closed = sorted(done.situation.absent - {done.order[-1]})
    if not closed or done.situation.on_missing is not OnMissingMetrics.SAFEST:
        return None
    names = ", ".join(closed)
    message = f"{_missing_text(done)}; closed by onMissingMetrics Safest: {names}; {done.order[-1]} takes it"
    action = Action.HOLD if same_routing(done.current, done.plan) else Action.DRAIN
    return Headline(action=action, reason=Reason.SAFEST, message=message)


def _changed(done: Pass) -> Headline | None:
    """Limits moved: the most urgent one names the decision, all are told."""
    moved = [
        (each.name, size, step)
        for each in done.steps
        for size, step in each.steps
        if step.action is not Action.HOLD
    ]
    if not moved or same_routing(done.current, done.plan):
        return None
    chief = min(moved, key=lambda one: URGENCY.index(one[2].action))
    told = [chief, *(one for one in moved if one is not chief)]
    parts = [_changed_text(done, name, size, step) for name, size, step in told[:3]]
    if len(told) > 3:
        parts.append(f"{len(told) - 3} more limits changed")
    return Headline(action=chief[2].action, reason=chief[2].reason, message="; ".join(parts))


def _changed_text(done: Pass, name: str, size: int | None, step: Step) -> str:
    seen = done.inputs.pools.get(name)
    sample = seen.observation if seen is not None and isinstance(seen.observation, Sample) else None
    attained = sample.attained_milliseconds if sample is not None else None
    takes = _takes(done, name, step) if size is None and step.action in (Action.CUT, Action.DRAIN) else ""
    return sentences.changed(name, size, step, done.spec.sla, attained=attained, takes=takes)


def _takes(done: Pass, name: str, step: Step) -> str:
    """Who takes what a pool no longer does: the next in order, and what its share comes to."""
    later = [other for other in done.order[done.order.index(name) + 1 :]]
    rates = {
        other: pool.observation.window.per_second
        for other, pool in done.inputs.pools.items()
        if isinstance(pool.observation, Sample)
    }
    total = sum(rates.values())
    if not later or total <= 0 or step.before <= 0:
        return ""
    moved = rates.get(name, 0.0) * (1 - step.after / step.before)
    taker = next((other for other in later[:-1] if _open(done, other)), later[-1])
    return f"; {taker} takes {sentences.percent((rates.get(taker, 0.0) + moved) / total)}"


def _open(done: Pass, name: str) -> bool:
    planned = next(pool for pool in done.plan.pools if pool.name == name)
    seen = done.inputs.pools.get(name)
    return bool(planned.limit_per_replica) and seen is not None and seen.ready_replicas != 0


def _reordered(done: Pass) -> Headline | None:
    if done.current is None or done.order == tuple(pool.name for pool in done.current.pools):
        return None
    message = f"merit order is now {', '.join(done.order)}: costs moved by more than 5 %"
    return Headline(action=Action.REORDER, reason=Reason.PRICE_CHANGED, message=message)


def _new_classes(done: Pass) -> Headline | None:
    """Size classes were seen for the first time: they begin with their pool's limit."""
    before = {pool.name: dict(pool.class_limits) for pool in done.current.pools} if done.current else {}
    new = []
    for pool in done.plan.pools:
        sizes = [str(size) for size, _ in pool.class_limits if size not in before.get(pool.name, {})]
        if sizes:
            new.append(f"{pool.name} up to {', '.join(sizes)} tokens")
    if not new:
        return None
    message = f"new size classes begin with their pool's limit: {'; '.join(new)}"
    return Headline(action=Action.START, reason=Reason.FIRST_DECISION, message=message)


def _posture(done: Pass) -> Headline | None:
    """The plan changed though no limit did: a posture began or ended."""
    if same_routing(done.current, done.plan):
        return None
    if done.situation.infeasible:
        reason, message = Reason.INFEASIBLE, _infeasible_text(done)
    elif done.start.respecified:
        reason, message = Reason.SPEC_CHANGED, "the spec changed: routing follows the learned limits"
    else:
        reason, message = Reason.METRICS_FOUND, "routing follows the learned limits again"
    return Headline(action=Action.RECONFIGURE, reason=reason, message=message)


def _metrics_missing(done: Pass) -> Headline | None:
    if not done.situation.absent:
        return None
    if len(done.situation.absent) < len(done.order) and any(each.steps for each in done.steps):
        return None
    return _hold(Reason.METRICS_MISSING, f"{_missing_text(done)}; their limits hold")


def _infeasible(done: Pass) -> Headline | None:
    return _hold(Reason.INFEASIBLE, _infeasible_text(done)) if done.situation.infeasible else None


def _no_new_sample(done: Pass) -> Headline | None:
    if any(each.steps for each in done.steps):
        return None
    # No age in it: what is said must stand still while nothing happens, or it would be written each time.
    known = any(each.memory.sampled_at > 0 for each in done.steps)
    message = "no sample since the last decision" if known else "no pool has a sample yet"
    return _hold(Reason.NO_NEW_SAMPLE, message)


def _dwells(done: Pass) -> Headline | None:
    if not done.dwelling:
        return None
    return _hold(
        Reason.DWELL, f"another merit order is due and waits its dwell time; {', '.join(done.order)} for now"
    )


def _marginal(done: Pass) -> Headline | None:
    """Nothing changed: the pool that the next request would spill from says why."""
    steps = [(each.name, *_busiest(each.steps)) for each in done.steps if each.steps]
    if not steps:
        return None
    before_last = [one for one in steps if one[0] != done.order[-1]] or steps
    quiet = (Reason.NOT_LIMIT_BOUND, Reason.IDLE)
    busy = [one for one in before_last if one[2].reason not in quiet]
    rest = [one for one in before_last if one[2].reason is Reason.NOT_LIMIT_BOUND]
    chosen = (busy or rest or before_last)[:3]
    # The headline is the cheapest such pool; the others follow in its sentence.
    text = "; ".join(sentences.held(name, size, step) for name, size, step in chosen)
    return _hold(chosen[0][2].reason, text)


def _busiest(steps: tuple[tuple[int | None, Step], ...]) -> tuple[int | None, Step]:
    """The pool's own limit, or that of the size class that most requests are in."""
    return max(steps, key=lambda one: one[1].total)


def _load(done: Pass, name: str) -> float | None:
    seen = done.inputs.pools.get(name)
    if seen is None or not isinstance(seen.observation, Sample) or not seen.ready_replicas:
        return None
    return seen.observation.window.mean_in_flight / seen.ready_replicas


def _hold(reason: Reason, message: str) -> Headline:
    return Headline(action=Action.HOLD, reason=reason, message=message)


TELLERS: tuple[Teller, ...] = (
    _suspended,
    _first,
    _edited,
    _recommends,
    _respecified,
    _safest,
    _changed,
    _reordered,
    _new_classes,
    _posture,
    _metrics_missing,
    _infeasible,
    _no_new_sample,
    _dwells,
    _marginal,
)


# --- conditions ---


def metrics_available(done: Pass) -> ConditionReport:
    """Whether every pool's metrics are there."""
    if done.situation.absent:
        first = min(done.situation.absent)
        seen = done.inputs.pools.get(first)
        observation = seen.observation if seen is not None else None
        reason = observation.reason.value if isinstance(observation, Missing) else "NoSeries"
        return ConditionReport(status=False, reason=reason, message=_missing_text(done))
    return ConditionReport(
        status=True, reason=Reason.METRICS_FOUND, message=f"metrics of {len(done.order)} pools are fresh"
    )


def ready_note(done: Pass, disagreement: str | None) -> ConditionReport:
    """What Ready says when nothing else is wrong."""
    if done.situation.infeasible:
        return ConditionReport(status=True, reason=Reason.INFEASIBLE, message=_infeasible_text(done))
    if _saturated(done):
        does = (
            "what does not fit gets 429"
            if done.spec.behavior.when_saturated is WhenSaturated.SHED
            else f"the overflow goes to {done.order[-1]} and is slow"
        )
        message = f"every pool is full: {does}"
        return ConditionReport(status=True, reason=Reason.SATURATED, message=message)
    if disagreement:
        return ConditionReport(status=True, reason=Reason.MEASURED_COST_DISAGREES, message=disagreement)
    names = ", ".join(done.order)
    return ConditionReport(
        status=True, reason=Reason.ALL_WELL, message=f"traffic goes to {names}, cheapest first"
    )


def _saturated(done: Pass) -> bool:
    """The last resort is past its limit: then every pool before it is full."""
    last = next((each for each in done.steps if each.name == done.order[-1]), None)
    if last is None or not last.memory.main.edge_seen or not last.memory.ready:
        return False
    load = _load(done, done.order[-1])
    over = load is not None and load >= last.memory.main.limit
    return over and (done.judged[done.order[-1]].verdict is Verdict.MISSES or done.situation.sheds)


def _infeasible_text(done: Pass) -> str:
    last = done.order[-1]
    does = {
        WhenInfeasible.FASTEST: f"{last} takes everything",
        WhenInfeasible.HOLD: "limits hold",
        WhenInfeasible.SHED: f"{last} takes what it can within the SLA, the rest gets 429",
    }[done.spec.behavior.when_infeasible]
    target = sentences.latency(done.spec.sla.target_milliseconds)
    return f"no pool meets p{done.spec.sla.percentile} {target} at its minimum, {last} neither: {does}"


def _missing_text(done: Pass) -> str:
    rows = []
    for name in sorted(done.situation.absent):
        seen = done.inputs.pools.get(name)
        observation = seen.observation if seen is not None else None
        text = (
            f"{observation.reason.value}, {observation.message}"
            if isinstance(observation, Missing)
            else "no inputs"
        )
        rows.append((name, text))
    return sentences.missing(rows, len(done.order))
