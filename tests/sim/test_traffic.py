"""Recorded traffic: each format, and the sentence for what cannot be read."""

import gzip
from pathlib import Path

import pytest

from meritorder_sim.arrivals import Planned
from meritorder_sim.traffic import TrafficError, TrafficOption, parse_traffic_option, read_traffic

TWO = [
    Planned(at=0.0, prompt_tokens=374, output_tokens=44, stream=True),
    Planned(at=4.5, prompt_tokens=396, output_tokens=109, stream=True),
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "azure",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:51.1805900,396,109\n",
        ),
        (
            "azure",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2024-05-10 23:59:58.000000+00:00,374,44\n2024-05-11 00:00:02.500000+00:00,396,109\n",
        ),
        (
            "mooncake",
            '{"timestamp": 27000, "input_length": 374, "output_length": 44, "hash_ids": [1]}\n'
            '{"timestamp": 31500, "input_length": 396, "output_length": 109, "hash_ids": [2]}\n',
        ),
        (
            "burstgpt",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "9.5,GPT-4,396,109,505,API log\n5,ChatGPT,374,44,418,API log\n6,ChatGPT,12,0,12,API log\n",
        ),
    ],
)
def test_reads_published_formats_from_their_first_request(tmp_path: Path, name: str, text: str) -> None:
    plain, packed = tmp_path / "trace", tmp_path / "trace.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        assert read_traffic(parse_traffic_option(f"{path},format={name}")) == TWO
    faster = read_traffic(parse_traffic_option(f"{plain},format={name},speed=3"))
    assert [one.at for one in faster] == [0.0, 1.5]


def test_reads_plain_csv_with_its_own_times_and_options(tmp_path: Path) -> None:
    path = tmp_path / "traffic.csv"
    path.write_text(
        "arrival_seconds,prompt_tokens,completion_tokens,max_tokens,priority,session\n"
        "3,10,0,128,2,alice\n1.5,20,30,,,\n"
    )
    assert read_traffic(TrafficOption(path=path)) == [
        Planned(at=1.5, prompt_tokens=20, output_tokens=30, stream=True),
        Planned(
            at=3.0,
            prompt_tokens=10,
            output_tokens=1,
            stream=True,
            max_tokens=128,
            priority=2,
            session="alice",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "option", "sentence"),
    [
        ("", "", "has no column `arrival_seconds`; its format is csv"),
        ("arrival_seconds,prompt_tokens,completion_tokens\n", "", "has no requests"),
        (
            "arrival_seconds,prompt_tokens,completion_tokens,user\n",
            "",
            "has an unknown column `user`",
        ),
        (
            "arrival_seconds,prompt_tokens,completion_tokens\n1,2,3\nx,2,3\n",
            "",
            "line 3: `arrival_seconds` must be a number of at least 0, is 'x'",
        ),
        (
            "arrival_seconds,prompt_tokens,completion_tokens\n1,2.5,3\n",
            "",
            "line 2: `prompt_tokens` must be a whole number, is '2.5'",
        ),
        ("{", ",format=mooncake", "line 1: must be JSON"),
        ("[1]", ",format=mooncake", "line 1: must be a JSON object"),
        ('{"timestamp": 1}', ",format=mooncake", "line 1: has no `input_length`"),
        ("TIMESTAMP\n", ",format=azure", "has no column `ContextTokens`; its format is azure"),
        ("", ",format=parquet", "traffic `format` must be azure, mooncake, burstgpt or csv, is 'parquet'"),
        ("", ",speed=0", "traffic `speed` must be a number above 0, is '0'"),
        ("", ",pace=2", "traffic option 'pace=2' is unknown; must be format=... or speed=..."),
    ],
)
def test_refuses_with_one_sentence(tmp_path: Path, text: str, option: str, sentence: str) -> None:
    path = tmp_path / "traffic"
    path.write_text(text)
    with pytest.raises(TrafficError) as refused:
        read_traffic(parse_traffic_option(f"{path}{option}"))
    assert sentence in str(refused.value)


def test_a_missing_or_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrafficError, match="cannot be read: No such file or directory"):
        read_traffic(TrafficOption(path=tmp_path / "none.csv"))
    damaged = tmp_path / "traffic.csv.gz"
    damaged.write_bytes(gzip.compress(b"arrival_seconds" * 100)[:-9])
    with pytest.raises(TrafficError, match="cannot be read: it is damaged"):
        read_traffic(TrafficOption(path=damaged))
