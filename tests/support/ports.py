"""Free ports that stay free: never handed out twice, whatever number of test processes run on this machine.

A port that the kernel gave and took back may be given to the next connection. So ports are counted up,
below the range from which the kernel serves itself, by a counter in a file that all processes of this user
share.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path

FIRST, LAST = 20_000, 31_999


def _counter() -> Path:
    return Path(tempfile.gettempdir()) / f"meritorder-test-ports-{os.getuid()}"


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports that nothing listens on and that no other caller is given."""
    handle = os.open(_counter(), os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read().strip()
        port = int(text) if text.isdigit() else FIRST
        found: list[int] = []
        for _ in range(LAST - FIRST + 1):
            if len(found) == count:
                break
            port = port + 1 if FIRST <= port < LAST else FIRST
            if _is_free(port):
                found.append(port)
        file.seek(0)
        file.truncate()
        file.write(str(port))
    if len(found) < count:
        raise OSError(f"{count} free ports wanted, {len(found)} found between {FIRST} and {LAST}")
    return tuple(found)


def free_port() -> int:
    return free_ports(1)[0]
