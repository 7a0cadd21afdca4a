"""A control plane that the chart is installed on: without our CRDs, which it brings, and audited."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from assets.find import MissingBinary
from assets.modules import folder_of
from servers.control_plane import ControlPlane
from servers.helm import Helm
from support.addresses import NoAddress
from support.required import cannot_run


@pytest.fixture(scope="package")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Kubernetes as its makers left it."""
    try:
        control_plane = ControlPlane(tmp_path_factory.mktemp("bare"), audited=True)
    except (MissingBinary, NoAddress) as reason:
        cannot_run(reason)
    with control_plane:
        yield control_plane


@pytest.fixture(scope="package")
def with_neighbours(bare: ControlPlane) -> ControlPlane:
    """With the CRDs of the Prometheus Operator and cert-manager."""
    for name in ("prometheus-operator-crds", "cert-manager-crds"):
        try:
            bare.apply_crds(folder_of(name))
        except MissingBinary as reason:
            cannot_run(reason)
    return bare


@pytest.fixture(scope="package")
def installer(bare: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The real Helm as administrator of it."""
    try:
        return Helm(tmp_path_factory.mktemp("helm"), bare.kubeconfig)
    except MissingBinary as reason:
        cannot_run(reason)
