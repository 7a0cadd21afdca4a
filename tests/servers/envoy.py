"""A real Envoy from a bootstrap file."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from assets.find import find
from support.processes import Child

READY_SECONDS = 30


def accepts(address: str, port: int) -> bool:
    """Tell whether something listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


class EnvoyProcess:
    """One Envoy, ready when its admin port says so and its listeners accept."""

    def __init__(
        self,
        bootstrap: Path,
        *,
        admin_port: int,
        listeners: Sequence[tuple[str, int]] = (),
        flags: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self._listeners = tuple(listeners)
        self._admin: httpx.Client | None = None
        command: list[str | Path] = [
            find("envoy"),
            "--config-path",
            bootstrap,
            "--disable-hot-restart",  # else every Envoy of this machine shares one memory region
            "--concurrency",
            "1",
            "--log-level",
            "warning",
            *flags,
        ]
        self.child = Child(command, log=log or bootstrap.parent / "envoy.log", name="envoy")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        self.child.start()
        try:
            self.child.wait_for(
                lambda: (
                    self.admin.get("/ready").status_code == 200
                    and all(accepts(*listener) for listener in self._listeners)
                ),
                READY_SECONDS,
                "Envoy is ready",
                retry_on=(httpx.TransportError,),
            )
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        self.child.stop()
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    @property
    def admin(self) -> httpx.Client:
        """A client of Envoy's admin interface."""
        if self._admin is None:
            self._admin = httpx.Client(base_url=self.admin_url, timeout=5, trust_env=False)
        return self._admin

    def stats(self, prefix: str = "") -> dict[str, int]:
        """Return counters and gauges by name."""
        text = self.admin.get("/stats").text
        pairs = (line.partition(": ") for line in text.splitlines())
        return {name: int(value) for name, _, value in pairs if name.startswith(prefix) and value.isdigit()}
