"""The commands that speak with a cluster, also as `kubectl meritorder ...`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

Function = TypeVar("Function", bound=Callable[..., Any])


KUBECONFIG = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    envvar="MERITORDER_KUBECONFIG",
    show_envvar=True,
    help="Default: what kubectl would take.",
)


def namespace_option(default: str) -> Callable[[Function], Function]:
    """`-n`, with what stands where it is not given."""
    return click.option(
        "-n", "--namespace", envvar="MERITORDER_NAMESPACE", show_envvar=True, help=f"Default: {default}."
    )


def output_option(meaning: str) -> Callable[[Function], Function]:
    """`-o`, with what its JSON is."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        envvar="MERITORDER_OUTPUT",
        show_envvar=True,
        help=f"json: {meaning}.",
    )


def _of_a_policy(command: Function) -> Function:
    for option in (KUBECONFIG, namespace_option("that of the kubeconfig"), click.argument("policy")):
        command = option(command)
    return command


_output = output_option("the part of the policy's status as it is")


@click.command()
@_of_a_policy
@_output
def explain(policy: str, namespace: str | None, kubeconfig: Path | None, output: str) -> None:
    """Say where a policy's traffic goes, why, and what it costs."""
    from meritorder_cli.cluster import read
    from meritorder_cli.explain import explain as said

    found = read(policy, namespace, kubeconfig)
    if output == "json":
        print_json(found.status.dump())
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(said(found))


@click.command(short_help="List a policy's last decisions.")
@_of_a_policy
@_output
def history(policy: str, namespace: str | None, kubeconfig: Path | None, output: str) -> None:
    """List a policy's last decisions that changed something, newest first."""
    from meritorder_cli.cluster import read
    from meritorder_cli.explain import history as said

    found = read(policy, namespace, kubeconfig)
    if output == "json":
        print_json([one.dump() for one in found.status.history or []])
        return
    import time

    console_for_tables().print(said(found, time.time()))


@click.command()
@_of_a_policy
@_output
def recommend(policy: str, namespace: str | None, kubeconfig: Path | None, output: str) -> None:
    """Say what a policy would route, which replicas it needs, and what that costs."""
    from meritorder_cli.cluster import read
    from meritorder_cli.recommend import figures
    from meritorder_cli.recommend import recommend as said

    found = read(policy, namespace, kubeconfig)
    if output == "json":
        print_json(figures(found))
        return
    console_for_tables().print(said(found))


@click.command()
@_of_a_policy
def pause(policy: str, namespace: str | None, kubeconfig: Path | None) -> None:
    """Stop deciding for a policy; the last routing keeps serving."""
    from meritorder_cli.cluster import suspend

    click.echo(suspend(policy, namespace, kubeconfig, suspended=True))


@click.command()
@_of_a_policy
def resume(policy: str, namespace: str | None, kubeconfig: Path | None) -> None:
    """Go on deciding for a policy."""
    from meritorder_cli.cluster import suspend

    click.echo(suspend(policy, namespace, kubeconfig, suspended=False))


def console_for_tables() -> "Console":
    """The terminal; where there is none, so wide that what reads it finds each row in one line."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=400)


def print_json(value: object) -> None:
    """Print for scripts."""
    import json

    click.echo(json.dumps(value, indent=2))
