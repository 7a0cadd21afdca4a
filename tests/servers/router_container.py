"""A router container run as kubelet would: its own command, arguments and environment, but for where its
directories are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.processes import Child

ADDRESS = "127.0.0.1"
"""The pod's address here."""


def run_container(container: Mapping[str, Any], folder: Path, mounts: Mapping[str, Path]) -> Child:
    """The container as a child, to be started; `mounts` says where each of its directories is here."""
    (variable,) = container["env"]
    assert variable["name"] == "POD_IP"
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    assert container["command"] == ["meritorder-router"]
    arguments = [_here(argument.replace("$(POD_IP)", ADDRESS), mounts) for argument in container["args"]]
    return Child(
        [sys.executable, "-m", "meritorder_router", *arguments],
        log=folder / "router.log",
        name="router container",
        env={"POD_IP": ADDRESS},
    )


def _here(argument: str, mounts: Mapping[str, Path]) -> str:
    option, equals, path = argument.partition("=")
    for inside, outside in mounts.items():
        if path == inside or path.startswith(f"{inside}/"):
            return f"{option}{equals}{outside}{path.removeprefix(inside)}"
    return argument
