"""Proofs of single records under a state root, and that a record is not there.

The root's leaves are sorted and each starts with its table and key, so two neighbours with a gap
between them prove that nothing lies in the gap. Both are checked by their inclusion proofs alone:
in one tree, two leaves of neighbouring index under proofs of equal size are neighbours, whatever
the size is. Source: docs/spec/light_client.md §3; RFC 6962 §2.1.1.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import cbor2

from iemas.core.encoding import encode_canonical
from iemas.core.errors import InvalidInputError, InvalidProofError
from iemas.core.merkle import InclusionProof, MerkleTree, verify_inclusion
from iemas.core.types import Hash, require
from iemas.ledger.records import to_plain
from iemas.ledger.snapshot import TABLE_TYPES, rebuild
from iemas.ledger.state import LedgerState

T = TypeVar("T")

MAX_LEAF_BYTES = 1024 * 1024
MAX_PATH = 64
"""No tree is deeper: it would have 2^64 leaves."""

MAX_TABLE = 4096
"""The most records of a table that are proven at once."""


@dataclass(frozen=True, slots=True)
class ProvenLeaf:
    """One record of the state as canonical CBOR of (table, key, value), with its proof."""

    leaf: bytes
    proof: InclusionProof

    def __post_init__(self) -> None:
        require(len(self.leaf) <= MAX_LEAF_BYTES, f"a leaf is at most {MAX_LEAF_BYTES} bytes")
        require(len(self.proof.path) <= MAX_PATH, f"a path is at most {MAX_PATH} hashes")


@dataclass(frozen=True, slots=True)
class StateProof:
    """The record asked for; or, if there is none, its neighbours: one only at an end."""

    leaves: tuple[ProvenLeaf, ...]

    def __post_init__(self) -> None:
        require(1 <= len(self.leaves) <= 2, f"a proof has 1 or 2 leaves, got {len(self.leaves)}")


@dataclass(frozen=True, slots=True)
class TableProof:
    """All records of a table in order, between the leaves around them: none at an end."""

    leaves: tuple[ProvenLeaf, ...]

    def __post_init__(self) -> None:
        count = len(self.leaves)
        require(1 <= count <= MAX_TABLE + 2, f"a table's proof has 1 to {MAX_TABLE + 2} leaves")


class StateProver:
    """Proves records of one state; costs one pass over it, then little a proof."""

    def __init__(self, state: LedgerState) -> None:
        pairs = state.list_leaves()
        self._leaves = [leaf for leaf, _ in pairs]
        self._tree = MerkleTree([leaf_hash for _, leaf_hash in pairs])

    @property
    def root(self) -> Hash:
        """The state's root."""
        return self._tree.root

    def prove(self, table: str, key: Any) -> StateProof:
        """Prove the record of a table under a key, or that there is none."""
        prefix = compute_prefix(table, key)
        index = bisect_left(self._leaves, prefix)
        if index < len(self._leaves) and self._leaves[index].startswith(prefix):
            return StateProof((self._prove(index),))
        around = [i for i in (index - 1, index) if 0 <= i < len(self._leaves)]
        return StateProof(tuple(self._prove(i) for i in around))

    def prove_table(self, table: str) -> TableProof:
        """Prove all records of a table, and that these are all.

        Raises: InvalidInputError if there are more than `MAX_TABLE`.
        """
        prefix = compute_table_prefix(table)
        start = index = bisect_left(self._leaves, prefix)
        while index < len(self._leaves) and self._leaves[index].startswith(prefix):
            index += 1
        if index - start > MAX_TABLE:
            raise InvalidInputError(f"the table {table} has more than {MAX_TABLE} records")
        around = range(max(0, start - 1), min(index + 1, len(self._leaves)))
        return TableProof(tuple(self._prove(i) for i in around))

    def _prove(self, index: int) -> ProvenLeaf:
        return ProvenLeaf(self._leaves[index], self._tree.prove(index))


def compute_prefix(table: str, key: Any) -> bytes:
    """Give what the leaf of a table and key starts with: an array of three, and the first two."""
    return compute_table_prefix(table) + encode_canonical(to_plain(key))


def compute_table_prefix(table: str) -> bytes:
    """Give what every leaf of a table starts with."""
    return b"\x83" + encode_canonical(table)


def verify_record(
    proof: StateProof, root: bytes, table: str, key: Any, record_type: type[T]
) -> T | None:
    """Give the proven record, or None if the proof shows that there is none.

    Raises: InvalidProofError if it shows neither.
    """
    prefix = compute_prefix(table, key)
    for proven in proof.leaves:
        if not verify_inclusion(proven.leaf, proven.proof, root):
            raise InvalidProofError(f"the proof of {table} does not lead to the state root")
    first = proof.leaves[0]
    if first.leaf.startswith(prefix):
        if len(proof.leaves) > 1:
            raise InvalidProofError(f"the proof of {table} shows more than was asked for")
        return _decode(first.leaf, table, 2, record_type)
    if not _is_gap(proof.leaves, prefix):
        raise InvalidProofError(f"the proof of {table} shows other records than was asked for")
    return None


def verify_table(proof: TableProof, root: bytes, table: str) -> dict[Any, Any]:
    """Give all records of a table by key, in the order of the root's leaves.

    Raises: InvalidProofError if the proof does not show that these are all of them.
    """
    prefix = compute_table_prefix(table)
    for proven in proof.leaves:
        if not verify_inclusion(proven.leaf, proven.proof, root):
            raise InvalidProofError(f"the proof of {table} does not lead to the state root")
    for before, after in pairwise(proof.leaves):
        if not _are_neighbours(before, after):
            raise InvalidProofError(f"the proof of {table} leaves records out")
    first, last = proof.leaves[0], proof.leaves[-1]
    # What is below the table's prefix is before all of its records, what is above after them.
    begins = first.proof.index == 0 or first.leaf < prefix
    is_above = last.leaf > prefix and not last.leaf.startswith(prefix)
    ends = last.proof.index == last.proof.size - 1 or is_above
    if not begins or not ends:
        raise InvalidProofError(f"the proof of {table} does not show where it begins and ends")
    inside = [proven.leaf for proven in proof.leaves if proven.leaf.startswith(prefix)]
    key_type, value_type = TABLE_TYPES[table]
    return {
        _decode(leaf, table, 1, key_type): _decode(leaf, table, 2, value_type) for leaf in inside
    }


def _are_neighbours(before: ProvenLeaf, after: ProvenLeaf) -> bool:
    return before.proof.size == after.proof.size and before.proof.index + 1 == after.proof.index


def _is_gap(leaves: tuple[ProvenLeaf, ...], prefix: bytes) -> bool:
    """Tell whether the leaves enclose where a leaf with the prefix would stand."""
    first, last = leaves[0], leaves[-1]
    if len(leaves) == 1:
        after_all = first.proof.index == first.proof.size - 1 and first.leaf < prefix
        before_all = first.proof.index == 0 and first.leaf > prefix
        return after_all or before_all
    # A leaf with the prefix is above it, so one that is above and lacks it is above them all.
    adjacent = _are_neighbours(first, last)
    return adjacent and first.leaf < prefix < last.leaf and not last.leaf.startswith(prefix)


def _decode(leaf: bytes, table: str, part: int, record_type: type[T]) -> T:
    """Decode the key (part 1) or the value (part 2) of a leaf."""
    try:
        _, key, value = cbor2.loads(leaf)
        record: T = rebuild(record_type, (key, value)[part - 1])
    except InvalidInputError as error:
        raise InvalidProofError(f"the proven record of {table} is of another kind") from error
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError) as error:
        raise InvalidProofError(f"the proven record of {table} is of another kind") from error
    return record
