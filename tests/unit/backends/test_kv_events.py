"""The picture of a server's cache follows its events, and is dropped where it would be wrong."""

from collections.abc import Sequence

import msgspec
import pytest

from iemas.core.digest import InvalidBlockEventError, compute_block_keys, split_keys
from node.backends.kv_events import CacheBook

SIZE = 4


def stored(token_ids: Sequence[int], *, salt: str = "") -> dict[str, object]:
    keys = [
        int.from_bytes(key, "big")
        for key in split_keys(compute_block_keys(token_ids, SIZE, cache_salt=salt))
    ]
    return {
        "type": "BlockStored",
        "block_hashes": keys,
        "parent_block_hash": None,
        "token_ids": list(token_ids),
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [[salt] if salt else None] + [None] * (len(keys) - 1),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
        "field_of_a_later_vllm": 1,
    }


def removed(keys: Sequence[object], group: int = 0) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": keys, "medium": "GPU", "group_idx": group}


def batch(*events: dict[str, object], ts: float = 1.0) -> bytes:
    return msgspec.msgpack.encode((ts, events, 0))


def test_stored_removed_and_cleared_are_applied() -> None:
    book = CacheBook(SIZE)
    event = stored(range(8), salt="a")
    assert book.apply(0, batch(event))
    assert len(book.resident) == 2
    assert book.apply(1, batch(removed(event["block_hashes"][1:])))
    assert len(book.resident) == 1
    assert book.apply(2, batch({"type": "AllBlocksCleared"}))
    assert len(book.resident) == 0
    assert book.next_sequence == 3


def test_a_gap_is_reported_and_changes_nothing() -> None:
    book = CacheBook(SIZE)
    book.apply(0, batch(stored(range(4))))
    assert not book.apply(2, batch(stored(range(8))))
    assert len(book.resident) == 1
    assert book.next_sequence == 1


def test_a_batch_is_applied_once() -> None:
    book = CacheBook(SIZE)
    event = stored(range(4))
    book.apply(0, batch(event))
    assert book.apply(0, batch(event))
    book.apply(1, batch(removed(event["block_hashes"]), ts=2.0))
    assert len(book.resident) == 0


def test_numbers_that_start_again_mean_a_new_server() -> None:
    book = CacheBook(SIZE)
    book.apply(0, batch(stored(range(8)), ts=1.0))
    book.apply(1, batch(stored(range(4, 8)), ts=2.0))
    assert book.apply(0, batch(stored(range(20, 24)), ts=9.0))
    assert len(book.resident) == 1
    assert book.next_sequence == 1


def test_a_new_server_seen_late_is_a_gap() -> None:
    book = CacheBook(SIZE)
    for i in range(3):
        book.apply(i, batch(stored(range(4)), ts=1.0))
    assert not book.apply(1, batch(stored(range(4)), ts=9.0))
    assert len(book.resident) == 0
    assert book.next_sequence == 0


def test_hashes_may_be_published_in_full() -> None:
    book = CacheBook(SIZE)
    event = stored(range(4))
    full = b"\1" * 24 + event["block_hashes"][0].to_bytes(8, "big")
    book.apply(0, batch(event | {"block_hashes": [full]}))
    assert book.resident.snapshot() == full[-8:]


@pytest.mark.parametrize(
    "event",
    [
        stored(range(8)) | {"token_ids": list(range(1, 9))},
        stored(range(8), salt="a") | {"extra_keys": [["b"], None]},
        stored(range(8)) | {"extra_keys": [["unexpected"], None]},
    ],
)
def test_other_hashes_than_ours_are_refused(event: dict[str, object]) -> None:
    with pytest.raises(InvalidBlockEventError, match="PYTHONHASHSEED"):
        CacheBook(SIZE).apply(0, batch(event))


def test_another_block_size_is_refused() -> None:
    with pytest.raises(InvalidBlockEventError, match="blocks of 4 tokens, expected 16"):
        CacheBook(16).apply(0, batch(stored(range(8))))


def test_hashes_are_checked_again_after_a_restart() -> None:
    book = CacheBook(SIZE)
    book.apply(0, batch(stored(range(8))))
    with pytest.raises(InvalidBlockEventError):
        book.apply(0, batch(stored(range(8)) | {"token_ids": [0] * 8}, ts=9.0))


def test_blocks_of_other_kinds_of_attention_are_left_out() -> None:
    book = CacheBook(SIZE)
    event = stored(range(4))
    sliding = event | {"kv_cache_spec_kind": "sliding_window", "group_idx": 1}
    book.apply(0, batch(event, sliding))
    book.apply(1, batch(removed(event["block_hashes"], group=1), ts=2.0))
    assert len(book.resident) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode((1.0,)),
        msgspec.msgpack.encode((1.0, [{"type": "Unknown"}], 0)),
        msgspec.msgpack.encode((1.0, [{"type": "BlockRemoved", "block_hashes": ["x"]}], 0)),
        msgspec.msgpack.encode((1.0, [{"type": "BlockRemoved", "block_hashes": [-1]}], 0)),
    ],
)
def test_malformed_batches_are_refused(payload: bytes) -> None:
    with pytest.raises(InvalidBlockEventError):
        CacheBook(SIZE).apply(0, payload)
