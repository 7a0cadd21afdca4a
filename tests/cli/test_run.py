"""`meritorder run` for real: its own Envoy, simulated pools or plain servers, and traffic through them."""

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.browser import look
from cli.command import started
from meritorder_sim.arrivals import Fixed, Mix, Phase, Schedule, Uniform, plan
from meritorder_sim.load import Target, run_load
from support.processes import Child
from support.waiting import until, wait_until

POLICY = """
apiVersion: meritorder.dev/v1alpha1
kind: InferencePolicy
metadata: {{name: chat}}
spec:
  sla: {{metric: EndToEndLatency, targetMilliseconds: 2000, windowSeconds: 5, minimumSamples: 20}}
  pools:
  - name: cheap
    backend: {cheap}
    cost: {{perReplicaHour: "1.86"}}
    concurrency: {{minimum: 6}}
  - name: dear
    backend: {dear}
    cost: {{perReplicaHour: "6.88"}}
  sizeClasses: "Off"
  behavior: {{intervalSeconds: 1}}
"""
POOLS = """
pools:
- {name: cheap, profile: llama-3.1-8b/l40s, maxBatch: 64, referenceCostPerMillionTokens: "0.86"}
- {name: dear, profile: llama-3.1-8b/h100, maxBatch: 64, referenceCostPerMillionTokens: "1.50"}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    service = "{service: {name: any, port: 80}}"
    path.write_text(POLICY.format(cheap=service, dear=service))
    return path


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    path = tmp_path / "pools.yaml"
    path.write_text(POOLS)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def traffic(seconds: float, rate: float) -> Any:
    mix = Mix(prompt_tokens=Fixed(300), output_tokens=Uniform(25, 40), stream_percent=20, max_tokens="none")
    return plan(Schedule(phases=(Phase(seconds, rate),)), mix, random.Random(1))


def answers(port: int) -> bool:
    try:
        # 503 is Envoy's own answer before its first table; a plain server may know no models (404).
        return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2).status_code != 503
    except httpx.HTTPError:
        return False


def processes_of(pid: int) -> list[int]:
    """All living descendants of a process."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            child = int(stat.parent.name)
            found += [child, *processes_of(child)]
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def read(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(path.read_text())
    return run


async def test_moves_traffic_onto_the_cheap_pool(policy: Path, pools: Path, tmp_path: Path) -> None:
    port, report, figures = free_port(), tmp_path / "report.html", tmp_path / "run.json"
    run = started(
        tmp_path / "log",
        *("run", "-f", str(policy), "--pools", str(pools), "--listen", str(port), "--seconds", "17"),
        *("--report", str(report), "--json", str(figures)),
    )
    with run:
        await until(lambda: asyncio.to_thread(answers, port), 30, "the endpoint answers")
        load = await run_load(Target(url=f"http://127.0.0.1:{port}"), traffic(12, 14))
        assert load.failed == 0
        assert await asyncio.to_thread(run.wait, 30) == 0
    text = run.log_text()
    assert "Traceback" not in text
    assert "Grow CleanSamples: cheap" in text
    # Once it has grown, the cheap pool carries nearly everything.
    late = load.shares(start=8)
    assert late.get("cheap", 0.0) > 0.8, late

    document = read(figures)
    (contender,) = document["contenders"]
    assert contender["name"] == "meritorder"
    # The router and the clients count the same requests.
    assert contender["requests"]["total"] + contender["warmup"]["requests"] == load.requests
    assert contender["requests"]["failed"] == 0
    assert contender["windows"]["total"] >= 1
    by_name = {pool["name"]: pool for pool in contender["pools"]}
    assert list(by_name) == ["cheap", "dear"]
    assert by_name["cheap"]["requests"] > by_name["dear"]["requests"]
    assert by_name["cheap"]["completionTokens"] > 0
    assert 0 < float(contender["referenceCost"]) < float(contender["referenceCostOnFallback"])
    assert document["decisions"][0] == {
        "at": 0.0,
        "action": "Start",
        "reason": "FirstDecision",
        "message": document["decisions"][0]["message"],
        "limits": {"cheap": 6.0, "dear": None},
    }
    assert "<svg" in report.read_text()


async def test_writes_the_json_that_is_promised(policy: Path, pools: Path, tmp_path: Path) -> None:
    figures = tmp_path / "run.json"
    run = started(
        tmp_path / "log",
        *("run", "-f", str(policy), "--pools", str(pools), "--listen", str(free_port())),
        *("--seconds", "3", "--json", str(figures)),
    )
    with run:
        assert await asyncio.to_thread(run.wait, 40) == 0, run.log_tail()
    document = read(figures)
    assert {"seed", "sla", "contenders", "decisions"} <= document.keys()
    (contender,) = document["contenders"]
    assert contender.keys() >= {
        "name",
        "windows",
        "requests",
        "warmup",
        "attainedSeconds",
        "reversalsPerHour",
        "limitChangesPerHour",
        "referenceCost",
        "bill",
        "billNeeded",
        "pools",
    }
    assert contender["requests"] == {"total": 0, "slow": 0, "failed": 0}
    assert contender["attainedSeconds"] is None
    assert contender["pools"][0].keys() == {
        "name",
        "requests",
        "promptTokens",
        "completionTokens",
        "attainedSeconds",
        "replicaHours",
        "finalLimitPerReplica",
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leaves_nothing_behind_when_interrupted(
    policy: Path, pools: Path, tmp_path: Path, number: signal.Signals
) -> None:
    port, figures = free_port(), tmp_path / "run.json"
    run = started(
        tmp_path / "log",
        *("run", "-f", str(policy), "--pools", str(pools), "--listen", str(port), "--json", str(figures)),
    )
    with run:
        run.wait_for(lambda: answers(port), 30, "the endpoint answers")
        children = processes_of(run.pid)
        assert len(children) >= 2, "Envoy and the simulated pools"
        run.send(number)
        assert run.wait(20) == 0
    assert [child for child in children if alive(child)] == []
    assert "Traceback" not in run.log_text()
    assert read(figures)["policy"] == "chat"


def test_leaves_nothing_behind_when_killed(policy: Path, pools: Path, tmp_path: Path) -> None:
    port = free_port()
    run = started(tmp_path / "log", "run", "-f", str(policy), "--pools", str(pools), "--listen", str(port))
    with run:
        run.wait_for(lambda: answers(port), 30, "the endpoint answers")
        children = processes_of(run.pid)
        os.kill(run.pid, signal.SIGKILL)
        run.wait(10)
        wait_until(lambda: not any(map(alive, children)), 15, "the children end with their parent")


async def test_shows_the_whole_story_in_a_demo(tmp_path: Path) -> None:
    report, figures = tmp_path / "report.html", tmp_path / "run.json"
    run = started(
        tmp_path / "log",
        *("demo", "--seconds", "24", "--listen", str(free_port())),
        *("--report", str(report), "--json", str(figures)),
    )
    with run:
        assert await asyncio.to_thread(run.wait, 90) == 0, run.log_tail()
    document = read(figures)
    assert [event["message"].partition(" from")[0] for event in document["events"]] == [
        "burst: load goes",
        "the burst is over",
        "l40s turns 3x slower",
        "l40s is as fast as before",
    ]
    (contender,) = document["contenders"]
    assert [pool["name"] for pool in contender["pools"]] == ["l40s", "a100", "h100"]
    assert all(pool["requests"] > 0 for pool in contender["pools"])
    # The clients counted the same as the router, slow ones give or take what lies between the two.
    total = contender["requests"]["total"]
    assert total > 300
    assert abs(document["client"]["requests"] - total) <= 5
    assert document["client"]["failed"] == contender["requests"]["failed"] == 0
    assert abs(document["client"]["slow"] - contender["requests"]["slow"]) <= 0.02 * total
    assert float(contender["referenceCost"]) < float(contender["referenceCostOnFallback"])
    seen = await asyncio.to_thread(look, report, tmp_path)
    assert seen.requests == []
    assert seen.complaints == []
    assert seen.dom.count('class="chart wide"') == 8


class PlainServer:
    """An OpenAI-compatible server that is not ours: no health path, no metrics, no usage."""

    def __init__(self, seconds: float, slots: int) -> None:
        self.seconds = seconds
        self.requests = 0
        self._slots = asyncio.Semaphore(slots)
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "PlainServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()).strip():
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                await reader.readexactly(length)
                if line.startswith(b"POST "):
                    self.requests += 1
                    async with self._slots:
                        await asyncio.sleep(self.seconds)
                    status, body = b"200 OK", b'{"choices":[{"message":{"role":"assistant","content":"hi"}}]}'
                else:
                    status, body = b"404 Not Found", b"{}"
                writer.write(
                    b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (status, len(body), body)
                )
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@pytest.fixture
async def servers() -> AsyncIterator[tuple[PlainServer, PlainServer]]:
    """A cheap server that does 16 requests/s (8 at once, half a second each), and a dear one with room."""
    async with PlainServer(0.5, 8) as cheap, PlainServer(0.25, 1000) as dear:
        yield cheap, dear


async def test_serves_over_servers_that_are_not_ours(
    servers: tuple[PlainServer, PlainServer], tmp_path: Path
) -> None:
    cheap, dear = servers
    policy, figures, port = tmp_path / "policy.yaml", tmp_path / "run.json", free_port()
    hosts = "{{hosts: [{{host: 127.0.0.1, port: {}}}]}}"
    text = POLICY.format(cheap=hosts.format(cheap.port), dear=hosts.format(dear.port))
    policy.write_text(text.replace("2000", "1000"))
    run = started(
        tmp_path / "log",
        *("run", "-f", str(policy), "--listen", str(port), "--seconds", "30", "--json", str(figures)),
    )
    with run:
        await until(lambda: asyncio.to_thread(answers, port), 30, "the endpoint answers")
        low = await run_load(Target(url=f"http://127.0.0.1:{port}", sizes="text"), traffic(9, 8))
        before = dear.requests
        high = await run_load(Target(url=f"http://127.0.0.1:{port}", sizes="text"), traffic(12, 28))
        assert await asyncio.to_thread(run.wait, 40) == 0, run.log_tail()
    assert {record.error for record in (*low.records, *high.records) if not record.stream} == {None}
    # Low load sits on the cheap server once its limit has grown; of the high one it keeps what it can do.
    assert before < 0.5 * low.requests
    assert dear.requests > before + 0.2 * high.requests
    assert cheap.requests > 0.3 * (low.requests + high.requests)
    (contender,) = read(figures)["contenders"]
    assert contender["requests"]["failed"] == 0
    assert contender["referenceCost"] is None
    assert contender["pools"][0]["completionTokens"] is None


async def test_has_a_routing_from_its_first_request_on(
    servers: tuple[PlainServer, PlainServer], tmp_path: Path
) -> None:
    policy, port = tmp_path / "policy.yaml", free_port()
    hosts = "{{hosts: [{{host: 127.0.0.1, port: {}}}]}}"
    policy.write_text(POLICY.format(cheap=hosts.format(servers[0].port), dear=hosts.format(servers[1].port)))
    run = started(tmp_path / "log", "run", "-f", str(policy), "--listen", str(port), "--seconds", "3")
    with run:
        async with httpx.AsyncClient(timeout=10) as client:
            # Asked all the while, so that the first moment in which somebody listens is not missed.
            first = await until(
                lambda: client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={}),
                30,
                "an answer",
                interval_seconds=0.002,
                retry_on=(httpx.ConnectError,),
            )
        assert (first.status_code, first.text[:10]) == (200, '{"choices"')
        assert await asyncio.to_thread(run.wait, 30) == 0


async def test_says_that_a_pool_does_not_answer_and_serves_with_the_others(
    servers: tuple[PlainServer, PlainServer], policy: Path, tmp_path: Path
) -> None:
    _, dear = servers
    port = free_port()
    run: Child = started(
        tmp_path / "log",
        *("run", "-f", str(policy), "--listen", str(port), "--seconds", "6"),
        *("--backend", f"cheap=127.0.0.1:{free_port()}", "--backend", f"dear=127.0.0.1:{dear.port}"),
    )
    with run:
        await until(lambda: asyncio.to_thread(answers, port), 30, "the endpoint answers")
        load = await run_load(Target(url=f"http://127.0.0.1:{port}", sizes="text"), traffic(2, 5))
        assert await asyncio.to_thread(run.wait, 30) == 0
    assert [record.error for record in load.records if not record.stream and record.failed] == []
    assert "cheap: nothing answers there yet" in run.log_text()
