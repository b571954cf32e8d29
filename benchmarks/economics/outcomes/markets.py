"""Small markets without deadlines, in which one agent lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from auctioneer.mechanism import Offer, Valuation, compute_valuation
from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.outcomes.deals import Seller, declare, draw_bid, draw_seller, offer
from benchmarks.economics.outcomes.samples import MODELS, Study, draw_blocks
from benchmarks.economics.rounds import Cleared, clear_all
from iemas.core.auction import Bid, Scenario


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """A round's truth. blocks: resident ones, shape (n_tasks, n_sellers). slots: (n_sellers,)."""

    bids: tuple[Bid, ...]
    sellers: tuple[Seller, ...]
    blocks: IntArray
    slots: IntArray
    scenarios: tuple[Scenario, ...]

    def value(
        self,
        bids: Sequence[Bid],
        asks: Sequence[Offer],
        blocks: IntArray,
    ) -> Valuation:
        """Value every pair of some declarations."""
        return compute_valuation(bids, asks, blocks, scenarios=self.scenarios, cache_affinity=True)

    def offer_all(self) -> list[Offer]:
        """Give every provider's honest offer."""
        return [offer(seller.cost, seller.qos) for seller in self.sellers]

    def clear(self, welfare: IntArray) -> Cleared:
        """Clear declared welfare, and share the gains in every mode."""
        return clear_all(welfare, self.slots)


SIZES: Final = {"idle": (4, 3, 4), "scarce": (6, 3, 1)}
"""Tasks, providers, slots of each."""


def draw_market(study: Study, size: str, number: int) -> Market:
    """Draw a market without deadlines; answers are cut off by nothing but 1024 tokens."""
    n_tasks, n_sellers, slots = SIZES[size]
    rng = study.rng
    bids = tuple(declare(draw_bid(rng), max_tokens=1024) for _ in range(n_tasks))
    blocks = [[draw_blocks(rng, bid) for _ in range(n_sellers)] for bid in bids]
    return Market(
        bids,
        tuple(draw_seller(rng) for _ in range(n_sellers)),
        np.array(blocks, dtype=np.int64),
        np.full(n_sellers, slots, dtype=np.int64),
        study.models[number % MODELS],
    )
