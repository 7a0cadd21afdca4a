"""One pass over one policy: read, decide, write. Level-driven: any pass may be the first, late, or repeated.

What was decided counts only once it is written: when the write fails, the pass leaves no trace and the next
one decides anew, from samples that reach back over those that this one had. On a conflict it decides again
from the newer object. Whether a write arrived whose answer was lost, the object itself tells by what it says
was learned.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import replace

from meritorder_api import reasons
from meritorder_api.policy import InferencePolicySpec, Mode
from meritorder_api.reasons import Reason
from meritorder_api.wire import moment
from meritorder_core.decide import decide
from meritorder_core.inputs import Inputs, Missing
from meritorder_core.learned import Learned
from meritorder_core.outcome import ConditionReport, Decision
from meritorder_operator import news, rules, status, writes
from meritorder_operator.cluster import Cluster, ClusterError, Conflict, Refused
from meritorder_operator.conditions import ACCEPTED, Acceptance
from meritorder_operator.prometheus.source import PolicyRequest, PrometheusSource, unmeasured
from meritorder_operator.settings import Settings
from meritorder_operator.sources import Sources
from meritorder_operator.view import Manifest, PolicyView

log = logging.getLogger(__name__)
decisions_log = logging.getLogger("meritorder.decision")

CONFLICTS = 4
"""Times that a pass is begun anew because the object had changed."""
REPEAT_LOG_SECONDS = 60.0
NOT_YET = Missing(reason=reasons.Missing.NOT_MEASURED, message="nothing was measured yet")


class Reconciler:
    """Runs passes. `clock` is monotonic, `wall` is Unix seconds."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        source: PrometheusSource,
        sources: Sources,
        settings: Settings,
        shared: Callable[[PolicyView], str | None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._source = source
        self._sources = sources
        self._settings = settings
        self._shared = shared
        self._clock = clock
        self._wall = wall
        self.written = 0
        self.conflicts = 0

    async def reconcile(self, view: PolicyView) -> bool:
        """Do one pass; True when the next should follow at once. Raises ClusterError or LeaseLost."""
        for _ in range(CONFLICTS):
            try:
                return await self._pass(view)
            except Conflict as conflict:
                self.conflicts += 1
                log.debug("%s changed meanwhile, deciding again: %s", view.key, conflict)
                view.take(await self._cluster.policy(view.namespace, view.name))
            except Refused as error:
                if error.status != 404:
                    raise
                view.gone = True
                return False
        return False

    async def _pass(self, view: PolicyView) -> bool:
        acceptance, spec = self._accepted(view)
        if spec is None:
            await self._refuse(view, acceptance)
            return False
        uid, generation = view.uid, view.generation
        first = not view.status.get("routing")
        learned = view.memory.recall(view.status.get("learned"))
        inputs = await self._inputs(view, spec, learned, first=first)
        if view.gone or (view.uid, view.generation) != (uid, generation):
            return True
        manifest = view.manifest
        previous = view.status
        memory = view.memory
        if memory.recall(previous.get("learned")) is not learned:
            return True  # a write arrived meanwhile: what is to be learned now begins elsewhere
        if learned.note:
            log.warning("%s: %s", view.key, learned.note)
        enforced = status.plan_of(previous.get("routing"))
        wanted = status.plan_of(previous.get("recommendation")) if spec.mode is Mode.RECOMMEND else None
        decision = decide(spec, learned, inputs, current=wanted or enforced, generation=generation)
        if first:
            nothing = ConditionReport(status=None, reason=NOT_YET.reason, message=NOT_YET.message)
            decision = replace(decision, metrics_available=nothing, sla_met=nothing)
        now = self._clock()
        fresh = status.compose(
            decision,
            spec,
            previous,
            last_sequence=memory.sequence,
            generation=generation,
            acceptance=acceptance,
            now=self._wall(),
            seconds_since_change=now - memory.routing_changed_at,
        )
        since = writes.Since(status=now - memory.written_at, learned=now - memory.learned_written_at)
        with_learned = False
        if writes.due(
            status.owned(previous),
            fresh,
            learned_changed=decision.learned_changed,
            completed=memory.completed + view.completed_since(inputs),
            since=since,
        ):
            with_learned = decision.learned_changed or "learned" not in fresh or writes.learned_is_due(since)
            if with_learned:
                fresh["learned"] = decision.learned.encode()
            await self._write(view, manifest, fresh)
        view.count(inputs)
        if with_learned:
            memory.learned_text = fresh["learned"]
            memory.learned_written_at = now
            memory.completed = 0.0
        memory.learned = decision.learned
        view.decision, view.inputs = decision, inputs
        view.decisions[decision.action.value, decision.reason.value] += 1
        self._log(view, decision, fresh)
        return first

    def _accepted(self, view: PolicyView) -> tuple[Acceptance, InferencePolicySpec | None]:
        spec = view.spec
        if isinstance(spec, Acceptance):
            return spec, None
        acceptance = rules.check(view.namespace, spec, self._settings)
        if not acceptance.accepted:
            return acceptance, None
        shared = self._shared(view)
        if shared is not None:
            return Acceptance(accepted=True, reason=Reason.POOL_SHARED, message=shared), spec
        return ACCEPTED, spec

    async def _inputs(
        self, view: PolicyView, spec: InferencePolicySpec, learned: Learned, *, first: bool
    ) -> Inputs:
        ready = (view.status.get("programmed") or {}).get("ready") or {}
        until = {name: pool.sampled_at for name, pool in learned.pools.items()}
        request = PolicyRequest(
            namespace=view.namespace,
            name=view.name,
            spec=spec,
            server=None,
            ready=dict(ready),
            # While suspended nothing is learned, on purpose.
            learned_until=None if spec.suspend else until,
        )
        if first:
            # Traffic must not wait for metrics.
            return unmeasured(request, NOT_YET, self._wall())
        server = await self._sources.server(view.namespace, spec)
        if isinstance(server, Missing):
            return unmeasured(request, server, self._wall())
        request = replace(request, server=server)
        return (await self._source.gather([request], self._wall()))[request.key]

    async def _refuse(self, view: PolicyView, acceptance: Acceptance) -> None:
        manifest, previous, now = view.manifest, view.status, self._clock()
        fresh = status.refuse(
            acceptance,
            previous,
            generation=view.generation,
            now=self._wall(),
            seconds_since_change=now - view.memory.routing_changed_at,
        )
        since = writes.Since(status=now - view.memory.written_at, learned=0.0)
        if writes.due(status.owned(previous), fresh, learned_changed=False, completed=0.0, since=since):
            await self._write(view, manifest, fresh)
            log.warning("%s is not accepted (%s): %s", view.key, acceptance.reason, acceptance.message)
        view.decision = view.inputs = None

    async def _write(self, view: PolicyView, manifest: Manifest, fresh: status.Status) -> None:
        answer = await self._cluster.apply_status(manifest, fresh)
        memory, now = view.memory, self._clock()
        before = manifest.get("status") or {}
        memory.written_at = now
        self.written += 1
        sequence = (fresh.get("routing") or {}).get("sequence", 0)
        if sequence != (before.get("routing") or {}).get("sequence"):
            memory.routing_changed_at = now
        memory.sequence = max(memory.sequence, sequence)
        view.take(answer)
        for item in news.told(before, fresh):
            await self.tell(view, item)

    async def tell(self, view: PolicyView, item: news.News) -> None:
        """Write an event about a policy; one that cannot be written is lost."""
        name = f"{view.name[:200]}.{secrets.token_hex(8)}"
        event = news.event(
            view.manifest, item, now=moment(self._wall()), name=name, instance=self._settings.identity
        )
        try:
            await self._cluster.create_event(view.namespace, event)
        except ClusterError as error:
            log.warning("%s: an event could not be written: %s", view.key, error)

    def _log(self, view: PolicyView, decision: Decision, fresh: status.Status) -> None:
        """Log what changed; the same again at most once a minute, except when debugging."""
        now = self._clock()
        what = (decision.action.value, decision.reason.value, fresh["routing"]["revision"])
        repeated = what == view.logged and now - view.logged_at < REPEAT_LOG_SECONDS
        level = logging.DEBUG if repeated else logging.INFO
        if not repeated:
            view.logged, view.logged_at = what, now
        if decisions_log.isEnabledFor(level):
            decisions_log.log(
                level,
                "%s: %s",
                view.key,
                decision.message,
                extra={
                    "terms": {
                        "namespace": view.namespace,
                        "policy": view.name,
                        "generation": view.generation,
                        "action": decision.action.value,
                        "reason": decision.reason.value,
                        "sequence": fresh["routing"]["sequence"],
                        "enforced": decision.enforced,
                        **decision.terms,
                    }
                },
            )
