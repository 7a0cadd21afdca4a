"""Open-loop load: requests leave at their planned moments whether or not earlier ones are answered.

`run_load` measures like a client: from the moment a request is sent to the last byte, with the first byte
of a stream and its time per token between. There are no retries. Which pool answered is read from the first
response header of `POOL_HEADERS` that is there. A `LoadView` can be read while the run is on.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from meritorder_sim.arrivals import Planned
from meritorder_sim.load_report import LoadReport, Metric, Record, Window, summarize
from meritorder_sim.wire import OUTPUT_TOKENS_HEADER, PROMPT_TOKENS_HEADER

POOL_HEADERS = ("x-meritorder-answered-by", "x-sim-pool")
_TAIL_BYTES = 2048
_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What requests look like on the wire.

    `url` is the server without `/v1`. `sizes`: how it learns of sizes. `header`: by the simulator's
    headers, with a body of a few bytes (cheap); `text`: by a prompt of four characters per token and
    `max_tokens`, as any server understands.
    """

    url: str
    model: str = "llama-3.1-8b"
    api: Literal["chat", "completion"] = "chat"
    sizes: Literal["header", "text"] = "header"
    headers: Mapping[str, str] = field(default_factory=dict)
    include_usage: bool = True
    timeout_seconds: float = 300.0


class LoadView:
    """The state of a run that is on, for whoever draws or waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._began: float | None = None
        self.records: list[Record] = []
        self.sent = 0
        self.in_flight = 0
        self.failed = 0

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return 0.0 if self._began is None else self.clock() - self._began

    @property
    def completed(self) -> int:
        return len(self.records)

    def begin(self) -> float:
        self._began = self.clock()
        return self._began

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.failed += record.failed

    def last(
        self, seconds: float, *, metric: Metric = "EndToEndLatency", target_seconds: float | None = None
    ) -> Window:
        """Sum up what ended within the last `seconds`."""
        end = self.seconds
        recent: deque[Record] = deque()
        for record in reversed(self.records):
            if record.ended < end - seconds:
                break
            recent.appendleft(record)
        return summarize(
            recent,
            start=max(end - seconds, 0.0),
            seconds=seconds,
            metric=metric,
            target_seconds=target_seconds,
        )


async def run_load(
    target: Target | str,
    requests: Iterable[Planned],
    *,
    clock: Callable[[], float] | None = None,
    view: LoadView | None = None,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """Send the requests at their moments, wait for the answers, and report.

    `stop` ends the sending early; what is under way is still waited for. A cancelled run cancels its
    requests.
    """
    wanted = Target(url=target) if isinstance(target, str) else target
    seen = view or LoadView(clock or time.monotonic)
    clock = clock or seen.clock
    timeout = aiohttp.ClientTimeout(total=wanted.timeout_seconds)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
        asyncio.TaskGroup() as group,
    ):
        client = _Client(session, wanted, seen, clock)
        began = seen.begin()
        for planned in requests:
            if not await _wait_until(began + planned.at, clock, stop):
                break
            seen.sent += 1
            group.create_task(client.send(planned, began))
    return LoadReport(seconds=clock() - began, records=tuple(seen.records))


async def _wait_until(at: float, clock: Callable[[], float], stop: asyncio.Event | None) -> bool:
    """Wait for a moment; False when told to stop."""
    if stop is not None and stop.is_set():
        return False
    delay = at - clock()
    if delay <= 0:
        return True
    if stop is None:
        await asyncio.sleep(delay)
        return True
    try:
        async with asyncio.timeout(delay):
            await stop.wait()
    except TimeoutError:
        return True
    return False


@dataclass(slots=True)
class _Seen:
    """What is known of one request so far."""

    status: int = 0
    pool: str = ""
    error: str | None = None
    first_byte_at: float | None = None
    completion_tokens: int | None = None


class _Client:
    def __init__(
        self, session: aiohttp.ClientSession, target: Target, view: LoadView, clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._target = target
        self._view = view
        self._clock = clock
        self._url = target.url.rstrip("/") + _PATHS[target.api]
        self._headers = {"Content-Type": "application/json", **target.headers}

    async def send(self, planned: Planned, began: float) -> None:
        """Send one request and add its record to the view."""
        body, headers = self._message(planned)
        seen = _Seen()
        self._view.in_flight += 1
        started = self._clock()
        try:
            async with self._session.post(self._url, data=body, headers=headers) as answer:
                seen.status = answer.status
                seen.pool = next(
                    (answer.headers[name] for name in POOL_HEADERS if name in answer.headers), ""
                )
                await self._read(answer, planned, seen)
        except TimeoutError:
            seen.error = "timeout"
        except aiohttp.ClientConnectorError:
            seen.error = "connect"
        except (aiohttp.ClientError, ConnectionError):
            seen.error = "reset" if seen.status == 0 else "broken"
        finally:
            self._view.in_flight -= 1
        ended = self._clock()
        self._view.add(
            Record(
                started=started - began,
                ended=ended - began,
                late=max(started - began - planned.at, 0.0),
                pool=seen.pool,
                status=seen.status,
                error=seen.error,
                stream=planned.stream,
                prompt_tokens=planned.prompt_tokens,
                output_tokens=planned.output_tokens,
                completion_tokens=seen.completion_tokens,
                max_tokens=planned.max_tokens,
                first_byte=None if seen.first_byte_at is None else seen.first_byte_at - started,
                tpot=_tpot(seen, ended) if planned.stream else None,
            )
        )

    async def _read(self, answer: aiohttp.ClientResponse, planned: Planned, seen: _Seen) -> None:
        if answer.status != 200:
            await answer.read()
            seen.error = f"http {answer.status}"
            return
        if not planned.stream:
            seen.completion_tokens = _usage(await answer.read())
            return
        tail = b""
        async for piece in answer.content.iter_any():
            if seen.first_byte_at is None:
                seen.first_byte_at = self._clock()
            tail = (tail + piece)[-_TAIL_BYTES:]
        if b"data: [DONE]" not in tail:
            seen.error = "broken"
            return
        for line in reversed(tail.split(b"\n")):
            if line.startswith(b"data: {") and b'"usage"' in line:
                seen.completion_tokens = _usage(line[len(b"data: ") :])
                return

    def _message(self, planned: Planned) -> tuple[bytes, dict[str, str]]:
        target = self._target
        headers = self._headers
        text = "x"
        limit = planned.max_tokens
        if target.sizes == "header":
            headers = {
                **headers,
                PROMPT_TOKENS_HEADER: str(planned.prompt_tokens),
                OUTPUT_TOKENS_HEADER: str(planned.output_tokens),
            }
        else:
            text = "word" * planned.prompt_tokens
        prompt = (
            f'"messages":[{{"role":"user","content":"{text}"}}]'
            if target.api == "chat"
            else f'"prompt":"{text}"'
        )
        parts = [f'{{"model":{json.dumps(target.model)}', prompt]
        if limit is not None:
            parts.append(f'"max_tokens":{limit}')
        if planned.stream:
            parts.append('"stream":true')
            if target.include_usage:
                parts.append('"stream_options":{"include_usage":true}')
        return (",".join(parts) + "}").encode(), headers


def _usage(body: bytes) -> int | None:
    """Return the completion tokens that an answer states."""
    try:
        usage = json.loads(body).get("usage")
    except (ValueError, AttributeError):
        return None
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else None


def _tpot(seen: _Seen, ended: float) -> float | None:
    """Return seconds per token after the first; a stream's last token comes with its end."""
    if seen.first_byte_at is None or seen.completion_tokens is None or seen.completion_tokens < 2:
        return None
    return (ended - seen.first_byte_at) / (seen.completion_tokens - 1)
