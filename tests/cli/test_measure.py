"""From Envoy's counters to what the decision sees: exact differences, over restarts too."""

from pathlib import Path

import httpx
import pytest

from cli.readings_of import reading, scrape
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Missing as Why
from meritorder_cli.measure import Ring, gather
from meritorder_cli.readings import Meter
from meritorder_core.inputs import Missing, PerMillionTokens, ReplicaHour, Sample
from meritorder_router.agent.embedded import EmbeddedRouter
from meritorder_router.agent.scrape import Scrape, read
from support.fakepool import Behaviour, FakePool
from support.ports import free_ports
from support.tables import pool, table
from support.waiting import until

START = 1_800_000_000.0


def a_spec(**sla: object) -> InferencePolicySpec:
    hosts = {"hosts": [{"host": "127.0.0.1", "port": 1}]}
    return InferencePolicySpec.model_validate(
        {
            "sla": {
                "metric": "EndToEndLatency",
                "targetMilliseconds": 2000,
                "windowSeconds": 10,
                "minimumSamples": 20,
                **sla,
            },
            "pools": [
                {"name": "cheap", "backend": hosts, "cost": {"perReplicaHour": "1.86"}},
                {
                    "name": "dear",
                    "backend": hosts,
                    "cost": {"perMillionTokens": {"input": "1", "output": "2"}},
                },
            ],
            "fallbackPool": "dear",
            "behavior": {"intervalSeconds": 2},
        }
    )


def ring_of(spec: InferencePolicySpec, *pools: dict[str, tuple[int, int]]) -> Ring:
    """A ring with one reading a second."""
    ring = Ring(spec)
    for second, counts in enumerate(pools):
        ring.add(reading(START + second, **counts))
    return ring


def test_counters_go_on_when_envoy_begins_anew() -> None:
    meter = Meter()
    meter.read(scrape(epoch=1, cheap=(100, 3)), START)
    after = meter.read(scrape(epoch=2, cheap=(7, 1)), START + 1)
    assert after.count("total", "cheap") == 107
    assert after.count("slow", "cheap") == 4
    assert after.answered("cheap") == 107
    later = meter.read(scrape(epoch=2, cheap=(9, 1)), START + 2)
    assert later.buckets(after, "latency", "cheap")[1000.0] == 2


def counted_by_class(*parts: tuple[str, int, int, int]) -> str:
    """An exposition: (class, samples, slow, ms) of pool `cheap`."""
    return "\n".join(
        f'envoy_meritorder_{name}{{policy="chat",pool="cheap",class="{size}"}} {value}'
        for size, total, slow, milliseconds in parts
        for name, value in (
            ("samples_total", total),
            ("samples_slow_total", slow),
            ("pool_milliseconds_total", milliseconds),
        )
    )


def test_size_classes_have_counts_of_their_own_and_the_pool_has_all() -> None:
    spec, meter, ring = a_spec(), Meter(), Ring(a_spec())
    texts = (
        counted_by_class(("", 5, 1, 1000)),
        counted_by_class(("", 5, 1, 1000), ("64", 10, 0, 4000)),
        counted_by_class(("", 7, 1, 3000), ("64", 10, 0, 4000), ("1024", 4, 3, 9000)),
    )
    readings = [meter.read(read(text, epoch=1), START + 2 * i) for i, text in enumerate(texts)]
    for each in readings:
        ring.add(each)

    found = gather(spec, ring, last=readings[1], ready={}, now=START + 4).pools["cheap"].observation

    assert isinstance(found, Sample)
    assert (found.recent.total, found.recent.slow, found.recent.latency_sum_seconds) == (6, 3, 11)
    assert (found.window.total, found.window.slow) == (16, 3)
    assert {
        size: (each.total, each.slow, each.latency_sum_seconds) for size, each in found.classes.items()
    } == {1024: (4, 3, 9)}
    found = gather(spec, ring, last=readings[0], ready={}, now=START + 4).pools["cheap"].observation
    assert isinstance(found, Sample)
    assert sorted(found.classes) == [64, 1024]


def test_failures_are_told_from_clients_that_went_away() -> None:
    counted = {
        ("cheap", "200", "-"): 90,
        ("cheap", "503", "UF"): 2,
        ("-", "429", "-"): 3,
        ("cheap", "0", "DC"): 5,
    }
    assert Meter().read(Scrape(epoch=1, requests=counted), START).failed() == 5


def test_streams_that_were_cut_are_failures() -> None:
    # They have the code that they began with; what ended them is in the flags.
    counted = {("cheap", "200", "-"): 90, ("cheap", "200", "UC"): 2, ("cheap", "200", "URX,UPE"): 1}
    seen = Meter().read(Scrape(epoch=1, requests=counted), START)
    assert seen.failed() == 3
    assert seen.answered("cheap") == 93


def test_an_increase_ends_where_it_is_told_to() -> None:
    ring = ring_of(a_spec(), *({"cheap": (10 * n, 0), "dear": (0, 0)} for n in range(15)))
    assert ring.increase("total", "cheap", 5) == 50
    assert ring.increase("total", "cheap", 5, until=START + 9.5) == 50
    assert ring.increase("total", "cheap", 5, until=START + 2) == 20
    assert ring.increase("total", "cheap", 5, until=START - 1) == 0
    assert Ring(a_spec()).increase("total", "cheap", 5) == 0


async def test_a_real_envoy_tells_a_cut_stream_as_such(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with (
        FakePool("a") as server,
        EmbeddedRouter(listen=f"127.0.0.1:{port}", directory=tmp_path / "r") as router,
        httpx.AsyncClient(base_url=router.base_url) as client,
    ):
        await router.apply(table([pool(server)]))
        server.behaviour = Behaviour(kind="truncate", chunks=4)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/chat/completions", json={"stream": True})

        async def failed() -> float:
            found = await router.scrape()
            return Meter().read(found, START).failed() if found is not None else 0

        assert await until(failed, 10, "a failure") == 1


def test_a_sample_is_the_difference_of_two_readings() -> None:
    spec = a_spec()
    ring = ring_of(spec, *({"cheap": (10 * n, n // 4), "dear": (0, 0)} for n in range(15)))
    last = reading(START + 12, cheap=(120, 3))
    inputs = gather(spec, ring, last=last, ready={"cheap": 2}, now=START + 14)
    sample = inputs.pools["cheap"].observation
    assert isinstance(sample, Sample)
    assert sample.at == START + 14
    # The window is ten seconds, the recent stretch what came since the reading that was decided on.
    assert (sample.window.seconds, sample.window.total, sample.window.slow) == (10, 100, 2)
    assert (sample.recent.seconds, sample.recent.total, sample.recent.slow) == (2, 20, 0)
    assert sample.recent.mean_in_flight == pytest.approx(20 * 0.8 / 2)
    assert sample.in_flight == 4
    assert sample.attained_milliseconds is not None
    assert 500 < sample.attained_milliseconds <= 1000
    assert inputs.pools["cheap"].price == ReplicaHour(dollars=1.86)
    assert inputs.pools["dear"].price == PerMillionTokens(input=1.0, output=2.0)
    assert inputs.pools["cheap"].ready_replicas == 2
    assert inputs.pools["dear"].ready_replicas is None


def test_little_traffic_reaches_back_for_samples() -> None:
    spec = a_spec()
    ring = ring_of(spec, *({"cheap": (n, 0), "dear": (0, 0)} for n in range(60)))
    inputs = gather(spec, ring, last=None, ready={}, now=START + 59)
    sample = inputs.pools["cheap"].observation
    assert isinstance(sample, Sample)
    assert (sample.window.seconds, sample.window.total) == (20, 20)
    assert not isinstance(inputs.client, Missing)
    assert inputs.client.total == 20


def test_nothing_read_is_missing_and_nothing_completed_is_not() -> None:
    spec = a_spec()
    unread = gather(spec, Ring(spec), last=None, ready={}, now=START)
    observation = unread.pools["cheap"].observation
    assert isinstance(observation, Missing)
    assert observation.reason is Why.NO_SERIES
    idle = gather(
        spec, ring_of(spec, {"cheap": (5, 0)}, {"cheap": (5, 0)}), last=None, ready={}, now=START + 1
    )
    sample = idle.pools["cheap"].observation
    assert isinstance(sample, Sample)
    assert sample.window.total == 0
    assert sample.attained_milliseconds is None


def test_an_envoy_that_is_silent_for_long_is_stale() -> None:
    spec = a_spec()
    ring = ring_of(spec, {"cheap": (5, 0)}, {"cheap": (6, 0)})
    observation = gather(spec, ring, last=None, ready={}, now=START + 90).pools["cheap"].observation
    assert isinstance(observation, Missing)
    assert observation.reason is Why.STALE


def test_a_pool_that_completes_nothing_for_long_is_stalled() -> None:
    spec = a_spec()
    short = ring_of(spec, *({"cheap": (5, 0)} for _ in range(25)))
    long = ring_of(spec, *({"cheap": (5, 0)} for _ in range(35)))
    assert not short.stalled("cheap")
    assert long.stalled("cheap")


def test_no_pool_is_stalled_where_samples_are_streams_only() -> None:
    spec = a_spec(metric="TimeToFirstToken")
    assert not ring_of(spec, *({"cheap": (5, 0)} for _ in range(35))).stalled("cheap")


def test_the_ring_forgets_what_no_window_reaches() -> None:
    ring = ring_of(a_spec(windowSeconds=5), *({"cheap": (n, 0)} for n in range(400)))
    oldest = ring.before(1e9)
    assert oldest is not None
    assert START + 399 - 70 < oldest.at < START + 399 - 50
