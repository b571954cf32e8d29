"""Blocks: a signed header that names everything, and the transactions beside it.

Who wants to know only *that* a block was decided needs its header and its commit
(`iemas.consensus.messages.Commit`), not its transactions. Source: docs/spec/application.md §1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed
from iemas.core.merkle import compute_root
from iemas.core.types import ID_BYTES, Hash, NodeId, require, require_id
from iemas.ledger.transaction import Transaction

GENESIS_HASH = Hash(bytes(ID_BYTES))
"""What the first block names as its predecessor."""

_HASHES = (
    "previous_hash",
    "state_root",
    "transactions_root",
    "validators_hash",
    "next_validators_hash",
    "results_root",
)


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """What a block is; signed by the proposer that made it.

    `state_root` is the root *after the previous block* (CometBFT's app hash), so every replica
    that takes this block first checks that it agrees on all before it. `time_ms` is ledger time:
    it never goes back. `transactions_root` is `compute_transactions_root` of the block's
    transactions, `validators_hash` names the set that votes on this height, `next_validators_hash`
    that of the next height, so that whoever trusts a header knows who may sign the one after it.
    `results_root` is the Merkle root over the results of the *previous* block's transactions.
    """

    chain_id: str
    height: int
    previous_hash: Hash
    time_ms: int
    state_root: Hash
    transactions_root: Hash
    validators_hash: Hash
    next_validators_hash: Hash
    results_root: Hash

    def __post_init__(self) -> None:
        require(self.height >= 1, f"heights count from 1, got {self.height}")
        for name in _HASHES:
            require_id(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Block:
    """A signed header with its transactions in order. Its hash is the signed header's."""

    header: Signed[BlockHeader]
    transactions: tuple[Signed[Transaction], ...]

    @property
    def hash(self) -> Hash:
        """Name the block: what its header says, and who signed it."""
        return self.header.hash

    @property
    def proposer(self) -> NodeId:
        """Who made the block: its header's signer."""
        return self.header.signer_id

    @property
    def height(self) -> int:
        """The block's height; the first is 1."""
        return self.header.message.height

    @property
    def time_ms(self) -> int:
        """The block's ledger time."""
        return self.header.message.time_ms


def compute_transactions_root(transactions: Iterable[Signed[Transaction]]) -> Hash:
    """Compute the Merkle root over a block's transactions, signatures included.

    A transaction's id leaves its signature out; here it counts, or whoever passes a block on
    could spoil a signature in it and the block would keep its hash.
    """
    return compute_root(list_transaction_leaves(transactions))


def list_transaction_leaves(transactions: Iterable[Signed[Transaction]]) -> list[bytes]:
    """Give the leaves of a block's transactions: the hashes of all that travelled of each."""
    return [
        compute_hash(signed.envelope.payload, signed.envelope.signer, signed.envelope.signature)
        for signed in transactions
    ]
