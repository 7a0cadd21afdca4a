"""What a pod is given that asks for a router: a native sidecar, as a JSON patch. Pure.

A pod asks by its label `meritorder.dev/inject: "true"`, and names a policy of its namespace in the annotation
`meritorder.dev/policy`. The policy need not be there (its router answers 503 until it is). What cannot work
is refused with one sentence, before it runs:

    Refused     the pod is not created; whoever creates it reads why
    Left        nothing is changed: it does not ask, or has its router already
    Injected    the patch, and what its author should know

The sidecar is the first of the init containers, so that those after it can use it, and it ends after the
application (Kubernetes 1.29). The API server asks again where another webhook has changed the pod: then only
what came since is seen to, the router itself stays as others may have changed it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api import container, names
from meritorder_api.container import RouterSettings
from meritorder_api.policy import InferencePolicySpec, SecretKeyRef
from meritorder_api.wire import DNS_SUBDOMAIN

Json = dict[str, Any]
Step = dict[str, Any]
"""One operation of a JSON patch."""

DEFAULT_GRACE_SECONDS: Final = 30
"""Kubernetes's own, where a pod says nothing."""
FIRST_PORT: Final = 1024
"""Lower ones are not for those who are not root."""
LAST_PORT: Final = 65535
BASE_URL_CHOICES: Final = ("Auto", "Always", "Never")


class Refused(Exception):
    """The pod cannot have a router; the sentence says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The pod stays as it is."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """What is changed."""

    patch: Sequence[Step]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A pod, and what it asks for."""

    pod: Mapping[str, Any]
    namespace: str

    @property
    def spec(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.pod.get("spec") or {}
        return found

    @property
    def name(self) -> str:
        metadata = self.pod.get("metadata") or {}
        name = metadata.get("name") or f"{metadata.get('generateName') or ''}*"
        return f"pod `{self.namespace}/{name}`"

    @property
    def annotations(self) -> Mapping[str, str]:
        return (self.pod.get("metadata") or {}).get("annotations") or {}

    @property
    def policy(self) -> str:
        return self.annotations.get(names.POLICY_ANNOTATION, "")

    @property
    def listen_port(self) -> str:
        return self.annotations.get(names.PORT_ANNOTATION, str(names.DEFAULT_LISTEN_PORT))

    @property
    def metrics_port(self) -> str:
        return self.annotations.get(names.METRICS_PORT_ANNOTATION, str(names.DEFAULT_METRICS_PORT))

    @property
    def base_url(self) -> str:
        return self.annotations.get(names.BASE_URL_ANNOTATION, BASE_URL_CHOICES[0])

    def containers(self) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
        """All containers but the router's own, each with its list's name and its place there."""
        for kind in ("initContainers", "containers"):
            for index, one in enumerate(self.spec.get(kind) or ()):
                if not _is_router(kind, one):
                    yield kind, index, one


def asks(pod: Mapping[str, Any]) -> bool:
    """Whether a pod asks for a router."""
    labels = (pod.get("metadata") or {}).get("labels") or {}
    return bool(labels.get(names.INJECT_LABEL) == "true")


def has_router(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has a router, injected or written by hand."""
    spec = pod.get("spec") or {}
    return any(
        one.get("name") == names.ROUTER_CONTAINER
        for kind in ("initContainers", "containers")
        for one in spec.get(kind) or ()
    )


def policy_of(pod: Mapping[str, Any]) -> str:
    """The policy that a pod names; empty where it names none."""
    return _Asked(pod=pod, namespace="").policy


def inject(
    pod: Mapping[str, Any],
    *,
    namespace: str,
    spec: InferencePolicySpec | None,
    settings: RouterSettings,
    version: str,
) -> Injected | Left:
    """Give a pod its router; raises Refused.

    `spec` is that of the policy it names, None where there is none (yet): its keys are not mounted then.
    """
    asked = _Asked(pod=pod, namespace=namespace)
    if not asks(pod):
        return Left(reason="NotAsked")
    if "kubernetes.io/config.mirror" in asked.annotations:
        return Left(reason="MirrorPod")
    for check in _CHECKS:
        problem = check(asked)
        if problem is not None:
            raise Refused(f"{asked.name} {problem}")
    steps, warnings = _base_urls(asked)
    if _injected_before(asked):
        return Injected(patch=steps, warnings=warnings) if steps else Left(reason="HasRouter")
    refs = container.secret_refs(spec) if spec is not None else []
    steps += _volumes(asked, refs)
    steps.append(_sidecar(asked, refs, settings))
    marker = names.INJECTED_ANNOTATION.replace("~", "~0").replace("/", "~1")
    steps.append({"op": "add", "path": f"/metadata/annotations/{marker}", "value": version})
    return Injected(patch=steps, warnings=warnings)


# What cannot work, in the order in which it is said.


def _windows(asked: _Asked) -> str | None:
    system = (asked.spec.get("os") or {}).get("name") or (asked.spec.get("nodeSelector") or {}).get(
        "kubernetes.io/os"
    )
    if system in (None, "linux"):
        return None
    return (
        f"is for {str(system)[:63]} nodes, and the router runs on Linux only; take its label "
        f"`{names.INJECT_LABEL}` away and use the policy's gateway"
    )


def _host_network(asked: _Asked) -> str | None:
    if not asked.spec.get("hostNetwork"):
        return None
    return (
        "is on its node's network, where its router would be open to every other such pod; take "
        f"`hostNetwork` away, or its label `{names.INJECT_LABEL}` and use the policy's gateway"
    )


def _policy(asked: _Asked) -> str | None:
    name = asked.policy
    if not name:
        return f"names no policy; set its annotation `{names.POLICY_ANNOTATION}`"
    if "/" in name:
        return f"names policy `{name[:200]}`; it must be the bare name of one of its own namespace"
    if len(name) > 253 or not re.fullmatch(DNS_SUBDOMAIN, name):
        return f"names policy `{name[:200]}`; it must be the name of an {names.KIND}"
    return None


def _port_numbers(asked: _Asked) -> str | None:
    for annotation, text in (
        (names.PORT_ANNOTATION, asked.listen_port),
        (names.METRICS_PORT_ANNOTATION, asked.metrics_port),
    ):
        if not (
            text.isascii() and text.isdecimal() and len(text) < 6 and FIRST_PORT <= int(text) <= LAST_PORT
        ):
            return (
                f"has `{text[:20]}` as its annotation `{annotation}`; it must be a port from {FIRST_PORT} to "
                f"{LAST_PORT}"
            )
    if int(asked.listen_port) == int(asked.metrics_port):
        return (
            f"has port {asked.listen_port} for its router's requests and metrics; set its annotation "
            f"`{names.METRICS_PORT_ANNOTATION}` to another one"
        )
    return None


def _base_url(asked: _Asked) -> str | None:
    if asked.base_url in BASE_URL_CHOICES:
        return None
    return (
        f"has `{asked.base_url[:20]}` as its annotation `{names.BASE_URL_ANNOTATION}`; it must be one of "
        f"{', '.join(BASE_URL_CHOICES)}"
    )


def _taken_names(asked: _Asked) -> str | None:
    if _injected_before(asked):
        return None
    if has_router(asked.pod):
        return (
            f"has a container `{names.ROUTER_CONTAINER}` of its own already; take it away, or its label "
            f"`{names.INJECT_LABEL}`"
        )
    taken = [
        one.get("name") for one in asked.spec.get("volumes") or () if one.get("name") in container.VOLUMES
    ]
    if taken:
        return f"has a volume `{taken[0]}`, which is the name of one of its router's; rename it"
    return None


def _taken_ports(asked: _Asked) -> str | None:
    ours = {
        int(asked.listen_port): names.PORT_ANNOTATION,
        int(asked.metrics_port): names.METRICS_PORT_ANNOTATION,
    }
    for _, _, one in asked.containers():
        for port in one.get("ports") or ():
            number = port.get("containerPort")
            if number in ours and port.get("protocol", "TCP") == "TCP":
                return (
                    f"has port {number} in container `{one.get('name')}`, where its router would listen; "
                    f"set its annotation `{ours[number]}` to another port"
                )
    return None


_CHECKS: Final[Sequence[Callable[[_Asked], str | None]]] = (
    _windows,
    _host_network,
    _policy,
    _port_numbers,
    _base_url,
    _taken_names,
    _taken_ports,
)


# What is changed.


def _is_router(kind: str, one: Mapping[str, Any]) -> bool:
    return (
        kind == "initContainers"
        and one.get("name") == names.ROUTER_CONTAINER
        and one.get("restartPolicy") == "Always"
    )


def _injected_before(asked: _Asked) -> bool:
    return names.INJECTED_ANNOTATION in asked.annotations and any(
        _is_router("initContainers", one) for one in asked.spec.get("initContainers") or ()
    )


def _base_urls(asked: _Asked) -> tuple[list[Step], list[str]]:
    """Name the router to every container that has not chosen another way itself."""
    url = {"name": names.BASE_URL_VARIABLE, "value": f"http://127.0.0.1:{int(asked.listen_port)}/v1"}
    steps: list[Step] = []
    warnings: list[str] = []
    if asked.base_url == "Never":
        return steps, warnings
    for kind, index, one in asked.containers():
        if any(variable.get("name") == names.BASE_URL_VARIABLE for variable in one.get("env") or ()):
            continue
        if one.get("envFrom") and asked.base_url != "Always":
            warnings.append(
                f"container `{one.get('name')}` has envFrom, so {names.BASE_URL_VARIABLE} is left to it; "
                f"annotate {names.BASE_URL_ANNOTATION}: Always to set it"
            )
            continue
        steps.append(_append(f"/spec/{kind}/{index}/env", one.get("env"), url))
    return steps, warnings


def _volumes(asked: _Asked, refs: list[SecretKeyRef]) -> list[Step]:
    there = asked.spec.get("volumes")
    steps: list[Step] = []
    for volume in container.volumes(refs):
        steps.append(_append("/spec/volumes", there or steps, volume))
    return steps


def _sidecar(asked: _Asked, refs: list[SecretKeyRef], settings: RouterSettings) -> Step:
    grace = asked.spec.get("terminationGracePeriodSeconds")
    made = container.container(
        settings,
        policy=asked.policy,
        namespace=asked.namespace,
        listen=f"127.0.0.1:{int(asked.listen_port)}",
        metrics_port=int(asked.metrics_port),
        # Without a table it is ready too: an application is never held up by us.
        ready="/ready",
        # It is told to end after the application has ended: then nothing is in flight any more. If the
        # application takes all of its time, so may the router.
        grace_seconds=DEFAULT_GRACE_SECONDS if grace is None else int(grace),
        keys=bool(refs),
    )
    router = {**made, "restartPolicy": "Always"}
    if asked.spec.get("initContainers"):
        return {"op": "add", "path": "/spec/initContainers/0", "value": router}
    return {"op": "add", "path": "/spec/initContainers", "value": [router]}


def _append(path: str, there: object, value: Json) -> Step:
    if there:
        return {"op": "add", "path": f"{path}/-", "value": value}
    return {"op": "add", "path": path, "value": [value]}
