"""`meritorder run`: the whole of it in one process, without a cluster."""

from pathlib import Path

import click

from meritorder_cli.commands.options import shared


@click.command(short_help="Serve a policy here, without Kubernetes.")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="MERITORDER_FILE",
    show_envvar=True,
    help="The policy, as YAML.",
)
@click.option(
    "--pools",
    "pools_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="MERITORDER_POOLS",
    show_envvar=True,
    help="Start the simulated pools of this file behind the policy's pools.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="POOL=HOST:PORT[,...]",
    envvar="MERITORDER_BACKEND",
    show_envvar=True,
    help="The servers behind a pool, instead of what the policy names; may be repeated.",
)
@click.option(
    "--prometheus-url",
    metavar="URL",
    envvar="MERITORDER_PROMETHEUS_URL",
    show_envvar=True,
    help="Read what the policy wants from a Prometheus here: serving engines' own metrics, and prices that "
    "are queries. All else is measured by the Envoy that runs here.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    metavar="N",
    envvar="MERITORDER_SECONDS",
    show_envvar=True,
    help="End after N seconds. Default: run until interrupted.",
)
@shared
def run(
    files: tuple[Path, ...],
    pools_path: Path | None,
    backends: tuple[str, ...],
    prometheus_url: str | None,
    seconds: float | None,
    listen: str,
    no_tui: bool,
    report: Path | None,
    json_path: Path | None,
) -> int:
    """Serve a policy here, without Kubernetes: decision, router and Envoy in one process.

    Point an OpenAI client at http://127.0.0.1:8089/v1. Ends cleanly on Ctrl-C, with a summary.
    """
    from meritorder_cli.standalone import Output, Task, perform

    task = Task(
        files=files,
        pools_path=pools_path,
        backends=backends,
        prometheus_url=prometheus_url,
        seconds=seconds,
        listen=listen,
    )
    return perform(task, Output(live=not no_tui, report=report, json=json_path))
