"""Pools whose servers cannot be reached or believed: the others serve, and the report says of each why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meritorder_router.agent.embedded import EmbeddedRouter
from servers.pki import Authority
from servers.tls_front import Front, tls_fronts
from support.agents import AgentProcess
from support.fakepool import FakePool
from support.ports import free_port, free_ports
from support.tables import pool, table
from support.tableserver import TableServer
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"
NAME = "api.example.com"
SERVERS = ("wrong-name", "expired", "unknown-ca", "right", "wildcard")


@pytest.fixture
async def behind() -> AsyncIterator[FakePool]:
    """What stands behind every TLS port."""
    async with FakePool("behind", keep=True) as behind:
        yield behind


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca", "ours")


@pytest.fixture
def ports(tmp_path: Path, authority: Authority, behind: FakePool) -> Iterator[dict[str, int]]:
    """TLS ports by what their certificate is."""
    other = Authority(tmp_path / "other", "theirs")
    pairs = {
        "wrong-name": authority.issue("wrong-name", "x", names=["api.example.org"]),
        "expired": authority.issue("expired", "x", names=[NAME], expired=True),
        "unknown-ca": other.issue("unknown-ca", "x", names=[NAME]),
        "right": authority.issue("right", "x", names=[NAME]),
        "wildcard": authority.issue("wildcard", "x", names=["*.example.com"]),
    }
    found = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
    fronts = [Front(port=found[name], behind=behind.port, pair=pairs[name]) for name in SERVERS]
    with tls_fronts(tmp_path / "fronts", fronts):
        yield found


def over_tls(name: str, port: int, *, limit: int | None = 9, **more: Any) -> dict[str, Any]:
    """A pool of the table that has one TLS server."""
    tls = {"serverName": NAME, **more}
    return {
        "name": name,
        "limit": limit,
        "tls": tls,
        "endpoints": [{"address": "127.0.0.1", "port": port}],
    }


async def test_every_server_that_is_not_to_be_believed_is_passed_over_and_the_report_says_why(
    tmp_path: Path,
    start_pool: StartPool,
    authority: Authority,
    behind: FakePool,
    ports: dict[str, int],
) -> None:
    local, plain = await start_pool("local"), await start_pool("plain")
    plain.keep = True
    ours: dict[str, Any] = {"ca": authority.certificate.read_text()}
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "ca_ca.crt").write_bytes(authority.certificate.read_bytes())
    (keys / "key").write_text("sk-gone")
    nowhere = {"address": "nowhere.invalid", "port": 443}
    gone = over_tls("gone", 1, **ours) | {"endpoints": [nowhere], "apiKeyFile": "key"}
    entries = [
        over_tls("wrong-name", ports["wrong-name"], **ours),
        over_tls("expired", ports["expired"], **ours),
        over_tls("unknown-ca", ports["unknown-ca"], **ours),
        over_tls("system-ca", ports["right"]),
        over_tls("plain", plain.port, **ours),
        gone,
        over_tls("closed", free_port(), **ours),
        over_tls("right", ports["right"], caFile="ca_ca.crt"),
        pool(local),
    ]
    codes: set[int] = set()
    answered: list[str] = []
    async with TableServer() as server:
        server.give(table(entries))
        agent = AgentProcess(tmp_path, "--server-url", server.url, "--policy", "chat", "--key-dir", str(keys))
        agent.start()
        try:
            async with httpx.AsyncClient(base_url=agent.base_url, timeout=20) as client:

                async def asked() -> None:
                    response = await client.post(CHAT, json={})
                    codes.add(response.status_code)
                    answered.append(response.headers["x-meritorder-answered-by"])

                async def served() -> bool:
                    return (await client.post(CHAT, json={})).status_code == 200

                await until(served, 20, "the first answer", retry_on=(httpx.TransportError,))

                async def all_told() -> bool:
                    await asked()
                    told = {name for name, seen in server.last.pools.items() if seen.problem is not None}
                    return len(told) == 7

                await until(lambda: server.reports, 5, "a report")
                await until(all_told, 20, "a reason for each pool")
                await until(lambda: answered[-1] == "right" or asked(), 5, "the pool that is well")
                before = len(behind.headers)
                await asyncio.gather(*(asked() for _ in range(40)))
            seen = server.last.pools
        finally:
            await asyncio.to_thread(agent.stop)

    assert codes == {200}
    assert set(answered) <= {"right", "local"}
    assert answered[-40:].count("right") >= 9
    problems = {
        name: (each.problem.reason, each.problem.message) for name, each in seen.items() if each.problem
    }
    assert problems.keys() == {entry["name"] for entry in entries} - {"right", "local"}
    certificate = "the certificate of 127.0.0.1:{} is refused: "
    for name, reason, begins, has in (
        (
            "wrong-name",
            "CertificateRefused",
            certificate,
            "not valid for 'api.example.com'; set `tls.serverName`",
        ),
        ("expired", "CertificateRefused", certificate, "certificate has expired; the server needs a new one"),
        (
            "unknown-ca",
            "CertificateRefused",
            certificate,
            "; give the CA that signed it by `tls.caSecretRef`",
        ),
        ("system-ca", "CertificateRefused", certificate, "; give the CA that signed it by `tls.caSecretRef`"),
        ("plain", "TLSFailed", "no TLS with 127.0.0.1:{}: ", "; check `port` and `tls`"),
        (
            "gone",
            "HostNotResolved",
            "`nowhere.invalid` does not resolve (",
            "check the name and the pod's DNS",
        ),
        ("closed", "Unreachable", "no connection to 127.0.0.1:{}: ", "connection refused"),
    ):
        port = next(entry for entry in entries if entry["name"] == name)["endpoints"][0]["port"]
        assert problems[name][0] == reason, name
        assert problems[name][1].startswith(begins.format(port)), problems[name]
        assert has in problems[name][1], problems[name]
        assert seen[name].healthy_endpoints == 0
    assert seen["right"].healthy_endpoints == 1
    # Whoever is not believed is sent nothing: what came, came by the right one.
    assert {headers["x-seen-sni"] for headers in behind.headers} == {NAME}
    assert len(behind.headers) == before + answered[-40:].count("right")
    assert (plain.headers, plain.health_checks) == ([], 0)


async def test_a_certificate_for_all_names_of_a_domain_is_believed(
    router: EmbeddedRouter,
    client: httpx.AsyncClient,
    authority: Authority,
    ports: dict[str, int],
) -> None:
    ours: dict[str, Any] = {"ca": authority.certificate.read_text()}
    await router.apply(table([over_tls("wildcard", ports["wildcard"], limit=None, **ours)]))

    assert (await client.post(CHAT, json={})).status_code == 200
    assert not router.problems


async def test_a_name_that_does_not_resolve_costs_the_others_no_time(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool
) -> None:
    local, other = await start_pool("local"), await start_pool("other")
    nowhere = [{"address": f"{n}.nowhere.invalid", "port": 443} for n in range(3)]
    await router.apply(table([pool(local, 30)]))
    loop = asyncio.get_running_loop()
    slowest = 0.0

    async def ask() -> str:
        nonlocal slowest
        began = loop.time()
        response = await client.post(CHAT, json={"stream": True})
        slowest = max(slowest, loop.time() - began)
        assert response.text.endswith("data: [DONE]\n\n")
        return str(response.headers["x-meritorder-answered-by"])

    asking = [asyncio.create_task(ask()) for _ in range(10)]
    # It comes in front of the others, in two shapes: by itself, and with a prefix of its own.
    gone = {"name": "gone", "limit": 50, "endpoints": nowhere, "tls": {"serverName": NAME}}
    rewritten = gone | {"name": "rewritten", "pathPrefix": "/api"}
    await router.apply(table([gone, rewritten, pool(local, 30), pool(other)], sequence=2))
    asking += [asyncio.create_task(ask()) for _ in range(60)]
    by = await asyncio.gather(*asking)
    await until(lambda: {"gone", "rewritten"} <= router.dead, 10, "they are passed over")
    by += await asyncio.gather(*(ask() for _ in range(60)))

    assert set(by) == {"local", "other"}
    assert slowest < 3.0  # a resolver waits for 5 s
    await until(lambda: len(router.problems) == 2, 10, "the reasons")
    assert {problem.reason for problem in router.problems.values()} == {"HostNotResolved"}
