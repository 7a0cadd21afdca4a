"""Who asks: an agent by its pod-bound token, or another server by its service account's.

An agent presents a projected token of audience `meritorder`. TokenReview says whose it is and to which pod
it is bound; the pod's annotation (or gateway label) says which policy of its own namespace it serves. Both
answers are kept for at most 60 s, and longer only while the API server is away and the token has not
expired.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api.names import GATEWAY_LABEL, POLICY_ANNOTATION, TOKEN_AUDIENCE
from meritorder_router.server.kube import Kube, KubeError, Refused

log = logging.getLogger(__name__)

KEPT_SECONDS: Final = 60.0
REFUSAL_KEPT_SECONDS: Final = 5.0
MOST_KEPT: Final = 20_000
LONGEST_TOKEN: Final = 16_384
REVIEWS_AT_ONCE: Final = 16
REVIEW_TIMEOUT_SECONDS: Final = 3.0
CLOCKS_APART_SECONDS: Final = 60.0

_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"
_ACCOUNT: Final = "system:serviceaccount:"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentIdentity:
    """An agent, and the policy that its pod names."""

    namespace: str
    pod: str
    uid: str
    policy: str


class Denied(Exception):
    """A request that is not served: its HTTP status, one CamelCase word, and one sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    value: AgentIdentity | str | Denied
    at: float
    expires_at: float | None
    """Unix time at which the token itself ends."""


class Authenticator:
    """Reviews tokens, and remembers the answers for a while. `now` is monotonic, `wall` is Unix time."""

    def __init__(
        self,
        kube: Kube,
        *,
        peers: Collection[str],
        away: Callable[[], bool],
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`peers` are the `namespace:name` of the service accounts that servers run under."""
        self._kube = kube
        self._peers = frozenset(peers)
        self._away = away
        self._now = now
        self._wall = wall
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[AgentIdentity | str]] = {}
        self._at_once = asyncio.Semaphore(REVIEWS_AT_ONCE)

    async def agent(self, header: str | None) -> AgentIdentity:
        """The agent behind an Authorization header; Denied when there is none."""
        found = await self._find("agent", header)
        assert isinstance(found, AgentIdentity)
        return found

    async def peer(self, header: str | None) -> str:
        """The service account of the server behind an Authorization header; Denied when it is not ours."""
        found = await self._find("peer", header)
        assert isinstance(found, str)
        return found

    async def _find(self, kind: str, header: str | None) -> AgentIdentity | str:
        token = _bearer(header)
        key = kind, hashlib.sha256(token.encode()).hexdigest()
        kept = self._kept.get(key)
        if kept is not None and self._fresh(kept):
            return _value(kept)
        if kept is not None and self._away() and self._usable(kept):
            return _value(kept)
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.create_task(self._ask(kind, token))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        expires_at = claims(token).get("exp")
        try:
            value: AgentIdentity | str | Denied = await asyncio.shield(asking)
        except Denied as denied:
            value = denied
        except KubeError as error:
            if kept is not None and self._usable(kept):
                return _value(kept)
            log.warning("a token could not be reviewed: %s", error)
            raise Denied(
                503, "NotReviewed", "the token cannot be reviewed just now; keep what you have and ask again"
            ) from error
        at = self._now()
        ends = float(expires_at) if isinstance(expires_at, int | float) else None
        self._kept[key] = kept = _Kept(value=value, at=at, expires_at=ends)
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return _value(kept)

    def _fresh(self, kept: _Kept) -> bool:
        age = self._now() - kept.at
        if isinstance(kept.value, Denied):
            return age < REFUSAL_KEPT_SECONDS
        return age < KEPT_SECONDS and (kept.expires_at is None or self._wall() < kept.expires_at)

    def _usable(self, kept: _Kept) -> bool:
        """Good enough while the API server is away."""
        return (
            not isinstance(kept.value, Denied)
            and kept.expires_at is not None
            and self._wall() < kept.expires_at
        )

    async def _ask(self, kind: str, token: str) -> AgentIdentity | str:
        async with self._at_once:
            user = await self._review(token)
            namespace, _, account = user["username"].removeprefix(_ACCOUNT).partition(":")
            if kind == "peer":
                if f"{namespace}:{account}" not in self._peers:
                    raise Denied(
                        403,
                        "NotAServer",
                        f"service account `{namespace}:{account}` is not one that router servers run under "
                        f"({', '.join(sorted(self._peers)) or 'none is known'})",
                    )
                return f"{namespace}:{account}"
            return await self._bound(namespace, user)

    async def _review(self, token: str) -> dict[str, Any]:
        # What refuses itself by its own words need not be asked about; nothing is accepted by them.
        why = self._plainly_wrong(token)
        if why is not None:
            raise Denied(401, "TokenRefused", why)
        answer = await self._kube.request(
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
            },
            timeout_seconds=REVIEW_TIMEOUT_SECONDS,
        )
        status = answer.get("status") or {}
        if not status.get("authenticated") or TOKEN_AUDIENCE not in (status.get("audiences") or ()):
            raise Denied(
                401,
                "TokenRefused",
                "the API server does not accept the token: its pod is gone, or it is not of this cluster",
            )
        user: dict[str, Any] = status.get("user") or {}
        if not str(user.get("username", "")).startswith(_ACCOUNT):
            raise Denied(
                403, "NotAServiceAccount", "the token is not a service account's; agents use their pod's own"
            )
        return user

    def _plainly_wrong(self, token: str) -> str | None:
        said = claims(token)
        if not said:
            return "the bearer token is not a service account token"
        audiences = said.get("aud")
        audiences = [audiences] if isinstance(audiences, str) else audiences
        if not isinstance(audiences, list) or TOKEN_AUDIENCE not in audiences:
            named = ", ".join(map(str, audiences or ()))[:200] if isinstance(audiences, list) else ""
            return f"the token is for audience `{named}`; it must be for `{TOKEN_AUDIENCE}`"
        expires_at = said.get("exp")
        if isinstance(expires_at, int | float) and expires_at <= self._wall() - CLOCKS_APART_SECONDS:
            return "the token has expired; mount it as a projected volume, which renews it, and read it anew"
        return None

    async def _bound(self, namespace: str, user: dict[str, Any]) -> AgentIdentity:
        extra = user.get("extra") or {}
        pod = next(iter(extra.get(_POD_NAME) or ()), "")
        uid = next(iter(extra.get(_POD_UID) or ()), "")
        if not pod or not uid:
            raise Denied(
                403,
                "TokenNotBound",
                "the token is not bound to a pod; mount it as a projected volume of the pod",
            )
        try:
            found = await self._kube.request(
                "GET", f"/api/v1/namespaces/{namespace}/pods/{pod}", timeout_seconds=REVIEW_TIMEOUT_SECONDS
            )
        except Refused as error:
            if error.status != 404:
                raise
            raise Denied(403, "PodGone", f"pod `{namespace}/{pod}` is gone") from error
        metadata = found["metadata"]
        if metadata.get("uid") != uid:
            raise Denied(403, "PodGone", f"pod `{namespace}/{pod}` is another one than the token is bound to")
        policy = (metadata.get("annotations") or {}).get(POLICY_ANNOTATION) or (
            metadata.get("labels") or {}
        ).get(GATEWAY_LABEL)
        if not policy:
            raise Denied(
                403,
                "NoPolicyNamed",
                f"pod `{namespace}/{pod}` names no policy; set its annotation `{POLICY_ANNOTATION}`",
            )
        if "/" in policy:
            raise Denied(
                403,
                "ForeignNamespace",
                f"pod `{namespace}/{pod}` names policy `{policy[:200]}`; it must be the bare name of one "
                "of its own namespace",
            )
        return AgentIdentity(namespace=namespace, pod=pod, uid=uid, policy=policy)


def claims(token: str) -> dict[str, Any]:
    """What a JWT says of itself, unverified: for messages, and for when it ends."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        said = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _bearer(header: str | None) -> str:
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Denied(
            401,
            "NoToken",
            f"no bearer token; an agent presents its pod's token of audience `{TOKEN_AUDIENCE}`",
        )
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise Denied(401, "TokenRefused", "the bearer token is not a token")
    return token


def _value(kept: _Kept) -> AgentIdentity | str:
    if isinstance(kept.value, Denied):
        # A new one each time: a raised exception keeps a traceback.
        raise Denied(kept.value.status, kept.value.reason, kept.value.message)
    return kept.value
