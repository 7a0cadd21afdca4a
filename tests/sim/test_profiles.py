"""The built-in profiles: their numbers, their order, and the order of cost that follows from them."""

import pytest

from meritorder_sim.profiles import ProfileError, built_in, built_in_names, resolve


def test_every_built_in_profile_has_the_speed_of_its_card() -> None:
    assert built_in_names() == ("llama-3.1-8b/a100", "llama-3.1-8b/h100", "llama-3.1-8b/l40s")
    alone = {name: built_in(name).tpot_ms(1, 1000) for name in built_in_names()}
    assert alone == pytest.approx(
        {"llama-3.1-8b/l40s": 22.39, "llama-3.1-8b/a100": 11.93, "llama-3.1-8b/h100": 6.40}, abs=0.01
    )


@pytest.mark.parametrize("running", [1, 16, 64, 256])
@pytest.mark.parametrize("input_tokens", [100, 1000, 8000])
def test_the_dearer_card_is_always_faster(running: int, input_tokens: int) -> None:
    cards = [built_in(f"llama-3.1-8b/{card}") for card in ("h100", "a100", "l40s")]
    tpots = [card.tpot_ms(running, input_tokens) for card in cards]
    prefills = [card.prefill_ms(running, input_tokens) for card in cards]
    assert tpots == sorted(tpots)
    assert prefills == sorted(prefills)


def test_a_filled_h100_is_cheaper_per_request_than_an_l40s_at_its_limit() -> None:
    def dollars_per_thousand(card: str, running: int, per_hour: float) -> float:
        profile = built_in(f"llama-3.1-8b/{card}")
        seconds = (profile.prefill_ms(running, 1000) + 199 * profile.tpot_ms(running, 1000)) / 1000
        return per_hour / (running / seconds * 3600) * 1000

    assert (
        built_in("llama-3.1-8b/l40s").tpot_ms(46, 1000) < 45 < built_in("llama-3.1-8b/l40s").tpot_ms(48, 1000)
    )
    assert dollars_per_thousand("l40s", 46, 1.86) == pytest.approx(0.10, abs=0.005)
    assert dollars_per_thousand("h100", 256, 6.88) == pytest.approx(0.06, abs=0.005)


def test_an_unknown_profile_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(
        ProfileError, match=r"profile 'b300' is not built in; must be one of llama-3\.1-8b/a100, "
    ):
        resolve("b300")
