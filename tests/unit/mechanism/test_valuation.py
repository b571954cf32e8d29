"""What pairs are worth: the worked example, exactness, and each rule of feasibility."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pytest

from auctioneer.mechanism import clear
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.errors import InvalidValuationInputError
from auctioneer.mechanism.valuation import MAX_TTFT_US, Offer, Valuation, compute_valuation, predict
from iemas.core.auction import N_SCENARIOS, Bid, ProviderQos
from iemas.core.report import LoadReport
from iemas.core.types import PPM, Lateness, Prices
from iemas.testing.builders import make_scenarios

SCENARIOS = make_scenarios([50])


def blocks(*rows: Any) -> IntArray:
    return np.array(rows, dtype=np.int64)


def evaluate_one(
    bid: Bid, provider: Offer, matched: int = 40, *, cache_affinity: bool = True
) -> Valuation:
    return compute_valuation(
        [bid], [provider], blocks([matched]), scenarios=SCENARIOS, cache_affinity=cache_affinity
    )


def test_worked_example_of_spec_6(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    bids = [make_bid(), make_bid(lateness=Lateness(600, 100))]
    valuation = compute_valuation(
        bids, [make_provider()], blocks([40], [40]), scenarios=SCENARIOS, cache_affinity=True
    )
    assert valuation.cached_tokens.tolist() == [[640], [640]]
    assert valuation.cost_micros.tolist() == [[344], [344]]
    assert valuation.value_micros.tolist() == [[688], [622]]
    assert valuation.welfare_micros.tolist() == [[344], [278]]
    assert valuation.expected_ttft_ms.tolist() == [[320], [320]]
    assert valuation.get_expected_tokens(0, 0) == (360_000_000, 640_000_000, 50_000_000)
    assert valuation.get_expected_tokens(1, 0) == (360_000_000, 640_000_000, 33_500_000)


def test_prediction_of_the_worked_example(
    make_qos: Callable[..., ProviderQos], make_load: Callable[..., LoadReport]
) -> None:
    prediction = predict(make_qos(), make_load(), uncached_tokens=360)
    assert prediction.ttft_us == 320_000
    assert prediction.token_us == 10_000


def test_pending_tokens_delay(
    make_qos: Callable[..., ProviderQos], make_load: Callable[..., LoadReport]
) -> None:
    qos = make_qos(ttft_per_pending_token_us=7)
    load = make_load(active=0, pending_prompt_tokens=1000)
    assert predict(qos, load, uncached_tokens=0).ttft_us == 107_000


def test_prediction_saturates(
    make_bid: Callable[..., Bid],
    make_provider: Callable[..., Offer],
    make_qos: Callable[..., ProviderQos],
    make_load: Callable[..., LoadReport],
) -> None:
    worst = {
        "ttft_base_us": 10**10,
        "ttft_per_uncached_token_us": 10**10,
        "ttft_per_active_task_us": 10**10,
        "ttft_per_pending_token_us": 10**10,
    }
    load = make_load(pending_prompt_tokens=2**63)
    prediction = predict(make_qos(**worst), load, uncached_tokens=10**7)
    assert prediction.ttft_us == MAX_TTFT_US
    valuation = evaluate_one(make_bid(), make_provider(qos=make_qos(**worst), load=load))
    assert valuation.expected_ttft_ms.tolist() == [[MAX_TTFT_US // 1000]]


def test_prediction_refuses_impossible_counts(
    make_qos: Callable[..., ProviderQos], make_load: Callable[..., LoadReport]
) -> None:
    with pytest.raises(InvalidValuationInputError) as refused:
        predict(make_qos(), make_load(), uncached_tokens=-1)
    assert refused.value.argument == "uncached_tokens"


def test_random_pairs_equal_the_scalar_reference(
    make_bid: Callable[..., Bid],
    make_provider: Callable[..., Offer],
    make_qos: Callable[..., ProviderQos],
    make_load: Callable[..., LoadReport],
) -> None:
    rng = np.random.default_rng(3)

    def draw(low: Any, high: Any) -> Any:
        return int(np.exp(rng.uniform(np.log(low), np.log(high))))

    bids = [
        make_bid(
            prompt_tokens=draw(1, 10**7),
            max_tokens=draw(1, 10**7),
            prices=Prices(draw(1, 10**12), draw(1, 10**12), draw(1, 10**12)),
            reservation_micros=2**53,
        )
        for _ in range(30)
    ]
    providers = [
        make_provider(
            ask=Prices(draw(1, 10**12), draw(1, 10**12), draw(1, 10**12)),
            qos=make_qos(ttft_per_uncached_token_us=draw(1, 10**6)),
            load=make_load(active=draw(1, 5)),
            context_tokens=2**50,
            block_size=draw(1, 4096),
        )
        for _ in range(20)
    ]
    matched = rng.integers(0, 1000, (30, 20))
    lengths = [draw(1, 10**7) for _ in range(N_SCENARIOS)]
    valuation = compute_valuation(
        bids, providers, matched, scenarios=make_scenarios(lengths), cache_affinity=True
    )
    for (n, i), found in np.ndenumerate(matched):
        bid, provider = bids[n], providers[i]
        size = provider.capability.block_size
        cached = min(int(found), (bid.prompt_tokens - 1) // size) * size
        prediction = predict(
            provider.qos,
            provider.load,
            uncached_tokens=bid.prompt_tokens - cached,
        )
        output = Fraction(sum(min(n, bid.max_tokens) for n in lengths), N_SCENARIOS)
        tokens = (Fraction(bid.prompt_tokens - cached), Fraction(cached), output)
        value = floor(compute_total(bid.prices, tokens))
        cost = ceil(compute_total(provider.ask, tokens))
        covered = bid.prices.covers(provider.ask)
        assert valuation.cached_tokens[n, i] == cached
        assert valuation.expected_ttft_ms[n, i] == ceil(prediction.ttft_us / 1000)
        assert valuation.value_micros[n, i] == value
        assert valuation.cost_micros[n, i] == cost
        assert valuation.welfare_micros[n, i] == (max(value - cost, 0) if covered else 0)
    assert (valuation.welfare_micros > 0).any()


def compute_total(prices: Any, tokens: Any) -> Any:
    rates = (
        prices.prompt_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.output_micros_per_mtok,
    )
    return Fraction(sum(r * t for r, t in zip(rates, tokens, strict=True)), 10**6)


def test_the_largest_products_are_exact(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    top = Prices(10**12, 10**12, 10**12)
    bid = make_bid(
        prompt_tokens=10**7, max_tokens=10**7, prices=top, lateness=Lateness(86_400_000, 1)
    )
    provider = make_provider(ask=top, context_tokens=2**63)
    valuation = compute_valuation(
        [bid],
        [provider],
        blocks([0]),
        scenarios=make_scenarios([10**7]),
        cache_affinity=True,
    )
    assert valuation.cost_micros.tolist() == [[2 * 10**13]]
    assert 10**13 <= valuation.value_micros[0, 0] <= 2 * 10**13


def test_one_prompt_token_is_always_computed(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    bid = make_bid(prompt_tokens=32)
    assert evaluate_one(bid, make_provider(), 2).cached_tokens.tolist() == [[16]]
    assert evaluate_one(bid, make_provider(), 2**62).cached_tokens.tolist() == [[16]]


def test_without_affinity_nothing_is_cached(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    valuation = evaluate_one(make_bid(), make_provider(), cache_affinity=False)
    assert valuation.cached_tokens.tolist() == [[0]]
    assert valuation.cost_micros.tolist() == [[600]]
    assert valuation.expected_ttft_ms.tolist() == [[640]]


def test_cached_tokens_raise_welfare_by_the_cheaper_ask(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    # Worth the same to the requester either way, so the whole saving is welfare.
    bid = make_bid(prices=Prices(1_000_000, 1_000_000, 4_000_000))
    valuation = compute_valuation(
        [bid],
        [make_provider(), make_provider()],
        blocks([0, 40]),
        scenarios=SCENARIOS,
        cache_affinity=True,
    )
    cold, warm = valuation.welfare_micros[0].tolist()
    assert warm - cold == 640 * 0.4


@pytest.mark.parametrize(
    ("bid_changes", "provider_changes"),
    [
        ({"model": "other"}, {}),
        ({"model": ""}, {"model": "", "slots": 0}),
        ({}, {"context_tokens": 1099}),
        ({"prices": Prices(499_999, 200_000, 4_000_000)}, {}),
        ({"prices": Prices(1_000_000, 99_999, 4_000_000)}, {}),
        ({"prices": Prices(1_000_000, 200_000, 1_999_999)}, {}),
        ({"reservation_micros": 1399}, {}),
        ({"prices": Prices(500_000, 100_000, 2_000_000)}, {}),
        ({"lateness": Lateness(1, 0)}, {}),
    ],
)
def test_infeasible_pairs_have_no_welfare(
    make_bid: Callable[..., Bid],
    make_provider: Callable[..., Offer],
    bid_changes: dict[str, Any],
    provider_changes: dict[str, Any],
) -> None:
    assert evaluate_one(make_bid(), make_provider()).welfare_micros.tolist() == [[344]]
    valuation = evaluate_one(make_bid(**bid_changes), make_provider(**provider_changes))
    assert valuation.welfare_micros.tolist() == [[0]]


def test_the_tightest_feasible_pair(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    bid = make_bid(reservation_micros=1400)
    valuation = evaluate_one(bid, make_provider(context_tokens=1100))
    assert valuation.welfare_micros.tolist() == [[344]]


def test_value_never_exceeds_the_reservation_of_a_feasible_pair(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    bid = make_bid(reservation_micros=1400)
    valuation = evaluate_one(bid, make_provider(), 0)
    assert valuation.value_micros[0, 0] <= 1400


@pytest.mark.parametrize(
    "matched",
    [
        np.zeros((1, 2), dtype=np.int64),
        np.zeros((1, 1)),
        np.zeros((1, 1), dtype=np.int32),
        np.array([[-1]]),
        [[0]],
        np.zeros(1, dtype=np.int64),
    ],
)
def test_malformed_matched_blocks_are_refused(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer], matched: Any
) -> None:
    with pytest.raises(InvalidValuationInputError) as refused:
        compute_valuation(
            [make_bid()], [make_provider()], matched, scenarios=SCENARIOS, cache_affinity=True
        )
    assert refused.value.argument == "matched_blocks"


def test_another_number_of_scenarios_is_refused(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    with pytest.raises(InvalidValuationInputError) as refused:
        compute_valuation(
            [make_bid()],
            [make_provider()],
            blocks([0]),
            scenarios=SCENARIOS[1:],
            cache_affinity=True,
        )
    assert refused.value.argument == "scenarios"


def test_each_answer_ends_at_its_own_bound(
    make_bid: Callable[..., Bid], make_provider: Callable[..., Offer]
) -> None:
    lengths = [10, 20, 40, 80]
    bids = [make_bid(max_tokens=most, reservation_micros=10**6) for most in (1, 15, 100)]
    valuation = compute_valuation(
        bids,
        [make_provider()],
        blocks([0], [0], [0]),
        scenarios=make_scenarios(lengths),
        cache_affinity=True,
    )
    expected = [sum(min(n, bid.max_tokens) for n in lengths) / 4 for bid in bids]
    found = [valuation.get_expected_tokens(n, 0)[2] / PPM for n in range(3)]
    assert found == expected == [1.0, 13.75, 37.5]


def test_long_and_late_go_together_if_the_scenarios_say_so(
    make_bid: Callable[..., Bid],
    make_provider: Callable[..., Offer],
    make_qos: Callable[..., ProviderQos],
) -> None:
    """The same lengths and the same times, together or against each other: other worth."""
    bid = make_bid(lateness=Lateness(900, 300))
    provider = make_provider(qos=make_qos(token_sd_us=8_000))

    def evaluate(deviations_ppm: list[int]) -> int:
        valuation = compute_valuation(
            [bid],
            [provider],
            blocks([0]),
            scenarios=make_scenarios([10, 90], deviations_ppm=deviations_ppm),
            cache_affinity=True,
        )
        assert valuation.cost_micros.tolist() == [[600]]
        return int(valuation.value_micros[0, 0])

    assert evaluate([-PPM, PPM]) < evaluate([PPM, -PPM])


@pytest.mark.parametrize("shape", [(0, 0), (0, 2), (2, 0)])
@pytest.mark.parametrize("lateness", [Lateness(), Lateness(100, 100)])
def test_empty_rounds(
    make_bid: Callable[..., Bid],
    make_provider: Callable[..., Offer],
    shape: tuple[int, int],
    lateness: Lateness,
) -> None:
    valuation = compute_valuation(
        [make_bid(lateness=lateness)] * shape[0],
        [make_provider()] * shape[1],
        np.zeros(shape, dtype=np.int64),
        scenarios=SCENARIOS,
        cache_affinity=True,
    )
    assert valuation.welfare_micros.shape == shape
    assert valuation.expected_ppm_tokens.shape == (3, *shape)


def test_the_same_pair_has_the_same_value_in_any_round(
    make_bid: Callable[..., Bid],
    make_provider: Callable[..., Offer],
    make_qos: Callable[..., ProviderQos],
) -> None:
    # Vector lanes and array sizes must not change a bit of it.
    rng = np.random.default_rng(8)
    bids = [make_bid(lateness=Lateness(int(at), 777)) for at in rng.integers(100, 2000, 17)]
    qos = [
        make_qos(ttft_sd_us=int(sd), token_sd_us=int(sd) // 30)
        for sd in rng.integers(0, 200_000, 13)
    ]
    providers = [make_provider(qos=q) for q in qos]
    matched = rng.integers(0, 60, (17, 13))
    together = compute_valuation(bids, providers, matched, scenarios=SCENARIOS, cache_affinity=True)
    for (n, i), found in np.ndenumerate(matched):
        alone = evaluate_one(bids[n], providers[i], int(found))
        assert alone.get_expected_tokens(0, 0) == together.get_expected_tokens(n, i)
        assert alone.welfare_micros[0, 0] == together.welfare_micros[n, i]


@pytest.mark.parametrize("lateness", [Lateness(), Lateness(600, 100)])
@pytest.mark.parametrize("rival_percent", [60, 90, 120, 200])
def test_no_declared_price_gains_over_the_true_one(
    make_bid: Callable[..., Bid],
    make_provider: Callable[..., Offer],
    lateness: Lateness,
    rival_percent: int,
) -> None:
    """One task an account, `client` mode: bids from the ask to twice the truth, by component."""

    def scale(percents: tuple[int, ...]) -> Bid:
        prompt, cached, output = percents
        prices = Prices(10_000 * prompt, 2_000 * cached, 40_000 * output)
        return make_bid(prices=prices, lateness=lateness, reservation_micros=10**6)

    truth, rival = scale((100, 100, 100)), scale((rival_percent,) * 3)
    providers = [make_provider(), make_provider(ask=Prices(600_000, 120_000, 2_400_000))]
    matched = blocks([40, 0], [0, 40])

    def compute_utility(bid: Bid) -> int:
        valuation = compute_valuation(
            [bid, rival], providers, matched, scenarios=SCENARIOS, cache_affinity=True
        )
        clearing = clear(valuation.welfare_micros, np.array([1, 0]), mode="client")
        i = int(clearing.assignment[0])
        price = int(valuation.cost_micros[0, i] + clearing.surcharges[0])
        return int(true_value[0, i]) - price if i >= 0 else 0

    true_value = compute_valuation(
        [truth], providers, matched[:1], scenarios=SCENARIOS, cache_affinity=True
    ).value_micros
    honest = compute_utility(truth)
    assert honest >= 0
    for percents in itertools.product((50, 70, 100, 130, 200), repeat=3):
        assert compute_utility(scale(percents)) <= honest
