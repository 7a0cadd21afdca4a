"""`meritorder doctor`: what is not well, and how it is mended."""

from pathlib import Path

import click

from meritorder_cli.commands.cluster import (
    KUBECONFIG,
    console_for_tables,
    namespace_option,
    output_option,
    print_json,
)
from meritorder_cli.complaint import DONE, NOT_WELL


@click.command(short_help="Find what is not well, and how to mend it.")
@namespace_option("all")
@click.option("--install-namespace", help="Where operator and routers run. Default: found by their labels.")
@click.option(
    "--prometheus-url",
    envvar="MERITORDER_PROMETHEUS_URL",
    show_envvar=True,
    help="Where this machine reaches the operator's Prometheus. Default: as the operator does, and "
    "through the API "
    "server where that is a Service.",
)
@click.option(
    "--prometheus-token-file", type=click.Path(path_type=Path, exists=True), help="Bearer token for it."
)
@KUBECONFIG
@output_option("the findings, each with check, object, message and fix")
def doctor(
    namespace: str | None,
    install_namespace: str | None,
    prometheus_url: str | None,
    prometheus_token_file: Path | None,
    kubeconfig: Path | None,
    output: str,
) -> int:
    """Check installation, policies, backends, agents and metrics; each finding says what to do.

    Exit code 0: all is well; 1: something is not.
    """
    from meritorder_cli.cluster import asked
    from meritorder_cli.doctor.diagnosis import diagnose
    from meritorder_cli.doctor.findings import show
    from meritorder_cli.doctor.gather import gather

    facts = asked(
        kubeconfig,
        lambda cluster: gather(
            cluster,
            namespace=namespace,
            installed_in=install_namespace,
            prometheus_url=prometheus_url,
            prometheus_token_file=prometheus_token_file,
        ),
    )
    report = diagnose(facts)
    if output == "json":
        print_json(report.dump())
    else:
        console_for_tables().print(show(report))
    return DONE if report.well else NOT_WELL
