"""The HTTP face of the server: tables down, reports up, routers for new pods, and what probes and Prometheus
ask for.

The protocol is told in `meritorder_api.table`. Every refusal has a JSON body with `reason` and `message`;
nothing of a request is ever quoted in a log.
"""

import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import ValidationError

from meritorder_api.resource import sentence
from meritorder_api.table import AgentReport, PeerReports, RoutingTable
from meritorder_router.server.admission import Injector
from meritorder_router.server.auth import Authenticator, Denied
from meritorder_router.server.board import Board, View
from meritorder_router.server.cluster import Key
from meritorder_router.server.health import Health
from meritorder_router.server.metrics import Metrics
from meritorder_router.server.register import Known, key_of

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS: Final = 60.0
LONGEST_REVISION: Final = 128
LARGEST_REPORT: Final = 256 * 1024
LARGEST_BODY: Final = 8 * 1024 * 1024
"""What another server passes on: some ten thousand reports."""


class Handlers:
    """What is served to agents and other servers."""

    def __init__(
        self,
        *,
        board: Board,
        health: Health,
        auth: Authenticator,
        metrics: Metrics,
        injector: Injector,
        server: str,
        now: Callable[[], float],
    ) -> None:
        """`server` is this server's own name, by which it knows its own posts."""
        self._board = board
        self._health = health
        self._auth = auth
        self._metrics = metrics
        self._injector = injector
        self._server = server
        self._now = now

    def app(self) -> web.Application:
        """The application of the TLS port."""
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[self._deny])
        app.router.add_get("/v1/table", self.table)
        app.router.add_post("/v1/report", self.report)
        app.router.add_post("/v1/peers/reports", self.peers)
        app.router.add_post("/inject", self.inject)
        return app

    def probes(self) -> web.Application:
        """The application of the plain port: probes and metrics."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_text)
        return app

    @web.middleware
    async def _deny(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Denied as denied:
            self._metrics.denied.labels(denied.reason).inc()
            answer = web.json_response(
                {"reason": denied.reason, "message": denied.message}, status=denied.status
            )
            if denied.status == 503:
                answer.headers["Retry-After"] = "1"
            if denied.status == 401:
                answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        except web.HTTPException:
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return web.json_response(
                {"reason": "Internal", "message": "this server failed on the request; its log says why"},
                status=500,
            )

    # Agents.

    async def table(self, request: web.Request) -> web.StreamResponse:
        """Give an agent its table as soon as it is another one than it has."""
        revision = request.query.get("revision", "")[:LONGEST_REVISION]
        seconds = _seconds(request.query.get("waitSeconds", "0"))
        has = request.query.get("uid", ""), _sequence(request.query.get("sequence", "-1"))
        identity = await self._auth.agent(request.headers.get("Authorization"))
        key = key_of(identity)
        until = self._now() + seconds
        waited = False
        while True:
            if not self._health.known:
                raise Denied(503, "NotSynced", self._health.complaint())
            known = self._board.register.polled(identity)
            view = self._board.view(key)
            if view is not None and identity.uid not in view.shares.slices:
                # It has only just come, or come back: it need not wait for the next round.
                self._board.changed(key)
                view = self._board.view(key)
            table = self._current(known, view, has)
            if table is not None and table.table_revision != revision:
                self._board.register.handed(identity, table)
                self._metrics.tables.labels("200").inc()
                seen_at = self._board.changed_at.get(key)
                if waited and seen_at is not None:
                    self._metrics.delay.observe(self._now() - seen_at)
                return web.Response(body=table.to_json(), content_type="application/json")
            left = until - self._now()
            if table is None and self._health.stopping:
                raise Denied(503, "Stopping", "this server is going down; ask another one")
            if (table is None and revision) or left <= 0 or self._health.stopping:
                return self._nothing_new(key, view, table, revision)
            await self._board.wait(key, left)
            waited = True

    def _current(self, known: Known, view: View | None, has: tuple[str, int]) -> RoutingTable | None:
        if view is None:
            return None
        identity, report = known.identity, known.report
        table = view.table(identity.uid)
        if table is None:
            return None
        applied = max(
            sequence
            for uid, sequence in (has, (report.policy.uid, report.applied_sequence), (table.policy.uid, -1))
            if uid == table.policy.uid
        )
        if applied > table.sequence:
            raise Denied(
                503,
                "Behind",
                f"this server knows sequence {table.sequence} and pod `{identity.pod}` has applied "
                f"{applied}; keep what you have",
            )
        return table

    def _nothing_new(
        self, key: Key, view: View | None, table: RoutingTable | None, revision: str
    ) -> web.StreamResponse:
        if table is not None:
            self._metrics.tables.labels("304").inc()
            answer = web.Response(status=304)
            if self._health.stopping:
                answer.force_close()
            return answer
        namespace, name = key
        if view is None and (why := self._board.cluster.unreadable(key)) is not None:
            raise Denied(503, "PolicyUnreadable", f"{why}; keep what you have")
        if view is None:
            raise Denied(
                404, "PolicyGone", f"there is no InferencePolicy `{name}` in namespace `{namespace}`"
            )
        raise Denied(404, "NothingRouted", f"nothing is routed yet for policy `{namespace}/{name}`")

    async def report(self, request: web.Request) -> web.StreamResponse:
        """Take what an agent applied and saw."""
        identity = await self._auth.agent(request.headers.get("Authorization"))
        body = await request.read()
        if len(body) > LARGEST_REPORT:
            raise Denied(
                413, "BadReport", f"the report has {len(body)} bytes; it must be at most {LARGEST_REPORT}"
            )
        try:
            report = AgentReport.model_validate_json(body)
        except ValidationError as error:
            raise Denied(400, "BadReport", f"the report is not one: {sentence(error, '')}") from error
        claimed = report.policy
        if claimed.namespace not in ("", identity.namespace):
            raise Denied(
                403,
                "ForeignNamespace",
                f"the report is about namespace `{claimed.namespace[:63]}`; pod "
                f"`{identity.namespace}/{identity.pod}` may only speak of its own",
            )
        if claimed.name not in ("", identity.policy):
            raise Denied(
                403,
                "OtherPolicy",
                f"the report is about policy `{claimed.name[:63]}`; pod "
                f"`{identity.namespace}/{identity.pod}` names `{identity.policy}`",
            )
        self._board.register.reported(identity, report)
        self._metrics.reports.inc()
        return web.Response(status=204)

    # Other servers.

    async def peers(self, request: web.Request) -> web.StreamResponse:
        """Take what another server heard."""
        await self._auth.peer(request.headers.get("Authorization"))
        try:
            passed = PeerReports.model_validate_json(await request.read())
        except ValidationError as error:
            raise Denied(400, "BadReport", f"the peer's reports are none: {sentence(error, '')}") from error
        if passed.server != self._server:
            self._board.register.passed_on(passed.server, passed.reports)
        return web.Response(status=204)

    # The API server.

    async def inject(self, request: web.Request) -> web.StreamResponse:
        """Say what a new pod is given."""
        if not self._health.ever_known:
            # A pod's keys are known by its policy.
            raise Denied(503, "NotSynced", self._health.complaint())
        return web.json_response(await self._injector.review(await request.read()))

    # Probes.

    async def _healthz(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.StreamResponse:
        # A server that once knew how things are stays ready without the API server: it still takes reports.
        if self._health.stopping:
            return web.Response(status=503, text="stopping\n")
        if not self._health.serving:
            return web.Response(status=503, text="not listening yet: waiting for a certificate\n")
        if not self._health.ever_known:
            return web.Response(status=503, text=self._health.complaint() + "\n")
        return web.Response(text="ok\n")

    async def _metrics_text(self, _: web.Request) -> web.StreamResponse:
        return web.Response(
            body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise Denied(400, "BadRequest", f"`waitSeconds` is `{text[:20]}`; it must be a number from 0 to 60")
    return min(seconds, LONGEST_WAIT_SECONDS)


def _sequence(text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isdecimal() or len(digits) > 18:
        raise Denied(400, "BadRequest", f"`sequence` is `{text[:20]}`; it must be a whole number")
    return int(text)
