"""What the queries of all dashboards have in common.

Figures of the operator are `max by` their labels: while the lease changes hands, two processes tell of one
policy. Counters of routers are rates first and sums after, so that restarts cost nothing. Steps are
Grafana's own (`$__rate_interval`), so that no panel skips what lies between two of its points.
"""

from __future__ import annotations

from typing import Final

from meritorder_dashboards.grafana import Annotation, Variable

POLICIES: Final = 'namespace=~"$namespace", policy=~"$policy"'
POOLS: Final = f'{POLICIES}, pool=~"$pool"'
OF_POLICY: Final = "namespace, policy"
OF_POOL: Final = "namespace, policy, pool"


def rate(name: str, match: str, by: str = "") -> str:
    """A counter's growth per second, summed over routers; by labels or in all."""
    return f"{_sum(by)} (rate({name}{{{match}}}[$__rate_interval]))"


def increase(name: str, match: str, by: str = "", *, over: str = "$__rate_interval") -> str:
    """A counter's growth over a time, summed; by labels or in all."""
    return f"{_sum(by)} (increase({name}{{{match}}}[{over}]))"


def gauge(name: str, match: str, by: str) -> str:
    """A figure of the operator: one value per `by`."""
    return f"max by ({by}) ({name}{{{match}}})"


def total(name: str, match: str, by: str = OF_POLICY) -> str:
    """The same, added up."""
    return f"sum ({gauge(name, match, by)})"


def quantile(share: float, bucket: str, match: str, by: str) -> str:
    """A quantile of a histogram of routers."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({bucket}{{{match}}}[$__rate_interval])))"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


COST: Final = gauge("meritorder_cost_per_hour", POLICIES, OF_POLICY)
"""Per policy: what its ready replicas cost."""
REALISED: Final = gauge("meritorder_savings_per_hour", f'{POLICIES}, kind="realised"', OF_POLICY)
"""Per policy: how much less that is than the same peak on the fallback pool alone."""
SAVED_SHARE: Final = f"sum ({REALISED}) / (sum ({REALISED} + {COST}) > 0)"


def chosen(*, many: bool) -> tuple[Variable, Variable]:
    """Namespace and policy."""
    return (
        Variable(
            name="namespace",
            title="Namespace",
            values="label_values(meritorder_sla_target_seconds, namespace)",
            description="Namespaces that have policies.",
            many=many,
        ),
        Variable(
            name="policy",
            title="Policy",
            values='label_values(meritorder_sla_target_seconds{namespace=~"$namespace"}, policy)',
            description="Policies of these namespaces.",
            many=many,
        ),
    )


def decisions() -> Annotation:
    """Moments at which something was decided.

    The first decision of a kind is where its counter is born, which `increase` does not see.
    """
    series = f'meritorder_decisions_total{{{POLICIES}, action!="Hold"}}'
    by = f"sum by ({OF_POLICY}, action, reason)"
    return Annotation(
        name="Decisions",
        expr=(
            f"({by} ({series}) - {by} ({series} offset 1m)) > 0"
            f" or ({by} ({series}) unless {by} ({series} offset 1m))"
        ),
        colour="purple",
        title="{{action}}: {{reason}}",
        text=(
            "{{namespace}}/{{policy}}; why, in numbers: kubectl meritorder history {{policy}} -n "
            "{{namespace}}"
        ),
        tags="action,reason",
    )


def alerts() -> Annotation:
    """Times at which alerts fire."""
    return Annotation(
        name="Alerts",
        expr='ALERTS{alertname=~"Meritorder.+", alertstate="firing"}',
        colour="red",
        title="{{alertname}}",
        text="{{namespace}} {{policy}}: what to do is in the runbook of this name",
        tags="severity",
    )
