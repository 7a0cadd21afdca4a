"""All pools of a pools file as running servers: `async with SimulatedPools(file) as pools`.

Each replica is a server of its own on its own port and keeps that port over its lives. Replicas, faults and
deaths can be changed at any moment; `on_change` callbacks hear of every change of addresses. The file's
events happen by themselves.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from meritorder_sim.autoscaler import Autoscaler
from meritorder_sim.faults import FaultChange, FaultCommand, Faults
from meritorder_sim.pools_file import Event, PoolsFile, PoolsFileError, PoolSpec
from meritorder_sim.profiles import LatencyProfile
from meritorder_sim.pump import STEP_SECONDS
from meritorder_sim.server import Address, ReplicaServer, ReplicaSettings

OnChange = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How pools are served: host, fixed ports per pool (else free ones), model names (else any), seed."""

    host: str = "127.0.0.1"
    ports: Mapping[str, Sequence[int]] | None = None
    models: tuple[str, ...] = ()
    seed: int = 0
    step_seconds: float = STEP_SECONDS
    scale_down_grace_seconds: float = 30.0


class SimulatedPool:
    """One pool: its replicas, and the switches for what goes wrong with them."""

    def __init__(
        self, spec: PoolSpec, profile: LatencyProfile, serving: Serving, on_change: OnChange
    ) -> None:
        self.spec = spec
        self.profile = profile
        self._serving = serving
        self._on_change = on_change
        self._slots: list[ReplicaServer] = []
        self._wanted = 0
        self._autoscaler = Autoscaler(spec.autoscale, replicas=spec.replicas) if spec.autoscale else None
        self._faults = Faults()
        self._killed: set[int] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def addresses(self) -> list[Address]:
        """Where the wanted replicas listen; a killed one stays listed, as a dead pod's address does."""
        return [slot.address for slot in self._slots[: self._wanted] if slot.address is not None]

    @property
    def replicas(self) -> tuple[ReplicaServer, ...]:
        return tuple(self._slots[: self._wanted])

    @property
    def models(self) -> tuple[str, ...]:
        return self._serving.models or (self.profile.name.partition("/")[0],)

    @property
    def faults(self) -> Faults:
        return self._faults

    @property
    def running(self) -> int:
        return sum(slot.running for slot in self._slots if slot.alive)

    @property
    def waiting(self) -> int:
        return sum(slot.waiting for slot in self._slots if slot.alive)

    async def set_replicas(self, count: int) -> None:
        """Scale: new replicas listen when this returns; removed ones stop listening and end what they run."""
        async with self._lock:
            before = self.addresses
            while len(self._slots) < count:
                self._slots.append(self._new_replica(len(self._slots)))
            for index, slot in enumerate(self._slots):
                if index < count and not slot.alive and index not in self._killed:
                    await slot.start(self._serving.host, self._port(index))
                    slot.set_faults(self._faults)
                elif index >= count and slot.alive:
                    self._leave(slot)
            self._killed = {index for index in self._killed if index < count}
            self._wanted = count
            if self.addresses != before:
                self._on_change()

    def set_faults(self, change: FaultChange) -> None:
        """Change how all replicas misbehave, also those that come later."""
        self._faults = change.apply_to(self._faults)
        for slot in self._slots:
            slot.set_faults(change.apply_to(slot.faults))

    async def set_needed(self, needed: int) -> None:
        """Tell what the decision says is needed; a pool with `autoscale` follows, any other does not."""
        if self._autoscaler is None:
            return
        count = self._autoscaler.follow(needed, now=asyncio.get_running_loop().time())
        if count != self._wanted:
            await self.set_replicas(count)

    def set_slowdown(self, factor: float) -> None:
        self.set_faults(FaultChange(slowdown=factor))

    def set_errors(self, percent: float, *, status: int = 503) -> None:
        self.set_faults(FaultChange(error_percent=percent, error_status=status))

    def heal(self) -> None:
        """Take back every fault but a death."""
        self._faults = Faults()
        for slot in self._slots:
            slot.set_faults(self._faults)

    async def kill(self, replica: int | None = None) -> None:
        """Kill one replica or all: connections reset, counters lost; addresses stay listed."""
        for index in range(self._wanted) if replica is None else (replica,):
            self._killed.add(index)
            await self._slots[index].die()

    async def revive(self, replica: int | None = None) -> None:
        """Start what was killed, on the same ports."""
        if replica is None:
            self._killed.clear()
        else:
            self._killed.discard(replica)
        await self.set_replicas(self._wanted)

    async def close(self) -> None:
        """Stop everything at once."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await asyncio.gather(*(slot.stop() for slot in self._slots))

    def _new_replica(self, index: int) -> ReplicaServer:
        settings = ReplicaSettings(
            pool=self.name,
            index=index,
            profile=self.profile,
            max_batch=self.spec.max_batch,
            models=self._serving.models,
            seed=self._serving.seed,
            step_seconds=self._serving.step_seconds,
        )
        return ReplicaServer(settings, wall_clock=time.time, on_command=self._obey)

    def _port(self, index: int) -> int:
        ports = (self._serving.ports or {}).get(self.name, ())
        return ports[index] if index < len(ports) else 0

    def _leave(self, slot: ReplicaServer) -> None:
        task = asyncio.create_task(slot.retire(grace_seconds=self._serving.scale_down_grace_seconds))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _obey(self, replica: ReplicaServer, command: FaultCommand) -> None:
        if command.scope == "replica":
            replica.set_faults(command.apply_to(replica.faults))
        else:
            self.set_faults(command)
        if not command.die:
            return
        index = replica.settings.index if command.scope == "replica" else None
        await self.kill(index)
        if command.revive_after_seconds is not None:
            await asyncio.sleep(command.revive_after_seconds)
            await self.revive(index)


class SimulatedPools(Mapping[str, SimulatedPool]):
    """Every pool of a file, served while the context is open."""

    def __init__(
        self,
        file: PoolsFile,
        *,
        host: str = "127.0.0.1",
        ports: Mapping[str, Sequence[int]] | None = None,
        models: Sequence[str] = (),
        seed: int = 0,
        step_seconds: float = STEP_SECONDS,
        play_events: bool = True,
    ) -> None:
        for name in ports or {}:
            if name not in {spec.name for spec in file.pools}:
                raise PoolsFileError(f"ports are given for pool '{name}', which is not in the pools file")
        self.file = file
        self._serving = Serving(
            host=host, ports=ports, models=tuple(models), seed=seed, step_seconds=step_seconds
        )
        self._play_events = play_events
        self._pools: dict[str, SimulatedPool] = {}
        self._listeners: list[OnChange] = []
        self._tasks: list[asyncio.Task[None]] = []

    def __getitem__(self, name: str) -> SimulatedPool:
        return self._pools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    @property
    def addresses(self) -> dict[str, list[Address]]:
        return {name: pool.addresses for name, pool in self._pools.items()}

    def on_change(self, callback: OnChange) -> None:
        """Call `callback` whenever the addresses of a pool have changed."""
        self._listeners.append(callback)

    def start_events(self) -> None:
        """Begin the file's events: this moment is their 0. Done at the start unless `play_events` is off."""
        start = asyncio.get_running_loop().time()
        for pool in self._pools.values():
            self._tasks.append(asyncio.create_task(play_events(pool, pool.spec.events, start)))

    async def __aenter__(self) -> Self:
        try:
            for spec in self.file.pools:
                pool = SimulatedPool(spec, self.file.profile_of(spec), self._serving, self._changed)
                self._pools[spec.name] = pool
                await pool.set_replicas(spec.replicas)
        except BaseException:
            await self._close()
            raise
        if self._play_events:
            start = asyncio.get_running_loop().time()
            self._tasks = [
                asyncio.create_task(play_events(pool, pool.spec.events, start))
                for pool in self._pools.values()
            ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in self._pools.values():
            await pool.close()

    def _changed(self) -> None:
        for callback in self._listeners:
            callback()


async def play_events(
    pool: SimulatedPool,
    events: Sequence[Event],
    start: float,
    *,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Apply each event at `start` + its time on `clock` (the loop's by default)."""
    read = clock or asyncio.get_running_loop().time
    for event in events:
        await sleep(max(start + event.at - read(), 0.0))
        await apply_event(pool, event)


async def apply_event(pool: SimulatedPool, event: Event) -> None:
    """Do to the pool what one event says."""
    pool.set_faults(event)
    if event.replicas is not None:
        await pool.set_replicas(event.replicas)
