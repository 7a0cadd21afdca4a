"""One pass of the decision: from what was measured to where traffic goes, and why.

Read the function `decide` as the whole: bring the memory in line with the spec, judge, learn, order, plan,
and say so. Every part is pure and stands in a module of its own; here they only meet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meritorder_api.policy import InferencePolicySpec, MeritOrder, Mode
from meritorder_api.reasons import Action, Reason, Verdict
from meritorder_core import cost, report
from meritorder_core.inputs import Counts, Inputs, Missing, PerMillionTokens, Sample
from meritorder_core.learn import PoolStep, allowed_share, learn_pool, per_second, policy_rate
from meritorder_core.learned import Learned, PoolMemory
from meritorder_core.memory import Start, begin
from meritorder_core.order import DWELL_WINDOWS, Costs, merit_order
from meritorder_core.outcome import ConditionReport, Decision, Plan, PlannedPool, PoolReport
from meritorder_core.plan import Situation, make_plan, same_routing
from meritorder_core.sane import sane
from meritorder_core.saying import Headline, headline, metrics_available, ready_note
from meritorder_core.sentences import latency
from meritorder_core.verdict import Judgement, absent, judge, sla_met


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass worked out, for those who put it into words and figures."""

    spec: InferencePolicySpec
    inputs: Inputs
    start: Start
    order: tuple[str, ...]
    judged: Mapping[str, Judgement]
    steps: tuple[PoolStep, ...]
    situation: Situation
    current: Plan | None
    plan: Plan
    dwelling: bool
    """Another order is due and waits for its dwell time."""


def decide(
    spec: InferencePolicySpec,
    learned: Learned,
    inputs: Inputs,
    *,
    current: Plan | None,
    generation: int = 1,
) -> Decision:
    """Decide once. Pure and total: never raises for inputs that the types allow."""
    inputs = sane(inputs)
    # The order of `pools` says nothing: sorted, so that not even sums of floats depend on it.
    spec = spec.model_copy(update={"pools": sorted(spec.pools, key=lambda pool: pool.name)})
    start = begin(spec, learned, inputs, current=current, generation=generation)
    judged = {pool.name: _judge(spec, pool.name, inputs, start) for pool in spec.pools}
    order, ordered_at, dwelling = _order(spec, start, inputs)
    steps = () if spec.suspend else _learn(spec, start, inputs, order, judged, current)
    memories = {**start.learned.pools, **{each.name: each.memory for each in steps}}
    situation = _situation(spec, inputs, order, judged, memories, current)
    plan = make_plan(order, memories, situation, in_flight=_in_flight(inputs), current=current)
    if spec.suspend:
        plan = current if current is not None else Plan(pools=(PlannedPool(name=start.learned.fallback),))
    done = Pass(
        spec=spec,
        inputs=inputs,
        start=start,
        order=order,
        judged=judged,
        steps=steps,
        situation=situation,
        current=current,
        plan=plan,
        dwelling=dwelling,
    )
    after = start.learned if spec.suspend else _remember(done, memories, ordered_at)
    return _say(done, after, headline(done))


def _judge(spec: InferencePolicySpec, name: str, inputs: Inputs, start: Start) -> Judgement:
    seen = inputs.pools.get(name)
    return judge(
        seen.observation if seen is not None else report.no_series(name),
        allowed=allowed_share(spec),
        minimum_samples=spec.sla.minimum_samples,
        promised_at=start.learned.promised_at,
    )


def _order(spec: InferencePolicySpec, start: Start, inputs: Inputs) -> tuple[tuple[str, ...], float, bool]:
    """The merit order, when it was taken, and whether another one waits for the dwell time."""
    learned = start.learned
    present = [name for name in learned.order if name in learned.pools]
    costs = _costs(spec, inputs, learned)
    wanted = merit_order(spec, costs, learned.fallback, present)
    if wanted == learned.order:
        return wanted, learned.ordered_at, False
    same_pools = set(wanted) == set(learned.order) and learned.order and learned.order[-1] == wanted[-1]
    if same_pools and inputs.now - learned.ordered_at < DWELL_WINDOWS * spec.sla.window_seconds:
        return learned.order, learned.ordered_at, True
    return wanted, inputs.now, False


def _costs(spec: InferencePolicySpec, inputs: Inputs, learned: Learned) -> dict[str, Costs]:
    """What the order rests on: declared prices alone, unless measured cost has a say in it."""
    metered = any(isinstance(pool.price, PerMillionTokens) for pool in inputs.pools.values())
    if spec.merit_order is MeritOrder.DECLARED_PRICE and not metered:
        return {name: Costs(per_replica_hour=pool.price) for name, pool in learned.pools.items()}
    money = _figures(spec, inputs, learned, learned.pools)
    return {name: report.costs_of(each) for name, each in money.items()}


def _learn(
    spec: InferencePolicySpec,
    start: Start,
    inputs: Inputs,
    order: tuple[str, ...],
    judged: Mapping[str, Judgement],
    current: Plan | None,
) -> tuple[PoolStep, ...]:
    rate = policy_rate(spec, inputs, _served(inputs))
    limited = (
        {pool.name for pool in current.pools if pool.limit_per_replica is not None} if current else set()
    )
    return tuple(
        learn_pool(
            spec,
            name,
            start.learned.pools[name],
            inputs,
            judged[name],
            later=order[i + 1 :],
            limited=i < len(order) - 1 or name in limited,
            policy_rate=rate,
        )
        for i, name in enumerate(order)
    )


def _situation(
    spec: InferencePolicySpec,
    inputs: Inputs,
    order: tuple[str, ...],
    judged: Mapping[str, Judgement],
    memories: Mapping[str, PoolMemory],
    current: Plan | None,
) -> Situation:
    names = [pool.name for pool in spec.pools]
    gone = {name for name in names if name not in inputs.pools or absent(inputs.pools[name].observation)}
    last = memories[order[-1]].main
    drained = all(_drained(memories[name]) for name in order[:-1])
    misses = judged[order[-1]].verdict is Verdict.MISSES
    if len(order) == 1:
        misses = misses and last.limit <= spec.pool(order[-1]).concurrency.minimum
    # While shedding makes the last resort meet the SLA, nothing has become feasible yet.
    shedding = (
        current is not None and current.shed and current.pools[-1:] != () and drained and len(order) > 1
    )
    full = _load(inputs, order[-1], memories) >= 0.8 * last.limit
    return Situation(
        absent=frozenset(gone),
        infeasible=drained and (misses or (shedding and full)),
        on_missing=spec.behavior.on_missing_metrics,
        when_infeasible=spec.behavior.when_infeasible,
        when_saturated=spec.behavior.when_saturated,
    )


def _drained(memory: PoolMemory) -> bool:
    return memory.main.limit <= 0 and all(each.limit <= 0 for each in memory.classes.values())


def _load(inputs: Inputs, name: str, memories: Mapping[str, PoolMemory]) -> float:
    """Mean requests in flight per ready replica over the window; 0 where not known."""
    seen, ready = inputs.pools.get(name), memories[name].ready
    if seen is None or not isinstance(seen.observation, Sample) or not ready:
        return 0.0
    return seen.observation.window.mean_in_flight / ready


def _served(inputs: Inputs, *, least_seconds: float = 0.0) -> dict[str, float]:
    """Requests per second by pool over the window, or over `least_seconds` where it is shorter yet."""
    return {
        name: per_second(pool.observation.window, least_seconds)
        for name, pool in inputs.pools.items()
        if isinstance(pool.observation, Sample)
    }


def _in_flight(inputs: Inputs) -> float:
    return sum(
        pool.observation.window.mean_in_flight
        for pool in inputs.pools.values()
        if isinstance(pool.observation, Sample)
    )


def _figures(
    spec: InferencePolicySpec, inputs: Inputs, learned: Learned, memories: Mapping[str, PoolMemory]
) -> dict[str, report.Figures]:
    mean_request = (learned.prompt_tokens, learned.completion_tokens)
    priced = report.prices(spec, inputs, memories)
    return {
        pool.name: report.figures(
            memories[pool.name],
            inputs.pools.get(pool.name),
            priced[pool.name],
            mean_request,
            fallback=pool.name == learned.fallback,
        )
        for pool in spec.pools
    }


def _remember(done: Pass, memories: Mapping[str, PoolMemory], ordered_at: float) -> Learned:
    """The next pass's memory."""
    inputs, learned = done.inputs, done.start.learned
    peak = learned.peak_rate
    if any(each.steps for each in done.steps):
        window = float(done.spec.sla.window_seconds)
        served = _served(inputs, least_seconds=window)
        rate = policy_rate(done.spec, inputs, served, least_seconds=window)
        peak = cost.remember_peak(peak, rate, now=inputs.now, window=window)
    prompt, completion = _mean_request(inputs, learned)
    return replace(
        learned,
        order=done.order,
        ordered_at=ordered_at,
        pools={name: memories[name] for name in sorted(memories)},
        peak_rate=peak,
        prompt_tokens=prompt,
        completion_tokens=completion,
    )


def _mean_request(inputs: Inputs, learned: Learned) -> tuple[float, float]:
    """Tokens of this policy's mean request over the window; what was known, where nothing is told."""
    windows = [
        pool.observation.window for pool in inputs.pools.values() if isinstance(pool.observation, Sample)
    ]
    told = [
        w for w in windows if w.total > 0 and w.prompt_tokens is not None and w.completion_tokens is not None
    ]
    requests = sum(each.total for each in told)
    if requests <= 0:
        return learned.prompt_tokens, learned.completion_tokens
    return (
        sum(each.prompt_tokens or 0.0 for each in told) / requests,
        sum(each.completion_tokens or 0.0 for each in told) / requests,
    )


def _say(done: Pass, after: Learned, said: Headline) -> Decision:
    spec, inputs = done.spec, done.inputs
    money = _figures(spec, inputs, after, after.pools)
    rates = {name: each.rate for name, each in money.items()}
    peak = cost.highest(after.peak_rate)
    reports = tuple(
        report.pool_report(
            name,
            inputs.pools.get(name),
            done.judged[name],
            money[name],
            total_rate=sum(rates.values()),
            limit=_shown_limit(after.pools[name]),
        )
        for name in done.order
    )
    disagreement = report.disagreement(spec, money, done.order)
    sla = sla_met(
        inputs.client,
        allowed=allowed_share(spec),
        minimum_samples=spec.sla.minimum_samples,
        now=inputs.now,
        promised_at=done.start.learned.promised_at,
        target=latency(spec.sla.target_milliseconds),
    )
    return Decision(
        at=inputs.now,
        action=said.action,
        reason=said.reason,
        message=said.message,
        plan=done.plan,
        enforced=spec.mode is Mode.ENFORCE and not spec.suspend,
        fallback_pool=after.fallback,
        pools=reports,
        sla_met=sla,
        metrics_available=metrics_available(done),
        ready_note=ready_note(done, disagreement),
        savings=report.savings(money, after.fallback, peak),
        cheapest_mix=report.mix(money, done.order, peak),
        cost_per_hour=cost.total(each.bill for each in money.values()),
        attained_milliseconds=inputs.client_attained_milliseconds,
        learned=after,
        learned_changed=said.action is not Action.HOLD or _essence(done.start.learned) != _essence(after),
        notes=((Reason.MEASURED_COST_DISAGREES, disagreement),) if disagreement else (),
        terms=_terms(done, reports, sla, said),
    )


def _shown_limit(memory: PoolMemory) -> float:
    used = [each.limit for each in memory.classes.values() if each.curve or each.looks]
    return max([memory.main.limit, *used])


def _essence(learned: Learned) -> tuple[object, ...]:
    """What must not be lost: limits, cool-downs, order. The rest is evidence."""

    def limits(pool: PoolMemory) -> list[tuple[object, ...]]:
        each = [pool.main, *(pool.classes[size] for size in sorted(pool.classes))]
        return [(m.limit, m.changed_at, m.learn_after, m.retry_at, m.retry_wait, m.probe_wait) for m in each]

    pools = tuple((name, tuple(limits(learned.pools[name]))) for name in sorted(learned.pools))
    return (learned.generation, learned.promise, learned.fallback, learned.order, pools)


def _terms(
    done: Pass, reports: Sequence[PoolReport], sla: ConditionReport, said: Headline
) -> dict[str, object]:
    """Every term of the decision, for the log line."""
    terms: dict[str, object] = {
        "target_ms": done.spec.sla.target_milliseconds,
        "percentile": done.spec.sla.percentile,
        "action": said.action.value,
        "reason": said.reason.value,
        "order": list(done.order),
        "slaMet": sla.reason,
        "infeasible": done.situation.infeasible,
        "dwelling": done.dwelling,
        "changed": not same_routing(done.current, done.plan),
    }
    if isinstance(done.inputs.client, Counts):
        terms["client"] = {"total": done.inputs.client.total, "slow": done.inputs.client.slow}
    elif isinstance(done.inputs.client, Missing):
        terms["client"] = done.inputs.client.reason.value
    outcome = {each.name: each for each in done.steps}
    for each in reports:
        row: dict[str, object] = {
            "verdict": each.verdict.value,
            "samples": each.samples,
            "slow": None if each.slow_share is None else round(each.slow_share, 4),
            "inFlight": None if each.mean_in_flight is None else round(each.mean_in_flight, 2),
            "ready": each.ready_replicas,
            "limit": each.limit_per_replica,
        }
        for size, step in outcome[each.name].steps if each.name in outcome else ():
            row["step" if size is None else f"step{size}"] = (
                f"{step.action.value}/{step.reason.value} {step.detail}".strip()
            )
        terms[each.name] = row
    return terms
