"""A simulated replica as its clients see it: the official `openai` client, and plain HTTP for the rest."""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import openai
import pytest

from meritorder_sim.pools import SimulatedPools
from meritorder_sim.pools_file import parse_pools_file
from meritorder_sim.server import Address, ReplicaServer
from support.waiting import until

FAST = """
pools:
  - name: quick
    profile: {tpot: [2, 0.01, 0.01], ttft: [20, 0.01, 0.01]}
    maxBatch: 4
"""
MESSAGES: list[openai.types.chat.ChatCompletionUserMessageParam] = [{"role": "user", "content": "x" * 400}]


@pytest.fixture
async def pools() -> AsyncIterator[SimulatedPools]:
    async with SimulatedPools(parse_pools_file(FAST)) as pools:
        yield pools


@pytest.fixture
def replica(pools: SimulatedPools) -> ReplicaServer:
    return pools["quick"].replicas[0]


@pytest.fixture
async def client(pools: SimulatedPools) -> AsyncIterator[openai.AsyncOpenAI]:
    host, port = pools.addresses["quick"][0]
    async with openai.AsyncOpenAI(
        base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


@pytest.fixture
async def session(pools: SimulatedPools) -> AsyncIterator[aiohttp.ClientSession]:
    host, port = pools.addresses["quick"][0]
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(f"http://{host}:{port}", timeout=timeout) as session:
        yield session


async def page(session: aiohttp.ClientSession) -> dict[str, float]:
    """Read /metrics into values by series, without labels of the engine."""
    async with session.get("/metrics") as answer:
        text = await answer.text()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name.replace('engine="0",', ""): float(value) for name, _, value in lines}


async def test_chat_answers_json_with_exact_usage(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=30)
    assert answer.model == "any"
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].message.content or "") == 30 * 4
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        100,
        30,
        130,
    )


async def test_chat_streams_every_token_and_usage_only_when_asked(client: openai.AsyncOpenAI) -> None:
    for include_usage in (True, False):
        text, reasons, usages, pieces = "", [], [], 0
        stream = await client.chat.completions.create(
            model="any",
            messages=MESSAGES,
            max_completion_tokens=120,
            stream=True,
            stream_options={"include_usage": include_usage},
        )
        async for chunk in stream:
            if chunk.usage is not None:
                usages.append(chunk.usage.completion_tokens)
                assert chunk.choices == []
            for choice in chunk.choices:
                pieces += 1
                text += choice.delta.content or ""
                if choice.finish_reason:
                    reasons.append(choice.finish_reason)
        assert len(text) == 120 * 4
        assert reasons == ["length"]
        assert usages == ([120] if include_usage else [])
        assert 3 <= pieces < 120


async def test_headers_choose_the_numbers_of_tokens(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="any",
        prompt="short",
        max_tokens=64,
        extra_headers={"x-sim-prompt-tokens": "2000", "x-sim-output-tokens": "10"},
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2000, 10)
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].text) == 40


async def test_completions_stream_too(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(model="any", prompt="short", max_tokens=50, stream=True)
    assert len("".join([choice.text async for chunk in stream for choice in chunk.choices])) == 200


async def test_an_answer_nobody_limits_has_a_drawn_length(client: openai.AsyncOpenAI) -> None:
    answers = [await client.completions.create(model="any", prompt="x") for _ in range(3)]
    lengths = [answer.usage.completion_tokens for answer in answers if answer.usage]
    assert len(set(lengths)) > 1
    assert all(1 <= length <= 2048 for length in lengths)


async def test_embeddings_and_models_are_served(client: openai.AsyncOpenAI) -> None:
    embeddings = await client.embeddings.create(model="any", input=["one", "two"])
    assert [len(item.embedding) for item in embeddings.data] == [8, 8]
    assert embeddings.data[0].embedding[0] == 0.5
    assert [model.id async for model in client.models.list()] == ["quick"]


async def test_bad_requests_are_refused_as_openai_errors(
    client: openai.AsyncOpenAI, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(openai.BadRequestError, match="`max_tokens` must be a whole number of at least 1"):
        await client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=0)
    with pytest.raises(openai.BadRequestError, match="`n` must be 1"):
        await client.chat.completions.create(model="any", messages=MESSAGES, n=2)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 131072 tokens"):
        await client.completions.create(model="any", prompt="x", max_tokens=200_000)
    for body, message in (
        (b"{", "must be JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "`messages` must be"),
    ):
        async with session.post("/v1/chat/completions", data=body) as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
            assert message in error["message"]
            assert error["type"] == "BadRequestError"
    async with session.get("/v1/nothing") as answer:
        assert answer.status == 404


async def test_named_models_refuse_any_other() -> None:
    async with SimulatedPools(parse_pools_file(FAST), models=["chat"]) as pools:
        host, port = pools.addresses["quick"][0]
        async with openai.AsyncOpenAI(
            base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0
        ) as client:
            assert (await client.completions.create(model="chat", prompt="x", max_tokens=2)).model == "chat"
            with pytest.raises(openai.NotFoundError, match="The model `other` does not exist"):
                await client.completions.create(model="other", prompt="x", max_tokens=2)


async def test_a_client_that_goes_away_frees_its_slot(
    replica: ReplicaServer, session: aiohttp.ClientSession
) -> None:
    async def ask(stream: bool) -> None:
        body = json.dumps({"prompt": "x", "max_tokens": 100_000, "stream": stream})
        async with session.post("/v1/completions", data=body) as answer:
            await answer.read()

    tasks = [asyncio.create_task(ask(number % 2 == 0)) for number in range(6)]
    await until(lambda: (replica.running, replica.waiting) == (4, 2), 10, "four run and two wait")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: (replica.running, replica.waiting) == (0, 0), 10, "all slots are free")
    series = await page(session)
    assert series['vllm:request_success_total{finished_reason="abort",model_name="quick"}'] == 6


async def test_metrics_agree_with_what_clients_got(
    client: openai.AsyncOpenAI, session: aiohttp.ClientSession
) -> None:
    answers = await asyncio.gather(
        *(client.completions.create(model="any", prompt="x" * 40, max_tokens=20 + n) for n in range(10))
    )
    tokens = sum(answer.usage.completion_tokens for answer in answers if answer.usage)
    series = await page(session)
    assert series['vllm:generation_tokens_total{model_name="quick"}'] == tokens == sum(range(20, 30))
    assert series['vllm:prompt_tokens_total{model_name="quick"}'] == 100
    assert series['vllm:e2e_request_latency_seconds_count{model_name="quick"}'] == 10
    assert series['http_requests_total{handler="/v1/completions",method="POST",status="2xx"}'] == 10


async def test_answers_name_pool_and_replica(session: aiohttp.ClientSession) -> None:
    async with session.get("/health") as answer:
        assert answer.status == 200
        assert (answer.headers["x-sim-pool"], answer.headers["x-sim-replica"]) == ("quick", "0")


async def test_a_fixed_port_is_taken_and_a_taken_one_is_an_error(pools: SimulatedPools) -> None:
    taken = pools.addresses["quick"][0].port
    with pytest.raises(OSError, match="in use"):
        async with SimulatedPools(parse_pools_file(FAST), ports={"quick": [taken]}):
            pass
    await pools["quick"].set_replicas(0)
    async with SimulatedPools(parse_pools_file(FAST), ports={"quick": [taken]}) as others:
        assert others.addresses == {"quick": [Address("127.0.0.1", taken)]}
