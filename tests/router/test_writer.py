"""Two servers, one writer: whoever holds the lease, and no one else, writes the status."""

import time

from servers.router_server import Agent, Policy, Server, StartAgent, StartServer
from support.waiting import until

TWO = ("server-1", "server-2")


async def two_servers(policy: Policy, serve: StartServer, agent: StartAgent) -> tuple[Server, Agent]:
    """Start two servers; return the first, which writes the status, and an agent of the second."""
    policy.route(1, "16")
    first = serve("server-1", peers=TWO)
    await until(lambda: first.metric("meritorder_server_writes_status") == 1, 10, "the first one leads")
    second = serve("server-2", peers=TWO)
    one = agent(second)
    await one.turn()
    await one.turn()
    await until(lambda: policy.programmed().get("applied") == 1, 12, "the first one tells")
    return first, one


async def the_other_tells(policy: Policy, one: Agent) -> None:
    """Route anew and wait until the second server wrote that its agent applied it."""
    policy.route(2, "17")

    async def told() -> bool:
        await one.turn()
        programmed = policy.programmed()
        return (programmed["sequence"], programmed["applied"]) == (2, 1)

    await until(told, 25, "the second one tells", interval_seconds=0.3)


async def test_when_the_writer_is_killed_another_server_writes(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    first, one = await two_servers(policy, serve, agent)
    killed = time.monotonic()
    first.child.kill()
    await the_other_tells(policy, one)
    took = time.monotonic() - killed
    print(f"\nwriter killed -> the other one wrote: {took:.1f} s")
    assert took < 20


async def test_a_writer_that_was_stopped_and_goes_on_writes_nothing_stale(
    policy: Policy, serve: StartServer, agent: StartAgent
) -> None:
    first, one = await two_servers(policy, serve, agent)
    first.child.pause()
    await the_other_tells(policy, one)
    version = policy.read()["metadata"]["resourceVersion"]
    first.child.resume()
    await until(first.ready, 10, "the first one goes on")

    async def calm() -> bool:
        await one.turn()
        return first.metric('meritorder_server_agents{state="live"}') == 1

    await until(calm, 10, "the first one knows the agent", interval_seconds=0.3)
    assert policy.read()["metadata"]["resourceVersion"] == version
    assert first.metric("meritorder_server_writes_status") == 0
