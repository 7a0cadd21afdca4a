"""The page of metrics against a real vLLM 0.32: names, types, labels, buckets (`vllm_0.32_families.json`)."""

import json
import math
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from meritorder_sim.engine import Engine
from meritorder_sim.metrics import ReplicaMetrics, with_nan
from meritorder_sim.profiles import built_in

GOLDEN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vllm_0.32_families.json").read_text(encoding="utf-8")
)
NEEDED = {
    "vllm:e2e_request_latency_seconds",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_params_max_tokens",
    "vllm:cache_config_info",
    "http_requests_total",
}
L40S = built_in("llama-3.1-8b/l40s")


def replica() -> tuple[Engine, ReplicaMetrics]:
    engine = Engine(L40S, max_batch=2, now=0.0)
    metrics = ReplicaMetrics(
        model="m", max_batch=2, kv_cache_tokens=L40S.kv_cache_tokens, created_at=1_700_000_000.0
    )
    return engine, metrics


def families(page: str) -> dict[str, dict[str, Any]]:
    """Read a page into the golden's form."""
    seen: dict[str, dict[str, Any]] = {}
    name = ""
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            seen[name] = {"type": kind, "labels": []}
        elif not line.startswith("#"):
            pairs = line.partition("{")[2].rpartition("}")[0]
            labels = dict(pair.split("=", 1) for pair in pairs.split('",') if pair) if pairs else {}
            if "le" in labels:
                bound = labels.pop("le").strip('"')
                seen[name].setdefault("buckets", []).append(bound)
            seen[name]["labels"] = sorted(set(seen[name]["labels"]) | set(labels))
    return seen


def value(page: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"{name} {labels} is not on the page")


def run(engine: Engine, metrics: ReplicaMetrics, until: float) -> None:
    progress = engine.advance(until)
    for job in progress.started:
        metrics.started(job)
    for job in progress.finished:
        metrics.finished(job, reason="length", max_tokens=job.output_tokens)


def test_names_types_labels_and_buckets_are_those_of_vllm() -> None:
    engine, metrics = replica()
    metrics.answered(handler="/v1/completions", method="POST", status=200)
    seen = families(metrics.render(engine, 0.0))
    assert seen.keys() >= NEEDED
    assert {name: GOLDEN.get(name) for name in seen} == seen


def test_counts_and_sums_are_exact_after_requests() -> None:
    engine, metrics = replica()
    for prompt, output in ((1000, 100), (10, 1), (300, 37)):
        engine.submit(0.0, prompt_tokens=prompt, output_tokens=output)
    run(engine, metrics, 60.0)
    page = metrics.render(engine, 60.0)
    assert value(page, "vllm:prompt_tokens_total") == 1310
    assert value(page, "vllm:generation_tokens_total") == 138
    assert value(page, "vllm:request_success_total", finished_reason="length") == 3
    assert value(page, "vllm:inter_token_latency_seconds_count") == 138 - 3
    assert value(page, "vllm:e2e_request_latency_seconds_count") == 3
    assert value(page, "vllm:time_to_first_token_seconds_bucket", le="+Inf") == 3
    assert value(page, "vllm:request_prompt_tokens_bucket", le="500.0") == 2
    assert value(page, "vllm:num_requests_running") == 0


def test_running_waiting_and_generated_tokens_move_while_requests_run() -> None:
    engine, metrics = replica()
    for _ in range(5):
        engine.submit(0.0, prompt_tokens=1000, output_tokens=1000)
    run(engine, metrics, 1.0)
    early = metrics.render(engine, 1.0)
    run(engine, metrics, 3.0)
    late = metrics.render(engine, 3.0)
    assert value(early, "vllm:num_requests_running") == 2
    assert value(early, "vllm:num_requests_waiting") == 3
    generated = value(early, "vllm:generation_tokens_total")
    assert 0 < generated < value(late, "vllm:generation_tokens_total")
    assert value(early, "vllm:inter_token_latency_seconds_count") == generated - 2
    assert 0 < value(early, "vllm:kv_cache_usage_perc") < value(late, "vllm:kv_cache_usage_perc") < 1


def test_an_aborted_request_counts_its_tokens_and_no_latency() -> None:
    engine, metrics = replica()
    job = engine.submit(0.0, prompt_tokens=1000, output_tokens=1000)
    run(engine, metrics, 2.0)
    engine.cancel(2.0, job)
    metrics.aborted(job, engine.tokens(job), 2.0)
    page = metrics.render(engine, 2.0)
    assert value(page, "vllm:request_success_total", finished_reason="abort") == 1
    assert value(page, "vllm:generation_tokens_total") == engine.tokens(job) > 10
    assert value(page, "vllm:e2e_request_latency_seconds_count") == 0


def test_nan_replaces_every_value_of_the_engine() -> None:
    engine, metrics = replica()
    page = with_nan(metrics.render(engine, 0.0))
    assert families(page) == families(metrics.render(engine, 0.0))
    assert math.isnan(value(page, "vllm:num_requests_running"))
    assert math.isnan(value(page, "vllm:e2e_request_latency_seconds_count"))
