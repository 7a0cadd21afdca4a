"""The whole product under load, with a Prometheus that reads all of its processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from assets.find import MissingBinary
from e2e.capacity import FixedLimit
from e2e.story import FAST
from e2e.system import System
from support.addresses import NoAddress
from support.required import cannot_run


class Watched(System):
    """The end-to-end system, whose operator and servers are read as well; nothing is measured of it."""

    @property
    def scrape_config(self) -> str:
        """What its Prometheus was started with."""
        return self._config

    def _measure_fixed_limit(self, port: int) -> FixedLimit:
        return FixedLimit(in_flight=0, requests_per_second=0.0, quantile_seconds=0.0)

    def _scrape_jobs(self) -> list[Mapping[str, Any]]:
        own = {
            "operator": [self.operator_metrics_port],
            "router-servers": self.server_metrics_ports,
        }
        jobs = [
            {
                "job_name": job,
                # Series of a policy bear its namespace, as with the chart's ServiceMonitor.
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
            }
            for job, ports in own.items()
        ]
        return [*super()._scrape_jobs(), *jobs]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Everything, started, with size classes and under load."""
    try:
        system = Watched(tmp_path_factory.mktemp("dashboards"), FAST)
    except (MissingBinary, NoAddress) as reason:
        cannot_run(reason)
    with system:
        system.patch_spec({"sizeClasses": "Auto"})
        system.load(json=25.0, streams=3.0)
        yield system
