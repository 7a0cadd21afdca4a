"""Two servers: slices that add up exactly, whoever is asked, and after a restart."""

import asyncio
import signal
import time

import httpx

from servers.router_server import Policy, StartAgent, StartServer, settle
from support.waiting import until

TWO = ("server-1", "server-2")


async def test_slices_of_two_servers_add_up_exactly_and_follow_the_load(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    policy.route(1, "25.25")
    first, second = serve("server-1", peers=TWO), serve("server-2", peers=TWO)
    agents = [agent(first, "pod-1"), agent(second, "pod-2"), agent(first, "pod-3"), agent(second, "pod-4")]
    await settle(agents, 50)
    assert sorted(one.limit() or 0 for one in agents) == [12, 12, 13, 13]
    agents[1].load, agents[2].load = 40.0, 10.0
    await settle(agents, 50)

    async def followed() -> bool:
        for one in agents:
            await one.turn()
        return (agents[1].limit() or 0) > (agents[2].limit() or 0) > (agents[0].limit() or 0)

    await until(followed, 15, "slices follow the load", interval_seconds=0.2)
    await settle(agents, 50)
    assert min(one.limit() or 0 for one in agents) >= 8
    await until(lambda: policy.programmed().get("applied") == 4, 15, "both servers' agents are counted")


async def test_the_limit_is_kept_while_slices_move_between_servers(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    policy.route(1, "50")
    first, second = serve("server-1", peers=TWO), serve("server-2", peers=TWO)
    agents = [agent(first, "pod-1"), agent(second, "pod-2")]
    await settle(agents, 100)
    worst = 0
    agents[0].load = 90.0

    async def moved() -> bool:
        nonlocal worst
        for one in agents:
            await one.turn()
            worst = max(worst, sum(each.limit() or 0 for each in agents))
        return (agents[0].limit() or 0) >= 80

    await until(moved, 15, "the slice moved", interval_seconds=0.1)
    await settle(agents, 100)
    assert worst <= 100


async def test_a_restarted_server_takes_from_no_agent(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    policy.route(1, "16")
    server = serve()
    one, two = agent(server, "pod-1"), agent(server, "pod-2")
    await settle([one, two], 32)
    await until(lambda: policy.programmed().get("agents") == 2, 12, "two agents are told")
    server.child.kill()
    server.child.start()
    await until(server.ready, 20, "it is back", retry_on=(httpx.TransportError,))
    await one.report()
    started = time.monotonic()
    assert await one.poll() in (200, 304)
    assert time.monotonic() - started < 3
    assert one.limit() == 16
    await settle([one, two], 32)
    assert (one.limit(), two.limit()) == (16, 16)


async def test_the_signal_of_a_terminal_ends_it_too(policy: Policy, serve: StartServer) -> None:
    server = serve()
    server.child.send(signal.SIGINT)
    assert await asyncio.to_thread(server.child.wait, 10) == 0
