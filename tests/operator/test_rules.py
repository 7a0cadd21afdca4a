"""What an operator does not allow its policies: sources of metrics, and hosts that only a pod could reach."""

from __future__ import annotations

from typing import Any

import pytest

from meritorder_api.policy import InferencePolicySpec
from meritorder_operator import rules
from meritorder_operator.prometheus.client import Server
from meritorder_operator.settings import Settings

DEFAULT = "https://prometheus.monitoring.svc:9090/base"


def settings(**fields: Any) -> Settings:
    return Settings(identity="test", prometheus=Server(url=DEFAULT), **fields)


def a_spec(source: dict[str, Any] | None = None, host: str | None = None) -> InferencePolicySpec:
    backend = (
        {"service": {"name": "l40s", "port": 8000}}
        if host is None
        else {"hosts": [{"host": host, "port": 80}]}
    )
    spec: dict[str, Any] = {
        "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
        "pools": [{"name": "l40s", "backend": backend, "cost": {"perReplicaHour": "1.86"}}],
    }
    if source is not None:
        spec["metricsSource"] = {"prometheus": source}
    return InferencePolicySpec.model_validate(spec)


@pytest.mark.parametrize(
    ("url", "allowed", "accepted"),
    [
        (DEFAULT, (), True),
        ("https://PROMETHEUS.monitoring.svc:9090/base/", (), True),
        ("http://prometheus.monitoring.svc:9090/base", (), False),
        ("https://prometheus.monitoring.svc:9090/other", (), False),
        ("https://metrics.example", (), False),
        ("https://metrics.example", ("https://metrics.example",), True),
        ("https://metrics.example:443/tenant", ("https://metrics.example",), True),
        ("https://metrics.example:8443", ("https://metrics.example",), False),
        ("https://metrics.example.evil", ("https://metrics.example",), False),
        ("https://metrics.example/tenant-b", ("https://metrics.example/tenant",), False),
        ("https://metrics.example/tenant/b", ("https://metrics.example/tenant",), True),
        ("https://metrics.example/tenant/../b", ("https://metrics.example/tenant",), False),
        ("https://metrics.example/tenant/%2e%2e/b", ("https://metrics.example/tenant",), False),
        ("https://metrics.example/tenant/%252e%252e/b", ("https://metrics.example/tenant",), False),
        ("https://metrics.example/tenant?x=1", ("https://metrics.example/tenant",), False),
        ("https://a.metrics.example", ("https://*.metrics.example",), True),
        ("https://metrics.example", ("https://*.metrics.example",), False),
        ("https://evilmetrics.example", ("https://*.metrics.example",), False),
    ],
)
def test_a_source_must_be_the_default_or_allowed(url: str, allowed: tuple[str, ...], accepted: bool) -> None:
    seen = rules.check("ml", a_spec({"url": url}), settings(allowed_metrics_urls=allowed))

    assert seen.accepted is accepted
    if not accepted:
        assert seen.reason == "NotAllowed"
        assert "--allowed-metrics-url" in seen.message


def test_secrets_are_read_only_where_the_operator_may() -> None:
    source = {"url": DEFAULT, "authSecretRef": {"name": "token"}}

    refused = rules.check("ml", a_spec(source), settings(secret_namespaces=("other",)))
    assert not refused.accepted
    assert "`ml`; add it to --secret-namespace" in refused.message
    assert rules.check("ml", a_spec(source), settings(secret_namespaces=("ml",))).accepted


@pytest.mark.parametrize(
    ("host", "what"),
    [
        ("localhost", "loopback"),
        ("LOCALHOST", "loopback"),
        ("a.localhost", "loopback"),
        ("127.0.0.1", "loopback"),
        ("127.1", "loopback"),
        ("0x7f000001", "loopback"),
        ("2130706433", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("0.0.0.0", "no host's address"),
        ("chat.ml.svc", "a Service's name"),
        ("chat.ml.svc.cluster.local", "a Service's name"),
        ("node.cluster.local", "inside the cluster"),
        ("api.example.com", None),
        ("10.1.2.3", None),
        ("svc.example.com", None),
    ],
)
def test_hosts_that_only_a_pod_can_mean_are_refused(host: str, what: str | None) -> None:
    seen = rules.check("ml", a_spec(host=host), settings())

    assert seen.accepted is (what is None)
    if what is not None:
        assert f"pool `l40s` names host `{host}`, which is {what};" in seen.message
        assert rules.check("ml", a_spec(host=host), settings(allowed_backend_hosts=(host,))).accepted
