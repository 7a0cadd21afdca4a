"""Names and labels of the series by which a router tells what it did: the agent renders them, the operator
reads them.

Envoy's own exposition prefixes each name with `envoy_`; what the stats access logger counts carries
`meritorder` as its prefix. Labels: `policy` (the policy's name, on every series below), `pool` on those of a
pool, and `class` (size class; empty where there is none); the namespace is Prometheus's own target
label `namespace`, never a label that a pod could set by itself. All of a pool's deciding counters are there,
at 0, from the moment that the pool is in an applied table.

Four families decide and are counters, exact, per pool (design 4, "What counts as a sample"): `SAMPLES`,
`SAMPLES_SLOW`, `POOL_MILLISECONDS` and `FAILED_ATTEMPTS`. A sample is a completed POST on an inference path
that the pool answered at the first try, a client's abort of one that was older than the target (slow), or an
attempt that the pool failed (5xx, reset, timeout, its own 429), which is slow. `CLIENT_*` is the same from
the client's side, once per request whatever the number of tries: what the SLA is judged by. Slow is "slower
than the target, by the SLA's metric, or failed"; with an SLA on TTFT or TPOT, samples and client requests
are of streams (and of failures).
"""

from typing import Final

SAMPLES: Final = "envoy_meritorder_samples_total"
SAMPLES_SLOW: Final = "envoy_meritorder_samples_slow_total"
FAILED_ATTEMPTS: Final = "envoy_meritorder_failed_attempts_total"
"""Attempts that a pool failed and that another one may have made good: each is in SAMPLES and SAMPLES_SLOW
too.
"""
POOL_MILLISECONDS: Final = "envoy_meritorder_pool_milliseconds_total"
"""Sum of the time in ms that attempts spent in the pool, counted as each ends, *all* of them (also retried
requests that it answered, 4xx and aborts): its increase over an interval is the pool's mean in-flight
(Little's law).
"""

CLIENT_REQUESTS: Final = "envoy_meritorder_client_requests_total"
CLIENT_SLOW: Final = "envoy_meritorder_client_slow_total"

REQUESTS: Final = "envoy_meritorder_requests_total"
"""Every request by pool, `code` and response `flags`, for people; decides nothing. No pool (404, 429, 503 of
ours): empty.
"""
LATENCY_BUCKET: Final = "envoy_meritorder_latency_milliseconds_bucket"
"""Histogram of the end-to-end time in ms per pool of the requests it answered, for display (edges are not
exact).
"""
TTFT_BUCKET: Final = "envoy_meritorder_ttft_milliseconds_bucket"
"""Histogram of the time to the first byte of the answer's body in ms per pool, for display."""
PROMPT_TOKENS: Final = "envoy_meritorder_prompt_tokens_total"
"""Tokens as the pools' `usage` says; absent where no answer carried any."""
COMPLETION_TOKENS: Final = "envoy_meritorder_completion_tokens_total"
IN_FLIGHT: Final = "envoy_cluster_upstream_rq_active"
"""Gauge: requests in flight to the pool, from this Envoy (its own gauge of the pool's cluster)."""
ENDPOINTS_HEALTHY: Final = "envoy_cluster_membership_healthy"
"""Gauge: the pool's endpoints that this Envoy finds well."""

APPLIED_SEQUENCE: Final = "meritorder_router_applied_sequence"
"""Gauge of the agent, there from its start (-1 before the first table): by it, availability of metrics is
judged.
"""
LIMIT: Final = "meritorder_router_pool_limit"
"""Gauge of the agent: this agent's slice of the pool's limit; +Inf for an unlimited pool. With `class`:
that of the size class, which holds for its requests instead.
"""
TARGET: Final = "meritorder_router_target_milliseconds"
"""Gauge of the agent: the SLA's target by which requests are counted as slow now."""

LABEL_NAMESPACE: Final = "namespace"
LABEL_POLICY: Final = "policy"
LABEL_POOL: Final = "pool"
LABEL_CLASS: Final = "class"
LABEL_CODE: Final = "code"
LABEL_FLAGS: Final = "flags"
LABEL_AFFINITY: Final = "affinity"
"""On the gauges of a pool's cluster for requests with a session (`session`); absent on the others."""

METRICS_PATH: Final = "/metrics"
"""On the metrics listener: Envoy's series."""
AGENT_METRICS_PATH: Final = "/metrics/agent"
"""On the metrics listener: the agent's series, a second scrape path."""
