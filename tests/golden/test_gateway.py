"""The objects of a gateway, in full. `MERITORDER_UPDATE_GOLDEN=1 pytest tests/golden` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from meritorder_api.container import GATEWAY_RESOURCES, RouterSettings
from meritorder_api.policy import InferencePolicySpec
from meritorder_operator.gateway import objects

GOLDEN = Path(__file__).parent / "gateway"
POOL = {
    "name": "l40s",
    "backend": {"service": {"name": "chat-l40s", "port": 8000}},
    "cost": {"perReplicaHour": "1.86"},
}
PROVIDER = {
    "name": "provider",
    "backend": {
        "hosts": [{"host": "api.example.com", "port": 443, "tls": {}}],
        "apiKeySecretRef": {"name": "provider", "key": "api-key"},
    },
    "cost": {"perMillionTokens": {"input": "0.14", "output": "0.28"}},
}
GATEWAYS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([POOL], {}),
    "full": (
        [POOL, PROVIDER],
        {"replicas": 3, "allowedNamespaces": ["web", "batch"], "auth": {"secretRef": {"name": "clients"}}},
    ),
}


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_gateway_is_these_objects(name: str) -> None:
    pools, gateway = GATEWAYS[name]
    sla = {"metric": "EndToEndLatency", "targetMilliseconds": 2000}
    spec = InferencePolicySpec.model_validate({"sla": sla, "pools": pools, "gateway": gateway})
    assert spec.gateway is not None
    settings = RouterSettings(
        image="example.com/meritorder:1",
        pull_policy="IfNotPresent",
        server_urls=("https://meritorder-router.meritorder-system.svc",),
        resources=GATEWAY_RESOURCES,
    )
    metadata = {"namespace": "ml", "name": "chat", "uid": "u-1"}
    made = list(objects(metadata, spec, spec.gateway, settings).values())
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("MERITORDER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump_all(made, sort_keys=False, width=110))
    assert list(yaml.safe_load_all(path.read_text())) == made
