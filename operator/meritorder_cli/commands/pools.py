"""`meritorder pools`: simulated pools by themselves."""

import click


class _Pools(click.Group):
    """Imports the simulator when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """What can be done with pools."""
        return ["serve"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of that name."""
        if cmd_name != "serve":
            return None
        from meritorder_sim.command import serve

        return serve


@click.group(cls=_Pools)
def pools() -> None:
    """Serve simulated pools."""
