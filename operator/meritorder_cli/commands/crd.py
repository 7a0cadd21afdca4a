"""`meritorder crd`: print the CustomResourceDefinition."""

import click


@click.command()
def crd() -> None:
    """Print the CustomResourceDefinition."""
    from meritorder_api.crd import crd_yaml

    click.echo(crd_yaml(), nl=False)
