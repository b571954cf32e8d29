"""Merkle trees as of RFC 6962 §2.1: domain-separated leaves and nodes, no duplicated last leaf.

Used for the set of bids in a round's close and for the ledger's state root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from iemas.core.types import Hash, require, require_id

EMPTY_ROOT = Hash(hashlib.sha256().digest())


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That one leaf is in a tree: its index, the tree's size, the sibling hashes, leaf up."""

    index: int
    size: int
    path: tuple[bytes, ...]

    def __post_init__(self) -> None:
        require(0 <= self.index < self.size, "the leaf index lies outside the tree")
        for sibling in self.path:
            require_id("path", sibling)


def compute_leaf_hash(leaf: bytes) -> bytes:
    """Hash one leaf. Source: RFC 6962 §2.1."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def _hash_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def compute_root(leaves: Sequence[bytes]) -> Hash:
    """Compute the tree's root; of no leaves, the hash of nothing. Source: RFC 6962 §2.1."""
    return compute_root_of_hashes([compute_leaf_hash(leaf) for leaf in leaves])


def compute_root_of_hashes(leaf_hashes: Sequence[bytes]) -> Hash:
    """Compute the tree's root from its leaves' hashes, for a caller that keeps them."""
    if not leaf_hashes:
        return EMPTY_ROOT
    level, sha256 = list(leaf_hashes), hashlib.sha256
    # Pairing neighbours and carrying an odd last node up gives RFC 6962's left-balanced tree.
    while len(level) > 1:
        paired = [
            sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level = paired + level[len(paired) * 2 :]
    return Hash(level[0])


class MerkleTree:
    """A tree that keeps its inner nodes, for whoever proves many of its leaves."""

    def __init__(self, leaf_hashes: Sequence[bytes]) -> None:
        self._levels = [list(leaf_hashes)]
        while len(level := self._levels[-1]) > 1:
            neighbours = zip(level[::2], level[1::2], strict=False)
            paired = [_hash_node(left, right) for left, right in neighbours]
            self._levels.append(paired + level[len(paired) * 2 :])

    @property
    def root(self) -> Hash:
        """The tree's root; of no leaves, the hash of nothing."""
        return Hash(self._levels[-1][0]) if self._levels[0] else EMPTY_ROOT

    def prove(self, index: int) -> InclusionProof:
        """Prove that leaf `index` is in the tree; costs time in proportion to its depth."""
        path = []
        for depth, level in enumerate(self._levels[:-1]):
            sibling = (index >> depth) ^ 1
            if sibling < len(level):
                path.append(level[sibling])
        return InclusionProof(index, len(self._levels[0]), tuple(path))


def compute_inclusion_proof(leaves: Sequence[bytes], index: int) -> InclusionProof:
    """Prove that leaf `index` is in the tree of `leaves`. Source: RFC 6962 §2.1.1."""
    level = [compute_leaf_hash(leaf) for leaf in leaves]
    path: list[bytes] = []
    position = index
    while len(level) > 1:
        sibling = position ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        paired = [_hash_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
        position //= 2
    return InclusionProof(index, len(leaves), tuple(path))


def verify_inclusion(leaf: bytes, proof: InclusionProof, root: bytes) -> bool:
    """Tell whether the proof leads from the leaf to the root. Source: RFC 9162 §2.1.3.2."""
    node, position, last = compute_leaf_hash(leaf), proof.index, proof.size - 1
    for sibling in proof.path:
        if last == 0:
            return False
        if position & 1 or position == last:
            node = _hash_node(sibling, node)
            while position and not position & 1:
                position >>= 1
                last >>= 1
        else:
            node = _hash_node(node, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and node == root
