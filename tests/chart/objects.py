"""Finding one's way among the objects that a chart makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Manifest = dict[str, Any]


def by_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """Those of one kind."""
    return [one for one in manifests if one["kind"] == kind]


def named(manifests: Sequence[Manifest], kind: str, component: str) -> Manifest:
    """The one of a kind that belongs to a component."""
    (found,) = [
        one
        for one in by_kind(manifests, kind)
        if one["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    return found


def container_of(deployment: Manifest) -> Manifest:
    """Its one container."""
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)
