"""All checks over all facts. Pure."""

from meritorder_cli.doctor.agents import agents
from meritorder_cli.doctor.backends import backends
from meritorder_cli.doctor.facts import Facts
from meritorder_cli.doctor.findings import Report, ordered
from meritorder_cli.doctor.installation import installation
from meritorder_cli.doctor.metrics import metrics


def diagnose(facts: Facts) -> Report:
    """What is not well: first what everything rests on, then policy by policy."""
    found = [finding for check in (installation, agents, backends, metrics) for finding in check(facts)]
    return Report(findings=ordered(found), unchecked=facts.unchecked, policies=len(facts.policies))
