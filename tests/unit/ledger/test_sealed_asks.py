"""Deposits, commitments, reveals. Source: docs/spec/ledger.md §9; design §6."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas.core.asks import compute_ask_commitment, compute_ask_ratio
from iemas.core.auction import Ask
from iemas.core.errors import MalformedMessageError
from iemas.core.params import MarketParams
from iemas.core.types import Hash, HubId, Prices
from iemas.ledger.transaction import (
    CommitAsk,
    PlaceDeposit,
    PostAsk,
    ResultCode,
    RevealAsk,
    VoteParameter,
    WithdrawDeposit,
)
from iemas.ledger.transfer import TREASURY, get_deposit
from iemas.testing.chain import LedgerChain, make_genesis

EPOCH_MS, REVEAL_MS, BOND = 20_000, 2_000, 500
PARAMS = MarketParams(
    sealed_asks=True,
    ask_epoch_ms=EPOCH_MS,
    ask_reveal_ms=REVEAL_MS,
    ask_bond_micros=BOND,
    ask_ratio_max=10,
)
OLD, NEW = Prices(10, 1, 10), Prices(20, 2, 20)
NODES = ("node-1", "node-2", "node-3", "node-4")


@pytest.fixture
def chain() -> LedgerChain:
    """Four equal validators; alice sells, with an ask in the open and a deposit of one bond."""
    chain = LedgerChain(make_genesis(validators=NODES, params=PARAMS))
    chain.submit("alice", PostAsk(Ask(chain.hub, OLD)))
    chain.submit("alice", PlaceDeposit(BOND))
    return chain


def commit(chain: LedgerChain, epoch: int = 1, prices: Prices = NEW) -> ResultCode:
    return chain.submit("alice", chain.make_commitment("alice", epoch, prices)).code


def reveal(chain: LedgerChain, epoch: int = 1, prices: Prices = NEW) -> ResultCode:
    return chain.submit("alice", chain.make_reveal("alice", epoch, prices)).code


def get_ask(chain: LedgerChain) -> Prices | None:
    return chain.state.get_ask(chain.hub, chain.get_node("alice"))


def get_deposited(chain: LedgerChain) -> int:
    return chain.state.get_funds(get_deposit(chain.get_id("alice")))


# --- the first ask, and its successors -----------------------------------------------------------


def test_the_first_ask_is_posted_in_the_open_the_next_is_not(chain: LedgerChain) -> None:
    assert get_ask(chain) == OLD
    result = chain.submit("alice", PostAsk(Ask(chain.hub, NEW)))
    assert result.code is ResultCode.ASKS_SEALED
    assert get_ask(chain) == OLD


def test_a_revealed_ask_stands_until_it_is_replaced(chain: LedgerChain) -> None:
    assert commit(chain) is ResultCode.OK
    chain.apply(after_ms=EPOCH_MS)
    assert get_ask(chain) == OLD
    assert reveal(chain) is ResultCode.OK
    assert get_ask(chain) == NEW
    chain.apply(after_ms=5 * EPOCH_MS)
    assert get_ask(chain) == NEW
    assert get_deposited(chain) == BOND


def test_both_asks_of_a_term_are_remembered(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=EPOCH_MS)
    reveal(chain)
    term = chain.state.get_term(chain.hub).number
    node = chain.get_node("alice")
    assert chain.state.get_asks_of_term(chain.hub, node, term) == (NEW, OLD)


def test_epochs_and_terms_are_separate(chain: LedgerChain) -> None:
    chain.apply(after_ms=EPOCH_MS - 1)
    assert (chain.state.get_term(chain.hub).number, get_epoch(chain)) == (1, 0)
    chain.apply(after_ms=1)
    assert (chain.state.get_term(chain.hub).number, get_epoch(chain)) == (1, 1)


def get_epoch(chain: LedgerChain) -> int:
    return chain.state.ask_epochs[chain.hub].number


# --- commitments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 2])
def test_commitments_are_for_the_next_epoch(chain: LedgerChain, epoch: int) -> None:
    assert commit(chain, epoch) is ResultCode.UNKNOWN_EPOCH


def test_an_epoch_is_committed_to_once(chain: LedgerChain) -> None:
    chain.submit("alice", PlaceDeposit(BOND))
    assert commit(chain) is ResultCode.OK
    assert commit(chain, prices=OLD) is ResultCode.ALREADY_DONE


def test_every_commitment_needs_its_bond(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=EPOCH_MS)
    assert commit(chain, 2) is ResultCode.INSUFFICIENT_BALANCE
    chain.submit("alice", PlaceDeposit(BOND))
    assert commit(chain, 2) is ResultCode.OK


def test_asks_in_an_unknown_hub_are_refused(chain: LedgerChain) -> None:
    nowhere = HubId("nowhere")
    body = CommitAsk(nowhere, 1, Hash(bytes(32)))
    assert chain.submit("alice", body).code is ResultCode.UNKNOWN_HUB
    other = RevealAsk(nowhere, 0, NEW, bytes(32))
    assert chain.submit("alice", other).code is ResultCode.UNKNOWN_HUB


def test_a_commitment_is_bound_to_everything_it_names(chain: LedgerChain) -> None:
    node, salt = chain.get_node("alice"), bytes(32)
    made = compute_ask_commitment("chain", chain.hub, 1, node, NEW, salt=salt)
    others = [
        compute_ask_commitment("other", chain.hub, 1, node, NEW, salt=salt),
        compute_ask_commitment("chain", HubId("other"), 1, node, NEW, salt=salt),
        compute_ask_commitment("chain", chain.hub, 2, node, NEW, salt=salt),
        compute_ask_commitment("chain", chain.hub, 1, chain.get_node("bob"), NEW, salt=salt),
        compute_ask_commitment("chain", chain.hub, 1, node, OLD, salt=salt),
        compute_ask_commitment("chain", chain.hub, 1, node, NEW, salt=b"\x01" * 32),
    ]
    assert len({made, *others}) == 7


# --- reveals -------------------------------------------------------------------------------------


def test_a_reveal_must_match(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=EPOCH_MS)
    assert reveal(chain, prices=OLD) is ResultCode.INVALID_ENTRY
    assert get_ask(chain) == OLD


def test_a_reveal_needs_a_commitment(chain: LedgerChain) -> None:
    chain.apply(after_ms=EPOCH_MS)
    assert reveal(chain) is ResultCode.UNKNOWN_COMMITMENT


def test_a_reveal_before_its_epoch_is_refused(chain: LedgerChain) -> None:
    commit(chain)
    assert reveal(chain) is ResultCode.UNKNOWN_EPOCH


def test_a_commitment_is_revealed_once(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=EPOCH_MS)
    reveal(chain)
    assert reveal(chain) is ResultCode.UNKNOWN_COMMITMENT


def test_what_is_not_revealed_in_time_burns_its_bond(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=EPOCH_MS)
    chain.apply()
    chain.apply(after_ms=REVEAL_MS - 1)
    assert get_deposited(chain) == BOND
    chain.apply(after_ms=1)
    assert get_deposited(chain) == 0
    assert chain.state.get_funds(TREASURY) == BOND
    assert reveal(chain) is ResultCode.EXPIRED
    assert get_ask(chain) == OLD


def test_the_window_waits_for_a_third_of_the_power_to_propose(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=EPOCH_MS, proposer="node-4")
    for _ in range(3):
        chain.apply(after_ms=REVEAL_MS, proposer="node-1")
    late = chain.make_transaction("alice", chain.make_reveal("alice", 1, NEW))
    assert chain.apply([late], proposer="node-2").results[0].code is ResultCode.OK
    chain.apply(proposer="node-3")
    assert chain.state.ask_epochs[chain.hub].closed


def test_a_proposers_own_block_can_still_take_reveals(chain: LedgerChain) -> None:
    """Two of four have a third; the block of the second is part of the window."""
    commit(chain)
    chain.apply(after_ms=EPOCH_MS, proposer="node-4")
    chain.apply(proposer="node-1")
    chain.apply(after_ms=REVEAL_MS, proposer="node-2")
    assert not chain.state.ask_epochs[chain.hub].closed
    chain.apply(proposer="node-1")
    assert chain.state.ask_epochs[chain.hub].closed
    assert chain.state.get_funds(TREASURY) == BOND


def test_the_first_block_of_an_epoch_could_take_no_reveal(chain: LedgerChain) -> None:
    """Its proposer does not count: that the epoch began is known by this block only."""
    commit(chain)
    chain.apply(after_ms=EPOCH_MS, proposer="node-1")
    chain.apply(after_ms=REVEAL_MS, proposer="node-2")
    chain.apply(proposer="node-2")
    assert not chain.state.ask_epochs[chain.hub].closed


def test_a_market_that_stands_still_closes_no_window() -> None:
    params = replace(PARAMS, idle_block_interval_ms=500)
    chain = LedgerChain(make_genesis(validators=NODES, params=params))
    chain.apply(after_ms=EPOCH_MS)
    chain.apply(after_ms=EPOCH_MS // 2)
    for _ in range(2):
        chain.apply(after_ms=500)
    assert not chain.state.ask_epochs[chain.hub].closed
    chain.apply(after_ms=500)
    assert chain.state.ask_epochs[chain.hub].closed


def test_a_commitment_for_an_epoch_without_blocks_lapses(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=3 * EPOCH_MS)
    assert (chain.state.commitments, get_deposited(chain)) == ({}, BOND)


def test_a_window_that_the_epoch_ends_burns_nothing(chain: LedgerChain) -> None:
    commit(chain)
    chain.apply(after_ms=EPOCH_MS, proposer="node-1")
    chain.apply(after_ms=EPOCH_MS, proposer="node-1")
    assert (chain.state.commitments, get_deposited(chain)) == ({}, BOND)


# --- deposits ------------------------------------------------------------------------------------


def test_a_deposit_comes_from_available_money(chain: LedgerChain) -> None:
    assert get_deposited(chain) == BOND
    assert chain.state.get_balance(chain.get_id("alice"))[0] == 1_000_000 - BOND
    result = chain.submit("alice", PlaceDeposit(1_000_000))
    assert result.code is ResultCode.INSUFFICIENT_BALANCE


def test_a_deposit_is_withdrawn_when_nothing_is_committed(chain: LedgerChain) -> None:
    commit(chain)
    assert chain.submit("alice", WithdrawDeposit(1)).code is ResultCode.COMMITTED
    chain.apply(after_ms=EPOCH_MS)
    reveal(chain)
    assert chain.submit("alice", WithdrawDeposit(BOND)).code is ResultCode.OK
    assert get_deposited(chain) == 0
    assert chain.submit("alice", WithdrawDeposit(1)).code is ResultCode.INSUFFICIENT_BALANCE


# --- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prices", "ratio"),
    [(Prices(7, 7, 7), 1), (Prices(10, 1, 5), 10), (Prices(3, 2, 3), 2), (Prices(1, 1, 11), 11)],
)
def test_ratios_are_rounded_up(prices: Prices, ratio: int) -> None:
    assert compute_ask_ratio(prices) == ratio


def test_ratios_between_components_are_bounded(chain: LedgerChain) -> None:
    body = PostAsk(Ask(chain.hub, Prices(1, 1, 11)))
    assert chain.submit("bob", body).code is ResultCode.INVALID_ENTRY
    commit(chain, prices=Prices(1, 1, 11))
    chain.apply(after_ms=EPOCH_MS)
    assert reveal(chain, prices=Prices(1, 1, 11)) is ResultCode.INVALID_ENTRY


def test_a_ratio_that_is_lowered_burns_no_bond(chain: LedgerChain) -> None:
    """The bound that held when the ask was committed to is the one that counts."""
    commit(chain, prices=Prices(1, 1, 10))
    for node in NODES:
        chain.submit(node, VoteParameter("ask_ratio_max", 2))
    chain.apply(after_ms=EPOCH_MS)
    assert chain.state.params.ask_ratio_max == 2
    assert reveal(chain, prices=Prices(1, 1, 10)) is ResultCode.OK


def test_open_asks_can_be_replaced_where_asks_are_not_sealed() -> None:
    chain = LedgerChain(make_genesis(params=replace(PARAMS, sealed_asks=False)))
    for prices in (OLD, NEW):
        assert chain.submit("alice", PostAsk(Ask(chain.hub, prices))).code is ResultCode.OK
    assert get_ask(chain) == NEW


def test_the_window_is_shorter_than_the_epoch() -> None:
    with pytest.raises(MalformedMessageError, match="ask_reveal_ms"):
        MarketParams(ask_epoch_ms=10, ask_reveal_ms=10)
