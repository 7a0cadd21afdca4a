"""One Prometheus server: asks range and instant queries, and turns each failure into a named reason and one
sentence.

Nothing that the server sent is ever quoted: what it answers may hold what its owner would not want in
another tenant's status.

Errors:
    QueryError: the query has no answer; carries `reason` (a `reasons.Missing`) and a sentence.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from meritorder_api.reasons import Missing

REPLY_LIMIT: Final = 32 * 1024 * 1024
"""Bytes of a reply that are read; a longer one is refused."""
KEEPALIVE_SECONDS: Final = 90.0
"""Idle connections are kept for longer than any usual interval, and less long than servers keep them."""
RETRY_SHARE: Final = 0.1
"""Retries per query over time."""
RETRY_BURST: Final = 4.0
ERROR_TYPES: Final = frozenset(
    {"timeout", "canceled", "execution", "bad_data", "internal", "unavailable", "not_found", "not_acceptable"}
)
"""Words of Prometheus for what was wrong; only these are repeated."""


class QueryError(Exception):
    """A query without an answer."""

    def __init__(self, reason: Missing, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.transient = transient


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Prometheus server and how to reach it; equal servers share one client and one set of queries."""

    url: str
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    """A bearer token that is read anew when the file changes."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)
    """PEM of the CA certificates to trust instead of the system's."""

    @property
    def shown(self) -> str:
        """Scheme, host and port: all of the URL that is shown."""
        parts = urlsplit(self.url)
        host = parts.hostname or "?"
        return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}"


@dataclass(frozen=True, slots=True)
class Row:
    """One series of an answer: label values as asked for, and its points."""

    key: tuple[str, ...]
    points: list[tuple[float, float]]


@dataclass(slots=True)
class QueryStats:
    """What asking one query cost, for the operator's own metrics."""

    asked: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class PrometheusClient:
    """Asks one server over few connections."""

    def __init__(
        self,
        server: Server,
        *,
        timeout_seconds: float = 5.0,
        reply_limit: int = REPLY_LIMIT,
        stats: dict[str, QueryStats] | None = None,
    ) -> None:
        self.server = server
        self.stats = stats if stats is not None else {}
        self._timeout = timeout_seconds
        self._reply_limit = reply_limit
        self._retries_left = RETRY_BURST
        self._slots = asyncio.Semaphore(8)
        self._broken: str | None = None
        self._client = self._connect()

    def _connect(self) -> httpx.AsyncClient:
        verify: ssl.SSLContext | bool = True
        if urlsplit(self.server.url).scheme == "https":
            try:
                verify = ssl.create_default_context(cadata=self.server.ca)
            except (ssl.SSLError, ValueError):
                self._broken = "its CA is not a PEM certificate"
        auth = None
        if self.server.username is not None:
            auth = httpx.BasicAuth(self.server.username, self.server.password or "")
        return httpx.AsyncClient(
            base_url=self.server.url.rstrip("/"),
            verify=verify,
            auth=auth,
            timeout=httpx.Timeout(self._timeout, connect=min(3.0, self._timeout)),
            limits=httpx.Limits(
                max_connections=8, max_keepalive_connections=8, keepalive_expiry=KEEPALIVE_SECONDS
            ),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def range(
        self, name: str, query: str, labels: tuple[str, ...], *, start: float, end: float, step: float
    ) -> list[Row]:
        """Evaluate a query at start, start + step, ... end (unix seconds)."""
        data = {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        answer = await self._ask(name, "/api/v1/query_range", data)
        blank = ("",) * len(labels)
        try:
            return [
                Row(
                    tuple(map(row["metric"].get, labels, blank)),
                    [(float(at), float(value)) for at, value in row["values"]],
                )
                for row in answer["result"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._not_understood() from error

    async def instant(self, name: str, query: str, at: float) -> list[float]:
        """The values of a query at one moment, of a vector or a scalar."""
        answer = await self._ask(name, "/api/v1/query", {"query": query, "time": f"{at:.3f}"})
        try:
            if answer["resultType"] == "scalar":
                return [float(answer["result"][1])]
            return [float(row["value"][1]) for row in answer["result"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._not_understood() from error

    def _not_understood(self) -> QueryError:
        return QueryError(
            Missing.QUERY_REFUSED, f"{self.server.shown} did not answer as Prometheus does; check the URL"
        )

    async def _ask(self, name: str, path: str, data: Mapping[str, str]) -> Any:
        stats = self.stats.setdefault(name, QueryStats())
        self._retries_left = min(RETRY_BURST, self._retries_left + RETRY_SHARE)
        while True:
            stats.asked += 1
            began = time.monotonic()
            try:
                async with self._slots, asyncio.timeout(self._timeout):
                    return await self._once(path, data)
            except QueryError as error:
                failure = error
            except (TimeoutError, httpx.TimeoutException):
                failure = QueryError(
                    Missing.UNREACHABLE, f"{self.server.shown} did not answer within {self._timeout:g} s"
                )
            except httpx.HTTPError as error:
                failure = self._unreachable(error)
            finally:
                stats.seconds += time.monotonic() - began
            stats.failed[failure.reason] = stats.failed.get(failure.reason, 0) + 1
            if not failure.transient or self._retries_left < 1:
                raise failure
            self._retries_left -= 1

    async def _once(self, path: str, data: Mapping[str, str]) -> Any:
        if self._broken:
            raise QueryError(Missing.UNREACHABLE, f"{self.server.shown} cannot be asked: {self._broken}")
        headers = {"Accept": "application/json"}
        if self.server.token is not None:
            headers["Authorization"] = f"Bearer {self.server.token}"
        elif self.server.token_file is not None:
            headers["Authorization"] = f"Bearer {self._token_of(self.server.token_file)}"
        async with self._reply(path, {**data, "timeout": f"{self._timeout:g}s"}, headers) as reply:
            body = await self._bounded(reply)
            return self._answer_of(reply.status_code, body)

    @asynccontextmanager
    async def _reply(
        self, path: str, data: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        async with self._client.stream("POST", path, data=data, headers=headers) as reply:
            yield reply

    def _token_of(self, path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError as error:
            raise QueryError(
                Missing.UNAUTHORIZED, f"the token file `{path}` cannot be read: {error.strerror}"
            ) from error

    async def _bounded(self, reply: httpx.Response) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in reply.aiter_bytes():
            size += len(part)
            if size > self._reply_limit:
                raise QueryError(
                    Missing.QUERY_REFUSED,
                    f"{self.server.shown} answered with more than {self._reply_limit // 1024} KiB; "
                    "the rest is not read",
                )
            parts.append(part)
        return b"".join(parts)

    def _answer_of(self, status: int, body: bytes) -> Any:
        shown = self.server.shown
        if status in (401, 403):
            raise QueryError(
                Missing.UNAUTHORIZED, f"{shown} refused the credentials ({status}); check `authSecretRef`"
            )
        if 300 <= status < 400:
            raise QueryError(
                Missing.QUERY_REFUSED, f"{shown} answered with a redirect ({status}), which is not followed"
            )
        if status >= 500 or status == 429:
            word = _error_type(body)
            raise QueryError(
                Missing.UNREACHABLE, f"{shown} answered {status}{word}", transient=status in (502, 503, 504)
            )
        if status >= 400:
            raise QueryError(
                Missing.QUERY_REFUSED, f"{shown} refused the query ({status}{_error_type(body)})"
            )
        try:
            answer = json.loads(body)
            if answer["status"] != "success":
                raise QueryError(Missing.QUERY_REFUSED, f"{shown} refused the query{_error_type(body)}")
            return answer["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_understood() from error

    def _unreachable(self, error: httpx.HTTPError) -> QueryError:
        shown = self.server.shown
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return QueryError(
                    Missing.UNREACHABLE,
                    f"{shown} is not trusted: {cause.verify_message or 'its certificate does not verify'}",
                )
            cause = cause.__cause__ or cause.__context__
        what = (
            "refused the connection" if isinstance(error, httpx.ConnectError) else "broke the connection off"
        )
        return QueryError(Missing.UNREACHABLE, f"{shown} {what}", transient=True)


def _error_type(body: bytes) -> str:
    try:
        word = json.loads(body).get("errorType")
    except (ValueError, AttributeError):
        return ""
    return f", {word}" if word in ERROR_TYPES else ""
