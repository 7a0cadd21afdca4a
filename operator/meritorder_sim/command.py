"""The command that serves simulated pools: `meritorder pools serve`, also `python -m meritorder_sim`."""

import asyncio
import sys
from pathlib import Path

import click
import uvloop

from meritorder_sim.pools_file import PoolsFileError, load_pools_file
from meritorder_sim.serve import serve_pools, until_stdin_ends


@click.command(name="serve")
@click.option(
    "--pools",
    "pools_path",
    type=click.Path(path_type=Path),
    required=True,
    envvar="MERITORDER_POOLS",
    show_envvar=True,
    help="The pools file.",
)
@click.option(
    "--pool",
    "only",
    multiple=True,
    envvar="MERITORDER_POOLS_ONLY",
    show_envvar=True,
    help="Serve only this pool of the file; may be repeated.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar="MERITORDER_POOLS_HOST",
    show_envvar=True,
    help="The address to listen on.",
)
@click.option(
    "--port",
    "port_texts",
    multiple=True,
    metavar="POOL=PORT[,PORT...]",
    envvar="MERITORDER_POOLS_PORT",
    show_envvar=True,
    help="Fixed ports for the replicas of a pool, in order; may be repeated. Default: free ports.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    envvar="MERITORDER_POOLS_MODEL",
    show_envvar=True,
    help="A model name to serve, any other is answered 404; may be repeated. Default: every name is served.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    envvar="MERITORDER_SEED",
    show_envvar=True,
    help="Seed of what is drawn: lengths of answers that nobody limits, and which requests fail.",
)
@click.option("--exit-with-stdin", is_flag=True, hidden=True, help="End when stdin is closed.")
def serve(
    pools_path: Path,
    only: tuple[str, ...],
    host: str,
    port_texts: tuple[str, ...],
    models: tuple[str, ...],
    seed: int,
    exit_with_stdin: bool,
) -> None:
    """Serve simulated pools as OpenAI servers until interrupted.

    Prints one line of JSON per pool as soon as it listens.
    """
    try:
        file = load_pools_file(pools_path)
        if only:
            file = file.only(only)
        ports = dict(parse_ports(text) for text in port_texts)

        async def run() -> None:
            stop = asyncio.Event()
            watch = asyncio.create_task(until_stdin_ends(stop)) if exit_with_stdin else None
            try:
                await serve_pools(file, host=host, ports=ports, models=models, seed=seed, stop=stop)
            finally:
                if watch is not None:
                    watch.cancel()

        uvloop.run(run())
    except PoolsFileError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"Error: cannot listen on {host}: {error.strerror or error}", err=True)
        sys.exit(1)


def parse_ports(text: str) -> tuple[str, list[int]]:
    """Read POOL=PORT[,PORT...]; raises PoolsFileError."""
    name, equals, numbers = text.partition("=")
    ports = [int(number) for number in numbers.split(",") if number.isascii() and number.isdigit()]
    if (
        not equals
        or not name
        or len(ports) != len(numbers.split(","))
        or not all(0 < p < 65536 for p in ports)
    ):
        raise PoolsFileError(f"`--port` must be POOL=PORT[,PORT...] with ports from 1 to 65535, is '{text}'")
    return name, ports
