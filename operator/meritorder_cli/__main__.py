"""`meritorder`: the command line. Exit codes: 0 done, 1 the thing asked about is not well, 2 wrong use."""

import sys
from importlib import import_module
from typing import Final

import click

from meritorder_api.version import own_version
from meritorder_cli.complaint import DONE, NOT_WELL, Complaint

COMMANDS: Final = {
    "run": "meritorder_cli.commands.run:run",
    "demo": "meritorder_cli.commands.demo:demo",
    "explain": "meritorder_cli.commands.cluster:explain",
    "top": "meritorder_cli.commands.top:top",
    "history": "meritorder_cli.commands.cluster:history",
    "recommend": "meritorder_cli.commands.cluster:recommend",
    "pause": "meritorder_cli.commands.cluster:pause",
    "resume": "meritorder_cli.commands.cluster:resume",
    "doctor": "meritorder_cli.commands.doctor:doctor",
    "pools": "meritorder_cli.commands.pools:pools",
    "crd": "meritorder_cli.commands.crd:crd",
}


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of `COMMANDS`, which is the order of first use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of that name."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(
    own_version(), prog_name="meritorder", message="%(prog)s %(version)s", help="Print the version."
)
def cli() -> None:
    """Send LLM traffic to the cheapest GPU pool that still meets the p95 latency SLA."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors are one sentence on stderr."""
    try:
        result = cli.main(args=arguments, prog_name="meritorder", standalone_mode=False)
        code = result if isinstance(result, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = DONE
    except click.ClickException as error:
        click.echo(f"Error: {_sentence(error)}", err=True)
        code = error.exit_code
    except Complaint as complaint:
        click.echo(f"Error: {complaint}", err=True)
        code = complaint.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = NOT_WELL
    sys.exit(code)


def _sentence(error: click.ClickException) -> str:
    """Click's message in one line, with where to read on."""
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    return text.rstrip(".") + where


if __name__ == "__main__":
    main()
