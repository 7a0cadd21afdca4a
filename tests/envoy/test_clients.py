"""A gateway that lets in only clients with a token: who passes, what the others read, and what a rotation
touches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import openai
import pytest

from support.agents import AgentProcess
from support.fakepool import Behaviour, FakePool
from support.mounts import mount
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
ALICE, BOB = "alice-" + "a1" * 20, "bob-" + "b2" * 20
LENGTHS = (1, 2, 54, 55, 56, 57, 63, 64, 65, 118, 119, 120, 127, 128, 129, 1000, 4095, 4096)
"""Around the edges of what SHA-256 takes at a time."""


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    """A gateway's agent, started by the test."""
    agent = AgentProcess(
        tmp_path,
        "--table",
        str(tmp_path / "table.json"),
        "--client-token-dir",
        str(tmp_path / "clients"),
        "--key-dir",
        str(tmp_path),
        "--log-level",
        "debug",
    )
    yield agent
    await asyncio.to_thread(agent.stop)


@pytest.fixture
async def client(agent: AgentProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def total(text: str, series: str) -> float:
    """The sum of a series in an exposition."""
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series))


async def answers(client: httpx.AsyncClient, token: str, status: int) -> None:
    """Wait until a request with this token is answered so."""

    async def holds() -> bool:
        return (await client.post(CHAT, json={}, headers=bearer(token))).status_code == status

    await until(holds, 15, f"an answer of {status}", retry_on=(httpx.TransportError,))


async def test_only_who_shows_a_token_passes_and_no_pool_sees_it(
    agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool, tmp_path: Path
) -> None:
    plain, keyed = await start_pool("plain"), await start_pool("keyed")
    plain.keep = keyed.keep = True
    (tmp_path / "provider").write_text("provider-key")
    mount(tmp_path / "clients", {"alice": ALICE, "bob": f"{BOB}\n", "empty": "", "bad": "two words"})
    entries = [pool(plain, 1), pool(keyed, apiKeyFile="provider")]
    (tmp_path / "table.json").write_bytes(table(entries).to_json())
    agent.start()
    await answers(client, ALICE, 200)

    for headers in (
        {},
        bearer("mallory"),
        {"authorization": "Bearer"},
        bearer("two words"),
        bearer(ALICE[:-1]),
        bearer(f"{ALICE}x"),
        bearer("x" * 5000),
        {"authorization": ALICE},
        {"authorization": f"Basic {ALICE}"},
    ):
        response = await client.post(CHAT, json={}, headers=headers)
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"] == {
            "message": "This gateway asks for a bearer token, and the one sent, if any, is not among those "
            "that it knows. They are in the Secret that the policy's `gateway.auth` names.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    assert (await client.get("/models")).status_code == 401
    assert (await client.post(CHAT, json={}, headers={"authorization": f"bearer  {BOB}"})).status_code == 200

    async with openai.AsyncOpenAI(base_url=agent.base_url, api_key="mallory", max_retries=0) as theirs:
        with pytest.raises(openai.AuthenticationError, match="This gateway asks for a bearer token"):
            await theirs.models.list()

    # The first pool is full: the second gets its own key, and neither the client's.
    plain.behaviour = Behaviour(seconds=1, chunks=0)
    both = [client.post(CHAT, json={}, headers=bearer(ALICE)) for _ in range(2)]
    assert {(await one).headers["x-meritorder-answered-by"] for one in asyncio.as_completed(both)} == {
        "plain",
        "keyed",
    }
    assert all("authorization" not in headers for headers in plain.headers)
    assert [headers["authorization"] for headers in keyed.headers] == ["Bearer provider-key"]

    # Who was turned away says nothing of how fast pools are.
    async with httpx.AsyncClient(base_url=agent.metrics_url) as scrape:
        passed = plain.requests + keyed.requests

        async def counted() -> bool:
            text = (await scrape.get("/metrics")).text
            return total(text, "envoy_meritorder_client_requests_total") == passed

        await until(counted, 10, f"{passed} requests are counted")


async def test_a_rotation_acts_at_once_and_cuts_no_stream(
    agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool, tmp_path: Path
) -> None:
    a = await start_pool("a")
    (tmp_path / "table.json").write_bytes(table([pool(a)]).to_json())
    mount(tmp_path / "clients", {"token": ALICE})
    agent.start()
    await answers(client, ALICE, 200)
    a.behaviour = Behaviour(chunks=40, chunk_seconds=0.1)

    async def stream() -> str:
        text = ""
        request = client.stream("POST", CHAT, json={"stream": True}, headers=bearer(ALICE))
        async with request as response:
            assert response.status_code == 200
            async for chunk in response.aiter_text():
                text += chunk
        return text

    streaming = asyncio.create_task(stream())
    await until(lambda: a.in_flight == 1, 5, "the stream")
    mount(tmp_path / "clients", {"token": BOB})
    a.behaviour = Behaviour()
    await answers(client, BOB, 200)
    await answers(client, ALICE, 401)
    assert not streaming.done()
    assert (await streaming).endswith("data: [DONE]\n\n")
    # Nobody is left who may pass.
    mount(tmp_path / "clients", {})
    await answers(client, BOB, 401)

    said = agent.log_text()
    written = "".join(path.read_text(errors="replace") for path in agent.state.rglob("*") if path.is_file())
    transport = httpx.AsyncHTTPTransport(uds=str(agent.state / "admin.sock"))
    async with httpx.AsyncClient(transport=transport) as admin:
        dumped = (await admin.get("http://envoy/config_dump?include_eds")).text
    for place in (said, written, dumped):
        assert ALICE not in place
        assert BOB not in place
    assert "no token of a client is mounted: every request is answered 401" in said


async def test_nobody_passes_without_the_secret_and_probes_do(
    agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool, tmp_path: Path
) -> None:
    a = await start_pool("a")
    (tmp_path / "table.json").write_bytes(table([pool(a)]).to_json())
    agent.start()
    async with httpx.AsyncClient(base_url=agent.metrics_url) as probe:

        async def ready() -> bool:
            return (await probe.get("/ready/table")).status_code == 200

        await until(ready, 15, "it is ready", retry_on=(httpx.TransportError,))
    assert (await client.post(CHAT, json={}, headers=bearer(ALICE))).status_code == 401
    mount(tmp_path / "clients", {"token": ALICE})
    await answers(client, ALICE, 200)


async def test_tokens_of_any_length_are_known(
    agent: AgentProcess, client: httpx.AsyncClient, start_pool: StartPool, tmp_path: Path
) -> None:
    a = await start_pool("a")
    (tmp_path / "table.json").write_bytes(table([pool(a)]).to_json())
    tokens = {f"of-{length}": ("".join(map(str, range(length))))[:length] for length in LENGTHS}
    mount(tmp_path / "clients", tokens)
    agent.start()
    await answers(client, tokens["of-64"], 200)
    for token in tokens.values():
        assert (await client.post(CHAT, json={}, headers=bearer(token))).status_code == 200, len(token)
        wrong = token[:-1] + "x"
        assert (await client.post(CHAT, json={}, headers=bearer(wrong))).status_code == 401, len(token)
    # More than are compared: those before stay.
    mount(tmp_path / "clients", {f"token-{number}": f"t-{number}" for number in range(257)})
    await until(lambda: "there must be at most 256" in agent.log_text(), 5, "it says so")
    assert (await client.post(CHAT, json={}, headers=bearer("t-1"))).status_code == 401
    assert (await client.post(CHAT, json={}, headers=bearer(tokens["of-55"]))).status_code == 200
