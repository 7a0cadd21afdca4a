"""Certificates that agents accept from servers, before, while and after an authority is replaced."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meritorder_operator.certificates import Authorities, Pair, is_good, make_ca, make_server_cert, rotate
from servers.control_plane import ControlPlane
from servers.operator_process import OperatorProcess, Policies
from support.waiting import wait_until

NOON = 1_800_000_000.0
DAY = 86_400.0
NAMES = ("meritorder-router.system.svc", "127.0.0.1")


async def accepts(bundle: str, server: Pair, name: str, folder: Path) -> bool:
    """Whether a client that trusts the bundle speaks TLS with a server of this certificate."""
    (folder / "tls.crt").write_text(server.certificate)
    (folder / "tls.key").write_text(server.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    client = ssl.create_default_context(cadata=bundle)
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
    except ssl.SSLCertVerificationError:
        return False
    else:
        writer.close()
        return True
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [(NAMES[0], True), (NAMES[1], True), ("elsewhere.svc", False)],
)
async def test_a_client_accepts_a_server_by_its_names(tmp_path: Path, name: str, expected: bool) -> None:
    import time

    authority = make_ca(time.time())
    server = make_server_cert(authority, NAMES, time.time())

    assert await accepts(authority.certificate, server, name, tmp_path) is expected
    assert not await accepts(make_ca(time.time()).certificate, server, name, tmp_path)


def test_an_authority_is_trusted_before_it_signs_and_after() -> None:
    first = rotate(None, NOON)
    assert rotate(first, NOON + 200 * DAY) is first

    both = rotate(first, NOON + 250 * DAY)
    assert both.current == first.current
    assert both.following is not None
    assert both.bundle == first.current.certificate + both.following.certificate
    assert rotate(both, NOON + 250.5 * DAY) is both

    later = rotate(both, NOON + 251.1 * DAY)
    assert later.current == both.following
    assert later.previous == first.current
    assert later.bundle == both.following.certificate + first.current.certificate

    done = rotate(later, NOON + 252.2 * DAY)
    assert done == Authorities(current=both.following, changed_at=NOON + 252.2 * DAY)
    assert rotate(done, NOON + 253 * DAY) is done


def test_an_authority_whose_time_is_over_is_replaced_at_once() -> None:
    first = rotate(None, NOON)

    second = rotate(first, NOON + 400 * DAY)

    assert second.current != first.current
    assert second.previous is None


def test_authorities_are_read_as_they_are_kept() -> None:
    both = rotate(rotate(None, NOON), NOON + 250 * DAY)

    assert Authorities.read(both.data()) == both
    assert Authorities.read({}) is None
    assert Authorities.read({**both.data(), "current.crt": "garbage"}) is None
    other = make_ca(NOON)
    assert Authorities.read({**both.data(), "current.key": other.key}) is None
    assert "PRIVATE" not in repr(both)


def test_a_server_certificate_is_replaced_in_time() -> None:
    authority, other = make_ca(NOON), make_ca(NOON)
    server = make_server_cert(authority, NAMES, NOON)

    assert is_good(server, authority, NAMES, NOON + 59 * DAY)
    assert not is_good(server, authority, NAMES, NOON + 61 * DAY)
    assert not is_good(server, other, NAMES, NOON)
    assert not is_good(server, authority, (*NAMES, "more.svc"), NOON)
    assert not is_good(Pair(certificate="", key=""), authority, NAMES, NOON)


def config_map(control_plane: ControlPlane, namespace: str) -> str | None:
    """What agents of a namespace trust."""
    answer = control_plane.client.get(f"/api/v1/namespaces/{namespace}/configmaps/meritorder-ca")
    return str(answer.json()["data"]["ca.crt"]) if answer.status_code == 200 else None


def secret(control_plane: ControlPlane, namespace: str, name: str) -> dict[str, str]:
    data: dict[str, Any] = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")[
        "data"
    ]
    return {key: base64.b64decode(text).decode() for key, text in data.items()}


async def test_servers_and_agents_get_what_they_need(
    start_operator: Callable[..., OperatorProcess],
    policies: Policies,
    control_plane: ControlPlane,
    namespace: str,
    tmp_path: Path,
) -> None:
    webhook = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": namespace},
        "webhooks": [
            {
                "name": "inject.meritorder.dev",
                "clientConfig": {"service": {"namespace": namespace, "name": "meritorder-router"}},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "failurePolicy": "Ignore",
            }
        ],
    }
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    policies.apply()
    first = start_operator(flags=("--server-name=localhost", f"--webhook={namespace}"))
    wait_until(lambda: config_map(control_plane, namespace), 30, "agents are told what to trust")
    # Nothing is amiss while there is no webhook; one that comes later is seen to.
    assert "mutatingwebhookconfigurations" not in first.log_text()
    control_plane.request("POST", path, webhook)

    def trusted() -> str:
        config = control_plane.request("GET", f"{path}/{namespace}")["webhooks"][0]["clientConfig"]
        return base64.b64decode(config.get("caBundle", "")).decode()

    wait_until(trusted, 30, "the API server is told what to trust")

    bundle = config_map(control_plane, namespace)
    assert bundle is not None
    server = secret(control_plane, namespace, "meritorder-router-tls")
    pair = Pair(certificate=server["tls.crt"], key=server["tls.key"])
    assert await accepts(bundle, pair, "localhost", tmp_path)
    assert trusted() == bundle

    # A new operator keeps them; a ConfigMap that somebody changed is put right.
    control_plane.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/configmaps/meritorder-ca",
        {"data": {"ca.crt": "nonsense"}},
        **{"Content-Type": "application/merge-patch+json"},
    )
    first.kill()
    start_operator(name="second", flags=("--server-name=localhost",))
    wait_until(lambda: config_map(control_plane, namespace) == bundle, 30, "it is put right")
    control_plane.request("DELETE", f"{path}/{namespace}")
    assert secret(control_plane, namespace, "meritorder-router-tls") == server
