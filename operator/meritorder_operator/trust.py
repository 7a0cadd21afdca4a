"""Keeps certificates where they are used: the authority and the servers' certificate as Secrets in the
operator's own namespace, what agents trust as ConfigMap `meritorder-ca` in each namespace that has a
policy, and the webhook's `caBundle`. Where others make the certificates, their `ca.crt` is handed on so.

Level-driven: looked at from time to time and written only where it differs. A namespace that cannot be
written is told once and tried again; nothing here ever holds up a decision.
"""

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from meritorder_api import names
from meritorder_operator.certificates import Authorities, Pair, is_good, make_server_cert, rotate
from meritorder_operator.cluster import Cluster, ClusterError, Refused

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
"""How soon a namespace that got its first policy has the ConfigMap."""
CHECK_SECONDS: Final = 600.0
"""How often everything is compared with what is there."""
RETRY_SECONDS: Final = 30.0
WEBHOOK_SECONDS: Final = 5.0
"""How often the webhook is looked at: it may come, or be made anew, at any time."""
AUTHORITY_SECRET: Final = "meritorder-ca"
LABELS: Final = {"app.kubernetes.io/managed-by": names.OPERATOR_FIELD_MANAGER}


class Trust:
    """Runs while this process leads."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        namespace: str,
        ca_secret: str | None,
        server_secret: str,
        server_names: tuple[str, ...],
        webhook: str | None,
        policy_namespaces: Callable[[], Iterable[str]],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._ca_secret = ca_secret
        self._server_secret = server_secret
        self._server_names = server_names or tuple(
            f"{names.ROUTER_SERVICE}.{namespace}{rest}" for rest in ("", ".svc", ".svc.cluster.local")
        )
        self._webhook = webhook
        self._policy_namespaces = policy_namespaces
        self._clock = clock
        self._wall = wall
        self._bundle = ""
        self._checked_at = float("-inf")
        self._webhook_at = float("-inf")
        self._done: dict[str, float] = {}
        """When each namespace is looked at again."""
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Look after everything for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Do what is due."""
        now = self._clock()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now - CHECK_SECONDS + RETRY_SECONDS
            if self._ca_secret is not None:
                # Nobody tells when others renew theirs, so this is looked at ever again.
                await self._tried(self._namespace, partial(self._given, self._ca_secret))
            elif await self._tried(self._namespace, self._own):
                self._checked_at = now
        if not self._bundle:
            return
        wanted = set(self._policy_namespaces())
        for namespace in [namespace for namespace in self._done if namespace not in wanted]:
            del self._done[namespace]
        for namespace in sorted(wanted):
            if now >= self._done.get(namespace, 0.0):
                done = await self._tried(namespace, partial(self._config_map, namespace))
                self._done[namespace] = now + (CHECK_SECONDS if done else RETRY_SECONDS)
        if self._webhook is not None and now >= self._webhook_at:
            self._webhook_at = now + WEBHOOK_SECONDS
            await self._tried(
                f"MutatingWebhookConfiguration `{self._webhook}`", partial(self._patch_webhook, self._webhook)
            )

    async def _tried(self, what: str, action: Callable[[], Any]) -> bool:
        try:
            await action()
        except ClusterError as error:
            if self._told.get(what) != str(error):
                log.warning("certificates for %s: %s", what, error)
            self._told[what] = str(error)
            return False
        self._told.pop(what, None)
        return True

    async def _own(self) -> None:
        """The authority and the servers' certificate."""
        now = self._wall()
        held = await self._secret(AUTHORITY_SECRET)
        before = Authorities.read(held[1])
        authorities = rotate(before, now)
        if authorities is not before:
            await self._put_secret(AUTHORITY_SECRET, "Opaque", authorities.data(), held[0])
            log.info("certificates: the authority has changed")
        served = await self._secret(self._server_secret)
        server = Pair(certificate=served[1].get("tls.crt", ""), key=served[1].get("tls.key", ""))
        good = is_good(server, authorities.current, self._server_names, now)
        if not good:
            server = make_server_cert(authorities.current, self._server_names, now)
        # Servers trust one another by this bundle, so it must have an authority before that signs.
        if not good or served[1].get("ca.crt") != authorities.bundle:
            data = {"tls.crt": server.certificate, "tls.key": server.key, "ca.crt": authorities.bundle}
            await self._put_secret(self._server_secret, "kubernetes.io/tls", data, served[0])
            log.info("certificates: the servers have %s", "a new bundle" if good else "a new one")
        self._hand_on(authorities.bundle)

    async def _given(self, name: str) -> None:
        """What others made: agents are told to trust that alone."""
        _, data = await self._secret(name)
        if not data.get("ca.crt"):
            raise Refused(404, f"Secret `{self._namespace}/{name}` has no `ca.crt` yet")
        self._hand_on(data["ca.crt"])

    def _hand_on(self, bundle: str) -> None:
        """Have everyone told whom to trust, where that is new."""
        if bundle != self._bundle:
            self._bundle = bundle
            self._done.clear()
            self._webhook_at = float("-inf")

    async def _secret(self, name: str) -> tuple[str | None, dict[str, str]]:
        """A Secret's resource version, and its data as text; nothing where there is none."""
        found = await self._cluster.find(f"/api/v1/namespaces/{self._namespace}/secrets/{name}")
        if found is None:
            return None, {}
        data: dict[str, str] = {}
        for key, text in (found.get("data") or {}).items():
            try:
                data[key] = base64.b64decode(text).decode()
            except (binascii.Error, UnicodeDecodeError):
                continue  # not ours; what is missing is made anew
        return found["metadata"]["resourceVersion"], data

    async def _put_secret(self, name: str, kind: str, data: Mapping[str, str], version: str | None) -> None:
        """Write a Secret that has this version, or create it; another's write in between is a Conflict."""
        collection = f"/api/v1/namespaces/{self._namespace}/secrets"
        metadata: dict[str, Any] = {"name": name, "namespace": self._namespace, "labels": LABELS}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "stringData": data}
        if version is None:
            await self._cluster.request("POST", collection, body)
            return
        metadata["resourceVersion"] = version
        encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
        body = {**body, "data": encoded}
        del body["stringData"]
        await self._cluster.request("PUT", f"{collection}/{name}", body)

    async def _config_map(self, namespace: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/configmaps/{names.CA_CONFIG_MAP}"
        wanted = {names.CA_CONFIG_MAP_KEY: self._bundle}
        found = await self._cluster.find(path)
        if found is not None and found.get("data") == wanted:
            return
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": names.CA_CONFIG_MAP, "namespace": namespace, "labels": LABELS},
            "data": wanted,
        }
        await self._cluster.apply(path, body)

    async def _patch_webhook(self, name: str) -> None:
        """Have the API server trust the servers that it asks; without that configuration it asks nobody."""
        path = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}"
        found = await self._cluster.find(path)
        if found is None:
            return
        bundle = base64.b64encode(self._bundle.encode()).decode()
        steps: list[dict[str, Any]] = []
        for index, webhook in enumerate(found.get("webhooks") or ()):
            if webhook["clientConfig"].get("caBundle") != bundle:
                steps += [
                    {"op": "test", "path": f"/webhooks/{index}/name", "value": webhook["name"]},
                    {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": bundle},
                ]
        if steps:
            await self._cluster.request("PATCH", path, steps, content_type="application/json-patch+json")
            log.info("certificates: webhook configuration `%s` has them", name)
