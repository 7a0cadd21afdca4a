"""Pools that answer at once and say their names: `python -m bench.backends HOST NAME=PORT...`.

They do nothing else, so that what is measured in front of them is not theirs.
"""

import asyncio
import sys
from functools import partial

HEADER = "x-bench-pool"


class _Pool(asyncio.Protocol):
    """One connection; takes requests with a Content-Length or without a body."""

    def __init__(self, name: str) -> None:
        body = b'{"object":"chat.completion","choices":[]}'
        self._answer = (
            f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{HEADER}: {name}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            _, found, rest = head.partition(b"content-length:")
            length = int(rest.split(b"\r\n", 1)[0]) if found else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(self._answer)


async def serve(host: str, pools: dict[str, int]) -> None:
    """Serve all pools for ever."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(partial(_Pool, name), host, port) for name, port in pools.items()]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    named = (argument.split("=", 1) for argument in sys.argv[2:])
    asyncio.run(serve(sys.argv[1], {name: int(port) for name, port in named}))
