"""What `doctor` shows at a width of 100: a golden, from facts alone."""

from pathlib import Path

from cli.doctor_world import POLICY
from cli.test_fleet_views import shown
from meritorder_api.resource import InferencePolicy
from meritorder_cli.doctor.diagnosis import diagnose
from meritorder_cli.doctor.facts import Backing, Facts, PolicyMetrics, PoolMetrics
from meritorder_cli.doctor.findings import show

DOCS = Path(__file__).parents[2] / "docs" / "kubectl.md"


def facts() -> Facts:
    """A target between two bounds, and a Service that is not there."""
    manifest = {**POLICY, "metadata": {"name": "chat", "namespace": "ml"}}
    manifest["spec"] = {**POLICY["spec"], "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 3000}}
    manifest["status"] = {"observedGeneration": 1}
    bounds = (0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
    return Facts(
        now=0.0,
        version="0.1.0",
        policies=[InferencePolicy.parse(manifest)],
        services={
            ("ml", "chat-l40s"): Backing(type="ClusterIP", ports=(8000,), ready=2),
            ("ml", "chat-h100"): None,
        },
        metrics={
            "ml/chat": PolicyMetrics(
                server="http://prometheus:9090",
                routers=2,
                pools={"l40s": PoolMetrics(series=2, bounds=bounds)},
            )
        },
        unchecked=['the webhook: forbidden: User "mia" cannot list mutatingwebhookconfigurations'],
    )


def test_shows_each_finding_with_its_fix_as_the_docs_have_it() -> None:
    lines = shown(show(diagnose(facts())))
    assert lines[-1] == "1 error, 1 warning; 1 policy looked at"
    assert "\n".join(lines) in DOCS.read_text()
