"""The status of an InferencePolicy: what is routed, why, what it costs, and what was learned.

`routing` is the only hand-over from the operator to the router servers, `programmed` the only one back (each
written under its own field manager), `learned` holds everything a restarted operator needs to go on where the
last one stopped.
"""

from typing import Annotated

from pydantic import Field

from meritorder_api.wire import Figure, Wire, list_map


class Condition(Wire):
    """A condition as `metav1.Condition` has it."""

    type: Annotated[str, Field(max_length=316)] = Field(
        description="Ready, Accepted, MetricsAvailable, SLAMet or Programmed."
    )
    status: Annotated[str, Field(pattern=r"^(True|False|Unknown)$")] = Field(
        description="True, False or Unknown."
    )
    reason: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="One CamelCase word: the cause."
    )
    message: Annotated[str, Field(max_length=32768)] = Field(
        default="", description="A sentence with numbers."
    )
    observed_generation: int | None = Field(
        default=None, description="Generation of the spec that this speaks of."
    )
    last_transition_time: str = Field(
        description="When `status` last changed.", json_schema_extra={"format": "date-time"}
    )


class ClassLimit(Wire):
    """The limit of one size class."""

    max_tokens: int = Field(description="Requests that ask for at most so many tokens (a power of two).")
    limit_per_replica: Figure = Field(
        description="They may enter while fewer than this are in flight per ready replica, of all classes."
    )


class RoutedPool(Wire):
    """A pool's place in the merit order."""

    name: str = Field(description="The pool.")
    limit_per_replica: Figure | None = Field(
        default=None, description="Requests in flight per ready replica; absent: unlimited."
    )
    class_limits: list[ClassLimit] | None = Field(default=None, description="Limits by size of the request.")
    weight_percent: int | None = Field(
        default=None, description="Share of the requests, where limits cannot be split."
    )


class Routing(Wire):
    """What the router servers hand on: pools in merit order, the fallback pool last."""

    sequence: int = Field(description="Grows with every change; an agent never goes back.")
    revision: str = Field(description="Hash of what follows: equal routing, equal revision.")
    shed: bool = Field(default=False, description="What no pool takes gets 429.")
    pools: list[RoutedPool] = Field(description="Pools in merit order, the fallback pool last.")


class PoolStatus(Wire):
    """What is known of a pool."""

    name: str = Field(description="The pool.")
    state: str = Field(description="Meets, Misses, Unsure, Idle or Unknown.")
    reason: str | None = Field(default=None, description="Why, in one word.")
    attained_milliseconds: int | None = Field(default=None, description="The SLA's percentile as measured.")
    slow_percent: Figure | None = Field(
        default=None, description="Share of the samples that were slower than the target."
    )
    slow_percent_error: Figure | None = Field(
        default=None, description="Error of `slowPercent` where it is interpolated from a histogram."
    )
    samples: int | None = Field(default=None, description="Requests that this rests on.")
    sampled_at: str | None = Field(
        default=None, description="Time of the newest sample.", json_schema_extra={"format": "date-time"}
    )
    requests_per_second: Figure | None = Field(default=None, description="Completed requests per second.")
    in_flight: Figure | None = Field(default=None, description="Mean requests in flight.")
    share_percent: int | None = Field(default=None, description="Share of the policy's requests.")
    ready_replicas: int | None = Field(default=None, description="Ready replicas.")
    needed_replicas: int | None = Field(default=None, description="Replicas that the recent peak needs.")
    needed_at_least: bool | None = Field(
        default=None,
        description="The pool was never driven to its limit: it may need fewer replicas than that.",
    )
    limit_per_replica: Figure | None = Field(default=None, description="Learned limit per ready replica.")
    price_per_replica_hour: Figure | None = Field(
        default=None, description="US dollars per replica and hour."
    )
    cost_per_hour: Figure | None = Field(default=None, description="US dollars per hour for what is ready.")
    cost_per_thousand_requests: Figure | None = Field(
        default=None, description="US dollars per 1,000 requests at the present load."
    )
    cost_per_thousand_at_limit: Figure | None = Field(
        default=None,
        description="US dollars per 1,000 requests when filled to its limit, where that was measured.",
    )


class DecisionStatus(Wire):
    """What was last decided, also when it was to change nothing."""

    action: str = Field(description="Hold, Grow, Cut, Drain, Retry, Reorder, Start or Reconfigure.")
    reason: str = Field(description="Why, in one word.")
    message: str = Field(description="Why, in a sentence with numbers.")
    evaluated_at: str = Field(description="When.", json_schema_extra={"format": "date-time"})


class CheapestMix(Wire):
    """The replicas whose bill would be least for the recent peak."""

    replicas: dict[str, int] | None = Field(default=None, description="Replicas per pool.")
    per_hour: Figure | None = Field(default=None, description="Their bill in US dollars per hour.")
    message: str = Field(description="The same in a sentence, or what is not known yet.")


class Savings(Wire):
    """What is saved against serving everything on the fallback pool."""

    baseline: str = Field(description="The fallback pool.")
    baseline_per_hour: Figure = Field(
        description="US dollars per hour if the fallback pool carried the peak alone."
    )
    realised_per_hour: Figure = Field(description="Baseline less the bill of what is ready.")
    possible_per_hour: Figure = Field(description="Baseline less the bill of what is needed.")
    percent: int = Field(description="Realised, as a share of the baseline; may be negative.")
    message: str | None = Field(default=None, description="The counterfactual and its inputs.")


class Summary(Wire):
    """What the columns of `kubectl get` show."""

    attained: str | None = Field(
        default=None, description="The SLA's percentile as measured, over all pools."
    )
    target: str | None = Field(default=None, description="The target, for people.")
    cheapest: str | None = Field(default=None, description="The cheapest pool and its share of the requests.")
    cost_per_hour: str | None = Field(default=None, description="US dollars per hour for all that is ready.")
    saved: str | None = Field(default=None, description="Share saved against the fallback pool alone.")


class Refusal(Wire):
    """An agent that refused a table, or a pool of it."""

    agent: str = Field(description="Name of the pod.")
    code: str | None = Field(
        default=None,
        description="KeyNotMounted or CANotMounted: the table is applied without a pool that lacks it. "
        "Absent: the table is refused.",
    )
    reason: str = Field(description="Its sentence.")


class Programmed(Wire):
    """What the agents applied, as the router servers saw it."""

    sequence: int = Field(description="The sequence that this speaks of.")
    agents: int = Field(description="Agents of the policy.")
    applied: int = Field(description="Of these, agents that applied the sequence.")
    silent: int = Field(
        description="Of these, agents not heard of for 15 s; they keep serving what they have."
    )
    fill: str | None = Field(
        default=None, description="Fill or Split, per design: how limits are shared among agents."
    )
    refused: list[Refusal] = Field(
        default_factory=list, description="Agents that refused a table, or a pool of it (at most 8)."
    )
    ready: dict[str, int] = Field(default_factory=dict, description="Ready replicas per pool.")
    problems: list[str] = Field(
        default_factory=list,
        description="Backends that cannot be resolved or reached, one sentence each (at most 16).",
    )
    problem_reasons: list[str] | None = Field(
        default=None, description="The reason of each of `problems`, in their order."
    )
    possible_excess: dict[str, int] | None = Field(
        default=None, description="Requests in flight per pool that silent agents may add beyond its limit."
    )


class InferencePolicyStatus(Wire):
    """What is routed, why, what it costs, and what was learned."""

    observed_generation: int | None = Field(
        default=None, description="Generation of the spec that was last acted on."
    )
    conditions: list[Condition] | None = Field(
        default=None,
        description="Ready, Accepted, MetricsAvailable, SLAMet, Programmed.",
        json_schema_extra=list_map("type"),
    )
    fallback_pool: str | None = Field(default=None, description="The pool that takes what the others cannot.")
    summary: Summary | None = Field(default=None, description="What the columns of `kubectl get` show.")
    routing: Routing | None = Field(default=None, description="What is routed.")
    recommendation: Routing | None = Field(
        default=None, description="What would be routed, when `mode` is Recommend."
    )
    pools: list[PoolStatus] | None = Field(
        default=None, description="What is known of each pool.", json_schema_extra=list_map("name")
    )
    decision: DecisionStatus | None = Field(default=None, description="What was last decided.")
    history: list[DecisionStatus] | None = Field(
        default=None,
        description="The last 10 decisions that changed something, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    cheapest_mix: CheapestMix | None = Field(
        default=None, description="The cheapest replicas for the recent peak."
    )
    savings: Savings | None = Field(
        default=None, description="What is saved against the fallback pool alone."
    )
    learned: Annotated[str, Field(max_length=32768)] | None = Field(
        default=None, description="What was learned; opaque, versioned, compressed."
    )
    programmed: Programmed | None = Field(default=None, description="What the agents applied.")
