"""What Envoy counts: stats access loggers, in the terms of design 4, "What counts as a sample".

Two places see a request. The router filter's *upstream log* has one entry per attempt, with the attempt's
own code, flags and duration, and the pool of its endpoint: there a pool's failures are counted, whoever
answered in the end, and the time that attempts spent in the pool. The listener's log has one entry per
request: there the good samples and the clients' side are counted.

Filters know runtime values (the target, from RTDS) only as durations to compare with, so the SLA's metric is
switched with them: a key above every duration turns a logger off. With an SLA on TTFT or TPOT a response
filter (`render.streams`) has measured the stream and left its verdict in dynamic metadata, which the loggers
read.

A request that ended by itself has the response code details `via_upstream`; one cut by the pool or by the
client has not. That string is compared by a CEL filter, since Envoy's own filters cannot say "without this
flag".

Where tries are hedged (a second one begins while the first goes on, and the first to answer serves), one that
passed the delay and was overtaken is a failure of its pool, as one timed out is without hedging: else
a pool that is always overtaken would never be slow, and its limit would grow. One that passed the delay and
did answer is a sample as any other; one that was overtaken before the delay counts nowhere.

The size class is the route's (`render.sizes`), since a try's own log sees neither the request's metadata nor
the headers that are stripped. Without a class that label is empty, which to Prometheus is none.
"""

from collections.abc import Sequence

from meritorder_api import metric_names as names
from meritorder_router.render.place import TYPE, Json, Place

PREFIX = "meritorder"
NAMESPACE = "meritorder"
"""Of our metadata: endpoint (`pool`), dynamic (`stream`, `slow`, ...)."""
TOKENS = "meritorder.tokens"
"""Namespace of the token counts that the body parsers find."""
PROBE_HEADER = "x-meritorder-probe"
"""On the metrics listener's own requests to the data listener, which count nowhere."""

KEY_SLOW = "meritorder.slow_from_ms"
"""Runtime key: a request of this duration (ms) or more is slow: target + 1; `NEVER` unless the SLA is end to
end.
"""
KEY_OLD = "meritorder.old_from_ms"
"""Runtime key: an abort at this age or more is slow: target + 1, whatever the metric."""
KEY_COUNT = "meritorder.count_from_ms"
"""Runtime key: 0 where requests are samples by themselves (end to end), `NEVER` where streams are (TTFT,
TPOT).
"""
KEY_TIMEOUT = "meritorder.timeout_from_ms"
"""Runtime key: 0 where a try that ran into its timeout has failed, `NEVER` where it was hedged by another one
and may still answer.
"""
NEVER = 2**31 - 1

SAMPLE = "sample"
"""Noted by the stream filter: this stream was judged."""
SLOW = "slow"
"""Noted by the stream filter: and it was slower than the target."""
CLASS = "class"
"""Of a route: the size class of its requests."""
WAITING = "waiting"
"""Noted by the stream filter: a stream whose first token has not come (yet)."""
PROMPT = "prompt_tokens"
COMPLETION = "completion_tokens"

FAILED_FLAGS = ["UF", "UC", "UR", "LR", "UPE"]
"""Of an attempt: connect failure, connection closed, reset by the pool or by us, protocol error."""
TIMEOUT = "UT"
IDLE = "SI"
"""Of a request, where tries are hedged: no byte for too long."""
FIRST, THIRD = "first", "third"
"""In a chain's metadata: the pools of the first try and of the third. No first: all tries are one pool's."""
RETRIED = "x-envoy-attempt-count"


def _counter_name(series: str) -> str:
    return series.removeprefix(f"envoy_{PREFIX}_")


def _tags(place: Place, pool: str | None, extra: Sequence[tuple[str, str]] = ()) -> list[Json]:
    tags = [("policy", place.policy)] if place.policy else []
    if pool is not None:
        tags.append(("pool", pool))
    tags.extend(extra)
    return [{"name": name, "value_format": value} for name, value in tags]


ENDPOINT_POOL = f"%UPSTREAM_METADATA({NAMESPACE}:pool)%"
ROUTE_CLASS = f"%METADATA(ROUTE:{NAMESPACE}:{CLASS})%"


def counter(
    place: Place,
    series: str,
    *,
    pool: str | None = ENDPOINT_POOL,
    value: str | None = None,
    extra: Sequence[tuple[str, str]] = (),
) -> Json:
    """A counter of the stats logger: of 1, or of what a format string says."""
    stat = {"name": _counter_name(series), "tags": _tags(place, pool, extra)}
    return {"stat": stat, **({"value_fixed": 1} if value is None else {"value_format": value})}


def by_class(place: Place, series: str, *, pool: str = ENDPOINT_POOL, value: str | None = None) -> Json:
    """A counter per pool and size class."""
    return counter(place, series, pool=pool, value=value, extra=[(names.LABEL_CLASS, ROUTE_CLASS)])


def histogram(place: Place, series: str, value: str) -> Json:
    name = _counter_name(series).removesuffix("_bucket")
    return {
        "stat": {"name": name, "tags": _tags(place, ENDPOINT_POOL)},
        "unit": "Unspecified",
        "value_format": value,
    }


def logger(condition: Json | None, *, counters: Sequence[Json] = (), histograms: Sequence[Json] = ()) -> Json:
    config: Json = {
        "@type": TYPE + "extensions.access_loggers.stats.v3.Config",
        "stats_scope": {"prefix": PREFIX},
    }
    if counters:
        config["counters"] = list(counters)
    if histograms:
        config["histograms"] = list(histograms)
    entry: Json = {"name": "envoy.access_loggers.stats", "typed_config": config}
    return (
        entry if condition is None else {"name": entry["name"], "filter": condition, "typed_config": config}
    )


def both(*filters: Json) -> Json:
    return {"and_filter": {"filters": list(filters)}}


def either(*filters: Json) -> Json:
    return {"or_filter": {"filters": list(filters)}}


def _status(op: str, code: int) -> Json:
    # The API wants a runtime key; this one is never set.
    value = {"default_value": code, "runtime_key": f"meritorder.status_{op.lower()}_{code}"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


def _lasting(key: str, default: int) -> Json:
    return {
        "duration_filter": {
            "comparison": {"op": "GE", "value": {"default_value": default, "runtime_key": key}}
        }
    }


def _flags(*flags: str) -> Json:
    return {"response_flag_filter": {"flags": list(flags)}}


def _noted(key: str, value: bool = True) -> Json:
    """What the stream filter noted."""
    return {
        "metadata_filter": {
            "matcher": {"filter": NAMESPACE, "path": [{"key": key}], "value": {"bool_match": value}},
            "match_if_key_not_found": False,
        }
    }


def _expression(cel: str) -> Json:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": TYPE + "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": cel,
            },
        }
    }


_POST: Json = {"header_filter": {"header": {"name": ":method", "string_match": {"exact": "POST"}}}}
_FIRST_TRY: Json = {"header_filter": {"header": {"name": RETRIED, "string_match": {"exact": "1"}}}}
_LATER_TRY: Json = {
    "header_filter": {"header": {"name": RETRIED, "string_match": {"exact": "1"}, "invert_match": True}}
}
_NOT_A_PROBE: Json = {
    "header_filter": {"header": {"name": PROBE_HEADER, "present_match": True, "invert_match": True}}
}
_ANSWERED = _expression("response.code_details == 'via_upstream'")
_ANSWERER = f"xds.upstream_host_metadata.filter_metadata['{NAMESPACE}']['pool']"
_CHAIN = f"xds.cluster_metadata.filter_metadata['{NAMESPACE}']"
# Of several tries at once. The second try is never the first one's pool; the third may be.
_OF_FIRST = (
    f"({_CHAIN}['{FIRST}'] == {_ANSWERER} && "
    f"(upstream.request_attempt_count == 2 || {_CHAIN}['{THIRD}'] != {_ANSWERER}))"
)
_BY_FIRST = either(_FIRST_TRY, _expression(_OF_FIRST))
_BY_ANOTHER = both(_LATER_TRY, _expression(f"!{_OF_FIRST}"))
_ERROR = either(_status("GE", 500), _status("EQ", 429))
_CUT = _flags(*FAILED_FLAGS, TIMEOUT, IDLE)
_GIVEN_UP = both(_flags(TIMEOUT), either(_lasting(KEY_TIMEOUT, 0), _status("EQ", 0)))
"""Of an attempt: its time was up; if it was hedged then, another one answered first."""
_COUNT = _lasting(KEY_COUNT, 0)
_SLOW = _lasting(KEY_SLOW, NEVER)
_OLD = _lasting(KEY_OLD, NEVER)
_WELL = _status("LE", 399)
_IDLE = both(_flags(IDLE), _WELL)
"""Of a request: an answer that did not go on. Its try has no flag of that."""
_ABORTED = _flags("DC")
_ABORTED_LATE = either(both(_COUNT, _OLD), both(_noted(WAITING), _OLD))


def attempt_log(place: Place) -> list[Json]:
    """The router filter's upstream log: once per attempt."""
    return [
        logger(None, counters=[by_class(place, names.POOL_MILLISECONDS, value="%DURATION%")]),
        logger(
            both(either(_flags(*FAILED_FLAGS), _ERROR, _GIVEN_UP), _POST),
            counters=[
                by_class(place, names.SAMPLES),
                by_class(place, names.SAMPLES_SLOW),
                counter(place, names.FAILED_ATTEMPTS),
            ],
        ),
    ]


def request_log(place: Place) -> list[Json]:
    """The data listener's log: once per request. Cheap conditions come first; an expression costs as much as
    a counter, so that of a request that went well at the first try, nearly all of them, is asked once.
    """
    slow = either(_SLOW, _noted(SLOW))
    sample = either(_COUNT, _noted(SAMPLE))
    return [
        logger(
            both(_POST, _WELL, sample, _BY_FIRST, _ANSWERED),
            counters=[counter(place, names.CLIENT_REQUESTS, pool=None), by_class(place, names.SAMPLES)],
            histograms=[
                histogram(place, names.LATENCY_BUCKET, "%DURATION%"),
                histogram(place, names.TTFT_BUCKET, "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:ms)%"),
            ],
        ),
        logger(
            both(
                _POST,
                either(
                    both(_BY_ANOTHER, _WELL, sample, _ANSWERED),
                    _ERROR,
                    _CUT,
                    both(_ABORTED, either(_ABORTED_LATE, _noted(SAMPLE))),
                ),
            ),
            counters=[counter(place, names.CLIENT_REQUESTS, pool=None)],
        ),
        logger(
            both(
                _POST,
                either(
                    both(_WELL, slow, _ANSWERED),
                    _ERROR,
                    _CUT,
                    both(_ABORTED, either(_ABORTED_LATE, _noted(SLOW))),
                ),
            ),
            counters=[counter(place, names.CLIENT_SLOW, pool=None)],
        ),
        logger(
            both(slow, _POST, _WELL, _ANSWERED, _BY_FIRST), counters=[by_class(place, names.SAMPLES_SLOW)]
        ),
        logger(
            both(_IDLE, _POST),
            counters=[
                by_class(place, names.SAMPLES),
                by_class(place, names.SAMPLES_SLOW),
                counter(place, names.FAILED_ATTEMPTS),
            ],
        ),
        logger(
            both(_ABORTED, _POST, _FIRST_TRY, either(_ABORTED_LATE, _noted(SAMPLE))),
            counters=[by_class(place, names.SAMPLES)],
        ),
        logger(
            both(_ABORTED, _POST, _FIRST_TRY, either(_ABORTED_LATE, _noted(SLOW))),
            counters=[by_class(place, names.SAMPLES_SLOW)],
        ),
        logger(
            _NOT_A_PROBE,
            counters=[
                counter(
                    place,
                    names.REQUESTS,
                    extra=[(names.LABEL_CODE, "%RESPONSE_CODE%"), (names.LABEL_FLAGS, "%RESPONSE_FLAGS%")],
                )
            ],
        ),
        logger(
            {
                "metadata_filter": {
                    "matcher": {
                        "filter": TOKENS,
                        "path": [{"key": COMPLETION}],
                        "value": {"present_match": True},
                    },
                    "match_if_key_not_found": False,
                }
            },
            counters=[
                counter(place, names.PROMPT_TOKENS, value=f"%DYNAMIC_METADATA({TOKENS}:{PROMPT})%"),
                by_class(place, names.COMPLETION_TOKENS, value=f"%DYNAMIC_METADATA({TOKENS}:{COMPLETION})%"),
            ],
        ),
    ]


POOL_HEADER = "x-pool"
"""On a request to the touch listener: the pool whose series shall be there."""


def touch_log(place: Place) -> list[Json]:
    """The touch listener's log: adds 0 (the bytes of a body that is not there) to every deciding counter of
    a pool.
    """
    nothing, pool = "%BYTES_RECEIVED%", f"%REQ({POOL_HEADER})%"
    return [
        logger(
            None,
            counters=[
                *(
                    by_class(place, series, pool=pool, value=nothing)
                    for series in (names.SAMPLES, names.SAMPLES_SLOW, names.POOL_MILLISECONDS)
                ),
                counter(place, names.FAILED_ATTEMPTS, pool=pool, value=nothing),
                counter(place, names.CLIENT_REQUESTS, pool=None, value=nothing),
                counter(place, names.CLIENT_SLOW, pool=None, value=nothing),
            ],
        )
    ]
