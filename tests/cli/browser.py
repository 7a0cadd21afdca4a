"""A headless Chromium visits a page: what it became, what it asked for, what it complained of."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.required import cannot_run

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    # The browser itself would call home; nothing is to be reached, by it or by a page.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a visit brought."""

    dom: str
    requests: list[str]
    """URLs that the page asked for, beside itself."""
    complaints: list[str]
    """Errors and warnings of the console, scripts' exceptions and refused requests among them."""


def chromium() -> str:
    """The browser's path; without one the test cannot run."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    cannot_run("no Chromium on this machine; run: sudo apt-get install chromium")


def look(page: Path, folder: Path, *, width: int = 1280, dark: bool = False) -> Look:
    """Open a page and let its scripts run."""
    log = folder / "net.json"
    options = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [
            *(
                chromium(),
                *_FLAGS,
                *options,
                f"--window-size={width},1200",
                f"--user-data-dir={folder / 'profile'}",
            ),
            *(
                f"--log-net-log={log}",
                "--enable-logging=stderr",
                "--v=0",
                "--dump-dom",
                page.absolute().as_uri(),
            ),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return Look(
        dom=done.stdout,
        requests=_requests(json.loads(log.read_text())),
        complaints=[line for line in done.stderr.splitlines() if ":CONSOLE" in line],
    )


def _requests(log: dict[str, Any]) -> list[str]:
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in log["events"] if event["type"] == started and "params" in event]
    # What the browser asks for by itself has no origin as its initiator.
    return [str(one["url"]) for one in asked if one.get("initiator") not in (None, "not an origin")]
