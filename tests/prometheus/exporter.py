"""A scrape target whose series a test sets; it remembers what each scrape was told, which is the truth to
judge counts by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from support.ports import free_port

SeriesKey = tuple[str, tuple[tuple[str, str], ...]]


class Exporter:
    """Serves its series on a free port of 127.0.0.1, in a thread."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.scrapes: list[dict[SeriesKey, float]] = []
        """What each scrape was told, the oldest first."""
        self.before_scrape: Callable[[], None] | None = None
        """Called before each scrape is answered: traffic at the pace of the scrapes."""
        self._series: dict[SeriesKey, float] = {}
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen; scrapes succeed."""
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exporter._render().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections; scrapes fail."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def set(self, name: str, value: float, **labels: str) -> None:
        """Make a series have this value."""
        with self._lock:
            self._series[name, tuple(sorted(labels.items()))] = value

    def add(self, name: str, value: float, **labels: str) -> None:
        """Let a counter grow; it is born if it is not there."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._series[key] = self._series.get(key, 0.0) + value

    def clear(self) -> None:
        """Have no series at all."""
        with self._lock:
            self._series.clear()

    def reset(self) -> None:
        """Make all series 0, as a restarted process would."""
        with self._lock:
            for key in self._series:
                self._series[key] = 0.0

    def told(self, name: str, **labels: str) -> list[float]:
        """What each scrape was told of a series; 0 where it was not there."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            return [scrape.get(key, 0.0) for scrape in self.scrapes]

    def _render(self) -> str:
        if self.before_scrape is not None:
            self.before_scrape()
        with self._lock:
            self.scrapes.append(dict(self._series))
            lines = []
            for (name, labels), value in self._series.items():
                shown = ",".join(f'{label}="{text}"' for label, text in labels)
                lines.append(f"{name}{{{shown}}} {value}\n")
            return "".join(lines)
