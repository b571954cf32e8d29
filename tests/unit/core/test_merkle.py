"""Merkle trees as of RFC 6962."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iemas.core.errors import MalformedMessageError
from iemas.core.merkle import (
    EMPTY_ROOT,
    InclusionProof,
    compute_inclusion_proof,
    compute_root,
    verify_inclusion,
)

# Source: the reference vectors of RFC 6962 in google/certificate-transparency, merkle_tree_test.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
TREES = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_rfc(size: int) -> None:
    assert compute_root(LEAVES[:size]).hex() == ROOTS[size]


def test_the_empty_root_is_the_hash_of_nothing() -> None:
    assert compute_root([]) == EMPTY_ROOT


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_inclusion_paths_are_those_of_the_rfc(index: int, size: int) -> None:
    proof = compute_inclusion_proof(LEAVES[:size], index)
    assert [sibling.hex() for sibling in proof.path] == PATHS[index, size]


@given(leaves=TREES, data=st.data())
def test_every_leaf_is_proven_and_no_other_is(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root = compute_root(leaves)
    proof = compute_inclusion_proof(leaves, index)
    assert verify_inclusion(leaves[index], proof, root)
    assert not verify_inclusion(leaves[index] + b"x", proof, root)
    assert not verify_inclusion(leaves[index], proof, compute_root([*leaves, b"x"]))


@given(leaves=st.lists(st.binary(max_size=8), min_size=2, max_size=40, unique=True), data=st.data())
def test_a_changed_proof_proves_nothing(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    other = data.draw(st.integers(0, len(leaves) - 1).filter(lambda one: one != index))
    root = compute_root(leaves)
    proof = compute_inclusion_proof(leaves, index)
    moved = InclusionProof(other, proof.size, proof.path)
    shorter = InclusionProof(index, proof.size, proof.path[:-1])
    longer = InclusionProof(index, proof.size, (*proof.path, root))
    for wrong in (moved, shorter, longer):
        assert not verify_inclusion(leaves[index], wrong, root)


def test_an_inner_node_is_no_leaf() -> None:
    """Leaves and nodes are hashed apart, so a node cannot be passed off as a leaf."""
    left, right = (compute_root([leaf]) for leaf in (b"a", b"b"))
    assert compute_root([left + right]) != compute_root([b"a", b"b"])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_a_leaf_outside_its_tree_is_refused(index: int, size: int) -> None:
    with pytest.raises(MalformedMessageError, match="outside the tree"):
        InclusionProof(index, size, ())


def test_a_sibling_that_is_no_hash_is_refused() -> None:
    with pytest.raises(MalformedMessageError, match="32 bytes"):
        InclusionProof(0, 2, (b"short",))
