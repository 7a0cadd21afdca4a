"""The router's container: what a sidecar in an application's pod and a pod of a gateway have in common. Pure.

The router servers put it into pods as they are created, the operator into the Deployment of a gateway; it
is written once, here. What it may do is what Pod Security `restricted` allows; what it is given is a token
of its own for the router servers (bound to its pod, of no use at the API server), what to verify them by,
and the keys of the policy's pools, as files.

Its ports: requests at `listen`, and at the pod's own address one for probes and metrics. Envoy has that one
too and asks itself by the first, so that a probe says whether requests would be answered. No liveness probe:
the supervisor starts what dies again, alone, and a probe that is late on a busy node would cut streams.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from meritorder_api import names
from meritorder_api.policy import InferencePolicySpec, SecretKeyRef

Json = dict[str, Any]

STATE_DIRECTORY: Final = "/run/meritorder"
IDENTITY_DIRECTORY: Final = "/var/run/secrets/meritorder"
KEYS_DIRECTORY: Final = "/var/run/secrets/meritorder-keys"
CLIENTS_DIRECTORY: Final = "/var/run/secrets/meritorder-clients"
ACCOUNT_DIRECTORY: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the API server mounts a token for itself into every container that has nothing there."""

RUN_VOLUME: Final = "meritorder-run"
IDENTITY_VOLUME: Final = "meritorder-identity"
KEYS_VOLUME: Final = "meritorder-keys"
CLIENTS_VOLUME: Final = "meritorder-clients"
VOLUMES: Final = (RUN_VOLUME, IDENTITY_VOLUME, KEYS_VOLUME, CLIENTS_VOLUME)

TOKEN_SECONDS: Final = 3600
"""Life of the token; kubelet renews it at four fifths."""
STATE_BYTES: Final = "128Mi"
"""Tables, Envoy's files and its log, which is emptied at 1 MB; a pod that has more is evicted."""
START_SECONDS: Final = 120
"""How long a first start may take before it is tried anew."""
USER: Final = 65532
DEFAULT_RESOURCES: Final[Mapping[str, Any]] = {
    "requests": {"cpu": "20m", "memory": "160Mi"},
    # No limit of CPU: a router that is throttled makes every request late.
    "limits": {"memory": "512Mi"},
}
GATEWAY_RESOURCES: Final[Mapping[str, Any]] = {
    "requests": {"cpu": "200m", "memory": "256Mi"},
    "limits": {"memory": "1Gi"},
}
"""A gateway is there for many."""
LONGEST_FILE_NAME: Final = 253
"""What agents take."""

_QUANTITY: Final = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")

Probe = Literal["/ready", "/ready/table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How router containers are run, whatever the policy."""

    image: str
    pull_policy: str | None = None
    """None: as Kubernetes chooses by the image's tag."""
    server_urls: tuple[str, ...]
    """Where the router servers are."""
    resources: Mapping[str, Any] = field(default_factory=lambda: DEFAULT_RESOURCES)
    user: int | None = USER
    """User and group that it runs as; None: as the image says, or the cluster chooses."""
    log_level: str = "info"
    concurrency: int = 2
    """Envoy's worker threads."""


def secret_file(ref: SecretKeyRef) -> str:
    """The name, in an agent's key directory, of the file with this key of this Secret.

    Whoever mounts Secrets into the router container (injector, gateway) gives the file this name. It holds
    the Secret's own name, so that a reference to another Secret never finds the old key under its name.
    """
    name = f"{ref.name}_{ref.key}"
    if len(name) <= LONGEST_FILE_NAME:
        return name
    return f"{name[:190]}_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def secret_refs(spec: InferencePolicySpec) -> list[SecretKeyRef]:
    """The keys of Secrets that routers of a policy need, each once: API keys, and CA certificates of
    hosts.
    """
    found: dict[tuple[str, str], SecretKeyRef] = {}
    for pool in spec.pools:
        tls = (host.tls for host in pool.backend.hosts or ())
        for ref in (pool.backend.api_key_secret_ref, *(one.ca_secret_ref for one in tls if one is not None)):
            if ref is not None:
                found[ref.name, ref.key] = ref
    return [found[key] for key in sorted(found)]


def container(
    settings: RouterSettings,
    *,
    policy: str,
    namespace: str,
    listen: str,
    metrics_port: int,
    ready: Probe,
    grace_seconds: int,
    least_seconds: int = 0,
    keys: bool = False,
    clients: bool = False,
) -> Json:
    """The container. `keys`: the policy's pools have Secrets; `clients`: only bearers of a token pass.

    `listen` may name the pod's own address as `$(POD_IP)`; in brackets, so that it may be an IPv6 one. A
    drain lasts `least_seconds` at least, and waits for requests `grace_seconds` at most.
    """
    arguments = [
        "agent",
        *(f"--server-url={url}" for url in settings.server_urls),
        f"--policy={policy}",
        f"--namespace={namespace}",
        f"--token-file={IDENTITY_DIRECTORY}/token",
        f"--ca-file={IDENTITY_DIRECTORY}/{names.CA_CONFIG_MAP_KEY}",
        *([f"--key-dir={KEYS_DIRECTORY}"] if keys else []),
        *([f"--client-token-dir={CLIENTS_DIRECTORY}"] if clients else []),
        f"--listen={listen}",
        f"--metrics-listen=[$(POD_IP)]:{metrics_port}",
        f"--state-dir={STATE_DIRECTORY}",
        f"--grace-seconds={grace_seconds}",
        *([f"--drain-least-seconds={least_seconds}"] if least_seconds else []),
        f"--concurrency={settings.concurrency}",
        "--log-format=json",
        f"--log-level={settings.log_level}",
    ]
    return {
        "name": names.ROUTER_CONTAINER,
        "image": settings.image,
        **({"imagePullPolicy": settings.pull_policy} if settings.pull_policy is not None else {}),
        "command": ["meritorder-router"],
        "args": arguments,
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": names.METRICS_PORT_NAME, "containerPort": metrics_port, "protocol": "TCP"}],
        "startupProbe": {
            **_asking("/ready", metrics_port),
            "periodSeconds": 1,
            "failureThreshold": START_SECONDS,
        },
        "readinessProbe": {**_asking(ready, metrics_port), "periodSeconds": 2, "failureThreshold": 3},
        "resources": dict(settings.resources),
        "securityContext": _security(settings.user),
        "volumeMounts": [
            {"name": RUN_VOLUME, "mountPath": STATE_DIRECTORY},
            # It has no business with the API server, so it gets no token for it.
            {**_read_only(RUN_VOLUME, ACCOUNT_DIRECTORY), "subPath": "none"},
            _read_only(IDENTITY_VOLUME, IDENTITY_DIRECTORY),
            *([_read_only(KEYS_VOLUME, KEYS_DIRECTORY)] if keys else []),
            *([_read_only(CLIENTS_VOLUME, CLIENTS_DIRECTORY)] if clients else []),
        ],
    }


def volumes(refs: list[SecretKeyRef], clients: str | None = None) -> list[Json]:
    """The volumes of `container`: for these keys of Secrets, and the Secret with the clients' tokens.

    All that may not be there yet is optional: a pod starts without it, and gets it when it comes.
    """
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    trust = {
        "name": names.CA_CONFIG_MAP,
        "items": [{"key": names.CA_CONFIG_MAP_KEY, "path": names.CA_CONFIG_MAP_KEY}],
        "optional": True,
    }
    found: list[Json] = [
        {"name": RUN_VOLUME, "emptyDir": {"sizeLimit": STATE_BYTES}},
        {
            "name": IDENTITY_VOLUME,
            "projected": {"sources": [{"serviceAccountToken": token}, {"configMap": trust}]},
        },
    ]
    secrets: dict[str, list[Json]] = {}
    for ref in refs:
        secrets.setdefault(ref.name, []).append({"key": ref.key, "path": secret_file(ref)})
    if secrets:
        sources = [
            {"secret": {"name": name, "items": items, "optional": True}} for name, items in secrets.items()
        ]
        found.append({"name": KEYS_VOLUME, "projected": {"sources": sources}})
    if clients is not None:
        found.append({"name": CLIENTS_VOLUME, "secret": {"secretName": clients, "optional": True}})
    return found


def _read_only(volume: str, directory: str) -> Json:
    return {"name": volume, "mountPath": directory, "readOnly": True}


def _asking(path: str, port: int) -> Json:
    # Answers come from Envoy itself, in a millisecond; the rest is for a node that is busy.
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 2}


def _security(user: int | None) -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        # Said here, or the pod's own would hold, which may be root.
        **({"runAsUser": user, "runAsGroup": user} if user is not None else {}),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def servers_at(namespace: str) -> str:
    """The URL of the router servers of a namespace, by their Service."""
    return f"https://{names.ROUTER_SERVICE}.{namespace}.svc"


def read_user(text: str) -> int | None:
    """Read a user's number; `none` leaves it to the image and the cluster. ValueError says what is wrong."""
    if text == "none":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("must be the number of a user who is not root, or `none`")
    return int(text)


def read_resources(text: str) -> Mapping[str, Any]:
    """Read resources of a container as JSON, such as `{"limits": {"memory": "512Mi"}}`; ValueError says what
    is wrong.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be JSON: {error}") from None
    if not isinstance(found, dict) or not found.keys() <= {"requests", "limits"}:
        raise ValueError("must be an object with `requests` and `limits`")
    for kind, amounts in found.items():
        if not isinstance(amounts, dict):
            raise ValueError(f"`{kind}` must be an object of quantities")
        for name, amount in amounts.items():
            if not isinstance(amount, str | int | float) or not _QUANTITY.fullmatch(str(amount)):
                raise ValueError(f'`{kind}.{name}` must be a quantity, such as "100m" or "256Mi"')
    return found
