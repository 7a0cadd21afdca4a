"""How restless limits are: changes, and reversals (design 7), from the course of a limit over time."""

from collections.abc import Sequence
from itertools import pairwise


def changes(course: Sequence[tuple[float, float]]) -> int:
    """How often a limit changed; the course is (seconds, limit), in order."""
    return sum(after[1] != before[1] for before, after in pairwise(course))


def reversals(course: Sequence[tuple[float, float]], within_seconds: float) -> int:
    """How often a limit moved by more than max(10 %, 1) one way and then as much the other.

    Moves are from turning point to turning point; further apart than `within_seconds` they are no reversal.
    """
    turns = _turning_points(course)
    count = 0
    for before, middle, after in zip(turns, turns[1:], turns[2:], strict=False):
        there, back = middle[1] - before[1], after[1] - middle[1]
        near = after[0] - before[0] <= within_seconds
        if near and there * back < 0 and _counts(before[1], there) and _counts(middle[1], back):
            count += 1
    return count


def _counts(level: float, move: float) -> bool:
    return abs(move) > max(0.1 * level, 1.0)


def _turning_points(course: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """First, last, and every point at which the direction changes, at the time its level was reached."""
    points: list[tuple[float, float]] = []
    for at, level in course:
        if points and level == points[-1][1]:
            continue
        if len(points) >= 2 and (points[-1][1] - points[-2][1]) * (level - points[-1][1]) > 0:
            points[-1] = (at, level)
        else:
            points.append((at, level))
    return points
