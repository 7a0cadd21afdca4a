"""Upgrade, uninstall and install again: nothing is lost that a person wrote or the operator learned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.reference import CHART
from chart.story import NOWHERE, Story, policy_of
from meritorder_api.crd import CRD_FILE
from servers.control_plane import ControlPlane
from servers.helm import Helm, setting
from support.waiting import wait_until

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferencepolicies.meritorder.dev"
SYSTEM = "meritorder-system"


def older(folder: Path) -> Path:
    """The chart as the version before might have been: its CRD lacks a column and a field."""
    chart = folder / "older"
    shutil.copytree(CHART, chart)
    (chart / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text().replace("0.1.0", "0.0.9"))
    crd = yaml.safe_load((chart / "files" / "crds" / CRD_FILE).read_text())
    (version,) = crd["spec"]["versions"]
    del version["additionalPrinterColumns"][-1]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["pools"]["items"]["properties"]["accelerator"]
    (chart / "files" / "crds" / CRD_FILE).write_text(yaml.safe_dump(crd))
    return chart


@pytest.fixture
def story(with_neighbours: ControlPlane, installer: Helm, tmp_path: Path) -> Iterator[Story]:
    """The older version, at work."""
    story = Story(
        with_neighbours,
        installer,
        tmp_path,
        release="meritorder",
        namespace=SYSTEM,
        policies="upgraded",
        chart=older(tmp_path),
        arguments=setting(prometheus__url=NOWHERE),
    )
    try:
        story.run()
        yield story
    finally:
        story.close()


def kept(story: Story) -> Mapping[str, Any]:
    """What must outlive every change of the release."""
    policy = policy_of(story.cluster, story.home, "chat")
    return {
        "crd": story.cluster.request("GET", CRD_PATH)["metadata"]["uid"],
        "policy": policy["metadata"]["uid"],
        "spec": policy["spec"],
        "routing": policy["status"]["routing"],
        "programmed": policy["status"]["programmed"],
        "authority": story.release.secret("meritorder-ca"),
        "server": story.release.secret("meritorder-router-tls"),
        "trust": story.cluster.request("GET", f"/api/v1/namespaces/{story.home}/configmaps/meritorder-ca")[
            "data"
        ],
    }


def bundles(story: Story) -> set[str]:
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/meritorder-injection"
    return {one["clientConfig"].get("caBundle", "") for one in story.cluster.request("GET", path)["webhooks"]}


def columns(story: Story) -> int:
    (version,) = story.cluster.request("GET", CRD_PATH)["spec"]["versions"]
    return len(version["additionalPrinterColumns"])


def test_upgrade_and_uninstall_lose_nothing(story: Story) -> None:
    helm, cluster = story.helm, story.cluster
    wait_until(lambda: bundles(story) not in ({""}, set()), 30, "the webhook trusts the servers")
    before, trusted, had = kept(story), bundles(story), columns(story)

    helm("upgrade", "meritorder", CHART, "-n", SYSTEM, "--reuse-values", *setting(router__replicas=3))
    assert kept(story) == before
    assert bundles(story) == trusted, "Helm leaves alone what the operator wrote into its object"
    assert columns(story) == had + 1, "the CRD is upgraded"
    assert story.release.deployment("router")["spec"]["replicas"] == 3
    pools = [pool | {"accelerator": {"type": "L40S"}} for pool in before["spec"]["pools"]]
    story.policies.apply("chat", pools=pools)
    assert all("accelerator" in pool for pool in policy_of(cluster, story.home, "chat")["spec"]["pools"])

    story.leave()
    settled = kept(story)
    said = helm("uninstall", "meritorder", "-n", SYSTEM, "--wait")
    assert "CustomResourceDefinition" in said, "Helm says what it keeps"
    assert kept(story) == settled
    for path in (
        f"/apis/apps/v1/namespaces/{SYSTEM}/deployments",
        f"/api/v1/namespaces/{SYSTEM}/services",
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{SYSTEM}/roles",
        f"/apis/networking.k8s.io/v1/namespaces/{SYSTEM}/networkpolicies",
    ):
        assert cluster.request("GET", path)["items"] == []
    webhooks = cluster.request("GET", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations")[
        "items"
    ]
    assert webhooks == [], "no webhook is left behind that nobody answers"

    helm("install", "meritorder", CHART, "-n", SYSTEM, *setting(prometheus__url=NOWHERE))
    story.start_operator("operator-2")
    wait_until(lambda: story.lease_holder().startswith("operator-2_"), 30, "the new operator leads")
    generation = policy_of(cluster, story.home, "chat")["metadata"]["generation"]
    wait_until(
        lambda: story.policies.status("chat").get("observedGeneration") == generation, 30, "it decides on"
    )
    again = kept(story)
    assert again["routing"]["sequence"] >= settled["routing"]["sequence"]
    assert {**again, "routing": None} == {**settled, "routing": None}

    helm("uninstall", "meritorder", "-n", SYSTEM)
    story.policies.delete("chat")
    assert not story.policies.exists("chat"), "without an operator, a policy deletes at once"
