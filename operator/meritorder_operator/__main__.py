"""`meritorder-operator`: reads flags and environment, and runs the process."""

import asyncio
import gc
import json
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
import uvloop

from meritorder_api.container import GATEWAY_RESOURCES, USER, RouterSettings, read_resources, read_user
from meritorder_api.version import own_version
from meritorder_operator import logs
from meritorder_operator.prometheus.client import Server
from meritorder_operator.settings import Settings

Decorator = Callable[[Callable[..., None]], Callable[..., None]]

GC_OBJECTS: Final = 50_000


def _option(name: str, **more: Any) -> Decorator:
    variable = "MERITORDER_" + name.partition("/")[0].removeprefix("--").upper().replace("-", "_")
    return click.option(name, envvar=variable, show_envvar=True, **{"show_default": True, **more})


def _many(name: str, **more: Any) -> Decorator:
    return _option(name, multiple=True, callback=_split, **more)


def _split(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Take commas and spaces too, so that one environment variable can hold several."""
    return tuple(part for value in values for part in value.replace(",", " ").split())


def _url(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise click.BadParameter(f"`{value}` must be an http or https URL without credentials in it")
    return value


def _read(how: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], Any]:
    def read(_: click.Context, __: click.Parameter, value: str) -> Any:
        try:
            return how(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


@click.command(context_settings={"max_content_width": 110})
@click.version_option(
    own_version(), prog_name="meritorder-operator", message="%(prog)s %(version)s", help="Print the version."
)
@_many("--namespace", help="Serve policies of this namespace only; may be given again. Default: all.")
@_option(
    "--prometheus-url", callback=_url, help="Prometheus that policies are measured by unless they name one."
)
@_option(
    "--prometheus-token-file",
    type=click.Path(path_type=Path),
    help="Bearer token for it; read anew each time.",
)
@_option("--prometheus-username", help="User for it (basic authentication).")
@_option("--prometheus-password-file", type=click.Path(path_type=Path), help="That user's password.")
@_option(
    "--prometheus-ca-file",
    type=click.Path(path_type=Path),
    help="CA certificates to trust instead of the system's.",
)
@_many(
    "--allowed-metrics-url",
    help="URL prefix (the host may begin with `*.`) that a `metricsSource` may name. Default: none.",
)
@_many(
    "--secret-namespace",
    help="Namespace whose policies may name Secrets for their `metricsSource`. Default: none.",
)
@_many(
    "--allowed-backend-host",
    help="Loopback, link-local or in-cluster host that `backend.hosts` may name. Default: none.",
)
@_option("--lease-namespace", help="Namespace of the Lease. Default: where the process runs.")
@_option("--identity", default=socket.gethostname, show_default="the host's name", help="Name on the Lease.")
@_option("--certificates/--no-certificates", default=True, help="Make the router servers' certificates.")
@_option(
    "--ca-secret",
    help="With --no-certificates: Secret, in the Lease's namespace, whose `ca.crt` agents are to trust.",
)
@_option(
    "--server-secret", default="meritorder-router-tls", help="Secret for them, in the Lease's namespace."
)
@_many("--server-name", help="Name in them. Default: those of Service `meritorder-router`.")
@_option("--webhook", help="MutatingWebhookConfiguration whose `caBundle` is kept, if it is there.")
@_option("--gateway-image", help="Image of the routers of gateways. Without it, no policy can have one.")
@_option(
    "--gateway-image-pull-policy",
    type=click.Choice(["Always", "IfNotPresent", "Never"]),
    help="When it is pulled. Default: as Kubernetes chooses by its tag.",
)
@_many(
    "--gateway-server-url",
    help="Where they find router servers. Default: https://meritorder-router.NAMESPACE.svc.",
)
@_option(
    "--gateway-resources",
    callback=_read(read_resources),
    default=json.dumps(GATEWAY_RESOURCES),
    help="Their resources, as JSON.",
)
@_option(
    "--gateway-user",
    callback=_read(read_user),
    default=str(USER),
    help="User and group that they run as; `none` leaves it to the image and the cluster.",
)
@_option(
    "--gateway-log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Least level that they log.",
)
@_option(
    "--kubeconfig", type=click.Path(path_type=Path, exists=True), help="Default: in the pod, or as kubectl."
)
@_option("--health-host", default="0.0.0.0", help="Address to serve health and metrics on.")
@_option("--health-port", type=click.IntRange(1, 65535), default=8080, help="Port of /healthz and /readyz.")
@_option(
    "--metrics-port", type=click.IntRange(1, 65535), default=9090, help="Port of /metrics; may be the same."
)
@_option(
    "--log-format",
    type=click.Choice(["auto", "json", "pretty"]),
    default="auto",
    help="auto: pretty on a terminal.",
)
@_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Least level shown.",
)
def main(
    namespace: tuple[str, ...],
    prometheus_url: str | None,
    prometheus_token_file: Path | None,
    prometheus_username: str | None,
    prometheus_password_file: Path | None,
    prometheus_ca_file: Path | None,
    allowed_metrics_url: tuple[str, ...],
    secret_namespace: tuple[str, ...],
    allowed_backend_host: tuple[str, ...],
    lease_namespace: str | None,
    identity: str,
    certificates: bool,
    ca_secret: str | None,
    server_secret: str,
    server_name: tuple[str, ...],
    webhook: str | None,
    gateway_image: str | None,
    gateway_image_pull_policy: str | None,
    gateway_server_url: tuple[str, ...],
    gateway_resources: Mapping[str, Any],
    gateway_user: int | None,
    gateway_log_level: str,
    kubeconfig: Path | None,
    health_host: str,
    health_port: int,
    metrics_port: int,
    log_format: str,
    log_level: str,
) -> None:
    """Keep each InferencePolicy's traffic on the cheapest pool that meets its SLA.

    Watches policies, reads Prometheus, decides, and writes each policy's status. Several may run; one acts.
    """
    if certificates and ca_secret is not None:
        raise click.UsageError("`--ca-secret` is for certificates that others make; add `--no-certificates`")
    logs.configure(log_format, log_level)
    server = None
    if prometheus_url is not None:
        server = Server(
            url=prometheus_url,
            token_file=prometheus_token_file,
            username=prometheus_username,
            password=_content(prometheus_password_file),
            ca=_content(prometheus_ca_file),
        )
    settings = Settings(
        namespaces=namespace,
        prometheus=server,
        allowed_metrics_urls=allowed_metrics_url,
        secret_namespaces=secret_namespace,
        allowed_backend_hosts=allowed_backend_host,
        lease_namespace=lease_namespace,
        identity=identity,
        certificates=certificates,
        ca_secret=ca_secret,
        server_secret=server_secret,
        server_names=server_name,
        webhook=webhook,
        gateway=RouterSettings(
            image=gateway_image,
            pull_policy=gateway_image_pull_policy,
            server_urls=gateway_server_url,
            resources=gateway_resources,
            user=gateway_user,
            log_level=gateway_log_level,
        )
        if gateway_image
        else None,
        kubeconfig=kubeconfig,
        health_host=health_host,
        health_port=health_port,
        metrics_port=metrics_port,
        log_format=log_format,
        log_level=log_level,
    )
    # Answers of thousands of series come and go at once, without cycles: looking for some each 700 objects
    # would cost a tenth of all that the process does.
    gc.set_threshold(GC_OBJECTS, 20, 20)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_run(settings)))


async def _run(settings: Settings) -> int:
    from lightkube.core.exceptions import ConfigError

    from meritorder_operator.process import Operator

    try:
        operator = Operator(settings)
    except (ConfigError, OSError) as error:
        raise click.ClickException(
            f"no way to the API server is known: {error}; give --kubeconfig"
        ) from error
    try:
        return await operator.run()
    except OSError as error:
        raise click.ClickException(
            f"cannot serve on {settings.health_host}, ports {settings.health_port} and "
            f"{settings.metrics_port}: {error.strerror or error}"
        ) from error


def _content(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise click.ClickException(f"`{path}` cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    main()
