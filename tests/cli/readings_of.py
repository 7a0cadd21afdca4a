"""Readings and scrapes written by hand."""

from meritorder_cli.readings import Meter, Reading
from meritorder_router.agent.scrape import PoolCounters, Scrape

BOUNDS = (500.0, 1000.0, 2000.0, float("inf"))


def scrape(epoch: int = 1, **pools: tuple[int, int]) -> Scrape:
    """Pools as (completed, of these slow): good ones took 500 to 1000 ms, slow ones more than 2000."""
    counters = {
        name: PoolCounters(
            samples=total,
            samples_slow=slow,
            pool_milliseconds=800 * (total - slow) + 3000 * slow,
            in_flight=4,
            completion_tokens=50 * total,
            prompt_tokens=300 * total,
            latency_buckets=dict(zip(BOUNDS, (0, total - slow, total - slow, total), strict=True)),
        )
        for name, (total, slow) in pools.items()
    }
    return Scrape(
        epoch=epoch,
        client_requests=sum(total for total, _ in pools.values()),
        client_slow=sum(slow for _, slow in pools.values()),
        pools=counters,
        requests={(name, "200", "-"): total for name, (total, _) in pools.items()},
    )


def reading(at: float, **pools: tuple[int, int]) -> Reading:
    """One reading of a fresh Envoy."""
    return Meter().read(scrape(1, **pools), at)
