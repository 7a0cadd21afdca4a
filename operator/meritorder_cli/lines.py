"""What a run says without a terminal view: one line per decision, and a line per event."""

from collections.abc import Sequence

from meritorder_cli.document import Event, Tick
from meritorder_cli.report.charts import clock
from meritorder_cli.report.words import milliseconds, whole_percent
from meritorder_core.outcome import Decision


def decision_line(decision: Decision, tick: Tick, percentile: int) -> str:
    """Time, what is measured, where traffic goes, and what was decided and why."""
    shares = "  ".join(f"{pool.name} {whole_percent(pool.share_percent)}" for pool in tick.pools)
    return (
        f"{clock(tick.at):>5}  p{percentile} {milliseconds(tick.attained_milliseconds)}  "
        f"{tick.requests_per_second:.1f}/s  "
        f"{shares}  {decision.action.value} {decision.reason.value}: {decision.message}"
    )


def event_lines(events: Sequence[Event]) -> list[str]:
    """Events, one line each."""
    return [f"{clock(event.at):>5}  * {event.message}" for event in events]
