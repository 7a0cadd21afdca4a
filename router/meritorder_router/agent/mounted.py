"""What pools need of the mounted directory (`--key-dir`): API keys, and the CA certificates of their TLS.

A pool whose file is not there, or holds no certificates, is passed over and told of; the others serve. Keys
are only looked for, Envoy reads them per request; CA certificates are read here and go into Envoy's files,
so that a file that cannot serve is one pool's trouble and not the whole table's.
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from meritorder_api.reasons import Reason
from meritorder_api.table import RoutingTable

LARGEST = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """What was found for a table's pools."""

    authorities: Mapping[str, str] = field(default_factory=dict)
    """PEM by the name of its file."""
    lacking: Mapping[str, str] = field(default_factory=dict)
    """A sentence per pool that cannot be served without what is missing; it begins with its reason."""


def look(directory: PurePath | None, table: RoutingTable, before: Mounted) -> Mounted:
    """See what is mounted now of what the table's pools need; what is as `before` is not checked again."""
    authorities: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for pool in table.pools:
        name = pool.tls.ca_file if pool.tls is not None and pool.tls.ca is None else None
        if name is not None:
            found = _certificates(directory, name, before.authorities.get(name))
            if isinstance(found, _Lacking):
                lacking[pool.name] = f"{Reason.CA_NOT_MOUNTED}: pool `{pool.name}`: {found.sentence}"
            else:
                authorities[name] = found
        key = pool.api_key_file
        if key is not None and (directory is None or not os.access(directory / key, os.R_OK)):
            lacking[pool.name] = (
                f"{Reason.KEY_NOT_MOUNTED}: pool `{pool.name}`: its API key is not mounted in this pod; "
                "restart the pod"
            )
    return Mounted(authorities=authorities, lacking=lacking)


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
