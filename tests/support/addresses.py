"""An address of this machine that is not loopback: the API server refuses loopback addresses in
EndpointSlices."""

from __future__ import annotations

import os
import socket
import subprocess

# From the block for documentation (RFC 5737), so that it can mean no real machine.
DUMMY_ADDRESS = "192.0.2.10"
DUMMY_INTERFACE = "meritorder0"


class NoAddress(Exception):
    """This machine has loopback only, and none could be added."""


def _routed() -> str | None:
    """Ask the kernel which address it would send from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith(("127.", "0.", "169.254.")) else address


def _is_ours(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def non_loopback_address() -> str:
    """Return this machine's first IPv4 address beside loopback; as root, add a dummy one if there is none."""
    address = _routed()
    if address is not None:
        return address
    if _is_ours(DUMMY_ADDRESS):
        return DUMMY_ADDRESS
    if os.geteuid() != 0:
        raise NoAddress(
            "this machine has no IPv4 address but loopback, and EndpointSlices may not name that one; "
            f"run: sudo ip link add {DUMMY_INTERFACE} type dummy && sudo ip addr add {DUMMY_ADDRESS}/32 "
            f"dev {DUMMY_INTERFACE} && sudo ip link set {DUMMY_INTERFACE} up"
        )
    for command in (
        f"ip link add {DUMMY_INTERFACE} type dummy",
        f"ip addr add {DUMMY_ADDRESS}/32 dev {DUMMY_INTERFACE}",
        f"ip link set {DUMMY_INTERFACE} up",
    ):
        try:
            done = subprocess.run(command.split(), capture_output=True, text=True)
        except FileNotFoundError:
            raise NoAddress(
                "no IPv4 address but loopback, and no `ip` to add one; install iproute2"
            ) from None
        if done.returncode and "File exists" not in done.stderr:
            raise NoAddress(f"no IPv4 address but loopback, and `{command}` failed: {done.stderr.strip()}")
    return DUMMY_ADDRESS
