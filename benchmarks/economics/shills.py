"""Providers that bid under another name: shills and accomplices.

A *shill* raises what others pay. Matched at its own provider it costs a slot and nothing else, as
it pays itself; matched elsewhere it is left unused, which the market lets pass for the bid fee, or
paid in full (`strict_gain`).

An *accomplice* has a task that only one provider can serve, as its prompt is long, cached there
and wanted at once, and bids far above anything. The provider declares a slot more for it and
never serves it. Under `vcg` that is paid by whoever funds the deficit.

A *crowd* is many accomplices, with tasks that all providers could serve. They are matched at
home, where the prompt is cached and slots are declared for all of them; were home not there, they
would outbid everybody for the slots elsewhere, so to its real tasks home seems irreplaceable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np

from auctioneer.mechanism import compute_valuation
from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.book import RULES, Attempt, Book, compute_prices, compute_profit
from benchmarks.economics.markets import WORTH
from benchmarks.economics.rounds import Cleared, clear_all
from benchmarks.economics.search import Truthful
from benchmarks.economics.world import make_prices, make_task, offer
from iemas.core.auction import Bid
from iemas.core.types import Lateness, Prices

SHILL_PRICES: Final = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
SHILL_COUNTS: Final = (1, 2, 4)
ACCOMPLICE_BIDS: Final = (2, 10, 100, 10_000)
"""Multiples of the dearest ask."""

CROWDS: Final = (1, 2, 4)
"""Multiples of the slots elsewhere."""

_CROWD_PRICES: Final = 10.0

_FAKE_PROMPT: Final = 60_000
_FAKE_OUTPUT: Final = 16


def measure_shills(market: Truthful) -> Iterator[Attempt]:
    """Let every provider try shills of several prices, many or few, cached at itself or nowhere."""
    world, book = market.world, Book.open(market)
    before = clear_all(book.welfare, book.slots)
    prompt = int(np.median([task.prompt_tokens for task in world.tasks]))
    bids = [
        make_task(prompt, 256, make_prices(WORTH * multiple), Lateness())
        for multiple in SHILL_PRICES
    ]
    for provider in range(len(world.providers)):
        tries: list[tuple[int, Book, Cleared]] = []
        for home in (-1, provider):
            welfare, cost = _value_fakes(market, bids, home)
            for n, count in product(range(len(bids)), SHILL_COUNTS):
                rows = [n] * count
                fake = book.add_fakes(welfare[rows], cost[rows])
                tries.append((count, fake, clear_all(fake.welfare, fake.slots)))
        for rule in RULES:
            truth = compute_profit(book, before, rule, provider)
            results = [
                (*sum_up(fake, cleared, rule, provider, len(world.tasks)), count)
                for count, fake, cleared in tries
            ]
            gain, _, count = max(results)
            strict = max(result[1] for result in results) - truth
            yield Attempt("shill", "", rule, truth, max(0.0, gain - truth), max(0.0, strict), count)


def measure_accomplices(market: Truthful) -> Iterator[Attempt]:
    """Let every provider that serves somebody try an accomplice, with bids of several sizes."""
    n_real, book = len(market.world.tasks), Book.open(market)
    before = clear_all(book.welfare, book.slots)
    for factor in ACCOMPLICE_BIDS:
        for provider, fake in list_accomplices(market, factor):
            cleared = clear_all(fake.welfare, fake.slots)
            for rule in RULES:
                truth = compute_profit(book, before, rule, provider)
                gain, strict = sum_up(fake, cleared, rule, provider, n_real)
                yield Attempt(
                    "accomplice", f"{factor}", rule, truth, gain - truth, strict - truth, 1
                )


def measure_crowds(market: Truthful) -> Iterator[Attempt]:
    """Let every provider that serves somebody try crowds of several sizes."""
    n_real, book = len(market.world.tasks), Book.open(market)
    before = clear_all(book.welfare, book.slots)
    for factor in CROWDS:
        for provider, fake, count in list_crowds(market, factor):
            cleared = clear_all(fake.welfare, fake.slots)
            for rule in RULES:
                truth = compute_profit(book, before, rule, provider)
                gain, strict = sum_up(fake, cleared, rule, provider, n_real)
                yield Attempt(
                    "crowd", f"{factor}", rule, truth, gain - truth, strict - truth, count
                )


def list_crowds(market: Truthful, factor: int) -> Iterator[tuple[int, Book, int]]:
    """List providers that serve somebody, each with the market that its crowd makes and its size.

    factor: members for each slot that others have.
    """
    world, book = market.world, Book.open(market)
    prompt = int(np.median([task.prompt_tokens for task in world.tasks]))
    bid = make_task(prompt, 256, make_prices(WORTH * _CROWD_PRICES), Lateness())
    for provider in np.unique(market.cleared.assignment).tolist():
        if provider >= 0:
            slots = book.slots.copy()
            count = factor * int(slots.sum() - slots[provider])
            slots[provider] += count
            welfare, cost = _value_fakes(market, [bid], provider)
            fake = book.add_fakes(np.repeat(welfare, count, axis=0), np.repeat(cost, count, axis=0))
            yield provider, replace(fake, slots=slots), count


def list_accomplices(market: Truthful, factor: int) -> Iterator[tuple[int, Book]]:
    """List providers that serve somebody, each with the market that its accomplice makes."""
    world, book = market.world, Book.open(market)
    asks = np.array([_as_list(person.cost) for person in world.providers]).max(axis=0).tolist()
    for provider in np.unique(market.cleared.assignment).tolist():
        if provider >= 0:
            bid = _make_exclusive(market, provider, asks, factor)
            slots = book.slots.copy()
            slots[provider] += 1
            fake = book.add_fakes(*_value_fakes(market, [bid], provider))
            yield provider, replace(fake, slots=slots)


def sum_up(
    book: Book, cleared: Cleared, rule: str, provider: int, n_real: int
) -> tuple[float, float]:
    """Sum up what provider and fakes have, without and with paying for what is left unused."""
    prices = compute_prices(book, cleared, rule)[n_real:]
    at_home = cleared.assignment[n_real:] == provider
    together = compute_profit(book, cleared, rule, provider) - float(prices[at_home].sum())
    return together, together - float(prices[~at_home].sum())


def _make_exclusive(market: Truthful, provider: int, asks: list[int], factor: int) -> Bid:
    """Make a bid whose prompt only this provider can have read by the deadline."""
    person = market.world.providers[provider]
    deadline_us = person.qos.ttft_base_us + 2 * person.qos.ttft_sd_us
    return make_task(
        min(_FAKE_PROMPT, person.context_tokens - _FAKE_OUTPUT),
        _FAKE_OUTPUT,
        Prices(asks[0] * factor, asks[1] * factor + asks[0] * factor, asks[2]),
        Lateness(-(-deadline_us // 1000), 0),
        person.model,
    )


def _value_fakes(market: Truthful, bids: Sequence[Bid], home: int) -> tuple[IntArray, IntArray]:
    """Value bids whose prompt is cached at `home` as far as it can be, or nowhere (−1).

    Returns: welfare and cost, int64, shape (n_bids, n_providers).
    """
    world = market.world
    blocks = np.zeros((len(bids), len(world.providers)), dtype=np.int64)
    if home >= 0:
        blocks[:, home] = 2**20
    valuation = compute_valuation(
        bids,
        [offer(person, person.cost, person.qos) for person in world.providers],
        blocks,
        scenarios=world.scenarios,
        cache_affinity=True,
    )
    return valuation.welfare_micros, valuation.cost_micros


def _as_list(prices: Prices) -> list[int]:
    return [
        prices.prompt_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.output_micros_per_mtok,
    ]
