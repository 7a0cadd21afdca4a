"""The process `meritorder-router serve`: its options, its parts put together, its start and its end."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import click
import uvloop
from aiohttp import web
from lightkube.core.exceptions import ConfigError

from meritorder_api.names import (
    DEFAULT_METRICS_PORT,
    DEFAULT_SERVER_PORT,
    GROUP,
    PLURAL,
    ROUTER_LEASE,
    VERSION,
)
from meritorder_api.version import own_version
from meritorder_router.server import logs, sidecar
from meritorder_router.server.admission import Injector
from meritorder_router.server.auth import LONGEST_TOKEN, Authenticator, claims
from meritorder_router.server.board import Board
from meritorder_router.server.certificates import Certificate
from meritorder_router.server.health import Health
from meritorder_router.server.http import Handlers
from meritorder_router.server.kube import Kube, KubeError, Manifest, Refused
from meritorder_router.server.lease import Lease
from meritorder_router.server.metrics import Metrics, state
from meritorder_router.server.peers import Peers, service_urls
from meritorder_router.server.programmed import Writer
from meritorder_router.server.uninjected import SELECTOR, Uninjected
from meritorder_router.server.watch import Watch

log = logging.getLogger(__name__)

PATROL_SECONDS: Final = 2.0
LOOK_AGAIN_SECONDS: Final = 10.0
END_SECONDS: Final = 5.0
_ACCOUNT: Final = "system:serviceaccount:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options say."""

    listen: tuple[str, int]
    metrics_listen: tuple[str, int]
    tls_cert: Path | None
    tls_key: Path | None
    kubeconfig: Path | None
    namespaces: tuple[str, ...]
    own_namespace: str | None
    name: str
    own_address: str
    peer_service: str | None
    peers: tuple[str, ...]
    peer_ca: Path | None
    peer_server_name: str | None
    peer_accounts: tuple[str, ...]
    token_file: Path | None
    allowed_hosts: tuple[str, ...]
    sidecar: Mapping[str, Any]
    """The options of `meritorder_router.server.sidecar`."""


async def run(settings: Settings, *, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the address once tables are served on it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    kube = Kube.connect(settings.kubeconfig)
    try:
        await _serve(settings, kube, stop, ready)
    finally:
        await kube.close()


async def _serve(settings: Settings, kube: Kube, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    now = time.monotonic
    metrics = Metrics()
    health: Health  # the board counts time by it, and it watches for the board
    board = Board(clock=lambda: health.clock, now=now, allowed_hosts=settings.allowed_hosts)
    namespace = settings.own_namespace or kube.namespace or "default"
    watches = _watches(settings, kube, board, namespace)
    health = Health(kube, watches, now=now)
    health.on_change = board.wake_all
    auth = Authenticator(
        kube, peers=_peer_accounts(settings), away=lambda: health.away, now=now, wall=time.time
    )
    lease = Lease(kube, namespace, ROUTER_LEASE, settings.name, now=now, wall=time.time)
    writer = Writer(
        kube,
        board,
        may_write=lambda: lease.held and health.known,
        now=now,
        count=lambda outcome: metrics.writes.labels(outcome).inc(),
    )
    peers = Peers(
        board.register,
        server=settings.name,
        urls=partial(_peer_urls, settings, board, namespace),
        token_file=settings.token_file,
        ca_file=settings.peer_ca,
        server_name=settings.peer_server_name
        or (f"{settings.peer_service}.{namespace}.svc" if settings.peer_service else None),
        metrics=metrics,
    )
    injector = Injector(
        board=board,
        metrics=metrics,
        settings=sidecar.settings_of(settings.sidecar, namespace),
        namespaces=settings.namespaces,
        version=own_version(),
    )
    uninjected = Uninjected(kube, server=settings.name, may_tell=lambda: lease.held, now=now, wall=time.time)
    # Not among those that tables depend on: without it, only news is missing.
    pods = _watch_each(
        kube, settings, "/api/v1", "pods", uninjected.replace, uninjected.change, selector=SELECTOR
    )
    metrics.leader.set_function(lambda: int(lease.held))
    metrics.state(
        lambda: state(
            live=sum(not board.register.silent(known) for known in board.register.all()),
            silent=sum(board.register.silent(known) for known in board.register.all()),
            waiting=board.waiting,
            policies=len(board.cluster.policies()),
            known=health.known,
            uninjected=uninjected.by_namespace(),
        )
    )
    handlers = Handlers(
        board=board,
        health=health,
        auth=auth,
        metrics=metrics,
        injector=injector,
        server=settings.name,
        now=now,
    )
    probes = await _listen(handlers.probes(), settings.metrics_listen)
    work: list[Awaitable[None]] = [
        *(watch.run() for watch in (*watches, *pods)),
        health.ask(),
        health.tick(),
        board.rounds(),
        lease.run(),
        writer.run(),
        peers.run(),
        uninjected.run(),
        _patrol(kube, board),
    ]
    certificate = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        certificate = Certificate(settings.tls_cert, settings.tls_key)
        work.append(certificate.renew())
    tasks = [asyncio.ensure_future(part) for part in work]
    stopping = asyncio.create_task(stop.wait())
    runners: list[web.AppRunner] = [probes]
    try:
        if certificate is not None:
            first = asyncio.create_task(certificate.first())
            await asyncio.wait([first, stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            first.cancel()
        if not stop.is_set():
            tables = await _listen(handlers.app(), settings.listen, certificate)
            runners.insert(0, tables)
            health.serving = True
            scheme = "https" if certificate is not None else "http"
            host, port = tables.addresses[0][:2]
            log.info("serving on %s://%s:%d as %s", scheme, host, port, settings.name)
            ready(f"{scheme}://{host}:{port}")
            await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        log.info("going down")
        health.stopping = True
        for runner in runners:
            for site in list(runner.sites):
                await site.stop()
        board.wake_all()
        await lease.release()
        for runner in runners:
            await runner.cleanup()
        for task in (*tasks, stopping):
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome


Replace = Callable[[list[Manifest], str | None], None]
Change = Callable[[str, Manifest], None]


def _watches(settings: Settings, kube: Kube, board: Board, own: str) -> list[Watch]:
    cluster = board.cluster
    also = (own,) if settings.peer_service else ()
    slices = cluster.replace_slices, cluster.change_slice
    return [
        *_watch_each(
            kube,
            settings,
            f"/apis/{GROUP}/{VERSION}",
            PLURAL,
            cluster.replace_policies,
            cluster.change_policy,
        ),
        *_watch_each(kube, settings, "/api/v1", "services", cluster.replace_services, cluster.change_service),
        *_watch_each(kube, settings, "/apis/discovery.k8s.io/v1", "endpointslices", *slices, also=also),
    ]


def _watch_each(
    kube: Kube,
    settings: Settings,
    base: str,
    plural: str,
    replace: Replace,
    change: Change,
    *,
    also: Sequence[str] = (),
    selector: str = "",
) -> list[Watch]:
    """Watch one kind of object everywhere, or in each namespace that is served and `also` in these."""
    places: Sequence[str | None] = [*dict.fromkeys((*settings.namespaces, *also))]
    if not settings.namespaces:
        places = [None]
    return [
        Watch(
            kube,
            f"{base}/{plural}" if place is None else f"{base}/namespaces/{place}/{plural}",
            replace=partial(_replace, replace, place),
            change=change,
            now=time.monotonic,
            selector=selector,
        )
        for place in places
    ]


def _replace(replace: Replace, place: str | None, manifests: list[Manifest]) -> None:
    replace(manifests, place)


async def _patrol(kube: Kube, board: Board) -> None:
    """Forget silent agents whose pods are gone."""
    while True:
        await asyncio.sleep(PATROL_SECONDS)
        for known in board.register.to_look_for(LOOK_AGAIN_SECONDS):
            who = known.identity
            try:
                pod = await kube.request("GET", f"/api/v1/namespaces/{who.namespace}/pods/{who.pod}")
            except Refused as error:
                gone = error.status == 404
            except KubeError:
                continue
            else:
                ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
                gone = pod["metadata"]["uid"] != who.uid or ended
            if gone:
                log.info("agent %s/%s is gone with its pod", who.namespace, who.pod)
                board.register.forget(who.uid)
            else:
                log.warning("agent %s/%s is silent; it keeps serving what it has", who.namespace, who.pod)


def _peer_accounts(settings: Settings) -> set[str]:
    accounts = set(settings.peer_accounts)
    if not accounts and settings.token_file is not None and settings.token_file.exists():
        subject = str(claims(settings.token_file.read_text().strip()).get("sub", ""))
        if subject.startswith(_ACCOUNT):
            accounts.add(subject.removeprefix(_ACCOUNT))
    return accounts


def _peer_urls(settings: Settings, board: Board, namespace: str) -> list[str]:
    urls = list(settings.peers)
    if settings.peer_service is not None:
        urls += service_urls(
            board.cluster,
            namespace=namespace,
            service=settings.peer_service,
            own_address=settings.own_address,
            scheme="https" if settings.tls_cert is not None else "http",
        )
    return urls


async def _listen(
    app: web.Application, where: tuple[str, int], certificate: Certificate | None = None
) -> web.AppRunner:
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=END_SECONDS, max_field_size=2 * LONGEST_TOKEN
    )
    await runner.setup()
    context = certificate.context if certificate is not None else None
    try:
        await web.TCPSite(runner, *where, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        host, port = where
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return runner


def _address(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"`{option}` is `{text}`; it must be HOST:PORT, such as 0.0.0.0:8443")
    return host.strip("[]") or "0.0.0.0", int(port)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("serve", context_settings={"show_default": True})
@click.option(
    "--listen",
    default=f"0.0.0.0:{DEFAULT_SERVER_PORT}",
    metavar="HOST:PORT",
    envvar="MERITORDER_LISTEN",
    show_envvar=True,
    help="Where agents and other servers are served.",
)
@click.option(
    "--metrics-listen",
    default=f"0.0.0.0:{DEFAULT_METRICS_PORT}",
    metavar="HOST:PORT",
    envvar="MERITORDER_METRICS_LISTEN",
    show_envvar=True,
    help="Where /metrics, /healthz and /readyz are served, in plain HTTP.",
)
@click.option(
    "--tls-cert",
    type=_FILE,
    envvar="MERITORDER_TLS_CERT",
    show_envvar=True,
    help="Certificate (PEM); read again when it changes. Without it: plain HTTP, on loopback only.",
)
@click.option("--tls-key", type=_FILE, envvar="MERITORDER_TLS_KEY", show_envvar=True, help="Its key (PEM).")
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    envvar="MERITORDER_KUBECONFIG",
    show_envvar=True,
    help="Kubeconfig. Default: the pod's own access, else where kubectl looks.",
)
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    envvar="MERITORDER_NAMESPACES",
    show_envvar=True,
    help="Serve the policies of this namespace only (repeatable; separated by spaces in the variable). "
    "Default: all.",
)
@click.option(
    "--own-namespace",
    envvar=["MERITORDER_OWN_NAMESPACE", "POD_NAMESPACE"],
    show_envvar=True,
    help="Namespace of the Lease and of the servers' own Service. Default: the kubeconfig's.",
)
@click.option(
    "--name",
    envvar=["MERITORDER_NAME", "POD_NAME"],
    show_envvar=True,
    help="This server's own name, unlike any other server's. Default: host name and process number.",
)
@click.option(
    "--own-address",
    default="",
    envvar=["MERITORDER_OWN_ADDRESS", "POD_IP"],
    show_envvar=True,
    help="This server's address, left out when reports are passed on to the others.",
)
@click.option(
    "--peer-service",
    envvar="MERITORDER_PEER_SERVICE",
    show_envvar=True,
    help="The servers' own headless Service: whose endpoints agents' reports are passed on to.",
)
@click.option(
    "--peers",
    multiple=True,
    metavar="URL",
    envvar="MERITORDER_PEERS",
    show_envvar=True,
    help="URL of another server (repeatable), beside or instead of the Service.",
)
@click.option(
    "--peer-ca",
    type=_FILE,
    envvar="MERITORDER_PEER_CA",
    show_envvar=True,
    help="CA certificates (PEM) by which other servers are verified; read again when it changes.",
)
@click.option(
    "--peer-server-name",
    envvar="MERITORDER_PEER_SERVER_NAME",
    show_envvar=True,
    help="Name in the other servers' certificates. Default: SERVICE.NAMESPACE.svc of --peer-service.",
)
@click.option(
    "--peer-account",
    "peer_accounts",
    multiple=True,
    metavar="NAMESPACE:NAME",
    envvar="MERITORDER_PEER_ACCOUNTS",
    show_envvar=True,
    help="Service account that servers run under (repeatable). Default: this server's own, by --token-file.",
)
@click.option(
    "--token-file",
    type=_FILE,
    envvar="MERITORDER_TOKEN_FILE",
    show_envvar=True,
    help="This server's own service account token of audience `meritorder`, shown to other servers.",
)
@click.option(
    "--allowed-backend-host",
    "allowed_hosts",
    multiple=True,
    metavar="PATTERN",
    envvar="MERITORDER_ALLOWED_BACKEND_HOSTS",
    show_envvar=True,
    help="Host of a policy's `hosts` that is allowed although it is loopback, link-local or a Service "
    "(repeatable; * matches anything).",
)
@sidecar.options
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "pretty"]),
    default="auto",
    envvar="MERITORDER_LOG_FORMAT",
    show_envvar=True,
    help="auto: pretty on a terminal, else JSON.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="MERITORDER_LOG_LEVEL",
    show_envvar=True,
    help="Least level that is logged.",
)
def serve_command(
    listen: str,
    metrics_listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    kubeconfig: Path | None,
    namespaces: Sequence[str],
    own_namespace: str | None,
    name: str | None,
    own_address: str,
    peer_service: str | None,
    peers: Sequence[str],
    peer_ca: Path | None,
    peer_server_name: str | None,
    peer_accounts: Sequence[str],
    token_file: Path | None,
    allowed_hosts: Sequence[str],
    log_format: str,
    log_level: str,
    **sidecar_options: Any,
) -> None:
    """Hand out routing tables to agents, and tell in each policy's status what they applied."""
    where = _address(listen, "--listen")
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("`--tls-cert` and `--tls-key` must be given together")
    if tls_cert is None and not _loopback(where[0]):
        raise click.UsageError(
            f"`--listen` is {listen} without `--tls-cert`; plain HTTP is served on loopback only, "
            f"such as 127.0.0.1:{DEFAULT_SERVER_PORT}"
        )
    for account in peer_accounts:
        if account.count(":") != 1:
            raise click.UsageError(f"`--peer-account` is `{account}`; it must be NAMESPACE:NAME")
    logs.set_up(cast(logs.Format, log_format), log_level)
    settings = Settings(
        listen=where,
        metrics_listen=_address(metrics_listen, "--metrics-listen"),
        tls_cert=tls_cert,
        tls_key=tls_key,
        kubeconfig=kubeconfig,
        namespaces=tuple(namespaces),
        own_namespace=own_namespace,
        name=name or f"{socket.gethostname()}-{os.getpid()}",
        own_address=own_address,
        peer_service=peer_service,
        peers=tuple(url.rstrip("/") for url in peers),
        peer_ca=peer_ca,
        peer_server_name=peer_server_name,
        peer_accounts=tuple(peer_accounts),
        token_file=token_file,
        allowed_hosts=tuple(allowed_hosts),
        sidecar=sidecar_options,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except ConfigError as error:
        raise click.ClickException(f"no access to a cluster: {error}") from error
