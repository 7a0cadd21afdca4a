"""Pools as OS processes: the command line, its announcements, and a pool killed with signal 9."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from meritorder_sim.pools_file import PoolsFileError
from meritorder_sim.processes import PoolProcess, ProcessPools
from support.ports import free_ports
from support.waiting import until

FILE = """
pools:
  - name: cheap
    profile: {tpot: [2, 0.01, 0.01], ttft: [20, 0.01, 0.01]}
    replicas: 2
  - name: dear
    profile: {tpot: [1, 0.01, 0.01], ttft: [10, 0.01, 0.01]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pools.yaml"
    file.write_text(FILE)
    return file


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "meritorder_sim", *options]


async def health(host: str, port: int) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/health") as answer:
        return answer.status


async def test_each_pool_is_a_process_that_dies_alone_and_comes_back(path: Path) -> None:
    async with ProcessPools(path) as pools:
        addresses = pools.addresses
        assert {name: len(found) for name, found in addresses.items()} == {"cheap": 2, "dear": 1}
        await pools["cheap"].kill()
        assert not pools["cheap"].running
        with pytest.raises(aiohttp.ClientConnectorError):
            await health(*addresses["cheap"][0])
        assert await health(*addresses["dear"][0]) == 200
        assert await pools["cheap"].start() == addresses["cheap"]
        assert await health(*addresses["cheap"][1]) == 200
        assert (await pools["cheap"].set_faults(slowdown=3))["slowdown"] == 3
        with pytest.raises(PoolsFileError, match="`slowdown`"):
            await pools["cheap"].set_faults(slowdown=-3)


async def test_addresses_of_a_process_follow_its_events(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(
        "pools: [{name: one, profile: llama-3.1-8b/h100, replicas: 1, events: [{at: 0.2, replicas: 3}]}]"
    )
    async with PoolProcess(path, "one") as process:
        await until(lambda: len(process.addresses) == 3, 10, "three replicas are announced")
        assert process.models == ["llama-3.1-8b"]


async def test_a_process_ends_with_its_parents_pipe(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *command("--pools", str(path), "--exit-with-stdin"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
    assert [line["pool"] for line in lines] == ["cheap", "dear"]
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_an_interrupt_ends_it_cleanly(path: Path) -> None:
    ports = free_ports(2)
    process = await asyncio.create_subprocess_exec(
        *command("--pools", str(path), "--pool", "cheap", "--port", f"cheap={ports[0]},{ports[1]}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = json.loads(await process.stdout.readline())
    assert line == {
        "pool": "cheap",
        "endpoints": [{"address": "127.0.0.1", "port": port} for port in ports],
        "models": ["cheap"],
    }
    process.send_signal(signal.SIGINT)
    rest = await asyncio.wait_for(process.communicate(), 10)
    assert rest == (b"", b"")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--pools", "none.yaml"),
            "Error: pools file 'none.yaml' cannot be read: No such file or directory\n",
        ),
        (
            ("--pools", "FILE", "--pool", "x"),
            "Error: pool 'x' is not in the pools file; it has cheap, dear\n",
        ),
        (
            ("--pools", "FILE", "--port", "x=1"),
            "Error: ports are given for pool 'x', which is not in the pools file\n",
        ),
        (
            ("--pools", "FILE", "--port", "cheap"),
            "Error: `--port` must be POOL=PORT[,PORT...] with ports from 1 to 65535, is 'cheap'\n",
        ),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_two(
    path: Path, options: tuple[str, ...], sentence: str
) -> None:
    arguments = command(*(str(path) if option == "FILE" else option for option in options))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


async def test_a_process_that_cannot_start_says_why(path: Path) -> None:
    with pytest.raises(
        PoolsFileError, match="pool 'none' did not start: Error: pool 'none' is not in the pools"
    ):
        await PoolProcess(path, "none").start()


async def test_a_taken_port_is_one_sentence(path: Path) -> None:
    async with PoolProcess(path, "dear") as first:
        taken = first.addresses[0].port
        second = PoolProcess(path, "dear", ports=[taken])
        with pytest.raises(PoolsFileError, match=r"cannot listen on 127\.0\.0\.1: .*in use"):
            await second.start()
