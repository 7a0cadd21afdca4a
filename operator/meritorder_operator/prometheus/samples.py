"""From what the tracks hold to a `Sample`, or a `Missing` with its reason. Pure.

A sample stands for a stretch that ends at a scrape, and is replaced only once every target was scraped
again and the policy's interval has passed: `Sample.at` stands still in between.
"""

from dataclasses import replace
from typing import Final

from meritorder_api import metric_names, reasons
from meritorder_api.policy import InferencePolicySpec, Pool, SLAMetric
from meritorder_core.inputs import Counts, Missing, Observation, Sample
from meritorder_operator.prometheus import queries
from meritorder_operator.prometheus.feed import Feed
from meritorder_operator.prometheus.histogram import percentile, slow_count
from meritorder_operator.prometheus.queries import Signal
from meritorder_operator.prometheus.track import Gain, Lane, Mark, Track

LEAST_SCRAPES: Final = 4
"""Scrapes per window; fewer, and a window is mostly chance."""
SAME_SCRAPE: Final = 0.9
"""A sample is new when this share of a scrape interval was covered since the last."""
UNCOUNTED_SECONDS: Final = 10.0
"""Envoys may be scraped so much later than their agents."""
FROZEN_COMPLETIONS: Final = 5
"""Completions that the routers must have seen before an engine's silence means anything."""
ALL_BUCKETS: Final = ("", Signal.BUCKETS, "+Inf")
IDLE_WINDOWS: Final = 2
"""Windows without a request after which a pool is idle, however far one might look back."""
FAILED_STEPS: Final = 2
"""Steps that must fail in a row before the last samples are given up."""


def just_begun() -> Missing:
    return Missing(
        reason=reasons.Missing.TOO_FEW_SAMPLES,
        message="scraped less than twice so far; counts need two scrapes",
    )


def nothing_yet(track: Track) -> Sample:
    """A sample of no requests."""
    nothing = Counts(seconds=0.0, total=0.0, slow=0.0, latency_sum_seconds=0.0)
    return Sample(at=track.at or track.end, window=nothing, recent=nothing)


def trouble(
    feed: Feed, track: Track | None, spec: InferencePolicySpec, now: float, absent: str
) -> Missing | None:
    """Why nothing can be said of a track, if so."""
    staleness = spec.behavior.staleness_seconds
    if feed.error is not None and (track is None or track.at is None or feed.failures >= FAILED_STEPS):
        return Missing(reason=feed.error.reason, message=feed.error.message)
    if track is None or track.at is None:
        return Missing(reason=reasons.Missing.NO_SERIES, message=absent)
    if track.uncounted_since is not None and track.end - track.uncounted_since >= UNCOUNTED_SECONDS:
        return Missing(
            reason=reasons.Missing.NO_SERIES,
            message=f"agents of this policy are scraped at `{metric_names.AGENT_METRICS_PATH}`, but no "
            f"Envoy's counters at `{metric_names.METRICS_PATH}`: no series `{metric_names.SAMPLES}`",
        )
    age = now - track.at
    if age > staleness:
        return Missing(
            reason=reasons.Missing.STALE,
            message=f"the newest scrape is older than `stalenessSeconds`; must be at most {staleness} s old",
        )
    interval = track.scrape_interval()
    window = spec.sla.window_seconds
    if interval is not None and window / interval < LEAST_SCRAPES - 0.1:
        return Missing(
            reason=reasons.Missing.SCRAPE_TOO_SLOW,
            message=f"scraped every {interval:.0f} s, {window / interval:.1f} times in {window} s; "
            f"must be at least {LEAST_SCRAPES} times: scrape more often or make `windowSeconds` longer",
        )
    return None


def stretch(track: Track, last: Mark | None, spec: InferencePolicySpec, step: float) -> Mark | None:
    """Where the stretch of a new sample begins; None while the last one still stands."""
    scrape = track.scrape_interval()
    if scrape is None:
        return None
    interval = spec.behavior.interval_seconds
    if last is None or last.seconds > track.seconds:
        return track.before(max(float(interval), scrape))
    if track.seconds - last.seconds < SAME_SCRAPE * scrape or track.end - last.end < interval - step / 2:
        return None
    return last


def router_observation(
    track: Track, start: Mark, prompt: Track | None, pool: str, spec: InferencePolicySpec
) -> Observation:
    """What the routers say of a pool, over the stretch from `start` and over the window; `prompt` are its
    prompt tokens, where a pool is paid by them.
    """
    if pool in track.not_numbers:
        return Missing(
            reason=reasons.Missing.NOT_A_NUMBER,
            message=f"the routers' counters of pool `{pool}` are not numbers",
        )
    window_start = track.before(spec.sla.window_seconds)
    window = track.since(window_start)
    if _lacks_usage(window, pool, spec):
        return Missing(
            reason=reasons.Missing.USAGE_ABSENT,
            message=f"pool `{pool}`: its answers carry no `usage`, so tokens cannot be counted; set "
            "`requests.addUsage` to true",
        )
    wide = _reached_back(track, window, window_start, (pool, Signal.TOTAL), spec)
    recent = track.since(start)
    return Sample(
        at=track.at or track.end,
        window=_with_prompt(_counts(wide, pool), prompt, pool, wide.seconds),
        recent=_with_prompt(_counts(recent, pool), prompt, pool, track.end - start.end),
        in_flight=track.gauges.get((pool,), 0.0),
        stalled=_stalled(track, pool, spec),
        classes=_classes(recent, pool),
    )


def client_window(track: Track, spec: InferencePolicySpec) -> Counts:
    """What the routers say of the clients' requests over the window."""
    start = track.before(spec.sla.window_seconds)
    lane = ("", Signal.CLIENT_TOTAL)
    return _client_counts(_reached_back(track, track.since(start), start, lane, spec))


def engine_observation(
    track: Track, start: Mark, failed: Track | None, pool: Pool, spec: InferencePolicySpec
) -> Sample:
    """What a serving engine says of its pool, with the failures that only the routers saw."""
    sample = _engine_sample(track, start, spec, queries.PRESETS[pool.metrics.engine])
    return replace(
        sample,
        window=_with_failed(sample.window, failed, pool.name, sample.window.seconds),
        recent=_with_failed(sample.recent, failed, pool.name, track.end - start.end),
    )


def _lacks_usage(window: Gain, pool: str, spec: InferencePolicySpec) -> bool:
    """Whether requests were served of which no tokens are known, although the SLA is about tokens."""
    if spec.sla.metric is not SLAMetric.TPOT:
        return False
    busy = window.of(pool, Signal.LATENCY) > 0 and window.of(pool, Signal.TOTAL) == 0
    return busy and window.of(pool, Signal.COMPLETION_TOKENS) == 0


def _reached_back(track: Track, window: Gain, start: Mark, lane: Lane, spec: InferencePolicySpec) -> Gain:
    """The window, or as many more (10 at most) as it takes to have `minimumSamples`."""
    wanted, seconds = spec.sla.minimum_samples, spec.sla.window_seconds
    if window.values.get(lane, 0.0) >= wanted:
        return window
    if track.gained(lane, track.before(IDLE_WINDOWS * seconds)) <= 0:
        return window
    best, most = None, window.values.get(lane, 0.0)
    for mark in track.backwards():
        if mark.end >= start.end:
            continue
        if mark.end < track.end - 10 * seconds - 0.05:
            break
        count = track.gained(lane, mark)
        if count > most:
            best, most = mark, count
            if most >= wanted:
                break
    return window if best is None else track.since(best)


def _counts(gain: Gain, pool: str, class_: str | None = None) -> Counts:
    more = () if class_ is None else (class_,)
    return Counts(
        seconds=gain.seconds,
        total=gain.of(pool, Signal.TOTAL, *more),
        slow=gain.of(pool, Signal.SLOW, *more),
        latency_sum_seconds=gain.of(pool, Signal.LATENCY, *more) / 1000,
        # Absent until an answer had a `usage`: 0 would say that none had a token.
        completion_tokens=gain.values.get((pool, Signal.COMPLETION_TOKENS, *more)),
    )


def _client_counts(gain: Gain) -> Counts:
    latency = sum(
        value for lane, value in gain.values.items() if len(lane) == 2 and lane[1] == Signal.LATENCY
    )
    return Counts(
        seconds=gain.seconds,
        total=gain.of("", Signal.CLIENT_TOTAL),
        slow=gain.of("", Signal.CLIENT_SLOW),
        latency_sum_seconds=latency / 1000,
    )


def _with_failed(counts: Counts, failed: Track | None, pool: str, seconds: float) -> Counts:
    """Add the attempts that the routers saw fail: an engine's histograms know nothing of them."""
    count = failed.since(failed.before(seconds)).of(pool, Signal.FAILED) if failed else 0.0
    return replace(counts, total=counts.total + count, slow=counts.slow + count) if count else counts


def _with_prompt(counts: Counts, prompt: Track | None, pool: str, seconds: float) -> Counts:
    if prompt is None:
        return counts
    gain = prompt.since(prompt.before(seconds))
    return replace(counts, prompt_tokens=gain.of(pool, Signal.PROMPT_TOKENS))


def _classes(gain: Gain, pool: str) -> dict[int, Counts]:
    found = {lane[2] for lane in gain.values if len(lane) == 3 and lane[0] == pool and lane[2].isdecimal()}
    return {int(name): _counts(gain, pool, name) for name in sorted(found, key=int)}


def _stalled(track: Track, pool: str, spec: InferencePolicySpec) -> bool:
    """Requests in flight and none completed for too long. Judged end to end only: a stream may well run on
    for minutes.
    """
    since = track.quiet_since.get(pool)
    if since is None or spec.sla.metric is not SLAMetric.END_TO_END:
        return False
    patience = max(spec.sla.window_seconds, 2 * spec.sla.target_milliseconds / 1000, 30.0)
    return track.end - since >= patience


def _engine_sample(track: Track, start: Mark, spec: InferencePolicySpec, preset: queries.Preset) -> Sample:
    window_start = track.before(spec.sla.window_seconds)
    window = _reached_back(track, track.since(window_start), window_start, ALL_BUCKETS, spec)
    unit = preset.histograms[spec.sla.metric].unit_seconds
    attained = percentile(_buckets(window), spec.sla.percentile / 100)
    return Sample(
        at=track.at or track.end,
        window=_engine_counts(window, spec, preset),
        recent=_engine_counts(track.since(start), spec, preset),
        in_flight=track.gauges.get(("",), 0.0),
        attained_milliseconds=None if attained is None else attained * unit * 1000,
    )


def _engine_counts(gain: Gain, spec: InferencePolicySpec, preset: queries.Preset) -> Counts:
    buckets = _buckets(gain)
    unit = preset.histograms[spec.sla.metric].unit_seconds
    slow = slow_count(buckets, spec.sla.target_milliseconds / 1000 / unit)
    return Counts(
        seconds=gain.seconds,
        total=gain.of("", Signal.BUCKETS, "+Inf"),
        slow=slow.slow,
        slow_error=slow.error,
        latency_sum_seconds=gain.of("", Signal.LATENCY) * preset.latency_unit_seconds,
    )


def _buckets(gain: Gain) -> dict[float, float]:
    return {float(lane[2]): value for lane, value in gain.values.items() if lane[1] == Signal.BUCKETS}


def frozen(track: Track, router: Track | None, pool: Pool, spec: InferencePolicySpec) -> Missing | None:
    """An engine that counts nothing while the routers saw it complete requests."""
    if router is None:
        return None
    window = spec.sla.window_seconds
    if track.since(track.before(window)).of("", Signal.BUCKETS, "+Inf") > 0:
        return None
    seen = router.since(router.before(window))
    completed = seen.of(pool.name, Signal.TOTAL) - seen.of(pool.name, Signal.SLOW)
    if completed < FROZEN_COMPLETIONS:
        return None
    return stands_still(pool, completed, window)


def stands_still(pool: Pool, completed: float, window: int) -> Missing:
    """That the counters of a pool's engine are not to be believed."""
    return Missing(
        reason=reasons.Missing.FROZEN,
        message=f"pool `{pool.name}`: {pool.metrics.engine.value}'s counters stand still or are not there, "
        f"but the routers saw {completed:.0f} requests completed within {window} s",
    )


def with_attained(observation: Observation, milliseconds: float | None) -> Observation:
    if (
        milliseconds is None
        or isinstance(observation, Missing)
        or observation.attained_milliseconds is not None
    ):
        return observation
    return replace(observation, attained_milliseconds=milliseconds)
