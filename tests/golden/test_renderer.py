"""What the renderer writes, in full: a change of it is seen in review as a change of these files.

`MERITORDER_UPDATE_GOLDEN=1 pytest tests/golden` writes them anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from meritorder_router.render.files import render, render_bootstrap, render_empty
from meritorder_router.render.place import BOOTSTRAP, Address, Place
from support.tables import table

GOLDEN = Path(__file__).parent / "renderer"
PLACE = Place(
    directory=PurePosixPath("/run/meritorder"),
    listen=Address("127.0.0.1", 8089),
    metrics=Address("0.0.0.0", 9902),
    policy="chat",
    keys=PurePosixPath("/run/keys"),
)


def server(address: str, port: int = 8000, **more: Any) -> dict[str, Any]:
    return {"address": address, "port": port, **more}


PLAIN = table(
    [
        {"name": "l40s", "limit": 48, "endpoints": [server("10.0.0.2"), server("10.0.0.1", ready=False)]},
        {"name": "a100", "limit": 96, "endpoints": [server("10.0.1.1")]},
        {"name": "h100", "endpoints": [server("10.0.2.1"), server("fd00::2")]},
    ],
    target=2000,
)
FULL = table(
    [
        {"name": "l40s", "limit": 3, "weightPercent": 60, "endpoints": [server("10.0.0.2")]},
        {
            "name": "provider",
            "limit": 9,
            "weightPercent": 40,
            "tls": {"serverName": "api.example.com"},
            "endpoints": [server("api.example.com", 443)],
            "pathPrefix": "/api",
            "model": "large",
            "apiKeyFile": "provider",
        },
        {"name": "h100", "limit": 0, "endpoints": [server("10.0.2.1")]},
    ],
    metric="ttft",
    target=400,
    fill="Split",
    shed=True,
    timeouts={"connectSeconds": 0, "responseHeadersSeconds": 0, "streamIdleSeconds": 0},
    requests={
        "headers": ["x-meritorder-priority", "x-meritorder-pool", "x-meritorder-exclude"],
        "paths": ["/v1/rerank"],
    },
)
SESSIONS = table(
    [
        {"name": "l40s", "limit": 48, "endpoints": [server("10.0.0.2"), server("10.0.0.1")]},
        {"name": "h100", "endpoints": [server("10.0.2.1")]},
    ],
    target=2000,
    timeouts={"responseHeadersSeconds": 30, "streamIdleSeconds": 60, "hedgeMilliseconds": 800},
    requests={"headers": ["x-meritorder-session", "x-meritorder-priority"]},
)
CLASSES = table(
    [
        {
            "name": "l40s",
            "limit": 16,
            "classLimits": [{"maxTokens": 128, "limit": 48}, {"maxTokens": 512, "limit": 0}],
            "endpoints": [server("10.0.0.2")],
        },
        {"name": "h100", "endpoints": [server("10.0.2.1")]},
    ],
    target=8000,
    sizeClasses=True,
    requests={"headers": ["x-meritorder-priority"]},
)
CASES = {
    "empty": {BOOTSTRAP: render_bootstrap(PLACE, None), **render_empty(PLACE).all()},
    "plain": {BOOTSTRAP: render_bootstrap(PLACE, PLAIN.sla), **render(PLACE, PLAIN).all()},
    "full": {BOOTSTRAP: render_bootstrap(PLACE, FULL.sla), **render(PLACE, FULL, dead={"l40s"}).all()},
    "sessions": {BOOTSTRAP: render_bootstrap(PLACE, SESSIONS.sla), **render(PLACE, SESSIONS).all()},
    "classes": {BOOTSTRAP: render_bootstrap(PLACE, CLASSES.sla), **render(PLACE, CLASSES).all()},
}


def pretty(content: bytes) -> str:
    return json.dumps(json.loads(content), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_renders_the_golden_files(case: str) -> None:
    directory = GOLDEN / case
    rendered = {name: pretty(content) for name, content in CASES[case].items()}
    if os.environ.get("MERITORDER_UPDATE_GOLDEN"):
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            path.unlink()
        for name, text in rendered.items():
            (directory / name).write_text(text)

    assert rendered == {path.name: path.read_text() for path in directory.iterdir()}


def test_renders_equal_tables_to_equal_bytes() -> None:
    again = type(PLAIN).model_validate_json(PLAIN.to_json())

    assert render(PLACE, again).all() == render(PLACE, PLAIN).all()


def test_changes_no_cluster_when_limits_order_of_pools_target_and_endpoints_change() -> None:
    pools = PLAIN.dump()["pools"]
    changed = table(
        [
            pools[1] | {"limit": 5},
            pools[0] | {"limit": 0, "endpoints": [server("10.9.9.9")]},
            pools[2] | {"endpoints": []},
        ],
        target=500,
        requests={"headers": ["x-meritorder-pool"], "paths": ["/v1/rerank"]},
        shed=True,
    )

    assert render(PLACE, changed).cds == render(PLACE, PLAIN).cds
    assert render(PLACE, changed).rds != render(PLACE, PLAIN).rds


def test_changes_nothing_for_class_limits_where_the_policy_has_no_size_classes() -> None:
    pools = PLAIN.dump()["pools"]
    limited = [pools[0] | {"classLimits": [{"maxTokens": 128, "limit": 9}]}, *pools[1:]]

    assert render(PLACE, table(limited, target=2000)).rds == render(PLACE, PLAIN).rds


def test_changes_no_cluster_of_requests_without_a_session_when_sessions_begin_to_act() -> None:
    rewritten = [
        pool | {"model": "other"} if pool["name"] == "a100" else pool for pool in PLAIN.dump()["pools"]
    ]

    def clusters(*headers: str) -> dict[str, Any]:
        content = render(PLACE, table(rewritten, target=2000, requests={"headers": headers})).cds
        return {cluster["name"]: cluster for cluster in json.loads(content)["resources"]}

    before, after = clusters(), clusters("x-meritorder-session")

    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before


def test_never_changes_a_chain_under_its_name() -> None:
    def chains(**of_a100: Any) -> dict[str, Any]:
        pools = [pool | of_a100 if pool["name"] == "a100" else pool for pool in PLAIN.dump()["pools"]]
        content = render(PLACE, table(pools, requests={"headers": ["x-meritorder-session"]})).cds
        clusters = json.loads(content)["resources"]
        return {cluster["name"]: cluster for cluster in clusters if "cluster_type" in cluster}

    before, after = chains(), chains(model="other")

    assert {name: before[name] for name in before.keys() & after.keys()} == {
        name: after[name] for name in before.keys() & after.keys()
    }
