"""What a block leaves behind: its results, where its transactions are found, and their proofs.

A header names the Merkle root of its block's transactions, and the next header the root of their
results (CometBFT's `last_results_hash`). So a transaction of any age is proven, together with what
became of it, by two headers that follow each other and two paths: no state of that time is needed.
Source: docs/spec/light_client.md §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidProofError
from iemas.core.merkle import (
    InclusionProof,
    compute_inclusion_proof,
    compute_root,
    verify_inclusion,
)
from iemas.core.ready import Record, RecordKind
from iemas.core.types import Hash, require, require_id
from iemas.ledger.header import Block, BlockHeader, list_transaction_leaves
from iemas.ledger.records import TotalKey, to_plain
from iemas.ledger.rules.results import parse_failures
from iemas.ledger.transaction import ResultCode, Settle, Transaction, TransactionResult


@dataclass(frozen=True, slots=True)
class BlockResults:
    """The results of a block's transactions, in their order: kept to prove them later."""

    results: tuple[TransactionResult, ...]


@dataclass(frozen=True, slots=True)
class TransactionPlace:
    """Where a transaction is recorded: its id, the height of its block, its index in it."""

    id: Hash
    height: int
    index: int

    def __post_init__(self) -> None:
        require_id("id", self.id)
        require(self.height >= 1, f"heights count from 1, got {self.height}")


@dataclass(frozen=True, slots=True)
class TransactionProof:
    """That a transaction is in a block, and what became of it.

    `inclusion` leads to the header's `transactions_root`, `result_inclusion` to the next header's
    `results_root`.
    """

    header: Signed[BlockHeader]
    transaction: Signed[Transaction]
    inclusion: InclusionProof
    result: TransactionResult
    result_inclusion: InclusionProof


def encode_result(result: TransactionResult) -> bytes:
    """Encode a result as a leaf of its block's results: the canonical CBOR of (code, detail)."""
    return encode_canonical((int(result.code), result.detail))


def compute_results_root(results: Sequence[TransactionResult]) -> Hash:
    """Compute the Merkle root over a block's results, which the next header carries."""
    return compute_root([encode_result(result) for result in results])


def prove_transaction(
    block: Block, results: Sequence[TransactionResult], index: int
) -> TransactionProof:
    """Prove the transaction at an index of a block, and its result."""
    return TransactionProof(
        header=block.header,
        transaction=block.transactions[index],
        inclusion=compute_inclusion_proof(list_transaction_leaves(block.transactions), index),
        result=results[index],
        result_inclusion=compute_inclusion_proof([encode_result(r) for r in results], index),
    )


def verify_transaction(proof: TransactionProof, following: BlockHeader) -> None:
    """Check a proof under the trusted header that follows the transaction's block.

    The same index and size make both paths turn alike, and a block has as many results as
    transactions: so the result is this transaction's, whatever index and size are claimed.

    Raises: InvalidProofError whose `part` names what does not hold.
    """
    header = proof.header.message
    if proof.header.hash != following.previous_hash or header.height + 1 != following.height:
        raise _refuse("header", "its header is not the one that the trusted header follows")
    (leaf,) = list_transaction_leaves((proof.transaction,))
    if not verify_inclusion(leaf, proof.inclusion, header.transactions_root):
        raise _refuse("transaction", "the transaction is not in the block")
    shown = (proof.inclusion.index, proof.inclusion.size)
    if (proof.result_inclusion.index, proof.result_inclusion.size) != shown:
        raise _refuse("result", "the result is another transaction's")
    leaf = encode_result(proof.result)
    if not verify_inclusion(leaf, proof.result_inclusion, following.results_root):
        raise _refuse("result", "the block's transactions had other results")


def _refuse(part: str, why: str) -> InvalidProofError:
    return InvalidProofError(f"the proof of the transaction does not hold: {why}", part=part)


# --- what a node keeps ---------------------------------------------------------------------------


def make_history_records(block: Block, results: Sequence[TransactionResult]) -> tuple[Record, ...]:
    """Give what is stored beside a block, so that its transactions can be found and proven.

    A transaction is found by its id and height, a channel's last settlement by `compute_total_id`.
    """
    if not results:
        return ()
    height = block.height.to_bytes(8, "big")
    records = [Record(RecordKind.RESULTS, height, BlockResults(tuple(results)))]
    for index, (signed, result) in enumerate(zip(block.transactions, results, strict=True)):
        place = TransactionPlace(signed.hash, block.height, index)
        records.append(Record(RecordKind.TRANSACTION, signed.hash + height, place))
        if isinstance(signed.message.body, Settle):
            records += [
                Record(RecordKind.SETTLEMENT, compute_total_id(key), place)
                for key in find_settled(signed.message.body, result)
            ]
    return tuple(records)


# --- settlements ---------------------------------------------------------------------------------


def find_settled(body: Settle, result: TransactionResult) -> dict[TotalKey, tuple[int, int]]:
    """Give the (sequence, total in micro-credits) that a `Settle` with this result settled.

    The last one counts where a channel has several entries: both only grow.
    """
    if result.code is not ResultCode.OK:
        return {}
    failed = parse_failures(result.detail)
    settled: dict[TotalKey, tuple[int, int]] = {}
    for index, entry in enumerate(body.entries):
        if index not in failed:
            total = entry.total.message
            key = TotalKey(total.hub, total.term, total.account, total.channel, total.provider)
            settled[key] = (total.sequence, total.total_micros)
    return settled


def compute_total_id(key: TotalKey) -> Hash:
    """Name a channel's total with a provider in a term: where its settlements are looked up."""
    return compute_hash(encode_canonical(to_plain(key)))
