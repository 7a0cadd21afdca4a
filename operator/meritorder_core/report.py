"""Figures about a decision: per pool, the savings, the cheapest mix, and where measured cost contradicts the
order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meritorder_api import reasons
from meritorder_api.policy import InferencePolicySpec, MeritOrder
from meritorder_core import cost
from meritorder_core.inputs import Inputs, Missing, PerMillionTokens, PoolInputs, Price, ReplicaHour, Sample
from meritorder_core.learned import PoolMemory
from meritorder_core.mix import Unit, cheapest_mix
from meritorder_core.order import MARGIN, Costs
from meritorder_core.outcome import MixReport, PoolReport, SavingsReport
from meritorder_core.sentences import dollars, mix_text
from meritorder_core.verdict import Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the money is computed from, per pool."""

    price: Price
    memory: PoolMemory
    capacity: cost.Capacity | None
    rate: float
    """Requests per second over the window."""
    needed: int | None
    needed_at_least: bool
    bill: float | None
    bill_needed: float | None
    at_limit: float | None
    """Dollars per 1,000 requests at the limit."""


def figures(
    memory: PoolMemory,
    seen: PoolInputs | None,
    price: Price,
    mean_request: tuple[float, float],
    *,
    fallback: bool,
) -> Figures:
    """Work out a pool's money."""
    observation = seen.observation if seen is not None else None
    rate = observation.window.per_second if isinstance(observation, Sample) else 0.0
    capacity = cost.capacity(memory)
    needed, at_least = cost.needed_replicas(memory, capacity, fallback=fallback)
    if isinstance(price, PerMillionTokens):
        needed, at_least = None, False
        bill = bill_needed = cost.bill(price, None, rate, mean_request)
    else:
        bill = cost.bill(price, memory.ready, rate, mean_request)
        bill_needed = cost.bill(price, needed, rate, mean_request)
    return Figures(
        price=price,
        memory=memory,
        capacity=capacity,
        rate=rate,
        needed=needed,
        needed_at_least=at_least,
        bill=bill,
        bill_needed=bill_needed,
        at_limit=cost.per_thousand_at_limit(price, capacity, mean_request),
    )


def costs_of(each: Figures) -> Costs:
    """What the merit order sees of a pool."""
    return Costs(
        per_replica_hour=each.memory.price if not isinstance(each.price, PerMillionTokens) else None,
        metered=isinstance(each.price, PerMillionTokens),
        per_request=None if each.at_limit is None else each.at_limit / 1000,
    )


def pool_report(
    name: str,
    seen: PoolInputs | None,
    judged: Judgement,
    money: Figures,
    *,
    total_rate: float,
    limit: float,
) -> PoolReport:
    """Report on a pool."""
    sample = seen.observation if seen is not None and isinstance(seen.observation, Sample) else None
    interval = judged.interval
    window = sample.window if sample is not None else None
    per_thousand = None
    if money.bill is not None and money.rate > 0:
        per_thousand = money.bill / (money.rate * 3600) * 1000
    return PoolReport(
        name=name,
        verdict=judged.verdict,
        reason=judged.reason,
        attained_milliseconds=sample.attained_milliseconds if sample is not None else None,
        slow_share=interval.share if interval is not None else None,
        slow_share_low=interval.low if interval is not None else None,
        slow_share_high=interval.high if interval is not None else None,
        slow_share_error=window.slow_error / window.total
        if window is not None and window.total > 0
        else None,
        samples=round(window.total) if window is not None else None,
        sampled_at=sample.at if sample is not None else None,
        requests_per_second=window.per_second if window is not None else None,
        mean_in_flight=window.mean_in_flight if window is not None else None,
        share=money.rate / total_rate if total_rate > 0 else None,
        ready_replicas=money.memory.ready,
        needed_replicas=money.needed,
        needed_at_least=money.needed_at_least,
        limit_per_replica=limit,
        limit_measured=money.capacity is not None and money.capacity.measured,
        price_per_replica_hour=money.price.dollars if isinstance(money.price, ReplicaHour) else None,
        cost_per_hour=money.bill,
        cost_per_thousand_requests=per_thousand,
        cost_per_thousand_at_limit=money.at_limit,
    )


def savings(money: Mapping[str, Figures], fallback: str, peak_rate: float | None) -> SavingsReport | Missing:
    """Compare the bill with serving the recent peak on the fallback pool alone, converted by rate."""
    last = money[fallback]
    if isinstance(last.price, PerMillionTokens):
        return _not_measured(f"{fallback} is metered: there is no bill of replicas to compare with")
    if not isinstance(last.price, ReplicaHour):
        return _not_measured(f"the price of {fallback} is not known")
    if last.capacity is None or peak_rate is None:
        return _not_measured(
            f"not known yet how many requests a replica of {fallback} completes within the SLA"
        )
    realised_bill = cost.total(each.bill for each in money.values())
    possible_bill = cost.total(each.bill_needed for each in money.values())
    if realised_bill is None or possible_bill is None:
        return _not_measured("not every pool's price, ready replicas and needed replicas are known")
    replicas = max(cost.ceiling(cost.HEADROOM * peak_rate / last.capacity.rate), 1)
    baseline = replicas * last.price.dollars
    at_least = "" if last.capacity.measured else "at least "
    fewer = "" if last.capacity.measured else "; fewer may do, since it was never driven to its limit"
    realised = baseline - realised_bill
    return SavingsReport(
        baseline_pool=fallback,
        baseline_per_hour=baseline,
        realised_per_hour=realised,
        possible_per_hour=baseline - possible_bill,
        share=realised / baseline if baseline > 0 else 0.0,
        message=(
            f"{fallback} alone would need {replicas} replicas ({dollars(baseline)}/h) "
            f"for the peak of {peak_rate:.2f} "
            f"requests/s and 10 %, at {at_least}{last.capacity.rate:.2f} requests/s per replica{fewer}; "
            f"ready replicas cost {dollars(realised_bill)}/h, needed ones {dollars(possible_bill)}/h"
        ),
    )


def mix(money: Mapping[str, Figures], order: Sequence[str], peak_rate: float | None) -> MixReport | Missing:
    """The replicas that would carry the recent peak at the least bill, from measured limits only."""
    units, unmeasured = [], []
    for name in order:
        each = money[name]
        if not isinstance(each.price, ReplicaHour):
            continue
        if each.capacity is not None and each.capacity.measured and each.capacity.rate > 0:
            running = each.memory.ready or 0
            units.append(Unit(name=name, price=each.price.dollars, rate=each.capacity.rate, running=running))
        else:
            unmeasured.append(name)
    left_out = f"; not yet driven to a limit, so left out: {', '.join(unmeasured)}" if unmeasured else ""
    if peak_rate is None or not units:
        return _not_measured("no pool's limit is measured yet" + left_out)
    counts = cheapest_mix(units, cost.HEADROOM * peak_rate)
    prices = {unit.name: unit.price for unit in units}
    counts = {name: counts[name] for name in order if name in counts}
    per_hour = sum(count * prices[name] for name, count in counts.items())
    ready = {
        name: money[name].memory.ready or 0 for name in order if isinstance(money[name].price, ReplicaHour)
    }
    bill = cost.total(money[name].bill for name in ready)
    now = f"; {mix_text(ready)} run at {dollars(bill)}/h" if bill is not None else ""
    return MixReport(
        replicas=counts,
        per_hour=per_hour,
        message=f"{mix_text(counts)} would carry this peak at {dollars(per_hour)}/h{now}{left_out}",
    )


def disagreement(spec: InferencePolicySpec, money: Mapping[str, Figures], order: Sequence[str]) -> str | None:
    """Say where a pool that comes later serves a request for less, both at their measured limits."""
    found: list[tuple[float, str, str]] = []
    for i, early in enumerate(order):
        for late in order[i + 1 :]:
            a, b = money[early].at_limit, money[late].at_limit
            if a is None or b is None or b >= a * (1 - MARGIN):
                continue
            text = f"{late} at its limit would serve this at {dollars(b)} per 1,000, {early} at {dollars(a)}"
            found.append((b / a, late, text))
    if not found:
        return None
    _, late, sentence = min(found)
    if late == order[-1]:
        return f"{sentence}; it stays last because it is the fallback pool"
    if spec.merit_order is MeritOrder.DECLARED_PRICE:
        return f"{sentence}; meritOrder MeasuredCost would order by that"
    return sentence


def prices(spec: InferencePolicySpec, inputs: Inputs, memories: Mapping[str, PoolMemory]) -> dict[str, Price]:
    """The price of each pool: as read, else the last known one."""
    result: dict[str, Price] = {}
    for pool in spec.pools:
        seen = inputs.pools.get(pool.name)
        price: Price = (
            seen.price
            if seen is not None
            else Missing(reason=reasons.Missing.NO_PRICE, message=f"the price of {pool.name} is not known")
        )
        last = memories[pool.name].price
        if isinstance(price, Missing) and last is not None:
            price = ReplicaHour(dollars=last)
        result[pool.name] = price
    return result


def no_series(name: str) -> Missing:
    """What is known of a pool that the inputs do not speak of."""
    return Missing(reason=reasons.Missing.NO_SERIES, message=f"nothing was gathered for {name}")


def _not_measured(message: str) -> Missing:
    return Missing(reason=reasons.Missing.NOT_MEASURED, message=message)
