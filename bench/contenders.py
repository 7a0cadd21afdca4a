"""What the router benchmark compares, each on one core and one worker in front of the same three pools.

Each spreads requests in the cheapest way that it has (in turn, or by weights that are alike), writes no
access log, keeps connections to the pools, and hands on events of a stream as they come. What a machine
lacks is installed as far as its package clients can: nginx and HAProxy by apt where that is allowed, the
Python ones into an environment of their own in the user's cache, by version. What cannot be had is named.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from assets.find import cache_home, find
from meritorder_api.policy import SteeringHeader
from meritorder_api.table import RoutingTable
from support.ports import free_port
from support.processes import Child
from support.waiting import wait_until

ROOT: Final = Path(__file__).parents[1]
MODEL: Final = "bench"
POOLS: Final = ("l4", "l40s", "h100")
READY_SECONDS: Final = 120
MOST: Final = 8192
"""Connections that a contender must be able to keep."""
VERSIONS: Final = {"vllm-router": "0.1.17", "sglang-router": "0.3.2", "litellm": "1.100.0"}
_PINNED: Final = (
    "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); "
    "os.execvp(sys.argv[2], sys.argv[2:])"
)
QUESTION: Final = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Are you there?"}],
    "max_tokens": 1,
}


class Missing(Exception):
    """This machine does not have a contender; says why."""


def pinned(cores: Sequence[int], command: Sequence[str | Path]) -> list[str | Path]:
    """The command, on these cores alone."""
    return [sys.executable, "-c", _PINNED, ",".join(map(str, cores)), *command]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where contenders run."""

    stack: ExitStack
    folder: Path
    cores: tuple[int, ...]
    """The contender's."""
    pools: Mapping[str, int]
    """Port by name."""

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Child:
        """Start a process on the contenders' cores; it ends with the benchmark."""
        log = self.folder / f"{name}.log"
        return self.stack.enter_context(
            Child(pinned(self.cores, command), log=log, name=name, env=dict(env or {}))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A contender that answers."""

    child: Child
    port: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to the pools."""

    name: str
    what: str
    start: Callable[[Site], Running]


def await_answers(port: int, child: Child) -> None:
    """Wait until a chat completion comes back."""

    def answers() -> bool:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        reply = httpx.post(url, json=QUESTION, timeout=10, trust_env=False)
        return reply.status_code == 200

    child.wait_for(
        answers, READY_SECONDS, f"{child.name} answers a chat completion", retry_on=(httpx.TransportError,)
    )


def _version(*command: str | Path) -> str:
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    words = (said.stdout + said.stderr).replace("/", " ").replace(",", " ").split()
    return next((word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit() and "." in word), "?")


# nginx and HAProxy


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keep what is installed from being started as a service."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _system(binary: str, package: str) -> Path:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    if found := shutil.which(binary, path=path):
        return Path(found)
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"{binary} is not on PATH; on Debian: sudo apt-get install {package}")
    with _no_services():
        for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
            done = subprocess.run(
                ["apt-get", *command],
                capture_output=True,
                text=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
    if found := shutil.which(binary, path=path):
        return Path(found)
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise Missing(f"apt-get could not install {package}: {last}")


def _nginx(site: Site) -> Running:
    binary = _system("nginx", "nginx-light")
    port = free_port()
    folder = site.folder / "nginx"
    folder.mkdir()
    temporary = "\n".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = " ".join(f"server 127.0.0.1:{pool};" for pool in site.pools.values())
    file = folder / "nginx.conf"
    file.write_text(f"""\
{"user root;" if os.getuid() == 0 else ""}
daemon off;
worker_processes 1;
worker_rlimit_nofile {2 * MOST};
pid {folder / "pid"};
error_log {folder / "error.log"} warn;
events {{ worker_connections {MOST}; }}
http {{
  access_log off;
  {temporary}
  keepalive_requests 1000000000;
  upstream pools {{ {servers} keepalive {MOST}; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://pools;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 3600s;
    }}
  }}
}}
""")
    child = site.start("nginx", [binary, "-e", folder / "error.log", "-c", file])
    return Running(child=child, port=port, version=_version(binary, "-v"))


def _haproxy(site: Site) -> Running:
    binary = _system("haproxy", "haproxy")
    port = free_port()
    servers = "\n".join(f"  server {name} 127.0.0.1:{pool}" for name, pool in site.pools.items())
    file = site.folder / "haproxy.cfg"
    file.write_text(f"""\
global
  nbthread 1
  maxconn {MOST}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option http-no-delay
  http-reuse always
frontend in
  bind 127.0.0.1:{port}
  default_backend pools
backend pools
  balance roundrobin
{servers}
""")
    child = site.start("haproxy", [binary, "-db", "-f", file])
    return Running(child=child, port=port, version=_version(binary, "-v"))


# Envoy, and ours


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def plain_envoy(listen: int, pools: Mapping[str, int]) -> dict[str, Any]:
    """Envoy's bootstrap as its documentation begins: weighted clusters, all defaults, but no time limit on
    streams.
    """
    kind = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {
                                "timeout": "0s",
                                "weighted_clusters": {"clusters": [{"name": n, "weight": 1} for n in pools]},
                            },
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{kind}.http.router.v3.Router"},
            }
        ],
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": _address(listen),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": name,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": name,
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
                    },
                }
                for name, port in pools.items()
            ],
        }
    }


def _envoy(site: Site) -> Running:
    binary = find("envoy")
    port = free_port()
    file = site.folder / "envoy.json"
    file.write_text(json.dumps(plain_envoy(port, site.pools)))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    child = site.start("envoy", [binary, "--config-path", file, *options])
    return Running(child=child, port=port, version=_version(binary, "--version"))


def table(pools: Mapping[str, int], *, limits: Sequence[int | None] = (16, 200, None)) -> RoutingTable:
    """Ours with everything that a policy can switch on: limits that are reached, steering, failover."""
    return RoutingTable.model_validate(
        {
            "policy": {"namespace": "ml", "name": "chat", "uid": "bench"},
            "sequence": 1,
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": 2000},
            "pools": [
                {
                    "name": name,
                    "endpoints": [{"address": "127.0.0.1", "port": port}],
                    **({} if limit is None else {"limit": limit}),
                }
                for (name, port), limit in zip(pools.items(), limits, strict=True)
            ],
            "requests": {"headers": [header.value for header in SteeringHeader]},
        }
    ).seal()


def _meritorder(site: Site) -> Running:
    port = free_port()
    file = site.folder / "table.json"
    file.write_bytes(table(site.pools).to_json())
    child = site.start(
        "meritorder",
        [
            *(sys.executable, "-m", "meritorder_router", "agent", "--concurrency", "1"),
            *("--table", file, "--listen", f"127.0.0.1:{port}"),
            *("--metrics-listen", f"127.0.0.1:{free_port()}", "--state-dir", site.folder / "s"),
            *("--grace-seconds", "1"),
        ],
        {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "router"))},
    )
    return Running(child=child, port=port, version="this checkout")


# Routers that pip installs


def environment(package: str, *extras: str) -> Path:
    """The directory of the binaries of a contender's own environment, made when it is first needed."""
    version = VERSIONS[package]
    home = cache_home() / f"bench-{package}-{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    complete = home / ".complete"
    if not complete.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        wanted = f"{package}[{','.join(extras)}]=={version}" if extras else f"{package}=={version}"
        commands: tuple[list[str | Path], ...] = (
            [sys.executable, "-m", "venv", home],
            [
                *(home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--only-binary", ":all:", wanted),
            ],
        )
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise Missing(f"pip could not install {wanted}: {last}")
        complete.touch()
    return home / "bin"


def _rust_router(site: Site, package: str, module: str) -> Running:
    """vLLM's router and SGLang's, which have one origin and the same options."""
    binaries = environment(package)
    port = free_port()
    child = site.start(
        package,
        [
            *(binaries / "python", "-m", f"{module}.launch_router"),
            *("--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            *("--log-level", "error"),
            *("--worker-urls", *(f"http://127.0.0.1:{pool}" for pool in site.pools.values())),
        ],
    )
    return Running(child=child, port=port, version=VERSIONS[package])


def _vllm_router(site: Site) -> Running:
    return _rust_router(site, "vllm-router", "vllm_router")


def _sglang_router(site: Site) -> Running:
    return _rust_router(site, "sglang-router", "sglang_router")


def _litellm(site: Site) -> Running:
    binaries = environment("litellm", "proxy")
    port = free_port()
    file = site.folder / "litellm.yaml"
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": f"http://127.0.0.1:{pool}/v1",
                "api_key": "none",
            },
        }
        for pool in site.pools.values()
    ]
    file.write_text(
        yaml.safe_dump({"model_list": models, "litellm_settings": {"set_verbose": False, "telemetry": False}})
    )
    child = site.start(
        "litellm",
        [
            *(binaries / "litellm", "--config", file, "--host", "127.0.0.1", "--port", str(port)),
            *("--num_workers", "1", "--telemetry", "False"),
        ],
        {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"},
    )
    return Running(child=child, port=port, version=VERSIONS["litellm"])


DIRECT: Final = "direct"
OURS: Final = "meritorder"
CONTENDERS: Final = (
    Contender(name="nginx", what="nginx", start=_nginx),
    Contender(name="haproxy", what="HAProxy", start=_haproxy),
    Contender(name="envoy", what="Envoy, weighted clusters", start=_envoy),
    Contender(name=OURS, what="Meritorder, all features", start=_meritorder),
    Contender(name="vllm-router", what="vLLM router (Rust)", start=_vllm_router),
    Contender(name="sglang-router", what="SGLang router (Rust)", start=_sglang_router),
    Contender(name="litellm", what="LiteLLM proxy", start=_litellm),
)


def start_pools(site: Site, load: Path, cores: Sequence[int]) -> Child:
    """The servers behind all contenders."""
    addresses = [f"127.0.0.1:{port}" for port in site.pools.values()]
    child = site.stack.enter_context(
        Child(pinned(cores, [load, "backend", *addresses]), log=site.folder / "pools.log", name="pools")
    )
    for port in site.pools.values():
        wait_until(
            lambda port=port: httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success,  # type: ignore[misc]
            10,
            "the pools answer",
            retry_on=(httpx.TransportError,),
        )
    return child
