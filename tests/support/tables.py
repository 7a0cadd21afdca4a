"""Routing tables for tests, from fake pools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meritorder_api.table import RoutingTable
from support.fakepool import FakePool

METRICS = {"e2e": "EndToEndLatency", "ttft": "TimeToFirstToken", "tpot": "TimePerOutputToken"}


def pool(fake: FakePool, limit: int | None = None, **more: Any) -> dict[str, Any]:
    """A pool of the table that has one fake server."""
    entry: dict[str, Any] = {
        "name": fake.name,
        "endpoints": [{"address": fake.host, "port": fake.port}],
        **more,
    }
    if limit is not None:
        entry["limit"] = limit
    return entry


def table(
    pools: Iterable[dict[str, Any]],
    *,
    sequence: int = 1,
    metric: str = "e2e",
    target: int = 60_000,
    uid: str = "u-1",
    **more: Any,
) -> RoutingTable:
    """A sealed table; pools in merit order."""
    return RoutingTable.model_validate(
        {
            "policy": {"namespace": "ml", "name": "chat", "uid": uid},
            "sequence": sequence,
            "sla": {"metric": METRICS[metric], "targetMilliseconds": target},
            "pools": list(pools),
            **more,
        }
    ).seal()
