"""How agents share limits: exact, calm, fair, and never more than the limit while slices move."""

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meritorder_api.table import Fill
from meritorder_router.slices import (
    Agent,
    PoolLimit,
    apportion,
    fill_or_split,
    guard,
    share_out,
    split,
    targets,
)

LOADS = st.floats(min_value=0, max_value=10_000, allow_nan=False)
FLEETS = st.lists(LOADS, min_size=1, max_size=12)


def names(count: int) -> list[str]:
    return [f"agent-{number:02}" for number in range(count)]


def fleet(loads: list[float], held: Mapping[str, int] | None = None) -> list[Agent]:
    return [
        Agent(uid=uid, load=load, held={"cheap": held[uid]} if held and uid in held else {})
        for uid, load in zip(names(len(loads)), loads, strict=True)
    ]


def one(limit: int | None, **more: object) -> list[PoolLimit]:
    return [PoolLimit(pool="cheap", limit=limit, **more)]  # type: ignore[arg-type]


def given_slices(limit: int, agents: list[Agent], previous: Fill | None = None) -> dict[str, int]:
    shares = share_out(one(limit), agents, previous=previous)
    found = {uid: by_pool["cheap"].limit for uid, by_pool in shares.slices.items()}
    return {uid: part for uid, part in found.items() if part is not None}


@given(limit=st.integers(0, 5000), loads=FLEETS)
def test_slices_add_up_to_the_limit_exactly(limit: int, loads: list[float]) -> None:
    assert sum(given_slices(limit, fleet(loads)).values()) == limit


@given(limit=st.integers(0, 5000), loads=FLEETS, seed=st.integers(0, 1000))
def test_the_order_of_the_reports_does_not_matter(limit: int, loads: list[float], seed: int) -> None:
    agents = fleet(loads)
    shuffled = list(agents)
    random.Random(seed).shuffle(shuffled)
    assert given_slices(limit, agents) == given_slices(limit, shuffled)


@given(limit=st.integers(0, 5000), loads=FLEETS)
def test_who_carries_more_gets_no_less(limit: int, loads: list[float]) -> None:
    parts = targets(limit, dict(zip(names(len(loads)), loads, strict=True)))
    small = limit // len(loads) < 8  # too small to follow the load: equal, as far as that goes
    for uid, load in zip(names(len(loads)), loads, strict=True):
        for other, other_load in zip(names(len(loads)), loads, strict=True):
            if load > other_load:
                assert parts[uid] >= parts[other] - (1 if small or load - other_load < 0.01 else 0)


@given(limit=st.integers(0, 5000), loads=FLEETS, more=LOADS, who=st.integers(0, 11))
def test_more_load_never_makes_a_slice_smaller(limit: int, loads: list[float], more: float, who: int) -> None:
    uids = names(len(loads))
    uid = uids[who % len(uids)]
    before = dict(zip(uids, loads, strict=True))
    after = {**before, uid: before[uid] + more}
    assert targets(limit, after)[uid] >= targets(limit, before)[uid]


@given(limit=st.integers(0, 5000), loads=FLEETS)
def test_no_slice_is_below_8_where_limits_are_filled(limit: int, loads: list[float]) -> None:
    agents = fleet(loads)
    shares = share_out(one(limit), agents, previous=None)
    if shares.fill is Fill.FILL and limit:
        assert min(part["cheap"].limit or 0 for part in shares.slices.values()) >= 8


@settings(max_examples=150)
@given(data=st.data())
def test_agents_never_enforce_more_than_the_limit_while_slices_move(data: st.DataObject) -> None:
    """Tables arrive late and in any order, loads change, agents come: what is enforced stays under the
    limit.
    """
    limit = data.draw(st.integers(0, 400))
    loads = dict.fromkeys(names(data.draw(st.integers(1, 5))), 0.0)
    enforced: dict[str, int] = {}
    on_the_way: dict[str, list[int]] = {uid: [] for uid in loads}

    def server_gives() -> dict[str, int]:
        agents = [
            Agent(uid=uid, load=load, held={"cheap": max([enforced.get(uid, 0), *on_the_way[uid]])})
            for uid, load in loads.items()
        ]
        return given_slices(limit, agents)

    for _ in range(data.draw(st.integers(1, 25))):
        step = data.draw(st.sampled_from(["load", "hand", "apply", "join"]))
        uid = data.draw(st.sampled_from(sorted(loads)))
        if step == "load":
            loads[uid] = data.draw(st.floats(0, 500))
        elif step == "hand":
            on_the_way[uid].append(server_gives()[uid])
        elif step == "apply" and on_the_way[uid]:
            enforced[uid] = on_the_way[uid].pop(0)
        elif step == "join" and len(loads) < 8:
            new = f"agent-{len(loads):02}"
            loads[new], on_the_way[new] = 0.0, []
        assert sum(enforced.values()) <= limit
    for _ in range(3):
        for uid, part in server_gives().items():
            enforced[uid], on_the_way[uid] = part, []
    assert sum(enforced.values()) == limit
    assert server_gives() == enforced


def test_what_a_shrinking_agent_frees_is_given_away_only_when_it_says_so() -> None:
    wanted = targets(100, {"a": 0.0, "b": 500.0})
    assert wanted == {"a": 12, "b": 88}
    assert split(100, wanted, {"a": 50, "b": 50}) == {"a": 12, "b": 50}
    assert split(100, wanted, {"a": 12, "b": 50}) == {"a": 12, "b": 88}


def test_a_slice_near_enough_to_the_load_stays() -> None:
    held = {"agent-00": 52, "agent-01": 48}
    assert given_slices(100, fleet([50.0, 50.0], held)) == held
    assert given_slices(100, fleet([60.0, 45.0], held)) == held
    assert given_slices(100, fleet([300.0, 3.0], held)) != held


def test_a_raised_limit_acts_at_once_and_a_cut_one_too() -> None:
    held = {"agent-00": 50, "agent-01": 50}
    assert given_slices(200, fleet([1.0, 1.0], held)) == {"agent-00": 100, "agent-01": 100}
    assert given_slices(40, fleet([1.0, 1.0], held)) == {"agent-00": 20, "agent-01": 20}
    assert given_slices(0, fleet([1.0, 1.0], held)) == {"agent-00": 0, "agent-01": 0}


def test_a_newcomer_waits_until_the_others_have_shrunk() -> None:
    agents = [*fleet([5.0, 5.0], {"agent-00": 50, "agent-01": 50}), Agent(uid="agent-02")]
    first = given_slices(100, agents)
    assert first["agent-02"] == 0
    agents = [
        Agent(uid=uid, load=5.0 if uid != "agent-02" else 0.0, held={"cheap": part})
        for uid, part in first.items()
    ]
    second = given_slices(100, agents)
    assert sum(second.values()) == 100
    assert second["agent-02"] >= 8


def test_a_silent_agent_loses_its_share_and_its_possible_excess_is_shown() -> None:
    agents = [
        Agent(uid="a", load=3.0, held={"cheap": 30}),
        Agent(uid="b", load=3.0, held={"cheap": 70}, silent=True),
    ]
    shares = share_out(one(100), agents, previous=Fill.FILL)
    assert {uid: part["cheap"].limit for uid, part in shares.slices.items()} == {"a": 100}
    assert shares.excess == {"cheap": 70}


def test_a_server_that_just_started_takes_from_no_one_it_heard_of() -> None:
    heard = [Agent(uid="a", load=9.0, held={"cheap": 25})]
    few = share_out(one(100), heard, previous=Fill.FILL, missing=3)
    assert few.slices["a"]["cheap"].limit == 25
    newcomer = share_out(one(100), [*heard, Agent(uid="b")], previous=Fill.FILL, missing=2)
    assert newcomer.slices["a"]["cheap"].limit == 25
    assert newcomer.slices["b"]["cheap"].limit == 11
    assert share_out(one(100), heard, previous=Fill.FILL).slices["a"]["cheap"].limit == 100


@pytest.mark.parametrize(
    ("limits", "agents", "previous", "expected"),
    [
        ([16], 2, None, Fill.FILL),
        ([15], 2, None, Fill.SPLIT),
        ([15], 2, Fill.SPLIT, Fill.SPLIT),
        ([15], 2, Fill.FILL, Fill.FILL),
        ([12], 2, Fill.FILL, Fill.FILL),
        ([11], 2, Fill.FILL, Fill.SPLIT),
        ([100, 15], 2, None, Fill.SPLIT),
        ([100, 0], 2, None, Fill.FILL),
        ([100, None], 2, None, Fill.FILL),
        ([None], 2, None, Fill.FILL),
    ],
)
def test_fills_from_8_per_agent_and_splits_again_below_6(
    limits: list[int | None], agents: int, previous: Fill | None, expected: Fill
) -> None:
    pools = [PoolLimit(pool=f"p{number}", limit=limit) for number, limit in enumerate(limits)]
    assert fill_or_split(pools, agents, previous) is expected


def test_splitting_by_weight_leaves_room_for_a_chance_burst() -> None:
    shares = share_out(one(9, weight_percent=80), fleet([1.0, 1.0, 1.0]), previous=None)
    assert shares.fill is Fill.SPLIT
    assert [part["cheap"].limit for part in shares.slices.values()] == [5, 5, 5]
    assert guard(0, 3) == 1
    assert guard(4, 0) == 0


def test_small_limits_without_weights_are_shared_exactly() -> None:
    assert sorted(given_slices(7, fleet([9.0, 0.0, 0.0])).values()) == [2, 2, 3]


@given(limit=st.integers(1, 2000), loads=FLEETS, classes=st.lists(st.integers(0, 3000), max_size=4))
def test_class_slices_add_up_once_the_pool_is_settled(
    limit: int, loads: list[float], classes: list[int]
) -> None:
    sizes = tuple((64 << place, most) for place, most in enumerate(classes))
    first = share_out(one(limit, classes=sizes), fleet(loads), previous=None)
    for place, most in enumerate(classes):
        assert sum(part["cheap"].classes[place][1] for part in first.slices.values()) == most


def test_class_slices_wait_for_what_the_pool_has_not_given_away() -> None:
    agents = [Agent(uid="a", load=0.0, held={"cheap": 50}), Agent(uid="b", load=500.0, held={"cheap": 50})]
    shares = share_out(one(100, classes=((128, 200),)), agents, previous=Fill.FILL)
    assert shares.slices["a"]["cheap"].classes == ((128, 24),)
    assert shares.slices["b"]["cheap"].classes == ((128, 100),)


@given(
    total=st.integers(0, 10_000),
    weights=st.dictionaries(st.text(max_size=3), st.integers(0, 1000), min_size=1),
)
def test_apportioning_is_exact_and_within_one_of_the_quota(total: int, weights: dict[str, int]) -> None:
    parts = apportion(total, weights)
    assert sum(parts.values()) == total
    whole = sum(weights.values())
    if whole:
        assert all(abs(part - total * weights[uid] / whole) < 1 for uid, part in parts.items())
