"""Run many seeds, on several processes, and sum up what was reached.

A run that tested nothing must show: `find_unreached` names every class of fault and every rare
state that no seed came to. Each process has a hash seed of its own, and every so-many-th seed
runs in two of them, which must agree byte for byte.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from tests.simulation.plan import Kind
from tests.simulation.run import SAFETY, Outcome, run_seed

TWICE_EVERY = 25
"""One seed in so many is run in two processes."""

MARKET_EVERY = 5
"""One seed in so many is a whole market, where both kinds are run."""

LEDGER_STATES = (
    "crash written, not synced: lost",
    "crash written, not synced: torn",
    "crash synced, before anything is sent",
    "crash synced, between two messages",
    "crash between writes",
    "crash of all at once",
    "crash at write of block",
    "crash at write of signed",
    "crash at write of valid",
    "torn writes",
    "restarts",
    "restarts within a height",
    "restarts with a lock",
    "slow writes",
    "skewed clocks",
    "drifting clocks",
    "storms",
    "partition both ways",
    "partition one way",
    "partition one link",
    "partition one machine",
    "deciders cut off",
    "ambushes",
    "mistakes",
    "messages lost",
    "messages cut",
    "messages duplicated",
    "messages reordered",
    "messages malformed",
    "twins",
    "villain silent",
    "villain silent to some",
    "villain double vote",
    "villain double proposal",
    "villain invalid proposal",
    "villain votes for everything",
    "villain forgotten lock",
    "villain vote out of place",
    "villain claimed lock",
    "villain garbage",
    "villain replay",
    "villain forged vote",
    "villain forged commit",
    "villain false snapshot",
    "villain false status",
    "villain false accusation",
    "villain plot",
    "event proposal_refused",
    "event double_vote_seen",
    "event snapshot_adopted",
    "event snapshot_peer_left",
    "refused InvalidSnapshotError",
    "refused InvalidSignatureError",
    "refused InvalidBlockError",
    "refused RemoteProtocolError",
    "refused OutOfHeightError",
    "heights decided in a later round",
    "rounds above 0",
    "rounds above 2",
    "locks",
    "locks moved to another value",
    "proposals of a valid value",
    "evidence found",
    "changes of the validators",
    "terms",
    "terms cut short",
    "batches of blocks served",
    "kills for good of the auctioneer",
    "transaction Settle OK",
    "transaction Settle STALE_TOTAL",
    "transaction Settle OVER_RESERVATION",
    "transaction Settle OVER_ALLOWANCE",
    "transaction Evidence OK",
    "transaction Evidence INVALID_ENTRY",
    "transaction Evidence WRONG_SIGNER",
    "transaction Stake OK",
    "transaction Unstake OK",
    "transaction AbsenceVote OK",
    "transaction ReturnToDuty OK",
    "transaction RoundRoots OK",
    "transaction PostHold OK",
    "transaction VoidHold OK",
    "transaction CommitAsk OK",
    "transaction RevealAsk OK",
    "transaction VoteParameter OK",
    "transaction VoteModel OK",
)
"""What a long run of ledger markets comes to at least once."""

MARKET_STATES = (
    "crash between writes",
    "crash of all at once",
    "crash at write of block",
    "crash at write of signed",
    "crash at write of transcript",
    "crash at write of unsettled",
    "crash at write of sealed_ask",
    "torn writes",
    "restarts within a height",
    "slow writes",
    "skewed clocks",
    "storms",
    "partition one way",
    "messages malformed",
    "heights decided in a later round",
    "locks",
    "proposals of a valid value",
    "terms",
    "terms cut short",
    "changes of the validators",
    "event peer_suspected",
    "event peer_disconnected",
    "event peer_readmitted",
    "messages of peers cut off",
    "event round_cleared",
    "event round_verified",
    "event transcript_refused",
    "event ask_committed",
    "event ask_revealing",
    "event ask_not_replaced",
    "changed asks",
    "bonds burned of a villain",
    "rounds refused",
    "villain withheld shares",
    "villain false shares",
    "villain wrong clearing",
    "villain another model",
    "event model_stands",
    "transaction VoteModel OK",
    "refused StaleReportError",
    "refused FutureReportError",
    "refused InvalidReceiptError",
    "refused MalformedMessageError",
    "refused InvalidSignatureError",
    "requester refused NotAuctioneerError",
    "transaction AbsenceVote OK",
    "transaction CommitAsk OK",
    "transaction Evidence OK",
    "transaction PlaceDeposit OK",
    "transaction ReturnToDuty OK",
    "transaction RevealAsk OK",
    "transaction RoundRoots OK",
    "transaction Settle OK",
    "turns of conversations",
    "kills for good of the auctioneer",
    "kills for good with a bid on its way",
    "stuck bids",
    "event lease_expired",
    "event lease_gained",
    "event auctioneer_mute",
)
"""What a long run of whole markets comes to at least once."""

STATES = {Kind.LEDGER: LEDGER_STATES, Kind.MARKET: MARKET_STATES}
ENOUGH_SEEDS = {Kind.LEDGER: 500, Kind.MARKET: 150}
"""From so many seeds on every fault and every state must have been reached."""


@dataclass
class Report:
    """What came of many seeds."""

    first_seed: int
    broken: str
    seeds: Counter[str] = field(default_factory=Counter)
    cpu_s: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    durations_ms: dict[str, list[int]] = field(default_factory=dict)
    digests: dict[tuple[str, int], str] = field(default_factory=dict)
    ran_twice: int = 0
    failures: list[Outcome] = field(default_factory=list)
    wall_s: float = 0.0

    def take(self, outcome: Outcome) -> None:
        """Add one seed, or one that ran for the second time."""
        kind, place = outcome.kind.value, (outcome.kind.value, outcome.seed)
        known = self.digests.get(place)
        if known is not None:
            self.ran_twice += 1
            if known != outcome.digest:
                outcome.exit_code = SAFETY
                outcome.failure = "determinism: another history in another process"
                self.failures.append(outcome)
            return
        self.digests[place] = outcome.digest
        if outcome.exit_code:
            self.failures.append(outcome)
        self.seeds[kind] += 1
        self.cpu_s[kind] += outcome.cpu_s
        self.counts.setdefault(kind, Counter()).update(outcome.counts)
        for what, duration_ms in outcome.durations_ms.items():
            self.durations_ms.setdefault(f"{kind} {what}", []).append(duration_ms)

    @property
    def exit_code(self) -> int:
        """Give 129 if safety was broken, else 127, else 128, else 0."""
        codes = {outcome.exit_code for outcome in self.failures}
        return next((code for code in (129, 127, 128) if code in codes), 0)

    def find_unreached(self) -> list[str]:
        """Name the faults and states that no seed came to, of kinds with enough seeds."""
        return [
            f"{kind}: {state}"
            for kind, states in STATES.items()
            if self.seeds[kind.value] >= ENOUGH_SEEDS[kind]
            for state in states
            if not self.counts[kind.value][state]
        ]

    def summarise(self) -> dict[str, Any]:
        """Give it all as plain values."""
        return {
            "first_seed": self.first_seed,
            "broken": self.broken,
            "seeds": dict(self.seeds),
            "seeds_run_in_two_processes": self.ran_twice,
            "wall_s": round(self.wall_s, 1),
            "seeds_per_s": round(sum(self.seeds.values()) / max(self.wall_s, 1e-9), 2),
            "cpu_s_per_seed": {
                kind: round(self.cpu_s[kind] / number, 3) for kind, number in self.seeds.items()
            },
            "durations_ms": {w: _describe(d) for w, d in sorted(self.durations_ms.items())},
            "counts": {kind: dict(sorted(c.items())) for kind, c in sorted(self.counts.items())},
            "unreached": self.find_unreached(),
            "failures": [
                {
                    "exit_code": outcome.exit_code,
                    "failure": outcome.failure,
                    "reproduction": outcome.reproduction,
                }
                for outcome in self.failures
            ],
        }


def _describe(durations_ms: Sequence[int]) -> dict[str, int]:
    ordered = sorted(durations_ms)
    return {
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "most": ordered[-1],
    }


def run_campaign(
    kinds: Sequence[Kind], seeds: range, *, jobs: int, broken: str = ""
) -> Iterator[Report]:
    """Run seeds; give the report as it grows, and at last whole."""
    report = Report(seeds.start, broken)
    began_s = time.monotonic()
    work = [(_choose_kind(kinds, seed), seed) for seed in seeds]
    for outcome in _run_all(work, jobs, broken):
        report.take(outcome)
        report.wall_s = time.monotonic() - began_s
        yield report


def _choose_kind(kinds: Sequence[Kind], seed: int) -> Kind:
    if len(kinds) == 1:
        return kinds[0]
    return Kind.MARKET if seed % MARKET_EVERY == 0 else Kind.LEDGER


def _run_all(work: Sequence[tuple[Kind, int]], jobs: int, broken: str) -> Iterator[Outcome]:
    if jobs == 1:
        for kind, seed in work:
            yield run_seed(kind, seed, broken=broken)
        return
    pools = [_make_pool(number) for number in range(jobs)]
    try:
        futures: list[Future[Outcome]] = []
        for index, (kind, seed) in enumerate(work):
            futures.append(pools[index % jobs].submit(run_seed, kind, seed, broken=broken))
            if index % TWICE_EVERY == 0:
                other = pools[(index + 1) % jobs]
                futures.append(other.submit(run_seed, kind, seed, broken=broken))
        for future in futures:
            yield future.result()
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _make_pool(number: int) -> ProcessPoolExecutor:
    """Make a process of its own, in which sets are in an order of their own."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = str(number + 1)
    try:
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        pool.submit(os.getpid).result()
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before
    return pool
