"""Options that `run` and `demo` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

_SHARED = (
    click.option(
        "--listen",
        default="127.0.0.1:8089",
        show_default=True,
        metavar="ADDR",
        envvar="MERITORDER_LISTEN",
        show_envvar=True,
        help="Address of the OpenAI endpoint: IP:PORT, :PORT for every address, or PORT on loopback.",
    ),
    click.option(
        "--no-tui",
        is_flag=True,
        envvar="MERITORDER_NO_TUI",
        show_envvar=True,
        help="One line per decision instead of the live view (always so when the output is no terminal).",
    ),
    click.option(
        "--report",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.html",
        envvar="MERITORDER_REPORT",
        show_envvar=True,
        help="Write an HTML report of the run; one file that loads nothing.",
    ),
    click.option(
        "--json",
        "json_path",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        envvar="MERITORDER_JSON",
        show_envvar=True,
        help="Write the figures of the run as JSON.",
    ),
)


def shared(command: Function) -> Function:
    """Add the shared options."""
    for option in reversed(_SHARED):
        command = option(command)
    return command
