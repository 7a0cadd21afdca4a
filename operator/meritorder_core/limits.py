"""One limit, learned: the rules that move it, in the order in which they are asked.

`step` adds an interval's evidence to the memory of a limit and then asks a list of rules; the first that has
an answer decides. Rules that cut come first, then those that say why a limit may not grow, growth is last. So
doubt never raises a limit, and the list reads as the policy.
"""

from collections.abc import Callable
from dataclasses import replace

from meritorder_api.reasons import Action, Reason
from meritorder_core import curve
from meritorder_core.cutting import drained, misses_at_minimum, over_the_edge, settling, stalled
from meritorder_core.evidence import Evidence, Rules, fold
from meritorder_core.growing import (
    at_maximum,
    at_the_target,
    grow,
    idle,
    known_bad,
    not_limit_bound,
    shut_out,
    too_few,
    too_soon,
)
from meritorder_core.learned import LimitMemory
from meritorder_core.recovering import forget_what_recovery_disproves
from meritorder_core.view import ENOUGH_CLEAN, Step, View, done, down, hold, view_of

Rule = Callable[[View], Step | None]


def step(memory: LimitMemory, new: Evidence, rules: Rules, now: float) -> Step:
    """Learn from one interval and move the limit, or say why not."""
    before = memory.limit
    view = view_of(_bounded(fold(memory, new, rules), rules), new, rules, now)
    if rules.enforced:
        view = forget_what_recovery_disproves(view)
    for rule in ENFORCED if rules.enforced else OBSERVED:
        result = rule(view)
        if result is not None:
            return result if result.before == before else replace(result, before=before)
    return hold(view, Reason.WITHIN_MARGIN)


def _bounded(memory: LimitMemory, rules: Rules) -> LimitMemory:
    if memory.limit <= 0 and rules.enforced:
        return memory
    limit = min(max(memory.limit, rules.minimum), rules.maximum)
    return memory if limit == memory.limit else replace(memory, limit=limit)


def _observed(view: View) -> Step | None:
    """Say what was seen: the edge where there is evidence of one, else the largest load that met the SLA."""
    memory, rules = view.memory, view.rules
    bad = view.fit.bad_from(rules.safe)
    good = None if bad is None else view.fit.good_below(bad, rules.safe, ENOUGH_CLEAN)
    if bad is not None and good is not None:
        limit, edge = min(curve.lower_edge(bad), max(good * curve.BUCKET, memory.met_load)), True
    elif bad is not None:
        limit, edge = min(curve.lower_edge(bad), memory.met_load), False
    else:
        limit, edge = memory.met_load, memory.met_load >= 0.9 * rules.maximum
    limit = down(min(max(limit, rules.minimum), rules.maximum))
    calm = abs(limit - memory.limit) <= 0.05 * memory.limit
    memory = replace(memory, limit=memory.limit if calm else limit, edge_seen=edge)
    return done(view, memory, Action.HOLD, Reason.IDLE if view.new.total <= 0 else Reason.WITHIN_MARGIN)


ENFORCED: tuple[Rule, ...] = (
    drained,
    stalled,
    settling,
    misses_at_minimum,
    over_the_edge,
    shut_out,
    idle,
    at_maximum,
    not_limit_bound,
    too_few,
    too_soon,
    at_the_target,
    known_bad,
    grow,
)
OBSERVED: tuple[Rule, ...] = (_observed,)
