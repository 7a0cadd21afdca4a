"""A TCP proxy that can be cut: takes one client's way to a server while all others keep theirs.

Cut, it drops what is open and refuses what is new, as when a server dies. Stalled, it keeps connections
open and moves nothing, as when a network swallows packets; or it loses only those that are open, as when a
device on the way forgot them.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

from support.ports import free_port

_CHUNK = 65_536


class TcpProxy:
    """Forwards a free port of 127.0.0.1 to a target, in a thread of its own."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self.port = free_port()
        self._whole = threading.Event()
        self._flowing = threading.Event()
        self._lost: set[tuple[socket.socket, socket.socket]] = set()
        self._ended = threading.Event()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None

    def url(self, scheme: str = "https") -> str:
        return f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        self._ended.clear()
        self._flowing.set()
        self.heal()
        return self

    def stop(self) -> None:
        self._ended.set()
        self.cut()

    def heal(self) -> None:
        """Let everything through again."""
        self._flowing.set()
        if self._listener is not None:
            return
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        self._whole.clear()
        self._flowing.set()
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        if self._accepting is not None:
            self._accepting.join(10)
        if listener is not None:
            listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Keep everything open and move nothing."""
        self._flowing.clear()

    def lose(self) -> int:
        """Move nothing more over what is open, and say how many that are; what is new passes."""
        with self._lock:
            self._lost |= self._pairs
            return len(self._lost)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        try:
            if self._whole.is_set():
                self._pump(client, server)
        finally:
            with self._lock:
                self._pairs.discard(pair)
            client.close()
            server.close()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """Move bytes both ways until either end closes; both then see the end."""
        ways = {client.fileno(): (client, server), server.fileno(): (server, client)}
        with selectors.DefaultSelector() as selector:
            for end in ways:
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    self._flowing.wait()
                    if (client, server) in self._lost:
                        self._ended.wait()
                        return
                    source, sink = ways[key.fd]
                    try:
                        chunk = source.recv(_CHUNK)
                        if not chunk:
                            return
                        sink.sendall(chunk)
                    except OSError:
                        return
