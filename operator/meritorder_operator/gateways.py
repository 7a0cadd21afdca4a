"""Keeps the gateways of all policies: makes, changes and removes their objects.

Level-driven: what is there is listed from time to time and compared with what policies ask for; a change of
a policy is seen to at once. Objects are written by server-side apply, and only onto what belongs to the same
policy: a Service that somebody else has under that name is left alone, and that is told. A policy that is
deleted takes its gateway with it by itself (owner references); one whose spec is not valid keeps it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api import names
from meritorder_api.container import RouterSettings
from meritorder_api.policy import Gateway, InferencePolicySpec
from meritorder_api.reasons import Reason
from meritorder_operator import gateway
from meritorder_operator.cluster import Cluster, ClusterError, LeaseLost, Refused
from meritorder_operator.gateway import KINDS, Kind
from meritorder_operator.news import News
from meritorder_operator.view import PolicyView

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
LIST_SECONDS: Final = 30.0
"""How often all objects are listed: what somebody deleted is made again."""
APPLY_SECONDS: Final = 600.0
"""How often they are applied though nothing seems to have changed: what somebody edited is put right."""
RETRY_SECONDS: Final = 10.0

Place = tuple[Kind, str, str]
"""Kind, namespace and name of an object."""


class Foreign(Exception):
    """An object of a gateway's name belongs to somebody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object that is there."""

    uid: str
    owner: str | None
    """UID of the policy that owns it."""


@dataclass(slots=True, kw_only=True)
class _Kept:
    """What was last done for a policy."""

    uid: str
    generation: int
    again_at: float
    """On the clock."""
    good: bool


class Gateways:
    """Runs while this process leads."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        settings: RouterSettings | None,
        namespaces: tuple[str, ...],
        views: Callable[[], Iterable[PolicyView]],
        tell: Callable[[PolicyView, News], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """`settings`: None where no image was named: there can be no gateway, and none is looked for."""
        self._cluster = cluster
        self._settings = settings
        self._namespaces = namespaces
        self._views = views
        self._tell = tell
        self._clock = clock
        self._there: dict[Place, Found] = {}
        self._list_at = float("-inf")
        self._listed = False
        self._kept: dict[str, _Kept] = {}
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Look after all gateways for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Do what is due."""
        now = self._clock()
        if self._settings is not None and now >= self._list_at:
            self._list_at = now + LIST_SECONDS
            await self._list()
        if self._settings is not None and not self._listed:
            return
        views = list(self._views())
        for key in self._kept.keys() - {view.key for view in views}:
            del self._kept[key]
            self._told.pop(key, None)
        for view in views:
            if isinstance(view.spec, InferencePolicySpec) and self._due(view, view.spec.gateway, now):
                await self._see_to(view, view.spec, now)

    def _places(self, view: PolicyView) -> list[Place]:
        return [(kind, view.namespace, gateway.name_of(view.name)) for kind in KINDS]

    def _due(self, view: PolicyView, wanted: Gateway | None, now: float) -> bool:
        own = [place for place in self._places(view) if self._owner(place) == view.uid]
        if wanted is None:
            return bool(own) and self._waited(view, now)
        kept = self._kept.get(view.key)
        if kept is None or (kept.uid, kept.generation) != (view.uid, view.generation):
            return True
        return now >= kept.again_at or (kept.good and len(own) < len(KINDS))

    def _waited(self, view: PolicyView, now: float) -> bool:
        kept = self._kept.get(view.key)
        return kept is None or kept.good or now >= kept.again_at

    def _owner(self, place: Place) -> str | None:
        found = self._there.get(place)
        return found.owner if found is not None else None

    async def _see_to(self, view: PolicyView, spec: InferencePolicySpec, now: float) -> None:
        uid, generation = view.uid, view.generation
        problem: str | None = None
        try:
            if spec.gateway is None:
                await self._remove(view)
            elif self._settings is None:
                problem = "this operator has no image for gateways; start it with --gateway-image"
            else:
                await self._make(view, spec, spec.gateway, self._settings)
        except (ClusterError, Foreign) as error:
            problem = str(error)
        except LeaseLost:
            raise
        except Exception as error:
            # A fault in one gateway must not end what decides for all policies.
            problem = f"the operator failed on it: {error!r}"
            log.exception("%s: gateway", view.key)
        self._kept[view.key] = _Kept(
            uid=uid,
            generation=generation,
            again_at=now + (APPLY_SECONDS if problem is None else RETRY_SECONDS),
            good=problem is None,
        )
        if problem is None:
            self._told.pop(view.key, None)
        elif self._told.get(view.key) != problem:
            self._told[view.key] = problem
            log.warning("%s: gateway: %s", view.key, problem)
            message = f"gateway `{gateway.name_of(view.name)}`: {problem}"
            await self._tell(view, News(reason=Reason.GATEWAY_FAILED, message=message, warning=True))

    async def _make(
        self, view: PolicyView, spec: InferencePolicySpec, wanted: Gateway, settings: RouterSettings
    ) -> None:
        metadata = {"namespace": view.namespace, "name": view.name, "uid": view.uid}
        for kind, body in gateway.objects(metadata, spec, wanted, settings).items():
            place = (kind, view.namespace, body["metadata"]["name"])
            path = f"{kind.path(view.namespace)}/{place[2]}"
            if self._owner(place) != view.uid:
                await self._refuse_foreign(path, kind, place[2], view)
            self._there[place] = _found(await self._cluster.apply(path, body))
        log.info("%s: gateway `%s` is as it should be", view.key, gateway.name_of(view.name))

    async def _refuse_foreign(self, path: str, kind: Kind, name: str, view: PolicyView) -> None:
        there = await self._cluster.find(path)
        if there is None:
            return
        found = _found(there)
        if found.owner == view.uid:
            return
        if found.owner is not None:
            raise Foreign(
                f"{kind.kind} `{name}` still is that of a policy deleted before; waiting until it is gone"
            )
        raise Foreign(
            f"{kind.kind} `{name}` is there already and not of this policy; rename it, or the policy"
        )

    async def _remove(self, view: PolicyView) -> None:
        for place in self._places(view):
            found = self._there.get(place)
            if found is None or found.owner != view.uid:
                continue
            kind, namespace, name = place
            options = {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"uid": found.uid},
                "propagationPolicy": "Background",
            }
            try:
                await self._cluster.request("DELETE", f"{kind.path(namespace)}/{name}", options)
            except Refused as error:
                # Gone, or another one by now: the next list tells.
                if error.status not in (404, 409):
                    raise
            self._there.pop(place, None)
        log.info("%s: gateway `%s` is removed", view.key, gateway.name_of(view.name))

    async def _list(self) -> None:
        there: dict[Place, Found] = {}
        try:
            for kind in KINDS:
                for namespace in self._namespaces or (None,):
                    items = await self._cluster.list_all(kind.path(namespace), selector=gateway.SELECTOR)
                    for item in items:
                        metadata = item["metadata"]
                        there[kind, metadata["namespace"], metadata["name"]] = _found(item)
        except ClusterError as error:
            if self._told.get("") != str(error):
                log.warning("gateways could not be listed: %s", error)
            self._told[""] = str(error)
            return
        self._told.pop("", None)
        self._there, self._listed = there, True


def _found(manifest: dict[str, Any]) -> Found:
    metadata = manifest["metadata"]
    owners = (
        owner["uid"]
        for owner in metadata.get("ownerReferences") or ()
        if owner["kind"] == names.KIND and owner["apiVersion"].partition("/")[0] == names.GROUP
    )
    return Found(uid=metadata["uid"], owner=next(owners, None))
