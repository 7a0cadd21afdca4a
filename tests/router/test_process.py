"""The process `meritorder-router serve`: wrong use in one sentence, certificates that rotate, health and
its clock.
"""

import asyncio
import re
import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner

from meritorder_router.server.certificates import Certificate
from meritorder_router.server.health import Health
from meritorder_router.server.kube import Kube
from meritorder_router.server.main import serve_command
from servers.control_plane import ControlPlane
from servers.pki import Authority
from servers.router_server import StartServer
from support.waiting import until


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--listen", "0.0.0.0:8443"],
            "`--listen` is 0.0.0.0:8443 without `--tls-cert`; plain HTTP is served on loopback only, such as "
            "127.0.0.1:8443",
        ),
        (["--listen", "8443x"], "`--listen` is `8443x`; it must be HOST:PORT, such as 0.0.0.0:8443"),
        (["--tls-cert", "a.pem"], "`--tls-cert` and `--tls-key` must be given together"),
        (
            ["--listen", "127.0.0.1:1", "--peer-account", "x"],
            "`--peer-account` is `x`; it must be NAMESPACE:NAME",
        ),
        (
            ["--sidecar-resources", "{"],
            "Invalid value for '--sidecar-resources': must be JSON: Expecting property name enclosed in "
            "double quotes: line 1 column 2 (char 1)",
        ),
        (
            ["--sidecar-resources", '{"memory": "1Gi"}'],
            "Invalid value for '--sidecar-resources': must be an object with `requests` and `limits`",
        ),
        (
            ["--sidecar-resources", '{"limits": {"memory": "much"}}'],
            "Invalid value for '--sidecar-resources': `limits.memory` must be a quantity, such as "
            '"100m" or "256Mi"',
        ),
        (
            ["--sidecar-user", "0"],
            "Invalid value for '--sidecar-user': must be the number of a user who is not root, or `none`",
        ),
    ],
)
def test_wrong_use_is_told_in_one_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(serve_command, arguments)
    assert result.exit_code == 2
    said = result.output.strip().splitlines()[-1]
    assert re.sub(r" \(env var: '\w+'\)", "", said) == f"Error: {sentence}"


def test_every_option_names_its_variable() -> None:
    text = CliRunner().invoke(serve_command, ["--help"], terminal_width=200).output
    options = [parameter for parameter in serve_command.params if parameter.name != "help"]
    assert len(options) > 10
    for option in options:
        assert "MERITORDER_" in str(option.envvar)
    assert text.count("MERITORDER_") >= len(options)


async def test_a_rotated_certificate_is_presented_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    pair = authority.issue("server", "meritorder-router", names=["127.0.0.1"])
    certificate = Certificate(pair.certificate, pair.key)
    assert certificate.load()
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=certificate.context
    )
    port = server.sockets[0].getsockname()[1]

    async def presented() -> bytes:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return shown

    first = await presented()
    pair.certificate.write_text("half a certif")
    assert certificate.load()
    assert await presented() == first
    authority.issue("server", "meritorder-router", names=["127.0.0.1"])
    assert certificate.load()
    assert await presented() != first
    server.close()
    await server.wait_closed()


async def test_a_server_waits_for_its_certificate(
    serve: StartServer, tmp_path: Path, authority: Authority
) -> None:
    late = tmp_path / "late"
    late.mkdir()
    options = ("--tls-cert", str(late / "tls.crt"), "--tls-key", str(late / "tls.key"))
    server = serve(wait=False, options=options)
    await until(
        lambda: "waiting for a certificate" in server.child.log_text(), 20, "it says what it waits for"
    )
    assert not server.ready()
    pair = authority.issue("late", "meritorder-router", names=["127.0.0.1"])
    (late / "tls.key").write_bytes(pair.key.read_bytes())
    (late / "tls.crt").write_bytes(pair.certificate.read_bytes())
    await until(server.ready, 10, "it is ready")


def test_the_clock_of_silence_stands_still_while_the_process_was_stopped(control_plane: ControlPlane) -> None:
    seconds = 0.0

    def now() -> float:
        return seconds

    async def steps() -> list[float]:
        nonlocal seconds
        kube = Kube.connect(control_plane.kubeconfig)
        health = Health(kube, [], now=now)
        seen = []
        asking = asyncio.create_task(health.ask())
        await until(lambda: not health.away, 5, "the API server answers")
        asking.cancel()
        for moment in (0.0, 0.5, 1.0, 9.0, 9.5, 30.0, 30.5):
            seconds = moment
            health.step()
            seen.append(health.clock)
        await kube.close()
        return seen

    assert asyncio.run(steps()) == [0.0, 0.5, 1.0, 2.0, 2.5, 2.5, 2.5]
