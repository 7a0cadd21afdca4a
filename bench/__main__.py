"""`python -m bench [NAME...]`: run benchmarks, show their tables, write them to `bench/results/`."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from bench import contenders, cost, latency, router
from bench.results import FOLDER, Result
from bench.screen import Screen

BENCHMARKS: dict[str, Callable[..., Result]] = {
    "config-latency": latency.run,
    "operator-cost": cost.run,
    router.NAME: router.run,
}


@click.command(context_settings={"show_default": True})
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--quick",
    is_flag=True,
    envvar="MERITORDER_BENCH_QUICK",
    show_envvar=True,
    help="Fewer changes and shorter phases: to see that it works, not for figures. "
    "Writes nothing, unless --results is given.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    show_default="bench/results",
    envvar="MERITORDER_BENCH_RESULTS",
    show_envvar=True,
    help="Where the results are written.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="MERITORDER_BENCH_KEEP",
    show_envvar=True,
    help="Keep logs and data of all processes in this directory.",
)
@click.option(
    "--only",
    default="",
    metavar="NAME[,...]",
    help="Of `router`: these contenders beside `direct`. Writes nothing, unless --results is given.",
)
def main(names: tuple[str, ...], quick: bool, results: Path | None, keep: Path | None, only: str) -> None:
    """Run the benchmarks NAME (config-latency, operator-cost, router; without a name: all).

    Exit code 1: a target was missed.
    """
    chosen = tuple(name for name in only.split(",") if name)
    known = [contender.name for contender in contenders.CONTENDERS]
    if stranger := next((name for name in chosen if name not in known), None):
        raise click.UsageError(f"`--only`: there is no contender `{stranger}`; there are: {', '.join(known)}")
    if chosen and names != (router.NAME,):
        raise click.UsageError(f"`--only` is an option of the benchmark `{router.NAME}` alone")
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise click.UsageError(
            f"there is no benchmark `{unknown[0]}`; there are: {', '.join(sorted(BENCHMARKS))}"
        )
    screen = Screen()
    passed = True
    with tempfile.TemporaryDirectory(prefix="meritorder-bench-") as temporary:
        for name in names or BENCHMARKS:
            folder = (keep or Path(temporary)) / name
            folder.mkdir(parents=True, exist_ok=True)
            more = {"only": chosen} if name == router.NAME else {}
            result = BENCHMARKS[name](folder, screen, quick=quick, **more)
            screen.show(result)
            passed = passed and result.passed
            # What is committed is of a whole run.
            if results is not None or not (quick or chosen):
                result.write(results or FOLDER)
                screen.say(f"written: {name}.json and {name}.md")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
