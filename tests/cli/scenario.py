"""A made-up run, for tests of what is drawn from one: 90 s, three pools, a burst, a slow spell of the cheap
pool.
"""

import math

from meritorder_cli.document import (
    Contender,
    DecisionRecord,
    Document,
    Event,
    PoolFacts,
    PoolFigures,
    PoolTick,
    Requests,
    Tick,
    Warmup,
    Windows,
)
from meritorder_core.shares import whole_percents

TARGET = 2000.0


def tick(at: float) -> Tick:
    """The run at one second: everything follows from the time alone."""
    load = 18.0 + 6 * math.sin(at / 9) + (30.0 if 25 <= at < 45 else 0.0)
    slow_spell = 55 <= at < 70
    room = 4.0 if slow_spell else min(28.0, 2.0 + at * 1.4 if at < 55 else (at - 68) * 2.5)
    l40s = max(0.0, min(load, room))
    a100 = min(load - l40s, 14.0)
    rates = {"l40s": l40s, "a100": a100, "h100": load - l40s - a100}
    latency = {"l40s": 5200.0 if 55 <= at < 61 else 1740.0, "a100": 1100.0, "h100": 620.0}
    ready = {"l40s": 3, "a100": 1, "h100": 1}
    prices = {"l40s": 1.86, "a100": 2.75, "h100": 6.88}
    limits = {"l40s": int(room * 1.7) + 3, "a100": 15, "h100": None}
    percents = whole_percents([rate / load for rate in rates.values()])
    overall = sum(rates[name] * latency[name] for name in rates) / load
    return Tick(
        at=at,
        pools=[
            PoolTick(
                name=name,
                state="Idle" if rate == 0 else "Misses" if latency[name] > TARGET else "Meets",
                requests_per_second=rate,
                share=rate / load,
                share_percent=percent,
                attained_milliseconds=latency[name] if rate else None,
                slow_share=0.6 if latency[name] > TARGET else 0.01,
                in_flight=rate * latency[name] / 1100,
                limit=limits[name],
                limit_per_replica=15.25,
                ready=ready[name],
                needed=1 if name != "h100" else 0,
                cost_per_hour=prices[name] * ready[name],
                cost_per_thousand=prices[name] * ready[name] / 3.6 / rate if rate else None,
            )
            for (name, rate), percent in zip(rates.items(), percents, strict=True)
        ],
        requests_per_second=load,
        attained_milliseconds=overall * 1.1,
        slow_share=0.02,
        sla_met=overall * 1.1 <= TARGET,
        sla_reason="Meets",
        cost_per_hour=15.21,
        needed_per_hour=8.33,
        baseline_per_hour=13.76,
        reference_per_hour=load * 60 * 3600 / 1e6 * 1.05,
        reference_on_fallback_per_hour=load * 60 * 3600 / 1e6 * 1.5,
    )


def document(seconds: int = 90) -> Document:
    """The run as its JSON has it."""
    return Document(
        seed=1,
        sla={"metric": "EndToEndLatency", "percentile": 95, "targetMilliseconds": 2000, "windowSeconds": 10},
        policy="chat",
        fallback_pool="h100",
        started_at="2026-05-04T10:00:00Z",
        seconds=float(seconds),
        warmup_seconds=10.0,
        step_seconds=1.0,
        interval_seconds=1.0,
        simulated=True,
        note="Short on purpose, for a demo.",
        pools=[
            PoolFacts(
                name="l40s",
                accelerator="L40S",
                price_per_replica_hour=1.86,
                reference_cost_per_million_tokens=0.86,
                replicas=3,
            ),
            PoolFacts(
                name="a100",
                accelerator="A100",
                price_per_replica_hour=2.75,
                reference_cost_per_million_tokens=1.1,
                replicas=1,
            ),
            PoolFacts(
                name="h100",
                accelerator="H100",
                price_per_replica_hour=6.88,
                reference_cost_per_million_tokens=1.5,
                replicas=1,
            ),
        ],
        contenders=[
            Contender(
                name="meritorder",
                windows=Windows(total=8, met=7),
                requests=Requests(total=2210, slow=61, failed=0),
                warmup=Warmup(requests=170, slow=0),
                attained_seconds=1.71,
                reversals_per_hour=0.0,
                limit_changes_per_hour=320.0,
                reference_cost="0.15",
                reference_cost_on_fallback="0.21",
                bill="0.34",
                bill_needed="0.19",
                pools=[
                    PoolFigures(
                        name="l40s",
                        requests=1500,
                        prompt_tokens=480_000,
                        completion_tokens=90_000,
                        attained_seconds=1.78,
                        replica_hours=0.07,
                        final_limit_per_replica=15.25,
                    ),
                    PoolFigures(
                        name="a100",
                        requests=510,
                        prompt_tokens=163_200,
                        completion_tokens=30_600,
                        attained_seconds=1.12,
                        replica_hours=0.022,
                        final_limit_per_replica=15.0,
                    ),
                    PoolFigures(
                        name="h100",
                        requests=200,
                        prompt_tokens=64_000,
                        completion_tokens=12_000,
                        attained_seconds=0.61,
                        replica_hours=0.022,
                        final_limit_per_replica=64.0,
                    ),
                ],
            )
        ],
        decisions=[
            DecisionRecord(
                at=0.0,
                action="Start",
                reason="FirstDecision",
                message="first decision: every pool starts at its minimum, h100 takes the rest",
                limits={"l40s": 1.0, "a100": 1.0, "h100": None},
            ),
            DecisionRecord(
                at=12.0,
                action="Grow",
                reason="CleanSamples",
                message="l40s: none of 96 requests was slow: limit 8 -> 12 per replica",
                limits={"l40s": 12.0, "a100": 1.0, "h100": None},
            ),
            DecisionRecord(
                at=57.0,
                action="Cut",
                reason="SLAMissed",
                message="l40s p95 5.20 s > 2.00 s over 61 requests: limit 15.25 -> 3 per replica",
                limits={"l40s": 3.0, "a100": 15.0, "h100": None},
            ),
            DecisionRecord(
                at=72.0,
                action="Grow",
                reason="Recovered",
                message="l40s p95 1.74 s is within 2.00 s again: limit 3 -> 6 per replica",
                limits={"l40s": 6.0, "a100": 15.0, "h100": None},
            ),
        ],
        events=[
            Event(at=25.0, message="burst: load x 2.5"),
            Event(at=45.0, message="burst ends"),
            Event(at=55.0, message="l40s turns 3x slower", pool="l40s"),
            Event(at=70.0, message="l40s is well again", pool="l40s"),
        ],
        series=[tick(float(at)) for at in range(1, seconds + 1)],
    )
