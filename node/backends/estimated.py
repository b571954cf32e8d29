"""A guess at what a server's cache holds, from what it served: for servers without KV events.

Least recently used blocks are dropped beyond a bound. The server may hold less (it evicts by its
own rules) or more (it serves others too), so the digest is marked as estimated. Pure.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from iemas.core.digest import split_keys
from iemas.core.types import require


class EstimatedCache:
    """Block keys of served prompts, the most recently used `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        require(capacity > 0, f"capacity must be positive, got {capacity}")
        self._capacity = capacity
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        self.version = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add_served(self, chain: bytes) -> None:
        """Take in the chain of a prompt and its answer that were just computed."""
        changed = False
        # The tail first: the front of a prefix is the last to be dropped.
        for key in reversed(list(split_keys(chain))):
            changed = changed or key not in self._keys
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._capacity:
            self._keys.popitem(last=False)
        self.version += changed

    def clear(self) -> None:
        """Forget everything, as when the server was found to have started again."""
        if self._keys:
            self._keys.clear()
            self.version += 1

    def snapshot(self) -> bytes:
        """Give the keys sorted and packed."""
        keys = np.frombuffer(b"".join(self._keys), dtype=">u8").astype(np.uint64)
        keys.sort()
        return keys.astype(">u8").tobytes()
