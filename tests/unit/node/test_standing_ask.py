"""How a configured ask comes to stand: posted, or committed to and revealed, whatever happens.

Source: docs/spec/ledger.md §9; design §6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from iemas import wire
from iemas.core.asks import compute_ask_commitment
from iemas.core.params import MarketParams
from iemas.core.ready import Ready, RecordKind
from iemas.core.types import Prices
from iemas.ledger.transaction import (
    CommitAsk,
    PlaceDeposit,
    PostAsk,
    ResultCode,
    RevealAsk,
    TransactionBody,
    TransferFunds,
    VoteParameter,
)
from iemas.ledger.transfer import get_deposit
from iemas.testing.chain import HUB, LedgerChain, make_genesis
from iemas.testing.disk import SimulatedDisk
from node.standing_ask import AskPhase, StandingAsk

SELLER = "alice"
EPOCH_MS, REVEAL_MS, BOND = 20_000, 2_000, 500
OLD, NEW, NEWEST = Prices(10, 1, 10), Prices(20, 2, 20), Prices(30, 3, 30)
PARAMS = MarketParams(
    sealed_asks=True,
    term_ms=1_000,
    ask_epoch_ms=EPOCH_MS,
    ask_reveal_ms=REVEAL_MS,
    ask_bond_micros=BOND,
)


class Shop:
    """One provider's ask on a ledger; what it persisted survives its restarts."""

    def __init__(
        self, *, params: MarketParams = PARAMS, accounts: Sequence[str] = (SELLER,)
    ) -> None:
        self.chain = LedgerChain(make_genesis(params=params, accounts=accounts))
        self.disk = SimulatedDisk()
        self.events: list[str] = []
        self.restart(OLD)

    def restart(self, prices: Prices | None, *, secret: bytes = bytes(32)) -> None:
        """Run the node anew with this ask configured."""
        node, chain_id = self.chain.get_node(SELLER), self.chain.chain_id
        self.ask = StandingAsk(
            prices=prices, hub=HUB, node_id=node, chain_id=chain_id, secret=secret
        )
        self.ask.restore(self.disk.scan(RecordKind.SEALED_ASK, RevealAsk))

    def follow(self) -> TransactionBody | None:
        """Look at the ledger once; give what is due."""
        due, ready = self.ask.follow(self.chain.state)
        self.keep(ready)
        return due

    def keep(self, ready: Ready) -> None:
        self.disk.write(ready.persist)
        self.events += [event.name for event in ready.events]

    def act(self) -> list[type]:
        """Do what is due until nothing is; give what was done."""
        done: list[type] = []
        while (due := self.follow()) is not None:
            assert self.chain.submit(SELLER, due).code is ResultCode.OK
            done.append(type(due))
        return done

    def change(self, prices: Prices = NEW) -> None:
        """Let the first ask stand, then configure another one and commit to it."""
        self.act()
        self.restart(prices)
        self.act()

    def pass_epoch(self) -> None:
        self.chain.apply(after_ms=EPOCH_MS)

    def close_window(self) -> None:
        for _ in range(3):
            self.chain.apply(after_ms=REVEAL_MS)

    @property
    def standing(self) -> Prices | None:
        return self.chain.state.get_ask(HUB, self.chain.get_node(SELLER))

    @property
    def deposit_micros(self) -> int:
        return self.chain.state.get_funds(get_deposit(self.chain.get_id(SELLER)))


@pytest.fixture
def shop() -> Shop:
    return Shop()


# --- the way of an ask ---------------------------------------------------------------------------


def test_the_first_ask_is_posted_without_a_deposit(shop: Shop) -> None:
    assert shop.act() == [PostAsk]
    assert (shop.standing, shop.deposit_micros, shop.ask.phase) == (OLD, 0, AskPhase.STANDS)


def test_another_ask_is_bonded_committed_to_and_revealed(shop: Shop) -> None:
    shop.act()
    shop.restart(NEW)
    assert shop.act() == [PlaceDeposit, CommitAsk]
    assert (shop.standing, shop.ask.phase) == (OLD, AskPhase.COMMITTED)
    shop.pass_epoch()
    assert shop.act() == [RevealAsk]
    assert (shop.standing, shop.ask.phase) == (NEW, AskPhase.STANDS)


def test_an_ask_that_does_not_change_needs_no_commitment(shop: Shop) -> None:
    shop.act()
    for _ in range(3):
        shop.pass_epoch()
        assert shop.act() == []
    shop.restart(OLD)
    assert shop.act() == []


def test_the_next_change_takes_the_same_deposit(shop: Shop) -> None:
    shop.change()
    shop.pass_epoch()
    shop.act()
    shop.restart(NEWEST)
    assert shop.act() == [CommitAsk]
    assert shop.deposit_micros == BOND


def test_every_way_is_told(shop: Shop) -> None:
    shop.change()
    shop.pass_epoch()
    shop.act()
    assert shop.events == [
        "ask_posting",
        "ask_stands",
        "ask_placing_bond",
        "ask_committing",
        "ask_committed",
        "ask_revealing",
        "ask_stands",
    ]


def test_who_sells_nothing_asks_nothing(shop: Shop) -> None:
    shop.restart(None)
    assert shop.act() == []
    assert shop.ask.phase is AskPhase.NONE


def test_where_asks_are_open_another_one_is_posted() -> None:
    shop = Shop(params=replace(PARAMS, sealed_asks=False))
    shop.act()
    shop.restart(NEW)
    assert shop.act() == [PostAsk]
    assert shop.standing == NEW


# --- the bond ------------------------------------------------------------------------------------


def test_who_lacks_the_bond_waits_and_says_so() -> None:
    shop = Shop(accounts=("bob",))
    shop.change()
    assert (shop.ask.phase, shop.ask.missing_micros) == (AskPhase.BOND_MISSING, BOND)
    assert shop.events[-1] == "ask_bond_missing"
    shop.chain.submit("bob", TransferFunds(shop.chain.get_id(SELLER), BOND - 1))
    shop.act()
    assert shop.ask.missing_micros == 1
    shop.chain.submit("bob", TransferFunds(shop.chain.get_id(SELLER), 1))
    assert shop.act() == [PlaceDeposit, CommitAsk]
    assert (shop.ask.phase, shop.ask.missing_micros) == (AskPhase.COMMITTED, 0)


def test_a_bond_that_grew_takes_what_is_missing_only(shop: Shop) -> None:
    shop.change()
    shop.pass_epoch()
    shop.act()
    for node in ("node-1", "node-2", "node-3"):
        shop.chain.submit(node, VoteParameter("ask_bond_micros", BOND + 7))
    shop.chain.end_term()
    shop.restart(NEWEST)
    assert shop.follow() == PlaceDeposit(7)


def test_an_ask_beyond_the_ratio_is_never_bonded(shop: Shop) -> None:
    shop.change(Prices(1, 1, 10_000))
    assert (shop.ask.phase, shop.standing) == (AskPhase.OUT_OF_BOUNDS, OLD)
    assert shop.deposit_micros == 0


# --- crashes and restarts ------------------------------------------------------------------------


def test_what_is_committed_to_is_kept_before_the_commitment_leaves(shop: Shop) -> None:
    shop.act()
    shop.restart(NEW)
    deposit = shop.follow()
    assert isinstance(deposit, PlaceDeposit)
    shop.chain.submit(SELLER, deposit)
    due, ready = shop.ask.follow(shop.chain.state)
    assert isinstance(due, CommitAsk)
    (record,) = ready.persist
    assert record.kind is RecordKind.SEALED_ASK
    kept = record.value
    assert isinstance(kept, RevealAsk)
    node, chain_id = shop.chain.get_node(SELLER), shop.chain.chain_id
    fixed = compute_ask_commitment(chain_id, HUB, 1, node, NEW, salt=kept.salt)
    assert (kept.prices, due.commitment) == (NEW, fixed)


def test_a_restart_between_commitment_and_reveal_burns_nothing(shop: Shop) -> None:
    shop.change()
    shop.restart(NEW)
    shop.pass_epoch()
    shop.restart(NEW)
    assert shop.act() == [RevealAsk]
    assert shop.standing == NEW


def test_what_is_committed_to_is_revealed_whatever_is_configured_since(shop: Shop) -> None:
    shop.change(NEW)
    shop.restart(NEWEST)
    assert shop.act() == []
    shop.pass_epoch()
    assert shop.act()[:1] == [RevealAsk]
    assert shop.standing == NEW
    shop.pass_epoch()
    shop.act()
    assert shop.standing == NEWEST


def test_who_sells_no_more_still_reveals(shop: Shop) -> None:
    shop.change()
    shop.restart(None)
    shop.pass_epoch()
    assert shop.act() == [RevealAsk]
    assert shop.deposit_micros == BOND


def test_a_commitment_on_its_way_binds_through_a_restart(shop: Shop) -> None:
    """It may still land, so the epoch keeps its ask."""
    shop.act()
    shop.restart(NEW)
    shop.chain.submit(SELLER, PlaceDeposit(BOND))
    on_its_way = shop.follow()
    assert isinstance(on_its_way, CommitAsk)
    shop.restart(NEWEST)
    assert shop.follow() == on_its_way


def test_a_lost_disk_burns_nothing_if_the_ask_is_still_configured(shop: Shop) -> None:
    shop.change()
    shop.disk = SimulatedDisk()
    shop.restart(NEW)
    shop.pass_epoch()
    assert shop.act() == [RevealAsk]


def test_a_commitment_to_something_unknown_is_told(shop: Shop) -> None:
    shop.change()
    shop.disk = SimulatedDisk()
    shop.restart(NEWEST)
    shop.pass_epoch()
    assert shop.act() == []
    assert (shop.ask.phase, shop.events[-1]) == (AskPhase.UNKNOWN, "ask_unknown")


def test_a_missed_window_is_told_and_the_ask_committed_to_again(shop: Shop) -> None:
    shop.change()
    shop.pass_epoch()
    shop.close_window()
    assert shop.deposit_micros == 0
    assert shop.act() == [PlaceDeposit, CommitAsk]
    assert "ask_not_replaced" in shop.events
    shop.pass_epoch()
    shop.act()
    assert shop.standing == NEW


def test_a_commitment_that_never_landed_is_made_anew(shop: Shop) -> None:
    shop.act()
    shop.restart(NEW)
    shop.chain.submit(SELLER, PlaceDeposit(BOND))
    first = shop.follow()
    shop.pass_epoch()
    second = shop.follow()
    assert isinstance(first, CommitAsk)
    assert isinstance(second, CommitAsk)
    assert (first.epoch, second.epoch) == (1, 2)


def test_nothing_is_kept_longer_than_it_is_needed(shop: Shop) -> None:
    shop.change()
    assert len(shop.disk.scan(RecordKind.SEALED_ASK, RevealAsk)) == 1
    shop.pass_epoch()
    shop.act()
    assert shop.disk.scan(RecordKind.SEALED_ASK, RevealAsk) == []


# --- what others can see -------------------------------------------------------------------------


def test_a_commitment_hides_the_ask_from_who_lacks_the_secret(shop: Shop) -> None:
    shop.act()
    shop.chain.submit(SELLER, PlaceDeposit(BOND))
    commitments = set()
    for secret in (bytes(32), b"\x01" * 32):
        shop.disk = SimulatedDisk()
        shop.restart(NEW, secret=secret)
        commitments.add(shop.follow())
    assert len(commitments) == 2


def test_a_reveal_is_due_only_once_its_epoch_began(shop: Shop) -> None:
    shop.change()
    shop.chain.apply(after_ms=EPOCH_MS - 1)
    assert shop.follow() is None
    shop.chain.apply(after_ms=1)
    assert isinstance(shop.follow(), RevealAsk)


def test_what_is_kept_can_be_stored() -> None:
    reveal = RevealAsk(HUB, 3, NEW, bytes(32))
    assert wire.decode(RevealAsk, wire.encode(reveal)) == reveal
