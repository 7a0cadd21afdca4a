"""The routing table of an agent: what is routed, in which order, with which limits and endpoints."""

from typing import Any

import pytest

from meritorder_api.container import secret_file
from meritorder_api.policy import SecretKeyRef
from meritorder_api.resource import InferencePolicy
from meritorder_api.table import Fill, TableEndpoint
from meritorder_router.slices import PoolLimit, PoolSlice
from meritorder_router.table import PoolBackend, build, limits


def policy(pools: list[dict[str, Any]] | None = None, **status: Any) -> InferencePolicy:
    return InferencePolicy.parse(
        {
            "apiVersion": "meritorder.dev/v1alpha1",
            "kind": "InferencePolicy",
            "metadata": {"name": "chat", "namespace": "ml", "uid": "u-1"},
            "spec": {
                "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
                "pools": pools or [pool("l40s", "1.86"), pool("h100", "6.88")],
            },
            "status": status,
        }
    )


def pool(name: str, price: str, **backend: Any) -> dict[str, Any]:
    return {
        "name": name,
        "backend": {"service": {"name": f"chat-{name}", "port": 8000}, **backend},
        "cost": {"perReplicaHour": price},
    }


def routing(*pools: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"sequence": 41, "revision": "sha256:r", "pools": list(pools), **more}


TWO = PoolBackend(
    endpoints=(TableEndpoint(address="10.0.0.1", port=8000), TableEndpoint(address="10.0.0.2", port=8000)),
    ready=2,
)


def test_the_limit_is_per_replica_times_ready_replicas_rounded_down() -> None:
    chat = policy(
        routing=routing(
            {
                "name": "l40s",
                "limitPerReplica": "16.25",
                "classLimits": [
                    {"maxTokens": 512, "limitPerReplica": "3.5"},
                    {"maxTokens": 128, "limitPerReplica": "27.55"},
                ],
                "weightPercent": 80,
            },
            {"name": "h100"},
        )
    )
    three = PoolBackend(ready=3)
    assert limits(chat, {"l40s": three, "h100": TWO}) == (
        PoolLimit(pool="l40s", limit=48, classes=((128, 82), (512, 10)), weight_percent=80),
        PoolLimit(pool="h100", limit=None),
    )
    assert limits(chat, {})[0].limit == 0


def test_the_table_follows_the_routing_in_order_and_the_fallback_is_unlimited() -> None:
    chat = policy(
        routing=routing({"name": "l40s", "limitPerReplica": "16", "weightPercent": 80}, {"name": "h100"})
    )
    table = build(
        chat,
        {"l40s": TWO, "h100": TWO},
        fill=Fill.FILL,
        slices={"l40s": PoolSlice(limit=11, classes=((128, 5),))},
    )
    assert table is not None
    assert [(pool.name, pool.limit, pool.weight_percent) for pool in table.pools] == [
        ("l40s", 11, None),
        ("h100", None, None),
    ]
    assert [(limit.max_tokens, limit.limit) for limit in table.pools[0].class_limits] == [(128, 5)]
    assert (table.sequence, table.routing_revision, table.shed) == (41, "sha256:r", False)
    assert table.policy.uid == "u-1"
    assert table.size_classes
    assert table.table_revision.startswith("sha256:")


def test_equal_input_gives_equal_bytes_and_other_input_another_revision() -> None:
    chat = policy(routing=routing({"name": "l40s", "limitPerReplica": "16"}, {"name": "h100"}))
    one = build(chat, {"l40s": TWO}, fill=Fill.FILL, slices={"l40s": PoolSlice(limit=11)})
    same = build(chat, {"l40s": TWO}, fill=Fill.FILL, slices={"l40s": PoolSlice(limit=11)})
    other = build(chat, {"l40s": TWO}, fill=Fill.FILL, slices={"l40s": PoolSlice(limit=12)})
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.to_json() == same.to_json()
    assert one.table_revision != other.table_revision


def test_weights_are_in_the_table_only_where_they_decide() -> None:
    chat = policy(
        routing=routing({"name": "l40s", "limitPerReplica": "1", "weightPercent": 80}, {"name": "h100"})
    )
    table = build(chat, {}, fill=Fill.SPLIT, slices={})
    assert table is not None
    assert table.pools[0].weight_percent == 80


def test_without_a_routing_there_is_no_table() -> None:
    assert build(policy(), {}, fill=Fill.FILL, slices={}) is None
    assert limits(policy(), {}) == ()


def test_a_pool_that_left_the_spec_leaves_the_table() -> None:
    chat = policy(routing=routing({"name": "gone", "limitPerReplica": "3"}, {"name": "h100"}))
    table = build(chat, {}, fill=Fill.FILL, slices={})
    assert table is not None
    assert [pool.name for pool in table.pools] == ["h100"]
    assert build(policy(routing=routing({"name": "gone"})), {}, fill=Fill.FILL, slices={}) is None


def test_a_fallback_with_a_limit_is_held_to_it_and_sheds() -> None:
    chat = policy(routing=routing({"name": "h100", "limitPerReplica": "8"}, shed=True))
    table = build(chat, {"h100": TWO}, fill=Fill.FILL, slices={"h100": PoolSlice(limit=16)})
    assert table is not None
    assert (table.shed, table.pools[0].limit) == (True, 16)


def test_keys_are_named_by_file_never_carried() -> None:
    pools = [
        pool("l40s", "1.86", apiKeySecretRef={"name": "provider", "key": "api-key"}),
        pool("h100", "6.88"),
    ]
    table = build(
        policy(pools, routing=routing({"name": "l40s"}, {"name": "h100"})), {}, fill=Fill.FILL, slices={}
    )
    assert table is not None
    assert table.pools[0].api_key_file == "provider_api-key"
    long = SecretKeyRef(name="a" * 253, key="b" * 253)
    assert len(secret_file(long)) <= 253
    assert secret_file(long) != secret_file(SecretKeyRef(name="a" * 253, key="b" * 252))


@pytest.mark.parametrize("text", ["NaN", "-3", "Infinity", "many", ""])
def test_a_limit_that_is_no_number_closes_the_pool(text: str) -> None:
    chat = policy(routing=routing({"name": "l40s", "limitPerReplica": text}, {"name": "h100"}))
    assert limits(chat, {"l40s": TWO})[0].limit == 0
