"""The JSON of a run: what `--json` writes and all that the HTML report is made of.

Times are seconds since the run began, money is US dollars as decimal strings, shares are fractions. What is
not known is null, never 0. `contenders` has one entry in `run` and `demo`; a replay has several.
"""

from typing import Any

from meritorder_api.wire import Wire


class Windows(Wire):
    """Tumbling windows of the SLA's length with at least 20 requests, and those of them that met it."""

    total: int
    met: int


class Requests(Wire):
    """Requests from the clients' side; a failed one is slow too."""

    total: int
    slow: int
    failed: int


class Warmup(Wire):
    """Requests of the warm-up, which every other figure leaves out."""

    requests: int
    slow: int


class PoolFigures(Wire):
    """What one pool did."""

    name: str
    requests: int
    prompt_tokens: int | None
    completion_tokens: int | None
    attained_seconds: float | None
    replica_hours: float
    final_limit_per_replica: float | None


class Contender(Wire):
    """The figures of one way to route."""

    name: str
    windows: Windows
    requests: Requests
    warmup: Warmup
    attained_seconds: float | None
    reversals_per_hour: float
    limit_changes_per_hour: float
    reference_cost: str | None
    """Completion tokens at each pool's reference price; null without reference prices."""
    reference_cost_on_fallback: str | None
    """The same tokens at the fallback pool's reference price."""
    bill: str | None
    """Ready replicas, used or not, at their price."""
    bill_needed: str | None
    """The same for the replicas that were needed."""
    pools: list[PoolFigures]


class DecisionRecord(Wire):
    """A decision that changed something, or whose reason is news."""

    at: float
    action: str
    reason: str
    message: str
    limits: dict[str, float | None]
    """Limit per ready replica, by pool in merit order; null is unlimited."""


class Event(Wire):
    """Something that happened to the run, beside the decisions."""

    at: float
    message: str
    pool: str | None = None


class PoolTick(Wire):
    """A pool at one moment."""

    name: str
    state: str
    requests_per_second: float
    share: float | None
    share_percent: int | None
    """The share as people are told it: those of one moment add up to 100."""
    attained_milliseconds: float | None
    slow_share: float | None
    in_flight: float
    limit: int | None
    """Of the whole pool; null is unlimited."""
    limit_per_replica: float | None
    """As learned, also where it is not enforced (the fallback pool)."""
    ready: int | None
    needed: int | None
    cost_per_hour: float | None
    cost_per_thousand: float | None


class Tick(Wire):
    """The run at one moment; pools in merit order, the fallback pool last."""

    at: float
    pools: list[PoolTick]
    requests_per_second: float
    attained_milliseconds: float | None
    """Over the SLA's window, all pools together."""
    slow_share: float | None
    sla_met: bool | None
    sla_reason: str
    cost_per_hour: float | None
    """Bill of what is ready."""
    needed_per_hour: float | None
    """Bill of what is needed."""
    needed_is_bound: bool = False
    """A pool was never driven to its limit, so that fewer replicas may do."""
    baseline_per_hour: float | None
    """Bill of the fallback pool's replicas that would carry everything alone."""
    baseline_is_bound: bool = False
    """The fallback pool was never driven to its limit, so that fewer replicas of it may do."""
    reference_per_hour: float | None = None
    """Tokens per hour at the reference price of the pool that made them."""
    reference_on_fallback_per_hour: float | None = None
    """The same tokens at the fallback pool's reference price."""


class PoolFacts(Wire):
    """What stands behind a pool's name."""

    name: str
    accelerator: str | None = None
    price_per_replica_hour: float | None = None
    reference_cost_per_million_tokens: float | None = None
    replicas: int | None = None


class ClientSide(Wire):
    """What the demo's own load generator counted, for comparison; the warm-up left out."""

    requests: int
    slow: int
    failed: int
    attained_seconds: float | None


class Document(Wire):
    """A run as JSON."""

    seed: int
    sla: dict[str, Any]
    policy: str
    fallback_pool: str
    started_at: str
    seconds: float
    warmup_seconds: float
    step_seconds: float
    """Between two entries of `series`."""
    interval_seconds: float
    simulated: bool
    note: str = ""
    pools: list[PoolFacts]
    contenders: list[Contender]
    decisions: list[DecisionRecord]
    events: list[Event]
    series: list[Tick]
    client: ClientSide | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON form; what is not known stays in it as null."""
        return self.model_dump(mode="json", by_alias=True)
