"""The summary at the end of a run, as a terminal table, from the document alone."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meritorder_cli.document import Document
from meritorder_cli.report.words import (
    contender,
    count,
    dollars,
    limit,
    percent,
    seconds,
    shares,
    target_seconds,
    token_saving,
    verdict,
    whole_percent,
    windows,
)
from meritorder_cli.view import COLOURS


def summarize(document: Document) -> RenderableType:
    """The run in one screen."""
    figures = contender(document)
    parts = shares(document)
    prices = {pool.name: pool for pool in document.pools}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("pool")
    for name in (
        "requests",
        "share",
        f"p{document.sla['percentile']}",
        "limit/replica",
        "replicas",
        "$/h each",
    ):
        table.add_column(name, justify="right")
    for index, pool in enumerate(figures.pools):
        facts = prices.get(pool.name)
        price = None if facts is None else facts.price_per_replica_hour
        enforced = " (not enforced)" if pool.name == document.fallback_pool and len(figures.pools) > 1 else ""
        table.add_row(
            Text(pool.name, style=f"bold {COLOURS[index % len(COLOURS)]}"),
            count(pool.requests),
            whole_percent(parts[pool.name]),
            seconds(pool.attained_seconds),
            f"{limit(pool.final_limit_per_replica)}{enforced}",
            count(None if facts is None else facts.replicas),
            dollars(price),
        )
    lines: list[RenderableType] = [Text(verdict(document), style="bold"), Text(""), table, Text("")]
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="dim")
    rows.add_column()
    requests = figures.requests
    rows.add_row(
        "requests",
        f"{count(requests.total)}, {count(requests.slow)} slow, {count(requests.failed)} failed; "
        f"{count(figures.warmup.requests)} of the warm-up left out",
    )
    rows.add_row(
        f"p{document.sla['percentile']}",
        f"{seconds(figures.attained_seconds)}; target {seconds(target_seconds(document))}, "
        f"{windows(document)}",
    )
    saving = token_saving(document)
    if saving is not None:
        rows.add_row(
            "tokens",
            f"{dollars(figures.reference_cost)} at the pools' reference prices; all on "
            f"{document.fallback_pool} "
            f"{dollars(figures.reference_cost_on_fallback)}: saved {percent(saving)}",
        )
    if figures.bill is not None:
        needed = (
            f"; what was needed {dollars(figures.bill_needed)}" if figures.bill_needed is not None else ""
        )
        rows.add_row("bill", f"{dollars(figures.bill)} for what was ready{needed}")
    if document.client is not None:
        client = document.client
        rows.add_row(
            "clients",
            f"counted for themselves {count(client.requests)}, {count(client.slow)} slow, "
            f"{count(client.failed)} failed, "
            f"p{document.sla['percentile']} {seconds(client.attained_seconds)}",
        )
    lines.append(rows)
    return Group(*lines)
