"""The study of incentives measures what it says, and finds what theory says where that is exact."""

from collections.abc import Iterable

import numpy as np
import pytest

from auctioneer.mechanism import clear, compute_rates
from benchmarks.economics.book import Attempt, Book, compute_prices, compute_profit
from benchmarks.economics.equilibrium import find_equilibrium
from benchmarks.economics.lies import PRICE_GROUPS, PROVIDER_LIES, REQUESTER_LIES
from benchmarks.economics.markets import DRAWN, draw_affine
from benchmarks.economics.search import Truthful, search_providers, search_requesters
from benchmarks.economics.sharing import BY_WELFARE, clear_both, measure_sharing
from benchmarks.economics.shills import measure_accomplices, measure_crowds
from benchmarks.economics.splits import measure_split_providers
from benchmarks.economics.world import FINE, foresee
from iemas.core.params import CLEARING_MODES
from iemas.core.settlement import MeteredUsage, compute_amount_micros
from iemas.core.types import PPM


def play(kind: str = "affine", *, noise: float = 0.0, seed: int = 3) -> Truthful:
    world = DRAWN[kind](np.random.default_rng(seed))
    return Truthful.play(world, foresee(world, noise=noise, bias=0.0, seed=seed))


def get_best_gain(utility: np.ndarray, mode: str) -> float:
    values = utility[CLEARING_MODES.index(mode)]
    return float((values - values[:, :1]).max())


@pytest.mark.parametrize("kind", ["affine", "congested", "monopoly"])
def test_no_provider_gains_in_provider_mode_by_its_ask_or_fewer_slots(kind: str) -> None:
    groups = (*PRICE_GROUPS, "fewer slots")
    lies = [lie for lie in PROVIDER_LIES if lie.group in groups]
    utility = search_providers(play(kind), lies)
    assert get_best_gain(utility, "provider") < FINE
    assert get_best_gain(utility, "client") > FINE


@pytest.mark.parametrize("kind", ["affine", "congested", "monopoly"])
def test_no_requester_gains_in_client_mode_by_prices_or_times(kind: str) -> None:
    lies = [lie for lie in REQUESTER_LIES if lie.group != "max_tokens"]
    utility = search_requesters(play(kind), lies)
    assert get_best_gain(utility, "client") < FINE
    assert get_best_gain(utility, "provider") > FINE


def test_lies_gain_where_bids_must_cover_asks_by_kind_and_not_without_that_rule() -> None:
    market = play("random")
    asks = [lie for lie in PROVIDER_LIES if lie.group in PRICE_GROUPS]
    prices = [lie for lie in REQUESTER_LIES if lie.group in PRICE_GROUPS]
    assert get_best_gain(search_providers(market, asks), "provider") > FINE
    assert get_best_gain(search_requesters(market, prices), "client") > FINE
    assert get_best_gain(search_providers(market, asks, cover=False), "provider") < FINE
    assert get_best_gain(search_requesters(market, prices, cover=False), "client") < FINE


def test_a_search_begins_with_the_truth() -> None:
    market = play(noise=0.3)
    requesters, providers = search_requesters(market), search_providers(market)
    for n, mode in enumerate(CLEARING_MODES):
        assert np.allclose(requesters[n, :, 0], market.outcomes[mode].requesters)
        assert np.allclose(providers[n, :, 0], market.outcomes[mode].providers)


def test_what_requesters_pay_is_what_providers_receive() -> None:
    market = play(noise=0.4)
    matched = np.array(market.cleared.matched)
    at = market.cleared.assignment[matched]
    welfare = (market.pairs.worth - market.pairs.effort)[matched, at].sum()
    for outcome in market.outcomes.values():
        assert outcome.requesters.sum() + outcome.providers.sum() == pytest.approx(welfare)


def test_perfect_predictions_settle_at_the_price() -> None:
    market = play()
    book = Book.open(market)
    for mode in CLEARING_MODES:
        prices = compute_prices(book, market.cleared, mode)
        assert np.allclose(market.outcomes[mode].payments, prices, atol=2.0)


def test_modes_are_those_of_the_mechanism() -> None:
    world = draw_affine(np.random.default_rng(5))
    market = Truthful.play(world, foresee(world, noise=0.2, bias=0.0, seed=1))
    for mode in CLEARING_MODES:
        clearing = clear(market.pairs.welfare, world.slots, mode=mode)
        assert clearing.assignment.tolist() == market.cleared.assignment.tolist()
        assert clearing.surcharges.tolist() == market.cleared.surcharges[mode].tolist()


def settle_token_by_token(market: Truthful, task: int, mode: str) -> float:
    """Settle every scenario of a task by the ledger's formula, a token at a time."""
    world, pairs = market.world, market.pairs
    provider = int(market.cleared.assignment[task])
    person, bid = world.providers[provider], world.tasks[task]
    expected = pairs.expected[:, task, provider].tolist()
    price = int(pairs.cost[task, provider] + market.cleared.surcharges[mode][task])
    rates = compute_rates(person.cost, bid.prices, tuple(expected), price)
    blocks = min(
        int(world.held_blocks[task, provider]), (bid.prompt_tokens - 1) // person.block_size
    )
    cached = blocks * person.block_size
    uncached, qos, owed = bid.prompt_tokens - cached, person.qos, 0
    for scenario in world.scenarios:
        mean_us = qos.ttft_base_us + qos.ttft_per_uncached_token_us * uncached
        first_us = max(0.0, mean_us + qos.ttft_sd_us * scenario.ttft_deviation_ppm / PPM)
        gap_us = max(1.0, qos.token_us + qos.token_sd_us * scenario.token_deviation_ppm / PPM)
        count = min(bid.max_tokens, scenario.output_tokens)
        lates = [
            bid.lateness.compute_ppm(round((first_us + n * gap_us) / 1000)) for n in range(count)
        ]
        usage = MeteredUsage(uncached, cached, lates[0], sum(lates))
        owed += compute_amount_micros(rates, usage)
    return owed / len(world.scenarios)


def test_expected_payments_are_the_mean_of_settlements_token_by_token() -> None:
    market = play(noise=0.3)
    assert any(market.world.tasks[task].lateness.deadline_ms for task in market.cleared.matched)
    for task in market.cleared.matched:
        for mode in CLEARING_MODES:
            settled = settle_token_by_token(market, task, mode)
            # The ledger counts whole milliseconds.
            assert market.outcomes[mode].payments[task] == pytest.approx(settled, rel=2e-3, abs=2)


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = play(noise=0.2), play(noise=0.2)
    assert (search_providers(first) == search_providers(second)).all()


def get_gains(attempts: Iterable[Attempt], scheme: str) -> dict[str, list[float]]:
    gains: dict[str, list[float]] = {}
    for attempt in attempts:
        if attempt.scheme == scheme:
            gains.setdefault(attempt.rule, []).append(attempt.gain)
    return gains


def test_an_accomplice_that_only_its_provider_can_serve_gains_where_bonuses_go_by_welfare() -> None:
    market = play("idle")
    gains = get_gains(measure_accomplices(market), "accomplice")
    assert max(gains["client"]) == max(gains["provider"]) == 0
    assert min(gains["threshold"]) > FINE
    # Whoever funded the deficit would pay it all.
    assert max(gains["vcg"]) > 1000 * market.cleared.own.sum()
    compared = get_gains(measure_sharing(market), "accomplice")
    assert max(compared["provider"]) == 0
    assert min(compared[BY_WELFARE]) > FINE


def test_a_crowd_that_could_be_served_elsewhere_gains_nothing_in_client_mode_alone() -> None:
    gains = get_gains(measure_crowds(play("idle")), "crowd")
    assert max(gains["client"]) == 0
    assert max(gains["provider"]) > FINE
    assert max(gains["threshold"]) > FINE


def test_both_ways_to_share_a_bonus_give_the_provider_all_of_it() -> None:
    for seed in range(5):
        market = play("congested", seed=seed)
        cleared = clear_both(market.pairs.welfare, market.world.slots)
        for provider, bonus in enumerate(cleared.bonuses.tolist()):
            tasks = cleared.get_tasks(provider)
            for rule in ("provider", BY_WELFARE):
                surcharges = cleared.surcharges[rule][tasks]
                assert surcharges.sum() == bonus
                assert (surcharges <= cleared.own[tasks]).all()


def test_a_split_provider_gains_nothing_in_provider_mode() -> None:
    for attempt in measure_split_providers(play("affine")):
        if attempt.rule == "provider":
            assert attempt.gain <= FINE


def test_the_truth_is_where_turns_begin_and_one_side_stays() -> None:
    worlds = [DRAWN["idle"](np.random.default_rng(n)) for n in range(2)]
    assert find_equilibrium("idle", worlds, "provider")["ask_factor"] == 1.0
    assert find_equilibrium("idle", worlds, "client")["bid_factor"] == 1.0


def test_vcg_pays_providers_their_bonus() -> None:
    market = play("congested")
    book = Book.open(market)
    for provider in range(len(market.world.providers)):
        profit = compute_profit(book, market.cleared, "vcg", provider)
        assert profit == pytest.approx(float(market.cleared.bonuses[provider]), abs=4)
