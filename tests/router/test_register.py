"""What a server knows of agents: the newest report counts, whoever heard it, and promises until they are
kept.
"""

from typing import Any

from meritorder_api.table import AgentReport, PeerReport, PoolSeen, RoutingTable, TablePolicy
from meritorder_router.server.auth import AgentIdentity
from meritorder_router.server.cluster import Key
from meritorder_router.server.register import Register

KEY = ("ml", "chat")
IDENTITY = AgentIdentity(namespace="ml", pod="pod-1", uid="a", policy="chat")


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def register(clock: Clock) -> tuple[Register, list[Key]]:
    changes: list[Key] = []
    return Register(clock=clock, on_change=changes.append), changes


def report(limit: int | None = None, revision: str = "sha256:1", **more: Any) -> AgentReport:
    return AgentReport(
        policy=TablePolicy(namespace="ml", name="chat", uid="u"),
        applied_sequence=1,
        applied_revision=revision,
        pools={"l40s": PoolSeen(slice=limit)},
        **more,
    )


def table(limit: int) -> RoutingTable:
    return RoutingTable.model_validate(
        {
            "policy": {"namespace": "ml", "name": "chat", "uid": "u"},
            "sequence": 1,
            "pools": [{"name": "l40s", "limit": limit}, {"name": "h100"}],
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
        }
    ).seal()


def passed(age: float, what: AgentReport, **promised: int) -> PeerReport:
    return PeerReport(namespace="ml", pod="pod-1", uid="a", age_seconds=age, report=what, promised=promised)


def held(known: Register) -> dict[str, int]:
    (agent,) = known.agents(KEY, "u")
    return dict(agent.held)


def test_a_slice_handed_out_counts_until_it_is_acknowledged() -> None:
    known, _ = register(Clock())
    known.reported(IDENTITY, report(10))
    bigger, smaller = table(30), table(5)
    known.handed(IDENTITY, bigger)
    assert held(known) == {"l40s": 30}
    known.handed(IDENTITY, smaller)
    assert held(known) == {"l40s": 30}
    known.reported(IDENTITY, report(5, smaller.table_revision))
    assert held(known) == {"l40s": 5}


def test_a_table_lost_on_the_way_counts_for_ten_seconds() -> None:
    clock = Clock()
    known, _ = register(clock)
    known.reported(IDENTITY, report(10))
    known.handed(IDENTITY, table(30))
    clock.seconds += 9.9
    assert held(known) == {"l40s": 30}
    clock.seconds += 0.2
    assert held(known) == {"l40s": 10}


def test_an_agent_that_reports_no_slices_acknowledges_by_revision() -> None:
    known, _ = register(Clock())
    given = table(30)
    known.handed(IDENTITY, given)
    known.reported(IDENTITY, report(None, given.table_revision))
    assert held(known) == {"l40s": 30}


def test_the_newest_report_counts_whoever_heard_it() -> None:
    clock = Clock()
    known, _ = register(clock)
    known.reported(IDENTITY, report(10))
    clock.seconds += 5
    known.passed_on("other", [passed(6.0, report(99))])
    assert held(known) == {"l40s": 10}
    known.passed_on("other", [passed(1.0, report(12))])
    assert held(known) == {"l40s": 12}
    assert known.to_pass_on() == []


def test_asking_one_server_and_reporting_to_another_hides_nothing() -> None:
    clock = Clock()
    known, _ = register(clock)
    known.polled(IDENTITY)
    clock.seconds += 1
    known.passed_on("other", [passed(0.5, report(12))])
    clock.seconds += 1
    known.polled(IDENTITY)
    known.passed_on("other", [passed(0.9, report(14))])
    assert held(known) == {"l40s": 14}


def test_an_agent_that_only_asked_yet_hides_no_report_at_other_servers() -> None:
    clock = Clock()
    here, _ = register(clock)
    there, _ = register(clock)
    there.reported(IDENTITY, report(12))
    clock.seconds += 1
    here.polled(IDENTITY)
    there.passed_on("here", here.to_pass_on())
    assert held(there) == {"l40s": 12}


def test_promises_of_another_server_count_until_it_takes_them_back_or_is_gone() -> None:
    clock = Clock()
    known, changes = register(clock)
    known.reported(IDENTITY, report(10))
    changes.clear()
    known.passed_on("other", [passed(0.1, report(10), l40s=25)])
    assert held(known) == {"l40s": 25}
    assert KEY in changes
    known.passed_on("other", [passed(0.1, report(10))])
    assert held(known) == {"l40s": 10}
    known.passed_on("other", [passed(0.1, report(10), l40s=25)])
    clock.seconds += 6
    known.drop_lost_servers()
    assert held(known) == {"l40s": 10}


def test_silence_begins_after_fifteen_seconds_without_any_sign() -> None:
    clock = Clock()
    known, _ = register(clock)
    known.reported(IDENTITY, report(10))
    clock.seconds += 14.9
    (agent,) = known.agents(KEY, "u")
    assert not agent.silent
    clock.seconds += 0.1
    (agent,) = known.agents(KEY, "u")
    assert agent.silent
    known.polled(IDENTITY)
    (agent,) = known.agents(KEY, "u")
    assert not agent.silent


def test_a_forgotten_agent_does_not_come_back_by_hearsay() -> None:
    known, _ = register(Clock())
    known.reported(IDENTITY, report(10))
    known.forget("a")
    known.passed_on("other", [passed(20.0, report(10))])
    assert known.of(KEY) == []
    known.polled(IDENTITY)
    assert len(known.of(KEY)) == 1


def test_only_what_moves_slices_is_a_change_at_once() -> None:
    known, changes = register(Clock())
    known.reported(IDENTITY, report(10))
    changes.clear()
    known.reported(IDENTITY, report(10, offered_load=55.0))
    assert changes == []
    known.reported(IDENTITY, report(11, offered_load=55.0))
    assert changes == [KEY]


def test_slices_of_a_policy_that_was_deleted_say_nothing_of_the_new_one() -> None:
    known, _ = register(Clock())
    known.reported(IDENTITY, report(10))
    (agent,) = known.agents(KEY, "another-uid")
    assert agent.held == {}


def test_an_agent_whose_pod_names_another_policy_moves_there() -> None:
    known, _ = register(Clock())
    known.reported(IDENTITY, report(10))
    moved = AgentIdentity(namespace="ml", pod="pod-1", uid="a", policy="other")
    known.polled(moved)
    assert known.of(KEY) == []
    assert [one.identity for one in known.of(("ml", "other"))] == [moved]
