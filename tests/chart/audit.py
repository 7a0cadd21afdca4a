"""What an account may do, by its roles, and what it did, by the API server's audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.control_plane import ControlPlane

RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One verb on one resource; in all namespaces and for all names where they are empty."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {kind}{where}{f' {self.name}' if self.name else ''}"

    def covers(self, other: Right) -> bool:
        """Whether it allows what `other` is."""
        return (
            (self.verb, self.group, self.resource) == (other.verb, other.group, other.resource)
            and self.namespace in ("", other.namespace)
            and self.name in ("", other.name)
        )


def granted(cluster: ControlPlane, namespace: str, account: str) -> set[Right]:
    """What the roles that are bound to an account give it."""
    found: set[Right] = set()
    for kind in ("clusterrolebindings", "rolebindings"):
        for binding in cluster.request("GET", f"{RBAC}/{kind}")["items"]:
            subjects = binding.get("subjects") or ()
            if not any((one.get("namespace"), one["name"]) == (namespace, account) for one in subjects):
                continue
            where = binding["metadata"].get("namespace", "")
            role = binding["roleRef"]
            place = f"/namespaces/{where}/roles" if role["kind"] == "Role" else "/clusterroles"
            rules = cluster.request("GET", f"{RBAC}{place}/{role['name']}")["rules"]
            found |= {right for rule in rules for right in _rights(rule, where)}
    return found


def _rights(rule: Mapping[str, Any], namespace: str) -> Iterator[Right]:
    assert "nonResourceURLs" not in rule
    for verb in rule["verbs"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames") or ("",):
                    assert "*" not in (verb, group, resource)
                    yield Right(verb, group, resource, namespace, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One request of an account for a resource, and what became of it."""

    right: Right
    code: int
    said: str


def deeds(log: Path, namespace: str, account: str) -> list[Deed]:
    """What an account asked for, in order."""
    user = f"system:serviceaccount:{namespace}:{account}"
    found: list[Deed] = []
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] != user or "objectRef" not in event:
            continue
        what = event["objectRef"]
        if "resource" not in what:
            continue
        resource = what["resource"] + (f"/{what['subresource']}" if "subresource" in what else "")
        right = Right(
            event["verb"],
            what.get("apiGroup", ""),
            resource,
            what.get("namespace", ""),
            # What is created has no name yet where the API server asks who may.
            "" if event["verb"] == "create" else what.get("name", ""),
        )
        status = event.get("responseStatus") or {}
        found.append(Deed(right=right, code=int(status.get("code", 0)), said=str(status.get("message", ""))))
        if right.verb == "patch" and status.get("code") == 201:
            # To apply what is not there is to create it, which the API server asks about as well.
            created = Right("create", right.group, resource, right.namespace, right.name)
            found.append(Deed(right=created, code=201, said=""))
    return found
