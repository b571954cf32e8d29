"""How long a node takes to start, and what it holds, after many blocks.

A follower of four validators takes `--blocks` blocks with one transaction each into its store, as a
node does; then it is started from that store twice, with its own last snapshot and without, each
time in a process of its own. Figures, `open_s` being the store's own check of all rows:

    blocks_per_s                                how fast blocks were taken in
    open_s, with_snapshot_s, by_replay_s        the start
    rss_mb, rss_mb_per_1000_blocks              of the process that took the blocks in
    snapshot_ms, snapshot_bytes, database_mb

    python -m benchmarks.restart --blocks 10000 --json -
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._report import add_json_option, write_report
from iemas.consensus.chain import Chain
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import BlockAnnouncement, Commit, CommittedBlock
from iemas.core.vote import Vote, VoteKind
from iemas.ledger.snapshot import take_snapshot
from iemas.ledger.transaction import FundEscrow
from iemas.testing.chain import LedgerChain, make_genesis
from node.storage import Storage

VALIDATORS = ("node-1", "node-2", "node-3", "node-4")
FOLLOWER = "observer"
BLOCK_MS = 1_000
SAMPLES = 4


def read_rss_mb() -> float:
    """Read how much memory this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1_024


def make_tools() -> LedgerChain:
    """Make genesis and everybody's keys; its ledger stays at genesis."""
    return LedgerChain(make_genesis(validators=VALIDATORS, available_micros=10**9))


def make_engine(tools: LedgerChain, storage: Storage) -> TendermintEngine:
    """Make the follower's engine."""
    return TendermintEngine(
        tools.make_app(),
        genesis=tools.genesis,
        chain_id=tools.chain_id,
        signer=tools.get_signer(FOLLOWER),
        read_blocks=storage.read_blocks,
    )


def decide(tools: LedgerChain, chain: Chain, number: int) -> CommittedBlock:
    """Let the validators decide a block with one transaction."""
    body = FundEscrow(tools.hub, 1)
    transaction = tools.make_transaction("alice", body, nonce=number)
    proposer = tools.get_name(chain.validators.get_proposer(0))
    now_ms = tools.now_ms + number * BLOCK_MS
    block = chain.make_block([transaction], signer=tools.get_signer(proposer), now_ms=now_ms)
    vote = Vote(block.height, 0, VoteKind.PRECOMMIT, block.hash)
    precommits = tuple(tools.get_signer(name).sign(vote) for name in VALIDATORS[:3])
    return CommittedBlock(block, Commit(block.height, 0, block.hash, precommits))


def fill(path: Path, blocks: int) -> dict[str, Any]:
    """Take blocks in as a node does."""
    tools = make_tools()
    maker = Chain(tools.make_app(), chain_id=tools.chain_id, read_blocks=lambda *_: [])
    samples: list[float] = []
    spent_s = 0.0
    with Storage(path, chain_id=tools.chain_id) as storage:
        engine = make_engine(tools, storage)
        sender = tools.get_node("node-1")
        for number in range(1, blocks + 1):
            committed = decide(tools, maker, number)
            maker.apply(committed)
            maker.take_applied()
            maker.take_journal()
            started = time.perf_counter()
            now_ms = committed.block.time_ms
            ready = engine.step(BlockAnnouncement(committed), sender=sender, now_ms=now_ms)
            storage.write(ready.persist, engine.take_journal())
            engine.take_applied()
            spent_s += time.perf_counter() - started
            if number % (blocks // SAMPLES) == 0:
                samples.append(read_rss_mb())
        started = time.perf_counter()
        snapshot = take_snapshot(engine.state)
        snapshot_ms = (time.perf_counter() - started) * 1_000
    grown = (samples[-1] - samples[0]) / (blocks * (SAMPLES - 1) / SAMPLES) * 1_000
    return {
        "blocks_per_s": round(blocks / spent_s),
        "rss_mb": round(samples[-1], 1),
        "rss_mb_per_1000_blocks": round(grown, 2),
        "snapshot_ms": round(snapshot_ms, 1),
        "snapshot_bytes": sum(len(leaf) for leaf in snapshot.leaves),
        "database_mb": round(path.stat().st_size / 1e6, 1),
    }


def start(path: Path, *, use_snapshot: bool) -> dict[str, float]:
    """Start from the store; give how long that took."""
    tools = make_tools()
    started = time.perf_counter()
    with Storage(path, chain_id=tools.chain_id) as storage:
        opened = time.perf_counter()
        snapshot = storage.load_snapshot() if use_snapshot else None
        engine = make_engine(tools, storage)
        first = snapshot.snapshot.height + 1 if snapshot is not None else 1
        engine.restore(storage.iterate_blocks(first), snapshot=snapshot)
        done = time.perf_counter()
    return {"height": engine.height, "open_s": opened - started, "start_s": done - started}


def run_apart(*arguments: str) -> dict[str, Any]:
    """Run a part of this benchmark in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.restart", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    found: dict[str, Any] = json.loads(output.stdout)
    return found


def run(blocks: int) -> dict[str, Any]:
    """Fill a store, then start from it both ways."""
    with tempfile.TemporaryDirectory(prefix="iemas-restart-") as folder:
        path = str(Path(folder) / "node.db")
        report = run_apart("--fill", path, "--blocks", str(blocks))
        with_snapshot = run_apart("--start", path, "--snapshot")
        by_replay = run_apart("--start", path)
    if with_snapshot["height"] != by_replay["height"] or by_replay["height"] != blocks:
        raise RuntimeError(f"not all is back: {with_snapshot}, {by_replay}")
    return {
        **report,
        "open_s": round(with_snapshot["open_s"], 2),
        "with_snapshot_s": round(with_snapshot["start_s"], 2),
        "by_replay_s": round(by_replay["start_s"], 2),
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--snapshot", action="store_true", help=argparse.SUPPRESS)
    add_json_option(parser)
    options = parser.parse_args()
    if options.fill is not None:
        print(json.dumps(fill(options.fill, options.blocks)))
    elif options.start is not None:
        print(json.dumps(start(options.start, use_snapshot=options.snapshot)))
    else:
        write_report(
            options.json,
            name="restart",
            parameters={"blocks": options.blocks},
            figures=run(options.blocks),
        )


if __name__ == "__main__":
    main()
