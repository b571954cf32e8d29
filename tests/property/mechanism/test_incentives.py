"""What lies can gain: no more than an agent's VCG payoff lacks, and nothing where that is claimed.

A requester's VCG payoff is w_ij − π_i, a provider's its bonus, and 0 for who is not matched: one
with a payoff of 0 gains nothing by any lie, another at most what its mode keeps from it. Small
markets are searched whole: every market of a shape, every lie of every agent in it. Larger ones
are searched at random.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from auctioneer.mechanism import Clearing, clear
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.bonuses import compute_vcg_bonuses
from auctioneer.mechanism.gains import read_market
from auctioneer.mechanism.residual import build_residual
from iemas.core.params import CLEARING_MODES
from tests.property.mechanism.brute_force import Market, draw_market
from tests.property.mechanism.every_market import EveryMarket
from tests.property.mechanism.invariants import split_every_way

SHAPES = [(2, 2, 5, 3), (3, 1, 6, 4), (3, 2, 3, 3), (1, 3, 5, 2)]


@pytest.fixture(scope="module")
def tables() -> list[EveryMarket]:
    return [EveryMarket.make(*shape) for shape in SHAPES]


def compute_requester_utility(table: EveryMarket, task: int, mode: str) -> IntArray:
    """Utility by (rest of the market, true row, declared row): true worth less surcharge."""
    rows = np.pad(table.list_rows(), ((0, 0), (0, 1)))
    # −1, unmatched, is the column added: worth 0.
    provider = table.by_row(table.assignment, task)[:, :, task]
    surcharges = table.by_row(table.surcharges[mode], task)[:, :, task]
    worth: IntArray = rows[:, provider].swapaxes(0, 1)
    return worth - surcharges[:, None, :]


def compute_provider_utility(table: EveryMarket, provider: int, mode: str) -> IntArray:
    """Utility by (rest, true slots and column, declared ones), if it makes good what it drops.

    It is paid declared cost and surcharge for each task that it serves, so it gains x + w − w'
    there. Of more than it has slots for it serves the best, and for each other one it owes what
    the requester was to gain, w' − x.
    """
    slots, columns = table.list_columns()
    served = table.by_column(table.assignment, provider) == provider
    surcharges = table.by_column(table.surcharges[mode], provider)
    promised = np.where(served, surcharges - columns, 0).sum(axis=2)
    truth = np.where(served[:, None], columns[:, None, :], 0)
    return promised[:, None, :] + sum_best(truth, slots[:, None])


def sum_best(values: IntArray, counts: IntArray) -> IntArray:
    """Sum the greatest entries along the last axis, as many as `counts` says."""
    ordered = np.sort(values, axis=-1)[..., ::-1]
    kept = np.arange(values.shape[-1]) < counts[..., None]
    total: IntArray = np.where(kept, ordered, 0).sum(axis=-1)
    return total


def get_honest(utility: IntArray) -> IntArray:
    """What the truth gives, by (rest, truth, 1)."""
    return np.diagonal(utility, axis1=1, axis2=2)[:, :, None]


def list_requesters(tables: list[EveryMarket]) -> Iterator[tuple[EveryMarket, int]]:
    return ((table, task) for table in tables for task in range(table.n_tasks))


def list_providers(tables: list[EveryMarket]) -> Iterator[tuple[EveryMarket, int]]:
    return ((table, i) for table in tables for i in range(table.n_providers))


def test_no_lie_gives_a_requester_more_than_its_vcg_payoff(
    tables: list[EveryMarket], count: Callable[[str, int], None]
) -> None:
    lies = 0
    gaining = dict.fromkeys(CLEARING_MODES, 0)
    for table, task in list_requesters(tables):
        for mode in CLEARING_MODES:
            utility = compute_requester_utility(table, task, mode)
            honest = get_honest(utility)
            assert (honest >= 0).all()
            assert (utility <= get_honest(compute_requester_utility(table, task, "client"))).all()
            gaining[mode] += int((utility > honest).any(axis=2).sum())
        lies += utility.size
    count("lies of requesters, all there are in small markets", lies)
    for mode, number in gaining.items():
        count(f"  requesters that some lie lets gain in {mode} mode", number)
    assert gaining["client"] == 0
    assert gaining["threshold"] > 1000
    assert gaining["provider"] > 1000


def test_no_lie_gives_a_provider_more_than_its_bonus(
    tables: list[EveryMarket], count: Callable[[str, int], None]
) -> None:
    """Costs by task and slots at once; nothing is owed where no more slots are declared."""
    lies = 0
    gaining = dict.fromkeys(CLEARING_MODES, 0)
    for table, provider in list_providers(tables):
        bonus = table.by_column(table.bonuses, provider)[:, :, provider, None]
        for mode in CLEARING_MODES:
            utility = compute_provider_utility(table, provider, mode)
            honest = get_honest(utility)
            assert (honest >= 0).all()
            assert (utility <= bonus).all()
            gaining[mode] += int((utility > honest).any(axis=2).sum())
        lies += utility.size
    count("lies of providers, all there are in small markets", lies)
    for mode, number in gaining.items():
        count(f"  providers that some lie lets gain in {mode} mode", number)
    assert gaining["provider"] == 0
    assert gaining["client"] > 1000
    assert gaining["threshold"] > 1000


def test_who_has_nowhere_else_to_go_does_not_pay_for_who_has() -> None:
    """Each task keeps what it could have had elsewhere, as nobody contends with it there.

    A slot costs 39, what the third task would bring. The first keeps the 55 of the other provider
    and pays 45; the second has no other and pays all it is worth, the 40 that keep the third out.
    """
    welfare = np.array([[100, 55], [40, 0], [39, 0]])
    slots = np.array([2, 1])
    honest = clear(welfare, slots, mode="provider")
    assert honest.slot_prices.tolist() == [39, 0]
    assert honest.vcg_bonuses.tolist() == [85, 0]
    assert honest.surcharges.tolist() == [45, 40, 0]
    lie = np.array([[100, 55], [40, 0], [41, 0]])
    assert clear(lie, slots, mode="provider").surcharges.tolist() == [45, 0, 41]


@pytest.mark.parametrize("bid", [1, 100, 10**6, 10**12])
def test_an_accomplices_bid_makes_no_neighbour_pay_more_in_provider_mode(bid: int) -> None:
    """A task that only one provider can serve, however much it bids, in a slot made up for it."""
    welfare = np.array([[100, 80, 0], [70, 0, 60], [90, 85, 10]])
    honest = clear(welfare, np.array([3, 2, 2]), mode="provider")
    assert honest.surcharges.tolist() == [20, 10, 5]
    joined = np.vstack((welfare, [[bid, 0, 0]]))
    assert clear(joined, np.array([4, 2, 2]), mode="provider").surcharges.tolist() == [
        *honest.surcharges.tolist(),
        bid,
    ]


def compute_busy_utility(table: EveryMarket, provider: int) -> IntArray:
    """Utility in `provider` mode by (rest, truth, declared), if being busy costs nothing.

    It serves those that pay it best, as many as it has slots for, and owes the others nothing.
    """
    slots, columns = table.list_columns()
    served = table.by_column(table.assignment, provider) == provider
    surcharges = table.by_column(table.surcharges["provider"], provider)
    promised = np.where(served, surcharges - columns, 0)
    truth = np.where(served[:, None], columns[:, None, :], 0)
    return sum_best(np.maximum(promised[:, None, :] + truth, 0), slots[:, None])


def test_slots_that_are_not_there_gain_nothing_in_the_smallest_markets(
    tables: list[EveryMarket], count: Callable[[str, int], None]
) -> None:
    """Even if being busy costs nothing, whatever costs are declared with them."""
    lies = 0
    for table, provider in list_providers(tables):
        utility = compute_busy_utility(table, provider)
        bonus = table.by_column(table.bonuses, provider)[:, :, provider, None]
        assert (get_honest(utility) == bonus).all()
        assert (utility <= bonus).all()
        lies += utility.size
    count("lies of providers that are busy at no cost, all there are in small markets", lies)


def test_slots_that_are_not_there_gain_where_the_tasks_they_draw_want_one_refuge() -> None:
    """Not claimed: two tasks that share what they could have elsewhere lower a third's part.

    Honestly the first keeps 108 of the 120 that it could have at the other slot, as it would take
    that from a task worth 12 there. With three slots declared, the 120 that this slot would leave
    all of them go by 120, 12 and 12: the first keeps 100 and pays 30. The others are told: busy.
    """
    welfare = np.array([[130, 120], [13, 12], [13, 12]])
    honest = clear(welfare, np.array([1, 1]), mode="provider")
    assert honest.assignment.tolist() == [0, 1, -1]
    assert honest.surcharges.tolist() == [22, 12, 0]
    lie = clear(welfare, np.array([3, 1]), mode="provider")
    assert lie.assignment.tolist() == [0, 0, 0]
    assert lie.surcharges.tolist() == [30, 3, 3]


def test_slots_that_are_not_there_gain_at_most_what_contention_takes_from_fallbacks(
    count: Callable[[str, int], None],
) -> None:
    """So nothing where fallbacks do not get in each other's way.

    *Proof.* With T served it has Σ w − kept over T. The market could have matched T at i and the
    rest without i, so its bonus is at least Σ w less what T adds to the market without i as the
    last to come; and that is at most what it adds as the first, at most the fallbacks of T.
    """
    rng = np.random.default_rng(30)
    gains = 0
    for _ in range(300):
        welfare, slots = draw_contested_market(rng)
        provider = int(rng.integers(len(slots)))
        bonus = int(clear(welfare, slots).vcg_bonuses[provider])
        columns = [welfare[:, provider], *draw_lies(welfare[:, provider], welfare, rng)]
        for column in columns:
            lie, more = welfare.copy(), slots.copy()
            lie[:, provider] = column
            more[provider] += rng.integers(1, len(welfare) + 1)
            clearing = clear(lie, more, mode="provider")
            tasks = np.flatnonzero(clearing.assignment == provider)
            profits = (clearing.surcharges + welfare[:, provider] - column)[tasks]
            best = tasks[np.argsort(-profits, kind="stable")][: slots[provider]]
            kept = (np.maximum(column, 0) - clearing.surcharges)[best].sum()
            taken = int(find_fallbacks(lie, more, clearing)[best].sum() - kept)
            gain = int(np.sort(profits)[::-1][: slots[provider]].sum()) - bonus
            assert gain <= max(taken, 0)
            gains += gain > 0
    count("  lies that gain by false slots, of 2,400 drawn in contested markets", gains)
    assert gains > 10


def find_fallbacks(welfare: IntArray, slots: IntArray, clearing: Clearing) -> IntArray:
    market = read_market(welfare, slots)
    residual = build_residual(market, slots, clearing.assignment)
    return compute_vcg_bonuses(market, clearing.assignment, residual)[1]


# --- larger markets ------------------------------------------------------------------------------


def draw_lies(truth: IntArray, others: IntArray, rng: np.random.Generator) -> Iterator[IntArray]:
    """Misreports of one agent's values: shaded, raised, mixed with others', denied, made up."""
    top = int(max(truth.max(), others.max(), 1))
    yield truth - int(rng.integers(0, top))
    yield truth + int(rng.integers(0, top))
    yield truth - rng.integers(-1, 2, len(truth))
    yield truth * int(rng.integers(0, 11)) // 10
    yield np.where(rng.random(len(truth)) < 0.5, truth, 0)
    yield np.where(rng.random(len(truth)) < 0.5, truth, rng.choice(others.ravel(), len(truth)))
    yield rng.integers(-top, 2 * top, len(truth))


def draw_contested_market(rng: np.random.Generator) -> Market:
    n_tasks, n_providers = int(rng.integers(2, 13)), int(rng.integers(2, 7))
    welfare, slots = draw_market(rng, n_tasks, n_providers)
    return welfare, slots // 2


def get_worth(welfare: IntArray, clearing: Clearing, task: int) -> int:
    provider = int(clearing.assignment[task])
    return int(welfare[task, provider]) if provider >= 0 else 0


def test_no_lie_drawn_at_large_gives_a_requester_more_than_its_vcg_payoff() -> None:
    rng = np.random.default_rng(28)
    gains = 0
    for _ in range(200):
        welfare, slots = draw_contested_market(rng)
        task = int(rng.integers(len(welfare)))
        honest = clear(welfare, slots, mode="client")
        payoff = get_worth(welfare, honest, task) - int(honest.surcharges[task])
        threshold = split_every_way(welfare, slots, honest)["threshold"]
        after_cut = get_worth(welfare, honest, task) - int(threshold[task])
        for row in draw_lies(welfare[task], welfare, rng):
            lie = welfare.copy()
            lie[task] = row
            clearing = clear(lie, slots)
            for mode, surcharges in split_every_way(lie, slots, clearing).items():
                gain = get_worth(welfare, clearing, task) - int(surcharges[task])
                assert gain <= payoff
                gains += mode == "threshold" and gain > after_cut
    assert gains > 50


def test_no_lie_drawn_at_large_gives_a_provider_more_than_its_bonus() -> None:
    rng = np.random.default_rng(29)
    gains = 0
    for _ in range(200):
        welfare, slots = draw_contested_market(rng)
        provider = int(rng.integers(len(slots)))
        honest = clear(welfare, slots, mode="client")
        bonus = honest.vcg_bonuses[provider]
        served = honest.assignment == provider
        for column in draw_lies(welfare[:, provider], welfare, rng):
            lie, fewer = welfare.copy(), slots.copy()
            lie[:, provider] = column
            fewer[provider] = rng.integers(0, slots[provider] + 1)
            clearing = clear(lie, fewer)
            at = clearing.assignment == provider
            for mode, surcharges in split_every_way(lie, fewer, clearing).items():
                gain = (surcharges + welfare[:, provider] - column)[at].sum()
                assert gain <= bonus
                gains += mode == "client" and gain > honest.surcharges[served].sum()
    assert gains > 50
