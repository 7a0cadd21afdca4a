"""Every name that two parts, or a part and a person, must spell alike: written once, here."""

from typing import Final

GROUP: Final = "meritorder.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "InferencePolicy"
LIST_KIND: Final = "InferencePolicyList"
PLURAL: Final = "inferencepolicies"
SINGULAR: Final = "inferencepolicy"
SHORT_NAME: Final = "infpol"
CATEGORY: Final = "meritorder"

OPERATOR_FIELD_MANAGER: Final = "meritorder-operator"
ROUTER_FIELD_MANAGER: Final = "meritorder-router"
OPERATOR_LEASE: Final = "meritorder-operator"
ROUTER_LEASE: Final = "meritorder-router"
ROUTER_SERVICE: Final = "meritorder-router"
"""The router servers' Service, unless a part is told otherwise."""
CA_CONFIG_MAP: Final = "meritorder-ca"
CA_CONFIG_MAP_KEY: Final = "ca.crt"
TOKEN_AUDIENCE: Final = "meritorder"

POLICY_ANNOTATION: Final = f"{GROUP}/policy"
"""On a pod: the policy of the same namespace that its router serves."""
GATEWAY_LABEL: Final = f"{GROUP}/gateway"
"""On a gateway pod: the policy that it serves (the annotation counts too)."""
INJECT_LABEL: Final = f"{GROUP}/inject"
"""On a pod: `true` asks for a router in it."""
PORT_ANNOTATION: Final = f"{GROUP}/port"
"""On a pod: the port on 127.0.0.1 at which its router takes requests."""
METRICS_PORT_ANNOTATION: Final = f"{GROUP}/metrics-port"
"""On a pod: the port at its own address for the router's metrics and probes."""
BASE_URL_ANNOTATION: Final = f"{GROUP}/base-url"
"""On a pod: `Auto`, `Always` (also in containers with `envFrom`) or `Never`."""
INJECTED_ANNOTATION: Final = f"{GROUP}/injected"
"""On a pod that was given a router: the version that did."""

ROUTER_CONTAINER: Final = "meritorder-router"
METRICS_PORT_NAME: Final = "meritorder"
"""Name of the router container's port for metrics: what a PodMonitor selects by."""
GATEWAY_PORT_NAME: Final = "http"
BASE_URL_VARIABLE: Final = "OPENAI_BASE_URL"
GATEWAY_SUFFIX: Final = "-gateway"
"""After the policy's name: the name of its gateway's objects."""

DEFAULT_LISTEN_PORT: Final = 8089
DEFAULT_METRICS_PORT: Final = 9902
DEFAULT_SERVER_PORT: Final = 8443

HEADER_PRIORITY: Final = "x-meritorder-priority"
HEADER_POOL: Final = "x-meritorder-pool"
HEADER_EXCLUDE: Final = "x-meritorder-exclude"
HEADER_SESSION: Final = "x-meritorder-session"
STEERING_HEADERS: Final = (HEADER_PRIORITY, HEADER_POOL, HEADER_EXCLUDE, HEADER_SESSION)
HEADER_CLASS: Final = "x-meritorder-class"
"""Within a router: the request's size class. Clients cannot set it, and no pool sees it."""
HEADER_ANSWERED_BY: Final = "x-meritorder-answered-by"
"""On an answer: the pool that gave it."""

INFERENCE_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""POST on these passes and counts; GET on /v1/models passes and counts nowhere; all else is 404."""
MODELS_PATH: Final = "/v1/models"
