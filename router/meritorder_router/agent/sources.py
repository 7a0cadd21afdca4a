"""Where tables come from: a router server by long poll, or a file.

A source hands out content as it is; whether it can be served is for `validate` to say. What can happen
instead of content:

    Unavailable     nobody answered, or not with a table: keep what there is and ask again
    Gone            the policy was deleted, or nothing is routed for it: keep what there is, and say so
"""

import asyncio
import contextlib
import os
import random
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from meritorder_api.table import AgentReport

WAIT_SECONDS = 25
POLL_SECONDS = 0.2
FIRST_WAIT_SECONDS = 2
"""The first question is short, so that a start without a policy is not held up."""


class Unavailable(Exception):
    """No table could be had just now."""


class Gone(Exception):
    """There is no policy to serve, says one who knows."""


@dataclass(frozen=True, slots=True)
class Content:
    """A table's bytes, not looked at yet."""

    content: bytes


class Source(Protocol):
    """Where tables come from, and where reports go."""

    async def next(self, revision: str, *, uid: str = "", sequence: int = -1) -> Content | None:
        """Wait for another table than the one of this revision; None: it is still the same.

        `uid` and `sequence` are of the table in force: whoever only has an older one of that policy says so.
        """

    async def report(self, report: AgentReport) -> None:
        """Tell what was applied and seen. Raises Unavailable."""

    async def close(self) -> None: ...


class FileSource:
    """A table in a file, read again whenever the file is another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None

    def _mark(self) -> tuple[int, int, int]:
        stat = os.stat(self._path)
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    async def next(self, revision: str, *, uid: str = "", sequence: int = -1) -> Content | None:
        while True:
            try:
                mark = self._mark()
                if mark != self._seen:
                    content = self._path.read_bytes()
                    self._seen = mark
                    return Content(content)
            except OSError as error:
                if self._seen != error.errno:
                    self._seen = error.errno
                    raise Unavailable(f"`{self._path}` cannot be read: {error.strerror}") from error
            await asyncio.sleep(POLL_SECONDS)

    async def report(self, report: AgentReport) -> None:
        return

    async def close(self) -> None:
        return


class ServerSource:
    """Router servers, one at a time: another one is taken when this one fails or cannot tell."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        token_file: Path | None,
        ca_file: Path | None,
        chance: random.Random,
        wait_seconds: int = WAIT_SECONDS,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        chance.shuffle(self._urls)
        self._token_file = token_file
        self._ca_file = ca_file
        self._wait_seconds = wait_seconds
        self._clients: dict[object, httpx.AsyncClient] = {}
        self._asked = False

    @property
    def server(self) -> str:
        """The server that is asked now."""
        return self._urls[0]

    def _next_server(self) -> None:
        self._urls.append(self._urls.pop(0))

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def _client(self) -> httpx.AsyncClient:
        """A client that trusts the CA file as it is now."""
        mark: object = None
        if self._ca_file is not None:
            try:
                stat = os.stat(self._ca_file)
            except OSError as error:
                raise Unavailable(
                    f"the CA file `{self._ca_file}` cannot be read: {error.strerror}"
                ) from error
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        client = self._clients.get(mark)
        if client is None:
            try:
                verify = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else None)
            except (OSError, ssl.SSLError) as error:
                raise Unavailable(f"the CA file `{self._ca_file}` holds no certificates: {error}") from error
            await self.close()
            client = httpx.AsyncClient(verify=verify, timeout=5.0, follow_redirects=False, trust_env=False)
            self._clients[mark] = client
        return client

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text().strip()
        except OSError as error:
            raise Unavailable(
                f"the token file `{self._token_file}` cannot be read: {error.strerror}"
            ) from error
        return {"authorization": f"Bearer {token}"}

    async def _ask(
        self, method: str, path: str, *, params: dict[str, str], content: bytes | None, seconds: float
    ) -> httpx.Response:
        client = await self._client()
        timeout = httpx.Timeout(seconds, connect=3.0)
        headers = self._headers()
        if content is not None:
            headers["content-type"] = "application/json"
        try:
            return await client.request(
                method, self.server + path, params=params, content=content, headers=headers, timeout=timeout
            )
        except (httpx.TransportError, OSError) as error:
            server = self.server
            self._next_server()
            raise Unavailable(f"router server {server}: {error or type(error).__name__}") from error

    async def next(self, revision: str, *, uid: str = "", sequence: int = -1) -> Content | None:
        wait = self._wait_seconds if self._asked or revision else FIRST_WAIT_SECONDS
        params = {"waitSeconds": str(wait)}
        if revision:
            params["revision"] = revision
        if uid:
            params |= {"uid": uid, "sequence": str(sequence)}
        response = await self._ask("GET", "/v1/table", params=params, content=None, seconds=wait + 5.0)
        self._asked = True
        if response.status_code == 200:
            return Content(response.content)
        if response.status_code == 304:
            return None
        reason = _sentence(response)
        if response.status_code == 404:
            raise Gone(reason)
        server = self.server
        self._next_server()
        raise Unavailable(f"router server {server} answers {response.status_code}: {reason}")

    async def report(self, report: AgentReport) -> None:
        body = report.model_dump_json(by_alias=True, exclude_none=True).encode()
        response = await self._ask("POST", "/v1/report", params={}, content=body, seconds=5.0)
        if response.status_code != 204:
            raise Unavailable(f"the report is answered {response.status_code}: {_sentence(response)}")


def _sentence(response: httpx.Response) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        message = response.json().get("message")
        if isinstance(message, str):
            return message[:300]
    return response.reason_phrase
