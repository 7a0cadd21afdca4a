"""The whole product on real parts, started in order and told what to suffer.

API server, etcd and controller manager; Prometheus; the operator; two router servers over TLS; two agents
with their Envoy, each known by a token bound to its pod; three pools as processes of their own on an
address that is not loopback; and load from the `openai` client in a process of its own. Every part runs as
a service account of its own, with the rights of `rbac.yaml` and no more.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from e2e.capacity import FixedLimit, best_fixed_limit
from e2e.probes import agent_metric, drop_rules
from e2e.results import Outcome, Results, failures
from e2e.story import (
    CHEAP,
    NAMESPACE,
    PERCENTILE,
    POLICY,
    PROFILES,
    SYSTEM_NAMESPACE,
    TOKENS,
    Pace,
    policy,
)
from meritorder_api import metric_names
from prometheus.exporter import Exporter
from servers.control_plane import ControlPlane
from servers.envoy import accepts
from servers.pods import create_pod, create_service, set_endpoints
from servers.prometheus import Prometheus
from servers.tcp_proxy import TcpProxy
from support.addresses import non_loopback_address
from support.ports import free_port
from support.processes import Child
from support.waiting import wait_until

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(slots=True, kw_only=True)
class Router:
    """One agent with its Envoy: the supervisor's process and where it listens."""

    child: Child
    port: int
    metrics_port: int
    pod: str


class System:
    """Everything, started by `with`."""

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.folder = folder
        self.pace = pace
        self.interval_seconds = max(pace.interval_seconds, pace.scrape_seconds)
        self.window_seconds = pace.window_seconds
        self.staleness_seconds = pace.staleness_seconds
        self.least_requests = pace.least_requests
        self.target_seconds = 1.0
        self.percentile = PERCENTILE
        self.address = non_loopback_address()
        self.notes: list[tuple[str, str]] = []
        self.forgiven: list[Outcome] = []
        self._stack = contextlib.ExitStack()
        self._ports = {pool: free_port() for pool in PROFILES}

    def __enter__(self) -> System:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Starting.

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.pools_file = self.folder / "pools.yaml"
        self.pools_file.write_text(
            yaml.safe_dump(
                {"pools": [{"name": name, "profile": dict(profile)} for name, profile in PROFILES.items()]}
            )
        )
        self.pools = {pool: self._pool_child(pool, self._ports[pool]) for pool in PROFILES}
        for child in self.pools.values():
            stack.callback(child.kill)
            child.start()
        twin_port = free_port()
        twin = self._pool_child(CHEAP, twin_port, name="twin")
        stack.callback(twin.kill)
        twin.start()
        measured: list[FixedLimit] = []
        measuring = threading.Thread(
            target=lambda: measured.append(self._measure_fixed_limit(twin_port)), daemon=True
        )
        self.control_plane = stack.enter_context(ControlPlane(self.folder / "control-plane"))
        self.control_plane.apply_crds(ROOT / "crds")
        self.control_plane.kubectl("apply", "--server-side", "-f", str(HERE / "rbac.yaml"))
        for pool in PROFILES:
            create_service(self.control_plane, NAMESPACE, f"chat-{pool}", ports={"http": 8000})
            self.set_endpoints(pool, True)
        for pool in PROFILES:
            self._await_pool(pool)
        measuring.start()
        self._listen = [(free_port(), free_port()) for _ in range(2)]
        self.operator_metrics_port = free_port()
        self.server_metrics_ports = [free_port(), free_port()]
        self._start_prometheus(stack)
        self._start_operator(stack)
        self.control_plane.kubectl.apply(policy(self.pace))
        self._start_routers(stack)
        wait_until(lambda: self.programmed() == 2, 60, "both agents applied the first routing")
        measuring.join(120)
        twin.kill()
        self.best_fixed_limit = measured[0]
        self._start_load(stack)

    def _pool_child(self, pool: str, port: int, name: str = "") -> Child:
        return Child(
            [
                sys.executable, "-m", "meritorder_sim",
                "--pools", str(self.pools_file), "--pool", pool,
                "--host", self.address, "--port", f"{pool}={port}",
            ],
            log=self.folder / "log" / f"pool-{name or pool}.log",
            name=f"pool-{name or pool}",
        )  # fmt: skip

    def _await_pool(self, pool: str) -> None:
        url = f"http://{self.address}:{self._ports[pool]}/health"
        self.pools[pool].wait_for(
            lambda: httpx.get(url, trust_env=False).status_code == 200,
            30,
            f"pool {pool} serves",
            retry_on=(httpx.TransportError,),
        )

    def _measure_fixed_limit(self, port: int) -> FixedLimit:
        return best_fixed_limit(
            f"http://{self.address}:{port}",
            low=28,
            high=52,
            tokens=TOKENS,
            target_seconds=self.target_seconds,
            percentile=self.percentile,
        )

    def _mounted(self, namespace: str, which: str, *keys: str) -> list[Path]:
        """Write keys of a Secret or ConfigMap to files once it is there, as a kubelet would."""
        path = f"/api/v1/namespaces/{namespace}/{which}"
        self.operator.wait_for(
            lambda: self.control_plane.client.get(path).status_code == 200, 60, f"the operator made {which}"
        )
        data = self.control_plane.request("GET", path)["data"]
        files = [self.folder / key for key in keys]
        for file in files:
            text = data[file.name]
            file.write_bytes(base64.b64decode(text) if which.startswith("secrets") else text.encode())
        return files

    def _start_routers(self, stack: contextlib.ExitStack) -> None:
        certificate, key = self._mounted(
            SYSTEM_NAMESPACE, "secrets/meritorder-router-tls", "tls.crt", "tls.key"
        )
        (authority,) = self._mounted(NAMESPACE, "configmaps/meritorder-ca", "ca.crt")
        token = self.folder / "router-server.token"
        token.write_text(
            self.control_plane.token_for(
                SYSTEM_NAMESPACE, "meritorder-router", audiences=["meritorder"], seconds=86_400
            )
        )
        ports = [free_port(), free_port()]
        self.proxies = [stack.enter_context(TcpProxy("127.0.0.1", self.control_plane.port)) for _ in range(2)]
        self.servers: list[Child] = []
        for number, port in enumerate(ports):
            kubeconfig = self.control_plane.kubeconfig_for(
                SYSTEM_NAMESPACE, "meritorder-router", server=self.proxies[number].url()
            )
            child = Child(
                [
                    sys.executable, "-m", "meritorder_router", "serve",
                    "--listen", f"127.0.0.1:{port}",
                    "--metrics-listen", f"127.0.0.1:{self.server_metrics_ports[number]}",
                    "--tls-cert", certificate, "--tls-key", key,
                    "--kubeconfig", kubeconfig, "--own-namespace", SYSTEM_NAMESPACE,
                    "--name", f"server-{number}", "--peers", f"https://127.0.0.1:{ports[1 - number]}",
                    "--peer-ca", authority, "--peer-server-name", "localhost", "--token-file", token,
                    "--log-format", "json",
                ],
                log=self.folder / "log" / f"server-{number}.log",
                name=f"server-{number}",
            )  # fmt: skip
            stack.callback(child.kill)
            self.servers.append(child.start())
        self.server_urls = urls = [f"https://127.0.0.1:{port}" for port in ports]
        self.routers: list[Router] = []
        for number in range(2):
            pod = f"app-{number}"
            create_pod(
                self.control_plane,
                NAMESPACE,
                pod,
                service_account="app",
                annotations={"meritorder.dev/policy": POLICY},
            )
            pod_token = self.folder / f"{pod}.token"
            pod_token.write_text(
                self.control_plane.token_for(
                    NAMESPACE, "app", audiences=["meritorder"], pod=pod, seconds=86_400
                )
            )
            listen, metrics = self._listen[number]
            child = Child(
                [
                    sys.executable, "-m", "meritorder_router", "agent",
                    *(part for url in (urls if number else urls[::-1]) for part in ("--server-url", url)),
                    "--ca-file", authority, "--token-file", pod_token,
                    "--policy", POLICY, "--namespace", NAMESPACE,
                    "--listen", f"127.0.0.1:{listen}", "--metrics-listen", f"127.0.0.1:{metrics}",
                    "--state-dir", self.folder / pod,
                    "--log-format", "json",
                ],
                log=self.folder / "log" / f"{pod}.log",
                name=pod,
            )  # fmt: skip
            stack.callback(child.stop)
            self.routers.append(Router(child=child.start(), port=listen, metrics_port=metrics, pod=pod))
        for router in self.routers:
            wait_until(functools.partial(accepts, "127.0.0.1", router.port), 30, f"{router.pod} listens")

    def _scrape_jobs(self) -> list[Mapping[str, Any]]:
        targets = [f"127.0.0.1:{metrics}" for _, metrics in self._listen]
        return [
            {
                "job_name": f"routers{suffix}",
                "metrics_path": path,
                "static_configs": [{"targets": addresses, "labels": {"namespace": NAMESPACE}}],
            }
            for suffix, path, addresses in (
                ("", "/metrics", targets),
                ("-agent", "/metrics/agent", targets),
                ("-poison", "/metrics", [self.poison.address]),
            )
        ]

    def _start_prometheus(self, stack: contextlib.ExitStack) -> None:
        self.poison = stack.enter_context(Exporter())
        interval = f"{self.pace.scrape_seconds}s"
        jobs = self._scrape_jobs()
        times = {"scrape_interval": interval, "scrape_timeout": interval}
        self._idle_config = yaml.safe_dump({"global": times})
        self._config = yaml.safe_dump({"global": times, "scrape_configs": jobs})
        self.prometheus = stack.enter_context(Prometheus(self.folder / "prometheus", config=self._config))

    def _start_operator(self, stack: contextlib.ExitStack) -> None:
        self.operator = Child(
            [
                sys.executable, "-m", "meritorder_operator",
                "--kubeconfig", self.control_plane.kubeconfig_for(SYSTEM_NAMESPACE, "meritorder-operator"),
                "--lease-namespace", SYSTEM_NAMESPACE,
                "--prometheus-url", self.prometheus.url,
                "--health-port", str(free_port()), "--metrics-port", str(self.operator_metrics_port),
                "--server-name", "localhost", "--server-name", "127.0.0.1",
                "--log-format", "json",
            ],
            log=self.folder / "log" / "operator.log",
            name="operator",
        )  # fmt: skip
        stack.callback(self.operator.kill)
        self.operator.start()

    def _start_load(self, stack: contextlib.ExitStack) -> None:
        out = self.folder / "outcomes.jsonl"
        out.touch()
        urls = [f"http://127.0.0.1:{router.port}/v1" for router in self.routers]
        self._load = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "openai_load.py"),
                *(part for url in urls for part in ("--base-url", url)),
                "--out",
                str(out),
            ],
            stdin=subprocess.PIPE,
            text=True,
        )
        stack.callback(self._end_load)
        self.results = Results(out)

    def _end_load(self) -> None:
        with contextlib.suppress(OSError):
            assert self._load.stdin is not None
            self._load.stdin.close()
        try:
            self._load.wait(30)
        except subprocess.TimeoutExpired:
            self._load.kill()
            self._load.wait()

    # Doing.

    def load(self, **rates: float) -> float:
        """Send `json` and `streams` per second from now on; return the moment."""
        instruction: dict[str, float] = {
            "json": 0.0,
            "streams": 0.0,
            "tokens": TOKENS,
            "streamTokens": TOKENS,
        }
        assert self._load.stdin is not None
        self._load.stdin.write(json.dumps({**instruction, **rates}) + "\n")
        self._load.stdin.flush()
        return time.time()

    def fault(self, pool: str, **change: Any) -> None:
        """Tell a pool to misbehave, or to stop that."""
        url = f"http://{self.address}:{self._ports[pool]}/sim/faults"
        httpx.post(url, json=change, trust_env=False).raise_for_status()

    def set_endpoints(self, pool: str, ready: bool) -> None:
        """Write the EndpointSlice of a pool's Service, as the endpoints controller would."""
        here = [(self.address, self._ports[pool])]
        set_endpoints(
            self.control_plane,
            NAMESPACE,
            f"chat-{pool}",
            here if ready else [],
            not_ready=[] if ready else here,
        )

    def kill_pool(self, pool: str) -> float:
        """Kill a pool's process; return the moment.

        Its endpoint turns not ready a little later, as in a cluster.
        """
        self.pools[pool].kill()
        killed = time.time()
        self.set_endpoints(pool, False)
        return killed

    def revive_pool(self, pool: str) -> None:
        self.pools[pool].start()
        self._await_pool(pool)
        self.set_endpoints(pool, True)

    def kill_and_restart_operator(self) -> None:
        """Kill the operator and wait until a new one decides."""
        self.operator.kill()
        self.operator.start()
        lines = len(self.operator.log_text().splitlines())
        self.operator.wait_for(
            lambda: "decision" in "".join(self.operator.log_text().splitlines()[lines:]),
            45,
            "the new operator decides",
        )

    def kill_and_restart_server(self, number: int) -> None:
        self.servers[number].kill()
        self.servers[number].start()
        wait_until(lambda: self.programmed() == 2, 60, f"server-{number} is back and both agents report")

    def kill_agent_child(self, number: int) -> None:
        """Kill the agent under its supervisor, which starts another."""
        agent = self._children(number)["agent"]
        os.kill(agent, signal.SIGKILL)
        wait_until(
            lambda: self._children(number).get("agent", agent) != agent,
            30,
            "the supervisor starts another agent",
        )

    def kill_envoy(self, number: int) -> float:
        """Kill an Envoy under its supervisor; return the moment at which its port listens again."""
        envoy = self._children(number)["envoy"]
        os.kill(envoy, signal.SIGKILL)
        # Only another process may count: the port of a killed one answers until the kernel has taken it down.
        wait_until(
            lambda: self._children(number).get("envoy", envoy) != envoy,
            30,
            "the supervisor starts another Envoy",
            interval_seconds=0.005,
        )
        port = self.routers[number].port
        wait_until(lambda: accepts("127.0.0.1", port), 30, "Envoy listens again", interval_seconds=0.01)
        return time.time()

    def _children(self, number: int) -> dict[str, int]:
        """Process numbers of the supervisor's children by what they are."""
        supervisor = self.routers[number].child.pid
        found: dict[str, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                state, parent = rest.split()[:2]
                if int(parent) == supervisor and state != "Z":
                    found["envoy" if "envoy" in name else "agent"] = int(stat.parent.name)
        return found

    @contextlib.contextmanager
    def prometheus_fault(self, kind: str) -> Iterator[None]:
        """Break Prometheus in a way, and mend it."""
        match kind:
            case "stopped":
                self.prometheus.stop()
            case "frozen":
                self.prometheus.pause()
            case "emptied":
                self.prometheus.reload(self._idle_config)
                self.prometheus.wipe()
            case "not a number":
                for family in (metric_names.SAMPLES, metric_names.SAMPLES_SLOW):
                    self.poison.set(family, math.nan, policy=POLICY, pool=CHEAP)
            case _:
                raise ValueError(kind)
        try:
            yield
        finally:
            match kind:
                case "stopped":
                    self.prometheus.start()
                case "frozen":
                    self.prometheus.resume()
                case "emptied":
                    self.prometheus.reload(self._config)
                case _:
                    self.poison.clear()

    @staticmethod
    def reasons_of(kind: str) -> Sequence[str]:
        """Reasons that may stand in MetricsAvailable."""
        return {
            "stopped": ("PrometheusUnreachable",),
            "frozen": ("PrometheusUnreachable",),
            "emptied": ("NoSeries", "MetricsStale"),
            "not a number": ("NotANumber",),
        }[kind]

    @contextlib.contextmanager
    def open_crd(self) -> Iterator[None]:
        """Take the rules out of the CRD, so that a bad spec gets past the API server; then put them
        back."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferencepolicies.meritorder.dev"
        served = self.control_plane.request("GET", path)
        loose = json.loads(json.dumps(served["spec"]))
        drop_rules(loose)
        patch = {"Content-Type": "application/merge-patch+json"}
        self.control_plane.request("PATCH", path, {"spec": loose}, **patch)
        wait_until(self._accepts_anything, 30, "the API server serves the CRD without rules")
        try:
            yield
        finally:
            self.control_plane.request("PATCH", path, {"spec": served["spec"]}, **patch)

    def _accepts_anything(self) -> bool:
        bad = {"spec": {"fallbackPool": "b200"}}
        answer = self.control_plane.client.patch(
            f"{_POLICY_PATH}?dryRun=All", json=bad, headers={"Content-Type": "application/merge-patch+json"}
        )
        return answer.status_code == 200

    def patch_spec(self, change: Mapping[str, Any]) -> None:
        self.control_plane.request(
            "PATCH", _POLICY_PATH, {"spec": change}, **{"Content-Type": "application/merge-patch+json"}
        )

    def patch_pool(self, pool: str, change: Mapping[str, Any]) -> None:
        """Change one pool of the spec; a merge patch replaces lists whole."""
        pools = self.control_plane.request("GET", _POLICY_PATH)["spec"]["pools"]
        self.patch_spec({"pools": [{**each, **change} if each["name"] == pool else each for each in pools]})

    @contextlib.contextmanager
    def server_cut_from_api(self, number: int) -> Iterator[None]:
        self.proxies[number].cut()
        try:
            yield
        finally:
            self.proxies[number].heal()

    # Seeing.

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control_plane.request("GET", _POLICY_PATH).get("status", {})
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        """A condition, or one that says that it is not there."""
        for condition in self.status().get("conditions", []):
            if condition["type"] == kind:
                return dict(condition)
        return {"status": "absent", "reason": "absent", "message": ""}

    def limits(self) -> dict[str, float]:
        """Routed limits per replica; no limit is infinity."""
        routed = self.status()["routing"]["pools"]
        return {pool["name"]: float(pool.get("limitPerReplica", math.inf)) for pool in routed}

    def sequence(self) -> int:
        """The newest routing's sequence."""
        return int(self.status()["routing"]["sequence"])

    def is_past(self, sequence: int) -> bool:
        return self.sequence() > sequence

    def programmed(self) -> int:
        """How many agents applied the newest routing."""
        status = self.status()
        programmed, routing = status.get("programmed"), status.get("routing")
        if not programmed or not routing or programmed["sequence"] != routing["sequence"]:
            return 0
        return int(programmed["applied"])

    def applied_sequences(self) -> list[int]:
        """What the agents' own metrics say."""
        return [
            int(agent_metric(router.metrics_port, "meritorder_router_applied_sequence"))
            for router in self.routers
        ]

    def sequence_steps_back(self) -> int:
        """How often an agent's applied sequence fell, in all that Prometheus saw (a restart begins at
        -1)."""
        now = time.time()
        back = 0
        for series in self.prometheus.query_range(
            "meritorder_router_applied_sequence", start=now - 3000, end=now, step=self.pace.scrape_seconds
        ):
            seen = [float(value) for _, value in series["values"] if float(value) >= 0]
            back += sum(later < earlier for earlier, later in itertools.pairwise(seen))
        return back

    def in_flight_at_the_pools(self) -> int:
        """Requests running or waiting, as the pools themselves say."""
        total = 0.0
        for pool in PROFILES:
            text = httpx.get(f"http://{self.address}:{self._ports[pool]}/metrics", trust_env=False).text
            total += sum(
                float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting"))
            )
        return round(total)

    def target_in_force(self) -> int:
        """The lower of the targets, in ms, by which the two Envoys count now."""
        return min(
            int(agent_metric(router.metrics_port, "meritorder_router_target_milliseconds"))
            for router in self.routers
        )

    def note(self, what: str, seen: str) -> None:
        """Keep a figure for the summary at the end."""
        self.notes.append((what, seen))

    def unforgiven(self) -> list[Outcome]:
        """Failures that the story has not allowed."""
        return [outcome for outcome in failures(self.results.read()) if outcome not in self.forgiven]

    def forgive(self, lost: Sequence[Outcome]) -> None:
        """Failures that the story allows."""
        self.forgiven.extend(lost)


_POLICY_PATH = f"/apis/meritorder.dev/v1alpha1/namespaces/{NAMESPACE}/inferencepolicies/{POLICY}"
