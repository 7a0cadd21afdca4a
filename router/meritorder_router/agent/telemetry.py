"""The agent's own metrics, served on a unix socket for Envoy's metrics listener to pass on.

A handful of numbers: they are written by hand, since a metrics library and a web server would cost every
sidecar some 15 MB.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from meritorder_api import metric_names as names
from meritorder_api.table import RoutingTable

CONTACT = "meritorder_router_last_contact_timestamp_seconds"
APPLIED = "meritorder_router_tables_applied_total"
REFUSED = "meritorder_router_tables_refused_total"


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    kind: str
    help: str


_FAMILIES = (
    _Family(names.APPLIED_SEQUENCE, "gauge", "Sequence of the routing table in force; -1 before the first."),
    _Family(
        names.LIMIT,
        "gauge",
        "This agent's slice of the in-flight limit of the pool, or of a size class; +Inf: unlimited.",
    ),
    _Family(names.TARGET, "gauge", "Target (ms) by which requests are counted as slow now; 0: no table yet."),
    _Family(CONTACT, "gauge", "When the source of tables was last heard of (Unix time); 0: never."),
    _Family(APPLIED, "counter", "Routing tables brought into force."),
    _Family(REFUSED, "counter", "Routing tables refused."),
)


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else f"{value:.3f}"


class Telemetry:
    """What the agent says of itself."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._limits: Mapping[str, float] = {}
        """By the labels of the pool, and of the size class if it is one's."""
        self.sequence = -1
        self.target = 0
        self.contact = 0.0
        self.applied = 0
        self.refused = 0
        self._server: asyncio.Server | None = None

    def in_force(self, table: RoutingTable) -> None:
        """Show a table's sequence and limits."""
        self.sequence = table.sequence
        self.target = table.sla.target_milliseconds
        limits: dict[str, float] = {}
        for pool in table.pools:
            label = f'{names.LABEL_POOL}="{pool.name}"'
            limits[label] = float("inf") if pool.limit is None else float(pool.limit)
            for listed in pool.class_limits if table.size_classes else ():
                limits[f'{label},{names.LABEL_CLASS}="{listed.max_tokens}"'] = float(listed.limit)
        self._limits = limits

    def text(self) -> str:
        """The exposition. Label values are names of Kubernetes, which need no escape."""
        policy = f'{names.LABEL_POLICY}="{self._policy}"'
        single = {
            names.APPLIED_SEQUENCE: float(self.sequence),
            names.TARGET: float(self.target),
            CONTACT: self.contact,
            APPLIED: float(self.applied),
            REFUSED: float(self.refused),
        }
        lines: list[str] = []
        for family in _FAMILIES:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            if family.name == names.LIMIT:
                lines += [
                    f"{family.name}{{{policy},{labels}}} {_number(value)}"
                    for labels, value in self._limits.items()
                ]
            else:
                lines.append(f"{family.name}{{{policy}}} {_number(single[family.name])}")
        return "\n".join(lines) + "\n"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, whatever it asks: only Envoy can ask here, and for one thing."""
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, TimeoutError):
            async with asyncio.timeout(5):
                await reader.readuntil(b"\r\n\r\n")
                body = self.text().encode()
                head = (
                    "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()

    async def serve(self, path: str) -> None:
        """Listen on a unix socket, in the place of one that an earlier agent left."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._server = await asyncio.start_unix_server(self._answer, path)
        os.chmod(path, 0o600)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
