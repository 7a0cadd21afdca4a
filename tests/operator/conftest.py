"""Operators and policies of a test's own namespace, and routers that Prometheus scrapes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prometheus.exporter import Exporter
from prometheus.routers import RouterSeries
from servers.control_plane import ControlPlane
from servers.operator_process import OperatorProcess, Policies
from servers.prometheus import Prometheus


@pytest.fixture
def policies(control_plane: ControlPlane, namespace: str) -> Policies:
    return Policies(control_plane, namespace)


@pytest.fixture
def start_operator(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> Iterator[Callable[..., OperatorProcess]]:
    """Start an operator for the test's namespace; ended after the test."""
    started: list[OperatorProcess] = []

    def start(**options: Any) -> OperatorProcess:
        operator = OperatorProcess(tmp_path, control_plane, namespace, **options)
        started.append(operator)
        operator.start()
        return operator

    yield start
    for operator in started:
        operator.kill()


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter() as exporter:
        yield exporter


@pytest.fixture
def router(exporter: Exporter) -> RouterSeries:
    """A router of policy `chat` that has applied a table."""
    router = RouterSeries(exporter)
    router.begin("l40s", "h100")
    return router


@pytest.fixture
def metrics(router: RouterSeries, prometheus: Callable[..., Prometheus], namespace: str) -> Prometheus:
    """A Prometheus that scrapes that router each second."""
    server = prometheus(targets={"routers": []})
    server.set_targets("routers", [router.exporter.address], {"namespace": namespace})
    return server
