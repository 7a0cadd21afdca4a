"""What pools need of the mounted directory (`--key-dir`): API keys, and the CA certificates of their TLS.

A pool whose file is not there, or holds no key or certificates, is passed over and told of; the others serve.
Keys are only looked at and not kept, Envoy reads them per request; CA certificates are read here and go into
Envoy's files, so that a file that cannot serve is one pool's trouble and not the whole table's.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from meritorder_api.reasons import Reason
from meritorder_api.table import PoolProblem, RoutingTable

LARGEST = 1024 * 1024
LONGEST_KEY = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """What was found for a table's pools."""

    authorities: Mapping[str, str] = field(default_factory=dict)
    """PEM by the name of its file."""
    lacking: Mapping[str, PoolProblem] = field(default_factory=dict)
    """By pool: why it cannot be served without what is missing."""


def look(directory: PurePath | None, table: RoutingTable, before: Mounted) -> Mounted:
    """See what is mounted now of what the table's pools need; what is as `before` is not checked again."""
    authorities: dict[str, str] = {}
    lacking: dict[str, PoolProblem] = {}
    for pool in table.pools:
        name = pool.tls.ca_file if pool.tls is not None and pool.tls.ca is None else None
        if name is not None:
            found = _certificates(directory, name, before.authorities.get(name))
            if isinstance(found, _Lacking):
                lacking[pool.name] = PoolProblem(reason=Reason.CA_NOT_MOUNTED, message=found.sentence)
            else:
                authorities[name] = found
        if pool.api_key_file is not None:
            wrong = _key(directory, pool.api_key_file)
            if wrong is not None:
                lacking[pool.name] = PoolProblem(reason=Reason.KEY_NOT_MOUNTED, message=wrong)
    return Mounted(authorities=authorities, lacking=lacking)


def _key(directory: PurePath | None, name: str) -> str | None:
    """What is wrong with the file of a key, by the same rule as where it is used (`render.egress`)."""
    missing = "its API key is not mounted in this pod; restart the pod"
    if directory is None:
        return missing
    try:
        with open(directory / name, "rb") as file:
            key = file.readline(LONGEST_KEY).strip()
    except OSError:
        return missing
    if not key or not all(33 <= byte <= 126 for byte in key):
        return f"the file of its API key (`{name[:80]}`) holds no key in its first line; mend the Secret"
    return None


@dataclass(frozen=True, slots=True)
class _Lacking:
    sentence: str


def _certificates(directory: PurePath | None, name: str, before: str | None) -> str | _Lacking:
    missing = _Lacking(
        f"the CA certificates of its TLS (file `{name[:80]}`) are not mounted in this pod; restart the pod"
    )
    none = _Lacking(
        f"the CA file `{name[:80]}` of its TLS holds no certificates in PEM; mend the Secret's key"
    )
    if directory is None:
        return missing
    try:
        with open(directory / name, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError:
        return missing
    if len(content) > LARGEST:
        return none
    try:
        text = content.decode("ascii")
        if text != before:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        return none
    return text
