"""Checks of the routers: their agents, gateways and the pods that should have one; and what the operator
itself says of a policy. Pure."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from meritorder_api import names
from meritorder_api.reasons import NOT_MOUNTED, ConditionType, Reason, without_code
from meritorder_api.resource import InferencePolicy
from meritorder_cli.doctor.backends import called, edit
from meritorder_cli.doctor.facts import Facts
from meritorder_cli.doctor.findings import Finding, Severity
from meritorder_router.server.injection import has_router, policy_of

BEHIND_SECONDS: Final = 30.0
"""A change may take so long until every agent has it."""


def agents(facts: Facts) -> Iterator[Finding]:
    """Of all policies, and of all pods that ask for a router."""
    for sentence in facts.unreadable:
        yield Finding(
            check="InvalidPolicy",
            object="InferencePolicy",
            message=sentence,
            fix="correct the field that it names",
        )
    for policy in facts.policies:
        yield from _observed(policy, facts)
        yield from _programmed(policy, facts)
        yield from _gateway(policy, facts)
        if facts.trusted.get(policy.metadata.namespace) is False:
            yield Finding(
                check="CANotThere",
                object=f"ConfigMap `{policy.metadata.namespace}/{names.CA_CONFIG_MAP}`",
                message=f"it does not exist or has no `{names.CA_CONFIG_MAP_KEY}`, so agents of policy "
                f"`{policy.key}` trust "
                "no router server",
                fix="the operator writes it within seconds of a namespace's first policy: see its log, "
                "and its right "
                "to create ConfigMaps there",
            )
    yield from _pods(facts)


def _observed(policy: InferencePolicy, facts: Facts) -> Iterator[Finding]:
    status = policy.status
    if (status.observed_generation or 0) < policy.metadata.generation:
        yield Finding(
            check="NotObserved",
            object=called(policy),
            message=f"the operator has acted on generation {status.observed_generation or 'none'} of its "
            "spec, which is "
            f"at {policy.metadata.generation}",
            fix="see whether an operator leads and serves this namespace: kubectl get lease -A "
            f"--field-selector metadata.name={names.OPERATOR_LEASE}",
        )
    for condition in status.conditions or ():
        if condition.status == "False" and condition.type == ConditionType.ACCEPTED:
            yield Finding(
                check="NotAccepted", object=called(policy), message=condition.message, fix=edit(policy)
            )


def _programmed(policy: InferencePolicy, facts: Facts) -> Iterator[Finding]:
    status, programmed = policy.status, policy.status.programmed
    if status.routing is None:
        return
    if programmed is None or programmed.agents == 0:
        yield Finding(
            check="NoAgents",
            object=called(policy),
            message="no router serves it, so it routes nothing",
            fix=f'give an application\'s pods the label {names.INJECT_LABEL}: "true" and the annotation '
            f"{names.POLICY_ANNOTATION}: {policy.metadata.name}, or set `spec.gateway`: {edit(policy)}",
            severity=Severity.WARNING,
        )
        return
    for refusal in programmed.refused:
        lacks, sentence = without_code(refusal.reason, refusal.code)
        if lacks in NOT_MOUNTED:
            yield Finding(
                check=str(lacks),
                object=f"Pod `{policy.metadata.namespace}/{refusal.agent}`",
                message=f"its router has no key or CA that policy `{policy.key}` names, and passes over "
                f"that pool: {sentence}",
                fix="a running pod mounts nothing new: create the Secret, then delete the pod so that it "
                "is made again",
            )
        else:
            yield Finding(
                check=str(Reason.REFUSED_BY_AGENT),
                object=f"Pod `{policy.metadata.namespace}/{refusal.agent}`",
                message=f"its router refused the table of policy `{policy.key}` and serves the one "
                f"before: {sentence}",
                fix=f"correct what it names: {edit(policy)}; or delete the pod, if its router is of "
                "another version",
            )
    if programmed.silent:
        yield Finding(
            check=str(Reason.AGENTS_SILENT),
            object=called(policy),
            message=f"{programmed.silent} of {programmed.agents} agents have not been heard of for 15 s; "
            "they serve what "
            "they have, beyond the limits if the others took over their share",
            fix="see whether their pods reach the router servers: kubectl logs POD -c "
            f"{names.ROUTER_CONTAINER}; a NetworkPolicy must let them out to port 8443",
            severity=Severity.WARNING,
        )
    current = programmed.applied if programmed.sequence == status.routing.sequence else 0
    if (
        current + programmed.silent < programmed.agents
        and not programmed.refused
        and facts.now - _changed_at(policy) > BEHIND_SECONDS
    ):
        yield Finding(
            check="AgentsBehind",
            object=called(policy),
            message=f"{current} of {programmed.agents} agents applied routing {status.routing.sequence} "
            f"(the last that was told of is {programmed.sequence}), for more than {BEHIND_SECONDS:.0f} s",
            fix="see the router servers' log: kubectl logs -A -l "
            "app.kubernetes.io/part-of=meritorder,app.kubernetes.io/component=router",
        )
    words = programmed.problem_reasons or []
    for number, problem in enumerate(programmed.problems):
        word = words[number] if number < len(words) else Reason.BACKEND_NOT_FOUND
        if word != Reason.BACKEND_NOT_FOUND:  # that one is looked at in itself
            yield Finding(
                check=str(word),
                object=called(policy),
                message=problem,
                fix=f"correct the host: {edit(policy)}",
            )


def _changed_at(policy: InferencePolicy) -> float:
    last = next(iter(policy.status.history or ()), None)
    if last is None:
        return 0.0
    return datetime.fromisoformat(last.evaluated_at).timestamp()


def _gateway(policy: InferencePolicy, facts: Facts) -> Iterator[Finding]:
    key = (policy.metadata.namespace, policy.metadata.name)
    if policy.spec.gateway is None or key not in facts.gateways:
        return
    name = f"{policy.metadata.name}{names.GATEWAY_SUFFIX}"
    there = facts.gateways[key]
    object_ = f"Deployment `{key[0]}/{name}`"
    if there is None:
        yield Finding(
            check="GatewayMissing",
            object=object_,
            message=f"policy `{policy.key}` has `spec.gateway`, and there is no such Deployment",
            fix="the operator makes it when it was started with --gateway-image (chart: "
            "gateways.enabled=true); "
            f"else kubectl -n {key[0]} describe {names.SHORT_NAME} {key[1]} tells why it cannot",
        )
    elif there.available < there.wanted:
        yield Finding(
            check="GatewayNotReady",
            object=object_,
            message=f"{there.available} of {there.wanted} gateway pods are available",
            fix=f"kubectl -n {key[0]} describe pods -l {names.GATEWAY_LABEL}={key[1]}",
            severity=Severity.WARNING if there.available else Severity.ERROR,
        )


def _pods(facts: Facts) -> Iterator[Finding]:
    known = {policy.key for policy in facts.policies}
    for pod in facts.pods or ():
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        object_ = f"Pod `{namespace}/{name}`"
        if not has_router(pod):
            yield Finding(
                check=str(Reason.NOT_INJECTED),
                object=object_,
                message=f"it has the label {names.INJECT_LABEL} and no router: its requests go where its "
                "client's default "
                "leads",
                fix=f"once the webhook is well: kubectl -n {namespace} delete pod {name} (its owner makes "
                "it again)",
            )
        elif f"{namespace}/{policy_of(pod)}" not in known:
            yield Finding(
                check="PolicyMissing",
                object=object_,
                message=f"its router serves policy `{policy_of(pod)}`, which namespace `{namespace}` does "
                "not have: it "
                "answers 503",
                fix=f"create the policy, or correct the annotation {names.POLICY_ANNOTATION} in the pod's "
                "template",
            )
