"""Open-loop load from the real `openai` client, as a process of its own.

    python openai_load.py --base-url URL [--base-url URL ...] --out results.jsonl [--seed N]

Reads one JSON object per line from standard input and follows the newest: `{"json": 20.0, "streams": 2.0,
"tokens": 50, "streamTokens": 50}` (requests per second of each kind, tokens to ask for), `{"quit": true}`.
Arrivals are Poisson with the given seed; base URLs take turns. Each request's outcome is one line of the
output file, written when it ends:

    {"kind": "json" or "stream", "sent": Unix seconds, "seconds": float, "ok": bool,
     "pool": name or null, "error": words or null, "url": 0}

A stream is ok only if it ended with its finish reason and carried every token. `max_retries=0`: the
client's own retries would hide failures.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any, TextIO

import openai
import uvloop

POOL_HEADER = "x-meritorder-answered-by"


class Load:
    """Sends what it was last told to, until told to quit."""

    def __init__(self, base_urls: list[str], out: TextIO, seed: int) -> None:
        self._clients = [
            openai.AsyncOpenAI(
                base_url=url,
                api_key="unused",
                max_retries=0,
                timeout=120.0,
                http_client=openai.DefaultAsyncHttpxClient(
                    limits=httpx_limits(),
                    trust_env=False,
                ),
            )
            for url in base_urls
        ]
        self._out = out
        self._random = random.Random(seed)
        self._turn = 0
        self._wanted: dict[str, Any] = {"json": 0.0, "streams": 0.0}
        self._told = {"json": asyncio.Event(), "streams": asyncio.Event()}
        self._quit = False
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, line: str) -> None:
        """Follow a new instruction."""
        told = json.loads(line)
        if told.get("quit"):
            self._quit = True
        else:
            self._wanted = told
        for event in self._told.values():
            event.set()

    async def run(self) -> None:
        """Send until told to quit, then wait for what is in flight."""
        await asyncio.gather(self._arrivals("json"), self._arrivals("streams"))
        if self._tasks:
            await asyncio.gather(*self._tasks)
        for client in self._clients:
            await client.close()

    async def _arrivals(self, kind: str) -> None:
        told = self._told[kind]
        at = time.monotonic()
        while not self._quit:
            rate = float(self._wanted.get(kind, 0.0))
            if rate <= 0:
                await told.wait()
                told.clear()
                at = time.monotonic()
                continue
            at = max(at, time.monotonic() - 1.0) + self._random.expovariate(rate)
            try:
                async with asyncio.timeout(max(0.0, at - time.monotonic())):
                    await told.wait()
                told.clear()
                continue  # a new instruction: draw the next arrival anew
            except TimeoutError:
                pass
            task = asyncio.create_task(self._one(kind))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, kind: str) -> None:
        which = self._turn = (self._turn + 1) % len(self._clients)
        client = self._clients[which]
        sent, started = time.time(), time.monotonic()
        pool: str | None = None
        error: str | None = None
        try:
            if kind == "json":
                pool = await self._json(client, int(self._wanted.get("tokens", 50)))
            else:
                pool, error = await self._stream(client, int(self._wanted.get("streamTokens", 50)))
        except openai.OpenAIError as problem:
            body = getattr(problem, "body", None)
            error = (
                f"{type(problem).__name__}: {str(problem)[:200]} {str(body)[:200] if body else ''}".strip()
            )
        except Exception as problem:  # the client's own stack may raise its HTTP library's errors mid-stream
            error = f"{type(problem).__name__}: {str(problem)[:200]}"
        record = {
            "kind": "json" if kind == "json" else "stream",
            "sent": sent,
            "seconds": time.monotonic() - started,
            "ok": error is None,
            "pool": pool,
            "error": error,
            "url": which,
        }
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()

    async def _json(self, client: openai.AsyncOpenAI, tokens: int) -> str | None:
        answer = await client.chat.completions.with_raw_response.create(
            model="llama", messages=[{"role": "user", "content": "x" * 400}], max_tokens=tokens
        )
        parsed = answer.parse()
        if not parsed.choices[0].finish_reason:
            raise openai.OpenAIError("answer without a finish reason")
        return answer.headers.get(POOL_HEADER)

    async def _stream(self, client: openai.AsyncOpenAI, tokens: int) -> tuple[str | None, str | None]:
        answer = await client.chat.completions.with_raw_response.create(
            model="llama",
            messages=[{"role": "user", "content": "x" * 400}],
            max_tokens=tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        pool = answer.headers.get(POOL_HEADER)
        finish: str | None = None
        counted: int | None = None
        try:
            async for chunk in answer.parse():
                if chunk.choices and chunk.choices[0].finish_reason:
                    finish = chunk.choices[0].finish_reason
                if chunk.usage is not None:
                    counted = chunk.usage.completion_tokens
        except Exception as problem:  # as above: a cut stream surfaces as the HTTP library's own error
            return pool, f"cut: {type(problem).__name__}: {str(problem)[:200]}"
        if finish is None:
            return pool, "cut: stream ended without a finish reason"
        if counted is not None and counted != tokens:
            return pool, f"cut: {counted} of {tokens} tokens"
        return pool, None


def httpx_limits() -> Any:
    """No limit on connections: open loop means that nothing waits on this side."""
    return openai.DEFAULT_CONNECTION_LIMITS.__class__(max_connections=5000, max_keepalive_connections=1000)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", action="append", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with open(arguments.out, "w", encoding="utf-8") as out:  # noqa: ASYNC230 - opened once, before there is load
        load = Load(arguments.base_url, out, arguments.seed)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )

        async def listen() -> None:
            while line := await reader.readline():
                load.tell(line.decode())
            load.tell('{"quit": true}')

        listener = asyncio.create_task(listen())
        print("ready", flush=True)
        await load.run()
        listener.cancel()


if __name__ == "__main__":
    uvloop.run(main())
