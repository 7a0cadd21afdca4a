"""What operator and router servers must be allowed to do, as the chart grants it. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final

from meritorder_api import names
from meritorder_cli.doctor.facts import Part, Right
from meritorder_cli.doctor.installation import LEASES, OPERATOR

_DISCOVERY: Final = "discovery.k8s.io"
_GATEWAY: Final = (
    ("apps", "deployments"),
    ("policy", "poddisruptionbudgets"),
    ("networking.k8s.io", "networkpolicies"),
    ("", "services"),
)


def needed(part: Part) -> Iterator[Right]:
    """All that a part needs, as it was started."""
    for namespace in part.flags("namespace") or ("",):
        verbs = _operators(part) if part.component == OPERATOR else _routers()
        for group, resource, name, allowed in verbs:
            for verb in allowed:
                yield Right(verb=verb, group=group, resource=resource, namespace=namespace, name=name)
    lease = LEASES[part.component]
    yield Right(verb="create", group="coordination.k8s.io", resource="leases", namespace=part.namespace)
    for verb in ("get", "update"):
        yield Right(
            verb=verb, group="coordination.k8s.io", resource="leases", namespace=part.namespace, name=lease
        )
    if part.component != OPERATOR:
        yield Right(verb="create", group="authentication.k8s.io", resource="tokenreviews")
    for webhook in part.flags("webhook"):
        for verb in ("get", "patch"):
            yield Right(
                verb=verb,
                group="admissionregistration.k8s.io",
                resource="mutatingwebhookconfigurations",
                name=webhook,
            )
    for namespace in part.flags("secret-namespace"):
        yield Right(verb="get", group="", resource="secrets", namespace=namespace)


Verbs = Iterable[tuple[str, str, str, tuple[str, ...]]]


def _operators(part: Part) -> Verbs:
    yield names.GROUP, names.PLURAL, "", ("get", "list", "watch")
    yield names.GROUP, f"{names.PLURAL}/status", "", ("patch",)
    yield "", "events", "", ("create",)
    if "--no-certificates" not in part.arguments:
        yield "", "configmaps", names.CA_CONFIG_MAP, ("get", "create", "patch")
    if part.flags("gateway-image"):
        for group, resource in _GATEWAY:
            yield group, resource, "", ("get", "list", "create", "patch", "delete")


def _routers() -> Verbs:
    yield names.GROUP, names.PLURAL, "", ("list", "watch")
    yield names.GROUP, f"{names.PLURAL}/status", "", ("patch",)
    yield "", "services", "", ("list", "watch")
    yield _DISCOVERY, "endpointslices", "", ("list", "watch")
    yield "", "pods", "", ("get", "list", "watch")
    yield "", "events", "", ("create",)
