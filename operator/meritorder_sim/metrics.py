"""vLLM's `/metrics` of one simulated replica: the names, types, labels and buckets of vLLM 0.32, as text.

Counters and histograms are fed when a request's milestones pass; what grows while requests run (generated
tokens, time between tokens, the gauges) is taken from the engine when the page is rendered. The time
between tokens is averaged over what a request produced since the last page, so its count is exact and its
distribution is that of such means.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from meritorder_sim.engine import Engine, Job

LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0,
    30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_TIME_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
TOKEN_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
PARAMS_N_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

FinishReason = Literal["stop", "length", "abort", "error", "repetition"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error", "repetition")
_PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_KV_BLOCK_TOKENS = 16

Labels = tuple[tuple[str, str], ...]

_CACHE_CONFIG: Labels = (
    ("_block_size_resolved", "True"),
    ("cache_dtype", "auto"),
    ("cache_hit_alignment_tokens", "None"),
    ("effective_attention_block_size", "16"),
    ("enable_mamba_shared_prefix_checkpoint", "False"),
    ("enable_prefix_caching", "True"),
    ("gpu_memory_utilization", "0.92"),
    ("hash_block_size", "None"),
    ("is_attention_free", "False"),
    ("kv_cache_dtype_skip_layers", "[]"),
    ("kv_cache_layout", "None"),
    ("kv_cache_memory_bytes", "None"),
    ("kv_offloading_backend", "native"),
    ("kv_offloading_size", "None"),
    ("kv_sharing_fast_prefill", "False"),
    ("mamba_block_size", "None"),
    ("mamba_cache_dtype", "auto"),
    ("mamba_cache_mode", "none"),
    ("mamba_page_size_padded", "None"),
    ("mamba_ssm_cache_dtype", "auto"),
    ("num_cpu_blocks", "None"),
    ("num_gpu_blocks_override", "None"),
    ("prefix_cache_retention_interval", "0"),
    ("prefix_caching_hash_algo", "sha256"),
    ("prefix_match_unit", "None"),
    ("replayssm_buffer_len", "16"),
    ("skip_page_size_padded", "None"),
    ("sliding_window", "None"),
    ("swa_bounded_replay", "True"),
    ("use_kda_recoverssm", "False"),
    ("use_replayssm", "False"),
    ("user_specified_block_size", "False"),
)

_HISTOGRAMS: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("request_prompt_tokens", "Number of prefill tokens processed.", TOKEN_BUCKETS),
    ("request_generation_tokens", "Number of generation tokens processed.", TOKEN_BUCKETS),
    (
        "request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
        TOKEN_BUCKETS,
    ),
    ("request_params_n", "Histogram of the n request parameter.", PARAMS_N_BUCKETS),
    ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", TOKEN_BUCKETS),
    ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", FIRST_TOKEN_BUCKETS),
    ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", TOKEN_TIME_BUCKETS),
    (
        "request_time_per_output_token_seconds",
        "Histogram of time_per_output_token_seconds per request.",
        TOKEN_TIME_BUCKETS,
    ),
    ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", LATENCY_BUCKETS),
    ("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", LATENCY_BUCKETS),
    (
        "request_inference_time_seconds",
        "Histogram of time spent in RUNNING phase for request.",
        LATENCY_BUCKETS,
    ),
    (
        "request_prefill_time_seconds",
        "Histogram of time spent in PREFILL phase for request.",
        LATENCY_BUCKETS,
    ),
    ("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", LATENCY_BUCKETS),
    (
        "request_num_preemptions",
        "Histogram of the number of times a request was preempted.",
        PREEMPTION_BUCKETS,
    ),
    (
        "request_prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        TOKEN_BUCKETS,
    ),
)


@dataclass(slots=True)
class _Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: int = 0
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += times
        self.sum += value * times


class ReplicaMetrics:
    """The counters of one replica; `render` gives the page. `created_at` is wall-clock seconds."""

    def __init__(self, *, model: str, max_batch: int, kv_cache_tokens: int, created_at: float) -> None:
        self._max_batch = max_batch
        self._kv_cache_tokens = kv_cache_tokens
        self._created_at = created_at
        self._labels: Labels = (("engine", "0"), ("model_name", model))
        self._histograms = {name: _Histogram(bounds) for name, _, bounds in _HISTOGRAMS}
        self._prompt_tokens = 0
        self._ended_generation_tokens = 0
        self._ended: dict[FinishReason, int] = dict.fromkeys(FINISH_REASONS, 0)
        self._http: dict[tuple[str, str, str], int] = {}
        self._timed_tokens: dict[int, tuple[int, float]] = {}

    def started(self, job: Job) -> None:
        """Count a request whose first token (or embedding) is there."""
        assert job.first_token_at is not None
        assert job.admitted_at is not None
        observe = self._histograms
        self._prompt_tokens += job.prompt_tokens
        observe["time_to_first_token_seconds"].observe(job.first_token_at - job.arrived_at)
        self._timed_tokens[job.number] = (1, job.first_token_at)

    def finished(self, job: Job, *, reason: FinishReason, max_tokens: int | None) -> None:
        """Count a request that ended by itself."""
        assert job.first_token_at is not None
        assert job.admitted_at is not None
        assert job.finished_at is not None
        self._time_tokens(job, job.output_tokens, job.finished_at)
        self._timed_tokens.pop(job.number, None)
        self._ended_generation_tokens += job.output_tokens
        self._ended[reason] += 1
        decode = job.finished_at - job.first_token_at
        for name, value in (
            ("request_prompt_tokens", job.prompt_tokens),
            ("request_generation_tokens", job.output_tokens),
            ("request_max_num_generation_tokens", job.output_tokens),
            ("request_params_n", 1),
            ("e2e_request_latency_seconds", job.finished_at - job.arrived_at),
            ("request_queue_time_seconds", job.admitted_at - job.arrived_at),
            ("request_inference_time_seconds", job.finished_at - job.admitted_at),
            ("request_prefill_time_seconds", job.first_token_at - job.admitted_at),
            ("request_decode_time_seconds", decode),
            ("request_time_per_output_token_seconds", decode / max(job.output_tokens - 1, 1)),
            ("request_num_preemptions", 0),
            ("request_prefill_kv_computed_tokens", job.prompt_tokens),
        ):
            self._histograms[name].observe(value)
        if max_tokens is not None:
            self._histograms["request_params_max_tokens"].observe(max_tokens)

    def aborted(self, job: Job, tokens: int, now: float) -> None:
        """Count a request that its client left after `tokens` output tokens."""
        self._time_tokens(job, tokens, now)
        self._timed_tokens.pop(job.number, None)
        self._ended_generation_tokens += tokens
        self._ended["abort"] += 1

    def answered(self, *, handler: str, method: str, status: int) -> None:
        """Count an HTTP answer."""
        key = (handler, method, f"{status // 100}xx")
        self._http[key] = self._http.get(key, 0) + 1

    def render(self, engine: Engine, now: float) -> str:
        """Write the page for the engine as it stands at `now`."""
        running_tokens = 0
        held_tokens = 0
        for job in engine.running_jobs:
            tokens = engine.tokens(job)
            self._time_tokens(job, tokens, now)
            running_tokens += tokens
            held_tokens += job.prompt_tokens + tokens
        usage = min(held_tokens / self._kv_cache_tokens, 1.0)
        own = self._labels
        page = _Page(self._created_at)
        page.gauge(
            "num_requests_running", "Number of requests in model execution batches.", [(own, engine.running)]
        )
        page.gauge(
            "num_requests_waiting", "Number of requests waiting to be processed.", [(own, engine.waiting)]
        )
        page.gauge(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            [((*own, ("reason", "capacity")), engine.waiting), ((*own, ("reason", "deferred")), 0)],
        )
        page.gauge(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake.",
            [
                ((*own, ("sleep_state", state)), float(state == "awake"))
                for state in ("awake", "weights_offloaded", "discard_all")
            ],
        )
        page.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [(own, usage)])
        page.counter(
            "prefix_cache_queries_total",
            "Prefix cache queries, in terms of number of queried tokens.",
            [(own, self._prompt_tokens)],
        )
        page.counter(
            "prefix_cache_hits_total", "Prefix cache hits, in terms of number of cached tokens.", [(own, 0)]
        )
        page.counter("num_preemptions_total", "Cumulative number of preemption from the engine.", [(own, 0)])
        page.counter(
            "prompt_tokens_total", "Number of prefill tokens processed.", [(own, self._prompt_tokens)]
        )
        page.counter(
            "prompt_tokens_by_source_total",
            "Number of prompt tokens by source.",
            [
                ((*own, ("source", source)), self._prompt_tokens if source == "local_compute" else 0)
                for source in _PROMPT_SOURCES
            ],
        )
        page.counter(
            "prompt_tokens_cached_total", "Number of cached prompt tokens (local + external).", [(own, 0)]
        )
        page.counter(
            "generation_tokens_total",
            "Number of generation tokens processed.",
            [(own, self._ended_generation_tokens + running_tokens)],
        )
        page.counter(
            "request_success_total",
            "Count of successfully processed requests.",
            [((own[0], ("finished_reason", reason), own[1]), count) for reason, count in self._ended.items()],
        )
        for name, text, _ in _HISTOGRAMS:
            page.histogram(name, text, own, self._histograms[name])
        page.gauge(
            "cache_config_info", "Information of the LLMEngine CacheConfig", [(self._cache_labels(), 1)]
        )
        if self._http:
            page.http_requests(self._http)
        return page.text()

    def _time_tokens(self, job: Job, tokens: int, now: float) -> None:
        """Feed the time between tokens with those that came since the last look."""
        if job.number not in self._timed_tokens:
            return
        seen, at = self._timed_tokens[job.number]
        if tokens > seen:
            self._histograms["inter_token_latency_seconds"].observe(
                (now - at) / (tokens - seen), tokens - seen
            )
            self._timed_tokens[job.number] = (tokens, now)

    def _cache_labels(self) -> Labels:
        own = (
            ("block_size", str(_KV_BLOCK_TOKENS)),
            ("engine", "0"),
            ("kv_cache_max_concurrency", str(float(self._max_batch))),
            ("kv_cache_size_tokens", str(self._kv_cache_tokens)),
            ("num_gpu_blocks", str(self._kv_cache_tokens // _KV_BLOCK_TOKENS)),
        )
        return tuple(sorted((*_CACHE_CONFIG, *own)))


def with_nan(page: str) -> str:
    """Return the page with every value of vLLM's families replaced by NaN."""
    return "".join(
        f"{line.rpartition(' ')[0]} NaN\n" if line.startswith("vllm:") else f"{line}\n"
        for line in page.splitlines()
    )


class _Page:
    """Text in the Prometheus format, as prometheus_client writes it (with a `_created` gauge per family)."""

    def __init__(self, created_at: float) -> None:
        self._created_at = created_at
        self._lines: list[str] = []

    def gauge(self, name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> None:
        self._family(f"vllm:{name}", text, "gauge", samples)

    def counter(self, name: str, text: str, samples: Sequence[tuple[Labels, float]]) -> None:
        self._family(f"vllm:{name}", text, "counter", samples)
        created = [(labels, self._created_at) for labels, _ in samples]
        self._family(f"vllm:{name.removesuffix('_total')}_created", text, "gauge", created)

    def histogram(self, name: str, text: str, labels: Labels, histogram: _Histogram) -> None:
        full = f"vllm:{name}"
        self._lines += [f"# HELP {full} {text}", f"# TYPE {full} histogram"]
        running = 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            running += count
            le = "+Inf" if bound == float("inf") else repr(bound)
            self._sample(f"{full}_bucket", (labels[0], ("le", le), labels[1]), running)
        self._sample(f"{full}_count", labels, histogram.total)
        self._sample(f"{full}_sum", labels, histogram.sum)
        self._family(f"{full}_created", text, "gauge", [(labels, self._created_at)])

    def http_requests(self, counts: Mapping[tuple[str, str, str], int]) -> None:
        text = "Total number of requests by method, status and handler."
        samples: list[tuple[Labels, float]] = [
            ((("handler", handler), ("method", method), ("status", status)), count)
            for (handler, method, status), count in sorted(counts.items())
        ]
        self._family("http_requests_total", text, "counter", samples)
        created = [(labels, self._created_at) for labels, _ in samples]
        self._family("http_requests_created", text, "gauge", created)

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def _family(self, name: str, text: str, kind: str, samples: Iterable[tuple[Labels, float]]) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            self._sample(name, labels, value)

    def _sample(self, name: str, labels: Labels, value: float) -> None:
        pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        self._lines.append(f"{name}{{{pairs}}} {float(value)!r}")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
