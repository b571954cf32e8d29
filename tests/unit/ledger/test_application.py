"""ABCI's verbs. Source: docs/spec/application.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iemas.core import identity
from iemas.core.encoding import encode_canonical
from iemas.core.envelope import Signed
from iemas.core.errors import InternalError, InvalidBlockError, LocalProtocolError
from iemas.core.identity import forget_verdicts
from iemas.core.merkle import verify_inclusion
from iemas.core.types import ChannelId
from iemas.ledger.application import (
    APPLIED_WINDOW_BLOCKS,
    MAX_BLOCK_TRANSACTIONS,
)
from iemas.ledger.header import Block
from iemas.ledger.transaction import FundEscrow, ResultCode, Settle, TransferFunds
from iemas.testing.chain import LedgerChain


def refuse_block(chain: LedgerChain, block: Block) -> str:
    root = chain.state.compute_root()
    with pytest.raises(InvalidBlockError) as caught:
        chain.app.finalize_block(block)
    assert chain.state.compute_root() == root
    return str(caught.value)


def test_check_tx_checks_the_signatures_that_a_block_will_need(chain: LedgerChain) -> None:
    forget_verdicts()
    entries = tuple(
        chain.make_entry("alice", "node-1", 0, 5, channel=ChannelId(n)) for n in range(3)
    )
    settle = chain.make_transaction("node-1", Settle(entries))
    assert chain.app.check_tx(settle).code is ResultCode.OK
    misses = identity._verify_remembered.cache_info().misses
    assert misses >= 2 * len(entries)
    chain.apply([settle])
    assert identity._verify_remembered.cache_info().misses == misses


def test_info_tells_height_and_root(chain: LedgerChain) -> None:
    chain.apply()
    info = chain.app.info()
    assert (info.chain_id, info.height) == (chain.chain_id, 1)
    assert info.state_root == chain.state.compute_root()


def test_init_chain_starts_over(chain: LedgerChain) -> None:
    root = chain.state.compute_root()
    chain.submit("alice", FundEscrow(chain.hub, 1))
    assert chain.app.init_chain() == root == chain.state.compute_root()


def test_the_root_changes_with_every_block(chain: LedgerChain) -> None:
    roots = {chain.apply().state_root for _ in range(3)}
    assert len(roots) == 3


def test_the_root_covers_refusals(chain: LedgerChain) -> None:
    other = LedgerChain(chain.genesis)
    refused = chain.make_transaction("carol", FundEscrow(chain.hub, 1))
    assert chain.apply([refused]).state_root != other.apply().state_root


def test_two_replicas_agree() -> None:
    chain = LedgerChain(replicas=2)
    chain.submit("alice", TransferFunds(chain.get_id("bob"), 5))
    chain.end_term()
    first, second = chain.engine.alive
    assert first.app.state.compute_root() == second.app.state.compute_root()


def test_a_finalized_block_changes_nothing_before_its_commit(chain: LedgerChain) -> None:
    before = chain.state.compute_root()
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    after = chain.app.finalize_block(chain.make_block([transaction])).state_root
    assert chain.state.compute_root() == before
    assert chain.app.commit() == 1
    assert chain.state.compute_root() == after


def test_a_committed_state_is_never_changed_again(chain: LedgerChain) -> None:
    kept = chain.state
    balance = kept.get_balance(chain.get_id("alice"))
    chain.submit("alice", FundEscrow(chain.hub, 1))
    assert (kept.height, kept.get_balance(chain.get_id("alice"))) == (0, balance)


def test_committing_nothing_is_an_error(chain: LedgerChain) -> None:
    with pytest.raises(LocalProtocolError):
        chain.app.commit()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"chain_id": "other"}, "another chain"),
        ({"height": 2}, "does not follow"),
        ({"time_ms": 5}, "goes back"),
    ],
)
def test_a_block_that_breaks_a_rule_is_refused(
    chain: LedgerChain, changes: dict[str, Any], text: str
) -> None:
    assert text in refuse_block(chain, chain.make_block(**changes))


def test_a_block_holds_a_bounded_number_of_transactions(chain: LedgerChain) -> None:
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    block = chain.make_block([transaction] * (MAX_BLOCK_TRANSACTIONS + 1))
    assert "too many" in refuse_block(chain, block)


def test_divergence_is_an_internal_error_that_names_the_height(chain: LedgerChain) -> None:
    chain.apply()
    block = chain.make_block(state_root=bytes(32))
    with pytest.raises(InternalError, match="diverged at height 1"):
        chain.app.finalize_block(block)


def test_a_proposal_with_another_state_root_is_refused(chain: LedgerChain) -> None:
    with pytest.raises(InvalidBlockError, match="state root"):
        chain.app.process_proposal(chain.make_block(state_root=bytes(32)))


def test_a_proposal_with_a_transaction_that_nobody_signed_is_refused(chain: LedgerChain) -> None:
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    forged = Signed(transaction.message, replace(transaction.envelope, signature=bytes(64)))
    with pytest.raises(InvalidBlockError, match="transactions is wrong"):
        chain.app.process_proposal(chain.make_block([forged]))


def test_a_block_has_the_transactions_that_its_header_names_to_the_last_signature(
    chain: LedgerChain,
) -> None:
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    block = chain.make_block([transaction])
    spoilt = Signed(transaction.message, replace(transaction.envelope, signature=bytes(64)))
    assert "its header names" in refuse_block(chain, replace(block, transactions=(spoilt,)))
    assert "its header names" in refuse_block(chain, replace(block, transactions=()))


def test_a_proposal_restores_the_order_of_nonces(chain: LedgerChain) -> None:
    late = chain.make_transaction("alice", FundEscrow(chain.hub, 2), nonce=2)
    other = chain.make_transaction("bob", FundEscrow(chain.hub, 1))
    early = chain.make_transaction("alice", FundEscrow(chain.hub, 1), nonce=1)
    assert chain.app.prepare_proposal([late, other, early]) == (early, other, late)


def test_a_proposal_leaves_out_what_is_applied(chain: LedgerChain) -> None:
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    chain.apply([transaction])
    assert chain.app.prepare_proposal([transaction]) == ()


def test_a_proposal_is_bounded(chain: LedgerChain) -> None:
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    waiting = [transaction] * (MAX_BLOCK_TRANSACTIONS + 1)
    assert len(chain.app.prepare_proposal(waiting)) == MAX_BLOCK_TRANSACTIONS


def test_repetitions_are_known_for_a_window_of_heights(chain: LedgerChain) -> None:
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1))
    chain.apply([transaction])
    for _ in range(APPLIED_WINDOW_BLOCKS - 1):
        chain.apply()
    assert chain.app.check_tx(transaction).code is ResultCode.ALREADY_DONE
    chain.apply()
    assert chain.app.check_tx(transaction).code is ResultCode.NONCE_TOO_LOW


def test_an_account_is_proven_under_the_root(chain: LedgerChain) -> None:
    alice = chain.get_id("alice")
    chain.submit("alice", FundEscrow(chain.hub, 1))
    entry = chain.app.query("/account", alice)
    assert entry is not None
    assert entry.root == chain.state.compute_root()
    assert verify_inclusion(entry.leaf, entry.proof, entry.root)
    balances = ((1, "", 999_999), (2, chain.hub, 400_001))
    assert entry.leaf == encode_canonical(("accounts", alice, (1, balances)))


def test_a_false_balance_has_no_proof(chain: LedgerChain) -> None:
    alice = chain.get_id("alice")
    entry = chain.app.query("/account", alice)
    assert entry is not None
    forged = encode_canonical(("accounts", alice, (0, ((1, "", 10**9),))))
    assert not verify_inclusion(forged, entry.proof, entry.root)


def test_an_unknown_account_has_no_entry(chain: LedgerChain) -> None:
    assert chain.app.query("/account", chain.get_id("carol")) is None


def test_an_unknown_query_is_an_error(chain: LedgerChain) -> None:
    with pytest.raises(LocalProtocolError):
        chain.app.query("/nothing", b"")
