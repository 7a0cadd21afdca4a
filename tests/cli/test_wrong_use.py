"""What a person gets wrong is answered by one sentence on stderr and the right exit code, quickly."""

import socket
import time
from pathlib import Path

import pytest

from cli.command import meritorder

POLICY = """
apiVersion: meritorder.dev/v1alpha1
kind: InferencePolicy
metadata: {name: chat}
spec:
  sla: {metric: EndToEndLatency, targetMilliseconds: 2000}
  pools:
  - name: cheap
    backend: {hosts: [{host: 127.0.0.1, port: 1}]}
    cost: {perReplicaHour: "1.86"}
  - name: dear
    backend: {hosts: [{host: 127.0.0.1, port: 1}]}
    cost: {perReplicaHour: "6.88"}
"""
ON_A_CLUSTER = POLICY.replace(
    "{hosts: [{host: 127.0.0.1, port: 1}]}", "{service: {name: cheap, port: 80}}", 1
)
POOLS = "pools: [{name: cheap, profile: llama-3.1-8b/l40s}, {name: dear, profile: llama-3.1-8b/h100}]"


def refusal(*arguments: str, code: int) -> str:
    """The one sentence that a command line is refused with."""
    done = meritorder(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def test_names_the_command_that_is_not_there() -> None:
    assert refusal("serve", code=2) == "No such command 'serve' (see `meritorder --help`)"


def test_asks_for_the_policy() -> None:
    assert "Missing option '-f' / '--file'" in refusal("run", code=2)


def test_says_which_file_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert refusal("run", "-f", str(path), code=2) == f"{path}: cannot be read: no such file or directory"


def test_says_where_yaml_breaks(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("spec:\n  pools: [\n")
    assert refusal("run", "-f", str(path), code=2).startswith(f"{path}: not valid YAML in line 3: ")


def test_refuses_a_file_without_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    assert refusal("run", "-f", str(path), code=2) == f"{path}: no InferencePolicy found (only Service)"


def test_refuses_a_list_for_a_document(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    assert "each document must be a mapping" in refusal("run", "-f", str(path), code=2)


def test_refuses_two_policies(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(POLICY + "---" + POLICY.replace("name: chat", "name: code"))
    assert "2 policies given (`chat`, `code`)" in refusal("run", "-f", str(path), code=2)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("targetMilliseconds: 2000", "targetMilliseconds: 0", "spec.sla.targetMilliseconds"),
        (
            "targetMilliseconds: 2000",
            "targetMilliseconds: 2000, colour: red",
            "`spec.sla.colour`",
        ),
        ("name: dear", "name: cheap", "cheap"),
        ('"6.88"', "6.88", "perReplicaHour"),
    ],
)
def test_names_the_field_of_a_bad_policy(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace(old, new))
    message = refusal("run", "-f", str(path), code=2)
    assert message.startswith(f"{path}: policy `chat`: ")
    assert says in message


def test_refuses_a_service_that_nothing_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(ON_A_CLUSTER)
    assert refusal("run", "-f", str(path), code=2) == (
        "pool `cheap` is Service `cheap`, and there is no cluster here: say what stands behind it with "
        "--backend cheap=HOST:PORT, or simulate it with --pools"
    )


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("cheap", "`--backend` must be POOL=HOST:PORT[,HOST:PORT...], is `cheap`"),
        ("cheap=localhost", "`localhost` must be HOST:PORT with a port from 1 to 65535"),
        ("cheap=localhost:http", "`localhost:http` must be HOST:PORT with a port from 1 to 65535"),
        ("cheap=localhost:70000", "`localhost:70000` must be HOST:PORT with a port from 1 to 65535"),
        ("l4=localhost:80", "--backend names pool `l4`, which the policy does not have (it has cheap, dear)"),
    ],
)
def test_refuses_a_bad_backend(policy: Path, backend: str, says: str) -> None:
    assert says in refusal("run", "-f", str(policy), "--backend", backend, code=2)


def test_refuses_a_pools_file_that_names_other_pools(policy: Path, tmp_path: Path) -> None:
    pools = tmp_path / "pools.yaml"
    pools.write_text(POOLS.replace("name: dear", "name: deer"))
    message = refusal("run", "-f", str(policy), "--pools", str(pools), code=2)
    assert message == "the pools file has `deer`, which the policy does not have (it has cheap, dear)"


def test_refuses_a_pool_that_is_named_twice(policy: Path, tmp_path: Path) -> None:
    pools = tmp_path / "pools.yaml"
    pools.write_text(POOLS)
    arguments = ("run", "-f", str(policy), "--pools", str(pools), "--backend", "cheap=127.0.0.1:1")
    assert "is both in the pools file and in `--backend`" in refusal(*arguments, code=2)


def test_refuses_an_unknown_profile(policy: Path, tmp_path: Path) -> None:
    pools = tmp_path / "pools.yaml"
    pools.write_text(POOLS.replace("l40s", "tpu"))
    message = refusal("run", "-f", str(policy), "--pools", str(pools), code=2)
    assert "profile 'llama-3.1-8b/tpu' is not built in" in message


def test_refuses_a_bad_prometheus(policy: Path) -> None:
    message = refusal("run", "-f", str(policy), "--prometheus-url", "prometheus:9090", code=2)
    assert message == "`--prometheus-url` must be http://HOST:PORT or https://..., is `prometheus:9090`"


@pytest.mark.parametrize("listen", ["localhosd:80", "127.0.0.1", "127.0.0.1:0", ":99999"])
def test_refuses_a_bad_address(policy: Path, listen: str) -> None:
    assert refusal("run", "-f", str(policy), "--listen", listen, code=2).startswith("`--listen`: ")


def test_says_that_a_port_is_taken(policy: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert refusal("run", "-f", str(policy), "--listen", f"127.0.0.1:{port}", code=1) == (
            f"cannot listen on 127.0.0.1:{port}: another process listens there; "
            "choose another address with --listen"
        )


def test_says_that_an_address_is_not_this_machines(policy: Path) -> None:
    assert refusal("run", "-f", str(policy), "--listen", "192.0.2.1:8089", code=1) == (
        "cannot listen on 192.0.2.1:8089: cannot assign requested address; "
        "choose another address with --listen"
    )


def test_says_that_no_pool_can_be_reached(policy: Path) -> None:
    message = refusal("run", "-f", str(policy), "--listen", _free(), code=1)
    assert message == "no pool can be reached: nothing answers at 127.0.0.1:1"


def test_refuses_a_report_that_could_not_be_written(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "none" / "report.html"
    message = refusal("run", "-f", str(policy), "--report", str(path), code=2)
    assert message == f"{path} cannot be written: its folder does not exist"


@pytest.mark.parametrize("secret", ["apiKeySecretRef: {name: a, key: b}", "model: m"])
def test_refuses_what_needs_a_secret(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace("port: 1}]}", f"port: 1}}], {secret}}}", 1))
    said = meritorder("run", "-f", str(path), "--listen", _free()).stderr
    assert ("there are no Secrets without a cluster" in said) == secret.startswith("apiKey")


def test_help_is_quick_and_lists_what_there_is() -> None:
    began = time.monotonic()
    done = meritorder("--help")
    seconds = time.monotonic() - began
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line] == [
        "run",
        "demo",
        "explain",
        "top",
        "history",
        "recommend",
        "pause",
        "resume",
        "doctor",
        "pools",
        "crd",
    ]
    # 0.1 s on an idle machine; a heavy import would show as several times that.
    assert seconds < 2


def test_every_option_names_its_environment_variable() -> None:
    for command in ("run", "demo", "explain", "history", "pause", "resume"):
        text = " ".join(meritorder(command, "--help").stdout.split())
        options = text.partition("Options:")[2]
        assert options.count("env var: MERITORDER_") == options.count(" --") - options.count("--help")


def test_prints_the_crd() -> None:
    done = meritorder("crd")
    assert done.returncode == 0
    assert "kind: CustomResourceDefinition" in done.stdout


def _free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"
