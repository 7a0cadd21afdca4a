"""The wire between router servers and agents: the routing table down, the report up.

A table is all that an agent needs in order to render Envoy's files: pools in merit order with their
endpoints, this agent's slice of each limit, and the rules of the policy. Equal input gives equal bytes:
`RoutingTable.seal` computes the `tableRevision` over everything else, and agents long-poll with the one
they have.

HTTP (TLS, bearer token of audience `meritorder`; plain only on loopback in standalone):

    GET  /v1/table?revision=R&waitSeconds=S   200 RoutingTable | 304 still R | 401 | 403
                                              404 policy gone | 503 not synced
    POST /v1/report                           204 | 401 | 403 | 503    body: AgentReport
    POST /v1/peers/reports                    204 | 401 | 403 | 503    body: PeerReports   (server to server)

Without `revision` the agent has no table yet: the answer then waits for a first one, and 404 says after
`waitSeconds` that there is no such policy, or nothing routed for it yet. With `revision`, 404 comes at
once: keep what you have. 503: this server cannot tell just now (API server away, or it holds something
older than what the agent applied): keep what you have and ask again. An agent that also says `uid` and
`sequence` of the table that it applied is never handed an older one, even by a server that has not heard
its report. Every refusal has the body `{"reason": "PolicyGone", "message": "one sentence"}`.
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field

from meritorder_api.policy import SLAMetric, SteeringHeader
from meritorder_api.wire import PoolName, Port, Wire

FORMAT_VERSION = 1
"""Raised when an older agent could not serve a newer table; readers take the same and the next lower one."""


class Fill(StrEnum):
    """How the agents share a pool's limit."""

    FILL = "Fill"
    """Each fills its slice of the limit, cheapest pool first."""
    SPLIT = "Split"
    """Slices would be too small: requests are split by weight, with a local guard."""


class TableEndpoint(Wire):
    """One server of a pool."""

    address: Annotated[str, Field(min_length=1, max_length=253)]
    port: Port
    ready: bool = True


class TableTLS(Wire):
    """TLS towards a pool's endpoints."""

    server_name: str
    ca: str | None = None
    """PEM of the CA certificates to trust; absent (and no `caFile`): the system's."""
    ca_file: str | None = None
    """Name of the file, in the agent's key directory, that holds them: the servers read no Secret."""


class TableClassLimit(Wire):
    """This agent's slice for one size class, which may enter while fewer than `limit` are in flight."""

    max_tokens: Annotated[int, Field(ge=1)]
    limit: Annotated[int, Field(ge=0)]


class TablePool(Wire):
    """A pool in its place of the merit order."""

    name: PoolName
    endpoints: list[TableEndpoint] = Field(default_factory=list, max_length=4096)
    tls: TableTLS | None = None
    limit: Annotated[int, Field(ge=0)] | None = None
    """This agent's slice of the pool's in-flight limit; absent: unlimited. 0: drained."""
    class_limits: list[TableClassLimit] = Field(default_factory=list, max_length=16)
    weight_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    path_prefix: str | None = None
    model: str | None = None
    api_key_file: str | None = None
    """Name of the file, in the agent's key directory, that holds the pool's API key. Never the key."""


class TablePolicy(Wire):
    """Whose table it is."""

    namespace: str
    name: str
    uid: str


class TableSLA(Wire):
    """The target that counts a request as slow."""

    metric: SLAMetric
    target_milliseconds: Annotated[int, Field(ge=1)]


class TableTimeouts(Wire):
    """0 is none."""

    connect_seconds: int = 1
    response_headers_seconds: int = 300
    stream_idle_seconds: int = 300
    hedge_milliseconds: int = 0


class TableRequests(Wire):
    """Request rules."""

    add_usage: bool = False
    headers: list[SteeringHeader] = Field(default_factory=list)
    paths: list[str] = Field(default_factory=list)


class RoutingTable(Wire):
    """What one agent serves."""

    format_version: Literal[1] = 1
    policy: TablePolicy
    sequence: Annotated[int, Field(ge=0)]
    """`status.routing.sequence`: an agent refuses an older one of the same policy UID."""
    routing_revision: str = ""
    """`status.routing.revision` that this was made from."""
    table_revision: str = ""
    """SHA-256 over all other fields."""
    pools: Annotated[list[TablePool], Field(min_length=1, max_length=16)]
    """In merit order, the fallback pool last."""
    fill: Fill = Fill.FILL
    shed: bool = False
    """What no pool takes gets 429; else it overflows to the last pool."""
    size_classes: bool = False
    sla: TableSLA
    timeouts: TableTimeouts = Field(default_factory=TableTimeouts)
    requests: TableRequests = Field(default_factory=TableRequests)

    def seal(self) -> Self:
        """The same table with its `tableRevision`."""
        body = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"table_revision"})
        digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        return self.model_copy(update={"table_revision": f"sha256:{digest}"})

    def to_json(self) -> bytes:
        """The bytes on the wire: sorted keys, equal input gives equal bytes."""
        return json.dumps(self.dump(), sort_keys=True, separators=(",", ":")).encode()


class PoolProblem(Wire):
    """Why an agent sends nothing to a pool."""

    reason: str
    """A word of `meritorder_api.reasons.Reason`; it may be one that the reader does not know yet."""
    message: str
    """One sentence: what was seen, and what to do."""


class PoolSeen(Wire):
    """What an agent saw of a pool since its last report."""

    in_flight: Annotated[float, Field(ge=0)] = 0.0
    """Requests in flight now."""
    mean_in_flight: Annotated[float, Field(ge=0)] = 0.0
    """Mean over about the last 10 s."""
    requests_per_second: Annotated[float, Field(ge=0)] = 0.0
    slice: int | None = None
    """The slice of the pool's limit that this agent enforces now: what it acknowledges."""
    healthy_endpoints: int | None = None
    """Endpoints that its health checks find well; for `hosts`."""
    problem: PoolProblem | None = None
    """Why nothing is sent to it, where that is known."""


class AgentReport(Wire):
    """What an agent applied, refused and saw. Identity comes from its token, not from here."""

    format_version: Literal[1] = 1
    agent_version: str = ""
    policy: TablePolicy
    applied_sequence: int = -1
    applied_revision: str = ""
    """`tableRevision` in force; empty before the first table."""
    refused_revision: str = ""
    refused_reason: str = ""
    """A sentence. Where a pool is passed over until something is mounted it begins with `refusedCode`, for
    servers that read no such field.
    """
    refused_code: str = ""
    """Empty: the table itself is refused. Else the reason for which a pool of it is passed over."""
    offered_load: Annotated[float, Field(ge=0)] = 0.0
    """Mean requests in flight over all pools: what slices follow."""
    pools: dict[str, PoolSeen] = Field(default_factory=dict)


class PeerReport(Wire):
    """An agent's report as one server heard it."""

    namespace: str
    pod: str
    uid: str
    age_seconds: Annotated[float, Field(ge=0)]
    report: AgentReport
    promised: dict[str, int] = Field(default_factory=dict)
    """Slice per pool that this server handed to the agent and that the report does not acknowledge yet."""


class PeerReports(Wire):
    """What a server passes on to the others each second."""

    server: str
    reports: list[PeerReport] = Field(default_factory=list)
