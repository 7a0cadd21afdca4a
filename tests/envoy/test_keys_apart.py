"""Who sees what: every order of pools with keys of their own, those in front failing. Each pool gets its own
key, name, path and model, and nobody else's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meritorder_router.agent.embedded import Applied, EmbeddedRouter
from servers.pki import Authority
from servers.tls_front import Front, tls_fronts
from support.fakepool import Behaviour, FakePool
from support.ports import free_port, free_ports
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
KEYS = {"x": "sk-of-x", "y": "sk-of-y"}
NAMES = {"x": "api.x.example", "y": "llm.y.example"}
PREFIXES = {"x": "/openai/v2", "y": None}
MODELS = {"x": "x/large", "y": "y-7b"}
CLIENT = {
    "authorization": "Bearer client-token",
    "api-key": "client-azure",
    "x-api-key": "client-anthropic",
    "x-goog-api-key": "client-google",
    "cookie": "session=client-cookie",
    "proxy-authorization": "Basic client-proxy",
    "openai-organization": "client-org",
    "openai-project": "client-project",
}
"""What a client may carry of its own, by whichever provider's library."""
BODY = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


class Providers:
    """Two providers with keys, and a pool of one's own; all of them keep what they see."""

    def __init__(self, pools: dict[str, FakePool], ports: dict[str, int], authority: Authority) -> None:
        self.pools = pools
        self.ports = ports
        self.authority = authority

    def entry(self, name: str, limit: int | None) -> dict[str, Any]:
        """The pool of a table."""
        if name not in KEYS:
            return pool(self.pools[name], limit)
        more: dict[str, Any] = {"apiKeyFile": name, "model": MODELS[name]}
        if PREFIXES[name] is not None:
            more["pathPrefix"] = PREFIXES[name]
        tls = {"serverName": NAMES[name], "ca": self.authority.certificate.read_text()}
        entry = pool(self.pools[name], limit, tls=tls, **more)
        return entry | {"endpoints": [{"address": "127.0.0.1", "port": self.ports[name]}]}

    def forget(self) -> None:
        """Forget what was seen; all are well again."""
        for each in self.pools.values():
            each.headers.clear()
            each.paths.clear()
            each.bodies.clear()
            each.behaviour = Behaviour()


@pytest.fixture
async def behind() -> AsyncIterator[dict[str, FakePool]]:
    async with (
        FakePool("x", keep=True) as x,
        FakePool("y", keep=True) as y,
        FakePool("own", keep=True) as own,
    ):
        yield {"x": x, "y": y, "own": own}


@pytest.fixture
def providers(tmp_path: Path, behind: dict[str, FakePool]) -> Iterator[Providers]:
    authority = Authority(tmp_path / "ca")
    ports = dict(zip(KEYS, free_ports(len(KEYS)), strict=True))
    fronts = [
        Front(
            port=ports[name],
            behind=behind[name].port,
            pair=authority.issue(name, name, names=[NAMES[name]]),
            alpn=("h2", "http/1.1") if name == "x" else ("http/1.1",),
        )
        for name in KEYS
    ]
    with tls_fronts(tmp_path / "fronts", fronts):
        yield Providers(behind, ports, authority)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory of keys as the kubelet mounts a Secret: files are links into the newest version of it."""
    directory = tmp_path / "keys"
    directory.mkdir()
    mount(directory, KEYS)
    for name in KEYS:
        (directory / name).symlink_to(f"..data/{name}")
    return directory


def mount(directory: Path, keys: dict[str, str]) -> None:
    """Put another version of the Secret in place at once, as the kubelet does."""
    number = len(list(directory.glob("..v*")))
    version = directory / f"..v{number}"
    version.mkdir()
    for name, key in keys.items():
        (version / name).write_text(key + "\n")
    (directory / "..new").symlink_to(version.name)
    os.replace(directory / "..new", directory / "..data")


@pytest.fixture
async def keyed(tmp_path: Path, keys: Path) -> AsyncIterator[EmbeddedRouter]:
    async with EmbeddedRouter(
        listen=f"127.0.0.1:{free_port()}", policy="chat", directory=tmp_path / "r", keys=keys
    ) as router:
        yield router


def check(name: str, providers: Providers, router: EmbeddedRouter) -> None:
    """The only request that this pool saw is the one that it should have seen."""
    seen = providers.pools[name]
    (headers,), (path,), (body,) = seen.headers, seen.paths, seen.bodies
    everything = "\n".join(f"{key}: {value}" for key, value in headers.items())
    strangers = {key for owner, key in KEYS.items() if owner != name}
    assert not [key for key in strangers if key in everything]
    assert headers["host"] == (
        f"{NAMES[name]}:{providers.ports[name]}" if name in KEYS else f"127.0.0.1:{seen.port}"
    )
    assert not [header for header in headers if header.startswith("x-meritorder")]
    if name in KEYS:
        assert headers["authorization"] == f"Bearer {KEYS[name]}"
        assert "client" not in everything
        assert headers["x-seen-sni"] == NAMES[name]
        assert headers["x-seen-protocol"] == ("HTTP/2" if name == "x" else "HTTP/1.1")
        assert path == (PREFIXES[name] or "") + "/v1/chat/completions"
        assert json.loads(body) == BODY | {"model": MODELS[name]}
        assert not [header for header in headers if header.startswith(("x-envoy", "x-forwarded-h"))]
    else:
        assert {key: headers.get(key) for key in CLIENT} == CLIENT
        assert path == "/v1/chat/completions"
        assert json.loads(body) == BODY


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir() if path.is_file())


ORDERS = [
    *itertools.permutations(["x", "y"]),
    *(order for order in itertools.permutations(["x", "y", "own"], 2) if "own" in order),
    *itertools.permutations(["x", "y", "own"]),
]


@pytest.mark.parametrize("fault", ["503", "reset"])
async def test_every_pool_sees_its_own_key_name_path_and_model_whoever_failed_before(
    keyed: EmbeddedRouter, providers: Providers, fault: str
) -> None:
    sequence = 0
    async with httpx.AsyncClient(base_url=keyed.base_url, timeout=20) as client:
        for order in ORDERS:
            sequence += 1
            last = len(order) - 1
            entries = [providers.entry(name, None if i == last else 9) for i, name in enumerate(order)]
            wanted = table(entries, sequence=sequence, requests={"headers": ["x-meritorder-pool"]})
            assert isinstance(await keyed.apply(wanted), Applied)
            for failing in range(len(order)):
                # An answer of each forgives the failures before: it is not to be ejected.
                for name in order:
                    pinned = await client.post(CHAT, json=BODY, headers={"x-meritorder-pool": name})
                    assert (pinned.status_code, pinned.headers["x-meritorder-answered-by"]) == (200, name)
                providers.forget()
                for name in order[:failing]:
                    providers.pools[name].behaviour = Behaviour(kind=fault)

                answer = await client.post(CHAT, json=BODY, headers=CLIENT)

                assert answer.status_code == 200, (order, failing)
                assert answer.headers["x-meritorder-answered-by"] == order[failing], (order, failing)
                for name in order[: failing + 1]:
                    check(name, providers, keyed)
                for name in order[failing + 1 :]:
                    assert providers.pools[name].headers == []
                providers.forget()
    for name in KEYS:
        assert providers.pools[name].health_hosts == {f"{NAMES[name]}:{providers.ports[name]}"}
    dumped = everything_in(Path(keyed.place.directory)) + (await keyed.admin.prometheus()).encode()
    assert not [key for key in (*KEYS.values(), *CLIENT.values()) if key.encode() in dumped]


async def test_a_rotated_key_is_taken_without_touching_a_stream(
    keyed: EmbeddedRouter, providers: Providers, keys: Path
) -> None:
    x, own = providers.pools["x"], providers.pools["own"]
    await keyed.apply(table([providers.entry("x", 9), providers.entry("own", None)]))
    async with httpx.AsyncClient(base_url=keyed.base_url, timeout=20) as client:
        x.behaviour = Behaviour(chunks=15, chunk_seconds=0.1)
        streams = [asyncio.create_task(client.post(CHAT, json={"stream": True})) for _ in range(5)]
        await until(lambda: x.in_flight == 5, 10, "streams")
        x.behaviour = Behaviour()
        for key in ("sk-second", "sk-third"):
            mount(keys, KEYS | {"x": key})
            await client.post(CHAT, json=BODY)
            assert x.headers[-1]["authorization"] == f"Bearer {key}"
        ended = await asyncio.gather(*streams)

    assert [stream.text.endswith("data: [DONE]\n\n") for stream in ended] == [True] * 5
    assert [headers["authorization"] for headers in x.headers[:5]] == ["Bearer sk-of-x"] * 5
    assert own.headers == []


@pytest.mark.parametrize("text", ["sk-windows\r\nsecond line", "  sk-windows ", "sk-windows"])
async def test_a_key_is_the_first_line_of_its_file_without_what_is_around_it(
    keyed: EmbeddedRouter, providers: Providers, keys: Path, text: str
) -> None:
    (keys / "..data" / "x").write_text(text)
    await keyed.apply(table([providers.entry("x", None)]))

    async with httpx.AsyncClient(base_url=keyed.base_url) as client:
        assert (await client.post(CHAT, json=BODY)).status_code == 200

    assert providers.pools["x"].headers[-1]["authorization"] == "Bearer sk-windows"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"sk-\xc3\xa4", b"sk-\x7f"])
async def test_a_file_without_a_key_is_said_and_its_pool_passed_over(
    keyed: EmbeddedRouter, providers: Providers, keys: Path, content: bytes
) -> None:
    (keys / "..data" / "x").write_bytes(content)
    await keyed.apply(table([providers.entry("x", 9), providers.entry("own", None)]))

    async with httpx.AsyncClient(base_url=keyed.base_url) as client:
        answer = await client.post(CHAT, json=BODY)
        problem = keyed.problems["x"]
        # With nowhere else to go it is asked, and says no by itself.
        await keyed.apply(table([providers.entry("x", None)], sequence=2))
        alone = await client.post(CHAT, json=BODY)

    assert answer.headers["x-meritorder-answered-by"] == "own"
    assert (problem.reason, problem.message) == (
        "KeyNotMounted",
        "the file of its API key (`x`) holds no key in its first line; mend the Secret",
    )
    assert alone.status_code == 503
    assert providers.pools["x"].headers == []


async def test_a_key_that_its_provider_refuses_is_not_the_clients_trouble(
    keyed: EmbeddedRouter, providers: Providers
) -> None:
    x, y = providers.pools["x"], providers.pools["y"]
    await keyed.apply(table([providers.entry("x", 9), providers.entry("y", None)]))
    x.behaviour = Behaviour(kind="401")
    async with httpx.AsyncClient(base_url=keyed.base_url) as client:
        answer = await client.post(CHAT, json=BODY)
        assert (answer.status_code, answer.headers["x-meritorder-answered-by"]) == (200, "y")
        y.behaviour = Behaviour(kind="401")
        refused = await client.post(CHAT, json=BODY)

    assert refused.status_code == 502
    assert refused.json() == {
        "error": {
            "message": "The pool's own API key was refused.",
            "type": "server_error",
            "param": None,
            "code": "pool_key_refused",
        }
    }
    assert "says 401" not in refused.text


async def test_a_pool_without_a_key_answers_for_the_clients_own(
    keyed: EmbeddedRouter, providers: Providers
) -> None:
    own, y = providers.pools["own"], providers.pools["y"]
    own.behaviour = Behaviour(kind="401")
    await keyed.apply(table([providers.entry("own", 9), providers.entry("y", None)]))

    async with httpx.AsyncClient(base_url=keyed.base_url) as client:
        answer = await client.post(CHAT, json=BODY, headers=CLIENT)

    assert (answer.status_code, y.requests) == (401, 0)
    assert "says 401" in answer.text
