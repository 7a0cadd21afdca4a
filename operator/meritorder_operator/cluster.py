"""The API server as the operator needs it: a few single requests in plain JSON. Watching is kopf's
(`handlers`).

lightkube finds the cluster and authenticates; rotated tokens are read again. Writes of a status bear the
resourceVersion and uid that they were decided on, so a stale one is refused. Nothing at all is written
unless this process may write at the very moment of sending.

Errors:
    LeaseLost: something was to be written, but another may lead now
    ClusterError
    ├── Unreachable: no answer, or 429 or 5xx: it may be well in a moment
    └── Refused: the API server said no; `status` is its HTTP status
        └── Conflict: the object is newer than what was decided on, or there already
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError

from meritorder_api import names
from meritorder_operator.connection import Answer, Connection, ConnectionFailed

Manifest = dict[str, Any]

APPLY: Final = "application/apply-patch+yaml"
PAGE: Final = 200
"""Objects that are listed at a time."""
AT_ONCE: Final = 8
"""Requests under way at a time: hundreds of policies that change at once must not crowd the API server."""
POLICIES: Final = f"/apis/{names.GROUP}/{names.VERSION}"


class LeaseLost(Exception):
    """Another may lead now; nothing may be written any more."""


class ClusterError(Exception):
    """The API server gave no good answer; the text is one sentence."""


class Unreachable(ClusterError):
    """No answer, or one that says that it may be well in a moment."""


class Refused(ClusterError):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Conflict(Refused):
    """The object is not what the request was made for."""


class Cluster:
    """One API server."""

    def __init__(
        self,
        config: SingleConfig,
        *,
        may_write: Callable[[], bool] = lambda: True,
        timeout_seconds: float = 10.0,
    ) -> None:
        self.config = config
        self._may_write = may_write
        self._connection = Connection(config, timeout_seconds=timeout_seconds)
        self._slots = asyncio.Semaphore(AT_ONCE)

    @classmethod
    def connect(cls, kubeconfig: Path | None, *, may_write: Callable[[], bool] = lambda: True) -> Self:
        """Find the cluster: by this kubeconfig, else in the pod or where kubectl looks."""
        config = KubeConfig.from_file(kubeconfig) if kubeconfig is not None else KubeConfig.from_env()
        chosen = config.get()
        if chosen is None:
            raise ConfigError("no cluster is configured")
        return cls(chosen, may_write=may_write)

    @property
    def namespace(self) -> str:
        """The namespace that the process runs in, or that the kubeconfig names."""
        return self.config.namespace or "default"

    async def close(self) -> None:
        """End all connections."""
        await self._connection.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_seconds: float | None = None,
    ) -> Manifest:
        """Ask for something and return the answer's JSON."""
        try:
            async with self._slots:
                if method != "GET" and not self._may_write():
                    raise LeaseLost("the lease ran out before something was written; another may lead now")
                answer = await self._connection.request(
                    method,
                    path,
                    params=params or {},
                    body=json.dumps(body).encode() if body is not None else None,
                    headers={"Content-Type": content_type} if body is not None else {},
                    timeout_seconds=timeout_seconds,
                )
        except ConnectionFailed as error:
            raise Unreachable(f"{method} {path}: {error}") from error
        if answer.status >= 300:
            raise _refusal(method, path, answer)
        try:
            said: Manifest = json.loads(answer.body)
        except ValueError as error:
            raise Unreachable(f"{method} {path}: the answer is not JSON") from error
        return said

    async def apply(self, path: str, body: Mapping[str, Any]) -> Manifest:
        """Apply our fields on the server's side, taking them over from whoever else has them."""
        params = {"fieldManager": names.OPERATOR_FIELD_MANAGER, "force": "true"}
        return await self.request("PATCH", path, body, params=params, content_type=APPLY)

    async def find(self, path: str) -> Manifest | None:
        """The object there, None where there is none."""
        try:
            return await self.request("GET", path)
        except Refused as error:
            if error.status != 404:
                raise
            return None

    async def list_all(self, path: str, *, selector: str = "") -> list[Manifest]:
        """All objects under a collection's path, or those with these labels, page by page."""
        params = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        found: list[Manifest] = []
        while True:
            page = await self.request("GET", path, params=params)
            found += page.get("items") or ()
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                return found
            params["continue"] = following

    async def policy(self, namespace: str, name: str) -> Manifest:
        """The policy as it is now."""
        return await self.request("GET", f"{POLICIES}/namespaces/{namespace}/{names.PLURAL}/{name}")

    async def policies(self, namespaces: tuple[str, ...]) -> list[Manifest]:
        """All policies of these namespaces, or of all."""
        found: list[Manifest] = []
        kinds = {"apiVersion": names.API_VERSION, "kind": names.KIND}
        for namespace in namespaces or ("",):
            place = f"/namespaces/{namespace}" if namespace else ""
            found += [kinds | item for item in await self.list_all(f"{POLICIES}{place}/{names.PLURAL}")]
        return found

    async def apply_status(self, manifest: Mapping[str, Any], status: Mapping[str, Any]) -> Manifest:
        """Write the operator's fields of a status onto exactly this version; Conflict if there is a newer
        one.
        """
        metadata = manifest["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "status": status,
        }
        return await self.apply(f"{POLICIES}/namespaces/{namespace}/{names.PLURAL}/{name}/status", body)

    async def secret(self, namespace: str, name: str) -> dict[str, str]:
        """The data of a Secret, still in base64."""
        answer = await self.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        return dict(answer.get("data") or {})

    async def create_event(self, namespace: str, event: Mapping[str, Any]) -> None:
        """Tell people of something."""
        await self.request("POST", f"/api/v1/namespaces/{namespace}/events", event)


def _refusal(method: str, path: str, answer: Answer) -> ClusterError:
    try:
        message = str(json.loads(answer.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {answer.status}"
    sentence = f"{method} {path}: {message}"
    if answer.status == 409:
        return Conflict(409, sentence)
    if answer.status == 429 or answer.status >= 500:
        return Unreachable(sentence)
    return Refused(answer.status, sentence)
