"""Telling a person what is being waited for: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

PLAIN_EVERY_S = 2.0


@contextmanager
def show_progress(console: Console, first: str) -> Iterator[Callable[[str], None]]:
    """Give a function that replaces the line shown; it may be called from any thread.

    Where there is no terminal, lines are printed, at most one in two seconds.
    """
    if console.is_terminal:
        with console.status(first) as status:
            yield status.update
        return
    told_s = 0.0

    def tell(line: str) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= PLAIN_EVERY_S:
            told_s = time.monotonic()
            console.print(line, highlight=False, markup=False)

    tell(first)
    yield tell
