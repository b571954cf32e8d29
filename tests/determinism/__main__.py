"""Replay the golden vectors here: `python -m tests.determinism`; `--write` makes them anew."""

from __future__ import annotations

import json
import platform
import sys
import time

from tests.determinism.vectors import load_vectors, repeat_rounds, replay, save_vectors


def main() -> None:
    """Print one line of JSON: which Python, how many blocks, the last root, how long it took."""
    if sys.argv[1:] == ["--write"]:
        save_vectors()
    vectors = load_vectors()
    started = time.perf_counter()
    root = replay(vectors)
    line = {
        "python": platform.python_version(),
        "blocks": len(vectors.blocks),
        "transactions": sum(len(vector.block.transactions) for vector in vectors.blocks),
        "state_root": root,
        "rounds": repeat_rounds(),
        "seconds": round(time.perf_counter() - started, 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
