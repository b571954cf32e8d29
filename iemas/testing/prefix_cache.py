"""A paged KV cache with prefix reuse, as vLLM's block manager keeps one. Pure.

Physical blocks hold `block_size` tokens each. A block in use has references; one without is free,
and a free block keeps its contents, and its key, until it is handed out again: the one that was
freed longest ago first. A request's blocks are freed tail first, so that the front of a prefix,
which more prompts share, lives longest. Two requests that compute one prefix at once leave it in
two blocks: the key is stored twice, and later removed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from iemas.core.digest import ResidentBlocks
from iemas.core.errors import InternalError


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Full blocks, consecutive in one prompt, can be reused from now on.

    `parent` is the key of the block before them; without one, `cache_salt` is in the first key.
    """

    keys: tuple[int, ...]
    parent: int | None
    token_ids: tuple[int, ...]
    cache_salt: str


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks were overwritten."""

    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """All blocks were forgotten."""


CacheEvent = BlocksStored | BlocksRemoved | BlocksCleared


@dataclass(slots=True)
class _Block:
    key: int | None = None
    references: int = 0


@dataclass(slots=True)
class _State:
    blocks: list[_Block]
    free: dict[int, None]
    by_key: dict[int, dict[int, None]] = field(default_factory=dict)


class PrefixCache:
    """The block pool of one server.

    `resident` follows the pool; `events` collects what happened, if asked for, until taken.
    """

    def __init__(self, block_count: int, *, record_events: bool = False) -> None:
        self.resident = ResidentBlocks()
        self._record = record_events
        self._events: list[CacheEvent] = []
        self._state = _State(
            blocks=[_Block() for _ in range(block_count)],
            free=dict.fromkeys(range(block_count)),
        )

    @property
    def free_count(self) -> int:
        """How many blocks no request uses."""
        return len(self._state.free)

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return len(self._state.blocks)

    def find_prefix(self, keys: Sequence[int], limit: int) -> list[int]:
        """Find blocks that hold the leading keys, at most `limit`; they are not taken yet."""
        found: list[int] = []
        for key in keys[:limit]:
            holders = self._state.by_key.get(key)
            if not holders:
                break
            found.append(next(iter(holders)))
        return found

    def count_free(self, blocks: Sequence[int]) -> int:
        """Count which of these blocks are free, so that taking them shrinks the free pool."""
        return sum(block in self._state.free for block in blocks)

    def take(self, blocks: Sequence[int]) -> None:
        """Add a reference to each of the blocks."""
        for block in blocks:
            self._state.free.pop(block, None)
            self._state.blocks[block].references += 1

    def allocate(self, count: int) -> list[int]:
        """Hand out free blocks, those freed longest ago first; their contents are removed.

        Raises: InternalError if there are too few: the caller keeps count.
        """
        if count > self.free_count:
            raise InternalError(f"{count} blocks wanted, {self.free_count} free")
        chosen = [block for block, _ in zip(self._state.free, range(count), strict=False)]
        removed: list[int] = []
        for block in chosen:
            key = self._state.blocks[block].key
            if key is not None:
                removed.append(key)
                self._forget(block, key)
        if removed:
            self.resident.apply_removed(removed)
            self._emit(BlocksRemoved(tuple(removed)))
        self.take(chosen)
        return chosen

    def store(self, blocks: Sequence[int], stored: BlocksStored) -> None:
        """Name blocks by their keys: they are full and can be reused."""
        for block, key in zip(blocks, stored.keys, strict=True):
            self._state.blocks[block].key = key
            self._state.by_key.setdefault(key, {})[block] = None
        self.resident.apply_stored(stored.keys)
        self._emit(stored)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop a request's references, tail first."""
        for block in reversed(blocks):
            entry = self._state.blocks[block]
            entry.references -= 1
            if entry.references == 0:
                self._state.free[block] = None

    def clear(self) -> None:
        """Forget all contents; blocks in use stay in use and lose their names."""
        for block in self._state.blocks:
            block.key = None
        self._state.by_key.clear()
        self.resident.apply_cleared()
        self._emit(BlocksCleared())

    def take_events(self) -> list[CacheEvent]:
        """Give what happened since the last call."""
        events, self._events = self._events, []
        return events

    def _forget(self, block: int, key: int) -> None:
        holders = self._state.by_key[key]
        del holders[block]
        if not holders:
            del self._state.by_key[key]
        self._state.blocks[block].key = None

    def _emit(self, event: CacheEvent) -> None:
        if self._record:
            self._events.append(event)
