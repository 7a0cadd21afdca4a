"""Reads the cluster for `doctor`, with the rights of whoever asks. What they may not see is said, and never
taken for missing."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from meritorder_api import names
from meritorder_api.resource import InferencePolicy, PolicyError
from meritorder_api.version import own_version
from meritorder_cli.doctor.ask import Questions
from meritorder_cli.doctor.backends import named_secrets
from meritorder_cli.doctor.facts import Backing, Facts, GatewayPods, Holder, Key, Part, PolicyMetrics, Right
from meritorder_cli.doctor.installation import LEASES, OPERATOR
from meritorder_cli.doctor.proxy import connect
from meritorder_cli.doctor.rights import needed
from meritorder_core.inputs import Missing
from meritorder_operator.cluster import POLICIES, Cluster, Refused
from meritorder_operator.prometheus.client import Server
from meritorder_operator.settings import Settings
from meritorder_operator.sources import Sources

ABSENT: Final[dict[str, Any]] = {}
"""What an object that does not exist reads as."""
_PARTS: Final = "app.kubernetes.io/part-of=meritorder"
_COMPONENT: Final = "app.kubernetes.io/component"
_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


async def gather(
    cluster: Cluster,
    *,
    namespace: str | None,
    installed_in: str | None,
    prometheus_url: str | None,
    prometheus_token_file: Path | None,
) -> Facts:
    """Everything that can be known. ClusterError: the API server itself does not answer."""
    reader = _Reader(cluster, namespace, installed_in)
    before = time.time()
    clock = await cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", _review())
    after = time.time()
    stamp = (clock.get("metadata") or {}).get("creationTimestamp")
    ahead = 0.0 if not stamp else (before + after) / 2 - _seconds(stamp) - 0.5  # it is in whole seconds
    ahead = ahead if abs(ahead) > 1.0 else 0.0
    facts = Facts(now=after - ahead, clock_ahead=ahead, version=own_version())
    facts = await reader.installation(facts)
    facts = await reader.policies(facts)
    facts = await reader.surroundings(facts)
    operator = next((part for part in facts.parts or () if part.component == OPERATOR), None)
    url = prometheus_url or next(iter(operator.flags("prometheus-url") if operator else ()), None)
    default = Server(url=url, token_file=prometheus_token_file) if url else None
    metrics = await _metrics(cluster, facts, default)
    return replace(facts, metrics=metrics, unchecked=tuple(dict.fromkeys(reader.unchecked)))


async def _metrics(cluster: Cluster, facts: Facts, default: Server | None) -> dict[str, PolicyMetrics]:
    sources = Sources(cluster, Settings(identity="doctor", prometheus=default), clock=time.monotonic)
    known = {policy.key for policy in facts.policies}
    found: dict[str, PolicyMetrics] = {}
    for policy in facts.policies:
        server = await sources.server(policy.metadata.namespace, policy.spec)
        if isinstance(server, Missing):
            shown = "named by the policy" if policy.spec.metrics_source is not None else ""
            found[policy.key] = PolicyMetrics(server=shown, failure=server.reason, said=server.message)
            continue
        client = connect(server, cluster)
        try:
            found[policy.key] = await Questions(client, facts.now).policy(policy, known)
        finally:
            await client.close()
    return found


class _Reader:
    """Reads what it may, and remembers what it may not."""

    def __init__(self, cluster: Cluster, namespace: str | None, installed_in: str | None) -> None:
        self.unchecked: list[str] = []
        self._cluster = cluster
        self._namespace = namespace
        self._installed_in = installed_in

    async def _get(self, what: str, path: str, **params: str) -> dict[str, Any] | None:
        """An object or a list; ABSENT where it does not exist, None where it may not be seen."""
        try:
            return await self._cluster.request("GET", path, params=params)
        except Refused as error:
            if error.status == 404:
                return ABSENT
            if error.status not in (401, 403):
                raise
            self.unchecked.append(f"{what}: {error}")
            return None

    async def installation(self, facts: Facts) -> Facts:
        """CRD, parts, Leases, rights, webhook."""
        crd = await self._get(
            "the CRD", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{names.PLURAL}.{names.GROUP}"
        )
        place = f"/namespaces/{self._installed_in}" if self._installed_in else ""
        listed = await self._get(
            "operator and router", f"/apis/apps/v1{place}/deployments", labelSelector=_PARTS
        )
        parts = None
        if listed is not None:
            found = [_part(one) for one in listed.get("items") or ()]
            parts = tuple(one for one in found if one.component in LEASES)
        leases: dict[str, Holder | None] = {}
        denied: dict[str, list[Right]] = {}
        for part in parts or ():
            if part.component not in leases:
                told = next((one for one in part.flags("lease-namespace") if "$" not in one), part.namespace)
                path = f"/apis/coordination.k8s.io/v1/namespaces/{told}/leases/{LEASES[part.component]}"
                lease = await self._get("the Lease", path)
                if lease is not None:
                    leases[part.component] = _holder(lease)
                denied[part.component] = await self._denied(part)
        webhooks, ready = await self._webhooks()
        required = await self._get(
            "namespaces", "/api/v1/namespaces", labelSelector=f"{names.GROUP}/injection=required"
        )
        return replace(
            facts,
            crd=crd or None,
            crd_missing=crd is not None and not crd,
            parts=parts,
            leases=leases,
            denied={component: rights for component, rights in denied.items() if rights},
            webhooks=webhooks,
            server_ready=ready,
            required_namespaces=[one["metadata"]["name"] for one in (required or {}).get("items") or ()],
        )

    async def _webhooks(self) -> tuple[list[dict[str, Any]] | None, int | None]:
        listed = await self._get(
            "the webhook", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
        )
        if listed is None:
            return None, None
        ours = [one for one in listed.get("items") or () if any(map(_injects, one.get("webhooks") or ()))]
        services = [
            hook["clientConfig"]["service"]
            for one in ours
            for hook in one["webhooks"]
            if hook["clientConfig"].get("service")
        ]
        if not services:
            return ours, None
        namespace, name = services[0]["namespace"], services[0]["name"]
        slices = await self._get(
            "the router servers' endpoints",
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            labelSelector=f"kubernetes.io/service-name={name}",
        )
        return ours, None if slices is None else sum(_ready(slices).values())

    async def _denied(self, part: Part) -> list[Right]:
        rights = list(dict.fromkeys(needed(part)))
        try:
            answers = await asyncio.gather(
                *(self._cluster.request("POST", _REVIEWS, _access(part.subject, right)) for right in rights)
            )
        except Refused as error:
            self.unchecked.append(
                f"rights of {part.subject}: {error}; as somebody who may: kubectl auth can-i --list "
                f"--as={part.subject}"
            )
            return []
        return [
            right
            for right, answer in zip(rights, answers, strict=True)
            if not (answer.get("status") or {}).get("allowed")
        ]

    async def policies(self, facts: Facts) -> Facts:
        """All policies, or those of one namespace."""
        place = f"/namespaces/{self._namespace}" if self._namespace else ""
        listed = await self._get("policies", f"{POLICIES}{place}/{names.PLURAL}")
        if listed is None and not self._namespace:
            self._namespace = self._cluster.namespace
            listed = await self._get("policies", f"{POLICIES}/namespaces/{self._namespace}/{names.PLURAL}")
        good: list[InferencePolicy] = []
        bad: list[str] = []
        kinds = {"apiVersion": names.API_VERSION, "kind": names.KIND}
        for item in (listed or {}).get("items") or ():
            try:
                good.append(InferencePolicy.parse(kinds | item))
            except PolicyError as error:
                bad.append(f"namespace `{item['metadata']['namespace']}`, {error}")
        return replace(facts, policies=good, unreadable=bad)

    async def surroundings(self, facts: Facts) -> Facts:
        """What policies name, and the pods that ask for a router."""
        namespaces = sorted({policy.metadata.namespace for policy in facts.policies})
        services: dict[Key, Backing | None] = {}
        trusted: dict[str, bool] = {}
        for namespace in namespaces:
            services |= await self._services(namespace)
            path = f"/api/v1/namespaces/{namespace}/configmaps/{names.CA_CONFIG_MAP}"
            found = await self._get("what agents trust", path)
            if found is not None:
                trusted[namespace] = bool((found.get("data") or {}).get(names.CA_CONFIG_MAP_KEY))
        secrets: dict[Key, frozenset[str] | None] = {}
        gateways: dict[Key, GatewayPods | None] = {}
        for policy in facts.policies:
            namespace, name = policy.metadata.namespace, policy.metadata.name
            for pool in policy.spec.pools:
                if pool.backend.service is not None and (namespace, "") in services:
                    services.setdefault((namespace, pool.backend.service.name), None)
            for secret, _, _ in named_secrets(policy.spec):
                path = f"/api/v1/namespaces/{namespace}/secrets/{secret}"
                found = await self._get(f"Secret `{namespace}/{secret}`", path)
                if found is not None:
                    secrets[namespace, secret] = frozenset(found.get("data") or {}) if found else None
            if policy.spec.gateway is not None:
                path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}{names.GATEWAY_SUFFIX}"
                found = await self._get("gateways", path)
                if found is not None:
                    gateways[namespace, name] = _gateway(found)
        place = f"/namespaces/{self._namespace}" if self._namespace else ""
        pods = await self._get("pods", f"/api/v1{place}/pods", labelSelector=f"{names.INJECT_LABEL}=true")
        return replace(
            facts,
            services={key: one for key, one in services.items() if key[1]},
            secrets=secrets,
            trusted=trusted,
            gateways=gateways,
            pods=None if pods is None else [pod for pod in pods.get("items") or () if _lives(pod)],
        )

    async def _services(self, namespace: str) -> dict[Key, Backing | None]:
        """A namespace's Services; the empty name says that they could be seen."""
        services = await self._get("Services", f"/api/v1/namespaces/{namespace}/services")
        slices = await self._get(
            "endpoints", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        )
        if services is None or slices is None:
            return {}
        ready = _ready(slices)
        found: dict[Key, Backing | None] = {(namespace, ""): None}
        for one in services.get("items") or ():
            name, spec = one["metadata"]["name"], one["spec"]
            found[namespace, name] = Backing(
                type=spec.get("type", "ClusterIP"),
                ports=tuple(port["port"] for port in spec.get("ports") or ()),
                ready=ready.get(name, 0),
            )
        return found


def _review() -> dict[str, str]:
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _part(deployment: Mapping[str, Any]) -> Part:
    metadata, spec = deployment["metadata"], deployment["spec"]["template"]["spec"]
    container = spec["containers"][0]
    return Part(
        component=metadata["labels"].get(_COMPONENT, ""),
        namespace=metadata["namespace"],
        name=metadata["name"],
        account=spec.get("serviceAccountName", "default"),
        version=metadata["labels"].get("app.kubernetes.io/version", ""),
        arguments=tuple(container.get("args") or ()),
        environment={one["name"]: one.get("value", "") for one in container.get("env") or ()},
    )


def _holder(lease: Mapping[str, Any]) -> Holder | None:
    spec = lease.get("spec") or {}
    if not spec.get("renewTime"):
        return None
    return Holder(
        identity=spec.get("holderIdentity") or "",
        renewed_at=_seconds(spec["renewTime"]),
        seconds=int(spec.get("leaseDurationSeconds") or 0),
    )


def _access(subject: str, right: Right) -> dict[str, Any]:
    resource, _, subresource = right.resource.partition("/")
    _, _, namespace, _ = subject.split(":")
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": subject,
            "groups": [
                "system:serviceaccounts",
                f"system:serviceaccounts:{namespace}",
                "system:authenticated",
            ],
            "resourceAttributes": {
                "verb": right.verb,
                "group": right.group,
                "resource": resource,
                "subresource": subresource,
                "namespace": right.namespace,
                "name": right.name,
            },
        },
    }


def _injects(hook: Mapping[str, Any]) -> bool:
    return names.INJECT_LABEL in ((hook.get("objectSelector") or {}).get("matchLabels") or {})


def _ready(slices: Mapping[str, Any]) -> dict[str, int]:
    """Ready endpoints by Service."""
    found: dict[str, set[str]] = {}
    for one in slices.get("items") or ():
        service = (one["metadata"].get("labels") or {}).get("kubernetes.io/service-name", "")
        for endpoint in one.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is not False and one["addressType"] != "FQDN":
                found.setdefault(service, set()).update(endpoint["addresses"][:1])
    return {service: len(addresses) for service, addresses in found.items()}


def _gateway(deployment: Mapping[str, Any]) -> GatewayPods | None:
    if not deployment:
        return None
    status = deployment.get("status") or {}
    return GatewayPods(wanted=deployment["spec"]["replicas"], available=status.get("availableReplicas", 0))


def _lives(pod: Mapping[str, Any]) -> bool:
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return not ended and not pod["metadata"].get("deletionTimestamp")
