"""Reading and pausing policies of a cluster for the command line; one sentence where it fails."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from lightkube.core.exceptions import ConfigError

from meritorder_api.names import PLURAL
from meritorder_api.resource import InferencePolicy, PolicyError
from meritorder_cli.complaint import Complaint, WrongUse
from meritorder_operator.cluster import POLICIES, Cluster, ClusterError, Refused

_MANAGER = "meritorder-cli"
_MERGE = "application/merge-patch+json"

Answer = TypeVar("Answer")


def read(name: str, namespace: str | None, kubeconfig: Path | None) -> InferencePolicy:
    """The policy as it is now."""

    async def ask(cluster: Cluster) -> InferencePolicy:
        return InferencePolicy.parse(await cluster.policy(namespace or cluster.namespace, name))

    return _asked(name, namespace, kubeconfig, ask)


def suspend(name: str, namespace: str | None, kubeconfig: Path | None, *, suspended: bool) -> str:
    """Pause or resume; says what it did."""

    async def ask(cluster: Cluster) -> str:
        where = namespace or cluster.namespace
        before = InferencePolicy.parse(await cluster.policy(where, name)).spec.suspend
        if before == suspended:
            return f"{where}/{name} is {'paused' if suspended else 'not paused'} already"
        path = f"{POLICIES}/namespaces/{where}/{PLURAL}/{name}"
        body = {"spec": {"suspend": suspended}}
        await cluster.request("PATCH", path, body, params={"fieldManager": _MANAGER}, content_type=_MERGE)
        return f"{where}/{name} {'paused: the last routing keeps serving' if suspended else 'resumed'}"

    return _asked(name, namespace, kubeconfig, ask)


async def listed(cluster: Cluster, namespace: str | None, *, everywhere: bool) -> list[InferencePolicy]:
    """The policies of one namespace, or of all; what is no policy is left out (`doctor` tells of it)."""
    chosen = () if everywhere else (namespace or cluster.namespace,)
    found = []
    for manifest in await cluster.policies(chosen):
        with contextlib.suppress(PolicyError):
            found.append(InferencePolicy.parse(manifest))
    return found


def asked(kubeconfig: Path | None, ask: Callable[[Cluster], Awaitable[Answer]]) -> Answer:
    """Connect, ask, and complain in one sentence."""

    async def run() -> Answer:
        try:
            cluster = Cluster.connect(kubeconfig)
        except (ConfigError, OSError) as error:
            raise WrongUse(f"no cluster: {error}") from error
        try:
            return await ask(cluster)
        except (ClusterError, PolicyError) as error:
            raise Complaint(str(error)) from error
        finally:
            await cluster.close()

    return asyncio.run(run())


def _asked(
    name: str,
    namespace: str | None,
    kubeconfig: Path | None,
    ask: Callable[[Cluster], Awaitable[Answer]],
) -> Answer:
    async def run(cluster: Cluster) -> Answer:
        try:
            return await ask(cluster)
        except Refused as error:
            if error.status != 404:
                raise
            where = namespace or cluster.namespace
            raise Complaint(f"no policy `{name}` in namespace `{where}`") from error

    return asked(kubeconfig, run)
