"""When a pool has become better: drop the old evidence that what is admitted now contradicts.

Three signs: a drained pool is clean on its trial; the slow share is far below what the curve said at this
load; requests take much less time than before at the same load, which shows long before a limit under the
edge shows slow ones less.
"""

from dataclasses import replace

from meritorder_core import curve
from meritorder_core.evidence import counted
from meritorder_core.growing import PROBE_WAIT
from meritorder_core.stats import Z_CONTRADICTION, wilson
from meritorder_core.view import ENOUGH_CLEAN, View

PACE_FASTER = 0.75
"""Requests at the same load took less than this part of the time: the pool has become faster."""
ENOUGH_PER_TOKEN = 60.0
ENOUGH_PER_REQUEST = 200.0
"""Seconds per request vary with its length; per token they do not, so that fewer are enough."""
MORE_TOKENS = 1.25
"""Tokens per request count up to so many times as many as before: by chance 60 requests seldom have more, and
more tokens alone never look like a pool that is faster by `PACE_FASTER`."""


def forget_what_recovery_disproves(view: View) -> View:
    """Drop the old evidence where what is admitted now contradicts it for the better at the same load."""
    memory, rules = view.memory, view.rules
    if memory.fresh < ENOUGH_CLEAN or view.fit.bad_from(rules.safe) is None or memory.limit <= 0:
        return view
    fresh = [look for look in memory.looks if look.at - look.span / 2 >= memory.fresh_from]
    on_trial_and_clean = memory.retry_at > 0 and memory.fresh_slow <= 0
    if not (on_trial_and_clean or _share_fell(view) or _pace_rose(view)):
        return view
    clean = replace(
        memory, curve={}, looks=tuple(fresh), probe_wait=PROBE_WAIT, probed_at=0.0, edge_seen=False
    )
    cells = curve.add({}, fresh)
    return replace(view, memory=clean, cells=cells, fit=curve.fit(cells), recovered=True)


def _share_fell(view: View) -> bool:
    """The curve said that this load is far too much, and that is beyond chance no longer true."""
    memory = view.memory
    old_looks = [look for look in memory.looks if look.at - look.span / 2 < memory.fresh_from]
    load = counted([look for look in memory.looks if look not in old_looks]).load
    if load <= 0:
        return False
    least, here = 2 * view.rules.allowed, curve.bucket_of(load)
    if not any(cell[1] > least * cell[0] for bucket, cell in view.cells.items() if bucket <= here):
        return False  # no bucket says so, so no fit can
    said = curve.fit(curve.add(memory.curve, old_looks)).share_at(load)
    if said is None or said <= least:
        return False
    return wilson(memory.fresh_slow, memory.fresh, z=Z_CONTRADICTION).high < said


def _pace_rose(view: View) -> bool:
    """Over a window, requests were faster by a quarter than before at the same load: the edge has moved."""
    memory, rules = view.memory, view.rules
    if view.now - memory.changed_at < rules.window or memory.fresh_slow > rules.safe * memory.fresh:
        return False
    now = counted(memory.looks)
    before = curve.near(memory.curve, (), now.load, reach=3)
    if now.tokens > 0 and before.tokens > 0:
        # More tokens per request may mean that more answers tell them, or that they are longer, which makes
        # the first token's wait a smaller part of their time: neither is a faster pool.
        tokens = min(now.tokens, MORE_TOKENS * before.tokens / max(before.total, 1e-9) * now.total)
        enough, ratio = (
            ENOUGH_PER_TOKEN,
            (now.seconds / max(tokens, 1e-9)) / max(before.seconds / before.tokens, 1e-9),
        )
    else:
        enough, ratio = (
            ENOUGH_PER_REQUEST,
            (now.seconds / max(now.total, 1e-9)) / max(before.seconds / max(before.total, 1e-9), 1e-9),
        )
    return now.total >= enough and before.total >= enough / 2 and ratio < PACE_FASTER
