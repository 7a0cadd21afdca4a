"""What the story is about: three pools with their speeds and prices, a policy, and how fast it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHEAP, MIDDLE, DEAR = "l40s", "a100", "h100"
NAMESPACE, POLICY, SYSTEM_NAMESPACE = "ml", "chat", "meritorder-system"
TOKENS = 50

# Times of an answer of 50 tokens in ms, with b in flight: 600 + 10 b on the cheap pool (1 s at 40), then
# 550 + 5 b and 525 + 2 b.
PROFILES: Mapping[str, Mapping[str, list[float]]] = {
    CHEAP: {"tpot": [11.0, 0.2, 0.0], "ttft": [50.0, 0.0, 0.0]},
    MIDDLE: {"tpot": [10.0, 0.1, 0.0], "ttft": [50.0, 0.0, 0.0]},
    DEAR: {"tpot": [9.5, 0.04, 0.0], "ttft": [50.0, 0.0, 0.0]},
}
PRICES: Mapping[str, str] = {CHEAP: "1.86", MIDDLE: "3.43", DEAR: "6.88"}
PERCENTILE = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast the story goes."""

    scrape_seconds: int
    interval_seconds: int
    window_seconds: int
    staleness_seconds: int
    least_requests: int


FAST = Pace(
    scrape_seconds=2, interval_seconds=2, window_seconds=15, staleness_seconds=10, least_requests=10_000
)
SLOW = Pace(
    scrape_seconds=15, interval_seconds=5, window_seconds=60, staleness_seconds=60, least_requests=10_000
)


def policy(pace: Pace) -> dict[str, Any]:
    """The policy of the story."""
    return {
        "apiVersion": "meritorder.dev/v1alpha1",
        "kind": "InferencePolicy",
        "metadata": {"name": POLICY, "namespace": NAMESPACE},
        "spec": {
            "sla": {
                "metric": "EndToEndLatency",
                "percentile": PERCENTILE,
                "targetMilliseconds": 1000,
                "windowSeconds": pace.window_seconds,
                "minimumSamples": 20,
            },
            "pools": [
                {
                    "name": pool,
                    "backend": {"service": {"name": f"chat-{pool}", "port": 8000}},
                    "cost": {"perReplicaHour": PRICES[pool]},
                }
                for pool in (DEAR, CHEAP, MIDDLE)  # the order does not matter, so it is not the merit order
            ],
            "fallbackPool": DEAR,
            "sizeClasses": "Off",
            "behavior": {
                "intervalSeconds": pace.interval_seconds,
                "stalenessSeconds": pace.staleness_seconds,
            },
        },
    }
