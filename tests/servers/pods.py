"""Nodes and pods as objects: what a scheduler and a kubelet would have written, for a cluster that has
neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from servers.control_plane import ControlPlane

NODE = "node-1"
# From the block for documentation (RFC 5737).
NODE_ADDRESS = "203.0.113.1"


def ensure_node(control_plane: ControlPlane, name: str = NODE) -> str:
    """Create a node object if it is not there; tokens bound to a pod need its pod's node."""
    node = {"metadata": {"name": name}}
    answer = control_plane.client.post("/api/v1/nodes", json=node)
    if answer.status_code != 409:
        answer.raise_for_status()
    return name


def create_pod(
    control_plane: ControlPlane,
    namespace: str,
    name: str,
    *,
    ip: str | None = None,
    ports: Mapping[str, int] | None = None,
    service_account: str = "default",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owner_references: Sequence[Mapping[str, Any]] = (),
    node: str = NODE,
) -> dict[str, Any]:
    """Create a pod that looks running; with an `ip`, ready and so an endpoint of the Services that select
    it."""
    ensure_node(control_plane, node)
    container: dict[str, Any] = {"name": "main", "image": "example.invalid/none"}
    if ports:
        container["ports"] = [
            {"name": port_name, "containerPort": number} for port_name, number in ports.items()
        ]
    pod = {
        "metadata": {
            "name": name,
            "labels": dict(labels or {}),
            "annotations": dict(annotations or {}),
            "ownerReferences": [dict(reference) for reference in owner_references],
        },
        "spec": {
            "serviceAccountName": service_account,
            "nodeName": node,
            "containers": [container],
            "terminationGracePeriodSeconds": 0,  # no kubelet would confirm a graceful end
        },
    }
    created: dict[str, Any] = control_plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
    return created if ip is None else set_pod_ready(control_plane, namespace, name, ip=ip)


def set_pod_ready(
    control_plane: ControlPlane, namespace: str, name: str, *, ip: str, ready: bool = True
) -> dict[str, Any]:
    """Write the status that a kubelet would write; not ready: the pod leaves its Services' endpoints."""
    status = {
        "phase": "Running",
        "hostIP": NODE_ADDRESS,
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    changed: dict[str, Any] = control_plane.request(
        "PATCH", path, {"status": status}, **{"Content-Type": "application/strategic-merge-patch+json"}
    )
    return changed


def delete_pod(control_plane: ControlPlane, namespace: str, name: str) -> None:
    """Delete a pod if it is there; it is gone at once."""
    answer = control_plane.client.delete(f"/api/v1/namespaces/{namespace}/pods/{name}")
    if answer.status_code != httpx.codes.NOT_FOUND:
        answer.raise_for_status()


def create_service(
    control_plane: ControlPlane,
    namespace: str,
    name: str,
    *,
    ports: Mapping[str, int],
    selector: Mapping[str, str] | None = None,
    headless: bool = False,
) -> dict[str, Any]:
    """Create a Service; without a selector its endpoints are the test's own affair (`set_endpoints`)."""
    spec: dict[str, Any] = {
        "ports": [{"name": port_name, "port": number} for port_name, number in ports.items()]
    }
    if selector is not None:
        spec["selector"] = dict(selector)
    if headless:
        spec["clusterIP"] = "None"
    service: dict[str, Any] = control_plane.request(
        "POST", f"/api/v1/namespaces/{namespace}/services", {"metadata": {"name": name}, "spec": spec}
    )
    return service


def set_endpoints(
    control_plane: ControlPlane,
    namespace: str,
    service: str,
    addresses: Sequence[tuple[str, int]],
    *,
    port_name: str = "http",
    not_ready: Sequence[tuple[str, int]] = (),
) -> None:
    """Make these addresses the endpoints of a selector-less Service, one EndpointSlice per port number.

    Only addresses that are not loopback are taken by the API server (`support.addresses`).
    """
    ports = sorted({port for _, port in (*addresses, *not_ready)})
    keep = {f"{service}-{port}" for port in ports}
    slices = "/apis/discovery.k8s.io/v1/namespaces/" + f"{namespace}/endpointslices"
    label = f"kubernetes.io/service-name={service}"
    for old in control_plane.request("GET", f"{slices}?labelSelector={label}")["items"]:
        if old["metadata"]["name"] not in keep:
            control_plane.request("DELETE", f"{slices}/{old['metadata']['name']}")
    for port in ports:
        endpoints = [
            {"addresses": [address], "conditions": {"ready": ready, "serving": ready}}
            for group, ready in ((addresses, True), (not_ready, False))
            for address, number in group
            if number == port
        ]
        endpoint_slice = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service}-{port}",
                "labels": {
                    "kubernetes.io/service-name": service,
                    "endpointslice.kubernetes.io/managed-by": "meritorder-tests",
                },
            },
            "addressType": "IPv4",
            "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
            "endpoints": endpoints,
        }
        control_plane.request(
            "PATCH",
            f"{slices}/{service}-{port}?fieldManager=meritorder-tests&force=true",
            endpoint_slice,
            **{"Content-Type": "application/apply-patch+yaml"},
        )
