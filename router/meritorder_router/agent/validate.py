"""Reading a routing table: the bytes are turned into one that can be served, or refused with a sentence.

The pydantic model says what a table is; here stands what else must hold so that Envoy could serve it.
"""

import json
from collections import Counter
from dataclasses import dataclass

from pydantic import ValidationError

from meritorder_api.policy import SteeringHeader
from meritorder_api.table import FORMAT_VERSION, RoutingTable
from meritorder_router.render.clusters import is_address

MAX_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A table that is not served, and why; the one before it goes on."""

    reason: str
    revision: str = ""
    sequence: int | None = None


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "table"
    more = error.error_count() - 1
    # A word that is not known: perhaps a newer server's, and to drop it would change what is served.
    advice = "; if it is a newer server's, update the router's image" if first["type"] == "enum" else ""
    return f"`{where}`: {first['msg'][:200]}{advice}" + (f" (and {more} more)" if more else "")


def _unserveable(table: RoutingTable) -> str | None:
    names = [pool.name for pool in table.pools]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        return f"`pools` has `{twice[0]}` twice; names must be unique"
    for pool in table.pools:
        for endpoint in pool.endpoints:
            host = endpoint.address
            if not is_address(host) and not _is_host_name(host):
                return (
                    f"pool `{pool.name}`: endpoint address {host[:60]!r} must be an IP address or a host name"
                )
        if pool.tls is not None and not (
            is_address(pool.tls.server_name) or _is_host_name(pool.tls.server_name)
        ):
            return f"pool `{pool.name}`: `tls.serverName` {pool.tls.server_name[:60]!r} must be a host name"
        if pool.api_key_file is not None and not _is_file_name(pool.api_key_file):
            return f"pool `{pool.name}`: `apiKeyFile` {pool.api_key_file[:60]!r} must be a file name"
        if pool.tls is not None and pool.tls.ca_file is not None and not _is_file_name(pool.tls.ca_file):
            return f"pool `{pool.name}`: `tls.caFile` {pool.tls.ca_file[:60]!r} must be a file name"
        if pool.model is not None and not 0 < len(pool.model) <= 253:
            return f"pool `{pool.name}`: `model` has {len(pool.model)} characters; it must have 1 to 253"
        if pool.path_prefix is not None and not _is_path(pool.path_prefix):
            return f'pool `{pool.name}`: `pathPrefix` {pool.path_prefix[:60]!r} must be a path such as "/api"'
    for path in table.requests.paths:
        if not _is_path(path):
            return f'`requests.paths`: {path[:60]!r} must be a path such as "/v1/rerank"'
    unknown = [header for header in table.requests.headers if header not in set(SteeringHeader)]
    if unknown:
        return f"`requests.headers`: {unknown[0]!r} is not known"
    for what, value in table.timeouts.dump().items():
        most = 3_600_000 if what == "hedgeMilliseconds" else 86_400
        if not 0 <= value <= most:
            return f"`timeouts.{what}` is {value}; it must be from 0 to {most}"
    if table.sla.target_milliseconds > 3_600_000:
        return f"`sla.targetMilliseconds` is {table.sla.target_milliseconds}; it must be at most 3600000"
    for pool in table.pools:
        if pool.limit is not None and pool.limit > 1_000_000_000:
            return f"pool `{pool.name}`: `limit` is {pool.limit}; it must be at most 1000000000"
    return None


_HOST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
_PATH = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~/-")


def _is_host_name(text: str) -> bool:
    return (
        0 < len(text) <= 253 and set(text) <= _HOST and not text.startswith((".", "-")) and ".." not in text
    )


def _is_file_name(text: str) -> bool:
    return 0 < len(text) <= 253 and set(text) <= _HOST and not text.startswith(".")


def _is_path(text: str) -> bool:
    return 0 < len(text) <= 256 and text.startswith("/") and set(text) <= _PATH


def parse(content: bytes, *, current: RoutingTable | None = None) -> RoutingTable | Refused:
    """Read a table that may take the place of `current`.

    Fields that are not known are dropped, so that a server of the next minor version can be read; a format
    version that is not known is refused. A table without `tableRevision` (from a file) is given its own.
    """
    if len(content) > MAX_BYTES:
        return Refused(reason=f"the table has {len(content)} bytes; it must have at most {MAX_BYTES}")
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        return Refused(reason=f"the table is not JSON: {str(error)[:120]}")
    if not isinstance(raw, dict):
        return Refused(reason=f"the table must be a JSON object, not {type(raw).__name__}")
    revision = raw.get("tableRevision")
    revision = revision if isinstance(revision, str) else ""
    version = raw.get("formatVersion", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        return Refused(
            reason=f"`formatVersion` is {str(version)[:20]}; this agent reads {FORMAT_VERSION}: "
            "update the router's image",
            revision=revision,
        )
    try:
        table = RoutingTable.model_validate_json(content, strict=False)
    except ValidationError as error:
        return Refused(reason=f"the table is not valid: {_first_error(error)}", revision=revision)
    except (ValueError, RecursionError) as error:
        return Refused(reason=f"the table is not valid: {str(error)[:120]}", revision=revision)
    problem = _unserveable(table)
    if problem is not None:
        return Refused(reason=problem, revision=revision, sequence=table.sequence)
    if not table.table_revision:
        table = table.seal()
    return check_order(table, current)


def check_order(table: RoutingTable, current: RoutingTable | None) -> RoutingTable | Refused:
    """Refuse a table that is older than the current one of the same policy."""
    if current is not None and current.policy.uid == table.policy.uid and table.sequence < current.sequence:
        return Refused(
            reason=f"sequence {table.sequence} is older than {current.sequence}, which is applied; "
            "keeping that one",
            revision=table.table_revision,
            sequence=table.sequence,
        )
    return table
