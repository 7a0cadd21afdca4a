"""The commands that speak with a cluster, also as `kubectl meritorder ...`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def _of_a_policy(command: Function) -> Function:
    for option in (
        click.option(
            "--kubeconfig",
            type=click.Path(path_type=Path),
            envvar="MERITORDER_KUBECONFIG",
            show_envvar=True,
            help="Default: what kubectl would take.",
        ),
        click.option(
            "-n",
            "--namespace",
            envvar="MERITORDER_NAMESPACE",
            show_envvar=True,
            help="Default: that of the kubeconfig.",
        ),
        click.argument("policy"),
    ):
        command = option(command)
    return command


_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="MERITORDER_OUTPUT",
    show_envvar=True,
    help="json: the policy's status as it is.",
)


@click.command()
@_of_a_policy
@_output
def explain(policy: str, namespace: str | None, kubeconfig: Path | None, output: str) -> None:
    """Say where a policy's traffic goes, why, and what it costs."""
    from meritorder_cli.cluster import read
    from meritorder_cli.explain import explain as said

    found = read(policy, namespace, kubeconfig)
    if output == "json":
        _print_json(found.status.dump())
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
        _print_json([one.dump() for one in found.status.history or []])
        return
    for line in said(found) or ["no decision has changed anything yet"]:
        click.echo(line)


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


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))
