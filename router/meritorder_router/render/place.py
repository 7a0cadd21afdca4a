"""Where one Envoy runs: its directory with files and sockets, and the addresses that it listens on."""

import ipaddress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

Json = dict[str, Any]

TYPE = "type.googleapis.com/envoy."
BOOTSTRAP = "bootstrap.json"
MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path (`sun_path` of Linux, less its final 0)."""


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `HOST:PORT`, `[IPV6]:PORT`, `:PORT` (all addresses) or `PORT` (loopback); ValueError says
        what is wrong.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon:
            host = "127.0.0.1"
        elif not host:
            host = "0.0.0.0"
        elif host == "localhost":
            host = "127.0.0.1"
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"`{text}`: `{host}` must be an IP address (or left out)") from None
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"`{text}`: the port must be a number from 1 to 65535")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> "Address":
        """The address at which this machine itself reaches it."""
        if self.host == "0.0.0.0":
            return Address("127.0.0.1", self.port)
        return Address("::1", self.port) if self.host == "::" else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One Envoy's directory and addresses. Sockets and files have fixed names in the directory."""

    directory: PurePosixPath
    listen: Address
    metrics: Address | None = None
    """The metrics listener: `/metrics`, `/metrics/agent`, `/ready`, `/ready/table`, nothing else."""
    policy: str = ""
    """The `policy` label of all series; empty: no such label."""
    node: str = "meritorder"
    keys: PurePosixPath | None = None
    """Directory in which the pools' API keys and CA certificates are mounted."""
    clients: bool = False
    """Whether only clients pass that show a token (`clients_file`)."""
    trust: str = "/etc/ssl/certs/ca-certificates.crt"
    """The CA certificates trusted where a pool brings none of its own."""

    def __post_init__(self) -> None:
        longest = str(self.directory / "egress.sock")
        if len(longest.encode()) > MAX_SOCKET_PATH:
            raise ValueError(
                f"directory `{self.directory}` is too long: `{longest}` has {len(longest.encode())} bytes, "
                f"a socket's path must have at most {MAX_SOCKET_PATH}"
            )

    def file(self, name: str) -> str:
        return str(self.directory / name)

    @property
    def admin_socket(self) -> str:
        return self.file("admin.sock")

    @property
    def touch_socket(self) -> str:
        """Where Envoy takes the requests that bring a pool's series into being."""
        return self.file("touch.sock")

    @property
    def agent_socket(self) -> str:
        """Where the agent serves its own metrics to Envoy."""
        return self.file("agent.sock")

    @property
    def clients_file(self) -> str:
        """The hashes of the tokens that clients may show, one per line."""
        return self.file("clients")

    @property
    def egress_socket(self) -> str:
        """Where Envoy takes its own requests to pools that need rewrites or a key."""
        return self.file("egress.sock")


def tcp(address: Address) -> Json:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def pipe(path: str) -> Json:
    return {"pipe": {"path": path, "mode": 0o600}}


def watched(path: str) -> Json:
    """A config source that reads a file, again whenever one is moved over it."""
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def typed(name: str, type_name: str, **config: Any) -> Json:
    """A named extension with its configuration; the type without `envoy.`."""
    return {"name": name, "typed_config": {"@type": TYPE + type_name, **config}}
