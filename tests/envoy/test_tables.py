"""Tables that cannot be served are refused with a sentence, and what Envoy serves stays as it was."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meritorder_api.table import RoutingTable
from meritorder_router.agent.applier import Applied
from meritorder_router.agent.embedded import CannotStart, EmbeddedRouter
from meritorder_router.agent.validate import Refused, parse
from support.fakepool import FakePool
from support.ports import free_ports
from support.tables import pool, table
from support.waiting import until

StartPool = Callable[[str], Awaitable[FakePool]]
CHAT = "/chat/completions"

GOOD: dict[str, Any] = table(
    [
        {"name": "a", "endpoints": [{"address": "127.0.0.1", "port": 9001}], "limit": 5},
        {"name": "b", "endpoints": [{"address": "127.0.0.1", "port": 9002}]},
    ]
).dump()


def changed(path: str, value: object) -> bytes:
    """The good table with one thing else."""
    document = copy.deepcopy(GOOD)
    document.pop("tableRevision")
    node: Any = document
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key)] if key.isdigit() else node[key]
    if value is None and isinstance(node, dict):
        node.pop(last, None)
    else:
        node[int(last) if last.isdigit() else last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the table is not JSON"),
        (b"[" * 100_000, "the table is not JSON"),
        (b"null", "the table must be a JSON object, not NoneType"),
        (b'"x"', "the table must be a JSON object, not str"),
        (b"{}", "the table is not valid: `policy`: Field required (and 3 more)"),
        (changed("formatVersion", 2), "`formatVersion` is 2; this agent reads 1: update the router's image"),
        (changed("pools", []), "the table is not valid: `pools`: List should have at least 1 item"),
        (changed("pools.1.name", "a"), "`pools` has `a` twice; names must be unique"),
        (
            changed("pools.0.name", "A b"),
            "the table is not valid: `pools.0.name`: ",
        ),
        (changed("pools.0.name", "x" * 41), "the table is not valid: `pools.0.name`"),
        (changed("pools.0.limit", -1), "the table is not valid: `pools.0.limit`: Input should be greater"),
        (
            changed("pools.0.limit", 10**12),
            "pool `a`: `limit` is 1000000000000; it must be at most 1000000000",
        ),
        (changed("pools.0.limit", "many"), "the table is not valid: `pools.0.limit`"),
        (changed("pools.0.endpoints.0.port", 0), "the table is not valid: `pools.0.endpoints.0.port`"),
        (changed("pools.0.endpoints.0.port", 70000), "the table is not valid: `pools.0.endpoints.0.port`"),
        (changed("pools.0.endpoints.0.address", ""), "the table is not valid: `pools.0.endpoints.0.address`"),
        (
            changed("pools.0.endpoints.0.address", "a b"),
            "pool `a`: endpoint address 'a b' must be an IP address or",
        ),
        (
            changed("pools.0.endpoints.0.address", "x\n"),
            "pool `a`: endpoint address 'x\\n' must be an IP address or",
        ),
        (changed("pools.0.weightPercent", 101), "the table is not valid: `pools.0.weightPercent`"),
        (changed("pools.0.pathPrefix", "api"), "pool `a`: `pathPrefix` 'api' must be a path such as"),
        (changed("pools.0.pathPrefix", "/a\nb"), "pool `a`: `pathPrefix` '/a\\nb' must be a path such as"),
        (
            changed("pools.0.tls", {"serverName": "a b"}),
            "pool `a`: `tls.serverName` 'a b' must be a host name",
        ),
        (changed("sla.metric", "Latency"), "the table is not valid: `sla.metric`"),
        (changed("sla.targetMilliseconds", 0), "the table is not valid: `sla.targetMilliseconds`"),
        (
            changed("sla.targetMilliseconds", 10**9),
            "`sla.targetMilliseconds` is 1000000000; it must be at most",
        ),
        (changed("sequence", -1), "the table is not valid: `sequence`"),
        (changed("sequence", None), "the table is not valid: `sequence`: Field required"),
        (changed("fill", "Half"), "the table is not valid: `fill`"),
        (changed("requests", {"paths": ["v1"]}), "`requests.paths`: 'v1' must be a path such as"),
        (changed("requests", {"headers": ["cookie"]}), "the table is not valid: `requests.headers.0`"),
        (
            changed("timeouts", {"connectSeconds": -1}),
            "`timeouts.connectSeconds` is -1; it must be from 0 to 86400",
        ),
        (
            changed("timeouts", {"hedgeMilliseconds": 3_600_001}),
            "`timeouts.hedgeMilliseconds` is 3600001; it must be from 0 to 3600000",
        ),
    ],
)
def test_refuses_a_bad_table_in_a_sentence(content: bytes, sentence: str) -> None:
    found = parse(content)

    assert isinstance(found, Refused)
    assert sentence in found.reason
    assert len(found.reason) < 500
    assert "\n" not in found.reason


def test_drops_fields_of_a_newer_server() -> None:
    found = parse(changed("pools.0.newThing", {"deep": 1}))

    assert isinstance(found, RoutingTable)
    assert found.pools[0].limit == 5


def test_takes_a_table_without_the_fields_of_a_newer_server() -> None:
    content = {key: GOOD[key] for key in ("policy", "sequence", "pools", "sla")}

    found = parse(json.dumps(content).encode())

    assert isinstance(found, RoutingTable)
    assert found.table_revision.startswith("sha256:")


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**10) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _paths(node: object, prefix: str = "") -> list[str]:
    found: list[str] = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        path = f"{prefix}{key}"
        found += [path, *_paths(value, f"{path}.")]
    return found


@given(path=st.sampled_from(_paths(GOOD)), value=_json)
def test_never_stumbles_over_a_changed_field(path: str, value: object) -> None:
    found = parse(changed(path, value))

    assert isinstance(found, Refused | RoutingTable)


@given(content=st.binary(max_size=200))
def test_never_stumbles_over_bytes(content: bytes) -> None:
    assert isinstance(parse(content), Refused)


host = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True).filter(lambda h: ".." not in h)
some_pool = st.fixed_dictionaries(
    {
        "endpoints": st.lists(
            st.fixed_dictionaries(
                {
                    "address": st.sampled_from(["127.0.0.1", "10.1.2.3", "::1", "fd00::7"]) | host,
                    "port": st.integers(1, 65535),
                    "ready": st.booleans(),
                }
            ),
            max_size=3,
        ),
    },
    optional={
        "limit": st.integers(0, 10**9),
        "classLimits": st.lists(
            st.fixed_dictionaries({"maxTokens": st.integers(1, 10**6), "limit": st.integers(0, 10**9)}),
            max_size=9,
        ),
        "weightPercent": st.integers(0, 100),
        "pathPrefix": st.from_regex(r"/[A-Za-z0-9._~/-]{0,20}", fullmatch=True),
        "model": st.text(min_size=1, max_size=40),
        "tls": st.fixed_dictionaries({"serverName": host}),
    },
)
some_table = st.builds(
    lambda pools, **more: {
        **GOOD,
        "pools": [{"name": f"p{i}-{i}", **p} for i, p in enumerate(pools)],
        **more,
    },
    st.lists(some_pool, min_size=1, max_size=5),
    fill=st.sampled_from(["Fill", "Split"]),
    shed=st.booleans(),
    sizeClasses=st.booleans(),
    sla=st.fixed_dictionaries(
        {
            "metric": st.sampled_from(["EndToEndLatency", "TimeToFirstToken", "TimePerOutputToken"]),
            "targetMilliseconds": st.integers(1, 3_600_000),
        }
    ),
    timeouts=st.fixed_dictionaries(
        {
            "connectSeconds": st.integers(0, 86400),
            "responseHeadersSeconds": st.integers(0, 86400),
            "streamIdleSeconds": st.integers(0, 86400),
        }
    ),
    requests=st.fixed_dictionaries(
        {
            "addUsage": st.booleans(),
            "headers": st.lists(
                st.sampled_from([f"x-meritorder-{k}" for k in ("priority", "pool", "exclude", "session")]),
                unique=True,
            ),
            "paths": st.lists(st.from_regex(r"/[A-Za-z0-9._~/-]{0,20}", fullmatch=True), max_size=3),
        }
    ),
)


async def test_envoy_takes_whatever_passes_the_checks(router: EmbeddedRouter) -> None:
    refused: list[str] = []
    tables: list[RoutingTable] = []

    @settings(max_examples=60, suppress_health_check=list(HealthCheck), database=None)
    @given(document=some_table)
    def collect(document: dict[str, Any]) -> None:
        document.pop("tableRevision", None)
        found = parse(json.dumps(document).encode())
        if isinstance(found, RoutingTable):
            tables.append(found)

    collect()
    for number, each in enumerate(tables):
        result = await router.apply(each.model_copy(update={"sequence": number}).seal())
        if isinstance(result, Refused):
            refused.append(result.reason)

    assert len(tables) > 30
    assert refused == []


async def test_serves_a_table_that_it_is_started_with_from_the_first_request_on(
    start_pool: StartPool, tmp_path: Path
) -> None:
    a = await start_pool("a")
    (listen,) = free_ports(1)
    router = EmbeddedRouter(listen=f"127.0.0.1:{listen}", directory=tmp_path / "r")
    router.prepare()
    assert isinstance(await router.apply(table([pool(a)])), Applied)
    start = asyncio.create_task(router.start())
    try:
        async with httpx.AsyncClient(base_url=router.base_url) as client:
            # Asked all the while, so that the first moment in which somebody listens is not missed.
            first = await until(
                lambda: client.post(CHAT, json={}),
                30,
                "an answer",
                interval_seconds=0.002,
                retry_on=(httpx.ConnectError,),
            )
        await start
        assert (first.status_code, first.headers["x-meritorder-answered-by"]) == (200, "a")
    finally:
        await router.stop()


async def test_does_not_start_with_a_table_that_envoy_rejects(
    start_pool: StartPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listen,) = free_ports(1)
    router = EmbeddedRouter(listen=f"127.0.0.1:{listen}", directory=tmp_path / "r")
    router.prepare()
    monkeypatch.setattr("meritorder_router.render.routes.choice_script", lambda *_, **__: "not Lua")
    await router.apply(table([pool(await start_pool("a")), pool(await start_pool("b"))]))

    with pytest.raises(CannotStart, match=r"Envoy refuses the routing table: .*rds\.json"):
        await router.start()

    assert router.pid is None


async def test_takes_back_what_envoy_rejects(
    router: EmbeddedRouter, client: httpx.AsyncClient, start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start_pool("a"), await start_pool("b")
    assert isinstance(await router.apply(table([pool(a), pool(b)])), Applied)
    # No table that passes the checks is known to be rejected, so the renderer is made to stumble.
    monkeypatch.setattr("meritorder_router.render.routes.choice_script", lambda *_, **__: "not Lua")

    result = await router.apply(table([pool(b), pool(a)], sequence=2))

    assert isinstance(result, Refused)
    assert result.reason.startswith("Envoy rejected rds.json: ")
    assert "script load error" in result.reason
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "a"
    monkeypatch.undo()
    assert isinstance(await router.apply(table([pool(b), pool(a)], sequence=3)), Applied)
    assert (await client.post(CHAT, json={})).headers["x-meritorder-answered-by"] == "b"
