"""The command line: `meritorder-router serve` and `meritorder-router agent`.

What a command needs is imported when it runs: the supervisor, which lives as long as its container, stays
small.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from meritorder_api.names import DEFAULT_LISTEN_PORT, DEFAULT_METRICS_PORT
from meritorder_api.version import own_version
from meritorder_router.render.place import Address, Place

CHILD_COMMAND = "agent-process"
_FILE = click.Path(dir_okay=False, path_type=Path)


class _AddressType(click.ParamType[Address | None]):
    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address | None:
        """Read an address; `none` is none."""
        if isinstance(value, Address):
            return value
        if value == "none":
            return None
        try:
            return Address.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Lazy(click.Group):
    """Commands of which one is in the server's package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["agent", "serve"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "serve":
            command = importlib.import_module("meritorder_router.server.main").serve_command
            return command if isinstance(command, click.Command) else None
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    own_version(), prog_name="meritorder-router", message="%(prog)s %(version)s", help="Print the version."
)
def router() -> None:
    """Meritorder's router: the server that hands out routing tables, and the agent that serves them by
    Envoy.
    """


def _options(command: Any) -> Any:
    """The options that `agent` and its child share."""
    options = [
        click.option(
            "--table",
            type=_FILE,
            help="Serve the routing table of this file, and follow its changes: no server.",
        ),
        click.option(
            "--server-url",
            "server_urls",
            multiple=True,
            help="URL of a router server (repeatable; in the variable, separated by spaces).",
        ),
        click.option("--policy", default="", help="Name of the policy served: label of all series."),
        click.option("--namespace", default="", help="Namespace of the policy."),
        click.option(
            "--token-file", type=_FILE, help="Token shown to the server; read again for each request."
        ),
        click.option(
            "--ca-file",
            type=_FILE,
            help="CA certificates (PEM) by which the server is verified; re-read too.",
        ),
        click.option(
            "--key-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Pools' API keys and CA certificates.",
        ),
        click.option(
            "--client-token-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Tokens, one per file: only clients that show one of them as a bearer token pass.",
        ),
        click.option(
            "--listen",
            type=_AddressType(),
            default=f"127.0.0.1:{DEFAULT_LISTEN_PORT}",
            help="Where applications' requests are taken.",
        ),
        click.option(
            "--metrics-listen",
            type=_AddressType(),
            default=f"127.0.0.1:{DEFAULT_METRICS_PORT}",
            help="Where /metrics, /metrics/agent, /ready and /ready/table are served; `none`: nowhere.",
        ),
        click.option(
            "--state-dir",
            type=click.Path(file_okay=False, path_type=Path),
            default="/run/meritorder",
            help="The one directory that is written to: Envoy's files, sockets, the last good table.",
        ),
        click.option(
            "--envoy", default=None, help="Envoy's binary. Default: that of the Python package, or on PATH."
        ),
        click.option("--concurrency", type=click.IntRange(1, 64), default=2, help="Envoy's worker threads."),
        click.option(
            "--grace-seconds",
            type=click.FloatRange(0),
            default=600.0,
            help="How long a drain (SIGTERM) waits for requests in flight.",
        ),
        click.option(
            "--drain-least-seconds",
            type=click.FloatRange(0),
            default=0.0,
            help="How long a drain serves on at least: until load balancers have seen it unready.",
        ),
        click.option(
            "--log-format",
            type=click.Choice(["auto", "json", "pretty"]),
            default="auto",
            help="auto: JSON unless on a terminal.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            help="Least level.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    for parameter in command.__click_params__:
        parameter.show_envvar = True
    return command


_CONTEXT: dict[str, Any] = {"show_default": True, "auto_envvar_prefix": "MERITORDER"}


def _check(options: dict[str, Any]) -> None:
    table, urls = options["table"], options["server_urls"]
    if (table is None) == (not urls):
        raise click.UsageError("exactly one of `--table` and `--server-url` must be given")
    for url in urls:
        if not url.startswith(("https://", "http://")):
            raise click.UsageError(f"`--server-url` is `{url}`; it must begin with https://")
        host = url.split("://", 1)[1].split("/")[0].rsplit(":", 1)[0].strip("[]")
        if url.startswith("http://") and host not in ("127.0.0.1", "localhost", "::1"):
            raise click.UsageError(
                f"`--server-url` is `{url}`; plain HTTP is for loopback only, use https://"
            )
    if urls and not options["policy"]:
        raise click.UsageError("`--policy` must be given with `--server-url`: it is the label of all series")
    if options["listen"] is None:
        raise click.UsageError("`--listen` must be an address")
    try:
        Place(directory=options["state_dir"].absolute(), listen=options["listen"])
    except ValueError as error:
        raise click.UsageError(f"`--state-dir`: {error}") from error


@router.command("agent", context_settings=_CONTEXT)
@_options
def agent(**options: Any) -> None:
    """Serve a policy's routing table by Envoy: the supervisor of an agent and an Envoy."""
    from meritorder_router.agent import supervisor
    from meritorder_router.agent.envoy import NoEnvoy, Taken, envoy_command, find_envoy, refuse_taken

    _check(options)
    state_dir: Path = options["state_dir"].absolute()
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        binary = find_envoy(options["envoy"])
        for address in (options["listen"], options["metrics_listen"]):
            if address is not None:
                refuse_taken(address)
    except (OSError, NoEnvoy, Taken) as error:
        raise click.ClickException(f"cannot start: {error}") from error
    # The same options once more: the child reads them, and what the environment says, by itself.
    given = sys.argv[sys.argv.index("agent") + 1 :]
    command = supervisor.command(
        agent=[sys.executable, "-m", "meritorder_router", CHILD_COMMAND, *given],
        envoy=envoy_command(binary, state_dir, concurrency=options["concurrency"]),
        state_dir=str(state_dir),
        grace_seconds=options["grace_seconds"],
        least_seconds=options["drain_least_seconds"],
    )
    os.execv(command[0], command)


@router.command(CHILD_COMMAND, hidden=True, context_settings=_CONTEXT)
@_options
def agent_process(**options: Any) -> None:
    """The agent alone; started by the supervisor."""
    import asyncio

    from meritorder_router.agent import process
    from meritorder_router.server import logs

    _check(options)
    logs.set_up(options["log_format"], options["log_level"])
    policy = options["policy"]
    if not policy and options["table"] is not None:
        policy = _policy_of(options["table"]) or _policy_of(options["state_dir"] / "last-good.json")
    settings = process.Settings(
        state_dir=options["state_dir"].absolute(),
        listen=options["listen"],
        metrics=options["metrics_listen"],
        policy=policy,
        namespace=options["namespace"],
        table=options["table"],
        server_urls=tuple(options["server_urls"]),
        token_file=options["token_file"],
        ca_file=options["ca_file"],
        keys=options["key_dir"],
        clients=options["client_token_dir"],
        version=own_version(),
    )
    asyncio.run(process.run(settings))


def _policy_of(table: Path) -> str:
    """The policy's name in a table file; empty if it cannot be told."""
    from meritorder_router.agent.validate import Refused, parse

    try:
        found = parse(table.read_bytes())
    except OSError:
        return ""
    return "" if isinstance(found, Refused) else found.policy.name


def main() -> None:
    """Entry point of the console script."""
    router(
        prog_name=os.path.basename(sys.argv[0]) if not sys.argv[0].endswith(".py") else "meritorder-router"
    )
