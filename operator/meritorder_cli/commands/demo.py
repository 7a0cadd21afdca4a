"""`meritorder demo`: `run` on the built-in example, with traffic."""

from pathlib import Path

import click

from meritorder_cli.commands.options import shared


@click.command(short_help="Watch traffic move between simulated pools.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=10),
    default=90,
    show_default=True,
    metavar="N",
    envvar="MERITORDER_SECONDS",
    show_envvar=True,
    help="Length of the demo; what happens in it is stretched or squeezed.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    envvar="MERITORDER_SEED",
    show_envvar=True,
    help="Seed of the traffic.",
)
@shared
def demo(
    seconds: float, seed: int, listen: str, no_tui: bool, report: Path | None, json_path: Path | None
) -> int:
    """Watch traffic move between three simulated pools (L40S, A100, H100).

    Everything but the GPUs is real: Envoy, the router, the decision. There is a burst, and a pool that slows
    down and recovers.
    """
    from meritorder_cli.demo import demonstrate
    from meritorder_cli.standalone import Output

    return demonstrate(
        seconds,
        seed,
        listen,
        Output(live=not no_tui, report=report or Path("report-demo.html"), json=json_path),
    )
