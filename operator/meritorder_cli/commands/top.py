"""`meritorder top`: many policies of a cluster at once."""

from pathlib import Path

import click

from meritorder_cli.commands.cluster import (
    KUBECONFIG,
    console_for_tables,
    namespace_option,
    output_option,
    print_json,
)


@click.command(short_help="Show all policies, live.")
@namespace_option("that of the kubeconfig")
@click.option("-A", "--all-namespaces", is_flag=True, help="Policies of all namespaces.")
@click.option(
    "--sort-by",
    type=click.Choice(["cost", "sla"]),
    default="cost",
    show_default=True,
    help="cost: the dearest first; sla: what misses its SLA first.",
)
@click.option("--once", is_flag=True, help="Print one table and end, as where there is no terminal.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.5),
    default=2.0,
    show_default=True,
    help="Seconds between looks.",
)
@KUBECONFIG
@output_option("the table, once")
def top(
    namespace: str | None,
    all_namespaces: bool,
    sort_by: str,
    once: bool,
    interval: float,
    kubeconfig: Path | None,
    output: str,
) -> None:
    """Show what each policy costs and whether it meets its SLA, until Ctrl-C."""
    import asyncio
    import time

    from rich.live import Live

    from meritorder_cli.cluster import asked, listed
    from meritorder_cli.top import Order, figures
    from meritorder_cli.top import top as table
    from meritorder_operator.cluster import Cluster

    order = Order(sort_by)
    console = console_for_tables()

    async def show(cluster: Cluster) -> None:
        found = await listed(cluster, namespace, everywhere=all_namespaces)
        if output == "json":
            print_json(figures(found, order))
            return
        if once or not console.is_terminal:
            console.print(table(found, order, namespaces=all_namespaces, now=time.time()))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                shown = table(found, order, namespaces=all_namespaces, now=time.time())
                live.update(shown, refresh=True)
                await asyncio.sleep(interval)
                found = await listed(cluster, namespace, everywhere=all_namespaces)

    try:
        asked(kubeconfig, show)
    except KeyboardInterrupt:
        return
