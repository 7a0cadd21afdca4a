"""Waiting on a condition with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

INTERVAL_SECONDS = 0.05


class NeverHappened(AssertionError):
    """The condition did not come true in time."""


def _complaint(what: str, deadline_seconds: float, last: object) -> str:
    return f"{what}: not within {deadline_seconds:g} s; last seen: {last!r}"


def wait_until(
    predicate: Callable[[], T],
    deadline_seconds: float,
    what: str,
    *,
    interval_seconds: float = INTERVAL_SECONDS,
    retry_on: tuple[type[Exception], ...] = (),
) -> T:
    """Call the predicate until it returns something true, and return that.

    Exceptions named in `retry_on` count as "not yet"; any other one rises.
    """
    until_then = time.monotonic() + deadline_seconds
    while True:
        last: object
        try:
            result = predicate()
            if result:
                return result
            last = result
        except retry_on as error:
            last = error
        if time.monotonic() >= until_then:
            raise NeverHappened(_complaint(what, deadline_seconds, last))
        time.sleep(interval_seconds)


@overload
async def until(
    predicate: Callable[[], Awaitable[T]],
    deadline_seconds: float,
    what: str,
    *,
    interval_seconds: float = ...,
    retry_on: tuple[type[Exception], ...] = ...,
) -> T: ...


@overload
async def until(
    predicate: Callable[[], T],
    deadline_seconds: float,
    what: str,
    *,
    interval_seconds: float = ...,
    retry_on: tuple[type[Exception], ...] = ...,
) -> T: ...


async def until(
    predicate: Callable[[], Any],
    deadline_seconds: float,
    what: str,
    *,
    interval_seconds: float = INTERVAL_SECONDS,
    retry_on: tuple[type[Exception], ...] = (),
) -> Any:
    """Do the same in an event loop; the predicate may be a coroutine function."""
    loop = asyncio.get_running_loop()
    until_then = loop.time() + deadline_seconds
    while True:
        last: object
        try:
            answer = predicate()
            result = await answer if inspect.isawaitable(answer) else answer
            if result:
                return result
            last = result
        except retry_on as error:
            last = error
        if loop.time() >= until_then:
            raise NeverHappened(_complaint(what, deadline_seconds, last))
        await asyncio.sleep(interval_seconds)
