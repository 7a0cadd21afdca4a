"""A server that is cut off from the API server, or before a frozen one: no agent goes back."""

import asyncio
import time

from servers.control_plane import ControlPlane
from servers.router_server import Agent, Policy, StartAgent, StartServer, settle
from servers.tcp_proxy import TcpProxy
from support.waiting import until

TWO = ("server-1", "server-2")


async def test_no_agent_goes_back_when_one_server_is_cut_from_the_api_server(
    control_plane: ControlPlane, policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    """Agents ask both servers in turn; the one that was cut off must not hand out what it still knows.

    One says which sequence it applied. Of the other the server that is cut off hears it from its peer.
    """
    policy.route(1, "16")
    with TcpProxy("127.0.0.1", control_plane.port) as way:
        behind = serve("server-1", peers=TWO, api=way.url())
        ahead = serve("server-2", peers=TWO)
        agents = [agent(ahead, "pod-1"), agent(ahead, "pod-2")]
        await settle(agents, 32)
        saying, unsaying = [
            Agent(one.client, behind, one.pod, one.token, table=one.table, says_sequence=says)
            for one, says in zip(agents, (True, False), strict=True)
        ]
        for cut_off in (saying, unsaying):
            assert await cut_off.poll() in (200, 304)
        way.stall()
        older: list[int] = []
        started = time.monotonic()
        sequence = 1

        async def newest() -> bool:
            for one in agents:
                await one.poll(wait=1)
            return all(one.table is not None and one.table.sequence == sequence for one in agents)

        async def hands_out_nothing() -> bool:
            answer = await saying.ask()
            if answer.status_code == 200:
                older.append(answer.json()["sequence"])
            from_peer = await unsaying.ask()
            return (answer.status_code, from_peer.status_code) == (503, 503)

        while time.monotonic() - started < 12:
            sequence += 1
            await asyncio.to_thread(policy.route, sequence, str(sequence + 10))
            await until(newest, 5, "the newest table from the server that is well")
            for one, cut_off in zip(agents, (saying, unsaying), strict=True):
                await one.report()
                cut_off.table = one.table
            # Without the agent's own word the server hears it from its peer, each second.
            await until(hands_out_nothing, 5, "the server that is cut off hands out nothing")
        assert older == []
        answer = await saying.ask()
        assert (answer.status_code, answer.json()["reason"]) == (503, "NotSynced")
        for one, cut_off in zip(agents, (saying, unsaying), strict=True):
            assert (await cut_off.report(one.say())).status_code == 204
        way.heal()

        async def back() -> bool:
            return (await saying.ask()).status_code in (200, 304)

        await until(back, 20, "it serves again")
        assert (await saying.ask(revision="")).json()["sequence"] == sequence
        assert behind.metric('meritorder_server_agents{state="silent"}') == 0


async def test_a_frozen_api_server_stops_tables_but_not_reports_and_no_agent_falls_silent(
    control_plane: ControlPlane, policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    policy.route(1, "16")
    server = serve()
    one, two = agent(server, "pod-1"), agent(server, "pod-2")
    await settle([one, two], 32)
    revision = one.table and one.table.table_revision
    frozen = time.monotonic()
    control_plane.pause_api_server()
    try:
        assert await one.poll() == 304

        async def refused() -> bool:
            answer = await one.ask()
            assert (await one.report()).status_code == 204
            assert answer.status_code in (304, 503)
            return answer.status_code == 503

        await until(refused, 20, "no table any more", interval_seconds=0.5)
        took = time.monotonic() - frozen
        print(f"\nAPI server frozen -> 503: {took:.1f} s")
        assert 8 < took < 15
        answer = await one.ask()
        assert answer.json()["reason"] == "NotSynced"

        async def long() -> bool:
            assert (await one.report()).status_code == 204
            return time.monotonic() - frozen > 22

        # The second agent says nothing for longer than silence takes, while nobody can tell.
        await until(long, 40, "twenty-two seconds", interval_seconds=0.5)
        assert server.metric('meritorder_server_agents{state="silent"}') == 0
    finally:
        control_plane.resume_api_server()

    async def back() -> bool:
        return await one.poll() in (200, 304)

    await until(back, 20, "tables again", interval_seconds=0.2)
    assert one.table is not None
    assert one.table.table_revision == revision
    assert server.metric('meritorder_server_agents{state="silent"}') == 0
