"""What every test leans on: children that end, ports that are free, waiting that gives up."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from servers.envoy import EnvoyProcess
from support.addresses import non_loopback_address
from support.ports import FIRST, LAST, free_port, free_ports
from support.processes import Child, DiedEarly, cpu_seconds, memory_bytes
from support.waiting import NeverHappened, until, wait_until

# Starts a child of its own that ignores SIGTERM, says its pid, and waits.
PARENT_OF_A_STUBBORN_ONE = """
import subprocess, sys, signal
stubborn = '''
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
signal.pause()
'''
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
signal.pause()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def python(code: str, folder: Path) -> Child:
    return Child([sys.executable, "-c", code], log=folder / "child.log", name="child")


def test_stop_ends_a_child_and_everything_it_started(tmp_path: Path) -> None:
    with python(PARENT_OF_A_STUBBORN_ONE, tmp_path) as child:
        child.wait_for(child.log_text, 20, "it says its child's pid")
        grandchild = int(child.log_text())
        assert is_alive(grandchild)
    assert child.exit_code == -15
    wait_until(lambda: not is_alive(grandchild), 10, "the grandchild is gone")


def test_stop_ends_a_paused_child(tmp_path: Path) -> None:
    child = python("import signal; signal.pause()", tmp_path).start()
    child.pause()
    child.stop()
    assert not child.running


def test_child_that_dies_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = python("raise SystemExit('no such file: policy.yaml')", tmp_path).start()
    with pytest.raises(DiedEarly, match=r"child ended with 1 before it serves\n(.*\n)*no such file: policy"):
        child.wait_for(lambda: False, 20, "it serves")


def test_child_does_not_outlive_a_killed_test_process(tmp_path: Path) -> None:
    starter = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.processes import Child
child = Child([sys.executable, "-c", "import signal; signal.pause()"], log=Path({str(tmp_path)!r}) / "log")
print(child.start().pid, flush=True)
child.wait(60)
"""
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.kill()
    wait_until(lambda: not is_alive(pid), 10, "the child died with its parent")


def test_child_reads_its_own_cost(tmp_path: Path) -> None:
    with python("while True: pass", tmp_path) as child:
        wait_until(lambda: cpu_seconds(child.pid) > 0.1, 20, "it has used the processor")
        assert memory_bytes(child.pid) > 1_000_000


def test_ports_are_never_handed_out_twice() -> None:
    with ThreadPoolExecutor(8) as callers:
        given = [port for ports in callers.map(lambda _: free_ports(5), range(20)) for port in ports]
    assert len(set(given)) == 100
    assert all(FIRST <= port <= LAST for port in given)


def test_port_in_use_is_not_handed_out() -> None:
    with socket.create_server(("127.0.0.1", free_port() + 1)) as taken:
        assert taken.getsockname()[1] not in free_ports(3)


def test_machine_address_is_its_own_and_not_loopback() -> None:
    address = non_loopback_address()
    assert not address.startswith("127.")
    with socket.create_server((address, 0)):
        pass


def test_waiting_gives_up_and_says_what_it_saw_last() -> None:
    with pytest.raises(NeverHappened, match=r"ready: not within 0\.2 s; last seen: 0"):
        wait_until(lambda: 0, 0.2, "ready")


async def test_waiting_in_a_loop_takes_coroutines_and_forgives_named_errors() -> None:
    tries = iter(["error", "", "yes"])

    async def predicate() -> str:
        word = next(tries)
        if word == "error":
            raise ConnectionError(word)
        return word

    assert await until(predicate, 5, "a yes", retry_on=(ConnectionError,)) == "yes"


async def test_waiting_lets_other_errors_rise() -> None:
    def predicate() -> bool:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await until(predicate, 5, "never")


def test_envoy_starts_from_a_bootstrap_file(tmp_path: Path) -> None:
    admin = free_port()
    bootstrap = tmp_path / "envoy.yaml"
    bootstrap.write_text(
        f"admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n"
    )
    with EnvoyProcess(bootstrap, admin_port=admin) as envoy:
        assert envoy.stats("server.")["server.live"] == 1
    assert envoy.child.exit_code == 0
