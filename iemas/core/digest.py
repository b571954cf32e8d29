"""Prefix blocks: vLLM's block-hash chain, and what is known of a cache from it.

vLLM keeps the KV cache in blocks of a fixed number of tokens and names each full block by a hash
over its parent's hash and its own token ids, so that equal prefixes have equal names on every
server. The same chain is computed here, byte for byte::

    H(i) = sha256(cbor(H(i - 1), (token ids of block i), extra)),  H(-1) = sha256(cbor(seed))

with ``extra = (("cache_salt", salt),)`` on the first block of a salted request and None otherwise.
A *block key* is the low 64 bits of a hash, big-endian, as vLLM publishes it; a *chain* is the keys
of a prompt's full blocks, packed in order. Source: docs/guides/vllm.md; design §8.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt
from cbor2 import dumps

from iemas.core.encoding import encode_canonical
from iemas.core.errors import InvalidInputError
from iemas.core.report import BLOCK_KEY_BYTES
from iemas.core.types import require

NONE_HASH: Final = sha256(encode_canonical("vllm-none-hash")).digest()
"""Parent of every first block, when vLLM runs without ``PYTHONHASHSEED``."""

_KEY: Final = BLOCK_KEY_BYTES


class InvalidBlockEventError(InvalidInputError):
    """A cache event does not fit the rules of block keys; the sender's stream is not to be used."""


class BlockChain:
    """The hash chain of one growing token sequence, such as a session.

    It holds the full hash of the last full block and the tokens after it, so that extending costs
    only the new tokens. `keys` are the packed block keys so far, 8 bytes a full block.
    """

    __slots__ = ("_extra", "_keys", "_tail", "_tip", "block_size")

    def __init__(self, block_size: int, *, cache_salt: str = "") -> None:
        require(block_size > 0, f"block_size must be positive, got {block_size}")
        self.block_size = block_size
        self._tip = NONE_HASH
        self._extra: tuple[tuple[str, str], ...] | None = None
        if cache_salt:
            self._extra = (("cache_salt", cache_salt),)
        self._keys = bytearray()
        self._tail: tuple[int, ...] = ()

    @property
    def keys(self) -> bytes:
        """The packed keys of all full blocks so far."""
        return bytes(self._keys)

    @property
    def tip(self) -> bytes:
        """The full 32-byte hash of the last full block; `NONE_HASH` before the first."""
        return self._tip

    @property
    def tail(self) -> tuple[int, ...]:
        """The tokens after the last full block."""
        return self._tail

    @property
    def token_count(self) -> int:
        """How many tokens the chain covers, the tail included."""
        return len(self._keys) // _KEY * self.block_size + len(self._tail)

    def copy(self) -> BlockChain:
        """Branch off: extending the copy leaves this chain as it is."""
        other = BlockChain(self.block_size)
        other._tip, other._extra, other._tail = self._tip, self._extra, self._tail
        other._keys = bytearray(self._keys)
        return other

    def extend(self, token_ids: Sequence[int]) -> bytes:
        """Append tokens and give the packed keys of the blocks that became full.

        Raises: MalformedMessageError for a negative token id.
        """
        tokens = (*self._tail, *token_ids)
        require(min(tokens, default=0) >= 0, "token ids must not be negative")
        size, tip, extra = self.block_size, self._tip, self._extra
        full = len(tokens) // size * size
        new = bytearray()
        for start in range(0, full, size):
            # The tuple is what vLLM serialises; without dicts or floats cbor2's default form is
            # the canonical one.
            tip = sha256(dumps((tip, tokens[start : start + size], extra))).digest()
            new += tip[-_KEY:]
            extra = None
        self._tip, self._extra, self._tail = tip, extra, tokens[full:]
        self._keys += new
        return bytes(new)


def compute_block_keys(token_ids: Sequence[int], block_size: int, *, cache_salt: str = "") -> bytes:
    """Compute the chain of a prompt: the packed 8-byte keys of its full blocks, in order.

    Raises: MalformedMessageError for a negative token id or a block size below 1.
    """
    return BlockChain(block_size, cache_salt=cache_salt).extend(token_ids)


def split_keys(packed: bytes) -> Iterator[bytes]:
    """Give the 8-byte keys of a packed sequence one by one."""
    return (packed[i : i + _KEY] for i in range(0, len(packed), _KEY))


class DigestIndex:
    """Fast membership in a cache digest's `blocks`, at 8 bytes a block.

    blocks: packed block keys, strictly increasing.
    Raises: MalformedMessageError if they are not.
    """

    __slots__ = ("_keys",)

    def __init__(self, blocks: bytes) -> None:
        self._keys = _unpack(blocks)
        require(
            bool(np.all(self._keys[1:] > self._keys[:-1])),
            "a digest's blocks must be sorted, each once",
        )

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, bytes) or len(key) != _KEY:
            return False
        value = np.uint64(int.from_bytes(key, "big"))
        at = int(self._keys.searchsorted(value))
        return at < len(self._keys) and bool(self._keys[at] == value)

    def count_matched(self, chain: bytes) -> int:
        """Count the leading blocks of a chain that are resident.

        Raises: MalformedMessageError if the chain is not whole keys.
        """
        # Most chains share nothing with most caches: one probe settles those.
        if chain[:_KEY] not in self:
            _require_whole(chain)
            return 0
        wanted = _unpack(chain)
        at = self._keys.searchsorted(wanted)
        missing = np.take(self._keys, at, mode="clip") != wanted
        return int(missing.argmax()) if missing.any() else len(wanted)


def count_matched_blocks(chain: bytes, resident: DigestIndex | Container[bytes]) -> int:
    """Count how many leading blocks of a chain are resident.

    chain: packed block keys. resident: a digest's index, or any container of 8-byte keys.
    Raises: MalformedMessageError if the chain is not whole keys.
    """
    if isinstance(resident, DigestIndex):
        return resident.count_matched(chain)
    _require_whole(chain)
    matched = 0
    for key in split_keys(chain):
        if key not in resident:
            break
        matched += 1
    return matched


class ResidentBlocks:
    """What a cache holds, kept by its own events: stored, removed, cleared.

    A cache can hold one block twice (two requests computed it at once, or it lies in two media)
    and then removes it twice, so references are counted. `version` rises with every change of the
    set, so that a digest is signed again only when it differs.
    """

    __slots__ = ("_counts", "_snapshot", "unknown_removals", "version")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._snapshot: bytes | None = b""
        self.version = 0
        self.unknown_removals = 0

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and int.from_bytes(key, "big") in self._counts

    def apply_stored(self, keys: Sequence[int]) -> None:
        """Count one reference more for each key.

        Raises: InvalidBlockEventError for a key that is not 64 bits; then nothing is changed.
        """
        _validate_keys(keys)
        before = len(self._counts)
        for key in keys:
            self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._counts) != before:
            self._changed()

    def apply_removed(self, keys: Sequence[int]) -> None:
        """Count one reference less for each key; a block without references is gone.

        A removal of an unknown block is counted in `unknown_removals` and otherwise ignored: it
        was stored before we listened, so it never entered the set.
        Raises: InvalidBlockEventError for a key that is not 64 bits; then nothing is changed.
        """
        _validate_keys(keys)
        before = len(self._counts)
        for key in keys:
            count = self._counts.get(key, 0)
            if count > 1:
                self._counts[key] = count - 1
            elif count == 1:
                del self._counts[key]
            else:
                self.unknown_removals += 1
        if len(self._counts) != before:
            self._changed()

    def apply_cleared(self) -> None:
        """Forget all blocks."""
        if self._counts:
            self._counts.clear()
            self._changed()

    def snapshot(self) -> bytes:
        """Give the resident keys sorted and packed, as `CacheDigest.blocks` wants them."""
        if self._snapshot is None:
            keys = np.fromiter(self._counts, dtype=np.uint64, count=len(self._counts))
            keys.sort()
            self._snapshot = keys.astype(">u8").tobytes()
        return self._snapshot

    def _changed(self) -> None:
        self.version += 1
        self._snapshot = None


def _validate_keys(keys: Sequence[int]) -> None:
    for key in keys:
        if not 0 <= key < 1 << 64:
            raise InvalidBlockEventError(f"a block key must be 64 bits, got {key}", key=key)


def _require_whole(packed: bytes) -> None:
    require(len(packed) % _KEY == 0, "packed block keys must be whole 8-byte keys")


def _unpack(packed: bytes) -> npt.NDArray[np.uint64]:
    _require_whole(packed)
    return np.frombuffer(packed, dtype=">u8").astype(np.uint64)
