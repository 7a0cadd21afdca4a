"""What a benchmark found, in one schema: as JSON, as a Markdown table, and judged against its targets.

Facts about the machine are those that a reader needs in order to compare: no names, no paths.
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

SCHEMA_VERSION: Final = 1
FOLDER: Final = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure and the target it is judged by."""

    name: str
    value: float
    relation: Literal["<", "<=", ">=", "=="]
    target: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the target is met."""
        if self.relation == "<":
            return self.value < self.target
        if self.relation == "<=":
            return self.value <= self.target
        if self.relation == ">=":
            return self.value >= self.target
        return self.value == self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A benchmark's outcome."""

    name: str
    sentence: str
    """What was measured, in one sentence."""
    columns: tuple[str, ...]
    """Heads of the cells, without that of the first column."""
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    setup: Mapping[str, Any]
    """What was run: sizes, times, versions."""
    figures: Mapping[str, Any]
    """Every figure, for machines."""
    machine: Mapping[str, Any]
    at: str
    pictures: tuple[Path, ...] = ()
    """Written beside the tables."""

    @property
    def passed(self) -> bool:
        """Whether all targets are met."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """The result as JSON."""
        body = {
            "schema": SCHEMA_VERSION,
            "name": self.name,
            "sentence": self.sentence,
            "at": self.at,
            "passed": self.passed,
            "machine": dict(self.machine),
            "setup": dict(self.setup),
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
            "figures": dict(self.figures),
        }
        return json.dumps(body, indent=2) + "\n"

    def to_markdown(self) -> str:
        """The result as tables for people."""
        facts = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        lines = [
            f"# {self.name}",
            "",
            self.sentence,
            "",
            f"Measured {self.at[:10]} on: {facts}.",
            "",
            _line("", *self.columns),
            _line("---", *("---:" for _ in self.columns)),
            *(_line(row.what, *row.cells) for row in self.rows),
            "",
            _line("target", "seen", "allowed", ""),
            _line("---", "---:", "---:", "---"),
            *(
                _line(
                    check.name,
                    f"{check.value:g} {check.unit}".strip(),
                    f"{check.relation.replace('==', '=')} {check.target:g} {check.unit}".strip(),
                    "met" if check.passed else "MISSED",
                )
                for check in self.checks
            ),
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path = FOLDER) -> tuple[Path, Path]:
        """Write both forms; the files of the run before are replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{self.name}.json", folder / f"{self.name}.md"
        paths[0].write_text(self.to_json())
        paths[1].write_text(self.to_markdown())
        for picture in self.pictures:
            shutil.copyfile(picture, folder / picture.name)
        return paths


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory and Python: what a reader needs to compare."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(Path("/proc/cpuinfo")) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(pages / 2**30),
        "Python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 1),
    }


def _processor(path: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else ""


def package_versions(*names: str) -> dict[str, str]:
    """Versions of distributions that decide a figure."""
    return {name: version(name) for name in names}


def today() -> str:
    """Now, for `Result.at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")
