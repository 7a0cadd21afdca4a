"""`make chart`: what the chart has from elsewhere, and its table of values.

python -m chart.reference            say what differs; exit code 1 where something does
python -m chart.reference --write    write it

The CRDs are those of `crds/`, since Helm reads nothing outside a chart. The table of the chart's README is
made of `values.yaml`: each value is described by the comment right before it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "meritorder"
BEGIN: Final = "<!-- values: written by `make chart` from values.yaml -->\n"
END: Final = "<!-- end of values -->\n"
WHOLE: Final = ("labels", "resources")
"""Maps that are one value."""


class Undocumented(Exception):
    """A value without a comment before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One row of the table."""

    key: str
    default: Any
    description: str


def values(text: str) -> Iterator[Value]:
    """All values of a values.yaml, in its order."""
    defaults = yaml.safe_load(text)
    comments = _comments(text)
    for path, default in _leaves(defaults, ()):
        if path not in comments:
            raise Undocumented(f"{'.'.join(path)} has no comment before it")
        yield Value(key=".".join(path), default=default, description=comments[path])


def _leaves(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, child in node.items():
        if isinstance(child, dict) and child and name not in WHOLE:
            yield from _leaves(child, (*path, name))
        else:
            yield (*path, name), child


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """By path of a key: the comment that ends on the line before it."""
    found: dict[tuple[str, ...], str] = {}
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        key = re.match(r"( *)([A-Za-z0-9]+):", line)
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
            continue
        if key is not None:
            path[len(key[1]) // 2 :] = [key[2]]
            if comment:
                found[tuple(path)] = " ".join(comment)
        comment = []
    return found


def table(text: str) -> str:
    """The table in Markdown."""
    rows = ["| value | default | |", "|---|---|---|"]
    for value in values(text):
        default = json.dumps(value.default, ensure_ascii=False)
        rows.append(f"| `{value.key}` | `{default}` | {value.description.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def made() -> dict[Path, str]:
    """What files of the chart must hold."""
    readme = (CHART / "README.md").read_text()
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    text = (CHART / "values.yaml").read_text()
    files = {CHART / "README.md": f"{before}{BEGIN}{table(text)}{END}{after}"}
    for crd in sorted((ROOT / "crds").glob("*.yaml")):
        files[CHART / "files" / "crds" / crd.name] = crd.read_text()
    return files


def drifted() -> list[Path]:
    """Files that do not hold it, or should not be there."""
    files = made()
    strangers = set((CHART / "files" / "crds").glob("*")) - files.keys()
    different = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    return sorted([*different, *strangers])


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--write"]):
        print("usage: python -m chart.reference [--write]", file=sys.stderr)
        return 2
    try:
        if arguments:
            for path, text in made().items():
                path.write_text(text)
        differing = drifted()
    except Undocumented as problem:
        print(f"charts/meritorder/values.yaml: {problem}", file=sys.stderr)
        return 1
    for path in differing:
        print(f"{path.relative_to(ROOT)} differs from what it is made of; run: make chart", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
