"""`meritorder run --prometheus-url`: an engine's own metrics and a price by query, from a real one."""

import asyncio
import json
import random
import re
from pathlib import Path

import httpx
import pytest

from cli.command import started
from meritorder_sim.arrivals import Fixed, Mix, Phase, Schedule, plan
from meritorder_sim.faults import FaultChange
from meritorder_sim.load import Target, run_load
from meritorder_sim.pools import SimulatedPools
from meritorder_sim.pools_file import parse_pools_file
from servers.prometheus import StartPrometheus
from support.ports import free_port
from support.waiting import until

POOLS = """
pools:
- {name: cheap, profile: llama-3.1-8b/l40s, maxBatch: 64}
- {name: dear, profile: llama-3.1-8b/h100, maxBatch: 64}
"""
POLICY = """
apiVersion: meritorder.dev/v1alpha1
kind: InferencePolicy
metadata: {{name: chat}}
spec:
  sla: {{metric: EndToEndLatency, targetMilliseconds: 2000, windowSeconds: 8, minimumSamples: 20}}
  pools:
  - name: cheap
    backend: {{hosts: [{{host: 127.0.0.1, port: {cheap}}}]}}
    cost: {{query: "vector(1.86)"}}
    metrics: {{engine: VLLM, selector: {{service: cheap}}}}
    concurrency: {{minimum: 6}}
  - name: dear
    backend: {{hosts: [{{host: 127.0.0.1, port: {dear}}}]}}
    cost: {{perReplicaHour: "6.88"}}
  sizeClasses: "Off"
  behavior: {{intervalSeconds: 1}}
"""


async def test_measures_an_engine_and_prices_a_pool_by_prometheus(
    prometheus: StartPrometheus, tmp_path: Path
) -> None:
    figures, policy, port = tmp_path / "run.json", tmp_path / "policy.yaml", free_port()
    async with SimulatedPools(parse_pools_file(POOLS)) as pools:
        ports = {name: addresses[0].port for name, addresses in pools.addresses.items()}
        policy.write_text(POLICY.format(**ports))
        server = await asyncio.to_thread(prometheus)
        server.set_targets("engines", [f"127.0.0.1:{ports['cheap']}"], {"service": "cheap"})
        await asyncio.to_thread(server.wait_for, "vllm:num_requests_running")
        run = started(
            tmp_path / "log",
            *("run", "-f", str(policy), "--listen", str(port), "--seconds", "22"),
            *("--json", str(figures), "--prometheus-url", server.url),
        )
        with run:
            await until(lambda: asyncio.to_thread(answers, port), 30, "the endpoint answers")
            mix = Mix(prompt_tokens=Fixed(300), output_tokens=Fixed(30), stream_percent=0, max_tokens="none")
            requests = plan(Schedule(phases=(Phase(18, 14),)), mix, random.Random(1))
            load = await run_load(Target(url=f"http://127.0.0.1:{port}"), requests)
            assert await asyncio.to_thread(run.wait, 40) == 0, run.log_tail()
    assert load.failed == 0
    document = json.loads(figures.read_text())
    assert {pool["name"]: pool["pricePerReplicaHour"] for pool in document["pools"]} == {
        "cheap": 1.86,
        "dear": 6.88,
    }
    grown = [one for one in document["decisions"] if one["action"] == "Grow" and "cheap" in one["message"]]
    assert grown, [one["message"] for one in document["decisions"]]
    states = {
        pool["state"] for tick in document["series"] for pool in tick["pools"] if pool["name"] == "cheap"
    }
    assert states & {"Meets", "Unsure"}, states


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (FaultChange(error_percent=40), "cheap [0-9]+ % failed or slower than 2.00 s over"),
        (
            FaultChange(metrics="frozen"),
            "VLLM's counters stand still or are not there, but the routers saw [0-9]+ requests completed",
        ),
    ],
    ids=["an engine that fails", "an engine that does not count"],
)
async def test_adds_what_only_its_envoy_knows_of_an_engine(
    prometheus: StartPrometheus, tmp_path: Path, fault: FaultChange, said: str
) -> None:
    policy, port = tmp_path / "policy.yaml", free_port()
    async with SimulatedPools(parse_pools_file(POOLS)) as pools:
        ports = {name: addresses[0].port for name, addresses in pools.addresses.items()}
        policy.write_text(POLICY.format(**ports))
        server = await asyncio.to_thread(prometheus)
        server.set_targets("engines", [f"127.0.0.1:{ports['cheap']}"], {"service": "cheap"})
        await asyncio.to_thread(server.wait_for, "vllm:num_requests_running")
        pools["cheap"].set_faults(fault)
        run = started(
            tmp_path / "log",
            *("run", "-f", str(policy), "--listen", str(port), "--prometheus-url", server.url),
        )
        with run:
            await until(lambda: asyncio.to_thread(answers, port), 30, "the endpoint answers")
            mix = Mix(prompt_tokens=Fixed(300), output_tokens=Fixed(30), stream_percent=0, max_tokens="none")
            requests = plan(Schedule(phases=(Phase(40, 14),)), mix, random.Random(1))
            load = asyncio.create_task(run_load(Target(url=f"http://127.0.0.1:{port}"), requests))
            try:
                await until(lambda: re.search(said, run.log_text()), 40, f"`{said}` is said")
            finally:
                load.cancel()
                await asyncio.gather(load, return_exceptions=True)


async def test_says_what_it_does_not_know_without_prometheus(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    async with SimulatedPools(parse_pools_file(POOLS)) as pools:
        policy.write_text(POLICY.format(**{name: one[0].port for name, one in pools.addresses.items()}))
        run = started(
            tmp_path / "log", "run", "-f", str(policy), "--listen", str(free_port()), "--seconds", "2"
        )
        with run:
            assert await asyncio.to_thread(run.wait, 40) == 0, run.log_tail()
    assert "cheap: metrics of VLLM and its price would need --prometheus-url" in run.log_text()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
