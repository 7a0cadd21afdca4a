"""Kubeconfig files for the test control plane, with everything inline so that one file can be handed
around."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from servers.pki import KeyPair, write_private


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def certificate_user(pair: KeyPair) -> dict[str, str]:
    return {"client-certificate-data": _inline(pair.certificate), "client-key-data": _inline(pair.key)}


def token_user(token: str) -> dict[str, str]:
    return {"token": token}


def write_kubeconfig(
    path: Path, *, server: str, authority: Path, user: Mapping[str, Any], namespace: str = "default"
) -> Path:
    cluster = {"server": server, "certificate-authority-data": _inline(authority)}
    context = {"cluster": "meritorder-test", "user": "user", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "meritorder-test", "cluster": cluster}],
        "users": [{"name": "user", "user": dict(user)}],
        "contexts": [{"name": "meritorder-test", "context": context}],
        "current-context": "meritorder-test",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_private(path, yaml.safe_dump(config, sort_keys=False).encode())
