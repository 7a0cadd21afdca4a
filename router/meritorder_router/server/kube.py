"""The Kubernetes API as the server needs it: lists, watches, and a few single requests, in plain JSON.

lightkube finds the cluster and authenticates (in the pod, or by a kubeconfig; rotated tokens are read
again). Its own watch is not used: it asks for no bookmarks, and it splits lines at any Unicode line end, so
that one U+0085 in anybody's annotation would break the stream for all.

Errors:
    KubeError
    ├── Unreachable: no answer, or 429 or 5xx: it may be well in a moment
    └── Refused: the API server said no; `status` is its HTTP status
"""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import httpx2
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError

Manifest = dict[str, Any]

PAGE: Final = 500
APPLY: Final = "application/apply-patch+yaml"


class KubeError(Exception):
    """The API server gave no good answer; the text is one sentence."""


class Unreachable(KubeError):
    """No answer, or one that says that it may be well in a moment."""


class Refused(KubeError):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Kube:
    """One API server."""

    def __init__(self, config: SingleConfig, *, timeout_seconds: float = 10.0) -> None:
        self._client = AsyncClient(config, ConnectionParams(timeout=httpx2.Timeout(timeout_seconds)))
        self._stream_timeout = httpx2.Timeout(timeout_seconds, read=None)
        self.namespace = config.namespace

    @classmethod
    def connect(cls, kubeconfig: Path | None) -> Self:
        """Find the cluster: by this kubeconfig, else in the pod or where kubectl looks."""
        config = KubeConfig.from_file(kubeconfig) if kubeconfig is not None else KubeConfig.from_env()
        found = config.get()
        if found is None:
            raise ConfigError("the kubeconfig has no current context")
        return cls(found)

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    async def list_all(self, path: str, *, selector: str = "") -> tuple[list[Manifest], str]:
        """All objects under a collection's path, or those with these labels, and the resource version to
        watch from.
        """
        items: list[Manifest] = []
        params = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self.request("GET", path, params=params)
            items += page.get("items") or []
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return items, metadata["resourceVersion"]
            params["continue"] = metadata["continue"]

    async def watch(
        self, path: str, version: str, *, seconds: int, selector: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """What happens after a resource version, for so long; first ("OPENED", {}) once the stream stands."""
        params = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            **({"labelSelector": selector} if selector else {}),
        }
        request = self._client.build_request("GET", path, params=params, timeout=self._stream_timeout)
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise _error(response)
                yield "OPENED", {}
                rest = b""
                async for chunk in response.aiter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        yield event["type"], event["object"]
            finally:
                await response.aclose()
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise Unreachable(f"watch of {path}: {_say(error)}") from error

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout_seconds: float | None = None,
    ) -> Manifest:
        """Ask for something and return the answer's JSON."""
        try:
            response = await self._client.request(
                method,
                path,
                params=dict(params or {}),
                content=json.dumps(body).encode() if body is not None else None,
                headers={"Content-Type": content_type} if body is not None else {},
                timeout=httpx2.USE_CLIENT_DEFAULT if timeout_seconds is None else timeout_seconds,
            )
        except httpx2.HTTPError as error:
            raise Unreachable(f"{method} {path}: {_say(error)}") from error
        if response.is_error:
            raise _error(response)
        answer: Manifest = response.json()
        return answer

    async def apply(self, path: str, body: Mapping[str, Any], manager: str) -> Manifest:
        """Apply the manager's fields on the server's side, taking them over from whoever else has them."""
        params = {"fieldManager": manager, "force": "true"}
        return await self.request("PATCH", path, body, params=params, content_type=APPLY)


def _error(response: httpx2.Response) -> KubeError:
    try:
        message = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {response.status_code}"
    sentence = f"{response.request.method} {response.request.url.path}: {message}"
    if response.status_code == 429 or response.status_code >= 500:
        return Unreachable(sentence)
    return Refused(response.status_code, sentence)


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__
