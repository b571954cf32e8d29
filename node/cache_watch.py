"""Reports the backend's prefix blocks as they change, and before a task's last receipt leaves.

A requester that goes on with its conversation at once finds the digest of its last turn already
there. Changes in a burst are reported together.
"""

from __future__ import annotations

import asyncio

from node.backends.base import Backend
from node.core import CacheChanged
from node.driver import Driver

SETTLE_S = 0.05


class CacheWatch:
    """Feeds one backend's cache snapshots to the core."""

    def __init__(self, driver: Driver, backend: Backend) -> None:
        self._driver = driver
        self._backend = backend
        self._reported_version = -1

    def flush(self) -> None:
        """Report the blocks now, if they changed since the last report."""
        version = self._backend.cache_version
        if version != self._reported_version:
            self._reported_version = version
            blocks = self._backend.cache_snapshot()
            self._driver.step(CacheChanged(blocks, estimated=self._backend.estimated))

    async def run(self) -> None:
        """Report changes until cancelled."""
        while True:
            self.flush()
            await self._backend.wait_cache_change(self._reported_version)
            await asyncio.sleep(SETTLE_S)
