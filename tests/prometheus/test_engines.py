"""Pools measured by their serving engines' own metrics, or by their users' PromQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meritorder_api.metric_names import SAMPLES
from meritorder_api.policy import InferencePolicySpec
from meritorder_core.inputs import Missing, PerMillionTokens, ReplicaHour, Sample
from meritorder_operator.prometheus.client import Server
from meritorder_operator.prometheus.source import PrometheusSource
from prometheus.exporter import Exporter
from prometheus.routers import NAMESPACE, Learner, RouterSeries, Watcher, a_request, a_spec, sampled
from servers.prometheus import Prometheus

EDGES = ("0.5", "1.0", "2.0", "2.5", "5.0", "+Inf")


class EngineSeries:
    """An engine with one latency histogram."""

    def __init__(self, exporter: Exporter, histogram: str, latency_sum: str, gauge: str) -> None:
        self.exporter = exporter
        self.histogram = histogram
        self.latency_sum = latency_sum
        self.labels = {"model_name": "m"}
        exporter.set(gauge, 3, **self.labels)
        exporter.set(latency_sum, 0, **self.labels)
        for edge in EDGES:
            exporter.set(f"{histogram}_bucket", 0, le=edge, **self.labels)

    def completed(self, *seconds: float) -> None:
        for value in seconds:
            self.exporter.add(self.latency_sum, value, **self.labels)
            for edge in EDGES:
                if value <= float(edge):
                    self.exporter.add(f"{self.histogram}_bucket", 1, le=edge, **self.labels)


def vllm(
    exporter: Exporter, prefix: str = "vllm:", histogram: str = "e2e_request_latency_seconds"
) -> EngineSeries:
    return EngineSeries(
        exporter,
        f"{prefix}{histogram}",
        f"{prefix}e2e_request_latency_seconds_sum",
        f"{prefix}num_requests_running",
    )


@pytest.fixture
def engine_exporter(metrics: Prometheus) -> Exporter:
    """The target of Service `chat-l40s`."""
    engine = Exporter().start()
    metrics.set_targets("engines", [engine.address], {"namespace": NAMESPACE, "service": "chat-l40s"})
    return engine


def measured_by(engine: str, target: int = 2000, metric: str = "EndToEndLatency") -> InferencePolicySpec:
    return a_spec(
        sla={"targetMilliseconds": target, "metric": metric},
        pools={"l40s": {"metrics": {"engine": engine}}, "h100": {}},
    )


def seen_with(total: float) -> Callable[[object], bool]:
    return lambda o: isinstance(o, Sample) and o.window.total == total


async def test_a_target_at_a_bucket_s_edge_is_counted_exactly(
    engine_exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    engine = vllm(engine_exporter)
    watcher = Watcher(source, a_request(server, measured_by("VLLM")))
    await watcher.sees("l40s", sampled, "a sample")

    engine.completed(0.4, 1.2, 1.9, 2.2, 3.0)
    sample = await watcher.sees("l40s", seen_with(5), "they are counted")

    assert isinstance(sample, Sample)
    assert (sample.window.slow, sample.window.slow_error) == (2, 0)
    assert sample.window.latency_sum_seconds == pytest.approx(8.7)
    assert sample.in_flight == 3
    assert isinstance(watcher.inputs and watcher.inputs.pools["h100"].observation, Sample)


async def test_samples_of_an_engine_that_nobody_learned_from_are_part_of_the_next(
    engine_exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    engine = vllm(engine_exporter)
    learner = Learner(source, a_request(server, measured_by("VLLM")), "l40s")
    await learner.sees("l40s", sampled, "a sample")

    engine.completed(0.4, 1.2)
    await learner.sees("l40s", seen_with(2), "they are counted")
    engine.completed(1.9, 2.2, 3.0)
    await learner.loses(4)
    engine.completed(0.4)
    await learner.until(lambda _: learner.total >= 6, "all are learned from")
    await learner.until(lambda _: len(learner.samples["l40s"]) >= 10, "more samples")

    assert learner.total == 6


async def test_a_target_between_edges_says_its_error(
    engine_exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    engine = vllm(engine_exporter)
    watcher = Watcher(source, a_request(server, measured_by("VLLM", 3000)))
    await watcher.sees("l40s", sampled, "a sample")

    engine.completed(*[0.4] * 90, 2.6, 2.8, 3.1, 4.0, 6.0)
    sample = await watcher.sees("l40s", seen_with(95), "they are counted")

    assert isinstance(sample, Sample)
    assert sample.window.slow == pytest.approx(3, abs=sample.window.slow_error)
    assert 0 < sample.window.slow_error <= 4
    assert sample.attained_milliseconds == pytest.approx(2600, rel=0.2)


@pytest.mark.parametrize(
    ("prefix", "histogram", "metric"),
    [
        ("kserve_vllm:", "e2e_request_latency_seconds", "EndToEndLatency"),
        ("vllm:", "time_to_first_token_seconds", "TimeToFirstToken"),
        ("vllm:", "request_time_per_output_token_seconds", "TimePerOutputToken"),
        ("vllm:", "time_per_output_token_seconds", "TimePerOutputToken"),
    ],
)
async def test_old_and_rewritten_names_are_read(
    engine_exporter: Exporter,
    router: RouterSeries,
    server: Server,
    source: PrometheusSource,
    prefix: str,
    histogram: str,
    metric: str,
) -> None:
    engine = vllm(engine_exporter, prefix, histogram)
    watcher = Watcher(source, a_request(server, measured_by("VLLM", metric=metric)))
    await watcher.sees("l40s", sampled, "a sample")

    engine.completed(1.0, 4.0)
    sample = await watcher.sees("l40s", seen_with(2), "they are counted")

    assert isinstance(sample, Sample)
    assert sample.window.slow == 1


async def test_sglang_and_tgi_are_read(
    engine_exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    sglang = EngineSeries(
        engine_exporter,
        "sglang:e2e_request_latency_seconds",
        "sglang:e2e_request_latency_seconds_sum",
        "sglang:num_running_reqs",
    )
    tgi = EngineSeries(engine_exporter, "tgi_request_duration", "tgi_request_duration_sum", "tgi_queue_size")
    watchers = [
        Watcher(source, a_request(server, measured_by(engine), name=engine.lower()))
        for engine in ("SGLang", "TGI")
    ]
    for watcher in watchers:
        await watcher.sees("l40s", sampled, "a sample")

    sglang.completed(1.0, 4.0)
    tgi.completed(0.4, 4.0, 4.5)

    for watcher, total, slow in zip(watchers, (2, 3), (1, 2), strict=True):
        sample = await watcher.sees("l40s", seen_with(total), "they are counted")
        assert isinstance(sample, Sample)
        assert sample.window.slow == slow


@pytest.mark.parametrize(("engine", "metric"), [("Triton", "EndToEndLatency"), ("TGI", "TimeToFirstToken")])
async def test_what_an_engine_does_not_tell_is_said(
    router: RouterSeries, server: Server, source: PrometheusSource, engine: str, metric: str
) -> None:
    watcher = Watcher(source, a_request(server, measured_by(engine, metric=metric)))

    missing = await watcher.misses("l40s", "NotSupportedByEngine")

    assert missing.message == f"pool `l40s`: {engine} has no histogram for {metric}; use engine Router"


async def test_an_engine_that_is_not_scraped_is_named(
    router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server, measured_by("VLLM")))

    missing = await watcher.misses("l40s", "NoSeries")

    assert 'namespace="ml", service="chat-l40s"' in missing.message


async def test_an_engine_whose_counters_stand_still_is_frozen(
    engine_exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    engine = vllm(engine_exporter)
    watcher = Watcher(source, a_request(server, measured_by("VLLM")))
    await watcher.sees("l40s", sampled, "a sample")

    router.completed("l40s", 20)
    missing = await watcher.misses("l40s", "Frozen")
    assert "saw 20 requests completed" in missing.message

    engine.completed(1.0)
    await watcher.sees("l40s", seen_with(1), "a sample again")


async def test_a_users_own_queries_are_asked(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    exporter.set("price", 2.5)
    custom = {
        "total": "vector(100)",
        "slow": "vector(7)",
        "inFlight": "vector(4)",
        "latencySum": "vector(60)",
    }
    pools: dict[str, dict[str, Any]] = {
        "t4": {"metrics": {"engine": "Custom", "custom": {**custom, "total": SAMPLES}}},
        "l40s": {"metrics": {"engine": "Custom", "custom": custom}, "cost": {"query": "price * 2"}},
        "h100": {
            "metrics": {"engine": "Custom", "custom": {**custom, "slow": "sum("}},
            "cost": {"query": "nosuch"},
        },
        "a100": {
            "metrics": {"engine": "Custom", "custom": {**custom, "total": "vector(0) / 0"}},
            "cost": {"perMillionTokens": {"input": "0.14", "output": "0.28"}},
        },
        "l4": {"metrics": {"engine": "Custom", "custom": {**custom, "inFlight": "nosuch"}}},
    }
    watcher = Watcher(source, a_request(server, a_spec(pools=pools)))

    sample = await watcher.sees("l40s", sampled, "a sample")
    assert isinstance(sample, Sample)
    assert (sample.window.total, sample.window.slow, sample.in_flight) == (100, 7, 4)
    assert sample.window.mean_in_flight == 4
    assert "refused the query (400, bad_data)" in (await watcher.misses("h100", "QueryRefused")).message
    assert "gives 2 series" in (await watcher.misses("t4", "QueryRefused")).message
    assert "`total` gives nan" in (await watcher.misses("a100", "NotANumber")).message
    assert "`inFlight` gives nothing" in (await watcher.misses("l4", "NoSeries")).message

    price = ReplicaHour(dollars=5)
    inputs = await watcher.until(lambda inputs: inputs.pools["l40s"].price == price, "the price is known")
    assert inputs.pools["l4"].price == ReplicaHour(dollars=1.86)
    assert inputs.pools["a100"].price == PerMillionTokens(input=0.14, output=0.28)
    unpriced = inputs.pools["h100"].price
    assert isinstance(unpriced, Missing)
    assert unpriced.message == "the query of its price gives 0 series; must give one value that is 0 or more"


async def test_custom_queries_reach_back_over_samples_that_nobody_learned_from(
    router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    custom = {"total": "vector(100)", "slow": "vector(7)", "inFlight": "vector(4)"}
    spec = a_spec(window=6, pools={"l40s": {"metrics": {"engine": "Custom", "custom": custom}}, "h100": {}})
    learner = Learner(source, a_request(server, spec), "l40s")
    await learner.until(lambda _: len(learner.learned) >= 2, "two samples")

    await learner.loses(2)
    await learner.until(lambda _: len(learner.learned) >= 4, "two more samples")

    # Half a window each, and a whole one after the loss.
    assert [sample.recent.seconds for sample in learner.learned] == [3, 3, 6, 3]
