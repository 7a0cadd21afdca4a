"""A real Kubernetes control plane without nodes: etcd, kube-apiserver and kube-controller-manager.

Validation, CEL, RBAC, tokens and watches are exactly production's. The controller manager gives service
accounts, endpoints and garbage collection. There is no kubelet: a pod is only an object (see `pods`), and
the controllers that would act on silent nodes are off.
"""

from __future__ import annotations

import functools
import shutil
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from assets.find import find
from servers.kubeconfig import certificate_user, token_user, write_kubeconfig
from servers.kubectl import Kubectl
from servers.pki import Authority, new_key, private_pem, public_pem, write_private
from support.addresses import non_loopback_address
from support.ports import free_ports
from support.processes import Child
from support.waiting import wait_until

ISSUER = "https://kubernetes.default.svc.cluster.local"
SERVICE_RANGE = "10.96.0.0/16"

READY_SECONDS = 90
"""Far more than the 4 s it takes: a machine that builds something beside may be slow."""

# They act on nodes that no kubelet reports for, or on parts that no test has.
_OFF = (
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "device-taint-eviction-controller",
    "pod-garbage-collector-controller",
    "node-ipam-controller",
    "node-route-controller",
    "cloud-node-lifecycle-controller",
    "service-lb-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-expander-controller",
)

_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


class ControlPlane:
    """etcd, API server and controller manager in one folder; fresh at each `start`.

    The children are `etcd`, `api_server` and `controller_manager`; tests may pause or kill them. Use as a
    context manager, or `start` and `stop`.
    """

    def __init__(self, folder: Path, *, survives: bool = False, audited: bool = False) -> None:
        """`survives`: go on when this process ends (for `make cluster-up`). `audited`: what service accounts
        ask for is in `audit_log`.
        """
        self.folder = folder
        self.audit_log = folder / "log" / "audit.jsonl" if audited else None
        self._pki = folder / "pki"
        self._address = non_loopback_address()
        etcd_client, etcd_peer, self.port = free_ports(3)
        self._etcd_url = f"http://127.0.0.1:{etcd_client}"
        self._etcd_peer_url = f"http://127.0.0.1:{etcd_peer}"
        self.url = f"https://127.0.0.1:{self.port}"
        self.kubeconfig = folder / "admin.kubeconfig"
        self.etcd = self._child("etcd", self._etcd_flags(), survives)
        self.api_server = self._child("kube-apiserver", self._api_server_flags(), survives)
        self.controller_manager = self._child(
            "kube-controller-manager", self._controller_manager_flags(), survives
        )
        self._client: httpx.Client | None = None
        self._kubectl: Kubectl | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # The children and their flags.

    def _child(self, binary: str, flags: Sequence[str], survives: bool) -> Child:
        log = self.folder / "log" / f"{binary}.log"
        return Child([find(binary), *flags], log=log, name=binary, survives=survives)

    def _etcd_flags(self) -> list[str]:
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={self._etcd_peer_url}",
            f"--initial-advertise-peer-urls={self._etcd_peer_url}",
            f"--initial-cluster=default={self._etcd_peer_url}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _api_server_flags(self) -> list[str]:
        return [
            f"--etcd-servers={self._etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--advertise-address={self._address}",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={self._pki / 'apiserver.crt'}",
            f"--tls-private-key-file={self._pki / 'apiserver.key'}",
            f"--client-ca-file={self._pki / 'kubernetes-ca.crt'}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._pki / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={self._pki / 'service-accounts.key'}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--allow-privileged=true",
            *self._audit_flags(),
        ]

    def _audit_flags(self) -> list[str]:
        if self.audit_log is None:
            return []
        return [f"--audit-policy-file={self.folder / 'audit.yaml'}", f"--audit-log-path={self.audit_log}"]

    def _controller_manager_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.folder / 'controller-manager.kubeconfig'}",
            "--leader-elect=false",
            "--secure-port=0",
            f"--service-account-private-key-file={self._pki / 'service-accounts.key'}",
            f"--root-ca-file={self._pki / 'kubernetes-ca.crt'}",
            f"--controllers=*,{','.join(f'-{name}' for name in _OFF)}",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ]

    def _make_credentials(self) -> None:
        authority = Authority(self._pki, "kubernetes-ca")
        names = ["127.0.0.1", "10.96.0.1", self._address, "localhost", "kubernetes.default.svc"]
        authority.issue("apiserver", "kube-apiserver", names=names)
        admin = authority.issue("admin", "admin", organizations=["system:masters"])
        key = new_key()
        write_private(self._pki / "service-accounts.key", private_pem(key))
        (self._pki / "service-accounts.pub").write_bytes(public_pem(key))
        for path in (self.kubeconfig, self.folder / "controller-manager.kubeconfig"):
            write_kubeconfig(
                path, server=self.url, authority=authority.certificate, user=certificate_user(admin)
            )

    @property
    def certificate_authority(self) -> Path:
        return self._pki / "kubernetes-ca.crt"

    # Its life.

    def start(self) -> Self:
        """Start all three from nothing and wait until they serve and the default service account exists."""
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_credentials()
        (self.folder / "audit.yaml").write_text(yaml.safe_dump(_AUDIT))
        try:
            self.etcd.start()
            self.api_server.start()
            self.wait_ready()
            self.controller_manager.start()
            self.controller_manager.wait_for(
                lambda: self._exists("/api/v1/namespaces/default/serviceaccounts/default"),
                READY_SECONDS,
                "the default service account is there",
                retry_on=(httpx.TransportError,),
            )
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all three at once; nothing here is worth a graceful shutdown."""
        for child in (self.controller_manager, self.api_server, self.etcd):
            child.kill()
        if self._client is not None:
            self._client.close()
            self._client = None

    def wait_ready(self) -> None:
        """Wait until the API server serves everything it has."""
        self.api_server.wait_for(
            lambda: self.client.get("/readyz").status_code == 200,
            READY_SECONDS,
            "the API server is ready",
            retry_on=(httpx.TransportError,),
        )

    def stop_api_server(self) -> None:
        """End the API server; its port refuses connections, its data stay."""
        self.api_server.kill()

    def start_api_server(self) -> None:
        """Start it again on the same port and data."""
        self.api_server.start()
        self.wait_ready()

    def restart_api_server(self) -> None:
        self.stop_api_server()
        self.start_api_server()

    def pause_api_server(self) -> None:
        """Freeze the API server: connections stay open and nothing answers."""
        self.api_server.pause()

    def resume_api_server(self) -> None:
        self.api_server.resume()

    # What one does with it.

    @property
    def tls(self) -> ssl.SSLContext:
        """What an HTTP client needs in order to act as administrator, by whatever way it comes."""
        context = ssl.create_default_context(cafile=str(self.certificate_authority))
        context.load_cert_chain(self._pki / "admin.crt", self._pki / "admin.key")
        return context

    @property
    def client(self) -> httpx.Client:
        """An HTTP client of the API as cluster administrator."""
        if self._client is None:
            self._client = httpx.Client(base_url=self.url, verify=self.tls, timeout=30, trust_env=False)
        return self._client

    @property
    def kubectl(self) -> Kubectl:
        """The real kubectl as cluster administrator."""
        if self._kubectl is None:
            self._kubectl = Kubectl(self.kubeconfig)
        return self._kubectl

    @property
    def version(self) -> str:
        """The version that the API server tells."""
        return str(self.request("GET", "/version")["gitVersion"])

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Ask the API for something; raise with its own message when it refuses."""
        answer = self.client.request(method, path, json=body, headers=headers)
        if answer.is_error:
            raise httpx.HTTPStatusError(
                f"{method} {path}: {answer.status_code} {answer.text}",
                request=answer.request,
                response=answer,
            )
        return answer.json()

    def _exists(self, path: str) -> bool:
        return self.client.get(path).status_code == 200

    def create_namespace(self, name: str, labels: dict[str, str] | None = None) -> str:
        """Create a namespace and wait for its default service account, without which it takes no pods."""
        metadata = {"name": name, "labels": labels or {}}
        self.request("POST", "/api/v1/namespaces", {"metadata": metadata})
        wait_until(
            lambda: self._exists(f"/api/v1/namespaces/{name}/serviceaccounts/default"),
            30,
            f"the default service account of namespace {name}",
        )
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for its deletion; the controller manager empties it in the background."""
        self.request("DELETE", f"/api/v1/namespaces/{name}")

    def apply_crds(self, folder: Path) -> None:
        """Apply the folder's CRDs and wait until they are served."""
        self.kubectl("apply", "--server-side", "-f", str(folder))
        for path in sorted(folder.glob("*.yaml")):
            for crd in filter(None, yaml.safe_load_all(path.read_text())):
                # Not `kubectl wait`: it gives up on an object that has no status yet.
                spec = crd["spec"]
                served = (version["name"] for version in spec["versions"] if version["served"])
                resource = f"/apis/{spec['group']}/{next(served)}/{spec['names']['plural']}"
                wait_until(functools.partial(self._exists, resource), 30, f"{resource} is served")

    def token_for(
        self,
        namespace: str,
        service_account: str,
        *,
        audiences: Sequence[str] = (),
        pod: str | None = None,
        seconds: int = 3600,
    ) -> str:
        """Return a token of a service account, bound to a pod when one is named; no audience: the API
        server's.

        The API server gives no token for less than 600 s.
        """
        spec: dict[str, Any] = {"expirationSeconds": seconds, "audiences": list(audiences)}
        if pod is not None:
            uid = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")["metadata"]["uid"]
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        return str(self.request("POST", path, {"spec": spec})["status"]["token"])

    def kubeconfig_for(self, namespace: str, service_account: str, *, server: str | None = None) -> Path:
        """Write a kubeconfig that acts as a service account, which must exist.

        `server` is another way to the API server, such as a `TcpProxy` that the test will cut.
        """
        port = "" if server is None else f"-{server.rpartition(':')[2]}"
        return write_kubeconfig(
            self.folder / f"{namespace}-{service_account}{port}.kubeconfig",
            server=server or self.url,
            authority=self.certificate_authority,
            user=token_user(self.token_for(namespace, service_account, seconds=86_400)),
            namespace=namespace,
        )

    def admin_kubeconfig_by(self, server: str) -> Path:
        """Write an administrator's kubeconfig that takes another way to the API server, such as a
        `TcpProxy`."""
        text = self.kubeconfig.read_text().replace(self.url, server)
        path = self.folder / f"admin-{server.rpartition(':')[2]}.kubeconfig"
        return write_private(path, text.encode())

    def request_counts(self) -> dict[tuple[str, str], int]:
        """Return how many requests the API server has answered since it started, by verb and resource."""
        from prometheus_client.parser import text_string_to_metric_families

        counts: dict[tuple[str, str], int] = {}
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            if family.name != "apiserver_request":
                continue
            for sample in family.samples:
                key = sample.labels["verb"], sample.labels["resource"]
                counts[key] = counts.get(key, 0) + int(sample.value)
        return counts
