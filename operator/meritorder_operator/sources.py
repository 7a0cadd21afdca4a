"""Which Prometheus a policy's metrics are read from, and with which credentials.

The operator's own credentials go to its own URL only; what a policy names itself is read from the policy's
own namespace.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass

from meritorder_api import reasons
from meritorder_api.policy import InferencePolicySpec, PrometheusServer
from meritorder_core.inputs import Missing
from meritorder_operator.cluster import Cluster, ClusterError
from meritorder_operator.prometheus.client import Server
from meritorder_operator.rules import same_url
from meritorder_operator.settings import Settings

SECRET_SECONDS = 60.0
"""Secrets are read anew this often."""
ABSENT_SECONDS = 10.0
"""And those that could not be read."""


@dataclass(slots=True)
class _Kept:
    data: dict[str, str] | Missing
    at: float


class Sources:
    """Finds servers; keeps Secrets for a minute."""

    def __init__(self, cluster: Cluster, settings: Settings, *, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._secrets: dict[tuple[str, str], _Kept] = {}

    async def server(self, namespace: str, spec: InferencePolicySpec) -> Server | Missing:
        """The server of a policy whose `metricsSource` is allowed."""
        default = self._settings.prometheus
        if spec.metrics_source is None:
            return default or Missing(
                reason=reasons.Missing.UNREACHABLE,
                message="no Prometheus is configured; set `metricsSource` or the operator's --prometheus-url",
            )
        named = spec.metrics_source.prometheus
        is_bare = named.auth_secret_ref is None and named.ca_secret_ref is None
        if is_bare and default is not None and same_url(named.url, default.url):
            return default
        return await self._named(namespace, named)

    async def _named(self, namespace: str, named: PrometheusServer) -> Server | Missing:
        token = username = password = ca = None
        if named.auth_secret_ref is not None:
            data = await self._secret(namespace, named.auth_secret_ref.name)
            if isinstance(data, Missing):
                return data
            token, username, password = (_decoded(data, key) for key in ("token", "username", "password"))
            if token is None and (username is None or password is None):
                return _unusable(
                    namespace, named.auth_secret_ref.name, "`token`, or `username` and `password`"
                )
        if named.ca_secret_ref is not None:
            data = await self._secret(namespace, named.ca_secret_ref.name)
            if isinstance(data, Missing):
                return data
            ca = _decoded(data, named.ca_secret_ref.key)
            if ca is None:
                return _unusable(namespace, named.ca_secret_ref.name, f"`{named.ca_secret_ref.key}`")
        return Server(
            url=named.url,
            token=token,
            username=None if token else username,
            password=None if token else password,
            ca=ca,
        )

    async def _secret(self, namespace: str, name: str) -> dict[str, str] | Missing:
        now = self._clock()
        kept = self._secrets.get((namespace, name))
        if kept is not None:
            age = now - kept.at
            if age < (ABSENT_SECONDS if isinstance(kept.data, Missing) else SECRET_SECONDS):
                return kept.data
        data: dict[str, str] | Missing
        try:
            data = await self._cluster.secret(namespace, name)
        except ClusterError as error:
            if kept is not None and not isinstance(kept.data, Missing):
                return kept.data
            data = Missing(
                reason=reasons.Missing.UNAUTHORIZED,
                message=f"Secret `{namespace}/{name}` cannot be read: {_short(error)}",
            )
        self._secrets[namespace, name] = _Kept(data, now)
        return data


def _short(error: ClusterError) -> str:
    return str(error).partition(": ")[2] or str(error)


def _decoded(data: dict[str, str], key: str) -> str | None:
    try:
        return base64.b64decode(data[key], validate=True).decode().strip()
    except (KeyError, binascii.Error, UnicodeDecodeError):
        return None


def _unusable(namespace: str, name: str, keys: str) -> Missing:
    return Missing(
        reason=reasons.Missing.UNAUTHORIZED,
        message=f"Secret `{namespace}/{name}` must have {keys}",
    )
