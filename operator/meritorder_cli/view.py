"""The live terminal view: what a run looks like at one moment, drawn with rich from plain values.

It fits 80 columns and is at its best in 100 x 30. Pools stand in merit order; bars say at a glance how near
a pool is to the target (the upright mark), how full it is, and what share it carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from meritorder_api.reasons import Action
from meritorder_cli.document import DecisionRecord, Event, PoolTick, Tick
from meritorder_cli.report.charts import clock
from meritorder_cli.report.words import DASH, dollars, milliseconds, percent, whole_percent

COLOURS = ("green", "yellow", "magenta", "blue", "red", "cyan", "bright_magenta", "white")
_STATES = {"Meets": "green", "Misses": "bold red", "Unsure": "yellow", "Idle": "dim", "Unknown": "yellow"}
ACTIONS = {
    "Cut": "red",
    "Drain": "red",
    "Grow": "green",
    "Retry": "cyan",
    "Start": "cyan",
    "Reorder": "yellow",
}
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that is on the screen."""

    policy: str
    promise: str
    percentile: int
    target_milliseconds: float
    window_seconds: int
    fallback_pool: str
    listen: str
    elapsed: float
    lasts: float | None
    """Seconds that the run will take; None: until it is stopped."""
    accelerators: dict[str, str]
    tick: Tick | None
    attained: Sequence[float | None]
    """The SLA's percentile in ms at the last ticks, oldest first."""
    decisions: Sequence[DecisionRecord]
    events: Sequence[Event]
    note: str = ""
    source: str = ""


def render(view: View, *, width: int, height: int) -> RenderableType:
    """Draw the view for a terminal of that size."""
    blocks: list[RenderableType] = [_header(view, width), _now(view, width)]
    if view.tick is None:
        blocks.append(Text("\nwaiting for the router to listen …", style="dim"))
        return Group(*blocks)
    gap = [Text("")] if height >= 26 else []
    blocks += [Text(""), _pools(view, view.tick, width), *gap, _totals(view, view.tick), *gap]
    events = list(view.events)[-3:]
    used = 3 + 2 + len(view.tick.pools) + 2 + 2 * len(gap) + (len(events) + 1 if events else 0) + 1
    if events:
        blocks += [_rule("events"), *(_event(event) for event in events)]
    # One line is left for the cursor.
    blocks += [_rule("decisions"), _decisions(view.decisions, width, max(height - used - 1, 2))]
    return Group(*blocks)


def bar(fraction: float | None, width: int, style: str, *, mark: float | None = None) -> Text:
    """A horizontal bar of `width` cells, exact to half a cell; `mark` sets a thin line at that fraction."""
    halves = round(min(max(fraction or 0.0, 0.0), 1.0) * width * 2)
    if fraction and not halves:
        halves = 1
    at = None if mark is None else min(int(mark * width), width - 1)
    text = Text(no_wrap=True)
    for cell in range(width):
        full = halves >= 2 * cell + 2
        half = halves == 2 * cell + 1
        if cell == at:
            text.append("┃" if full else "│", style if full else "grey70")
        else:
            text.append("╸" if half else "━", style if full or half else "grey23")
    return text


def spark(values: Sequence[float | None], top: float, over: float) -> Text:
    """A line of small columns, red where `over` is passed."""
    text = Text(no_wrap=True)
    for value in values:
        if value is None:
            text.append("·", "grey37")
            continue
        step = min(int(value / top * len(_SPARKS)), len(_SPARKS) - 1)
        text.append(_SPARKS[step], "red" if value > over else "green")
    return text


def _header(view: View, width: int) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column()
    grid.add_column(justify="right")
    title = Text.assemble(("Meritorder", "bold"), "  ", (view.policy, "bold cyan"), "  ", view.promise)
    lasts = f" / {clock(view.lasts)}" if view.lasts is not None else ""
    grid.add_row(title, Text(f"{clock(view.elapsed)}{lasts}", style="bold"))
    where = Text(view.listen, style="dim")
    window = f"window {view.window_seconds} s"
    grid.add_row(
        where,
        Text(f"{window}{', ' + view.note if view.note else ''}", style="yellow" if view.note else "dim"),
    )
    return grid


def _now(view: View, width: int) -> Text:
    tick = view.tick
    text = Text(no_wrap=True, overflow="ellipsis")
    if tick is None:
        return text
    attained = tick.attained_milliseconds
    style = (
        "dim" if attained is None else "bold green" if attained <= view.target_milliseconds else "bold red"
    )
    text.append(f"p{view.percentile} now ", "")
    text.append(f"{milliseconds(attained):>7}", style)
    text.append(" ")
    shown = list(view.attained)[-(20 if width >= 96 else 12) :]
    text.append_text(spark(shown, view.target_milliseconds * 1.6, view.target_milliseconds))
    met = {True: ("SLA met", "green"), False: ("SLA missed", "bold red"), None: ("SLA not known yet", "dim")}[
        tick.sla_met
    ]
    text.append("  ")
    text.append(*met)
    text.append(f"  slow {percent(tick.slow_share, 1)}")
    text.append(f"  {tick.requests_per_second:.1f} requests/s")
    return text


def _pools(view: View, tick: Tick, width: int) -> Table:
    wide = width >= 96
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=False, header_style="dim")
    table.add_column("pool", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column(f"p{view.percentile}", justify="right", no_wrap=True)
    table.add_column("to target" if wide else "target", no_wrap=True)
    table.add_column("in/limit", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("repl", justify="right", no_wrap=True)
    table.add_column("$/h", justify="right", no_wrap=True)
    if wide:
        table.add_column("$/1,000", justify="right", no_wrap=True)
    for index, pool in enumerate(tick.pools):
        table.add_row(*_pool(view, pool, COLOURS[index % len(COLOURS)], wide, len(tick.pools) > 1))
    return table


def _pool(view: View, pool: PoolTick, colour: str, wide: bool, several: bool) -> list[RenderableType]:
    name = Text(pool.name[:18], style=f"bold {colour}")
    accelerator = view.accelerators.get(pool.name)
    if wide and pool.name == view.fallback_pool and several:
        name.append(" fallback", "dim")
    elif wide and accelerator and accelerator.lower() != pool.name.lower():
        name.append(f" {accelerator[:8]}", "dim")
    near = (
        None if pool.attained_milliseconds is None else pool.attained_milliseconds / view.target_milliseconds
    )
    near_style = "grey50" if near is None else "green" if near <= 1 else "red"
    target = bar(None if near is None else near / 1.5, 9 if wide else 6, near_style, mark=1 / 1.5)
    limit = "∞" if pool.limit is None else str(pool.limit)
    full = None if not pool.limit else pool.in_flight / pool.limit
    cells: list[RenderableType] = [
        name,
        Text(pool.state, style=_STATES.get(pool.state, "")),
        Text(milliseconds(pool.attained_milliseconds), style="" if near is None or near <= 1 else "bold red"),
        target,
        f"{pool.in_flight:.0f} / {limit}",
        bar(full, 10 if wide else 6, colour if full is None or full <= 1 else "red"),
        whole_percent(pool.share_percent),
        bar(pool.share, 10 if wide else 7, colour),
        DASH if pool.ready is None else str(pool.ready),
        DASH if pool.cost_per_hour is None else f"{pool.cost_per_hour:.2f}",
    ]
    if wide:
        cells.append(DASH if pool.cost_per_thousand is None else f"{pool.cost_per_thousand:.2f}")
    return cells


def _totals(view: View, tick: Tick) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    if tick.reference_per_hour is not None and tick.reference_on_fallback_per_hour:
        saved = 1 - tick.reference_per_hour / tick.reference_on_fallback_per_hour
        text.append("tokens ")
        text.append(f"{dollars(tick.reference_per_hour)}/h", "bold")
        text.append(f" for {dollars(tick.reference_on_fallback_per_hour)} all on {view.fallback_pool}: ")
        text.append(f"saved {percent(saved)}", "bold green" if saved > 0 else "bold red")
        text.append("\n")
    text.append("bill ")
    text.append(f"{dollars(tick.cost_per_hour)}/h", "bold")
    if tick.needed_per_hour is not None:
        at_most = "at most " if tick.needed_is_bound else ""
        text.append(f" ready, {at_most}{dollars(tick.needed_per_hour)} needed")
    if tick.baseline_per_hour is not None:
        at_most = "at most " if tick.baseline_is_bound else ""
        text.append(f"; all on {view.fallback_pool} {at_most}{dollars(tick.baseline_per_hour)}")
        if tick.reference_per_hour is None and tick.cost_per_hour is not None and tick.baseline_per_hour:
            saved = 1 - tick.cost_per_hour / tick.baseline_per_hour
            text.append(f": saved {percent(saved)}", "bold green" if saved > 0 else "bold red")
    return text


def _rule(title: str) -> Rule:
    return Rule(Text(title, style="dim"), align="left", style="grey37")


def _event(event: Event) -> Text:
    return Text.assemble(
        (f"{clock(event.at):>5}  ", "dim"), (event.message, "bold yellow"), no_wrap=True, overflow="ellipsis"
    )


def _decisions(records: Sequence[DecisionRecord], width: int, lines: int) -> RenderableType:
    """The last decision, then those that changed something, newest first, as many as fit."""
    turns = [record for record in records[:-1] if record.action != Action.HOLD]
    chosen = [*records[-1:], *reversed(turns)]
    room = max(width - 14, 20)
    shown: list[RenderableType] = []
    for record in chosen:
        rows = min(-(-len(record.message) // (room - 4)), 2)
        if lines < rows:
            break
        lines -= rows
        style = ACTIONS.get(record.action, "dim")
        grid = Table.grid()
        grid.add_column(width=14)
        grid.add_column(width=room)
        most = 2 * room - 12
        message = record.message if len(record.message) <= most else record.message[:most] + "…"
        grid.add_row(
            Text.assemble((f"{clock(record.at):>5}  ", "dim"), (record.action, style)),
            Text(message, style="dim" if record.action == Action.HOLD else ""),
        )
        shown.append(grid)
    return Group(*shown) if shown else Text("none yet", style="dim")
