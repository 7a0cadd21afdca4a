"""`python -m bench [NAME...]`: run benchmarks, show their tables, write them to `bench/results/`."""

import sys
import tempfile
from pathlib import Path

import click

from bench import cost, latency
from bench.results import FOLDER
from bench.screen import Screen

BENCHMARKS = {"config-latency": latency.run, "operator-cost": cost.run}


@click.command(context_settings={"show_default": True})
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--quick",
    is_flag=True,
    envvar="MERITORDER_BENCH_QUICK",
    show_envvar=True,
    help="Fewer changes and shorter phases: to see that it works, not for figures. Writes nothing.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
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
def main(names: tuple[str, ...], quick: bool, results: Path, keep: Path | None) -> None:
    """Run the benchmarks NAME (config-latency, operator-cost; without a name: all).

    Exit code 1: a target was missed.
    """
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
            result = BENCHMARKS[name](folder, screen, quick=quick)
            screen.show(result)
            passed = passed and result.passed
            if not quick:
                result.write(results)
                screen.say(f"written: {name}.json and {name}.md")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
