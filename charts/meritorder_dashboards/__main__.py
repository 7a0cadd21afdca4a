"""`make dashboards`: write the dashboards' JSON.

python -m meritorder_dashboards [FOLDER] [--runbooks URL]

FOLDER is charts/meritorder/dashboards unless named; URL is where docs/runbooks.md is published, with its
`#`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from meritorder_dashboards import fleet, policy, router
from meritorder_dashboards.grafana import to_json

ALL: Final = (fleet.DASHBOARD, policy.DASHBOARD, router.DASHBOARD)
FOLDER: Final = Path(__file__).parents[1] / "meritorder" / "dashboards"
RUNBOOKS: Final = "https://meritorder.dev/runbooks#"


def write(folder: Path, runbooks: str = RUNBOOKS) -> None:
    """Write one file per dashboard; files of dashboards that are no more go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for dashboard in ALL:
        (folder / f"{dashboard.uid}.json").write_text(to_json(dashboard, runbooks=runbooks))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m meritorder_dashboards")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--runbooks", default=RUNBOOKS, metavar="URL")
    asked = parser.parse_args()
    write(asked.folder, asked.runbooks)


if __name__ == "__main__":
    main()
