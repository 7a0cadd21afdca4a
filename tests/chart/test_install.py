"""The chart installed by Helm on a real API server, and the parts run by what its objects say, with the
rights that its roles give and no others.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chart.audit import Right
from chart.reference import CHART
from chart.story import NOWHERE, Story
from servers.control_plane import ControlPlane
from servers.helm import Helm, setting

SYSTEM = "meritorder-system"
TEAM = "team-system"

NOT_SEEN: dict[str, dict[str, str]] = {"operator": {}, "router": {}}
"""By part: rights that this run does not use, by how they begin, and what does use them. None, as it is."""


WIDE = pytest.mark.parametrize("story", ["wide"], indirect=True)
NARROW = pytest.mark.parametrize("story", ["narrow"], indirect=True)


@pytest.fixture(scope="module", params=["wide", "narrow"])
def story(
    request: pytest.FixtureRequest,
    with_neighbours: ControlPlane,
    installer: Helm,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    """A release for the whole cluster, or for one namespace, and all that it does in its life."""
    wide = request.param == "wide"
    home = "ml" if wide else "apps"
    values: dict[str, object] = {
        "prometheus": {"url": NOWHERE},
        "policies": {"secretNamespaces": [home], "allowedMetricsUrls": [f"{NOWHERE}/own"]},
    }
    if not wide:
        leave_the_crds(with_neighbours, installer)
        values |= {"namespaces": [home], "crds": {"install": False}}
    story = Story(
        with_neighbours,
        installer,
        tmp_path_factory.mktemp(home),
        release="meritorder" if wide else "team-meritorder",
        namespace=SYSTEM if wide else TEAM,
        policies=home,
        arguments=setting(**values),
    )
    try:
        live(story)
        yield story
    finally:
        story.close()


def leave_the_crds(cluster: ControlPlane, helm: Helm) -> None:
    """Have the CRDs there, as a release leaves them that came and went."""
    if cluster.client.get("/apis/meritorder.dev/v1alpha1").status_code == 404:
        helm("install", "meritorder", CHART, "-n", SYSTEM, "--create-namespace")
        helm("uninstall", "meritorder", "-n", SYSTEM)


def live(story: Story) -> None:
    """Do all that a release does."""
    story.run()
    story.name_a_source_with_credentials()
    story.have_a_gateway_for_a_while()
    story.create_a_pod_that_is_not_injected()
    story.edit_until_a_write_is_stale()
    story.spoil_the_secrets()


def test_a_policy_is_decided_on_and_its_table_served(story: Story) -> None:
    status = story.policies.status("chat")
    assert [pool["name"] for pool in status["routing"]["pools"]] == ["l40s", "h100"]
    assert status["programmed"]["agents"] == 1
    assert [pool.name for pool in story.table.pools] == ["l40s", "h100"]
    assert story.policies.condition("Accepted", "own-source")["status"] == "True"


def test_the_roles_are_what_the_parts_use(story: Story) -> None:
    for component, elsewhere in NOT_SEEN.items():
        rights, deeds = story.granted(component), story.deeds(component)
        refused = {f"{deed.right}: {deed.said}" for deed in deeds if deed.code == 403}
        assert refused == set(), "all that a part asks for is granted"
        beyond = {str(deed.right) for deed in deeds if not any(right.covers(deed.right) for right in rights)}
        assert beyond == set(), "all that a part may is in the chart's roles"
        unused = {right for right in rights if not any(right.covers(deed.right) for deed in deeds)}
        unexplained = {
            str(right) for right in unused if not any(str(right).startswith(known) for known in elsewhere)
        }
        assert unexplained == set(), f"all that {component} may is used"


def test_no_part_may_do_what_it_has_no_business_with(story: Story) -> None:
    cluster = story.cluster
    home, elsewhere = story.home, "kube-system"
    for component in ("operator", "router"):
        account = f"system:serviceaccount:{story.namespace}:{story.release.account(component)}"
        for right in (
            Right("list", "", "secrets", home),
            Right("get", "", "secrets", elsewhere, "any"),
            Right("get", "", "secrets", story.namespace, "somebody-elses"),
            Right("delete", "", "secrets", story.namespace, "meritorder-ca"),
            Right("update", "meritorder.dev", "inferencepolicies", home, "chat"),
            Right("delete", "meritorder.dev", "inferencepolicies", home, "chat"),
            Right("create", "", "pods", home),
            Right("create", "", "pods/exec", home, "app-0"),
            Right("patch", "", "configmaps", home, "somebody-elses"),
            Right("update", "coordination.k8s.io", "leases", elsewhere, "kube-scheduler"),
            Right("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
            Right("patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", name="other"),
            Right("create", "", "serviceaccounts/token", story.namespace, story.release.account("operator")),
        ):
            assert not allowed(cluster, account, right), f"{component} may {right}"


def allowed(cluster: ControlPlane, user: str, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": right.namespace,
        "name": right.name,
    }
    groups = ["system:serviceaccounts", "system:authenticated"]
    review = cluster.request(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}},
    )
    return bool(review["status"]["allowed"])


def test_no_right_is_granted_twice(story: Story) -> None:
    """So that the API server refuses what the run did as soon as one rule is taken away."""
    for component in ("operator", "router"):
        rights = story.granted(component)
        account = f"system:serviceaccount:{story.namespace}:{story.release.account(component)}"
        for right in rights:
            assert allowed(story.cluster, account, right), f"{component} may not {right}"
            others = [other for other in rights if other != right and other.covers(right)]
            assert others == [], f"{component} may {right} by two rules"


@NARROW
def test_a_narrow_release_leaves_other_namespaces_alone(story: Story) -> None:
    for component in ("operator", "router"):
        places = {deed.right.namespace for deed in story.deeds(component)}
        assert places <= {story.home, story.namespace, ""}
        without = {deed.right.resource for deed in story.deeds(component) if not deed.right.namespace}
        assert without <= {"tokenreviews", "mutatingwebhookconfigurations"}


def test_the_webhook_trusts_the_servers(story: Story) -> None:
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    found = story.cluster.request("GET", f"{path}/{story.release.fullname}-injection")
    authority = story.release.secret(f"{story.release.fullname}-router-tls")["ca.crt"]
    for webhook in found["webhooks"]:
        assert base64.b64decode(webhook["clientConfig"]["caBundle"]) == authority


@WIDE
def test_helm_test_asks_and_is_answered(story: Story) -> None:
    """The test pod's own program, told where the processes are."""
    server = story.server
    done = subprocess.run(
        [sys.executable, str(CHART / "files" / "check.py")],
        env={
            "METRICS_OPERATOR": story.operator.metrics_url,
            "METRICS_ROUTER": server.metrics_url,
            "SERVER": f"127.0.0.1:{server.port}",
            "SERVER_NAME": story.release.server_name,
            "CA": str(story.release.mounted() / "ca.crt"),
            "SECONDS_EACH": "20",
        },
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stdout) == (0, "operator: well\nrouter: well\ncertificate: well\n"), (
        done.stderr
    )


@WIDE
def test_helm_test_says_what_is_not_well(story: Story) -> None:
    done = subprocess.run(
        [sys.executable, str(CHART / "files" / "check.py")],
        env={
            "METRICS_OPERATOR": "http://127.0.0.1:9/metrics",
            "METRICS_ROUTER": story.operator.metrics_url,
            "SERVER": "127.0.0.1:9",
            "SERVER_NAME": story.release.server_name,
            "CA": str(story.release.mounted() / "ca.crt"),
            "SECONDS_EACH": "0",
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "operator: <urlopen error [Errno 111] Connection refused>" in done.stderr
    assert "router: the router server hands out no tables yet" in done.stderr


@WIDE
def test_people_may_edit_policies_by_the_usual_roles(story: Story) -> None:
    cluster = story.cluster
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    for person, role in (("viewer", "view"), ("editor", "edit")):
        cluster.request(
            "POST",
            f"{rbac}/namespaces/{story.home}/rolebindings",
            {
                "metadata": {"name": person},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "name": person}],
            },
        )

    def may(person: str, verb: str, resource: str = "inferencepolicies") -> bool:
        return allowed(cluster, person, Right(verb, "meritorder.dev", resource, story.home, "chat"))

    assert may("viewer", "get")
    assert not may("viewer", "patch")
    assert may("editor", "patch")
    assert not may("editor", "patch", "inferencepolicies/status")


def test_the_notes_tell_the_next_step(with_neighbours: ControlPlane, installer: Helm) -> None:
    quiet = setting(podMonitor__enabled=False, crds__install=False)
    said = installer("install", "noted", CHART, "-n", "kube-public", "--dry-run=server", *quiet)
    notes = said.partition("NOTES:")[2]
    assert "No Prometheus is given" in notes
    assert "No PodMonitor was made: have your Prometheus read" in notes
    example = re.search(r"<<END\n(.*?)\n  END", notes, re.DOTALL)
    assert example is not None
    with_neighbours.kubectl("apply", "--dry-run=server", "-f", "-", stdin=example[1])
