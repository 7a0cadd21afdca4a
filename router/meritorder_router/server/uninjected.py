"""Pods that ask for a router and have none: their applications go wherever their client's default leads.

It happens where the webhook was not asked (no server answered, and the namespace does not require it) or not
there yet when the pod was created. A sidecar cannot be given later, so it is told: as an event of the pod,
once, by the server that holds the Lease, and as a metric, by each.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from meritorder_api.events import event
from meritorder_api.names import INJECT_LABEL, ROUTER_FIELD_MANAGER
from meritorder_api.reasons import Reason
from meritorder_api.wire import moment
from meritorder_router.server import injection
from meritorder_router.server.cluster import Key, key_of
from meritorder_router.server.kube import Kube, KubeError, Manifest, Refused

log = logging.getLogger(__name__)

SELECTOR: Final = f"{INJECT_LABEL}=true"
LOOK_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 30.0
_ENDED: Final = ("Succeeded", "Failed")
MESSAGE: Final = (
    f"has the label `{INJECT_LABEL}`, but was created without a router: the webhook was not asked. Its "
    "requests go where its client's default leads; delete the pod, so that it is created again"
)


class Uninjected:
    """What a watch of the labelled pods tells; `may_tell` says whether this server posts events."""

    def __init__(
        self,
        kube: Kube,
        *,
        server: str,
        may_tell: Callable[[], bool],
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`now` is monotonic, `wall` is Unix time."""
        self._kube = kube
        self._server = server
        self._may_tell = may_tell
        self._now = now
        self._wall = wall
        self._pods: dict[Key, str] = {}
        """Their UIDs."""
        self._told: dict[str, float] = {}
        """By UID: when it is told again; for ever, where it was."""

    def replace(self, manifests: list[Manifest], namespace: str | None = None) -> None:
        """Take a new list of labelled pods, of one namespace or of all."""
        for key in [key for key in self._pods if namespace is None or key[0] == namespace]:
            self._forget(key)
        for manifest in manifests:
            self._take(manifest)

    def change(self, kind: str, manifest: Manifest) -> None:
        """Take an event of the watch."""
        if kind == "DELETED":
            self._forget(key_of(manifest))
        else:
            self._take(manifest)

    def by_namespace(self) -> Mapping[str, int]:
        """How many there are."""
        return Counter(namespace for namespace, _ in self._pods)

    def _take(self, manifest: Manifest) -> None:
        key = key_of(manifest)
        ended = (manifest.get("status") or {}).get("phase") in _ENDED
        if ended or not injection.asks(manifest) or injection.has_router(manifest):
            self._forget(key)
        else:
            self._pods[key] = str(manifest["metadata"]["uid"])

    def _forget(self, key: Key) -> None:
        self._pods.pop(key, None)

    async def run(self) -> None:
        """Tell of what is new, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for uid in self._told.keys() - set(self._pods.values()):
                del self._told[uid]
            for key, uid in list(self._pods.items()):
                if self._may_tell() and self._now() >= self._told.get(uid, 0.0):
                    told = await self._tell(key, uid)
                    self._told[uid] = float("inf") if told else self._now() + RETRY_SECONDS

    async def _tell(self, key: Key, uid: str) -> bool:
        namespace, pod = key
        told = event(
            {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid},
            reason=Reason.NOT_INJECTED,
            message=f"Pod `{namespace}/{pod}` {MESSAGE}.",
            warning=True,
            # One name for one fact: a server that takes over finds it told.
            name=f"{pod[:200]}.{hashlib.sha256(uid.encode()).hexdigest()[:16]}",
            component=ROUTER_FIELD_MANAGER,
            instance=self._server,
            now=moment(self._wall()),
        )
        try:
            await self._kube.request("POST", f"/api/v1/namespaces/{namespace}/events", told)
        except Refused as error:
            if error.status == 409:
                return True
            log.warning("an event of pod %s/%s was refused: %s", namespace, pod, error)
            return False
        except KubeError as error:
            log.warning("an event of pod %s/%s could not be posted: %s", namespace, pod, error)
            return False
        log.warning("pod %s/%s %s", namespace, pod, MESSAGE)
        return True
