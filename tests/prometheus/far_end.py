"""An HTTP server that answers what a test wants, and remembers what it was asked."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FarEnd:
    """An HTTP server that is no good Prometheus."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.status = 200
        self.body = b"{}"
        self.headers: dict[str, str] = {}
        self.seen: list[tuple[str, str | None]] = []
        far_end = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                far_end.seen.append((self.path, self.headers.get("Authorization")))
                self.send_response(far_end.status)
                for name, value in far_end.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(far_end.body)))
                self.end_headers()
                self.wfile.write(far_end.body)

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
