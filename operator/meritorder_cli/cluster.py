"""Reading and pausing policies of a cluster for the command line; one sentence where it fails."""

import asyncio
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


def _asked(
    name: str,
    namespace: str | None,
    kubeconfig: Path | None,
    ask: Callable[[Cluster], Awaitable[Answer]],
) -> Answer:
    async def run() -> Answer:
        try:
            cluster = Cluster.connect(kubeconfig)
        except (ConfigError, OSError) as error:
            raise WrongUse(f"no cluster: {error}") from error
        try:
            return await ask(cluster)
        except Refused as error:
            where = namespace or cluster.namespace
            if error.status == 404:
                raise Complaint(f"no policy `{name}` in namespace `{where}`") from error
            raise Complaint(str(error)) from error
        except (ClusterError, PolicyError) as error:
            raise Complaint(str(error)) from error
        finally:
            await cluster.close()

    return asyncio.run(run())
