"""What stands behind a policy's pools without a cluster: its own `hosts`, `--backend`, or simulated pools.

`Backends` keeps, per pool, the endpoints and which of them answer: a TCP connection is all that is asked of
a server, for not every one has a health path. An endpoint counts as gone after two refusals in a row and is
back with the first answer.
"""

import asyncio
from collections.abc import Mapping, Sequence

from meritorder_api.policy import Backend, Host, InferencePolicySpec, Pool
from meritorder_api.table import TableEndpoint
from meritorder_cli.complaint import Complaint, WrongUse
from meritorder_router.server.backends import resolve
from meritorder_router.table import PoolBackend

REFUSALS = 2
_PROBE_SECONDS = 2.0

Place = tuple[str, int]


def parse_backends(texts: Sequence[str]) -> dict[str, list[Place]]:
    """Read `POOL=HOST:PORT[,HOST:PORT...]` of `--backend`."""
    found: dict[str, list[Place]] = {}
    for text in texts:
        pool, equals, places = text.partition("=")
        if not equals or not pool or not places:
            raise WrongUse(f"`--backend` must be POOL=HOST:PORT[,HOST:PORT...], is `{text}`")
        found.setdefault(pool, []).extend(_place(place.strip(), text) for place in places.split(","))
    return found


def put_behind(
    spec: InferencePolicySpec, places: Mapping[str, Sequence[Place]], *, source: str
) -> InferencePolicySpec:
    """The spec with these servers behind its pools; what needs a cluster is refused."""
    known = [pool.name for pool in spec.pools]
    for name in places:
        if name not in known:
            raise WrongUse(
                f"{source} names pool `{name}`, which the policy does not have (it has {', '.join(known)})"
            )
    pools = []
    for pool in spec.pools:
        if pool.name in places:
            hosts = [Host(host=host, port=port) for host, port in places[pool.name]]
            kept = pool.backend.model_copy(update={"service": None, "hosts": hosts})
            pools.append(pool.model_copy(update={"backend": kept}))
        elif pool.backend.service is not None:
            service = pool.backend.service.name
            raise WrongUse(
                f"pool `{pool.name}` is Service `{service}`, and there is no cluster here: say what stands "
                "behind it with "
                f"--backend {pool.name}=HOST:PORT, or simulate it with --pools"
            )
        else:
            pools.append(pool)
        _without_secrets(pools[-1])
    return spec.model_copy(update={"pools": pools})


def _without_secrets(pool: Pool) -> None:
    backend: Backend = pool.backend
    if backend.api_key_secret_ref is not None:
        raise WrongUse(
            f"pool `{pool.name}` has `apiKeySecretRef`, and there are no Secrets without a cluster; leave it "
            "out"
        )
    if any(host.tls is not None and host.tls.ca_secret_ref is not None for host in backend.hosts or []):
        raise WrongUse(
            f"pool `{pool.name}` has `tls.caSecretRef`, and there are no Secrets without a cluster; leave it "
            "out"
        )


def _place(text: str, option: str) -> Place:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise WrongUse(f"`--backend {option}`: `{text}` must be HOST:PORT with a port from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Backends:
    """The endpoints of each pool and whether they answer. `probe` is to be called about once a second."""

    def __init__(self, spec: InferencePolicySpec) -> None:
        self._spec = spec
        self._refusals: dict[Place, int] = {}

    def change(self, spec: InferencePolicySpec) -> None:
        """Other servers stand behind the pools now."""
        self._spec = spec

    @property
    def pools(self) -> dict[str, PoolBackend]:
        """What the routing table is made of."""
        resolved = resolve(
            self._spec, services={}, endpoint_slices={}, healthy={}, allowed_hosts=["*"]
        ).backends
        return {pool.name: self._marked(pool, resolved[pool.name]) for pool in self._spec.pools}

    @property
    def ready(self) -> dict[str, int]:
        """Ready replicas per pool."""
        return {name: backend.ready for name, backend in self.pools.items()}

    async def probe(self) -> list[tuple[str, Place, bool]]:
        """Try to connect to every endpoint; returns (pool, endpoint, answers) for those that changed."""
        places = [
            (pool.name, (host.host, host.port), float(self._spec.timeouts.connect_seconds or _PROBE_SECONDS))
            for pool in self._spec.pools
            for host in pool.backend.hosts or []
        ]
        answers = await asyncio.gather(*(_answers(place, seconds) for _, place, seconds in places))
        changed = []
        for (pool, place, _), answered in zip(places, answers, strict=True):
            before = self._answering(place)
            self._refusals[place] = 0 if answered else self._refusals.get(place, 0) + 1
            if self._answering(place) != before:
                changed.append((pool, place, not before))
        return changed

    async def first_look(self) -> list[str]:
        """Look once at the start: returns the pools of which nobody answers, and complains if that is all."""
        await self.probe()
        self._refusals = {place: REFUSALS if count else 0 for place, count in self._refusals.items()}
        dead = [name for name, backend in self.pools.items() if not backend.ready]
        if len(dead) == len(self._spec.pools):
            places = ", ".join(sorted(f"{host}:{port}" for host, port in self._refusals))
            raise Complaint(f"no pool can be reached: nothing answers at {places}")
        return dead

    def _answering(self, place: Place) -> bool:
        return self._refusals.get(place, 0) < REFUSALS

    def _marked(self, pool: Pool, backend: PoolBackend) -> PoolBackend:
        endpoints = tuple(
            TableEndpoint(address=one.address, port=one.port, ready=self._answering((one.address, one.port)))
            for one in backend.endpoints
        )
        well = sum(one.ready for one in endpoints)
        replicas = pool.backend.replicas
        ready = replicas * well // len(endpoints) if replicas is not None and endpoints else well
        return PoolBackend(endpoints=endpoints, ready=ready, tls=backend.tls)


async def _answers(place: Place, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(*place)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
