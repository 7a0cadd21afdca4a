"""A client that keeps asking on kept-alive connections, in turn, and notes which pool answered when."""

import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bench.backends import HEADER

_BODY = b'{"model":"m","messages":[]}'
PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Answer:
    """Times in ns since the epoch; `pool` is empty when it was not a pool that answered."""

    sent: int
    received: int
    pool: str


class Probe:
    """Runs in a thread of its own; `answers` grows."""

    def __init__(self, host: str, port: int, *, connections: int = 4) -> None:
        self._address = (host, port)
        self._connections = connections
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self.answers: list[Answer] = []
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def first(self, pool: str, since: int = 0) -> Answer | None:
        """The first answer of a pool from a place of `answers` on; raises what ended the probe."""
        if self.error is not None:
            raise self.error
        return next((answer for answer in self.answers[since:] if answer.pool == pool), None)

    def _run(self) -> None:
        host, port = self._address
        request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(_BODY)}\r\n\r\n"
        ).encode() + _BODY
        sockets: list[socket.socket] = []
        try:
            for _ in range(self._connections):
                one = socket.create_connection(self._address, timeout=10)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets.append(one)
            turn = 0
            while not self._stop.is_set():
                self.answers.append(ask(sockets[turn], request))
                turn = (turn + 1) % len(sockets)
                time.sleep(PAUSE_SECONDS)
        except OSError as error:
            self.error = error
        finally:
            for one in sockets:
                one.close()


def ask(connection: socket.socket, request: bytes) -> Answer:
    """Send one request and read its whole answer."""
    sent = time.time_ns()
    connection.sendall(request)
    data = connection.recv(65536)
    received = time.time_ns()
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection)
    head = data[:end].lower().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in head[1:] if b": " in line)
    missing = int(fields.get(b"content-length", b"0")) - (len(data) - end - 4)
    while missing > 0:
        missing -= len(_more(connection))
    return Answer(sent, received, fields.get(HEADER.encode(), b"").decode())


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the connection was closed although it was to be kept alive")
    return data
