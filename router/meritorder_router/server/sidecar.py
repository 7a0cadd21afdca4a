"""How injected routers are run: options of `meritorder-router serve`."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from meritorder_api.container import (
    DEFAULT_RESOURCES,
    USER,
    RouterSettings,
    read_resources,
    read_user,
    servers_at,
)


class _Resources(click.ParamType[Mapping[str, Any]]):
    name = "JSON"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Mapping[str, Any]:
        """Read resources of a container."""
        try:
            return read_resources(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _User(click.ParamType[int | None]):
    name = "UID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Read a user's number."""
        try:
            return read_user(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _option(name: str, *, envvar: str = "", **more: Any) -> Callable[[Any], Any]:
    variable = envvar or "MERITORDER_" + name.removeprefix("--").upper().replace("-", "_")
    return click.option(name, envvar=variable, show_envvar=True, **more)


_OPTIONS: Final = (
    _option(
        "--sidecar-image", help="Image of the routers that are injected into pods. Without it, none are."
    ),
    _option(
        "--sidecar-image-pull-policy",
        type=click.Choice(["Always", "IfNotPresent", "Never"]),
        help="When it is pulled. Default: as Kubernetes chooses by its tag.",
    ),
    _option(
        "--sidecar-server-url",
        envvar="MERITORDER_SIDECAR_SERVER_URLS",
        multiple=True,
        metavar="URL",
        help=f"Where they find router servers (repeatable). Default: {servers_at('NAMESPACE')}.",
    ),
    _option(
        "--sidecar-resources",
        type=_Resources(),
        default=json.dumps(DEFAULT_RESOURCES),
        help="Their resources, as JSON.",
    ),
    _option(
        "--sidecar-user",
        type=_User(),
        default=str(USER),
        help="User and group that they run as; `none` leaves it to the image and the cluster.",
    ),
    _option(
        "--sidecar-log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        help="Least level that they log.",
    ),
)


def options(command: Any) -> Any:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(given: Mapping[str, Any], namespace: str) -> RouterSettings | None:
    """What the options say; None without an image. `namespace` is the servers' own."""
    image = given["sidecar_image"]
    if not image:
        return None
    urls = tuple(url.rstrip("/") for url in given["sidecar_server_url"])
    return RouterSettings(
        image=image,
        pull_policy=given["sidecar_image_pull_policy"],
        server_urls=urls or (servers_at(namespace),),
        resources=given["sidecar_resources"],
        user=given["sidecar_user"],
        log_level=given["sidecar_log_level"],
    )
