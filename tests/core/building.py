"""Builders of policies and inputs for tests of the decision: say only what matters, the rest is well."""

from collections.abc import Mapping
from typing import Any

from meritorder_api import reasons
from meritorder_api.policy import InferencePolicySpec
from meritorder_core.inputs import (
    Counts,
    Inputs,
    Missing,
    Observation,
    PoolInputs,
    Price,
    ReplicaHour,
    Sample,
)

NOON = 1_750_000_000.0
"""The moment of the first decision."""
PRICES = {"l40s": "1.86", "a100": "3.00", "h100": "6.88"}


def policy(
    *names: str, sla: Mapping[str, Any] | None = None, pools: Mapping[str, Any] | None = None, **spec: Any
) -> InferencePolicySpec:
    """A policy of these pools (default: l40s and h100) with a p95 of 2 s over windows of 60 s."""
    names = names or ("l40s", "h100")
    extra = pools or {}
    return InferencePolicySpec.model_validate(
        {
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000, **(sla or {})},
            "pools": [
                {
                    "name": name,
                    "backend": {"service": {"name": name, "port": 8000}},
                    "cost": {"perReplicaHour": PRICES.get(name, "1.00")},
                    **extra.get(name, {}),
                }
                for name in names
            ],
            **spec,
        }
    )


def counts(
    total: float,
    slow: float = 0.0,
    *,
    seconds: float = 5.0,
    mean_seconds: float = 1.0,
    slow_error: float = 0.0,
) -> Counts:
    """So many requests of so many seconds each."""
    return Counts(
        seconds=seconds,
        total=total,
        slow=slow,
        latency_sum_seconds=total * mean_seconds,
        slow_error=slow_error,
        prompt_tokens=total * 1000,
        completion_tokens=total * 200,
    )


def sample(
    at: float,
    total: float,
    slow: float = 0.0,
    *,
    mean_seconds: float = 1.0,
    attained: float | None = None,
    seconds: float = 5.0,
    window: Counts | None = None,
    stalled: bool = False,
    slow_error: float = 0.0,
    classes: Mapping[int, Counts] | None = None,
) -> Sample:
    """An interval with so many completions; the window has twelve such, unless said."""
    return Sample(
        at=at,
        window=window
        or counts(
            12 * total, 12 * slow, seconds=12 * seconds, mean_seconds=mean_seconds, slow_error=12 * slow_error
        ),
        recent=counts(total, slow, seconds=seconds, mean_seconds=mean_seconds, slow_error=slow_error),
        in_flight=total * mean_seconds / seconds,
        attained_milliseconds=attained,
        stalled=stalled,
        classes=classes or {},
    )


def idle(at: float) -> Sample:
    """A pool without a request."""
    return sample(at, 0.0)


def missing(
    reason: reasons.Missing = reasons.Missing.STALE, message: str = "newest sample is 95 s old"
) -> Missing:
    """A pool whose metrics are not there."""
    return Missing(reason=reason, message=message)


def inputs(
    now: float,
    observations: Mapping[str, Observation],
    *,
    ready: Mapping[str, int | None] | None = None,
    prices: Mapping[str, Price] | None = None,
    client: Counts | Missing | None = None,
) -> Inputs:
    """Inputs of one pass: one ready replica and the list price per pool, unless said."""
    windows = [each.window for each in observations.values() if isinstance(each, Sample)]
    every = Counts(
        seconds=60.0,
        total=sum(each.total for each in windows),
        slow=sum(each.slow for each in windows),
        latency_sum_seconds=sum(each.latency_sum_seconds for each in windows),
    )
    return Inputs(
        now=now,
        pools={
            name: PoolInputs(
                observation=observation,
                price=(prices or {}).get(name, ReplicaHour(dollars=float(PRICES.get(name, "1.00")))),
                ready_replicas=(ready or {}).get(name, 1),
            )
            for name, observation in observations.items()
        },
        client=client or every,
        effective_interval_seconds=5.0,
    )
