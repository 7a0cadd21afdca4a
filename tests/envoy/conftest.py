"""A real Envoy under an `EmbeddedRouter`, and fake pools to route to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from meritorder_router.agent.embedded import EmbeddedRouter
from support.fakepool import FakePool
from support.ports import free_ports
from support.tableserver import TableServer


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[EmbeddedRouter]:
    """A router that listens and has no table yet."""
    listen, metrics = free_ports(2)
    async with EmbeddedRouter(
        listen=f"127.0.0.1:{listen}",
        metrics=f"127.0.0.1:{metrics}",
        policy="chat",
        directory=tmp_path / "r",
    ) as router:
        yield router


@pytest.fixture
async def client(router: EmbeddedRouter) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the router, without limits of its own."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=router.base_url, timeout=60, limits=limits) as client:
        yield client


@pytest.fixture
async def server() -> AsyncIterator[TableServer]:
    """A router server that hands out what the test gives it."""
    async with TableServer() as server:
        yield server


StartPool = Callable[[str], Awaitable[FakePool]]


@pytest.fixture
async def start_pool() -> AsyncIterator[StartPool]:
    """Start a fake pool by its name; ended after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(name: str) -> FakePool:
            return await stack.enter_async_context(FakePool(name))

        yield start
