"""What a pools file may say, and the sentence for what it may not."""

from decimal import Decimal
from pathlib import Path

import pytest

from meritorder_sim.pools_file import PoolsFileError, load_pools_file, parse_pools_file

WHOLE = """
pools:
  - name: l40s
    profile: llama-3.1-8b/l40s
    replicas: 3
    maxBatch: 128
    referenceCostPerMillionTokens: "0.86"
    autoscale: {minimum: 1, maximum: 6, delaySeconds: 120}
    events:
      [{at: 900, slowdown: 1}, {at: 600, slowdown: 3}, {at: 1200, replicas: 0}, {at: 1300, errorPercent: 20}]
  - name: own
    profile: {tpot: [10, 0.1, 0.2], ttft: [40, 0.01, 0.01]}
"""


def test_reads_every_field_and_orders_events() -> None:
    file = parse_pools_file(WHOLE)
    l40s, own = file.pools
    assert (l40s.name, l40s.replicas, l40s.max_batch) == ("l40s", 3, 128)
    assert l40s.reference_cost_per_million_tokens == Decimal("0.86")
    assert l40s.autoscale is not None
    assert (l40s.autoscale.minimum, l40s.autoscale.maximum, l40s.autoscale.delay_seconds) == (1, 6, 120)
    assert [(e.at, e.slowdown, e.replicas, e.error_percent) for e in l40s.events] == [
        (600, 3, None, None),
        (900, 1, None, None),
        (1200, None, 0, None),
        (1300, None, None, 20),
    ]
    assert (own.replicas, own.max_batch, own.autoscale, own.events) == (1, 256, None, ())
    assert file.profile_of(l40s).tpot_ms(1, 1000) == pytest.approx(22.385, abs=0.001)
    assert file.profile_of(own).tpot_ms(10, 1000) == pytest.approx(13.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pools: []", "`pools` must have at least 1 entries"),
        ("- a", "must be a mapping with `pools`"),
        ("pools: [{name: a", "is not valid YAML (line 1)"),
        ("{}", "`pools` is missing"),
        ("{pools: [{name: a, profile: llama-3.1-8b/h100}], extra: 1}", "unknown field `extra`"),
        ("pools: [{name: a, profil: x}]", "pool 'a': unknown field `profil`"),
        (
            "pools: [{name: a, profile: llama-3.1-8b/h100, maxbatch: 3}]",
            "pool 'a': unknown field `maxbatch`; must be one of `autoscale`, `events`, `maxBatch`",
        ),
        (
            "pools: [{name: a, profile: llama-3.1-8b/h100, events: [{at: 1, slowdwn: 2}]}]",
            "pool 'a': unknown field `events[0].slowdwn`; must be one of `at`, `errorPercent`",
        ),
        (
            "pools: [{name: a, profile: llama-3.1-8b/h100, events: [{at: 1, slowdown: 0}]}]",
            "pool 'a': `events[0].slowdown` must be greater than 0, is 0",
        ),
        (
            "pools: [{name: a, profile: llama-3.1-8b/h100, replicas: -1}]",
            "pool 'a': `replicas` must be greater than or equal to 0, is -1",
        ),
        (
            "pools: [{name: a, profile: llama-3.1-8b/b300}]",
            "pool 'a': profile 'llama-3.1-8b/b300' is not built in; must be one of llama-3.1-8b/a100",
        ),
        (
            "pools: [{name: a, profile: none.csv}]",
            "pool 'a': profile 'none.csv' cannot be read: No such file",
        ),
        (
            "pools: [{name: a, profile: 3}]",
            "pool 'a': `profile` must be a built-in name, a path to a CSV, or",
        ),
        (
            "pools: [{name: a, profile: {tpot: [0, 1, 1], ttft: [1, 1, 1]}}]",
            "pool 'a': `profile.tpot` the first coefficient must be above 0",
        ),
        (
            "pools: [{name: a, profile: llama-3.1-8b/h100, referenceCostPerMillionTokens: 0.86}]",
            "pool 'a': `referenceCostPerMillionTokens` must be a decimal string of at least 0",
        ),
        (
            "pools: [{name: a, profile: llama-3.1-8b/h100, autoscale: {minimum: 3, maximum: 1}}]",
            "pool 'a': `autoscale` `minimum` must be at most `maximum`",
        ),
        (
            "pools: [{name: a, profile: llama-3.1-8b/h100}, {name: a, profile: llama-3.1-8b/h100}]",
            "pool names must be unique, 'a' is there twice",
        ),
        ("pools: [{name: A B, profile: llama-3.1-8b/h100}]", "pool 'A B': `name` must match pattern"),
        ("pools: [7]", "pool number 1: must be a mapping"),
    ],
)
def test_refuses_with_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(PoolsFileError) as refused:
        parse_pools_file(text, source="pools.yaml")
    message = str(refused.value)
    assert message.startswith("pools.yaml: ")
    assert sentence in message
    assert "\n" not in message


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PoolsFileError, match=r"pools file '.*none\.yaml' cannot be read: No such file"):
        load_pools_file(tmp_path / "none.yaml")


def test_a_csv_profile_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "card.csv").write_text(
        "# measured on a bench\nrunning,input_tokens,ttft_ms,tpot_ms\n"
        "1,1000,100,10\n101,1000,300,20\n1,3000,300,12\n"
    )
    (tmp_path / "pools.yaml").write_text("pools: [{name: card, profile: card.csv}]")
    file = load_pools_file(tmp_path / "pools.yaml")
    profile = file.profile_of(file.pools[0])
    assert profile.tpot_ms(51, 1000) == pytest.approx(15)
    assert profile.tpot_ms(201, 1000) == pytest.approx(30)
    assert profile.prefill_ms(1, 2000) == pytest.approx(200)
    assert profile.prefill_ms(1, 9000) == pytest.approx(300)


def test_a_csv_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.csv").write_text("running,tpot_ms\n1,10\n")
    with pytest.raises(PoolsFileError, match=r"must have the header running,.*, has running,tpot_ms"):
        parse_pools_file("pools: [{name: card, profile: card.csv}]", base=tmp_path)


def test_a_csv_with_a_bad_number_names_the_point(tmp_path: Path) -> None:
    (tmp_path / "card.csv").write_text("running,input_tokens,ttft_ms,tpot_ms\n1,10,5,2\n2,10,x,3\n")
    with pytest.raises(PoolsFileError, match="point 2: `ttft_ms` must be a number above 0, is 'x'"):
        parse_pools_file("pools: [{name: card, profile: card.csv}]", base=tmp_path)
