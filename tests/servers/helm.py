"""The real Helm, bound to one kubeconfig or to none, without its user's plugins and settings."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from assets.find import find

TIMEOUT_SECONDS = 120


class HelmFailed(Exception):
    """Helm ended with an error; the message is what it said."""


class Helm:
    """`helm("install", ...)` returns what it printed, or raises with what it complained about."""

    def __init__(self, home: Path, kubeconfig: Path | None = None) -> None:
        """`home`: where it may keep its own files."""
        self._binary = find("helm")
        kinds = ("CACHE", "CONFIG", "DATA")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HELM_")},
            **{f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in kinds},
            "KUBECONFIG": str(kubeconfig or os.devnull),
        }

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run it whatever the outcome; for tests of refusals."""
        return subprocess.run(
            [str(self._binary), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env=self._environment,
        )

    def __call__(self, *arguments: str | Path) -> str:
        done = self.run(*arguments)
        if done.returncode:
            raise HelmFailed(f"helm {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def template(
        self, chart: Path, release: str, namespace: str, *arguments: str | Path
    ) -> list[dict[str, Any]]:
        """The objects that the chart makes, without a cluster."""
        text = self("template", release, chart, "--namespace", namespace, *arguments)
        return [found for found in yaml.safe_load_all(text) if found]


def setting(**values: object) -> Sequence[str]:
    """Arguments that set values; a dot in a name is written as two underscores."""
    return [f"--set-json={name.replace('__', '.')}={json.dumps(value)}" for name, value in values.items()]
