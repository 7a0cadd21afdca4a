"""Why no server of a pool is well: Envoy only counts that, so the agent goes the same way once and looks.

Names are resolved, a connection made and, over TLS, the certificate verified as Envoy verifies it; nothing is
sent. What comes of it is a word and a sentence for the report and the log: whether a request may go there is
for Envoy's own checks to say.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Mapping

from meritorder_api.reasons import Reason
from meritorder_api.table import PoolProblem, TableEndpoint, TablePool, TableTLS
from meritorder_router.render.clusters import is_address, uses_names

SECONDS = 3.0
"""For one server, names and handshake included."""
MOST_SERVERS = 3
"""Of a pool that are looked at: the first answer that tells something is told."""

_ADVICE: Mapping[int, str] = {
    # Numbers of OpenSSL's `X509_V_ERR_*`.
    10: "the server needs a new one",
    18: "give the CA that signed it by `tls.caSecretRef`",
    19: "give the CA that signed it by `tls.caSecretRef`",
    20: "give the CA that signed it by `tls.caSecretRef`",
    62: "set `tls.serverName` to a name that it is for",
    64: "set `tls.serverName` to a name that it is for",
}


def worth_a_look(pool: TablePool) -> bool:
    """Whether there is more to say than that a server is down: names and certificates can be wrong."""
    return pool.tls is not None or uses_names(pool)


async def why_unwell(pool: TablePool, *, authorities: Mapping[str, str], trust: str) -> PoolProblem:
    """Look at a pool none of whose servers is well.

    `authorities` has PEM by the name of its `caFile`, `trust` is the file of CA certificates for pools that
    bring none.
    """
    found: PoolProblem | None = None
    for endpoint in [endpoint for endpoint in pool.endpoints if endpoint.ready][:MOST_SERVERS]:
        seen = await _look(endpoint, pool.tls, authorities, trust)
        if found is None or found.reason == Reason.UNHEALTHY:
            found = seen
    return found or PoolProblem(reason=Reason.UNHEALTHY, message="it has no server that is ready")


async def _look(
    endpoint: TableEndpoint, tls: TableTLS | None, authorities: Mapping[str, str], trust: str
) -> PoolProblem:
    host, port = endpoint.address, endpoint.port
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        async with asyncio.timeout(SECONDS):
            await _connect(endpoint, tls, authorities, trust)
    except socket.gaierror as error:
        return _problem(
            Reason.HOST_NOT_RESOLVED,
            f"`{host}` does not resolve ({_lower(error.strerror)}); check the name and the pod's DNS",
        )
    except ssl.SSLCertVerificationError as error:
        advice = _ADVICE.get(error.verify_code)
        return _problem(
            Reason.CERTIFICATE_REFUSED,
            f"the certificate of {place} is refused: {_lower(error.verify_message.rstrip('.'))}"
            + (f"; {advice}" if advice else ""),
        )
    except ssl.SSLError as error:
        why = _lower((error.reason or "the handshake broke off").replace("_", " "))
        return _problem(Reason.TLS_FAILED, f"no TLS with {place}: {why}; check `port` and `tls`")
    except TimeoutError:
        return _problem(Reason.UNREACHABLE, f"{place} does not answer within {SECONDS:g} s")
    except UnicodeError:
        return _problem(Reason.HOST_NOT_RESOLVED, f"`{host[:80]}` is no name that DNS can have; mend `hosts`")
    except OSError as error:
        return _problem(Reason.UNREACHABLE, f"no connection to {place}: {_lower(_words(error))}")
    return _problem(Reason.UNHEALTHY, f"{place} takes connections, and its health checks (GET /health) fail")


async def _connect(
    endpoint: TableEndpoint, tls: TableTLS | None, authorities: Mapping[str, str], trust: str
) -> None:
    context = _context(tls, authorities, trust) if tls is not None else None
    name = tls.server_name if tls is not None else None
    # Resolved by itself first: else a name's failure could not be told from that of its connection.
    host = endpoint.address
    if not is_address(host):
        loop = asyncio.get_running_loop()
        host = str((await loop.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM))[0][4][0])
    _, writer = await asyncio.open_connection(host, endpoint.port, ssl=context, server_hostname=name)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _context(tls: TableTLS, authorities: Mapping[str, str], trust: str) -> ssl.SSLContext:
    """Believes whom Envoy believes (`render.clusters`): the name must be among the alternative ones, and a CA
    certificate that is given is believed though it be signed by another one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    given = tls.ca if tls.ca is not None else authorities.get(tls.ca_file or "")
    if given is not None:
        context.load_verify_locations(cadata=given)
    elif tls.ca_file is None:
        context.load_verify_locations(cafile=trust)
    return context


def _problem(reason: Reason, message: str) -> PoolProblem:
    return PoolProblem(reason=reason, message=message[:400])


def _words(error: OSError) -> str:
    # asyncio's own words have the address in them, which is said already.
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _lower(text: str | None) -> str:
    """As it stands within a sentence."""
    text = text or "no reason given"
    return text if text[1:2].isupper() and not text.isupper() else text[:1].lower() + text[1:]
