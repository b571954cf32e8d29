"""The estimate keeps the most recently used blocks, prefixes longest."""

import pytest

from iemas.core.digest import DigestIndex, compute_block_keys, count_matched_blocks
from iemas.core.errors import MalformedMessageError
from node.backends.estimated import EstimatedCache

OLD, NEW = (compute_block_keys(range(start, start + 16), 4) for start in (0, 100))


def test_what_was_served_is_taken_for_resident() -> None:
    cache = EstimatedCache(100)
    cache.add_served(OLD)
    assert count_matched_blocks(OLD, DigestIndex(cache.snapshot())) == 4
    assert count_matched_blocks(NEW, DigestIndex(cache.snapshot())) == 0


def test_the_oldest_prefix_loses_its_tail_first() -> None:
    cache = EstimatedCache(6)
    cache.add_served(OLD)
    cache.add_served(NEW)
    index = DigestIndex(cache.snapshot())
    assert len(cache) == 6
    assert count_matched_blocks(OLD, index) == 2
    assert count_matched_blocks(NEW, index) == 4


def test_the_version_rises_only_with_the_set() -> None:
    cache = EstimatedCache(6)
    cache.add_served(OLD)
    version = cache.version
    cache.add_served(OLD)
    assert cache.version == version
    cache.add_served(NEW)
    assert cache.version == version + 1
    cache.clear()
    cache.clear()
    assert cache.version == version + 2
    assert cache.snapshot() == b""


def test_a_bound_is_needed() -> None:
    with pytest.raises(MalformedMessageError, match="capacity"):
        EstimatedCache(0)
