"""Proofs of transactions and their results, and every way of lying with one.

Source: docs/spec/light_client.md §4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from iemas.core.errors import InvalidBlockError, InvalidProofError, MalformedMessageError
from iemas.core.merkle import EMPTY_ROOT, InclusionProof
from iemas.core.ready import RecordKind
from iemas.core.types import ChannelId, Hash
from iemas.ledger.header import Block, BlockHeader
from iemas.ledger.history import (
    BlockResults,
    TransactionPlace,
    TransactionProof,
    compute_results_root,
    compute_total_id,
    find_settled,
    make_history_records,
    prove_transaction,
    verify_transaction,
)
from iemas.ledger.records import TotalKey
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.transaction import ResultCode, Settle, TransactionResult, TransferFunds
from iemas.testing.chain import CHANNEL, LedgerChain

AMOUNTS = (5, 10**9, 7)
"""The second transfer is more than anyone has."""


@dataclass
class Recorded:
    """A block with three transactions, its results, and the header after it."""

    chain: LedgerChain
    block: Block
    results: tuple[TransactionResult, ...]
    following: BlockHeader

    def prove(self, index: int) -> TransactionProof:
        return prove_transaction(self.block, self.results, index)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    chain = LedgerChain()
    carol = chain.get_id("carol")
    transfers = [chain.make_transaction("alice", TransferFunds(carol, n)) for n in AMOUNTS]
    results = chain.apply(transfers).results
    block = chain.blocks[-1]
    following = chain.make_block().header.message
    return Recorded(chain, block, results, replace(following, previous_hash=block.hash))


def test_every_transaction_is_proven_with_its_result(recorded: Recorded) -> None:
    codes = []
    for index in range(len(AMOUNTS)):
        proof = recorded.prove(index)
        verify_transaction(proof, recorded.following)
        codes.append(proof.result.code)
    assert codes == [ResultCode.OK, ResultCode.INSUFFICIENT_BALANCE, ResultCode.OK]


def test_the_next_header_names_the_results(recorded: Recorded) -> None:
    root = compute_results_root(recorded.results)
    assert recorded.following.results_root == root == recorded.chain.state.facts.results_root
    assert LedgerChain().make_block().header.message.results_root == EMPTY_ROOT


def test_a_block_that_names_other_results_is_refused(recorded: Recorded) -> None:
    block = recorded.chain.make_block(results_root=Hash(bytes(32)))
    for check in (recorded.chain.app.process_proposal, recorded.chain.app.finalize_block):
        with pytest.raises(InvalidBlockError, match="other results"):
            check(block)


Lie = Callable[[Recorded, TransactionProof], TransactionProof]


def change_header(recorded: Recorded, proof: TransactionProof) -> TransactionProof:
    header = replace(proof.header.message, time_ms=1)
    return replace(proof, header=recorded.chain.sign("node-1", header))


def change_transaction(recorded: Recorded, proof: TransactionProof) -> TransactionProof:
    body = TransferFunds(recorded.chain.get_id("bob"), 5)
    return replace(proof, transaction=recorded.chain.make_transaction("alice", body, nonce=1))


def spoil_signature(recorded: Recorded, proof: TransactionProof) -> TransactionProof:
    envelope = replace(proof.transaction.envelope, signature=bytes(64))
    return replace(proof, transaction=replace(proof.transaction, envelope=envelope))


def change_path(name: str, **changes: Any) -> Lie:
    return lambda _, proof: replace(proof, **{name: replace(getattr(proof, name), **changes)})


LIES: list[tuple[Lie, str]] = [
    (change_header, "header"),
    (change_transaction, "transaction"),
    (spoil_signature, "transaction"),
    (lambda r, p: replace(p, transaction=r.block.transactions[1]), "transaction"),
    (change_path("inclusion", path=()), "transaction"),
    (change_path("inclusion", index=1), "transaction"),
    (change_path("inclusion", index=2), "transaction"),
    (lambda r, p: replace(p, inclusion=r.prove(1).inclusion), "transaction"),
    (lambda _, p: replace(p, result=refuse(ResultCode.INSUFFICIENT_BALANCE)), "result"),
    (lambda _, p: replace(p, result=TransactionResult(ResultCode.OK, "0:EXPIRED")), "result"),
    (lambda r, p: replace(p, result=r.prove(1).result), "result"),
    (
        lambda r, p: replace(
            p, result=r.prove(1).result, result_inclusion=r.prove(1).result_inclusion
        ),
        "result",
    ),
    (change_path("result_inclusion", path=()), "result"),
    (change_path("result_inclusion", index=1), "result"),
]


@pytest.mark.parametrize(("lie", "part"), LIES)
def test_lies_about_a_transaction_are_refused(recorded: Recorded, lie: Lie, part: str) -> None:
    with pytest.raises(InvalidProofError) as caught:
        verify_transaction(lie(recorded, recorded.prove(0)), recorded.following)
    assert caught.value.operands["part"] == part


def test_no_made_up_size_pairs_a_transaction_with_anothers_result(recorded: Recorded) -> None:
    """Whatever index and size both paths claim: the odd last leaf has a path of another shape."""
    for own in range(3):
        for other in {0, 1, 2} - {own}:
            proof = recorded.prove(own)
            for size in range(1, 6):
                for index in range(size):
                    forged = replace(
                        proof,
                        inclusion=InclusionProof(index, size, proof.inclusion.path),
                        result=recorded.results[other],
                        result_inclusion=InclusionProof(
                            index, size, recorded.prove(other).result_inclusion.path
                        ),
                    )
                    if forged.result == proof.result:
                        continue  # two of the three have the same result
                    with pytest.raises(InvalidProofError):
                        verify_transaction(forged, recorded.following)


def test_another_header_proves_nothing(recorded: Recorded) -> None:
    later = replace(recorded.following, height=recorded.following.height + 1)
    with pytest.raises(InvalidProofError, match="header"):
        verify_transaction(recorded.prove(0), later)


# --- settlements, and what is kept ---------------------------------------------------------------


def make_key(chain: LedgerChain, account: str, channel: ChannelId = CHANNEL) -> TotalKey:
    return TotalKey(chain.hub, 0, chain.get_id(account), channel, chain.get_node("node-2"))


def test_what_a_settle_settled_leaves_out_its_failures() -> None:
    chain = LedgerChain()
    entries = (
        chain.make_entry("alice", "node-2", 0, 70),
        chain.make_entry("bob", "node-2", 0, 50, signed_by="alice"),
        chain.make_entry("alice", "node-2", 0, 90, sequence=2),
    )
    body = Settle(entries)
    chain.submit("alice", TransferFunds(chain.get_id("node-2"), 1))
    result = chain.submit("node-2", body)
    assert result == TransactionResult(ResultCode.OK, "1:WRONG_SIGNER")
    assert find_settled(body, result) == {make_key(chain, "alice"): (2, 90)}
    assert find_settled(body, refuse(ResultCode.UNKNOWN_TERM)) == {}


def test_a_block_is_kept_with_its_results_and_where_they_are_found(recorded: Recorded) -> None:
    records = make_history_records(recorded.block, recorded.results)
    height = recorded.block.height.to_bytes(8, "big")
    assert [record.kind for record in records] == [
        RecordKind.RESULTS,
        *[RecordKind.TRANSACTION] * 3,
    ]
    assert records[0].value == BlockResults(recorded.results)
    for index, signed in enumerate(recorded.block.transactions):
        record = records[1 + index]
        assert record.key == signed.hash + height
        assert record.value == TransactionPlace(signed.hash, recorded.block.height, index)
    assert make_history_records(recorded.chain.make_block(), ()) == ()


def test_a_settlement_is_found_by_its_channel() -> None:
    chain = LedgerChain()
    chain.submit("alice", TransferFunds(chain.get_id("node-2"), 1))
    settle = chain.make_transaction("node-2", Settle((chain.make_entry("alice", "node-2", 0, 70),)))
    results = chain.apply([settle]).results
    assert results == (OK,)
    *_, last = make_history_records(chain.blocks[-1], results)
    assert (last.kind, last.key) == (
        RecordKind.SETTLEMENT,
        compute_total_id(make_key(chain, "alice")),
    )
    assert last.key != compute_total_id(make_key(chain, "alice", ChannelId(8)))
    assert last.value == TransactionPlace(settle.hash, 2, 0)


def test_a_place_is_of_a_block() -> None:
    with pytest.raises(MalformedMessageError, match="heights count from 1"):
        TransactionPlace(Hash(bytes(32)), 0, 0)
