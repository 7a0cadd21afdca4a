"""What this server has seen of the cluster: policies, Services and their EndpointSlices, trimmed to what
matters.

A policy whose new spec cannot be read (it bypassed validation) stays as it was last read: the last good one
routes on.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meritorder_api.resource import InferencePolicy, PolicyError
from meritorder_router.server.backends import Endpoint, EndpointSlice, Service, ServicePort
from meritorder_router.server.kube import Manifest

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name."""

SERVICE_LABEL = "kubernetes.io/service-name"


class Cluster:
    """The caches; `on_policy` and `on_service` are called with the key of what changed."""

    def __init__(self, *, on_policy: Callable[[Key], None], on_service: Callable[[Key], None]) -> None:
        self._on_policy = on_policy
        self._on_service = on_service
        self._policies: dict[Key, InferencePolicy] = {}
        self._unreadable: dict[Key, str] = {}
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, dict[str, EndpointSlice]] = {}
        self._slice_service: dict[Key, str] = {}

    # What is read.

    def policy(self, key: Key) -> InferencePolicy | None:
        """The policy as last read."""
        return self._policies.get(key)

    def policies(self) -> list[InferencePolicy]:
        """All policies."""
        return list(self._policies.values())

    def unreadable(self, key: Key) -> str | None:
        """Why the policy's newest spec could not be read; the last good one stands."""
        return self._unreadable.get(key)

    def services(self, namespace: str, names: Iterable[str]) -> Mapping[str, Service]:
        """The Services of these names."""
        found = {name: self._services.get((namespace, name)) for name in names}
        return {name: service for name, service in found.items() if service is not None}

    def slices(self, namespace: str, service: str) -> Sequence[EndpointSlice]:
        """The EndpointSlices of a Service."""
        found = self._slices.get((namespace, service), {})
        return [found[name] for name in sorted(found)]

    # What is told.

    def replace_policies(self, manifests: list[Manifest], namespace: str | None = None) -> None:
        """Take a new list of policies, of one namespace or of all."""
        present = {key_of(manifest) for manifest in manifests}
        for key in self._policies.keys() | self._unreadable.keys():
            if key not in present and _within(key, namespace):
                self._forget_policy(key)
        for manifest in manifests:
            self._take_policy(manifest)

    def change_policy(self, kind: str, manifest: Manifest) -> None:
        """Take an event."""
        if kind == "DELETED":
            self._forget_policy(key_of(manifest))
        else:
            self._take_policy(manifest)

    def _forget_policy(self, key: Key) -> None:
        self._policies.pop(key, None)
        self._unreadable.pop(key, None)
        self._on_policy(key)

    def _take_policy(self, manifest: Manifest) -> None:
        key = key_of(manifest)
        try:
            policy = InferencePolicy.parse(manifest)
        except PolicyError as error:
            uid = str((manifest.get("metadata") or {}).get("uid", ""))
            if key in self._policies and self._policies[key].metadata.uid != uid:
                del self._policies[key]
            if self._unreadable.get(key) != str(error):
                log.warning("unreadable policy, the last good one stays: %s", error)
            self._unreadable[key] = str(error)
        else:
            self._policies[key] = policy
            self._unreadable.pop(key, None)
        self._on_policy(key)

    def replace_services(self, manifests: list[Manifest], namespace: str | None = None) -> None:
        """Take a new list of Services, of one namespace or of all."""
        old = self._services
        self._services = {key: service for key, service in old.items() if not _within(key, namespace)}
        self._services |= {key_of(manifest): service_of(manifest) for manifest in manifests}
        for key in old.keys() | self._services.keys():
            if old.get(key) != self._services.get(key):
                self._on_service(key)

    def change_service(self, kind: str, manifest: Manifest) -> None:
        """Take an event."""
        key = key_of(manifest)
        before = self._services.pop(key, None)
        if kind != "DELETED":
            self._services[key] = service_of(manifest)
        if before != self._services.get(key):
            self._on_service(key)

    def replace_slices(self, manifests: list[Manifest], namespace: str | None = None) -> None:
        """Take a new list of EndpointSlices, of one namespace or of all."""
        before = self._slices
        self._slices = {key: found for key, found in before.items() if not _within(key, namespace)}
        self._slice_service = {
            key: service for key, service in self._slice_service.items() if not _within(key, namespace)
        }
        for manifest in manifests:
            self._put_slice(manifest)
        for key in before.keys() | self._slices.keys():
            if before.get(key) != self._slices.get(key):
                self._on_service(key)

    def change_slice(self, kind: str, manifest: Manifest) -> None:
        """Take an event."""
        namespace, name = key = key_of(manifest)
        touched = set()
        if key in self._slice_service:
            service = self._slice_service.pop(key)
            touched.add(service)
            of_service = self._slices[(namespace, service)]
            del of_service[name]
            if not of_service:
                del self._slices[(namespace, service)]
        if kind != "DELETED":
            touched |= {self._put_slice(manifest)} - {""}
        for service in touched:
            self._on_service((namespace, service))

    def _put_slice(self, manifest: Manifest) -> str:
        namespace, name = key_of(manifest)
        found = endpoint_slice_of(manifest)
        if found.service:
            self._slices.setdefault((namespace, found.service), {})[name] = found
            self._slice_service[(namespace, name)] = found.service
        return found.service


def _within(key: Key, namespace: str | None) -> bool:
    return namespace is None or key[0] == namespace


def key_of(manifest: Manifest) -> Key:
    """Namespace and name of an object."""
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def service_of(manifest: Manifest) -> Service:
    """The part of a Service that matters."""
    spec = manifest.get("spec") or {}
    families = spec.get("ipFamilies") or [""]
    return Service(type=spec.get("type", "ClusterIP"), ports=_ports(spec.get("ports")), family=families[0])


def endpoint_slice_of(manifest: Manifest) -> EndpointSlice:
    """The part of an EndpointSlice that matters; `ready` that is not said is true, as the API has it."""
    endpoints: list[Endpoint] = []
    for endpoint in manifest.get("endpoints") or ():
        ready = (endpoint.get("conditions") or {}).get("ready") is not False
        # All addresses of an endpoint are the same server: the API says to use the first.
        endpoints += (Endpoint(address=address, ready=ready) for address in endpoint["addresses"][:1])
    return EndpointSlice(
        name=manifest["metadata"]["name"],
        service=(manifest["metadata"].get("labels") or {}).get(SERVICE_LABEL, ""),
        family=manifest.get("addressType", "IPv4"),
        ports=_ports(manifest.get("ports")),
        endpoints=tuple(endpoints),
    )


def _ports(ports: list[dict[str, Any]] | None) -> tuple[ServicePort, ...]:
    return tuple(
        ServicePort(name=port.get("name") or "", port=port["port"])
        for port in ports or ()
        if port.get("port") is not None and port.get("protocol", "TCP") == "TCP"
    )
