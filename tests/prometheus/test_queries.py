"""All PromQL is understood by a real Prometheus, and says what it is."""

from __future__ import annotations

from collections.abc import Callable

from meritorder_api.policy import SLAMetric
from meritorder_operator.prometheus import queries
from meritorder_operator.prometheus.queries import Match, Query
from servers.prometheus import Prometheus


def every_query() -> list[tuple[Query, tuple[str, ...], Match]]:
    """Each query with the labels and matchers that it is asked with."""
    asked = [*queries.ROUTER, queries.ROUTER_PROMPT, queries.ROUTER_FAILED]
    for pair in queries.ROUTER_ATTAINED.values():
        asked += pair
    found: list[tuple[Query, tuple[str, ...], Match]]
    found = [(query, queries.ROUTER_BY, queries.router_match()) for query in asked]
    found += [(query, queries.ROUTER_BY, queries.router_match(("ml", "a.b"), ('x"y',))) for query in asked]
    labels = ("namespace", "service")
    for preset in queries.PRESETS.values():
        for metric in SLAMetric:
            for query in preset.queries(metric):
                found.append((query, labels, queries.engine_match(labels)))
                found.append((query, ("pod",), queries.engine_match(("pod",), (("a\\b",),))))
    return found


def test_prometheus_understands_every_query(prometheus: Callable[..., Prometheus]) -> None:
    server = prometheus()
    for query, by, match in every_query():
        text = query.render(
            by=by, match=match.series, where=match.targets, step=2.5, window=60, quantile=0.95
        )
        assert "$" not in text
        assert server.query(text) == [], query.name


def test_every_query_says_what_it_is() -> None:
    names: dict[str, str] = {}
    for query, _, _ in every_query():
        assert query.unit
        assert query.description.endswith(".")
        assert names.setdefault(query.name, query.template) == query.template


def test_no_engine_is_asked_for_what_it_does_not_tell() -> None:
    none = {
        (engine.value, metric.value)
        for engine, preset in queries.PRESETS.items()
        for metric in SLAMetric
        if not preset.queries(metric)
    }
    assert none == {
        ("TGI", "TimeToFirstToken"),
        ("Triton", "EndToEndLatency"),
        ("Triton", "TimePerOutputToken"),
    }


def test_label_values_are_taken_literally() -> None:
    assert queries.one_of("pod", ("a.b", "c|d")) == r'pod=~"a\\.b|c\\|d"'
    assert queries.custom("sum(increase(x[$window]))", 15) == "sum(increase(x[15000ms]))"
