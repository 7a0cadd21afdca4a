"""Reasons: one CamelCase word per cause, for conditions, events and decisions. Users alert on them: never
rename one.
"""

from enum import StrEnum
from typing import Final


class ConditionType(StrEnum):
    """Types of `status.conditions`."""

    READY = "Ready"
    ACCEPTED = "Accepted"
    METRICS_AVAILABLE = "MetricsAvailable"
    SLA_MET = "SLAMet"
    PROGRAMMED = "Programmed"


class Missing(StrEnum):
    """Why a signal is not known. Unknown is never 0."""

    NO_SERIES = "NoSeries"
    NOT_A_NUMBER = "NotANumber"
    STALE = "MetricsStale"
    TOO_FEW_SAMPLES = "TooFewSamples"
    SCRAPE_TOO_SLOW = "ScrapeTooSlow"
    FROZEN = "Frozen"
    USAGE_ABSENT = "UsageAbsent"
    UNREACHABLE = "PrometheusUnreachable"
    QUERY_REFUSED = "QueryRefused"
    UNAUTHORIZED = "PrometheusUnauthorized"
    NOT_SUPPORTED = "NotSupportedByEngine"
    NO_PRICE = "PriceUnknown"
    NOT_MEASURED = "NotMeasured"


class Verdict(StrEnum):
    """What is known of a pool against the SLA."""

    MEETS = "Meets"
    MISSES = "Misses"
    UNSURE = "Unsure"
    IDLE = "Idle"
    UNKNOWN = "Unknown"


class Action(StrEnum):
    """What a decision does."""

    HOLD = "Hold"
    GROW = "Grow"
    CUT = "Cut"
    DRAIN = "Drain"
    RETRY = "Retry"
    REORDER = "Reorder"
    START = "Start"
    RECONFIGURE = "Reconfigure"


class Reason(StrEnum):
    """Why a decision is what it is, and why a condition has the status that it has."""

    # decisions: something changes
    FIRST_DECISION = "FirstDecision"
    CLEAN_SAMPLES = "CleanSamples"
    LIMIT_REACHED_CLEAN = "LimitReachedClean"
    SLA_MISSED = "SLAMissed"
    SLOWED_DOWN = "SlowedDown"
    RECOVERED = "Recovered"
    ERRORS = "ErrorsAboveAllowance"
    STALLED = "PoolStalled"
    MISSES_AT_MINIMUM = "MissesAtMinimum"
    RETRY_DUE = "RetryDue"
    PROBE = "TimedProbe"
    PRICE_CHANGED = "PriceChanged"
    SPEC_CHANGED = "SpecChanged"
    NO_READY_REPLICAS = "NoReadyReplicas"
    REPLICAS_READY = "ReplicasReady"
    SAFEST = "SafestPosture"
    # decisions: hold
    NO_NEW_SAMPLE = "NoNewSample"
    AT_CAPACITY = "AtCapacity"
    NOT_LIMIT_BOUND = "NotLimitBound"
    WITHIN_MARGIN = "WithinMargin"
    DWELL = "DwellTime"
    SETTLING = "Settling"
    METRICS_MISSING = "MetricsMissing"
    IDLE = "Idle"
    SUSPENDED = "Suspended"
    RECOMMEND_MODE = "RecommendMode"
    INFEASIBLE = "SLAInfeasible"
    SATURATED = "AllPoolsSaturated"
    AT_MAXIMUM = "AtMaximum"
    # conditions
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    NOT_ALLOWED = "NotAllowed"
    POOL_SHARED = "PoolShared"
    NO_TRAFFIC = "NoTraffic"
    MEETS = "Meets"
    LIKELY_MEETS = "LikelyMeets"
    MISSES = "Misses"
    LIKELY_MISSES = "LikelyMisses"
    TOO_FEW_SAMPLES = "TooFewSamples"
    METRICS_FOUND = "MetricsFound"
    PROGRAMMED = "Programmed"
    NO_AGENTS = "NoAgents"
    PENDING = "Pending"
    REFUSED_BY_AGENT = "RefusedByAgent"
    AGENTS_SILENT = "AgentsSilent"
    BACKEND_NOT_FOUND = "BackendNotFound"
    KEY_NOT_MOUNTED = "KeyNotMounted"
    CA_NOT_MOUNTED = "CANotMounted"
    HOST_NOT_RESOLVED = "HostNotResolved"
    CERTIFICATE_REFUSED = "CertificateRefused"
    TLS_FAILED = "TLSFailed"
    UNREACHABLE = "Unreachable"
    UNHEALTHY = "Unhealthy"
    MEASURED_COST_DISAGREES = "MeasuredCostDisagrees"
    ALL_WELL = "AllWell"
    # events beside conditions
    NOT_INJECTED = "NotInjected"
    GATEWAY_FAILED = "GatewayFailed"


NOT_MOUNTED: Final = (Reason.KEY_NOT_MOUNTED, Reason.CA_NOT_MOUNTED)
"""Why an agent passes over a pool until something is mounted: its table is applied otherwise."""
OUT_OF_REACH: Final = (Reason.HOST_NOT_RESOLVED, Reason.CERTIFICATE_REFUSED, Reason.TLS_FAILED)
"""Why an agent cannot speak with a pool's servers, where waiting will hardly mend it: the spec, DNS, or a
certificate will.
"""


def without_code(sentence: str, code: str | None) -> tuple[Reason | None, str]:
    """What an agent lacks, and the sentence without the word for it; None: the table itself is refused.

    `code` is what agents and servers say beside the sentence. Those of the minor version before do not, and
    begin the sentence with it, as is still done for readers of that version.
    """
    word, colon, rest = sentence.partition(": ")
    begins = bool(colon) and word in NOT_MOUNTED
    if not code and not begins:
        return None, sentence
    said = code or word
    known = Reason(said) if said in NOT_MOUNTED else None
    return known, rest if begins and word == said else sentence
