"""Rules that take from a pool: cut, drain, and look again.

How deep a cut goes follows how bad it is. A pool that is slow at a load where it was well before has slowed
down: its old evidence is thrown away and the cut is deep. One that is slow at a load where it never was
before is past its edge: it goes back to where it was well. A drained pool is looked at again with its
minimum, ever more seldom.
"""

import math
from dataclasses import replace

from meritorder_api.reasons import Action, Reason
from meritorder_core import curve
from meritorder_core.evidence import Counted, Rules, counted
from meritorder_core.sentences import seconds_left
from meritorder_core.stats import Z_CONTRADICTION, wilson
from meritorder_core.view import ENOUGH_CLEAN, Step, View, changed, done, down, hold

Z_EDGE = 1.28
"""For cutting back to the edge of the curve: cheap to undo, so one in ten is by chance."""
CUT_PART = 0.65
"""Part of the allowed slow share past which a limit is cut; between the safe part and this one it rests."""
MILD_CUT = 1.1
"""A mild excess is cut by no more than this: where the curve is flat, chance decides where it seems to rise.
"""
MILD = 0.92
MODERATE = 0.85
FAR_OVER = 0.9
"""Back from where the pool was well, if it was far over the edge: what waits in it must be worked off."""
JUST_UNDER = 0.9
JUST_OVER = 1.15
"""A percentile of up to this part of the target is the edge of capacity, not a slow-down, whatever the share
is."""
CUTS = ((0.1, MILD), (0.3, 0.5), (0.7, 0.2), (1.0, 1 / 12))
"""How deep to cut: by the slow share in excess of the allowed one, up to -> times."""
SUDDEN = CUTS[1][0]
"""One interval alone is believed if its excess is larger than this."""
RESET_KEEP = 0.02
"""What is left of evidence that was contradicted."""
STALE_KEEP = 0.1
"""What is left, at the present load and above, of evidence that what is recent contradicts mildly."""
PROBE_FAILED_WITHIN = 1.5
PROBE_WAIT_MOST = 30.0
RETRY_SOON = 2.0
RETRY_LATE = 30.0
LOOKS_PART = 0.2
"""Part of the allowed slow share that looks at drained pools may use."""


def drained(view: View) -> Step | None:
    """A drained pool waits, and is then tried at its minimum."""
    memory = view.memory
    if memory.limit > 0:
        return None
    if view.now < memory.retry_at:
        return hold(
            view, Reason.MISSES_AT_MINIMUM, f"tried again in {seconds_left(memory.retry_at - view.now)}"
        )
    tried = changed(view, view.rules.minimum, fresh_from=view.now)
    return replace(
        done(view, tried, Action.RETRY, Reason.RETRY_DUE), waited=round(view.now - memory.changed_at)
    )


def stalled(view: View) -> Step | None:
    """A pool that completes nothing is as slow as can be."""
    if not view.new.stalled or view.now < view.memory.learn_after:
        return None
    if view.memory.limit <= view.rules.minimum and not view.rules.never_drained:
        return drain(view, Reason.STALLED, max(view.new.total, 1.0), max(view.new.total, 1.0))
    return cut(view, view.limit * CUTS[-1][1], Reason.STALLED, view.recent.total, view.recent.slow)


def settling(view: View) -> Step | None:
    """After a cut, what was admitted before it must flush out first."""
    if view.now >= view.memory.learn_after:
        return None
    return hold(view, Reason.SETTLING, f"for {seconds_left(view.memory.learn_after - view.now)} more")


def misses_at_minimum(view: View) -> Step | None:
    """A pool that misses at its minimum gets nothing."""
    memory, rules = view.memory, view.rules
    if memory.limit > rules.minimum or rules.never_drained:
        return None
    on_trial = memory.retry_at > 0
    least = 2 if on_trial else 3
    since = [look for look in memory.looks if look.at - look.span / 2 >= memory.fresh_from]
    window = counted(since)
    for total, slow in ((memory.fresh, memory.fresh_slow), (window.total, window.slow)):
        if slow >= least and wilson(slow, total).low > rules.allowed:
            return drain(view, Reason.MISSES_AT_MINIMUM, total, slow)
    return None


def over_the_edge(view: View) -> Step | None:
    """Cut when the pool slowed down, or the limit is past what the curve allows; by the deeper of the two."""
    memory, rules = view.memory, view.rules
    if memory.limit <= rules.minimum:
        return None
    slowed = _slowed_to(view)
    edge = _edge(view)
    if slowed is not None:
        target = slowed if edge is None else min(slowed, edge)
        return cut(
            view, target, _cause(view, Reason.SLOWED_DOWN), view.recent.total, view.recent.slow, forget=True
        )
    if edge is not None:
        return cut(view, edge, _cause(view, Reason.SLA_MISSED), view.recent.total, view.recent.slow)
    if _slow_lately(view):
        cells = curve.fade(curve.add(memory.curve, view.older), STALE_KEEP, above=view.recent.load)
        fresher = replace(view, memory=replace(memory, curve=cells, looks=view.recents))
        back = view.limit / curve.BUCKET
        return cut(fresher, back, _cause(view, Reason.SLA_MISSED), view.recent.total, view.recent.slow)
    return None


def _cause(view: View, otherwise: Reason) -> Reason:
    """Slow by count while the percentile is well: these are errors."""
    pressure = view.new.pressure
    return Reason.ERRORS if pressure is not None and pressure < 0.7 else otherwise


def _slowed_to(view: View) -> float | None:
    """Where to cut if what is recent contradicts, at the same load, what the curve knew; None: not so."""
    if view.new.total <= 0 or not view.recents:
        return None
    last = counted(view.recents[-1:])
    targets = [_contradicted(view, view.recent, len(view.recents))]
    if _excess(view, last) > SUDDEN:
        targets.append(_contradicted(view, last, 1))
    return min((target for target in targets if target is not None), default=None)


def _contradicted(view: View, seen: Counted, looks: int) -> float | None:
    rules = view.rules
    depth = _depth(view, seen)
    if seen.slow < 3 or depth >= MODERATE:
        return None
    worth = _independent(seen.total, seen.load)
    error = view.new.slow_error / view.new.total * worth
    low = wilson(seen.share * worth, worth, z=Z_CONTRADICTION, slow_error=error).low
    if low <= rules.allowed:
        return None
    before = view.memory.looks[: len(view.memory.looks) - looks]
    old = curve.fit(curve.add(view.memory.curve, before))
    if old.evidence_from(seen.load / curve.BUCKET) < ENOUGH_CLEAN:
        return None  # never seen at such a load: the edge, not a slow-down
    expected = old.share_at(seen.load)
    if expected is not None and low <= expected:
        return None
    return min(view.limit, seen.load) * depth


def _independent(total: float, load: float) -> float:
    """What so many requests are worth as independent ones: those in one batch are slow together."""
    return total / max(math.sqrt(load), 1.0)


def _edge(view: View) -> float | None:
    """Where the curve puts the edge, if the limit is surely beyond it."""
    rules = view.rules
    if view.recent.slow < 2 or view.recent.share <= rules.safe:
        return None  # it is so no longer
    if not view.fit.surely_bad_at(view.limit, CUT_PART * rules.allowed, Z_EDGE):
        return None
    bad = view.fit.bad_from(rules.safe)
    if bad is None:
        return None
    good = view.fit.good_below(bad, rules.safe, ENOUGH_CLEAN)
    severe = _depth(view, view.recent)
    if good is None:
        return min(view.limit, curve.lower_edge(bad)) * min(severe, 1 / MILD_CUT)
    target = min(view.limit / curve.BUCKET, curve.lower_edge(bad), good * curve.BUCKET)
    if severe >= MODERATE:
        return max(target, view.limit / MILD_CUT if severe >= MILD else view.limit * MODERATE)
    return target * FAR_OVER


def _slow_lately(view: View) -> bool:
    """Whether what is recent surely misses the SLA, however well this load was before.

    A bucket of the curve may hold both sides of the edge where requests are all alike: much that was well at
    its lower end must not hide that its upper end is not.
    """
    recent, rules = view.recent, view.rules
    worth = _independent(recent.total, recent.load)
    return recent.slow >= 3 and wilson(recent.share * worth, worth).low > rules.allowed


def _excess(view: View, seen: Counted) -> float:
    """The slow share beyond the allowed one, as a part of all that could be slow."""
    allowed = view.rules.allowed
    return (seen.share - allowed) / max(1 - allowed, 1e-9)


def _depth(view: View, seen: Counted) -> float:
    """How deep to cut, by how bad it is."""
    excess, pressure = _excess(view, seen), view.new.pressure
    if pressure is not None and pressure <= JUST_OVER:
        if excess <= SUDDEN:
            return MILD
        if pressure >= JUST_UNDER:
            return MODERATE  # requests all alike pass the target all at once
    return next((factor for most, factor in CUTS if excess <= most), CUTS[-1][1])


def cut(
    view: View, target: float, reason: Reason, total: float, slow: float, *, forget: bool = False
) -> Step:
    memory, rules = view.memory, view.rules
    limit = down(min(max(target, rules.minimum), memory.limit))
    deep = limit < 0.8 * memory.limit
    learn_after = view.now + (view.settle if deep else view.new.mean_seconds)
    moved = replace(
        changed(view, limit, fresh_from=learn_after),
        learn_after=learn_after,
        edge_seen=True,
        # A deep cut has somewhere to come back to; a small one has found where the edge is now.
        former=max(memory.former, memory.limit) if deep else 0.0,
    )
    if memory.probed_at and view.now - memory.probed_at < PROBE_FAILED_WITHIN * rules.window:
        moved = replace(moved, probe_wait=min(2 * memory.probe_wait, PROBE_WAIT_MOST), probed_at=0.0)
    if forget:
        cells = curve.fade(curve.add(memory.curve, view.older), RESET_KEEP)
        # Errors say nothing of load: kept, they would forbid a low one to a pool that was restarted.
        looks = () if reason is Reason.ERRORS else view.recents
        moved = replace(moved, curve=cells, looks=looks, met_load=min(memory.met_load, limit))
    return done(view, moved, Action.CUT, reason, total=total, slow=slow)


def drain(view: View, reason: Reason, total: float, slow: float) -> Step:
    memory = view.memory
    failed_trial = memory.retry_at > 0
    wait = min(2 * memory.retry_wait, _longest_wait(view.rules, slow)) if failed_trial else 1.0
    emptied = replace(
        changed(view, 0.0, fresh_from=view.now),
        retry_wait=wait,
        retry_at=view.now + wait * view.rules.window,
        look_slow=slow if failed_trial else memory.look_slow,
        former=max(memory.former, memory.limit),
        edge_seen=True,
    )
    again = seconds_left(wait * view.rules.window)
    return done(view, emptied, Action.DRAIN, reason, total=total, slow=slow, detail=again)


def _longest_wait(rules: Rules, look_slow: float) -> float:
    """Windows between looks at a drained pool: 2, or as many as keep them under a fifth of the allowed slow
    share."""
    bearable = rules.policy_rate * rules.window * rules.allowed * LOOKS_PART
    return min(max(look_slow / bearable, RETRY_SOON), RETRY_LATE) if bearable > 0 else RETRY_LATE
