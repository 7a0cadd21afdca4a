"""A policy as its loop sees it: the newest object, its spec read once per generation, and what the loop
remembers.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from meritorder_api.policy import InferencePolicySpec
from meritorder_api.reasons import Reason
from meritorder_api.resource import InferencePolicy, PolicyError
from meritorder_core.inputs import Inputs, Sample
from meritorder_core.learned import Learned
from meritorder_core.outcome import Decision
from meritorder_operator.conditions import Acceptance

Manifest = Mapping[str, Any]


@dataclass(slots=True)
class Memory:
    """What a loop knows beyond the object; all of it may be lost at any moment."""

    learned: Learned | None = None
    """What was learned so far; the object's own may be up to a minute older."""
    learned_text: str | None = None
    """The object's own, as it was when `learned` began or was last written."""
    written_at: float = float("-inf")
    learned_written_at: float = float("-inf")
    routing_changed_at: float = float("-inf")
    """These on the loop's clock."""
    completed: float = 0.0
    """Requests completed since what was learned was last written."""
    counted_until: dict[str, float] = field(default_factory=dict)
    sequence: int = 0
    """The highest sequence written: routing wiped by hand must not begin at 1 again."""

    def recall(self, text: str | None) -> Learned:
        """What was learned, given the object's own text of it.

        Where that is not the text that was last written here, a write reached the object although its answer
        was lost, or somebody else wrote: the object's own goes with the object's routing.
        """
        if self.learned is None or self.learned_text != text:
            self.learned, self.learned_text = Learned.decode(text), text
        return self.learned


class PolicyView:
    """One policy."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.namespace = str(manifest["metadata"]["namespace"])
        self.name = str(manifest["metadata"]["name"])
        self.key = f"{self.namespace}/{self.name}"
        self.gone = False
        self.wake = asyncio.Event()
        self.uid = str(manifest["metadata"].get("uid", ""))
        self.generation = int(manifest["metadata"].get("generation", 1))
        self.memory = Memory()
        self.decisions: Counter[tuple[str, str]] = Counter()
        """By action and reason."""
        self.decision: Decision | None = None
        self.inputs: Inputs | None = None
        self.logged: tuple[str, ...] = ()
        self.logged_at = float("-inf")
        self._parsed: tuple[str, int] | None = None
        self._spec: InferencePolicySpec | Acceptance | None = None

    @property
    def status(self) -> Mapping[str, Any]:
        return self.manifest.get("status") or {}

    @property
    def spec(self) -> InferencePolicySpec | Acceptance:
        """The spec, or why it is not one."""
        version = (self.uid, self.generation)
        if self._spec is None or self._parsed != version:
            self._spec = _read(self.manifest)
            self._parsed = version
        return self._spec

    def take(self, manifest: Manifest) -> None:
        """See a version of the object; an older one than is known is dropped."""
        metadata = manifest["metadata"]
        if metadata.get("uid") != self.uid:
            self.memory = Memory()
            self.decision = self.inputs = None
            self.decisions.clear()
        elif _version(manifest) < _version(self.manifest):
            return
        before = self.generation
        self.manifest = manifest
        self.uid = str(metadata.get("uid", ""))
        self.generation = int(metadata.get("generation", 1))
        if self.generation != before or not self.status.get("routing"):
            self.wake.set()

    def completed_since(self, inputs: Inputs) -> float:
        """Requests of the samples that are new."""
        return sum(sample.recent.total for _, sample in self._new(inputs))

    def count(self, inputs: Inputs) -> None:
        """Count the requests of the samples that are new."""
        for name, sample in self._new(inputs):
            self.memory.counted_until[name] = sample.at
            self.memory.completed += sample.recent.total

    def _new(self, inputs: Inputs) -> list[tuple[str, Sample]]:
        return [
            (name, pool.observation)
            for name, pool in inputs.pools.items()
            if isinstance(pool.observation, Sample)
            and pool.observation.at > self.memory.counted_until.get(name, 0.0)
        ]


def _version(manifest: Manifest) -> int:
    """The resource version as a number; the API server promises that newer is greater."""
    text = str(manifest["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdecimal() else 0


def _read(manifest: Manifest) -> InferencePolicySpec | Acceptance:
    try:
        # The status is not looked at: one that another version wrote must not make the spec invalid.
        return InferencePolicy.parse({**manifest, "status": {}}).spec
    except (PolicyError, ValidationError) as error:
        return Acceptance(accepted=False, reason=Reason.INVALID_SPEC, message=str(error))
