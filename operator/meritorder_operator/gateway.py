"""The objects of a policy's gateway: a shared router for clients that have none of their own. Pure.

A Deployment of routers, the Service `NAME-gateway` in front of them, a PodDisruptionBudget, and a
NetworkPolicy that lets in the pods of the policy's own namespace and of those it allows. All are owned by the
policy, so that they go with it. The container is that of a sidecar, but for where it listens and when it is
ready: nobody is sent to a gateway that has no table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api import container, names
from meritorder_api.container import RouterSettings
from meritorder_api.policy import Gateway, InferencePolicySpec

Json = dict[str, Any]

SERVICE_PORT: Final = 80
COMPONENT: Final = "gateway"
SELECTOR: Final = (
    f"app.kubernetes.io/managed-by={names.OPERATOR_FIELD_MANAGER},app.kubernetes.io/component={COMPONENT}"
)
"""Finds what is here by its labels."""
DRAIN_LEAST_SECONDS: Final = 10
"""A pod that is to go serves on for so long, until everyone knows."""
GRACE_SECONDS: Final = 600
"""How long it waits for streams then."""
END_SECONDS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of object, and where the API server has it."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None) -> str:
        """The collection of a namespace, or of all."""
        base = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        return (
            f"{base}/{self.plural}" if namespace is None else f"{base}/namespaces/{namespace}/{self.plural}"
        )


DEPLOYMENT: Final = Kind(api_version="apps/v1", kind="Deployment", plural="deployments")
BUDGET: Final = Kind(api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets")
SERVICE: Final = Kind(api_version="v1", kind="Service", plural="services")
NETWORK_POLICY: Final = Kind(
    api_version="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies"
)
KINDS: Final = (NETWORK_POLICY, DEPLOYMENT, BUDGET, SERVICE)
"""In the order in which they are made: nobody may come in before it is said who may."""


def name_of(policy: str) -> str:
    """The name of all objects of a policy's gateway."""
    return f"{policy}{names.GATEWAY_SUFFIX}"


def objects(
    metadata: Mapping[str, Any], spec: InferencePolicySpec, gateway: Gateway, settings: RouterSettings
) -> dict[Kind, Json]:
    """The objects of a policy's gateway; `metadata` is the policy's."""
    specs = {
        NETWORK_POLICY: _network_policy(metadata, gateway),
        DEPLOYMENT: _deployment(metadata, spec, gateway, settings),
        BUDGET: {
            "maxUnavailable": 1,
            "selector": {"matchLabels": _selected(metadata)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
        SERVICE: {
            "selector": _selected(metadata),
            "ports": [
                {
                    "name": names.GATEWAY_PORT_NAME,
                    "port": SERVICE_PORT,
                    "targetPort": names.GATEWAY_PORT_NAME,
                    "protocol": "TCP",
                    "appProtocol": "http",
                }
            ],
        },
    }
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    return {
        kind: {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {
                "name": name_of(metadata["name"]),
                "namespace": metadata["namespace"],
                "labels": _labels(metadata),
                "ownerReferences": [owner],
            },
            "spec": specs[kind],
        }
        for kind in KINDS
    }


def _selected(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {names.GATEWAY_LABEL: metadata["name"]}


def _labels(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "meritorder-gateway",
        "app.kubernetes.io/instance": metadata["name"],
        "app.kubernetes.io/component": COMPONENT,
        "app.kubernetes.io/managed-by": names.OPERATOR_FIELD_MANAGER,
        **_selected(metadata),
    }


def _deployment(
    metadata: Mapping[str, Any], spec: InferencePolicySpec, gateway: Gateway, settings: RouterSettings
) -> Json:
    refs = container.secret_refs(spec)
    tokens = gateway.auth.secret_ref.name if gateway.auth is not None else None
    router = container.container(
        settings,
        policy=metadata["name"],
        namespace=metadata["namespace"],
        listen=f"[$(POD_IP)]:{names.DEFAULT_LISTEN_PORT}",
        metrics_port=names.DEFAULT_METRICS_PORT,
        ready="/ready/table",
        grace_seconds=GRACE_SECONDS,
        least_seconds=DRAIN_LEAST_SECONDS,
        keys=bool(refs),
        clients=tokens is not None,
    )
    port = {
        "name": names.GATEWAY_PORT_NAME,
        "containerPort": names.DEFAULT_LISTEN_PORT,
        "protocol": "TCP",
    }
    return {
        "replicas": gateway.replicas,
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": _selected(metadata)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": _labels(metadata)},
            "spec": {
                "containers": [{**router, "ports": [port, *router["ports"]]}],
                "volumes": container.volumes(refs, tokens),
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "terminationGracePeriodSeconds": GRACE_SECONDS + END_SECONDS,
                "topologySpreadConstraints": [
                    {
                        "topologyKey": key,
                        "maxSkew": 1,
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": _selected(metadata)},
                    }
                    for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
                ],
            },
        },
    }


def _network_policy(metadata: Mapping[str, Any], gateway: Gateway) -> Json:
    allowed: list[Json] = [{"podSelector": {}}]
    if gateway.allowed_namespaces:
        named = {
            "key": "kubernetes.io/metadata.name",
            "operator": "In",
            "values": sorted(gateway.allowed_namespaces),
        }
        allowed.append({"namespaceSelector": {"matchExpressions": [named]}})
    return {
        "podSelector": {"matchLabels": _selected(metadata)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": allowed, "ports": [{"protocol": "TCP", "port": names.GATEWAY_PORT_NAME}]},
            # Metrics and probes, nothing of requests: whoever watches the cluster may read them.
            {
                "from": [{"namespaceSelector": {}}],
                "ports": [{"protocol": "TCP", "port": names.METRICS_PORT_NAME}],
            },
        ],
    }
