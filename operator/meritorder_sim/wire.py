"""The OpenAI API as vLLM speaks it: request bodies in, answers and server-sent events out, as bytes.

The text of an answer is made of four-character tokens, so that its length is the token count times four.
Clients steer a request by two headers: `x-sim-prompt-tokens` (else four characters of prompt are one token)
and `x-sim-output-tokens` (else `max_tokens`, else a draw from the server's distribution).
"""

import base64
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from meritorder_sim.metrics import FinishReason

PROMPT_TOKENS_HEADER = "x-sim-prompt-tokens"
OUTPUT_TOKENS_HEADER = "x-sim-output-tokens"
MAX_MODEL_TOKENS = 131_072
_CHARACTERS_PER_TOKEN = 4
_EMBEDDING = (0.5, -0.5, 0.25, -0.25, 0.125, -0.125, 0.0625, -0.0625)
_WORDS = " the cheapest card that still keeps its promise takes the next request, the dear one takes the rest"
_TEXT = (_WORDS + " " * (-len(_WORDS) % _CHARACTERS_PER_TOKEN)) * 64
_TEXT_TOKENS = len(_TEXT) // _CHARACTERS_PER_TOKEN

Kind = Literal["chat", "completion", "embedding"]


class BadRequest(Exception):
    """A request that is refused; `status` and the text go to the client as an OpenAI error."""

    def __init__(
        self, message: str, *, status: int = 400, type: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One inference request, understood."""

    kind: Kind
    model: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None
    finish_reason: FinishReason
    stream: bool = False
    include_usage: bool = False
    inputs: int = 1
    base64: bool = False


def understand(
    kind: Kind,
    body: bytes,
    headers: Mapping[str, str],
    *,
    default_model: str,
    draw_output_tokens: Callable[[], int],
) -> Asked:
    """Read a request body; raises `BadRequest` with one sentence."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise BadRequest("The request body must be JSON.") from error
    if not isinstance(fields, dict):
        raise BadRequest("The request body must be a JSON object.")
    model = fields.get("model", default_model)
    if not isinstance(model, str) or not model:
        raise BadRequest("`model` must be a string.", param="model")
    if fields.get("n", 1) != 1:
        raise BadRequest("`n` must be 1 in a simulated pool.", param="n")
    characters, inputs = _prompt(kind, fields)
    prompt_tokens = _header(headers, PROMPT_TOKENS_HEADER) or max(1, -(-characters // _CHARACTERS_PER_TOKEN))
    if kind == "embedding":
        return Asked(
            kind=kind,
            model=model,
            prompt_tokens=prompt_tokens,
            output_tokens=0,
            max_tokens=None,
            finish_reason="stop",
            inputs=inputs,
            base64=fields.get("encoding_format") == "base64",
        )
    max_tokens = _max_tokens(fields)
    if prompt_tokens + (max_tokens or 1) > MAX_MODEL_TOKENS:
        raise BadRequest(
            f"This model's maximum context length is {MAX_MODEL_TOKENS} tokens. However, you requested "
            f"{prompt_tokens + (max_tokens or 1)} tokens ({prompt_tokens} in the prompt).",
            param="max_tokens",
        )
    wanted = _header(headers, OUTPUT_TOKENS_HEADER) or (
        max_tokens if max_tokens is not None else draw_output_tokens()
    )
    output_tokens = max(
        1, min(wanted, max_tokens if max_tokens is not None else MAX_MODEL_TOKENS - prompt_tokens)
    )
    options = fields.get("stream_options")
    return Asked(
        kind=kind,
        model=model,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        max_tokens=max_tokens,
        finish_reason="length" if output_tokens == max_tokens else "stop",
        stream=fields.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _prompt(kind: Kind, fields: dict[str, Any]) -> tuple[int, int]:
    """Return the prompt's length in characters and how many inputs it has."""
    if kind == "chat":
        messages = fields.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("`messages` must be a list with at least one message.", param="messages")
        if not all(isinstance(message, dict) for message in messages):
            raise BadRequest("`messages` must hold objects.", param="messages")
        return sum(_length(message.get("content")) for message in messages), 1
    name = "prompt" if kind == "completion" else "input"
    prompt = fields.get(name)
    if not isinstance(prompt, str | list) or not prompt:
        raise BadRequest(f"`{name}` must be a string or a list.", param=name)
    if isinstance(prompt, str):
        return len(prompt), 1
    if all(isinstance(token, int) for token in prompt):
        return len(prompt) * _CHARACTERS_PER_TOKEN, 1
    return sum(_length(item) for item in prompt), len(prompt)


def _length(content: object) -> int:
    """Count the characters of a message's content: a string, parts with `text`, or token numbers."""
    if isinstance(content, str):
        return len(content)
    if isinstance(content, int):
        return _CHARACTERS_PER_TOKEN
    if isinstance(content, dict):
        return _length(content.get("text"))
    if isinstance(content, list):
        return sum(_length(part) for part in content)
    return 0


def _max_tokens(fields: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadRequest(
                f"`{name}` must be a whole number of at least 1, is {json.dumps(value)}.", param=name
            )
        return value
    return None


def _header(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BadRequest(f"The header `{name}` must be a whole number of at least 1, is '{text[:40]}'.")
    return int(text)


def text_of(first: int, last: int) -> str:
    """Return the text of tokens `first` (inclusive) to `last` (exclusive)."""
    if last <= first:
        return ""
    offset = first % _TEXT_TOKENS
    text = _TEXT
    while len(text) < (offset + last - first) * _CHARACTERS_PER_TOKEN:
        text += _TEXT
    return text[offset * _CHARACTERS_PER_TOKEN : (offset + last - first) * _CHARACTERS_PER_TOKEN]


def error_body(message: str, *, status: int, type: str, param: str | None = None) -> bytes:
    """Write an error as vLLM does."""
    return _compact({"error": {"message": message, "type": type, "param": param, "code": status}})


def models_body(models: tuple[str, ...], created: int) -> bytes:
    """Write the answer to GET /v1/models."""
    data = [
        {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": model,
            "parent": None,
            "max_model_len": MAX_MODEL_TOKENS,
        }
        for model in models
    ]
    return _compact({"object": "list", "data": data})


def embedding_body(asked: Asked) -> bytes:
    """Write the answer to an embeddings request: the same small vector for each input."""
    packed = base64.b64encode(struct.pack(f"<{len(_EMBEDDING)}f", *_EMBEDDING)).decode()
    vector: object = packed if asked.base64 else list(_EMBEDDING)
    return _compact(
        {
            "object": "list",
            "model": asked.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": vector} for index in range(asked.inputs)
            ],
            "usage": {
                "prompt_tokens": asked.prompt_tokens,
                "total_tokens": asked.prompt_tokens,
                "completion_tokens": 0,
            },
        }
    )


def _compact(value: object) -> bytes:
    """Write JSON without spaces, as vLLM does."""
    return json.dumps(value, separators=(",", ":")).encode()


class Answer:
    """Writes one chat or text completion, whole or in pieces. `created` is wall-clock seconds."""

    def __init__(self, asked: Asked, *, name: str, created: int, usage: bool) -> None:
        self._asked = asked
        self._usage = usage
        self._chat = asked.kind == "chat"
        self._identity = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{name}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": created,
            "model": asked.model,
        }
        if asked.stream and self._chat:
            self._identity["object"] = "chat.completion.chunk"
        self._head = _compact(self._identity)[:-1]

    def whole(self) -> bytes:
        """Return the JSON answer."""
        text = text_of(0, self._asked.output_tokens)
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": self._asked.finish_reason}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        body: dict[str, Any] = {**self._identity, "choices": [choice]}
        if self._usage:
            body["usage"] = self._counts()
        return _compact(body)

    def piece(self, first: int, last: int) -> bytes:
        """Return the events that carry tokens `first` to `last`, with what opens and closes the stream."""
        content = text_of(first, last)
        ends = last >= self._asked.output_tokens
        reason = f'"{self._asked.finish_reason}"' if ends else "null"
        opening = b""
        if self._chat:
            if first == 0:
                opening = self._event('{"role":"assistant","content":""}', "null")
            return (
                opening
                + self._event(f'{{"content":"{content}"}}', reason)
                + (self._ending() if ends else b"")
            )
        text = f',"choices":[{{"index":0,"text":"{content}","logprobs":null,"finish_reason":{reason}}}]}}\n\n'
        return b"data: " + self._head + text.encode() + (self._ending() if ends else b"")

    def _event(self, delta: str, reason: str) -> bytes:
        choices = f',"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]}}\n\n'
        return b"data: " + self._head + choices.encode()

    def _ending(self) -> bytes:
        if not (self._usage and self._asked.include_usage):
            return b"data: [DONE]\n\n"
        usage = f',"choices":[],"usage":{_compact(self._counts()).decode()}}}\n\n'
        return b"data: " + self._head + usage.encode() + b"data: [DONE]\n\n"

    def _counts(self) -> dict[str, int]:
        prompt, output = self._asked.prompt_tokens, self._asked.output_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
