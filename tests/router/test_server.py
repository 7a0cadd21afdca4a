"""The router server against the real API server: the right table, fast, and refusals in a sentence."""

import asyncio
from typing import Any

import httpx

from meritorder_api.table import Fill
from servers.control_plane import ControlPlane
from servers.router_server import Policy, Server, StartAgent
from support.waiting import until


async def test_gives_a_pod_the_table_of_the_policy_that_it_names(
    policy: Policy, server: Server, agent: StartAgent
) -> None:
    policy.route(1, "16.25")
    one = agent(server)
    assert await one.poll(wait=10) == 200
    table = one.table
    assert table is not None
    assert (table.policy.name, table.policy.uid) == ("chat", policy.read()["metadata"]["uid"])
    assert [(pool.name, pool.limit) for pool in table.pools] == [("l40s", 32), ("h100", None)]
    assert [endpoint.address for endpoint in table.pools[0].endpoints] == ["192.0.2.1", "192.0.2.2"]
    assert table.fill is Fill.FILL
    assert await one.poll() == 304


async def test_scaling_a_pool_moves_its_limit_without_the_operator(
    policy: Policy, server: Server, agent: StartAgent
) -> None:
    policy.route(1, "16.25")
    one = agent(server)
    await one.turn(wait=10)
    policy.endpoints("l40s", "192.0.2.1", "192.0.2.2", "192.0.2.3", not_ready=("192.0.2.4",))

    async def scaled() -> bool:
        await one.poll(wait=1)
        return one.limit() == 48

    await until(scaled, 5, "the limit of three replicas")
    assert one.table is not None
    assert [endpoint.ready for endpoint in one.table.pools[0].endpoints] == [True, True, True, False]


async def test_a_status_patch_wakes_a_waiting_agent(
    policy: Policy, server: Server, agent: StartAgent
) -> None:
    """Each patch by the question that was already waiting; how fast, `make bench` tells."""
    policy.route(1, "16")
    one = agent(server)
    await one.turn(wait=10)
    await one.turn()
    for sequence in range(2, 8):
        waiting = asyncio.create_task(one.poll(wait=10))
        await asyncio.to_thread(policy.route, sequence, str(16 + sequence))
        assert await waiting == 200
        assert one.table is not None
        assert one.table.sequence == sequence
        await one.report()


async def test_figures_in_the_status_are_no_reason_for_a_new_table(
    policy: Policy, server: Server, agent: StartAgent
) -> None:
    policy.route(1, "16")
    one = agent(server)
    await one.turn(wait=10)
    waiting = asyncio.create_task(one.poll(wait=1.5))
    patch = {"status": {"summary": {"attained": "1.84s", "saved": "38%"}}}
    policy.control_plane.request(
        "PATCH", f"{policy.path}/status", patch, **{"Content-Type": "application/merge-patch+json"}
    )
    assert await waiting == 304


async def test_a_first_table_is_waited_for_and_a_policy_that_is_gone_is_said_at_once(
    control_plane: ControlPlane, namespace: str, server: Server, agent: StartAgent
) -> None:
    policy = Policy(control_plane, namespace)
    one = agent(server)
    answer = await one.ask()
    assert (answer.status_code, answer.json()["reason"]) == (404, "PolicyGone")
    waiting = asyncio.create_task(one.poll(wait=20))
    policy.create()
    policy.endpoints("l40s", "192.0.2.1")
    answer = await one.ask()
    assert (answer.status_code, answer.json()["reason"]) in [(404, "PolicyGone"), (404, "NothingRouted")]
    await asyncio.to_thread(policy.route, 1, None)
    assert await waiting == 200
    policy.delete()
    gone = await until(lambda: _gone(one), 5, "the policy is gone")
    assert gone == {
        "reason": "PolicyGone",
        "message": f"there is no InferencePolicy `chat` in namespace `{namespace}`",
    }


async def _gone(one: Any) -> Any:
    answer = await one.ask(wait=10)
    return answer.json() if answer.status_code == 404 else None


async def test_bad_questions_are_refused_in_a_sentence(
    policy: Policy, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    for name, value, rule in (
        ("waitSeconds", "-1", "a number from 0 to 60"),
        ("waitSeconds", "inf", "a number from 0 to 60"),
        ("waitSeconds", "nan", "a number from 0 to 60"),
        ("waitSeconds", "soon", "a number from 0 to 60"),
        ("sequence", "1.5", "a whole number"),
        ("sequence", "9" * 19, "a whole number"),
    ):
        answer = await one.client.get(
            f"{one.server.url}/v1/table",
            params={name: value},
            headers={"Authorization": f"Bearer {one.token}"},
        )
        assert answer.status_code == 400
        assert answer.json()["message"] == f"`{name}` is `{value}`; it must be {rule}"


async def test_a_report_that_is_none_is_refused_in_a_sentence(
    policy: Policy, server: Server, agent: StartAgent
) -> None:
    one = agent(server)
    answer = await one.client.post(
        f"{one.server.url}/v1/report",
        content=b'{"offeredLoad": -1}',
        headers={"Authorization": f"Bearer {one.token}"},
    )
    assert answer.status_code == 400
    assert answer.json()["message"] == "the report is not one: `policy` must be set; and 1 more"
    answer = await one.client.post(
        f"{one.server.url}/v1/report",
        content=b" " * 300_000,
        headers={"Authorization": f"Bearer {one.token}"},
    )
    assert answer.status_code == 413
    assert answer.json()["message"] == "the report has 300000 bytes; it must be at most 262144"


async def test_metrics_and_probes_are_served_in_plain_http(policy: Policy, server: Server) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{server.metrics_url}/healthz")).text == "ok\n"
        text = (await client.get(f"{server.metrics_url}/metrics")).text
    assert "meritorder_server_tables_on 1.0" in text
    assert server.metric("meritorder_server_policies") >= 1
