"""Policies for the tests of the API: good ones, bad ones, and the words in which these are refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api.names import API_VERSION, KIND

Manifest = dict[str, Any]


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""As a value in `changed`: take the field away."""


def policy(spec: Mapping[str, Any], name: str = "chat") -> Manifest:
    """The object of that spec."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": copy.deepcopy(dict(spec)),
    }


def changed(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the spec with fields replaced; a path such as `pools.0.cost` names one."""
    out = copy.deepcopy(dict(spec))
    for path, value in changes.items():
        steps: list[Any] = [int(step) if step.isdigit() else step for step in path.split(".")]
        *parents, last = steps
        place: Any = out
        for parent in parents:
            place = place[parent] if isinstance(place, list) else place.setdefault(parent, {})
        if value is ABSENT:
            del place[last]
        else:
            place[last] = copy.deepcopy(value)
    return out


def service_pool(name: str, price: str) -> dict[str, Any]:
    return {
        "name": name,
        "backend": {"service": {"name": f"chat-{name}", "port": 8000}},
        "cost": {"perReplicaHour": price},
    }


SMALL: Final[dict[str, Any]] = {
    "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
    "pools": [service_pool("l40s", "1.86"), service_pool("h100", "6.88")],
}
"""The least that people write."""

_KEY: Final = {"name": "keys", "key": "provider"}
_CA: Final = {"name": "ca", "key": "ca.crt"}

FULL: Final[dict[str, Any]] = {
    "sla": {
        "metric": "TimeToFirstToken",
        "percentile": 90,
        "targetMilliseconds": 500,
        "windowSeconds": 30,
        "minimumSamples": 20,
    },
    "pools": [
        {
            "name": "l40s",
            "accelerator": {"type": "L40S", "perReplica": 2},
            "backend": {
                "service": {"name": "chat-l40s", "port": 8000},
                "pathPrefix": "/api",
                "model": "llama-3.1-8b",
                "replicas": 3,
            },
            "cost": {"query": "sum(node_total_hourly_cost) / 4"},
            "metrics": {
                "engine": "Custom",
                "custom": {
                    "total": "sum(increase(done[$window]))",
                    "slow": "sum(increase(slow[$window]))",
                    "inFlight": "sum(running)",
                    "latencySum": "sum(increase(seconds[$window]))",
                },
            },
            "concurrency": {"minimum": 2, "maximum": 64},
        },
        {
            "name": "h100",
            "backend": {
                "hosts": [
                    {
                        "host": "gpu.example",
                        "port": 443,
                        "tls": {"serverName": "gpu.example", "caSecretRef": _CA},
                    },
                    {"host": "2001:db8::7", "port": 8000},
                ]
            },
            "cost": {"perReplicaHour": "6.88"},
            "metrics": {"engine": "VLLM", "selector": {"job": "h100", "model_name": "llama"}},
        },
        {
            "name": "metered",
            "backend": {"hosts": [{"host": "api.example", "port": 443, "tls": {}}], "apiKeySecretRef": _KEY},
            "cost": {"perMillionTokens": {"input": "0.14", "output": "0.28"}},
        },
    ],
    "fallbackPool": "h100",
    "meritOrder": "MeasuredCost",
    "metricsSource": {
        "prometheus": {
            "url": "https://prometheus.example/base",
            "authSecretRef": {"name": "prometheus"},
            "caSecretRef": _CA,
        }
    },
    "sizeClasses": "Off",
    "timeouts": {
        "connectSeconds": 2,
        "responseHeadersSeconds": 0,
        "streamIdleSeconds": 60,
        "hedgeMilliseconds": 800,
    },
    "requests": {"addUsage": True, "headers": ["x-meritorder-session"], "paths": ["/v1/rerank"]},
    "behavior": {
        "intervalSeconds": 10,
        "stalenessSeconds": 45,
        "onMissingMetrics": "Safest",
        "whenInfeasible": "Shed",
        "whenSaturated": "Shed",
    },
    "gateway": {
        "replicas": 3,
        "allowedNamespaces": ["apps"],
        "auth": {"secretRef": {"name": "gateway-tokens"}},
    },
    "mode": "Recommend",
    "suspend": True,
}
"""Every field of the API at least once, none at its default."""

_HOST: Final = {"hosts": [{"host": "10.0.0.7", "port": 8000}]}
_QUERIES: Final = {"total": "a", "slow": "b", "inFlight": "c"}

GOOD: Final[dict[str, dict[str, Any]]] = {
    "the least": SMALL,
    "every field": FULL,
    "one pool": changed(SMALL, {"pools": [service_pool("only", "0")]}),
    "sixteen pools": changed(SMALL, {"pools": [service_pool(f"p{n}", f"{n}.5") for n in range(16)]}),
    "sixteen pools of 64 hosts": changed(
        SMALL,
        {
            "pools": [
                {
                    "name": f"p{n}",
                    "backend": {"hosts": [{"host": f"gpu-{n}.example", "port": 8000 + h} for h in range(64)]},
                    "cost": {"perReplicaHour": "999999999.999999"},
                    "metrics": {"engine": "VLLM", "selector": {"job": "x" * 253}},
                }
                for n in range(16)
            ]
        },
    ),
    "plain hosts": changed(SMALL, {"pools.0.backend": _HOST}),
    "custom queries on hosts": changed(
        SMALL, {"pools.0.backend": _HOST, "pools.0.metrics": {"engine": "Custom", "custom": _QUERIES}}
    ),
    "an engine behind a service": changed(SMALL, {"pools.0.metrics": {"engine": "SGLang"}}),
    "a gateway without keys": changed(SMALL, {"gateway": {}}),
    "interval, staleness and window alike": changed(
        SMALL, {"behavior": {"intervalSeconds": 60, "stalenessSeconds": 60}}
    ),
    "the strictest promise": changed(
        SMALL, {"sla": {"metric": "TimePerOutputToken", "percentile": 99, "targetMilliseconds": 1}}
    ),
    "nothing under a key": changed(SMALL, {"behavior": None, "pools.0.metrics": None, "gateway": None}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A change that makes a spec bad, and what the API server and the models say about it."""

    changes: Mapping[str, Any]
    server: str
    models: str
    name: str = "chat"

    @property
    def manifest(self) -> Manifest:
        return policy(changed(SMALL, self.changes), self.name)


def _bad(server: str, models: str, name: str = "chat", /, **changes: Any) -> Bad:
    """`pools__0__cost=...` changes `pools.0.cost`."""
    return Bad(
        changes={path.replace("__", "."): value for path, value in changes.items()},
        server=server,
        models=models,
        name=name,
    )


_MONEY: Final = 'must be US dollars as a decimal string such as "1.86": not negative, at most 6 decimals'
_LABEL: Final = "must be a DNS label: lower-case letters, digits and dashes, neither first nor last a dash"
_URL: Final = "must be an http:// or https:// URL without credentials"
_COST: Final = "exactly one of `perReplicaHour`, `perMillionTokens` and `query` must be set"
_BACKEND: Final = "exactly one of `service` and `hosts` must be set"
_SELECTOR: Final = "`metrics.selector` must be set for a serving engine's metrics when the backend is `hosts`"
_CUSTOM: Final = "`custom` must be set exactly when `engine` is Custom"
_AUTH: Final = "`gateway.auth` must be set when a pool has `apiKeySecretRef`"
_NAME: Final = "`metadata.name` must be a DNS label of at most 55 characters when `spec.gateway` is set"


def _text(field: str, must: str, /, **changes: Any) -> Bad:
    """A text that does not match: the same sentence from both."""
    (value,) = changes.values()
    leaf = f"spec.{field}"
    shown = f'"{value}"' if isinstance(value, str) else ""
    return _bad(
        f"{leaf}: Invalid value: {shown}" + (f": {must}" if shown else ""), f"`{leaf}` {must}", **changes
    )


def _rule(place: str, server: str, models: str | None = None, /, **changes: Any) -> Bad:
    """A rule over several fields."""
    return _bad(f"{place}: Invalid value: {server}", f"`{place}`: {models or server}", **changes)


def _range(field: str, server: str, models: str, /, **changes: Any) -> Bad:
    return _bad(f"spec.{field} in body should be {server}", f"`spec.{field}` must be {models}", **changes)


def _choice(field: str, seen: str, allowed: list[str], /, **changes: Any) -> Bad:
    supported = ", ".join(f'"{value}"' for value in allowed)
    spelled = ", ".join(allowed[:-1]) + f" or {allowed[-1]}"
    return _bad(
        f'spec.{field}: Unsupported value: "{seen}": supported values: {supported}',
        f'`spec.{field}` must be one of {spelled} (is "{seen}")',
        **changes,
    )


BAD: Final[dict[str, Bad]] = {
    # what is missing, unknown or of the wrong kind
    "no sla": _bad("spec.sla: Required value", "`spec.sla` must be set", sla=ABSENT),
    "no target": _bad(
        "spec.sla.targetMilliseconds: Required value",
        "`spec.sla.targetMilliseconds` must be set",
        sla__targetMilliseconds=ABSENT,
    ),
    "no pools": _bad("spec.pools: Required value", "`spec.pools` must be set", pools=ABSENT),
    "an empty list of pools": _bad(
        "spec.pools in body should have at least 1 items",
        "`spec.pools` must have 1 or more entries",
        pools=[],
    ),
    "17 pools": _bad(
        "spec.pools: Too many: 17: must have at most 16 items",
        "`spec.pools` must have 16 or fewer entries (has 17)",
        pools=[service_pool(f"p{n}", "1") for n in range(17)],
    ),
    "no backend": _bad(
        "spec.pools[0].backend: Required value",
        "`spec.pools[0].backend` must be set",
        pools__0__backend=ABSENT,
    ),
    "no cost": _bad(
        "spec.pools[0].cost: Required value", "`spec.pools[0].cost` must be set", pools__0__cost=ABSENT
    ),
    "unknown field": _bad(
        'unknown field "spec.fallbackpool"',
        "`spec.fallbackpool` is not a field; did you mean `fallbackPool`?",
        fallbackpool="h100",
    ),
    "unknown field in a pool": _bad(
        'unknown field "spec.pools[0].weight"', "`spec.pools[0].weight` is not a field", pools__0__weight=80
    ),
    "float price": _bad(
        "spec.pools[0].cost.perReplicaHour in body must be of type string",
        '`spec.pools[0].cost.perReplicaHour` must be a string: write "1.86", in quotes',
        pools__0__cost__perReplicaHour=1.86,
    ),
    "target in words": _bad(
        "spec.sla.targetMilliseconds in body must be of type integer",
        '`spec.sla.targetMilliseconds` must be a whole number (is "2s")',
        sla__targetMilliseconds="2s",
    ),
    "suspend in words": _bad(
        "spec.suspend in body must be of type boolean",
        '`spec.suspend` must be true or false (is "yes")',
        suspend="yes",
    ),
    "off without quotes": _bad(
        "spec.sizeClasses in body must be of type string",
        "`spec.sizeClasses` must be one of Auto or Off; a bare off or no is a boolean in YAML",
        sizeClasses=False,
    ),
    # money
    "negative price": _text("pools[0].cost.perReplicaHour", _MONEY, pools__0__cost__perReplicaHour="-1.86"),
    "price with 7 decimals": _text(
        "pools[0].cost.perReplicaHour", _MONEY, pools__0__cost__perReplicaHour="1.8600001"
    ),
    "price with a currency": _text(
        "pools[0].cost.perReplicaHour", _MONEY, pools__0__cost__perReplicaHour="$1.86"
    ),
    "price with an exponent": _text(
        "pools[0].cost.perReplicaHour", _MONEY, pools__0__cost__perReplicaHour="1e3"
    ),
    "empty cost": _rule("spec.pools[0].cost", _COST, pools__0__cost={}),
    "two costs": _rule(
        "spec.pools[0].cost", _COST, pools__0__cost={"perReplicaHour": "1.86", "query": "vector(1.86)"}
    ),
    "token price without output": _bad(
        "spec.pools[0].cost.perMillionTokens.output: Required value",
        "`spec.pools[0].cost.perMillionTokens.output` must be set",
        pools__0__cost={"perMillionTokens": {"input": "0.14"}},
    ),
    "a query too long": _bad(
        "spec.pools[0].cost.query: Too long: may not be more than 2048 bytes",
        "`spec.pools[0].cost.query` must have at most 2048 characters",
        pools__0__cost={"query": "x" * 2049},
    ),
    # the promise
    "target 0": _range(
        "sla.targetMilliseconds", "greater than or equal to 1", "at least 1 (is 0)", sla__targetMilliseconds=0
    ),
    "percentile 100": _range(
        "sla.percentile", "less than or equal to 99", "at most 99 (is 100)", sla__percentile=100
    ),
    "percentile 49": _range(
        "sla.percentile", "greater than or equal to 50", "at least 50 (is 49)", sla__percentile=49
    ),
    "window of 1 s": _range(
        "sla.windowSeconds", "greater than or equal to 5", "at least 5 (is 1)", sla__windowSeconds=1
    ),
    "unknown metric": _choice(
        "sla.metric",
        "Latency",
        ["EndToEndLatency", "TimeToFirstToken", "TimePerOutputToken"],
        sla__metric="Latency",
    ),
    # pools
    "duplicate pool names": _bad(
        'spec.pools[1]: Duplicate value: {"name":"l40s"}',
        "`spec.pools` must be unique: `name l40s` is there 2 times",
        pools__1__name="l40s",
    ),
    "pool name in capitals": _text("pools[0].name", _LABEL, pools__0__name="L40S"),
    "pool name too long": _bad(
        "spec.pools[0].name: Too long: may not be more than 40 bytes",
        "`spec.pools[0].name` must have at most 40 characters",
        pools__0__name="p" * 41,
    ),
    "empty pool name": _text("pools[0].name", _LABEL, pools__0__name=""),
    "two backends": _rule(
        "spec.pools[0].backend", _BACKEND, pools__0__backend={"service": {"name": "a", "port": 1}, **_HOST}
    ),
    "neither backend": _rule("spec.pools[0].backend", _BACKEND, pools__0__backend={}),
    "no hosts in the list": _bad(
        "spec.pools[0].backend.hosts in body should have at least 1 items",
        "`spec.pools[0].backend.hosts` must have 1 or more entries",
        pools__0__backend={"hosts": []},
    ),
    "65 hosts": _bad(
        "spec.pools[0].backend.hosts: Too many: 65: must have at most 64 items",
        "`spec.pools[0].backend.hosts` must have 64 or fewer entries (has 65)",
        pools__0__backend={"hosts": [{"host": "a", "port": n} for n in range(1, 66)]},
    ),
    "the same host twice": _bad(
        "spec.pools[0].backend.hosts[1]: Duplicate value",
        "`spec.pools[0].backend.hosts` must be unique: `host a, port 1` is there 2 times",
        pools__0__backend={"hosts": [{"host": "a", "port": 1}, {"host": "a", "port": 1}]},
    ),
    "host with a scheme": _bad(
        'spec.pools[0].backend.hosts[0].host: Invalid value: "http://a": must be a host name',
        "`spec.pools[0].backend.hosts[0].host` must be a host name or an IP address",
        pools__0__backend={"hosts": [{"host": "http://a", "port": 1}]},
    ),
    "port 0": _range(
        "pools[0].backend.service.port",
        "greater than or equal to 1",
        "at least 1 (is 0)",
        pools__0__backend__service__port=0,
    ),
    "port 65536": _range(
        "pools[0].backend.service.port",
        "less than or equal to 65535",
        "at most 65535 (is 65536)",
        pools__0__backend__service__port=65536,
    ),
    "port by name": _bad(
        "spec.pools[0].backend.service.port in body must be of type integer",
        "`spec.pools[0].backend.service.port` must be a whole number",
        pools__0__backend__service__port="http",
    ),
    "path prefix without a slash": _text(
        "pools[0].backend.pathPrefix",
        "must be a path: a slash, then letters, digits, slashes and any of `. _ ~ -`",
        pools__0__backend__pathPrefix="api",
    ),
    "custom engine without queries": _rule(
        "spec.pools[0].metrics", _CUSTOM, pools__0__metrics={"engine": "Custom"}
    ),
    "queries without custom engine": _rule(
        "spec.pools[0].metrics", _CUSTOM, pools__0__metrics={"engine": "VLLM", "custom": _QUERIES}
    ),
    "unknown engine": _choice(
        "pools[0].metrics.engine",
        "vllm",
        ["Router", "VLLM", "SGLang", "TGI", "Triton", "Custom"],
        pools__0__metrics={"engine": "vllm"},
    ),
    "an engine on hosts without selector": _rule(
        "spec.pools[0]", _SELECTOR, pools__0__backend=_HOST, pools__0__metrics={"engine": "VLLM"}
    ),
    "a selector that is no label": _rule(
        "spec.pools[0].metrics",
        "`selector` must have Prometheus labels as keys: letters, digits and underscores",
        pools__0__metrics={"engine": "VLLM", "selector": {'job="x"} or up{a': "b"}},
    ),
    "an empty selector": _bad(
        "spec.pools[0].metrics.selector in body should have at least 1 properties",
        "`spec.pools[0].metrics.selector` must have 1 or more entries",
        pools__0__metrics={"engine": "VLLM", "selector": {}},
    ),
    "minimum above maximum": _rule(
        "spec.pools[0].concurrency",
        "`minimum` must be at most `maximum`",
        "`minimum` is 9; it must be at most `maximum` (8)",
        pools__0__concurrency={"minimum": 9, "maximum": 8},
    ),
    "minimum above the default maximum": _rule(
        "spec.pools[0].concurrency",
        "`minimum` must be at most `maximum`",
        "`minimum` is 300; it must be at most `maximum` (256)",
        pools__0__concurrency={"minimum": 300},
    ),
    # the whole
    "fallback pool unknown": _rule(
        "spec",
        "`fallbackPool` must name one of `pools`",
        "`fallbackPool` is `a100`; it must name one of `pools` (l40s, h100)",
        fallbackPool="a100",
    ),
    "staleness below interval": _rule(
        "spec.behavior",
        "`stalenessSeconds` must be at least `intervalSeconds`",
        "`stalenessSeconds` is 9; it must be at least `intervalSeconds` (10)",
        behavior={"intervalSeconds": 10, "stalenessSeconds": 9},
    ),
    "interval above window": _rule(
        "spec",
        "`behavior.intervalSeconds` must be at most `sla.windowSeconds`",
        "`behavior.intervalSeconds` is 31; it must be at most `sla.windowSeconds` (30)",
        behavior={"intervalSeconds": 31},
        sla__windowSeconds=30,
    ),
    "unknown mode": _choice("mode", "Off", ["Enforce", "Recommend"], mode="Off"),
    "unknown merit order": _choice(
        "meritOrder", "Cost", ["DeclaredPrice", "MeasuredCost"], meritOrder="Cost"
    ),
    "unknown posture": _choice(
        "behavior.whenInfeasible", "Drop", ["Fastest", "Hold", "Shed"], behavior={"whenInfeasible": "Drop"}
    ),
    "url without scheme": _text(
        "metricsSource.prometheus.url", _URL, metricsSource__prometheus__url="prometheus:9090"
    ),
    "url of another scheme": _text(
        "metricsSource.prometheus.url", _URL, metricsSource__prometheus__url="ftp://prometheus"
    ),
    "credentials in the url": _text(
        "metricsSource.prometheus.url", _URL, metricsSource__prometheus__url="http://me:secret@prometheus"
    ),
    "unknown steering header": _choice(
        "requests.headers[0]",
        "x-priority",
        ["x-meritorder-priority", "x-meritorder-pool", "x-meritorder-exclude", "x-meritorder-session"],
        requests={"headers": ["x-priority"]},
    ),
    "a steering header twice": _bad(
        'spec.requests.headers[1]: Duplicate value: "x-meritorder-pool"',
        "`spec.requests.headers` must be unique: `x-meritorder-pool` is there 2 times",
        requests={"headers": ["x-meritorder-pool", "x-meritorder-pool"]},
    ),
    "a path with a query": _bad(
        'spec.requests.paths[0]: Invalid value: "/v1/rerank?x=1": must be a path',
        "`spec.requests.paths[0]` must be a path",
        requests={"paths": ["/v1/rerank?x=1"]},
    ),
    "negative timeout": _range(
        "timeouts.connectSeconds",
        "greater than or equal to 0",
        "at least 0 (is -1)",
        timeouts={"connectSeconds": -1},
    ),
    "a hedge that comes too late": _rule(
        "spec.timeouts",
        "`hedgeMilliseconds` must be less than `responseHeadersSeconds`",
        "`hedgeMilliseconds` is 2000; it must be less than `responseHeadersSeconds` (2)",
        timeouts={"hedgeMilliseconds": 2000, "responseHeadersSeconds": 2},
    ),
    "a gateway without auth before a keyed pool": _rule(
        "spec", _AUTH, gateway={}, pools__0__backend__apiKeySecretRef=_KEY
    ),
    "a gateway without pods": _range(
        "gateway.replicas", "greater than or equal to 1", "at least 1 (is 0)", gateway={"replicas": 0}
    ),
    "a namespace that is none": _bad(
        'spec.gateway.allowedNamespaces[0]: Invalid value: "*": must be a DNS label',
        "`spec.gateway.allowedNamespaces[0]` must be a DNS label",
        gateway={"allowedNamespaces": ["*"]},
    ),
    "a gateway whose Service cannot be named": _bad(_NAME, _NAME, "chat.v2", gateway={}),
}
