"""What the server tells of itself, in a registry of its own."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "meritorder_server"


class Metrics:
    """All series of a server. Labels are bounded: outcomes and reasons are words of ours."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tables = Counter(
            f"{PREFIX}_table_answers_total",
            "Answers to agents that asked for a table",
            ["status"],
            registry=self.registry,
        )
        self.reports = Counter(f"{PREFIX}_reports_total", "Reports of agents", registry=self.registry)
        self.denied = Counter(
            f"{PREFIX}_denied_total",
            "Requests that were not served, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.passed_on = Counter(
            f"{PREFIX}_peer_posts_total",
            "Posts of reports to other servers",
            ["outcome"],
            registry=self.registry,
        )
        self.writes = Counter(
            f"{PREFIX}_status_writes_total",
            "Writes of status.programmed",
            ["outcome"],
            registry=self.registry,
        )
        self.injections = Counter(
            f"{PREFIX}_injections_total",
            "Pods that the webhook was asked about, by outcome",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("injected", "left", "refused"):
            self.injections.labels(outcome)
        self.delay = Histogram(
            f"{PREFIX}_table_delay_seconds",
            "From a change seen in the API server to the answer to an agent that waited for it",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            registry=self.registry,
        )
        self.leader = Gauge(
            f"{PREFIX}_writes_status",
            "1 while this server is the one that writes status.programmed",
            registry=self.registry,
        )

    def state(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Add series that are read from the state at each scrape."""
        self.registry.register(_State(collect))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)


class _State(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def state(
    *, live: int, silent: int, waiting: int, policies: int, known: bool, uninjected: Mapping[str, int]
) -> list[Metric]:
    """The state of a server as series."""
    agents = GaugeMetricFamily(f"{PREFIX}_agents", "Agents known, by state", labels=["state"])
    agents.add_metric(["live"], live)
    agents.add_metric(["silent"], silent)
    without = GaugeMetricFamily(
        f"{PREFIX}_uninjected_pods", "Pods that ask for a router and have none", labels=["namespace"]
    )
    for namespace, count in sorted(uninjected.items()):
        without.add_metric([namespace], count)
    return [
        agents,
        without,
        GaugeMetricFamily(f"{PREFIX}_waiting", "Questions that wait for another table", value=waiting),
        GaugeMetricFamily(f"{PREFIX}_policies", "Policies known", value=policies),
        GaugeMetricFamily(f"{PREFIX}_tables_on", "1 while tables are handed out", value=int(known)),
    ]
