"""Counts are exact: over a window, since the last sample, and across what happens to counters and targets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from meritorder_api import metric_names as m
from meritorder_core.inputs import Counts, Sample
from meritorder_operator.prometheus.client import Server
from meritorder_operator.prometheus.queries import ROUTER
from meritorder_operator.prometheus.source import PrometheusSource
from prometheus.exporter import Exporter
from prometheus.routers import (
    NAMESPACE,
    POLICY,
    Learner,
    RouterSeries,
    Watcher,
    a_request,
    a_spec,
    sampled,
    scraping,
)
from servers.prometheus import Prometheus
from support.waiting import until


async def scraped(watcher: Watcher, exporter: Exporter, scrapes: int = 3) -> None:
    """Gather until some more scrapes have been served."""
    served = len(exporter.scrapes)
    await watcher.until(lambda _: len(exporter.scrapes) >= served + scrapes, "more scrapes")


async def settled(watcher: Watcher, *exporters: Exporter) -> None:
    """End the traffic, and gather until what it was is seen."""
    for exporter in exporters:
        exporter.before_scrape = None
        await scraped(watcher, exporter, 2)
    seen = len(watcher.samples["l40s"])
    await watcher.until(lambda _: len(watcher.samples["l40s"]) >= seen + 2, "the last scrapes are seen")


def counted(watcher: Watcher, pool: str = "l40s") -> tuple[float, float]:
    """Requests and slow ones that all samples say together."""
    samples = watcher.samples[pool]
    return sum(sample.recent.total for sample in samples), sum(sample.recent.slow for sample in samples)


def told(exporter: Exporter, pool: str = "l40s", name: str = m.SAMPLES) -> float:
    """What the last scrape was told."""
    return exporter.told(name, policy=POLICY, pool=pool)[-1]


async def test_counts_each_request_once(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")

    exporter.before_scrape = lambda: router.completed("l40s", 7, slow=1, milliseconds=500)
    await scraped(watcher, exporter, 6)
    await settled(watcher, exporter)

    total = told(exporter)
    assert total >= 42
    assert counted(watcher) == (total, total / 7)
    samples = watcher.samples["l40s"]
    assert sum(sample.recent.latency_sum_seconds for sample in samples) == pytest.approx(total / 2)
    assert (samples[-1].window.total, samples[-1].window.slow) == (total, total / 7)
    assert sum(sample.recent.seconds for sample in samples[1:]) == pytest.approx(
        samples[-1].at - samples[0].at, abs=0.01
    )
    assert watcher.samples["h100"][-1].window.total == 0
    assert watcher.inputs is not None
    assert isinstance(watcher.inputs.client, Counts)
    assert (watcher.inputs.client.total, watcher.inputs.client.slow) == (total, total / 7)


async def test_a_steady_load_has_its_mean_in_flight(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server, a_spec(window=10)))
    exporter.before_scrape = lambda: router.completed("l40s", 8, milliseconds=1500)
    await watcher.sees("l40s", sampled, "the first sample")
    await scraped(watcher, exporter, 12)

    last = watcher.samples["l40s"][-1]

    # 8 requests of 1.5 s in each second.
    assert last.window.mean_in_flight == pytest.approx(12, rel=0.02)
    assert last.window.per_second == pytest.approx(8, rel=0.02)
    assert last.window.seconds == pytest.approx(10, abs=1.1)
    for sample in watcher.samples["l40s"][2:]:
        assert sample.recent.mean_in_flight == pytest.approx(12, rel=0.05)


async def test_a_sample_stands_still_between_scrapes(
    exporter: Exporter, router: RouterSeries, prometheus: Callable[..., Prometheus], source: PrometheusSource
) -> None:
    server = Server(url=scraping(prometheus, [exporter.address], "4s").url)
    watcher = Watcher(source, a_request(server, a_spec(window=20, interval=1)))
    exporter.before_scrape = lambda: router.completed("l40s", 8)
    await watcher.sees("l40s", sampled, "the first sample")

    await watcher.until(lambda _: len(watcher.samples["l40s"]) >= 4, "three more samples")

    samples = watcher.samples["l40s"]
    for earlier, later in itertools.pairwise(samples):
        assert later.at - earlier.at == pytest.approx(4, abs=0.1)
        assert later.recent.seconds == pytest.approx(4, abs=0.1)
        assert later.recent.total == 8
    assert watcher.inputs is not None
    assert watcher.inputs.effective_interval_seconds == pytest.approx(4, abs=0.1)


async def test_a_reset_loses_at_most_what_one_scrape_would_have_seen(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")
    exporter.before_scrape = lambda: router.completed("l40s", 100, slow=2)
    await scraped(watcher, exporter, 3)
    before = told(exporter)

    def restart() -> None:
        exporter.reset()
        router.completed("l40s", 30, slow=1)
        exporter.before_scrape = lambda: router.completed("l40s", 10, slow=1)

    exporter.before_scrape = restart
    await scraped(watcher, exporter, 3)
    await settled(watcher, exporter)

    assert counted(watcher)[0] == before + told(exporter)
    assert counted(watcher)[1] == before / 50 + told(exporter, name=m.SAMPLES_SLOW)


async def test_a_series_born_with_its_first_slow_requests_is_counted_whole(
    exporter: Exporter, server: Server, source: PrometheusSource
) -> None:
    router = RouterSeries(exporter)
    exporter.set(m.APPLIED_SEQUENCE, 1, policy=POLICY)
    exporter.set(m.SAMPLES, 0, policy=POLICY, pool="l40s")
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")

    router.completed("l40s", 20, slow=5)
    router.completed("h100", 3)
    await scraped(watcher, exporter, 2)
    await settled(watcher, exporter)

    assert counted(watcher) == (20, 5)
    assert counted(watcher, "h100") == (3, 0)


async def test_a_target_met_for_the_first_time_does_not_bring_its_life_with_it(
    exporter: Exporter,
    router: RouterSeries,
    metrics: Prometheus,
    server: Server,
    source: PrometheusSource,
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")
    with Exporter() as other:
        second = RouterSeries(other)
        second.begin("l40s", "h100")
        second.completed("l40s", 1_000_000, slow=1_000_000)
        metrics.set_targets("routers", [exporter.address, other.address], {"namespace": NAMESPACE})
        await scraped(watcher, other, 3)
        other.before_scrape = lambda: second.completed("l40s", 10)
        await scraped(watcher, other, 3)
        await settled(watcher, exporter, other)

        assert counted(watcher) == (told(other) - 1_000_000, 0)

        # Agents go, too: what they did stays counted, and the others go on.
        before = counted(watcher)[0]
        metrics.set_targets("routers", [exporter.address], {"namespace": NAMESPACE})
        exporter.before_scrape = lambda: router.completed("l40s", 10)
        await scraped(watcher, exporter, 4)
        await settled(watcher, exporter)
        assert counted(watcher)[0] - before == told(exporter)


async def test_one_failed_scrape_counts_nothing_twice(
    exporter: Exporter, router: RouterSeries, metrics: Prometheus, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")
    router.completed("l40s", 500, slow=100)
    await scraped(watcher, exporter, 2)
    exporter.stop()
    await watcher.until(lambda _: metrics.value("sum(up)") == 0, "a scrape failed")
    exporter.start()
    await scraped(watcher, exporter, 2)
    await settled(watcher, exporter)

    assert counted(watcher) == (500, 100)


async def test_samples_that_nobody_learned_from_are_part_of_the_next(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    learner = Learner(source, a_request(server), "l40s")
    await learner.sees("l40s", sampled, "the first sample")

    exporter.before_scrape = lambda: router.completed("l40s", 7, slow=1, milliseconds=500)
    await scraped(learner, exporter, 2)
    await learner.loses(3)
    await scraped(learner, exporter, 2)
    await learner.loses(1)
    await settled(learner, exporter)

    total = told(exporter)
    assert learner.total == total
    assert sum(sample.recent.slow for sample in learner.learned) == total / 7
    assert sum(sample.recent.latency_sum_seconds for sample in learner.learned) == pytest.approx(total / 2)
    assert sum(sample.recent.seconds for sample in learner.learned[1:]) == pytest.approx(
        learner.learned[-1].at - learner.learned[0].at, abs=0.01
    )


async def test_what_was_lost_for_longer_than_a_window_is_given_up(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    learner = Learner(source, a_request(server, a_spec(window=5)), "l40s")
    exporter.before_scrape = lambda: router.completed("l40s", 7)
    await learner.sees("l40s", sampled, "the first sample")

    await learner.loses(8)
    seen = len(learner.learned)
    await learner.until(lambda _: len(learner.learned) > seen, "the next is learned from")

    next_one = learner.learned[seen].recent
    assert 5 - 1.1 <= next_one.seconds <= 5 + 1.1
    assert next_one.total == pytest.approx(7 * next_one.seconds, abs=7)


async def test_a_restarted_operator_judges_by_what_was_before(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")
    exporter.before_scrape = lambda: router.completed("l40s", 7, slow=1)
    await scraped(watcher, exporter, 8)
    await settled(watcher, exporter)
    total = told(exporter)

    another = PrometheusSource()
    second = Watcher(another, a_request(server))
    seen = await second.sees("l40s", sampled, "the first sample of another operator")
    await another.close()

    assert isinstance(seen, Sample)
    assert (seen.window.total, seen.window.slow) == (total, total / 7)


async def test_a_window_with_little_traffic_reaches_back(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server, a_spec(window=5, minimum_samples=50)))
    await watcher.sees("l40s", sampled, "the first sample")
    router.completed("l40s", 60, slow=6)
    await scraped(watcher, exporter, 7)
    router.completed("l40s", 1)
    await scraped(watcher, exporter, 2)
    await settled(watcher, exporter)

    last = watcher.samples["l40s"][-1]

    assert (last.window.total, last.window.slow) == (61, 6)
    assert last.window.seconds > 5


async def test_size_classes_have_counts_of_their_own(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")

    router.completed("l40s", 10, slow=1, size="128")
    router.completed("l40s", 20, slow=2, size="1024")
    router.completed("l40s", 5)
    await watcher.sees("l40s", lambda o: isinstance(o, Sample) and o.recent.total > 0, "they are counted")

    sample = next(sample for sample in watcher.samples["l40s"] if sample.recent.total)
    assert sample.recent.total == 35
    assert {size: (counts.total, counts.slow) for size, counts in sample.classes.items()} == {
        128: (10, 1),
        1024: (20, 2),
    }


async def test_queries_do_not_multiply_with_policies(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    requests = [a_request(server, a_spec(), name=f"p{number}") for number in range(50)]
    for request in requests:
        RouterSeries(exporter, policy=request.name).begin("l40s", "h100")
    watcher = Watcher(source, requests[0])
    await watcher.sees("l40s", sampled, "the first sample")

    async def asked_for(count: int) -> int:
        """HTTP requests over five steps with so many policies, those for display aside."""

        async def gathered() -> int:
            await source.gather(requests[:count], time.time())
            return source.stats["router_at"].asked

        def asked() -> int:
            return sum(stats.asked for name, stats in source.stats.items() if "attained" not in name)

        first, before = await gathered(), asked()

        async def stepped() -> bool:
            return await gathered() >= first + 5

        await until(stepped, 30, "five steps")
        return asked() - before

    assert await asked_for(1) == await asked_for(50) == 5 * len(ROUTER)


async def test_an_edited_target_begins_new_counts(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")
    router.completed("l40s", 100, slow=90)
    await watcher.sees("l40s", lambda o: isinstance(o, Sample) and o.window.slow == 90, "they are slow")

    watcher.request = a_request(server, a_spec(sla={"targetMilliseconds": 9000}))
    await watcher.sees("l40s", lambda o: isinstance(o, Sample) and o.window.total == 0, "counts are new")
    await scraped(watcher, exporter, 5)  # all routers judge by the new target
    router.completed("l40s", 50)
    await watcher.sees("l40s", lambda o: isinstance(o, Sample) and o.recent.total == 50, "the next ones")

    last = watcher.samples["l40s"][-1]
    assert (last.window.total, last.window.slow) == (50, 0)


async def test_completion_tokens_are_counted_for_every_policy_and_prompts_where_they_are_paid(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "the first sample")
    router.completed("l40s", 10, tokens=200)
    router.completed("h100", 10)
    await scraped(watcher, exporter, 2)
    await settled(watcher, exporter)

    told = [sample.recent for sample in watcher.samples["l40s"] if sample.recent.total]
    assert [(counts.completion_tokens, counts.prompt_tokens) for counts in told] == [(2000, None)]
    assert {sample.recent.completion_tokens for sample in watcher.samples["h100"]} == {None}
    assert "router_prompt_tokens" not in source.stats

    metered = {"cost": {"perMillionTokens": {"input": "0.14", "output": "0.28"}}}
    watcher.request = a_request(server, a_spec(pools={"l40s": metered, "h100": {}}))
    await scraped(watcher, exporter, 2)
    router.completed("l40s", 10, tokens=200)
    await scraped(watcher, exporter, 2)
    await settled(watcher, exporter)
    _, paid = [sample.recent for sample in watcher.samples["l40s"] if sample.recent.total]
    assert (paid.completion_tokens, paid.prompt_tokens) == (2000, 10000)


async def test_answers_without_usage_are_told_where_tokens_matter(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    spec = a_spec(sla={"metric": "TimePerOutputToken", "targetMilliseconds": 50})
    watcher = Watcher(source, a_request(server, spec))
    await watcher.sees("l40s", sampled, "the first sample")

    exporter.before_scrape = lambda: router.streamed_without_usage("l40s", 10)
    missing = await watcher.misses("l40s", "UsageAbsent")

    assert "`requests.addUsage`" in missing.message
