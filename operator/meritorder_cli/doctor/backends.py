"""Checks of what stands behind a policy's pools: Services, Secrets. Pure."""

from collections import defaultdict
from collections.abc import Iterator

from meritorder_api import names
from meritorder_api.policy import InferencePolicySpec
from meritorder_api.resource import InferencePolicy
from meritorder_cli.doctor.facts import Facts, Key
from meritorder_cli.doctor.findings import Finding, Severity


def backends(facts: Facts) -> Iterator[Finding]:
    """Of all policies."""
    for policy in facts.policies:
        yield from _services(policy, facts)
        yield from _secrets(policy, facts)
    yield from _shared(facts)


def called(policy: InferencePolicy) -> str:
    """A policy as findings name it."""
    return f"InferencePolicy `{policy.key}`"


def edit(policy: InferencePolicy) -> str:
    """The command that edits it."""
    return f"kubectl -n {policy.metadata.namespace} edit {names.SHORT_NAME} {policy.metadata.name}"


def _services(policy: InferencePolicy, facts: Facts) -> Iterator[Finding]:
    namespace = policy.metadata.namespace
    for index, pool in enumerate(policy.spec.pools):
        wanted = pool.backend.service
        if wanted is None or (namespace, wanted.name) not in facts.services:
            continue
        place = f"`spec.pools[{index}].backend.service"
        backing = facts.services[namespace, wanted.name]
        object_ = f"Service `{namespace}/{wanted.name}`"
        if backing is None:
            there = sorted(
                name for (where, name), one in facts.services.items() if where == namespace and one
            )
            yield Finding(
                check="ServiceMissing",
                object=object_,
                message=f"pool `{pool.name}` of policy `{policy.key}` names it, and it does not exist"
                + (f"; that namespace has {_some(there)}" if there else ""),
                fix=f"create it, or correct {place}.name`: {edit(policy)}",
            )
        elif backing.type == "ExternalName":
            yield Finding(
                check="ServiceWithoutEndpoints",
                object=object_,
                message=f"pool `{pool.name}` of policy `{policy.key}` names it; it is of type "
                "ExternalName, which has "
                "no endpoints",
                fix=f"use `hosts` in {place[:-8]}` for what is outside the cluster: {edit(policy)}",
            )
        elif wanted.port not in backing.ports:
            yield Finding(
                check="ServicePortMissing",
                object=object_,
                message=f"pool `{pool.name}` of policy `{policy.key}` names port {wanted.port}; it has "
                f"{', '.join(map(str, backing.ports)) or 'none'}",
                fix=f"correct {place}.port`: {edit(policy)}",
            )
        elif backing.ready == 0:
            yield Finding(
                check="NoReadyEndpoints",
                object=object_,
                message=f"pool `{pool.name}` of policy `{policy.key}` has no ready replica: its requests "
                "go to other pools",
                fix=f"kubectl -n {namespace} describe service {wanted.name}: its selector must match pods "
                "that are ready",
            )


def _secrets(policy: InferencePolicy, facts: Facts) -> Iterator[Finding]:
    for name, key, field in named_secrets(policy.spec):
        where: Key = (policy.metadata.namespace, name)
        if where not in facts.secrets:
            continue
        there = facts.secrets[where]
        object_ = f"Secret `{where[0]}/{name}`"
        create = f"kubectl -n {where[0]} create secret generic {name} --from-literal={key or 'client'}=..."
        if there is None:
            yield Finding(
                check="SecretMissing",
                object=object_,
                message=f"`{field}` of policy `{policy.key}` names it, and it does not exist",
                fix=create,
            )
        elif (key and key not in there) or not there:
            yield Finding(
                check="SecretMissing",
                object=object_,
                message=f"`{field}` of policy `{policy.key}` names key `{key}` of it; it has "
                f"{_some(sorted(there))}",
                fix=f"add the key, or correct `{field}`: {edit(policy)}",
            )


def named_secrets(spec: InferencePolicySpec) -> Iterator[tuple[str, str, str]]:
    """Name, key (empty: any) and field of each Secret that routers need."""
    for index, pool in enumerate(spec.pools):
        at = f"spec.pools[{index}].backend"
        if pool.backend.api_key_secret_ref is not None:
            yield (
                pool.backend.api_key_secret_ref.name,
                pool.backend.api_key_secret_ref.key,
                f"{at}.apiKeySecretRef",
            )
        for number, host in enumerate(pool.backend.hosts or ()):
            if host.tls is not None and host.tls.ca_secret_ref is not None:
                ref = host.tls.ca_secret_ref
                yield ref.name, ref.key, f"{at}.hosts[{number}].tls.caSecretRef"
    if spec.gateway is not None and spec.gateway.auth is not None:
        yield spec.gateway.auth.secret_ref.name, "", "spec.gateway.auth.secretRef"


def _shared(facts: Facts) -> Iterator[Finding]:
    users: dict[Key, list[tuple[InferencePolicy, str]]] = defaultdict(list)
    for policy in facts.policies:
        for pool in policy.spec.pools:
            if pool.backend.service is not None:
                users[policy.metadata.namespace, pool.backend.service.name].append((policy, pool.name))
    for (namespace, name), used in users.items():
        if len(used) > 1:
            who = " and ".join(f"pool `{pool}` of policy `{policy.key}`" for policy, pool in used)
            yield Finding(
                check="PoolShared",
                object=f"Service `{namespace}/{name}`",
                message=f"{who} name it: each learns a limit from what the others send there",
                fix=f"give each a Service of its own, or delete one: {edit(used[-1][0])}",
                severity=Severity.WARNING,
            )


def _some(items: list[str]) -> str:
    shown = ", ".join(f"`{item}`" for item in items[:5])
    return (shown + (f" and {len(items) - 5} more" if len(items) > 5 else "")) or "none"
