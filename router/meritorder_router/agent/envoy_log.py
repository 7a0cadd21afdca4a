"""Envoy's own log: written to a file in the state directory, passed on line by line, and kept small.

Envoy says why it rejects a file only there. The file is emptied when it grows; Envoy appends, so nothing
tears.
"""

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger("meritorder.envoy")

NAME = "envoy.log"
FORMAT = "%l %n %v"
FLUSH_MILLISECONDS = 200
_MOST_BYTES = 1_000_000
_REJECTED = "config update rejected: "
_LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
}


class EnvoyLog:
    """Reads on from where it was."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._place = 0
        self.rejected: str | None = None
        """Why Envoy rejected a file last."""

    def skip(self) -> None:
        """Begin at the end: what is there was passed on by an earlier run."""
        with contextlib.suppress(FileNotFoundError):
            self._place = os.stat(self._path).st_size

    def pass_on(self) -> None:
        """Log what is new."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._place:
                    self._place = 0
                file.seek(self._place)
                content = file.read(_MOST_BYTES)
        except FileNotFoundError:
            return
        end = content.rfind(b"\n") + 1
        self._place += end
        for line in content[:end].decode(errors="replace").splitlines():
            level, _, rest = line.partition(" ")
            name, _, message = rest.partition(" ")
            if level not in _LEVELS:
                level, name, message = "error", "stderr", line
            if _REJECTED in message:
                self.rejected = message.partition(_REJECTED)[2][:300]
            if message.endswith("caught ENVOY_SIGTERM"):
                continue
            log.log(_LEVELS[level], "envoy %s: %s", name, message[:1000])
        if self._place > _MOST_BYTES:
            os.truncate(self._path, 0)
            self._place = 0
