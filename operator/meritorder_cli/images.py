"""Pictures for the documentation, made from the JSON of a demo: `python -m meritorder_cli.images`.

The live view is drawn by the code that draws it on a terminal; a headless Chromium photographs the report.
"""

import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from meritorder_cli.complaint import Complaint
from meritorder_cli.document import Document
from meritorder_cli.report import build
from meritorder_cli.report.words import promise
from meritorder_cli.view import View, render

WIDTH, HEIGHT = 100, 30
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def view_at(document: Document, at: float) -> View:
    """What was on the screen at that second of a run."""
    ticks = [tick for tick in document.series if tick.at <= at]
    return View(
        policy=document.policy,
        promise=promise(document.sla),
        percentile=int(document.sla["percentile"]),
        target_milliseconds=float(document.sla["targetMilliseconds"]),
        window_seconds=int(document.sla["windowSeconds"]),
        fallback_pool=document.fallback_pool,
        listen="http://127.0.0.1:8089/v1",
        elapsed=at,
        lasts=document.seconds,
        accelerators={pool.name: pool.accelerator for pool in document.pools if pool.accelerator},
        tick=ticks[-1] if ticks else None,
        attained=[tick.attained_milliseconds for tick in ticks],
        decisions=[record for record in document.decisions if record.at <= at],
        events=[event for event in document.events if event.at <= at],
        note=document.note,
    )


def draw(view: View) -> str:
    """The view as SVG, without the web fonts that rich would have it load."""
    console = Console(
        record=True,
        width=WIDTH,
        height=HEIGHT,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(render(view, width=WIDTH, height=HEIGHT))
    return _FONTS.sub("", console.export_svg(title="meritorder demo", unique_id="view"))


def photograph(page: Path, picture: Path, *, width: int, height: int) -> None:
    """A picture of the top of a page."""
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise Complaint("no Chromium on this machine to take the report's picture with")
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--hide-scrollbars", f"--window-size={width},{height}", f"--screenshot={picture}"),
            page.absolute().as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )


@click.command()
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Of a demo; without it one is run."
)
@click.option(
    "--at", type=float, default=41.0, show_default=True, help="The second that the live view shows."
)
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), default=Path("docs/images"), show_default=True
)
def images(json_path: Path | None, at: float, folder: Path) -> None:
    """Make the documentation's pictures of the live view and of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="meritorder-") as scratch:
        if json_path is None:
            json_path = Path(scratch) / "demo.json"
            command = [sys.executable, "-m", "meritorder_cli", "demo", "--no-tui", "--json", str(json_path)]
            subprocess.run([*command, "--report", str(Path(scratch) / "demo.html")], check=True)
        run = json.loads(json_path.read_text(encoding="utf-8"))
        (folder / "live-view.svg").write_text(
            draw(view_at(Document.model_validate(run), at)), encoding="utf-8"
        )
        page = Path(scratch) / "report.html"
        page.write_text(build(run), encoding="utf-8")
        photograph(page, folder / "report.png", width=1160, height=1290)


if __name__ == "__main__":
    images()
