"""The names of clusters, and which of them a pool has.

A request takes the *way* into a pool, `pool/NAME`, in which Envoy counts what is in flight there. For most
pools that is the cluster of its servers. For one with rewrites it is the egress listener, and behind that are
the servers, `real/NAME`.

Where sessions act (`render.session`), requests with a session take another way to the same servers:
`session/NAME`, and for a pool with rewrites `slots/NAME` to the egress listener, with `session/NAME` behind.

Chains name the ways that a request's tries take.
"""

from meritorder_api.table import TablePool


def uses_egress(pool: TablePool) -> bool:
    """Whether requests to this pool are rewritten, which only a listener of our own can do under a chain."""
    return pool.path_prefix is not None or pool.model is not None or pool.api_key_file is not None


def way(pool: TablePool, *, session: bool = False) -> str:
    """The cluster that chains name and in which requests are counted."""
    if session:
        return f"slots/{pool.name}" if uses_egress(pool) else servers(pool, session=True)
    return f"pool/{pool.name}"


def servers(pool: TablePool, *, session: bool = False) -> str:
    """The cluster of the pool's servers."""
    if session:
        return f"session/{pool.name}"
    return f"real/{pool.name}" if uses_egress(pool) else way(pool)


def tries(first: TablePool, second: TablePool, last: TablePool) -> tuple[TablePool, TablePool, TablePool]:
    """The pools of a chain: the third try goes to the last pool, unless the request is pinned to one."""
    return first, second, first if first.name == second.name else last


def chain(first: TablePool, second: TablePool, last: TablePool, *, session: bool = False) -> str:
    """Its name, which says all that it is made of: a chain comes and goes, and never changes under a name."""
    pools = tries(first, second, last)
    if session:
        return "/".join(["session-chain", *(way(pool, session=True).replace("/", ".") for pool in pools)])
    return "/".join(["chain", *(pool.name for pool in pools)])
