"""Lists what is in an image, as CycloneDX 1.6: Python distributions (Envoy is one) and Debian packages.

    python3 sbom.py ROOT NAME      ROOT is where the image's files are

Equal images give equal lists: no time, no serial number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

Component = dict[str, Any]


def python_distributions(root: Path) -> Iterator[Component]:
    """What pip installed."""
    for metadata in root.glob("opt/meritorder/lib/python3*/site-packages/*.dist-info/METADATA"):
        fields = HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
        name, version = str(fields["Name"]), str(fields["Version"])
        license_ = fields["License-Expression"] or fields["License"]
        yield _component(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{version}", license_)


def debian_packages(root: Path) -> Iterator[Component]:
    """What dpkg installed."""
    status = root / "var/lib/dpkg/status"
    release = dict(
        line.partition("=")[::2] for line in _text(root / "etc/os-release").splitlines() if "=" in line
    )
    where = release.get("VERSION_CODENAME", "").strip('"')
    for paragraph in filter(None, _text(status).split("\n\n")):
        fields = HeaderParser().parsestr(paragraph)
        if not str(fields["Status"]).endswith(" installed"):
            continue
        name, version = str(fields["Package"]), str(fields["Version"])
        url = f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}"
        yield _component(name, version, f"{url}&distro={where}" if where else url, None)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _component(name: str, version: str, url: str, license_: object) -> Component:
    found: Component = {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
    # Some have the whole text there.
    if license_ and "\n" not in str(license_) and len(str(license_)) < 100:
        found["licenses"] = [{"license": {"name": str(license_)}}]
    return found


def document(root: Path, image: str) -> dict[str, Any]:
    """The bill of materials."""
    components = sorted([*python_distributions(root), *debian_packages(root)], key=lambda one: one["purl"])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": image}},
        "components": components,
    }


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python3 requirements/sbom.py ROOT NAME", file=sys.stderr)
        return 2
    json.dump(document(Path(arguments[0]), arguments[1]), sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
