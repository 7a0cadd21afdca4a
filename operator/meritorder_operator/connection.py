"""Requests to one API server over aiohttp, authenticated as lightkube does.

lightkube knows where the cluster is and how to log in (tokens that rotate, programs that issue them, client
certificates), but its client takes four times the processor time per request, which with hundreds of policies
is a fifth of all that the operator does. So its way of logging in is kept and its client is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
import httpx2
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User

KEEP_SECONDS: Final = 60.0
"""Connections are kept between one interval's writes and the next's: TLS begins anew seldom."""


class ConnectionFailed(Exception):
    """No answer; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the API server said."""

    status: int
    body: bytes


class Connection:
    """One API server and one login."""

    def __init__(self, config: SingleConfig, *, timeout_seconds: float) -> None:
        """The timeout is for connecting, and for each wait for more of an answer."""
        user = config.user or User()
        self._server = config.cluster.server.rstrip("/")
        self._tls = verify_cluster(config.cluster, user, config.abs_file)
        self._login = user_auth(user)
        self._authorization: str | None = None
        self._timeout = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Ask once, and once more with a new token where the old one is refused."""
        if self._login is not None and self._authorization is None:
            self._authorization = await self._log_in(self._login)
        answer = await self._once(method, path, params, headers, body, timeout_seconds)
        if answer.status != 401 or self._login is None:
            return answer
        renewed = await self._log_in(self._login, refused=True)
        if renewed == self._authorization:
            return answer
        self._authorization = renewed
        return await self._once(method, path, params, headers, body, timeout_seconds)

    async def _once(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_seconds: float | None,
    ) -> Answer:
        sent = {"Accept": "application/json", **headers}
        if self._authorization is not None:
            sent["Authorization"] = self._authorization
        waits = self._timeout if timeout_seconds is None else timeout_seconds
        try:
            async with self._opened().request(
                method,
                self._server + path,
                params=params,
                data=body,
                headers=sent,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=waits, sock_connect=waits, sock_read=waits),
            ) as response:
                return Answer(status=response.status, body=await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionFailed(str(error) or type(error).__name__) from error

    def _opened(self) -> aiohttp.ClientSession:
        """The session, which can only be made where a loop runs."""
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls, limit=0, keepalive_timeout=KEEP_SECONDS)
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=True, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    async def _log_in(self, login: httpx2.Auth, *, refused: bool = False) -> str | None:
        """The Authorization header that lightkube would send; another one, where that one was refused."""
        request = httpx2.Request("GET", self._server)
        flow = login.async_auth_flow(request)
        try:
            request = await anext(flow)
            if refused:
                request = await flow.asend(httpx2.Response(401, request=request))
        except StopAsyncIteration:
            pass  # it has no other to offer
        finally:
            await flow.aclose()
        return request.headers.get("Authorization")
