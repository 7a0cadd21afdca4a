"""A real Envoy under an `EmbeddedRouter`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meritorder_router.agent.embedded import EmbeddedRouter
from support.ports import free_port


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[EmbeddedRouter]:
    """An Envoy of two workers that listens and has no table yet."""
    async with EmbeddedRouter(
        listen=f"127.0.0.1:{free_port()}", policy="chat", directory=tmp_path / "r", concurrency=2
    ) as router:
        yield router
