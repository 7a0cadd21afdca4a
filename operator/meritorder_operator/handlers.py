"""The only module that knows kopf: it watches policies and hands each object on, and does nothing else.

No finalizer, no annotation, no progress, no events, no peering: `on.event` alone never touches an object,
so policies delete at once whether or not an operator is there.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import kopf
from kopf._core.engines.peering import Identity
from lightkube.config.kubeconfig import SingleConfig

from meritorder_api import names
from meritorder_operator.view import Manifest

log = logging.getLogger(__name__)

LOGIN_SECONDS: Final = 600
"""Credentials are read anew this often: tokens in pods rotate."""
WATCH_SECONDS: Final = 600
IDENTITY: Final = Identity(names.OPERATOR_FIELD_MANAGER)
"""What kopf calls itself; nobody is told."""

Saw = Callable[[str | None, Manifest], None]


class _NoDiff(kopf.DiffBaseStorage):
    """Nothing is compared: kopf would copy each object deeply, at each of its events, for handlers that are
    not there.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Handlers that only listen make no progress, so there is none to keep."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


async def watch(
    config: SingleConfig,
    namespaces: tuple[str, ...],
    saw: Saw,
    ready: asyncio.Event,
    keep_signals: Callable[[], None],
) -> None:
    """Watch policies until cancelled; an error that kopf cannot get over is raised.

    kopf takes SIGTERM and SIGINT for itself; `keep_signals` takes them back.
    """
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 60
    settings.networking.error_backoffs = (1, 1, 2, 3, 5)
    settings.persistence.diffbase_storage = _NoDiff()
    settings.persistence.progress_storage = _NoProgress()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(config)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def on_policy(event: kopf.RawEvent, **_: Any) -> None:
        saw(event["type"], dict(event["object"]))

    flag = asyncio.Event()
    started = asyncio.create_task(_pass_on(flag, ready))
    try:
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            ready_flag=flag,
            stop_flag=asyncio.Event(),
            # Else kopf makes one of the user's name, and dies where that has none, as in a container.
            identity=IDENTITY,
        )
        keep_signals()
        await kopf.run_tasks(tasks, ignored=others)
    finally:
        started.cancel()


async def _pass_on(flag: asyncio.Event, ready: asyncio.Event) -> None:
    await flag.wait()
    ready.set()


def connection(config: SingleConfig) -> kopf.ConnectionInfo:
    """The way to the API server, as lightkube found it."""
    cluster, user = config.cluster, config.user
    token = None
    if user is not None:
        token = Path(user.token_file).read_text().strip() if user.token_file else user.token

    def path(name: str | None) -> str | None:
        return str(config.abs_file(name)) if name else None

    return kopf.ConnectionInfo(
        server=cluster.server,
        ca_path=None if cluster.certificate_auth_data else path(cluster.certificate_auth),
        ca_data=cluster.certificate_auth_data,
        insecure=cluster.insecure,
        username=user.username if user else None,
        password=user.password if user else None,
        scheme="Bearer" if token else None,
        token=token,
        certificate_path=None if user is None or user.client_cert_data else path(user.client_cert),
        certificate_data=user.client_cert_data if user else None,
        private_key_path=None if user is None or user.client_key_data else path(user.client_key),
        private_key_data=user.client_key_data if user else None,
        default_namespace=config.namespace,
        expiration=datetime.now(UTC) + timedelta(seconds=LOGIN_SECONDS),
    )
