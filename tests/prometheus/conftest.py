"""Routers that a real Prometheus scrapes, and a source that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from meritorder_operator.prometheus.client import Server
from meritorder_operator.prometheus.source import PrometheusSource
from prometheus.exporter import Exporter
from prometheus.routers import RouterSeries, scraping
from servers.prometheus import Prometheus


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter() as exporter:
        yield exporter


@pytest.fixture
def router(exporter: Exporter) -> RouterSeries:
    """A router that has applied a table with both pools."""
    router = RouterSeries(exporter)
    router.begin("l40s", "h100")
    return router


@pytest.fixture
async def source() -> AsyncIterator[PrometheusSource]:
    source = PrometheusSource(timeout_seconds=3)
    yield source
    await source.close()


@pytest.fixture
def metrics(prometheus: Callable[..., Prometheus], exporter: Exporter) -> Prometheus:
    """A Prometheus that scrapes the exporter each second."""
    return scraping(prometheus, [exporter.address])


@pytest.fixture
def server(metrics: Prometheus) -> Server:
    return Server(url=metrics.url)
