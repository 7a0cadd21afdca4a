"""HTTP/2: to external pools where they offer it, and from clients that speak it from the first byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meritorder_router.agent.embedded import EmbeddedRouter
from servers.envoy import EnvoyProcess
from servers.pki import Authority
from servers.tcp_proxy import TcpProxy
from servers.tls_front import Front, tls_fronts
from support.fakepool import Behaviour, FakePool
from support.ports import free_ports
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
NAME = "api.example.com"
OFFERS: dict[str, tuple[str, ...]] = {
    "both": ("h2", "http/1.1"),
    "old": ("http/1.1",),
    "none": (),
}
DONE = "data: [DONE]\n\n"


class Provider:
    """One fake server behind three TLS ports that offer different protocols."""

    def __init__(self, pool: FakePool, ports: dict[str, int], envoy: EnvoyProcess, authority: Authority):
        self.pool = pool
        self.ports = ports
        self.envoy = envoy
        self._ca = authority.certificate.read_text()

    def entry(self, offer: str, limit: int | None = None, **more: Any) -> dict[str, Any]:
        """The pool of a table whose server offers this."""
        endpoints = [{"address": "127.0.0.1", "port": self.ports[offer]}]
        tls = {"serverName": NAME, "ca": self._ca}
        return pool(self.pool, limit, tls=tls, **more) | {"endpoints": endpoints}

    def connections(self, offer: str) -> int:
        """Taken so far at that port."""
        name = f"http.front-{self.ports[offer]}.downstream_cx_total"
        return self.envoy.stats(name)[name]


@pytest.fixture
async def behind() -> AsyncIterator[FakePool]:
    async with FakePool("ext", keep=True) as behind:
        yield behind


@pytest.fixture
def provider(tmp_path: Path, behind: FakePool) -> Iterator[Provider]:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue(NAME, NAME, names=[NAME])
    ports = dict(zip(OFFERS, free_ports(len(OFFERS)), strict=True))
    fronts = [Front(port=ports[o], behind=behind.port, pair=pair, alpn=OFFERS[o]) for o in OFFERS]
    with tls_fronts(tmp_path / "fronts", fronts) as envoy:
        yield Provider(behind, ports, envoy, authority)


@pytest.fixture
async def h2(router: EmbeddedRouter) -> AsyncIterator[httpx.AsyncClient]:
    """A client that speaks HTTP/2 without TLS from the first byte, and nothing else."""
    async with httpx.AsyncClient(base_url=router.base_url, http1=False, http2=True, timeout=30) as client:
        yield client


@pytest.mark.parametrize("rewritten", [False, True], ids=["direct", "egress"])
async def test_speaks_http2_where_it_is_offered_and_http1_where_not(
    router: EmbeddedRouter, client: httpx.AsyncClient, provider: Provider, rewritten: bool
) -> None:
    more: dict[str, Any] = {"pathPrefix": "/api", "model": "theirs"} if rewritten else {}
    seen: dict[str, str] = {}
    for sequence, offer in enumerate(OFFERS, 1):
        await router.apply(table([provider.entry(offer, **more) | {"name": offer}], sequence=sequence))
        answer = await client.post(CHAT, json={"model": "ours"})
        stream = await client.post(CHAT, json={"model": "ours", "stream": True})
        assert (answer.status_code, stream.status_code) == (200, 200)
        assert stream.text.endswith(DONE)
        for headers, path, body in zip(
            provider.pool.headers[-2:], provider.pool.paths[-2:], provider.pool.bodies[-2:], strict=True
        ):
            assert headers["x-seen-sni"] == NAME
            assert headers["host"] == f"{NAME}:{provider.ports[offer]}"
            assert path == ("/api" if rewritten else "") + "/v1/chat/completions"
            assert json.loads(body)["model"] == ("theirs" if rewritten else "ours")
            seen[offer] = headers["x-seen-protocol"]

    assert seen == {"both": "HTTP/2", "old": "HTTP/1.1", "none": "HTTP/1.1"}


async def test_many_streams_share_few_connections_and_none_is_cut_by_another(
    router: EmbeddedRouter, client: httpx.AsyncClient, provider: Provider, start_pool: StartPool
) -> None:
    await router.apply(table([provider.entry("both", 200), pool(await start_pool("local"))]))
    await client.post(CHAT, json={})
    provider.pool.behaviour = Behaviour(chunks=10, chunk_seconds=0.1)
    before = provider.connections("both")

    streams = [asyncio.create_task(client.post(CHAT, json={"stream": True})) for _ in range(60)]
    await until(lambda: provider.pool.in_flight == 60, 10, "streams")
    # A client that goes away ends its own stream, not the connection that it shares.
    for stream in streams[:20]:
        stream.cancel()
    ended = await asyncio.gather(*streams[20:])

    assert [stream.text.endswith(DONE) for stream in ended] == [True] * 40
    assert {stream.headers["x-meritorder-answered-by"] for stream in ended} == {"ext"}
    assert {headers["x-seen-protocol"] for headers in provider.pool.headers} == {"HTTP/2"}
    # One per worker, and those of health checks.
    assert provider.connections("both") - before <= 8


async def test_a_cut_http2_stream_fails_alone_and_a_refused_one_goes_on_to_the_next_pool(
    router: EmbeddedRouter, client: httpx.AsyncClient, provider: Provider, start_pool: StartPool
) -> None:
    local = await start_pool("local")
    await router.apply(table([provider.entry("both", 200), pool(local)]))
    provider.pool.behaviour = Behaviour(kind="reset")
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "local"

    provider.pool.behaviour = Behaviour(kind="truncate", chunks=4)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post(CHAT, json={"stream": True})
    provider.pool.behaviour = Behaviour()
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "ext"


async def test_a_connection_that_is_lost_on_the_way_does_not_hold_up_what_comes_after(
    router: EmbeddedRouter, client: httpx.AsyncClient, provider: Provider, start_pool: StartPool
) -> None:
    local = await start_pool("local")
    with TcpProxy("127.0.0.1", provider.ports["both"]) as proxy:
        entry = provider.entry("both", 200)
        entry["endpoints"][0]["port"] = proxy.port
        await router.apply(table([entry, pool(local)]))
        provider.pool.behaviour = Behaviour(chunks=600, chunk_seconds=0.1)
        streams = [asyncio.create_task(client.post(CHAT, json={"stream": True})) for _ in range(4)]
        await until(lambda: provider.pool.in_flight == 4, 10, "streams")
        provider.pool.behaviour = Behaviour()
        assert proxy.lose() > 0

        loop = asyncio.get_running_loop()
        began = loop.time()
        answers = await asyncio.gather(*(client.post(CHAT, json={}) for _ in range(20)))
        took = loop.time() - began
        ended = await asyncio.gather(*streams, return_exceptions=True)

    # Health checks have connections of their own: they see nothing of it.
    assert {answer.status_code for answer in answers} == {200}
    assert "local" in {answer.headers["x-meritorder-answered-by"] for answer in answers}
    assert took < 30
    assert all(isinstance(stream, httpx.RemoteProtocolError) for stream in ended)


async def test_clients_may_speak_http2_without_tls(
    router: EmbeddedRouter, h2: httpx.AsyncClient, provider: Provider, start_pool: StartPool
) -> None:
    local = await start_pool("local")
    await router.apply(table([pool(local, 100), provider.entry("both")]))

    answer = await h2.post(CHAT, json={}, headers={"te": "trailers"})
    events: list[str] = []
    async with h2.stream("POST", CHAT, json={"stream": True}) as stream:
        async for line in stream.aiter_lines():
            events.append(line)
    models = await h2.get("/models")
    elsewhere = await h2.get("/elsewhere")

    assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
    assert stream.http_version == "HTTP/2"
    assert "data: [DONE]" in events
    assert models.status_code == 200
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (404, "not_found")

    local.behaviour = Behaviour(kind="503")
    both_ways = await h2.post(CHAT, json={"stream": True})
    assert both_ways.headers["x-meritorder-answered-by"] == "ext"
    assert both_ways.text.endswith(DONE)
    assert provider.pool.headers[-1]["x-seen-protocol"] == "HTTP/2"


async def test_keeps_the_limit_over_many_streams_of_one_http2_connection(
    router: EmbeddedRouter, h2: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = b.behaviour = Behaviour(chunks=5, chunk_seconds=0.2)
    await router.apply(table([pool(a, 10), pool(b)]))
    await h2.get("/elsewhere")  # One connection, so one worker: the limit is exact there.

    ended = await asyncio.gather(*(h2.post(CHAT, json={"stream": True}) for _ in range(80)))

    assert all(stream.text.endswith(DONE) and stream.http_version == "HTTP/2" for stream in ended)
    assert (a.requests, b.requests) == (10, 70)
    assert a.most_in_flight == 10


async def test_sheds_and_refuses_over_http2_in_the_same_words(
    router: EmbeddedRouter, h2: httpx.AsyncClient, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    without = await h2.post(CHAT, json={})
    assert (without.status_code, without.json()["error"]["code"]) == (503, "no_routing_table")

    await router.apply(table([pool(a, 0)], shed=True))
    for each in (h2, client):
        answer = await each.post(CHAT, json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["code"] == "pools_saturated"
