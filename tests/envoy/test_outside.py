"""Pools outside: names, TLS, and a key, path and model of their own; nothing leaks where it should not."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from meritorder_router.agent.embedded import Applied, EmbeddedRouter
from meritorder_router.render.egress import rewrite_script
from servers.pki import Authority
from support.fakepool import Behaviour, FakePool
from support.ports import free_port
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def server_context(authority: Authority, name: str) -> ssl.SSLContext:
    """What a server called so needs for TLS."""
    pair = authority.issue(name, name, names=[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@pytest.fixture
async def provider(authority: Authority) -> AsyncIterator[FakePool]:
    """A provider that speaks TLS as api.example.com."""
    async with FakePool("ext", tls=server_context(authority, "api.example.com"), keep=True) as provider:
        yield provider


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[EmbeddedRouter]:
    """A router with a directory of keys."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "ext").write_text("sk-provider\n")
    async with EmbeddedRouter(
        listen=f"127.0.0.1:{free_port()}", policy="chat", directory=tmp_path / "r", keys=keys
    ) as router:
        yield router


def outside(
    provider: FakePool, authority: Authority, limit: int | None = None, **more: Any
) -> dict[str, Any]:
    tls = {"serverName": "api.example.com", "ca": authority.certificate.read_text()}
    return pool(provider, limit, tls=tls, **more)


def reason_of(router: EmbeddedRouter, pool: str) -> str:
    """Why nothing is sent to a pool; empty: not known, or it is well."""
    return router.problems[pool].reason if pool in router.problems else ""


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir() if path.is_file())


async def test_verifies_the_server_and_names_it(
    router: EmbeddedRouter,
    client: httpx.AsyncClient,
    start_pool: StartPool,
    authority: Authority,
    provider: FakePool,
) -> None:
    local = await start_pool("local")
    await router.apply(table([outside(provider, authority, 5), pool(local)]))

    response = await client.post(CHAT, json={})

    assert response.headers["x-meritorder-answered-by"] == "ext"
    assert provider.headers[-1]["host"] == f"api.example.com:{provider.port}"


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_sends_nothing_to_a_server_that_is_not_who_it_should_be(
    router: EmbeddedRouter,
    client: httpx.AsyncClient,
    start_pool: StartPool,
    authority: Authority,
    provider: FakePool,
    tmp_path: Path,
    wrong: str,
) -> None:
    local = await start_pool("local")
    entry = outside(provider, authority, 5)
    if wrong == "authority":
        entry["tls"]["ca"] = Authority(tmp_path / "other").certificate.read_text()
    else:
        entry["tls"]["serverName"] = "api.example.org"
    await router.apply(table([entry, pool(local)]))

    response = await client.post(CHAT, json={})

    assert response.headers["x-meritorder-answered-by"] == "local"
    assert provider.headers == []


async def test_trusts_the_mounted_ca_of_a_pool_as_it_is_now(
    keyed: EmbeddedRouter, start_pool: StartPool, authority: Authority, provider: FakePool, tmp_path: Path
) -> None:
    local = await start_pool("local")
    mounted = tmp_path / "keys" / "ca_ca.crt"
    tls = {"serverName": "api.example.com", "caFile": mounted.name}
    entry = pool(provider, 5, tls=tls, apiKeyFile="ext")
    applied = await keyed.apply(table([entry, pool(local)]))
    assert isinstance(applied, Applied)
    async with httpx.AsyncClient(base_url=keyed.base_url) as client:

        async def answered_by(name: str) -> bool:
            response = await client.post(CHAT, json={})
            assert response.status_code == 200
            return bool(response.headers["x-meritorder-answered-by"] == name)

        assert await answered_by("local")
        assert keyed.dead == {"ext"}
        mounted.write_bytes(authority.certificate.read_bytes())
        await until(lambda: answered_by("ext"), 15, "an answer by the pool whose CA came")
        assert provider.headers[-1]["authorization"] == "Bearer sk-provider"

        mounted.write_bytes(Authority(tmp_path / "other").certificate.read_bytes())
        await until(lambda: answered_by("local"), 15, "no trust in the old CA")
        mounted.unlink()
        await until(lambda: reason_of(keyed, "ext") == "CANotMounted", 15, "the file is missed")
        asked = len(provider.headers)
        assert await answered_by("local")
        # With nowhere else to go it is tried, and trusts no one.
        await keyed.apply(table([entry], sequence=2))
        assert (await client.post(CHAT, json={})).status_code == 503
        assert len(provider.headers) == asked


@pytest.mark.parametrize("first", ["ext", "local"])
async def test_keeps_keys_apart_when_the_first_pool_fails(
    keyed: EmbeddedRouter, start_pool: StartPool, authority: Authority, provider: FakePool, first: str
) -> None:
    local = await start_pool("local")
    local.keep = True
    entries = [
        outside(provider, authority, 5, apiKeyFile="ext", pathPrefix="/api", model='big "7b"\n'),
        pool(local, 5),
    ]
    await keyed.apply(table(entries if first == "ext" else entries[::-1]))
    (provider if first == "ext" else local).behaviour = Behaviour(kind="503")
    body = {
        "messages": [{"role": "user", "content": 'say "model": "x" {["\\'}],
        "tools": [{"model": "inner"}],
        "model": "small",
    }
    async with httpx.AsyncClient(base_url=keyed.base_url) as client:
        response = await client.post(CHAT, json=body, headers={"authorization": "Bearer client"})

    assert response.headers["x-meritorder-answered-by"] == ("local" if first == "ext" else "ext")
    assert provider.headers[-1]["authorization"] == "Bearer sk-provider"
    assert provider.headers[-1]["host"] == f"api.example.com:{provider.port}"
    assert not [
        name for name in provider.headers[-1] if name.startswith(("x-envoy", "x-meritorder", "x-forwarded"))
    ]
    assert provider.paths[-1] == "/api/v1/chat/completions"
    assert json.loads(provider.bodies[-1]) == {**body, "model": 'big "7b"\n'}
    assert local.headers[-1]["authorization"] == "Bearer client"
    assert json.loads(local.bodies[-1]) == body
    assert local.paths[-1] == "/v1/chat/completions"
    assert b"sk-provider" not in everything_in(Path(keyed.place.directory))
    assert "sk-provider" not in await keyed.admin.prometheus()


async def test_takes_a_rotated_key_at_once_and_passes_over_a_pool_without_one(
    keyed: EmbeddedRouter, start_pool: StartPool, authority: Authority, provider: FakePool, tmp_path: Path
) -> None:
    local = await start_pool("local")
    await keyed.apply(table([outside(provider, authority, 5, apiKeyFile="ext"), pool(local)]))
    async with httpx.AsyncClient(base_url=keyed.base_url) as client:
        await client.post(CHAT, json={})
        (tmp_path / "keys" / "ext").write_text("sk-second")
        await client.post(CHAT, json={})
        (tmp_path / "keys" / "ext").unlink()
        without = await client.post(CHAT, json={})

    assert [seen["authorization"] for seen in provider.headers] == ["Bearer sk-provider", "Bearer sk-second"]
    assert (without.status_code, without.headers["x-meritorder-answered-by"]) == (200, "local")


async def test_leaves_a_body_alone_that_names_no_model(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a = await start_pool("a")
    a.keep = True
    await router.apply(table([pool(a, model="other")]))
    bodies = [
        b"",
        b"{}",
        b"[1, 2",
        b'{"model": 7}',
        b'{"x": {"model": "in"}}',
        b'"model"',
        b'{"model',
        b"\x00\xff{",
    ]

    for body in bodies:
        assert (await client.post(CHAT, content=body)).status_code == 200
    await client.post(CHAT, content=b'{ "a" : [1], "model" :\n "m\\"x", "z": 1}')

    assert a.bodies == [*bodies, b'{ "a" : [1], "model" :\n "other", "z": 1}']


async def test_resolves_host_names_and_does_without_those_that_do_not_resolve(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    nowhere = {"name": "gone", "limit": 5, "endpoints": [{"address": "nowhere.invalid", "port": 80}]}
    named = pool(a, 5) | {"endpoints": [{"address": "localhost", "port": a.port}]}
    await router.apply(table([nowhere, named, pool(b)]))

    async def answered_by_name() -> bool:
        response = await client.post(CHAT, json={})
        assert response.status_code == 200
        return bool(response.headers["x-meritorder-answered-by"] == "a")

    await until(answered_by_name, 10, "an answer by the pool with a name")


def test_needs_no_script_for_a_path_alone(keyed: EmbeddedRouter) -> None:
    entry = table([{"name": "a", "pathPrefix": "/api", "endpoints": []}]).pools[0]

    assert rewrite_script(keyed.place, entry) is None


async def test_asks_for_usage_on_streams_that_do_not(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.keep = b.keep = True
    a.behaviour = Behaviour(kind="503")
    await router.apply(table([pool(a, 1), pool(b)], requests={"addUsage": True}))
    asked = {"stream_options": {"include_usage": True}}
    bodies: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"stream": True}, {"stream": True, **asked}),
        ({"stream": False}, {"stream": False}),
        ({"messages": [{"stream": True}]}, {"messages": [{"stream": True}]}),
        ({"stream": True, "stream_options": {}}, {"stream": True, "stream_options": {}}),
        ({"prompt": '"stream": true', "stream": True}, {"prompt": '"stream": true', "stream": True, **asked}),
    ]

    for sent, _ in bodies:
        assert (await client.post(CHAT, json=sent)).status_code == 200
    assert (await client.post(CHAT, content=b" not json")).status_code == 200

    assert [json.loads(body) for body in b.bodies[:-1]] == [seen for _, seen in bodies]
    assert b.bodies[-1] == b" not json"
    assert a.bodies[:5] == b.bodies[:5]


async def test_keeps_the_limit_while_bodies_are_read(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    a.behaviour = b.behaviour = Behaviour(seconds=2, chunks=1)  # as long as all of them take to arrive
    await router.apply(table([pool(a, 10), pool(b)], metric="ttft", target=100, requests={"addUsage": True}))
    body = json.dumps({"stream": True, "prompt": "x" * 300_000}).encode()

    await asyncio.gather(*(client.post(CHAT, content=body) for _ in range(60)))

    assert 8 <= a.most_in_flight <= 11
