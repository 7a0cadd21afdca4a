"""Small looks at metrics and schemas that know nothing of the system."""

from __future__ import annotations

from typing import Any

import httpx


def agent_metric(port: int, family: str) -> float:
    """Return what an agent's own metrics say; -1 when the family is not there."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics/agent", trust_env=False).text
    for line in text.splitlines():
        if line.startswith(family):
            return float(line.rpartition(" ")[2])
    return -1.0


def drop_rules(schema: Any) -> None:
    """Take CEL rules out of a schema, in place."""
    if isinstance(schema, dict):
        schema.pop("x-kubernetes-validations", None)
        for value in schema.values():
            drop_rules(value)
    elif isinstance(schema, list):
        for value in schema:
            drop_rules(value)
