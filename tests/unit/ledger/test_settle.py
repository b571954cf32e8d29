"""Settlement. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iemas.core.types import ChannelId
from iemas.ledger.rules.results import parse_failures
from iemas.ledger.transaction import AccountHold, ResultCode, RoundRoots, Settle, SettlementEntry
from iemas.testing.chain import CHANNEL, LedgerChain

PROVIDER = "node-1"
OTHER = ChannelId(8)


def settle(chain: LedgerChain, *entries: SettlementEntry, sender: str = PROVIDER) -> ResultCode:
    return chain.submit(sender, Settle(entries)).code


def get_earned(chain: LedgerChain) -> int:
    return chain.state.get_balance(chain.get_id(PROVIDER))[0]


def get_other(chain: LedgerChain, name: str) -> str:
    return next(n for n in ("node-1", "node-2", "node-3") if n != name)


def test_a_total_is_paid_from_escrow(chain: LedgerChain) -> None:
    assert settle(chain, chain.make_entry("alice", PROVIDER, 0, 900)) is ResultCode.OK
    assert get_earned(chain) == 900
    assert chain.state.get_balance(chain.get_id("alice")) == (1_000_000, 399_100)


def test_a_higher_total_pays_the_difference(chain: LedgerChain) -> None:
    settle(chain, chain.make_entry("alice", PROVIDER, 0, 900, sequence=1))
    settle(chain, chain.make_entry("alice", PROVIDER, 0, 1_500, sequence=4))
    assert get_earned(chain) == 1_500


def test_the_same_total_pays_once(chain: LedgerChain) -> None:
    entry = chain.make_entry("alice", PROVIDER, 0, 900)
    assert settle(chain, entry) is ResultCode.OK
    assert settle(chain, entry) is ResultCode.STALE_TOTAL
    assert get_earned(chain) == 900


def test_a_lower_total_is_stale_whatever_its_sequence(chain: LedgerChain) -> None:
    settle(chain, chain.make_entry("alice", PROVIDER, 0, 900, sequence=1))
    lower = chain.make_entry("alice", PROVIDER, 0, 800, sequence=2)
    assert settle(chain, lower) is ResultCode.STALE_TOTAL


def test_an_equal_total_with_a_higher_sequence_moves_no_money(chain: LedgerChain) -> None:
    settle(chain, chain.make_entry("alice", PROVIDER, 0, 900, sequence=1))
    again = chain.make_entry("alice", PROVIDER, 0, 900, sequence=2)
    assert settle(chain, again) is ResultCode.OK
    assert get_earned(chain) == 900
    sequence = chain.state.get_settled_sequence(
        chain.hub, 0, chain.get_id("alice"), CHANNEL, chain.get_node(PROVIDER)
    )
    assert sequence == 2


def test_channels_settle_separately(chain: LedgerChain) -> None:
    first = chain.make_entry("alice", PROVIDER, 0, 900)
    second = chain.make_entry("alice", PROVIDER, 0, 300, channel=OTHER)
    assert settle(chain, first, second) is ResultCode.OK
    assert get_earned(chain) == 1_200


def test_a_total_above_the_reservation_is_refused(chain: LedgerChain) -> None:
    entry = chain.make_entry("alice", PROVIDER, 0, 901, reserved_micros=900)
    assert settle(chain, entry) is ResultCode.OVER_RESERVATION


def test_the_allowance_bounds_all_providers_and_channels_together(chain: LedgerChain) -> None:
    assert settle(chain, chain.make_entry("alice", PROVIDER, 0, 60_000)) is ResultCode.OK
    second = chain.make_entry("alice", "node-2", 0, 40_001, channel=OTHER)
    assert settle(chain, second, sender="node-2") is ResultCode.OVER_ALLOWANCE
    third = chain.make_entry("alice", "node-2", 0, 40_000, channel=OTHER)
    assert settle(chain, third, sender="node-2") is ResultCode.OK


def test_holds_bound_what_is_settled_after_the_books_are_closed(chain: LedgerChain) -> None:
    term = chain.end_term()
    auctioneer = chain.get_auctioneer(term)
    holds = (AccountHold(chain.get_id("alice"), 500),)
    chain.submit(auctioneer, RoundRoots(chain.hub, term, (), holds, ()))
    over = chain.make_entry("alice", PROVIDER, term, 501)
    assert settle(chain, over) is ResultCode.OVER_ALLOWANCE
    assert settle(chain, chain.make_entry("alice", PROVIDER, term, 500)) is ResultCode.OK


def test_a_term_settles_until_it_closes(chain: LedgerChain) -> None:
    entry = chain.make_entry("alice", PROVIDER, 0, 900)
    late = chain.make_entry("alice", PROVIDER, 0, 950, sequence=2)
    for _ in range(chain.genesis.params.settle_terms):
        chain.end_term()
    assert settle(chain, entry) is ResultCode.OK
    chain.end_term()
    assert settle(chain, late) is ResultCode.UNKNOWN_TERM


def test_an_allocation_of_anyone_but_the_auctioneer_is_refused(chain: LedgerChain) -> None:
    wrong = get_other(chain, chain.get_auctioneer())
    entry = chain.make_entry("alice", PROVIDER, 0, 900, auctioneer=wrong)
    assert settle(chain, entry) is ResultCode.NOT_AUCTIONEER


def test_a_total_that_the_account_did_not_sign_is_refused(chain: LedgerChain) -> None:
    entry = chain.make_entry("alice", PROVIDER, 0, 900, signed_by="bob")
    assert settle(chain, entry) is ResultCode.WRONG_SIGNER


def test_only_the_provider_itself_settles(chain: LedgerChain) -> None:
    entry = chain.make_entry("alice", PROVIDER, 0, 900)
    assert settle(chain, entry, sender="node-2") is ResultCode.INVALID_ENTRY


@pytest.mark.parametrize("changed", ["term", "channel", "account", "provider"])
def test_allocation_and_total_must_belong_together(chain: LedgerChain, changed: str) -> None:
    values: dict[str, Any] = {
        "term": 1,
        "channel": OTHER,
        "account": chain.get_id("bob"),
        "provider": chain.get_node("node-2"),
    }
    entry = chain.make_entry("alice", PROVIDER, 0, 900)
    allocation = chain.make_allocation("alice", PROVIDER, 0, 900)
    allocation = replace(allocation, **{changed: values[changed]})
    signed = chain.sign(chain.get_auctioneer(), allocation)
    assert settle(chain, SettlementEntry(signed, entry.total)) is ResultCode.INVALID_ENTRY


def test_entries_are_judged_one_by_one(chain: LedgerChain) -> None:
    good = chain.make_entry("alice", PROVIDER, 0, 900)
    stale = good
    over = chain.make_entry("bob", PROVIDER, 0, 2, reserved_micros=1)
    result = chain.submit(PROVIDER, Settle((good, stale, over)))
    assert result.code is ResultCode.OK
    assert parse_failures(result.detail) == {
        1: ResultCode.STALE_TOTAL,
        2: ResultCode.OVER_RESERVATION,
    }
    assert get_earned(chain) == 900


def test_a_settlement_whose_entries_all_fail_has_the_first_ones_code(chain: LedgerChain) -> None:
    over = chain.make_entry("bob", PROVIDER, 0, 2, reserved_micros=1)
    foreign = chain.make_entry("alice", "node-2", 0, 5)
    result = chain.submit(PROVIDER, Settle((over, foreign)))
    assert (result.code, result.detail) == (
        ResultCode.OVER_RESERVATION,
        "0:OVER_RESERVATION 1:INVALID_ENTRY",
    )


def test_a_provider_may_buy_from_itself(chain: LedgerChain) -> None:
    entry = chain.make_entry("alice", "alice", 0, 900)
    assert settle(chain, entry, sender="alice") is ResultCode.OK
    assert chain.state.get_balance(chain.get_id("alice")) == (1_000_900, 399_100)
