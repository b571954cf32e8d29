"""The node's clock: the only place of the daemon that reads the time."""

from __future__ import annotations

import time


def get_now_ms() -> int:
    """Give Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
