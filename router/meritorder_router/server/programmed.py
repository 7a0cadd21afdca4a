"""What the agents applied, as `status.programmed`: computed from a view, and written by one server at a time.

It is written when it differs from what the policy says, at most every 5 s per policy, with the
resourceVersion that it was computed from: a stale writer is refused. At rest nothing is written.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from meritorder_api.names import API_VERSION, GROUP, KIND, PLURAL, ROUTER_FIELD_MANAGER, VERSION
from meritorder_api.reasons import OUT_OF_REACH, Reason, without_code
from meritorder_api.status import Programmed, Refusal
from meritorder_router.server.board import Board, View
from meritorder_router.server.cluster import Key
from meritorder_router.server.kube import Kube, KubeError, Refused

log = logging.getLogger(__name__)

BETWEEN_WRITES_SECONDS: Final = 5.0
AFTER_CONFLICT_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 0.25
MOST_REFUSALS: Final = 8
MOST_PROBLEMS: Final = 16
LONGEST_SENTENCE: Final = 500


def programmed(view: View) -> Programmed | None:
    """What the agents of a policy applied; None while nothing is routed, or this server has yet to hear of
    agents.
    """
    if view.missing:
        return None
    routing = view.policy.status.routing
    if routing is None and not view.agents:
        return None
    uid = view.policy.metadata.uid
    sequence = routing.sequence if routing is not None else 0
    reports = [(known, known.report) for known in view.agents]
    refused = sorted(
        (known.identity.pod, report.refused_reason, without_code(report.refused_reason, report.refused_code))
        for known, report in reports
        if report.refused_revision and report.policy.uid in ("", uid)
    )
    problems = [*zip(view.resolved.reasons, view.resolved.problems, strict=True), *_out_of_reach(view)]
    if len(problems) > MOST_PROBLEMS:
        more = f"and {len(problems) - MOST_PROBLEMS + 1} more"
        problems = [*problems[: MOST_PROBLEMS - 1], (problems[MOST_PROBLEMS - 1][0], more)]
    return Programmed(
        sequence=sequence,
        agents=len(reports),
        applied=sum(
            routing is not None and report.policy.uid == uid and report.applied_sequence >= sequence
            for _, report in reports
        ),
        silent=len(view.silent),
        fill=view.shares.fill.value,
        refused=[
            # An operator of the minor version before knows the code only as the sentence's first word.
            Refusal(agent=pod, code=lacks, reason=sentence[:LONGEST_SENTENCE])
            for pod, sentence, (lacks, _) in refused[:MOST_REFUSALS]
        ],
        ready=dict(sorted(view.resolved.ready.items())),
        problems=[problem[:LONGEST_SENTENCE] for _, problem in problems],
        problem_reasons=[reason for reason, _ in problems] or None,
        possible_excess=dict(sorted(view.shares.excess.items())) or None,
    )


def _out_of_reach(view: View) -> list[tuple[Reason, str]]:
    """Pools with whose servers agents cannot speak, where the spec, DNS or a certificate must be mended. A
    server that is down for a while is none of these: its pool's ready replicas say so.
    """
    live = [known for known in view.agents if known.identity.uid not in view.silent]
    said: dict[tuple[str, Reason], list[str]] = {}
    pools = {pool.name for pool in view.policy.spec.pools}
    for known in live:
        for pool, seen in known.report.pools.items():
            problem = seen.problem
            if pool in pools and problem is not None and problem.reason in OUT_OF_REACH:
                said.setdefault((pool, Reason(problem.reason)), []).append(problem.message)
    return [
        (reason, f"pool `{pool}`: {min(messages)}" + (" (some agents)" if len(messages) < len(live) else ""))
        for (pool, reason), messages in sorted(said.items())
    ]


class Writer:
    """Writes `status.programmed` while `may_write` says so. `now` is monotonic."""

    def __init__(
        self,
        kube: Kube,
        board: Board,
        *,
        may_write: Callable[[], bool],
        now: Callable[[], float],
        count: Callable[[str], None],
    ) -> None:
        self._kube = kube
        self._board = board
        self._may_write = may_write
        self._now = now
        self._count = count
        self._written_at: dict[Key, float] = {}
        self._checked: dict[Key, View] = {}
        self._pruned: dict[Key, tuple[Programmed, dict[str, Any] | None]] = {}

    async def run(self) -> None:
        """Look for what should be written, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._may_write():
                continue
            for policy in self._board.cluster.policies():
                key = policy.metadata.namespace, policy.metadata.name
                if self._now() - self._written_at.get(key, -BETWEEN_WRITES_SECONDS) < BETWEEN_WRITES_SECONDS:
                    continue
                view = self._board.view(key)
                if view is self._checked.get(key):
                    continue
                wanted = programmed(view) if view is not None else None
                if view is None:
                    continue
                if wanted is None or not self._differs(key, view, wanted):
                    # What is told is a function of the view: until there is another one, this is settled.
                    self._checked[key] = view
                    continue
                await self._write(key, view, wanted)
                if not self._may_write():
                    break
            present = {(p.metadata.namespace, p.metadata.name) for p in self._board.cluster.policies()}
            for gone in (self._written_at.keys() | self._checked.keys()) - present:
                self._written_at.pop(gone, None)
                self._checked.pop(gone, None)
                self._pruned.pop(gone, None)

    def _differs(self, key: Key, view: View, wanted: Programmed) -> bool:
        seen = view.policy.status.programmed
        if seen == wanted:
            return False
        # An older CRD may prune a field of ours: what came of the same words last time is as good as it gets.
        sent = self._pruned.get(key)
        return sent is None or sent[0] != wanted or seen is None or sent[1] != seen.dump()

    async def _write(self, key: Key, view: View, wanted: Programmed) -> None:
        namespace, name = key
        metadata = view.policy.metadata
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}/status"
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
            },
            "status": {"programmed": wanted.dump()},
        }
        try:
            answer = await self._kube.apply(path, body, ROUTER_FIELD_MANAGER)
        except Refused as error:
            if error.status in (404, 409):
                # Gone, or newer than what this was computed from: the watch tells, and it is computed anew.
                self._written_at[key] = self._now() - BETWEEN_WRITES_SECONDS + AFTER_CONFLICT_SECONDS
                self._count("conflict")
                return
            self._written_at[key] = self._now()
            self._count("refused")
            log.warning("status.programmed of %s/%s was refused: %s", namespace, name, error)
        except KubeError as error:
            self._written_at[key] = self._now()
            self._count("failed")
            log.warning("status.programmed of %s/%s could not be written: %s", namespace, name, error)
        else:
            self._written_at[key] = self._now()
            kept = (answer.get("status") or {}).get("programmed")
            self._pruned[key] = (wanted, Programmed.model_validate(kept).dump() if kept else None)
            self._count("written")
            log.info(
                "status.programmed of %s/%s: sequence %d applied by %d of %d agents, %d silent, %s",
                *(
                    namespace,
                    name,
                    wanted.sequence,
                    wanted.applied,
                    wanted.agents,
                    wanted.silent,
                    wanted.fill,
                ),
            )
