"""Errors of our own, shaped as OpenAI's are, so that its clients raise what they would raise for the real
thing.
"""

import json

from meritorder_router.render.place import Json

RETRY_AFTER_SECONDS = 1


def error(message: str, kind: str, code: str) -> Json:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


NO_TABLE = error(
    "The router has no routing table yet: its policy does not exist, or its server was not reached so far. "
    "Try again.",
    "server_error",
    "no_routing_table",
)
NOT_FOUND = error(
    "This path is not served here: POST on the inference paths and GET /v1/models pass. "
    "The policy's `requests.paths` can add others.",
    "invalid_request_error",
    "not_found",
)
KEY_REFUSED = error("The pool's own API key was refused.", "server_error", "pool_key_refused")
TOO_LARGE = error(
    "The request's headers are too large: at most 60 KiB, in at most 100 of them, are taken.",
    "invalid_request_error",
    "headers_too_large",
)
BODY_TOO_LARGE = error(
    "The request's body is too large to be rewritten: at most 16 MiB are taken where a pool has another name "
    "for the model, or usage is asked for.",
    "invalid_request_error",
    "body_too_large",
)
UNKNOWN_CLIENT = error(
    "This gateway asks for a bearer token, and the one sent, if any, is not among those that it knows. "
    "They are in the Secret that the policy's `gateway.auth` names.",
    "invalid_request_error",
    "invalid_api_key",
)
SATURATED = error("Every pool is at its limit. Try again shortly.", "rate_limit_error", "pools_saturated")


def header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def direct(status: int, body: Json, *, retry: bool = False) -> Json:
    """A route's own answer, with its headers."""
    headers = [header("content-type", "application/json")]
    if retry:
        headers.append(header("retry-after", str(RETRY_AFTER_SECONDS)))
    return {
        "direct_response": {"status": status, "body": {"inline_string": json.dumps(body)}},
        "response_headers_to_add": headers,
    }


def _of_status(status: int, body: Json) -> Json:
    """The words for what Envoy refuses with this status."""
    # It wants to be able to take the number from its runtime, where there is none of that name.
    value = {"default_value": status, "runtime_key": "meritorder.none"}
    return {
        "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}},
        "body_format_override": {"json_format": body, "content_type": "application/json"},
    }


def egress_replies() -> Json:
    """How the egress listener words what it refuses: the data listener passes that on as it is."""
    return {"mappers": [_of_status(413, BODY_TOO_LARGE)]}


def local_replies() -> Json:
    """How the listener words what Envoy answers by itself.

    A cluster that does not exist is how the choice says "shed" (`render.lua`). The other flags are of a
    request whose tries have all failed.
    """
    retry_after = header("retry-after", str(RETRY_AFTER_SECONDS))
    return {
        "mappers": [
            {
                "filter": {"response_flag_filter": {"flags": ["NC"]}},
                "status_code": 429,
                "headers_to_add": [retry_after],
                "body_format_override": {"json_format": SATURATED, "content_type": "application/json"},
            },
            _of_status(431, TOO_LARGE),
            _of_status(413, BODY_TOO_LARGE),
            {
                "filter": {
                    "response_flag_filter": {
                        "flags": ["UH", "UF", "UC", "UT", "UR", "LR", "UO", "UPE", "URX", "SI"]
                    }
                },
                "headers_to_add": [retry_after],
                "body_format_override": {
                    "json_format": error(
                        "No pool could answer: %LOCAL_REPLY_BODY%", "server_error", "no_pool_answered"
                    ),
                    "content_type": "application/json",
                },
            },
        ]
    }
