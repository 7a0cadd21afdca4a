"""The real kubectl, bound to one kubeconfig."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from assets.find import find

Manifest = Mapping[str, Any]

TIMEOUT_SECONDS = 60


class KubectlFailed(Exception):
    """kubectl ended with an error; the message is what it said."""


class Kubectl:
    """`kubectl("get", "pods")` returns what it printed, or raises with what it complained about."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._binary = find("kubectl")

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it whatever the outcome; for tests of refusals."""
        return subprocess.run(
            [str(self._binary), *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        done = self.run(*arguments, stdin=stdin)
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Return what `-o json` prints, read."""
        return json.loads(self(*arguments, "-o", "json"))

    def apply(self, *manifests: Manifest | str, namespace: str | None = None) -> str:
        """Apply objects, given as mappings or as YAML text, server-side."""
        place = ["-n", namespace] if namespace else []
        return self("apply", "--server-side", *place, "-f", "-", stdin=as_yaml(manifests))


def as_yaml(manifests: Sequence[Manifest | str]) -> str:
    return "---\n".join(
        text if text.endswith("\n") else f"{text}\n"
        for text in (m if isinstance(m, str) else yaml.safe_dump(dict(m), sort_keys=False) for m in manifests)
    )
