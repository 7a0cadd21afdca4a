"""The admission webhook: the API server asks about each pod that wants a router, as it is created.

The protocol is `AdmissionReview` of admission.k8s.io/v1. Nothing is written here and nothing remembered, so
any server may answer, a dry run too. What happens when none of them does is the webhook configuration's
affair (`failurePolicy`); a pod that came without its router is told of (`uninjected`).
"""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from meritorder_api.container import RouterSettings
from meritorder_router.server import injection
from meritorder_router.server.auth import Denied
from meritorder_router.server.board import Board
from meritorder_router.server.injection import Injected, Left, Refused
from meritorder_router.server.metrics import Metrics

log = logging.getLogger(__name__)

API_VERSION: Final = "admission.k8s.io/v1"
POLICY_WAIT_SECONDS: Final = 1.0
"""A policy that was created with its pod, in one file, may be seen a moment after it."""
LONGEST_UID: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What the API server asks."""

    uid: str
    namespace: str
    pod: Mapping[str, Any] | None
    """None: it is not about a new pod."""


def read(body: bytes) -> Review:
    """Read an AdmissionReview; raises Denied when it is none."""
    try:
        review = json.loads(body)
        request = review["request"]
        uid, resource = request["uid"], request.get("resource") or {}
        new_pod = (
            resource.get("group", ""),
            resource.get("resource"),
            request.get("subResource") or "",
            request.get("operation"),
        ) == ("", "pods", "", "CREATE")
        pod = request["object"] if new_pod else None
        namespace = request.get("namespace") or ""
        well = (
            review.get("apiVersion") == API_VERSION
            and isinstance(uid, str)
            and 0 < len(uid) <= LONGEST_UID
            and isinstance(namespace, str)
            and (pod is None or (isinstance(pod, dict) and isinstance(pod.get("spec"), dict)))
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        well = False
    if not well:
        raise Denied(400, "BadReview", f"the request is no AdmissionReview of {API_VERSION} about a pod")
    return Review(uid=uid, namespace=namespace, pod=pod)


def answer(uid: str, outcome: Injected | Left | Refused) -> dict[str, Any]:
    """The AdmissionReview that is sent back."""
    response: dict[str, Any] = {"uid": uid, "allowed": not isinstance(outcome, Refused)}
    if isinstance(outcome, Refused):
        response["status"] = {"code": 403, "reason": "Forbidden", "message": str(outcome)}
    elif isinstance(outcome, Injected):
        patch = json.dumps(list(outcome.patch), separators=(",", ":")).encode()
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode()}
        if outcome.warnings:
            response["warnings"] = list(outcome.warnings)
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


class Injector:
    """Answers reviews by the policies that this server has seen."""

    def __init__(
        self,
        *,
        board: Board,
        metrics: Metrics,
        settings: RouterSettings | None,
        namespaces: Sequence[str],
        version: str,
    ) -> None:
        """`settings`: None where no image was named, and so nothing can be injected; `namespaces`: those
        whose policies are served, none for all.
        """
        self._board = board
        self._metrics = metrics
        self._settings = settings
        self._namespaces = frozenset(namespaces)
        self._version = version

    async def review(self, body: bytes) -> dict[str, Any]:
        """Answer an AdmissionReview; raises Denied when it cannot be answered."""
        if self._settings is None:
            raise Denied(
                503, "NotConfigured", "this server has no image for routers; start it with --sidecar-image"
            )
        review = read(body)
        outcome = await self._outcome(review, self._settings)
        self._metrics.injections.labels(_word(outcome)).inc()
        if isinstance(outcome, Refused):
            log.info("no router: %s", outcome)
        return answer(review.uid, outcome)

    async def _outcome(self, review: Review, settings: RouterSettings) -> Injected | Left | Refused:
        if review.pod is None:
            return Left(reason="NotAPod")
        if self._namespaces and review.namespace not in self._namespaces:
            return Left(reason="NamespaceNotServed")
        key = review.namespace, injection.policy_of(review.pod)
        if injection.asks(review.pod) and key[1] and self._board.cluster.policy(key) is None:
            await self._board.wait(key, POLICY_WAIT_SECONDS)
        policy = self._board.cluster.policy(key)
        try:
            return injection.inject(
                review.pod,
                namespace=review.namespace,
                spec=policy.spec if policy is not None else None,
                settings=settings,
                version=self._version,
            )
        except Refused as refused:
            return refused


def _word(outcome: Injected | Left | Refused) -> str:
    if isinstance(outcome, Injected):
        return "injected"
    return "refused" if isinstance(outcome, Refused) else "left"
