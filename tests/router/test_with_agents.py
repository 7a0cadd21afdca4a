"""Real agents with their Envoys under a real server: applied, acknowledged, told, and kept through a
server's death.
"""

from pathlib import Path

from servers.control_plane import ControlPlane
from servers.pki import Authority
from servers.router_server import Policy, StartServer, start_agent
from support.waiting import until


async def test_real_agents_apply_what_two_servers_hand_out(
    control_plane: ControlPlane, policy: Policy, serve: StartServer, authority: Authority, tmp_path: Path
) -> None:
    policy.route(1, "20")
    names = ("server-1", "server-2")
    first, second = (serve(name, peers=names) for name in names)
    ca = authority.certificate
    one = start_agent(control_plane, policy, [first.url], tmp_path, "pod-1", ca)
    two = start_agent(control_plane, policy, [second.url], tmp_path, "pod-2", ca)
    try:

        def applied(sequence: int) -> bool:
            programmed = policy.programmed()
            return (programmed.get("sequence"), programmed.get("applied")) == (sequence, 2)

        await until(lambda: applied(1), 40, "both agents applied the first table", interval_seconds=0.3)
        assert policy.programmed()["fill"] == "Fill"
        assert policy.programmed()["refused"] == []
        policy.route(2, "30")
        await until(lambda: applied(2), 20, "both agents applied the second one", interval_seconds=0.3)
        assert first.metric('meritorder_server_agents{state="live"}') == 2
        assert second.metric('meritorder_server_agents{state="live"}') == 2
    finally:
        one.stop()
        two.stop()
