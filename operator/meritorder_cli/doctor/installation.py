"""Checks of what is installed: CRD, versions, Leases, rights, webhook, clocks. Pure."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from meritorder_api import names
from meritorder_api.crd import crd
from meritorder_cli.doctor.facts import Facts, Manifest, Part, Right
from meritorder_cli.doctor.findings import Finding, Severity

OPERATOR: Final = "operator"
ROUTER: Final = "router"
LEASES: Final = {OPERATOR: names.OPERATOR_LEASE, ROUTER: names.ROUTER_LEASE}
SKEW_SECONDS: Final = 5.0
OWN_SKEW_SECONDS: Final = 60.0
"""Of the machine that this runs on: nothing depends on it but the ages that it shows."""
_APPLY_CRD: Final = "meritorder crd | kubectl apply --server-side -f -"


def installation(facts: Facts) -> Iterator[Finding]:
    """Everything that is not a policy's own."""
    yield from _crd(facts)
    yield from _parts(facts)
    yield from _leases(facts)
    yield from _rights(facts)
    yield from _webhook(facts)
    yield from _clocks(facts)


def _crd(facts: Facts) -> Iterator[Finding]:
    called = f"CustomResourceDefinition `{names.PLURAL}.{names.GROUP}`"
    if facts.crd_missing:
        yield Finding(
            check="CRDMissing",
            object=called,
            message="it does not exist, so there can be no policies",
            fix=_APPLY_CRD,
        )
    if facts.crd is None:
        return
    versions = {one["name"]: one for one in facts.crd["spec"]["versions"]}
    served = versions.get(names.VERSION)
    if served is None or not served.get("served"):
        yield Finding(
            check="CRDOutdated",
            object=called,
            message=f"version {names.VERSION} is not served; it has {', '.join(sorted(versions))}",
            fix=_APPLY_CRD,
        )
        return
    mine = set(_fields(crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))
    lacking = sorted(mine - set(_fields((served.get("schema") or {}).get("openAPIV3Schema") or {})))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        yield Finding(
            check="CRDOutdated",
            object=called,
            message=f"it lacks `{'`, `'.join(lacking[:3])}`{more}, which version {facts.version} writes "
            "and reads: "
            "the API server drops them silently",
            fix=_APPLY_CRD,
        )


def _fields(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, node in (schema.get("properties") or {}).items():
        path = f"{prefix}.{name}" if prefix else name
        yield path
        yield from _fields(node, path)
    if "items" in schema:
        yield from _fields(schema["items"], f"{prefix}[]")


def _parts(facts: Facts) -> Iterator[Finding]:
    if facts.parts is None:
        return
    for component in (OPERATOR, ROUTER):
        found = [part for part in facts.parts if part.component == component]
        if not found:
            what = (
                "nothing is decided" if component == OPERATOR else "no router is told where to send requests"
            )
            yield Finding(
                check="NotInstalled",
                object=f"Deployment of the {component}",
                message=f"there is none with the label app.kubernetes.io/component={component}, so {what}",
                fix="helm upgrade --install meritorder charts/meritorder -n meritorder-system "
                "--create-namespace",
            )
        for part in found:
            if part.version and facts.version[0].isdigit() and not facts.version.startswith("0+"):
                yield from _version(part, facts.version)


def _version(part: Part, own: str) -> Iterator[Finding]:
    if part.version.split(".")[:2] != own.split(".")[:2]:
        yield Finding(
            check="VersionSkew",
            object=f"Deployment `{part.namespace}/{part.name}`",
            message=f"it is version {part.version} and this program {own}; they must be of one minor "
            "version, "
            "or what is said here may be wrong",
            fix=f"pip install meritorder=={part.version}, or upgrade the chart to {own}",
            severity=Severity.WARNING,
        )


def _leases(facts: Facts) -> Iterator[Finding]:
    for component, holder in facts.leases.items():
        part = next((one for one in facts.parts or () if one.component == component), None)
        namespace = part.namespace if part is not None else "meritorder-system"
        called = f"Lease `{namespace}/{LEASES[component]}`"
        stands = "no decision is made" if component == OPERATOR else "nobody says what the routers applied"
        deployment = part.name if part is not None else f"meritorder-{component}"
        look = f"kubectl -n {namespace} logs deployment/{deployment}"
        if holder is None or not holder.identity:
            yield Finding(
                check="LeaseNotHeld", object=called, message=f"nobody holds it, so {stands}", fix=look
            )
            continue
        age = facts.now - holder.renewed_at
        if age > holder.seconds + SKEW_SECONDS:
            yield Finding(
                check="LeaseNotHeld",
                object=called,
                message=f"`{holder.identity}` renewed it {age:.0f} s ago; it must be at most "
                f"{holder.seconds} s: {stands}",
                fix=look,
            )
        elif age < -SKEW_SECONDS:
            yield Finding(
                check="ClockSkew",
                object=called,
                message=f"`{holder.identity}` renewed it {-age:.0f} s in the future; its node's clock "
                "must agree "
                f"with the API server's within {SKEW_SECONDS:.0f} s",
                fix="set the node's clock: chronyc makestep, or timedatectl set-ntp true",
            )


def _rights(facts: Facts) -> Iterator[Finding]:
    for component, rights in facts.denied.items():
        part = next(one for one in facts.parts or () if one.component == component)
        for place, group in groupby(sorted(rights, key=_place), key=_place):
            namespace, api_group, resource, name = place
            verbs = [right.verb for right in group]
            where = f" in namespace `{namespace}`" if namespace else ""
            which = f" `{name}`" if name else ""
            named = f", resourceNames: [{name}]" if name and "create" not in verbs else ""
            kind = "Role" if namespace else "ClusterRole"
            yield Finding(
                check="RBACDenied",
                object=f"ServiceAccount `{part.namespace}/{part.account}`",
                message=f"it may not {', '.join(verbs)} {resource}{which}{where}",
                fix=f'have the chart make its roles, or add to a {kind} of it: {{apiGroups: ["{api_group}"], '
                f"resources: [{resource}]{named}, verbs: [{', '.join(verbs)}]}}",
            )


def _place(right: Right) -> tuple[str, str, str, str]:
    return right.namespace, right.group, right.resource, right.name


def _webhook(facts: Facts) -> Iterator[Finding]:
    injects = any(part.component == ROUTER and part.flags("sidecar-image") for part in facts.parts or ())
    if facts.webhooks is None:
        return
    if not facts.webhooks and injects:
        yield Finding(
            check="WebhookMissing",
            object="MutatingWebhookConfiguration",
            message="there is none that calls the router servers, so no pod with the label "
            f"{names.INJECT_LABEL} gets "
            "a router",
            fix="helm upgrade --reuse-values --set injection.enabled=true",
        )
    for configuration in facts.webhooks:
        called = f"MutatingWebhookConfiguration `{configuration['metadata']['name']}`"
        hooks = configuration.get("webhooks") or ()
        empty = [hook["name"] for hook in hooks if not hook["clientConfig"].get("caBundle")]
        if empty:
            yield Finding(
                check="WebhookWithoutCA",
                object=called,
                message=f"`caBundle` of {', '.join(empty)} is empty, so the API server does not trust the "
                "servers and "
                "no pod gets a router",
                fix=f"start the operator with --webhook={configuration['metadata']['name']} (it writes it "
                "within 5 s); "
                "if it has that, see its log",
            )
        yield from _policies(called, hooks, facts)
    if facts.webhooks and facts.server_ready == 0:
        yield Finding(
            check="ServersNotReady",
            object="Service of the router servers",
            message="it has no ready endpoint: pods are created without a router, or not at all where it "
            "is required",
            fix="kubectl get pods -A -l "
            "app.kubernetes.io/part-of=meritorder,app.kubernetes.io/component=router",
        )


def _policies(called: str, hooks: Any, facts: Facts) -> Iterator[Finding]:
    for hook in hooks:
        required = _required(hook)
        policy = hook.get("failurePolicy", "Fail")
        wanted = "Fail" if required else "Ignore"
        if policy != wanted:
            harm = (
                "pods are created without a router, and their requests go where their clients' default leads"
                if required
                else "no pod of the cluster with that label can be created while the servers are away"
            )
            yield Finding(
                check="WebhookFailurePolicy",
                object=called,
                message=f"`failurePolicy` of {hook['name']} is {policy}; must be {wanted}, else {harm}",
                fix="helm upgrade --reuse-values, or set "
                f"webhooks[{list(hooks).index(hook)}].failurePolicy: {wanted}",
                severity=Severity.ERROR if required else Severity.WARNING,
            )
    if facts.required_namespaces and not any(_required(hook) for hook in hooks):
        yield Finding(
            check="WebhookFailurePolicy",
            object=called,
            message=f"namespace `{facts.required_namespaces[0]}` requires injection, and no entry asks "
            "for it",
            fix="helm upgrade --reuse-values: the chart has an entry for namespaces with "
            f"{names.GROUP}/injection=required",
        )


def _required(hook: Manifest) -> bool:
    selector = hook.get("namespaceSelector") or {}
    return (
        any(
            one.get("key") == f"{names.GROUP}/injection"
            and one.get("operator") == "In"
            and "required" in one["values"]
            for one in selector.get("matchExpressions") or ()
        )
        or (selector.get("matchLabels") or {}).get(f"{names.GROUP}/injection") == "required"
    )


def _clocks(facts: Facts) -> Iterator[Finding]:
    if abs(facts.clock_ahead) > OWN_SKEW_SECONDS:
        word = "ahead of" if facts.clock_ahead > 0 else "behind"
        yield Finding(
            check="ClockSkew",
            object="this machine",
            message=f"its clock is {abs(facts.clock_ahead):.0f} s {word} the API server's; ages that it "
            "shows are wrong "
            "by as much",
            fix="timedatectl set-ntp true",
            severity=Severity.WARNING,
        )
