"""Requests to the real API server with every kind of login, and what is said where no good answer comes."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meritorder_operator.cluster import Cluster, Refused, Unreachable
from servers.control_plane import ControlPlane
from servers.kubeconfig import write_kubeconfig
from support.ports import free_port


@asynccontextmanager
async def opened(kubeconfig: Path, *, timeout_seconds: float = 10.0) -> AsyncIterator[Cluster]:
    """A cluster that is closed in the end."""
    config = Cluster.connect(kubeconfig).config
    cluster = Cluster(config, timeout_seconds=timeout_seconds)
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
def login(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A kubeconfig with this `user`."""

    def write(user: dict[str, Any]) -> Path:
        return write_kubeconfig(
            tmp_path / "kubeconfig",
            server=control_plane.url,
            authority=control_plane.certificate_authority,
            user=user,
            namespace=namespace,
        )

    return write


Login = Callable[[dict[str, Any]], Path]


async def whoami(cluster: Cluster) -> str:
    """Whom the API server takes us for."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    review = await cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    return str(review["status"]["userInfo"]["username"])


async def test_reads_a_rotated_token_again(
    control_plane: ControlPlane, namespace: str, login: Login, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("of-yesterday")
    async with opened(login({"tokenFile": str(token)})) as cluster:
        with pytest.raises(Refused, match="Unauthorized") as refused:
            await whoami(cluster)
        assert refused.value.status == 401
        token.write_text(control_plane.token_for(namespace, "default"))
        assert await whoami(cluster) == f"system:serviceaccount:{namespace}:default"


async def test_asks_the_program_of_the_kubeconfig_for_a_token_and_again_when_it_is_refused(
    control_plane: ControlPlane, namespace: str, login: Login, tmp_path: Path
) -> None:
    """The first token that it gives is no good, the second is."""
    program, calls = tmp_path / "login.py", tmp_path / "calls"
    program.write_text(
        "import json, pathlib, sys\n"
        "calls = pathlib.Path(sys.argv[1])\n"
        "before = calls.read_text() if calls.exists() else ''\n"
        "calls.write_text(before + 'x')\n"
        "print(json.dumps({'status': {'token': sys.argv[2] if before else 'stale'}}))\n"
    )
    token = control_plane.token_for(namespace, "default")
    kubeconfig = login(
        {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1beta1",
                "command": sys.executable,
                "args": [str(program), str(calls), token],
            }
        }
    )
    async with opened(kubeconfig) as cluster:
        for _ in range(3):
            assert await whoami(cluster) == f"system:serviceaccount:{namespace}:default"
    assert calls.read_text() == "xx"


async def test_a_fixed_token_that_is_refused_is_said_so_in_one_sentence(login: Login) -> None:
    async with opened(login({"token": "nobody"})) as cluster:
        with pytest.raises(Refused) as refused:
            await whoami(cluster)
    assert str(refused.value) == "POST /apis/authentication.k8s.io/v1/selfsubjectreviews: Unauthorized"


async def test_presents_a_client_certificate(control_plane: ControlPlane) -> None:
    async with opened(control_plane.kubeconfig) as cluster:
        assert await whoami(cluster) != "system:anonymous"


async def test_what_does_not_answer_is_unreachable(control_plane: ControlPlane, tmp_path: Path) -> None:
    nobody = control_plane.admin_kubeconfig_by(f"https://127.0.0.1:{free_port()}")
    async with opened(nobody) as cluster:
        with pytest.raises(Unreachable, match=r"^GET /version: .*[Cc]onnect"):
            await cluster.request("GET", "/version")


async def test_who_cannot_prove_to_be_the_api_server_gets_no_token(
    control_plane: ControlPlane, namespace: str, login: Login
) -> None:
    """Its certificate is of another authority than the kubeconfig's."""
    kubeconfig = login({"token": control_plane.token_for(namespace, "default")})
    kubeconfig.write_text(kubeconfig.read_text().replace("certificate-authority", "ignored-authority"))
    async with opened(kubeconfig) as cluster:
        with pytest.raises(Unreachable, match="certificate"):
            await cluster.request("GET", "/version")


async def test_an_answer_that_is_no_json_is_unreachable(control_plane: ControlPlane) -> None:
    async with opened(control_plane.kubeconfig) as cluster:
        with pytest.raises(Unreachable, match="the answer is not JSON"):
            await cluster.request("GET", "/metrics")
