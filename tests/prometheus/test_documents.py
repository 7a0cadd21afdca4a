"""What the documents say of PromQL and of engines is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from meritorder_api.policy import SLAMetric
from meritorder_operator.prometheus.queries import PRESETS
from prometheus.exporter import Exporter
from servers.prometheus import Prometheus

DOCS = Path(__file__).parents[2] / "docs"
L40S = {"namespace": "ml", "pod": "l40s-0", "node": "gpu-a"}


def examples() -> list[str]:
    return re.findall(r"```promql\n(.*?)```", (DOCS / "prices.md").read_text(), re.DOTALL)


def test_every_price_in_the_documents_is_one_value(
    prometheus: Callable[..., Prometheus], exporter: Exporter
) -> None:
    exporter.set("container_gpu_allocation", 2, container="vllm", instance="gpu-a", **L40S)
    exporter.set("node_gpu_hourly_cost", 0.9, node="gpu-a", instance="gpu-a", instance_type="g6e.xlarge")
    exporter.set("node_total_hourly_cost", 1.5, node="gpu-a", instance_type="g6e.xlarge")
    exporter.set("node_total_hourly_cost", 2.5, node="gpu-b", instance_type="g6e.xlarge")
    for gpu in ("0", "1"):
        card = {"gpu": gpu, "UUID": f"GPU-{gpu}", "modelName": "NVIDIA L40S", **L40S}
        exporter.set("DCGM_FI_DEV_GPU_TEMP", 60, **card)
        exporter.set("DCGM_FI_DEV_POWER_USAGE", 250, **card)
    server = prometheus(targets={"exporters": [exporter.address]})
    server.wait_for('DCGM_FI_DEV_POWER_USAGE{pod="l40s-0"}')
    values = [server.value(example) for example in examples()]
    assert values == pytest.approx([1.8, 3.43, 2.0, 3.72, 2 * (1.10 + 0.25 * 1.4 * 0.30)])


def test_the_list_of_engines_names_what_is_asked_for() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", (DOCS / "engines.md").read_text(), re.MULTILINE))
    for engine, preset in PRESETS.items():
        cells = [cell.strip() for cell in rows[engine.value].split("|")]
        for metric, cell in zip(
            (SLAMetric.END_TO_END, SLAMetric.TTFT, SLAMetric.TPOT), cells[:3], strict=True
        ):
            histogram = preset.histograms.get(metric)
            assert cell == (f"`{histogram.names[0]}`" if histogram else "no"), (engine, metric)
        gauges = [name for name in preset.in_flight if not name.startswith("kserve_")]
        assert cells[3] == " + ".join(f"`{name}`" for name in gauges)
