"""Passing on to the other servers what agents said to this one, each second.

The others are the endpoints of the servers' own headless Service, or a list of URLs. A server shows its own
service account's token (audience `meritorder`), and takes posts only from the accounts that servers run
under.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import httpx

from meritorder_api.table import PeerReports
from meritorder_router.server.cluster import Cluster
from meritorder_router.server.metrics import Metrics
from meritorder_router.server.register import Register

log = logging.getLogger(__name__)

EACH_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 2.0


class Peers:
    """The other servers."""

    def __init__(
        self,
        register: Register,
        *,
        server: str,
        urls: Callable[[], Sequence[str]],
        token_file: Path | None,
        ca_file: Path | None,
        server_name: str | None,
        metrics: Metrics,
    ) -> None:
        """`server_name` is what the others' certificates are for, where they are reached by address."""
        self._register = register
        self._server = server
        self._urls = urls
        self._token_file = token_file
        self._ca_file = ca_file
        self._server_name = server_name
        self._metrics = metrics
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Pass on, for ever."""
        seen: tuple[float, bytes] = (0.0, b"")
        client: httpx.AsyncClient | None = None
        try:
            while True:
                urls = self._urls()
                if urls:
                    authorities = await asyncio.to_thread(self._authorities)
                    if client is None or authorities != seen[1]:
                        if client is not None:
                            await client.aclose()
                        client, seen = _client(authorities), (0.0, authorities)
                    body = self._body()
                    await asyncio.gather(*(self._post(client, url, body) for url in urls))
                self._failing &= set(urls)
                await asyncio.sleep(EACH_SECONDS)
        finally:
            if client is not None:
                await client.aclose()

    def _authorities(self) -> bytes:
        if self._ca_file is None or not self._ca_file.exists():
            return b""
        return self._ca_file.read_bytes()

    def _body(self) -> bytes:
        reports = PeerReports(server=self._server, reports=self._register.to_pass_on())
        return reports.model_dump_json(by_alias=True, exclude_none=True).encode()

    async def _post(self, client: httpx.AsyncClient, url: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        extensions: dict[str, str] = {}
        if self._server_name is not None and url.startswith("https:"):
            extensions["sni_hostname"] = self._server_name
        try:
            if self._token_file is not None:
                token = await asyncio.to_thread(self._token_file.read_text)
                headers["Authorization"] = f"Bearer {token.strip()}"
            response = await client.post(
                f"{url}/v1/peers/reports", content=body, headers=headers, extensions=extensions
            )
            why = "" if response.is_success else f"status {response.status_code}: {response.text[:300]}"
        except (httpx.HTTPError, OSError, ssl.SSLError) as error:
            why = str(error) or type(error).__name__
        self._metrics.passed_on.labels("failed" if why else "taken").inc()
        if why and url not in self._failing:
            log.warning("reports could not be passed on to %s: %s", url, why)
            self._failing.add(url)
        elif not why and url in self._failing:
            log.info("reports are passed on to %s again", url)
            self._failing.discard(url)


def service_urls(
    cluster: Cluster, *, namespace: str, service: str, own_address: str, scheme: str
) -> list[str]:
    """The other servers by the EndpointSlices of their headless Service; unready ones too: they take
    reports.
    """
    urls: set[str] = set()
    for part in cluster.slices(namespace, service):
        for port in part.ports[:1]:
            for endpoint in part.endpoints:
                host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
                if endpoint.address != own_address:
                    urls.add(f"{scheme}://{host}:{port.port}")
    return sorted(urls)


def _client(authorities: bytes) -> httpx.AsyncClient:
    context = ssl.create_default_context()
    if authorities:
        context = ssl.create_default_context(cadata=authorities.decode())
    return httpx.AsyncClient(verify=context, timeout=TIMEOUT_SECONDS, trust_env=False)
