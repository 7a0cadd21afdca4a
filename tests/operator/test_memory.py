"""What a loop remembers goes with the routing that the object has."""

from __future__ import annotations

from dataclasses import replace

from meritorder_core.learned import Learned
from meritorder_operator.view import Memory

BEFORE = Learned.initial().encode()
CUT = replace(Learned.initial(), fallback="h100", order=("l40s", "h100"))


def test_goes_on_from_what_it_knows_while_the_object_has_what_it_last_wrote() -> None:
    memory = Memory()
    assert memory.recall(BEFORE) == Learned.decode(BEFORE)
    memory.learned = CUT  # newer than what was written, which is not yet due again
    assert memory.recall(BEFORE) is CUT


def test_takes_the_objects_own_where_a_write_arrived_and_its_answer_was_lost() -> None:
    memory = Memory()
    memory.recall(BEFORE)
    written = CUT.encode()
    assert memory.recall(written) == Learned.decode(written)
