"""Block keys equal vLLM's, and what is known of a cache from them."""

import json
from pathlib import Path

import pytest

from iemas.core.digest import (
    NONE_HASH,
    BlockChain,
    DigestIndex,
    InvalidBlockEventError,
    ResidentBlocks,
    compute_block_keys,
    count_matched_blocks,
    split_keys,
)
from iemas.core.errors import MalformedMessageError

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/vectors/block_hashes.json").read_text())
RECORDED = ROOT.parent / "shared/data/vllm/kv_events_sha256_cbor.jsonl"


def test_the_first_parent_is_vllms() -> None:
    # Source: docs/guides/vllm.md, "Block hashes".
    assert NONE_HASH.hex() == "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"
    assert NONE_HASH.hex() == VECTORS["none_hash"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_golden_vectors(case: dict) -> None:
    chain = BlockChain(case["block_size"], cache_salt=case["cache_salt"])
    chain.extend(case["token_ids"])
    assert chain.keys.hex() == case["keys"]
    assert chain.tip.hex() == case["tip"]


@pytest.mark.skipif(not RECORDED.exists(), reason=f"recorded KV events are not at {RECORDED}")
def test_every_block_that_a_real_vllm_published_is_recomputed() -> None:
    known: dict[int, BlockChain] = {}
    blocks = 0
    for line in RECORDED.read_text().splitlines():
        for event in json.loads(line)["payload"][1]:
            if event["type"] != "BlockStored":
                continue
            size, parent = event["block_size"], event["parent_block_hash"]
            salt = (event["extra_keys"][0] or [""])[0]
            chain = known[parent].copy() if parent else BlockChain(size, cache_salt=salt)
            for i, published in enumerate(event["block_hashes"]):
                key = chain.extend(event["token_ids"][i * size : (i + 1) * size])
                assert int.from_bytes(key, "big") == published
                known[published] = chain.copy()
                blocks += 1
    assert blocks == 125


def test_only_full_blocks_have_keys() -> None:
    assert compute_block_keys(range(31), 32) == b""
    assert len(compute_block_keys(range(64), 32)) == 16
    assert compute_block_keys(range(95), 32) == compute_block_keys(range(64), 32)


def test_a_salt_changes_every_key() -> None:
    plain = list(split_keys(compute_block_keys(range(96), 32)))
    salted = list(split_keys(compute_block_keys(range(96), 32, cache_salt="a")))
    assert not set(plain) & set(salted)


def test_a_chain_is_extended_by_the_new_blocks_only() -> None:
    chain = BlockChain(4, cache_salt="s")
    assert len(chain.extend(range(6))) == 8
    assert chain.tail == (4, 5)
    assert len(chain.extend((6,))) == 0
    new = chain.extend((7, 8))
    assert chain.keys == compute_block_keys(range(9), 4, cache_salt="s")
    assert new == chain.keys[8:]
    assert chain.token_count == 9


def test_a_copy_branches_off() -> None:
    chain = BlockChain(4)
    chain.extend(range(5))
    branch = chain.copy()
    branch.extend((5, 6, 7))
    assert len(chain.keys) == 8
    assert branch.keys == compute_block_keys(range(8), 4)


def test_bad_input_to_a_chain_is_refused() -> None:
    with pytest.raises(MalformedMessageError, match="block_size"):
        BlockChain(0)
    with pytest.raises(MalformedMessageError, match="negative"):
        compute_block_keys((1, -1), 2)


def test_leading_blocks_are_counted_up_to_the_first_that_is_missing() -> None:
    keys = list(split_keys(compute_block_keys(range(160), 32)))
    chain = b"".join(keys)
    index = DigestIndex(b"".join(sorted([keys[0], keys[1], keys[3]])))
    assert count_matched_blocks(chain, index) == 2
    assert count_matched_blocks(chain, {keys[0], keys[1], keys[3]}) == 2
    assert count_matched_blocks(chain, DigestIndex(b"".join(sorted(keys)))) == 5
    assert count_matched_blocks(chain, DigestIndex(keys[1])) == 0
    assert count_matched_blocks(b"", index) == 0


def test_an_index_refuses_what_is_no_digest() -> None:
    with pytest.raises(MalformedMessageError, match="whole"):
        DigestIndex(b"1234567")
    with pytest.raises(MalformedMessageError, match="sorted"):
        DigestIndex(b"\2" * 8 + b"\1" * 8)
    with pytest.raises(MalformedMessageError, match="sorted"):
        DigestIndex(b"\1" * 16)
    with pytest.raises(MalformedMessageError, match="whole"):
        count_matched_blocks(b"123", DigestIndex(b""))
    with pytest.raises(MalformedMessageError, match="whole"):
        count_matched_blocks(b"123", frozenset())


def test_membership_compares_whole_keys() -> None:
    index = DigestIndex(b"\0" * 8 + b"\xff" * 8)
    assert b"\xff" * 8 in index
    assert b"\xff" * 7 not in index
    assert 0 not in index
    assert len(index) == 2


def test_a_block_stored_twice_must_be_removed_twice() -> None:
    resident = ResidentBlocks()
    resident.apply_stored([5, 7])
    resident.apply_stored([5])
    resident.apply_removed([5])
    assert (5).to_bytes(8, "big") in resident
    resident.apply_removed([5])
    assert resident.snapshot() == (7).to_bytes(8, "big")


def test_the_version_rises_only_with_the_set() -> None:
    resident = ResidentBlocks()
    resident.apply_stored([2**64 - 1, 1])
    version = resident.version
    resident.apply_stored([1])
    resident.apply_removed([1])
    assert resident.version == version
    resident.apply_removed([1])
    assert resident.version == version + 1
    resident.apply_cleared()
    resident.apply_cleared()
    assert resident.version == version + 2
    assert resident.snapshot() == b""


def test_a_snapshot_is_sorted_as_a_digest_must_be() -> None:
    resident = ResidentBlocks()
    resident.apply_stored([2**64 - 1, 3, 2**63])
    assert len(DigestIndex(resident.snapshot())) == 3


def test_unknown_removals_are_counted_and_otherwise_ignored() -> None:
    resident = ResidentBlocks()
    resident.apply_removed([1, 2])
    assert resident.unknown_removals == 2
    assert len(resident) == 0


@pytest.mark.parametrize("key", [-1, 2**64])
def test_keys_that_are_not_64_bits_change_nothing(key: int) -> None:
    resident = ResidentBlocks()
    with pytest.raises(InvalidBlockEventError):
        resident.apply_stored([1, key])
    with pytest.raises(InvalidBlockEventError):
        resident.apply_removed([1, key])
    assert len(resident) == 0
    assert resident.version == 0
