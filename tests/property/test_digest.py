"""Chains, indexes and resident blocks against their simplest models."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from iemas.core.digest import (
    BlockChain,
    DigestIndex,
    ResidentBlocks,
    compute_block_keys,
    count_matched_blocks,
    split_keys,
)

token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=60)
keys = st.integers(0, 2**64 - 1) | st.integers(0, 5)
events = st.lists(
    st.tuples(st.sampled_from(["stored", "removed"]), st.lists(keys, max_size=4))
    | st.just(("cleared", [])),
    max_size=30,
)


@given(st.lists(token_ids, max_size=6), st.integers(1, 9), st.text(max_size=5))
def test_extending_in_pieces_gives_the_chain_of_the_whole(
    pieces: list[list[int]], block_size: int, salt: str
) -> None:
    chain = BlockChain(block_size, cache_salt=salt)
    new = b"".join(chain.extend(piece) for piece in pieces)
    whole = [token for piece in pieces for token in piece]
    assert new == chain.keys == compute_block_keys(whole, block_size, cache_salt=salt)
    assert chain.token_count == len(whole)


@given(token_ids, token_ids, st.integers(1, 9))
def test_chains_share_exactly_the_blocks_of_the_common_prefix(
    left: list[int], right: list[int], block_size: int
) -> None:
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    resident = frozenset(split_keys(compute_block_keys(left, block_size)))
    chain = compute_block_keys(right, block_size)
    assert count_matched_blocks(chain, resident) == common // block_size


@given(st.sets(keys, max_size=50), st.lists(keys, max_size=20))
def test_the_index_counts_as_a_set_does(resident: set[int], wanted: list[int]) -> None:
    packed = [key.to_bytes(8, "big") for key in resident]
    chain = b"".join(key.to_bytes(8, "big") for key in wanted)
    index = DigestIndex(b"".join(sorted(packed)))
    assert count_matched_blocks(chain, index) == count_matched_blocks(chain, frozenset(packed))


@given(events)
def test_resident_blocks_count_references(history: list[tuple[str, list[int]]]) -> None:
    resident, model = ResidentBlocks(), Counter[int]()
    version, snapshot = resident.version, resident.snapshot()
    for kind, changed in history:
        if kind == "stored":
            resident.apply_stored(changed)
            model.update(changed)
        elif kind == "removed":
            resident.apply_removed(changed)
            for key in changed:
                model[key] = max(0, model[key] - 1)
        else:
            resident.apply_cleared()
            model.clear()
        expected = sorted(key for key, count in model.items() if count)
        assert resident.snapshot() == b"".join(key.to_bytes(8, "big") for key in expected)
        if resident.snapshot() != snapshot:
            assert resident.version > version
        version, snapshot = resident.version, resident.snapshot()
