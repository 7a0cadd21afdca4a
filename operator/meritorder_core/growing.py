"""Rules that give to a pool, and those that say why it gets no more.

A limit grows only where it binds, only on enough samples that were admitted under it, and only as far as the
latency is foreseen to stay under the target. Where the next step is known to be bad, it is tried again now
and then: pools change.
"""

import math
from dataclasses import replace

from meritorder_api.reasons import Action, Reason
from meritorder_core import curve
from meritorder_core.cutting import RETRY_LATE, Z_EDGE
from meritorder_core.sentences import bound, number, percent, seconds_left
from meritorder_core.stats import wilson
from meritorder_core.view import ENOUGH_CLEAN, LATENCIES, Step, View, changed, done, hold, up

ENOUGH_MIXED = 50
"""Samples that permit a small step where some were slow, but few enough."""
STEP = 1.04
"""A step where some requests are slow: one bucket of the curve."""
STEP_CLEAN = 1.15
"""A step where none is, near the former limit."""
STEP_QUICK = 1.5
"""Growth from nothing."""
STEP_FIRST = 2.0
"""Growth from nothing while the percentile is far below the target and nothing was ever slow."""
FAR_BELOW = 0.5
STEP_WINDOWS = 20 / 60
QUICK_WINDOWS = 12 / 60
FORESIGHT = 0.95
"""Growth aims for this part of the target: latency grows with load by at most its elasticity, as measured."""
LEAST_ELASTICITY = 0.3
"""Latency as a function of load bends upwards: a slope seen at low load is not trusted to stay so low."""
ENOUGH_FOR_SLOPE = 30.0
FORMER_PART = 0.85
"""After a slow-down growth is quick up to this part of the former limit."""
EDGE = 0.99
"""A step whose foreseen percentile is past this part of the target is not taken: requests that are all alike
pass the target all at once, without a slow one before."""
NEAR_FULL = 0.9
"""Part of the limit from which on a pool is full on the mean."""
HARDLY_SPILLED = 0.01
"""A pool by which no larger share of the requests went has room, whatever its mean."""
PROBE_KEEP = 0.1
PROBE_WAIT = 4.0


def idle(view: View) -> Step | None:
    return hold(view, Reason.IDLE) if view.new.total <= 0 else None


def shut_out(view: View) -> Step | None:
    """A size class whose limit is below what the others fill never gets in: it is let in for a look, ever
    more seldom."""
    memory, new = view.memory, view.new
    gone_by = new.spilled is not None and new.spilled > 0
    if not view.rules.one_of_many or new.total > 0 or not gone_by or new.load < view.limit:
        return None
    bad = view.fit.bad_from(view.rules.safe)
    reach = min(new.load, view.rules.maximum, curve.lower_edge(bad) if bad is not None else math.inf)
    if reach <= memory.limit or view.now - memory.changed_at < 2 * memory.retry_wait * view.rules.window:
        return hold(view, Reason.SETTLING, "its size finds no room yet")
    looking = replace(
        changed(view, up(reach), fresh_from=view.now), retry_wait=min(2 * memory.retry_wait, RETRY_LATE)
    )
    return replace(
        done(view, looking, Action.RETRY, Reason.RETRY_DUE), waited=round(view.now - memory.changed_at)
    )


def at_maximum(view: View) -> Step | None:
    if view.memory.limit < view.rules.maximum:
        return None
    reached = full(view)
    memory = replace(view.memory, edge_seen=view.memory.edge_seen or reached)
    return done(view, memory, Action.HOLD, Reason.AT_MAXIMUM)


def not_limit_bound(view: View) -> Step | None:
    """More room would not be used, and what is not used teaches nothing."""
    if full(view):
        return None
    load, limit = view.new.load, number(view.memory.limit)
    if load < NEAR_FULL * view.limit:
        return hold(view, Reason.NOT_LIMIT_BOUND, f"{number(load)} of {limit} in flight per replica")
    # The mean of one interval may be past the limit, where batches end together or after a cut.
    gone_by = f"under {bound(HARDLY_SPILLED)} of the requests went past its limit of {limit} per replica"
    return hold(view, Reason.NOT_LIMIT_BOUND, gone_by)


def full(view: View) -> bool:
    """Whether requests were turned away: the pool is at its limit, or they went by it while it was near."""
    new = view.new
    load, limit, spread = (
        new.load * new.ready,
        view.limit * new.ready,
        math.sqrt(max(new.load * new.ready, 0.0)),
    )
    if new.spilled is not None and new.spilled < HARDLY_SPILLED:
        return False
    if load >= NEAR_FULL * limit or (
        new.gauge is not None and new.gauge * new.ready >= 0.95 * limit and load >= 0.7 * limit
    ):
        return True
    if new.spilled is None:
        return load + spread >= limit
    return load + 2 * spread >= limit or (new.spilled > 0.05 and load >= 0.4 * limit)


def too_few(view: View) -> Step | None:
    """Growth needs samples that were admitted under the present limit."""
    memory, rules = view.memory, view.rules
    if memory.fresh_slow <= 0:
        if memory.fresh >= ENOUGH_CLEAN:
            return None
        return hold(
            view, Reason.SETTLING, f"{memory.fresh:.0f} of {ENOUGH_CLEAN} samples since the last change"
        )
    if memory.fresh < ENOUGH_MIXED:
        return hold(
            view, Reason.SETTLING, f"{memory.fresh:.0f} of {ENOUGH_MIXED} samples since the last change"
        )
    if memory.fresh_slow / memory.fresh > rules.safe:
        return hold(
            view, Reason.AT_CAPACITY, f"{percent(memory.fresh_slow / memory.fresh)} slow at this limit"
        )
    share = view.fit.share_at(view.limit)
    if share is not None and share > rules.safe:
        return hold(view, Reason.AT_CAPACITY, f"{percent(share)} slow at this load")
    return None


def too_soon(view: View) -> Step | None:
    """Requests admitted under the last step must have shown what it does."""
    least = LATENCIES * view.new.mean_seconds
    elapsed = view.now - view.memory.changed_at
    if elapsed >= max(STEP_WINDOWS * view.rules.window, least):
        return None
    if elapsed >= max(QUICK_WINDOWS * view.rules.window, least) and _factor(view) >= STEP_QUICK:
        return None
    left = max(STEP_WINDOWS * view.rules.window, least) - elapsed
    return hold(view, Reason.SETTLING, f"next step in at most {seconds_left(left)}")


def at_the_target(view: View) -> Step | None:
    """Where no request is slow, yet the percentile is all but at the target, the next step would pass it."""
    pressure = view.new.pressure
    if pressure is None or view.memory.fresh_slow > 0:
        return None
    if view.new.attained is not None and view.now >= view.memory.learn_after + view.rules.window:
        # A lull is no reason to grow; but what was slow before a cut is none to wait.
        pressure = max(pressure, view.new.attained)
    # From 1 to 2 is a step of 100 %, of which nothing is known at so low a load.
    rise = min(_next_up(view, STEP) / max(view.limit, 1e-6) - 1, 0.1)
    foreseen = pressure * (1 + _elasticity(view) * rise)
    if foreseen <= EDGE:
        return None
    reached = replace(view.memory, edge_seen=True)
    detail = f"a step more would be at {percent(foreseen, digits=0)} of the target"
    return done(view, reached, Action.HOLD, Reason.AT_CAPACITY, detail=detail)


def known_bad(view: View) -> Step | None:
    """Where the next step is known to be bad, it is tried again only now and then."""
    memory, rules = view.memory, view.rules
    bad = view.fit.bad_from(rules.safe)
    if bad is None or curve.lower_edge(bad) > _next_up(view, STEP):
        return None
    waited = view.now - memory.changed_at
    if waited < memory.probe_wait * rules.window or memory.fresh_slow > rules.safe * memory.fresh:
        reached = replace(memory, edge_seen=True)
        left = memory.probe_wait * rules.window - waited
        when = (
            f"in {seconds_left(left)}"
            if left > 0
            else f"once at most {bound(rules.safe)} of its requests are slow"
        )
        return done(view, reached, Action.HOLD, Reason.AT_CAPACITY, detail=f"next try {when}")
    above = view.limit * 1.001
    forgetful = replace(
        memory,
        curve=curve.fade(view.cells, PROBE_KEEP, above=above),
        looks=(),
        edge_seen=True,
    )
    probing = replace(changed(view, _next_up(view, STEP), memory=forgetful), probed_at=view.now)
    return done(view, probing, Action.GROW, Reason.PROBE, total=memory.fresh, slow=memory.fresh_slow)


def grow(view: View) -> Step | None:
    memory, rules = view.memory, view.rules
    target = _next_up(view, _factor(view))
    grown = changed(view, target)
    if memory.probed_at and view.now - memory.probed_at >= rules.window:
        grown = replace(grown, probed_at=0.0, probe_wait=PROBE_WAIT)
    if memory.retry_at:
        grown = replace(grown, retry_at=0.0, retry_wait=1.0, look_slow=0.0)
    reason = Reason.CLEAN_SAMPLES if memory.fresh_slow <= 0 else Reason.LIMIT_REACHED_CLEAN
    if view.recovered or memory.retry_at > 0:
        reason = Reason.RECOVERED
    if target >= memory.former:
        grown = replace(grown, former=0.0)
    return done(view, grown, Action.GROW, reason, total=memory.fresh, slow=memory.fresh_slow)


def _factor(view: View) -> float:
    """How far to step: by how sure it is that all is well, and by how far the edge may be."""
    memory, rules, pressure = view.memory, view.rules, view.new.pressure
    if memory.fresh_slow <= 0:
        first = pressure is not None and pressure < FAR_BELOW and not any(view.fit.slows)
        factor = STEP_FIRST if first else STEP_QUICK
    elif wilson(memory.fresh_slow, memory.fresh, z=Z_EDGE).high <= 0.8 * rules.allowed:
        factor = STEP_QUICK
    else:
        return STEP
    if pressure is not None and pressure > 0:
        foreseen = 1 + (FORESIGHT / pressure - 1) / _elasticity(view)
        factor = min(factor, max(foreseen, STEP))
    bad = view.fit.bad_from(rules.safe)
    limit = max(view.limit, 1e-6)
    if bad is not None:
        factor = min(factor, max(math.sqrt(curve.lower_edge(bad) / limit), STEP))
    if memory.former > 0:
        factor = min(factor, max(FORMER_PART * memory.former / limit, STEP_CLEAN))
    return factor


def _elasticity(view: View) -> float:
    """By how many per cent latency rises where load rises by one, at the present load; at most 1 (in
    proportion)."""
    rows = [
        (curve.lower_edge(bucket), cell.seconds / cell.total, cell.total)
        for bucket, cell in view.cells.items()
        if cell.total > 0 and cell.seconds > 0
    ]
    weight = sum(total for _, _, total in rows)
    if weight < ENOUGH_FOR_SLOPE:
        return 1.0
    mean_load = sum(load * total for load, _, total in rows) / weight
    mean_seconds = sum(seconds * total for _, seconds, total in rows) / weight
    spread = sum(total * (load - mean_load) ** 2 for load, _, total in rows)
    if spread < 0.02 * weight * mean_load**2:
        return 1.0
    slope = (
        sum(total * (load - mean_load) * (seconds - mean_seconds) for load, seconds, total in rows) / spread
    )
    here = mean_seconds + slope * (view.limit - mean_load)
    return min(max(slope * view.limit / here, LEAST_ELASTICITY), 1.0) if here > 0 else 1.0


def _next_up(view: View, factor: float) -> float:
    """The limit a step further: at least one request more in the whole pool, for only whole ones count."""
    ready = view.new.ready
    whole = max(math.floor(view.limit * ready * factor + 1e-9), math.floor(view.limit * ready + 1e-9) + 1)
    return min(max(up(whole / ready), view.rules.minimum), view.rules.maximum)
