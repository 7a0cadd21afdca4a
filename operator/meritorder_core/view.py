"""What the rules of one limit look at, what they answer, and the words they share.

All times are in windows of the SLA: a policy with a window of 10 s has a controller six times as fast as one
with 60 s.
"""

import math
from dataclasses import dataclass, replace

from meritorder_api.reasons import Action, Reason
from meritorder_core import curve
from meritorder_core.evidence import Counted, Evidence, Rules, counted, effective
from meritorder_core.learned import Curve, LimitMemory, Look

ENOUGH_CLEAN = 12
"""Samples without a slow one that permit a step. At 5 % slow 12 clean ones come up by luck every other time,
but each step asks anew, and what luck let through the next interval's cut takes back."""
SETTLE_WINDOWS = 25 / 60
"""What finishes so soon after a deep cut was admitted before it."""
RECENT_WINDOWS = 20 / 60
"""What is looked at to see a sudden change."""
LATENCIES = 1.5
"""Requests take time to show what a limit does to them: a step waits for so many mean latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one pass does to one limit, and the numbers to say why."""

    memory: LimitMemory
    action: Action
    reason: Reason
    before: float
    total: float = 0.0
    slow: float = 0.0
    detail: str = ""
    waited: float = 0.0
    """Seconds that a pool was drained before this look at it."""

    @property
    def after(self) -> float:
        return self.memory.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the rules look at: the memory with the new evidence in it, and the fitted curve."""

    memory: LimitMemory
    new: Evidence
    rules: Rules
    now: float
    cells: Curve
    """The curve with the last window's evidence in it."""
    fit: curve.Fit
    recents: tuple[Look, ...]
    """The last third of a window, but nothing from before the last cut: what led to a cut must not lead to
    the next."""
    recent: Counted
    """The same, summed."""
    recovered: bool = False

    @property
    def limit(self) -> float:
        """The limit as it acts: whole requests in the whole pool."""
        return effective(self.memory.limit, self.new.ready)

    @property
    def settle(self) -> float:
        """Seconds until what was admitted before a cut is out."""
        window = self.rules.window
        return max(SETTLE_WINDOWS * window, min(LATENCIES * self.new.mean_seconds, 2 * window))

    @property
    def older(self) -> list[Look]:
        """The looks that are not recent."""
        return [look for look in self.memory.looks if look not in self.recents]


def view_of(memory: LimitMemory, new: Evidence, rules: Rules, now: float) -> View:
    """Look at a memory that has the new evidence in it."""
    since = min(new.at - RECENT_WINDOWS * rules.window, new.at - new.span / 2)
    recents = tuple(
        look for look in memory.looks if look.at > since and look.at - look.span / 2 >= memory.learn_after
    )
    cells = curve.add(memory.curve, memory.looks)
    return View(
        memory=memory,
        new=new,
        rules=rules,
        now=now,
        cells=cells,
        fit=curve.fit(cells),
        recents=recents,
        recent=counted(recents),
    )


def changed(
    view: View, limit: float, *, memory: LimitMemory | None = None, fresh_from: float | None = None
) -> LimitMemory:
    """The memory with another limit: counting begins with what is admitted under it."""
    begin = view.now + view.new.mean_seconds if fresh_from is None else fresh_from
    return replace(
        memory or view.memory, limit=limit, changed_at=view.now, fresh_from=begin, fresh=0.0, fresh_slow=0.0
    )


def hold(view: View, reason: Reason, detail: str = "") -> Step:
    return done(view, view.memory, Action.HOLD, reason, detail=detail)


def done(
    view: View,
    memory: LimitMemory,
    action: Action,
    reason: Reason,
    *,
    total: float | None = None,
    slow: float | None = None,
    detail: str = "",
) -> Step:
    return Step(
        memory=memory,
        action=action,
        reason=reason,
        before=view.memory.limit,
        total=view.recent.total if total is None else total,
        slow=view.recent.slow if slow is None else slow,
        detail=detail,
    )


def down(limit: float) -> float:
    return math.floor(limit * 100 + 1e-6) / 100


def up(limit: float) -> float:
    return math.ceil(limit * 100 - 1e-6) / 100
