"""All PromQL, as data: each query with its signal, its unit and what it says.

**Counting.** `increase()` extrapolates to the edges of its range and never counts what a series was born
with, so over a few scrapes it is off by a tenth and more, and a first slow request is not seen at all.
`INCREASE` is exact instead: the value now less the value one `$step` ago, per series,

- where the counter was reset, what it counted since;
- where the series was born, all of it, but only if its target was scraped one step ago, so that a target
  which Prometheus meets for the first time does not bring its whole life with it;
- NaN stays NaN, so that it is seen.

What gained nothing is left out of the answer (NaN is not 0, and stays): most counters stand still most of
the time.

Steps follow one another without gap or overlap, and whoever asks adds them up (`track`): a window of any
length costs no query.

**One query for many.** Each query answers for all policies of a server at once, grouped by labels; none is
per pool (except custom PromQL and prices, which are the user's own).

Placeholders: `$step` the length of a step, `$match` matchers of the series, `$where` of their targets, `$by`
the labels to group by, `$window` and `$quantile`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from string import Template
from typing import Final

from meritorder_api import metric_names as m
from meritorder_api.policy import Engine, SLAMetric

INCREASE: Final = (
    "sum by ($by) ("
    "({series} < {series} offset $step)"
    " or ({series} - {series} offset $step)"
    " or (({series} unless {series} offset $step) and on (job, instance) (up{{$where}} offset $step == 1)))"
)
"""`up` is Prometheus's own series of the target that bears the same `job` and `instance`."""
AT: Final = "max by ($by) (timestamp({up}))"
COVERED: Final = "avg by ($by) (timestamp({up}) - timestamp({up} offset $step))"
SCRAPES: Final = (
    "sum by ($by) (count_over_time({up}[$step]) and {up} offset $step)"
    " / count by ($by) ({up} and {up} offset $step)"
)
GAUGE: Final = "sum by ($by) ({series})"
QUANTILE: Final = "histogram_quantile($quantile, sum by ($by, le) (rate({series}[$window])))"


class Signal(StrEnum):
    """What a query tells."""

    AT = "at"
    COVERED = "covered"
    SCRAPES = "scrapes"
    TOTAL = "total"
    SLOW = "slow"
    LATENCY = "latency"
    FAILED = "failed"
    CLIENT_TOTAL = "client_total"
    CLIENT_SLOW = "client_slow"
    PROMPT_TOKENS = "prompt_tokens"
    COMPLETION_TOKENS = "completion_tokens"
    UNCOUNTED = "uncounted"
    IN_FLIGHT = "in_flight"
    BUCKETS = "buckets"
    ATTAINED = "attained"
    CLIENT_ATTAINED = "client_attained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of a preset."""

    name: str
    signal: Signal
    unit: str
    description: str
    template: str
    extra_labels: tuple[str, ...] = ()
    """Labels to group by beyond those that name the policy or the pool."""

    def render(
        self,
        *,
        by: tuple[str, ...],
        match: str,
        where: str = "",
        step: float = 0.0,
        window: float = 0.0,
        quantile: float = 0.0,
    ) -> str:
        """The PromQL; lengths in seconds."""
        return Template(self.template).substitute(
            by=", ".join(by + self.extra_labels),
            match=match,
            where=where,
            step=duration(step),
            window=duration(window),
            quantile=f"{quantile:g}",
        )


def duration(seconds: float) -> str:
    """A PromQL duration."""
    return f"{max(1, round(seconds * 1000))}ms"


def _first_of(form: str, names: tuple[str, ...], key: str = "series") -> str:
    """One form over several names of the same thing; where two exist, the first counts."""
    return " or ".join(form.format(**{key: f"{name}{{$match}}"}) for name in names)


def _timing(prefix: str, names: tuple[str, ...]) -> tuple[Query, ...]:
    return (
        Query(
            name=f"{prefix}_at",
            signal=Signal.AT,
            unit="unix seconds",
            description="Time of the newest scrape.",
            template=_first_of(AT, names, "up"),
        ),
        Query(
            name=f"{prefix}_covered",
            signal=Signal.COVERED,
            unit="seconds",
            description="Mean over the targets of the time between the newest scrapes now and one step ago.",
            template=_first_of(COVERED, names, "up"),
        ),
        Query(
            name=f"{prefix}_scrapes",
            signal=Signal.SCRAPES,
            unit="scrapes",
            description="Mean number of scrapes of a target within the step.",
            template=_first_of(SCRAPES, names, "up"),
        ),
    )


def _counter(
    name: str,
    signal: Signal,
    unit: str,
    description: str,
    series: tuple[str, ...],
    extra_labels: tuple[str, ...] = (),
) -> Query:
    return Query(
        name=name,
        signal=signal,
        unit=unit,
        description=description,
        template=f"({_first_of(INCREASE, series)}) != 0",
        extra_labels=extra_labels,
    )


_POOL: Final = (m.LABEL_POOL,)
_POOL_CLASS: Final = (m.LABEL_POOL, m.LABEL_CLASS)
_ROUTER_UP: Final = (m.SAMPLES, m.APPLIED_SEQUENCE)
"""Counters of a pool are there, at 0, once a table is applied; the agent's own series from its start."""

ROUTER_BY: Final = (m.LABEL_NAMESPACE, m.LABEL_POLICY)

ROUTER: Final[tuple[Query, ...]] = (
    *_timing("router", _ROUTER_UP),
    _counter(
        "router_samples",
        Signal.TOTAL,
        "requests",
        "Samples per pool and size class: requests answered at the first try, and failed attempts.",
        (m.SAMPLES,),
        _POOL_CLASS,
    ),
    _counter(
        "router_samples_slow",
        Signal.SLOW,
        "requests",
        "Of these, slower than the target or failed: counted by the router itself, so exact.",
        (m.SAMPLES_SLOW,),
        _POOL_CLASS,
    ),
    _counter(
        "router_pool_milliseconds",
        Signal.LATENCY,
        "milliseconds",
        "Time that attempts spent in the pool, all of them; over time, the mean in-flight (Little's law).",
        (m.POOL_MILLISECONDS,),
        _POOL_CLASS,
    ),
    _counter(
        "router_completion_tokens",
        Signal.COMPLETION_TOKENS,
        "tokens",
        "Completion tokens per pool, as far as answers carry `usage`: what a pool's pace is judged by.",
        (m.COMPLETION_TOKENS,),
        _POOL_CLASS,
    ),
    _counter(
        "router_client_requests",
        Signal.CLIENT_TOTAL,
        "requests",
        "Requests as the clients saw them: each once, whatever the number of tries.",
        (m.CLIENT_REQUESTS,),
    ),
    _counter(
        "router_client_slow",
        Signal.CLIENT_SLOW,
        "requests",
        "Of these, slower than the target or failed.",
        (m.CLIENT_SLOW,),
    ),
    Query(
        name="router_uncounted",
        signal=Signal.UNCOUNTED,
        unit="sequence",
        description="Policies whose agents applied a table while none of their Envoys' counters is scraped.",
        template=f"max by ($by) (({m.APPLIED_SEQUENCE}{{$match}} >= 0) "
        f"unless on ($by) {m.SAMPLES}{{$match}})",
    ),
    Query(
        name="router_in_flight",
        signal=Signal.IN_FLIGHT,
        unit="requests",
        description="Requests in flight to each pool, from all routers.",
        template=GAUGE.format(series=f"{m.IN_FLIGHT}{{$match}}") + " != 0",
        extra_labels=_POOL,
    ),
)

ROUTER_FAILED: Final = _counter(
    "router_failed_attempts",
    Signal.FAILED,
    "attempts",
    "Attempts that a pool failed, which no engine counts; asked only while a pool is measured by its engine.",
    (m.FAILED_ATTEMPTS,),
    _POOL,
)

ROUTER_PROMPT: Final = _counter(
    "router_prompt_tokens",
    Signal.PROMPT_TOKENS,
    "tokens",
    "Prompt tokens per pool; asked only while a pool is paid by token.",
    (m.PROMPT_TOKENS,),
    _POOL,
)

WORDS: Final[Mapping[SLAMetric, str]] = {
    SLAMetric.END_TO_END: "latency",
    SLAMetric.TTFT: "ttft",
    SLAMetric.TPOT: "tpot",
}

ROUTER_ATTAINED: Final[Mapping[SLAMetric, tuple[Query, ...]]] = {
    metric: (
        Query(
            name=f"router_{WORDS[metric]}_attained",
            signal=Signal.ATTAINED,
            unit="milliseconds",
            description="The SLA's percentile per pool, interpolated; for display only.",
            template=QUANTILE.format(series=f"{series}{{$match}}"),
            extra_labels=_POOL,
        ),
        Query(
            name=f"router_{WORDS[metric]}_client_attained",
            signal=Signal.CLIENT_ATTAINED,
            unit="milliseconds",
            description="The SLA's percentile over all pools, interpolated; for display only.",
            template=QUANTILE.format(series=f"{series}{{$match}}"),
        ),
    )
    for metric, series in (
        (SLAMetric.END_TO_END, m.LATENCY_BUCKET),
        (SLAMetric.TTFT, m.TTFT_BUCKET),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Where an engine tells the distribution of one latency."""

    names: tuple[str, ...]
    """Names without `_bucket`, the present one first, then older and rewritten ones."""
    unit_seconds: float = 1.0
    """Seconds in one unit of `le`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A serving engine's own metrics."""

    engine: Engine
    up: tuple[str, ...]
    """A gauge that is there from the engine's start: by it, availability is judged."""
    in_flight: tuple[str, ...]
    """Gauges whose sum is what the engine has in flight: one per part (running, waiting), each with its
    other names after `|`.
    """
    latency_sum: tuple[str, ...]
    """Sum of end-to-end times."""
    latency_unit_seconds: float = 1.0
    histograms: Mapping[SLAMetric, Histogram] = field(default_factory=dict)
    note: str = ""

    def queries(self, metric: SLAMetric) -> tuple[Query, ...]:
        """The queries for one SLA metric; empty where the engine has no histogram of it."""
        histogram = self.histograms.get(metric)
        if histogram is None:
            return ()
        word = self.engine.value.lower()
        return (
            *_timing(word, self.up),
            _counter(
                f"{word}_{WORDS[metric]}_buckets",
                Signal.BUCKETS,
                "requests",
                "Requests completed, by upper bound of their latency.",
                tuple(f"{name}_bucket" for name in histogram.names),
                ("le",),
            ),
            _counter(
                f"{word}_latency_sum",
                Signal.LATENCY,
                "engine's unit",
                "Sum of the end-to-end times of the requests completed.",
                self.latency_sum,
            ),
            Query(
                name=f"{word}_in_flight",
                signal=Signal.IN_FLIGHT,
                unit="requests",
                description="Requests running and waiting in the engine.",
                template=GAUGE.format(series=f'{{__name__=~"{"|".join(self.in_flight)}",$match}}') + " != 0",
            ),
        )


def _with_kserve(*names: str) -> tuple[str, ...]:
    """The names, and what KServe's PodMonitor makes of them."""
    return (*names, *(name.replace("vllm:", "kserve_vllm:", 1) for name in names))


PRESETS: Final[Mapping[Engine, Preset]] = {
    Engine.VLLM: Preset(
        engine=Engine.VLLM,
        up=_with_kserve("vllm:num_requests_running"),
        in_flight=_with_kserve("vllm:num_requests_running", "vllm:num_requests_waiting"),
        latency_sum=_with_kserve("vllm:e2e_request_latency_seconds_sum"),
        histograms={
            SLAMetric.END_TO_END: Histogram(names=_with_kserve("vllm:e2e_request_latency_seconds")),
            SLAMetric.TTFT: Histogram(names=_with_kserve("vllm:time_to_first_token_seconds")),
            SLAMetric.TPOT: Histogram(
                names=_with_kserve(
                    "vllm:request_time_per_output_token_seconds", "vllm:time_per_output_token_seconds"
                )
            ),
        },
        note="The deprecated time_per_output_token is weighted by tokens, not by requests.",
    ),
    Engine.SGLANG: Preset(
        engine=Engine.SGLANG,
        up=("sglang:num_running_reqs",),
        in_flight=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
        latency_sum=("sglang:e2e_request_latency_seconds_sum",),
        histograms={
            SLAMetric.END_TO_END: Histogram(names=("sglang:e2e_request_latency_seconds",)),
            SLAMetric.TTFT: Histogram(names=("sglang:time_to_first_token_seconds",)),
            SLAMetric.TPOT: Histogram(names=("sglang:inter_token_latency_seconds",)),
        },
        note="Needs --enable-metrics. inter_token_latency is weighted by tokens, not by requests.",
    ),
    Engine.TGI: Preset(
        engine=Engine.TGI,
        up=("tgi_queue_size",),
        in_flight=("tgi_batch_current_size", "tgi_queue_size"),
        latency_sum=("tgi_request_duration_sum",),
        histograms={
            SLAMetric.END_TO_END: Histogram(names=("tgi_request_duration",)),
            SLAMetric.TPOT: Histogram(names=("tgi_request_mean_time_per_token_duration",)),
        },
        note="TGI has no time to first token.",
    ),
    Engine.TRITON: Preset(
        engine=Engine.TRITON,
        up=("nv_inference_pending_request_count",),
        in_flight=("nv_inference_pending_request_count",),
        latency_sum=("nv_inference_request_duration_us",),
        latency_unit_seconds=1e-6,
        histograms={
            SLAMetric.TTFT: Histogram(names=("nv_inference_first_response_histogram_ms",), unit_seconds=1e-3),
        },
        note="Triton's latencies are cumulative counters, which give means only; the time to first response "
        "has a histogram when it is started with histogram_latencies=true.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Label matchers: of series, and of the targets that they come from."""

    series: str
    targets: str = ""


def router_match(namespaces: tuple[str, ...] = (), policies: tuple[str, ...] = ()) -> Match:
    """Matchers for the routers' series: of these namespaces and policies, or of all."""
    series = [f'{m.LABEL_POLICY}!=""', f'{m.LABEL_NAMESPACE}!=""']
    if namespaces:
        series[1] = one_of(m.LABEL_NAMESPACE, namespaces)
    if policies:
        series[0] = one_of(m.LABEL_POLICY, policies)
    return Match(series=",".join(series), targets=series[1])


def engine_match(labels: tuple[str, ...], keys: tuple[tuple[str, ...], ...] = ()) -> Match:
    """Matchers for an engine's series, picked by these labels with these values, or by any."""
    parts = {
        label: one_of(label, tuple(key[index] for key in keys)) if keys else f'{label}!=""'
        for index, label in enumerate(labels)
    }
    return Match(series=",".join(parts.values()), targets=parts.get("namespace", ""))


def one_of(label: str, values: tuple[str, ...]) -> str:
    """A matcher for any of the values, each taken literally."""
    pattern = "|".join(_literal(value) for value in sorted(set(values)))
    return f'{label}=~"{pattern}"'


def _literal(value: str) -> str:
    """A label's value as a regular expression within a PromQL string."""
    escaped = "".join("\\" + c if c in r"\.+*?()|[]{}^$" else c for c in value)
    return escaped.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def custom(query: str, window_seconds: float) -> str:
    """A user's own query with `$window` filled in."""
    return query.replace("$window", duration(window_seconds))
