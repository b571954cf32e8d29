"""What a seed decides before anything happens: who is there, how bad the world is, for how long."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from random import Random

from iemas.core.params import MarketParams
from iemas.core.types import MICROS_PER_CREDIT
from iemas.testing.network import NetworkFaults
from tests.simulation.villains import (
    CONSENSUS_TRICKS,
    FALSE_SNAPSHOT,
    PLOT,
    TRICKS,
    WITHHELD_REVEAL,
)

MOST_SKEW_MS = 1_500
MOST_DRIFT_PPM = 20_000
ASK_BOND_MICROS = MICROS_PER_CREDIT


class Kind(StrEnum):
    """What is simulated."""

    LEDGER = "ledger"
    """Consensus, ledger and mempool, with clients that sign settlements and all else."""
    MARKET = "market"
    """Whole nodes, with rounds, tasks and requesters."""


@dataclass(frozen=True)
class VillainPlan:
    """One faulty validator: which tricks it plays how eagerly, and whether it has a twin."""

    tricks: tuple[str, ...]
    eagerness: float
    has_twin: bool


@dataclass(frozen=True)
class Plan:
    """What a seed decides beforehand; the times and places of faults come from it as well."""

    kind: Kind
    seed: int
    stakes: tuple[int, ...]
    observers: int
    villains: dict[int, VillainPlan]
    """By number of the validator; together less than a third of the stake."""
    params: MarketParams
    network: NetworkFaults
    snapshot_interval: int
    """After how many blocks a node takes a snapshot."""
    observers_late_ms: int
    """How long after the others the observers start: then they are far behind."""
    faults_ms: int
    transactions: int
    requesters: int
    skews_ms: tuple[int, ...]
    drifts_ppm: tuple[int, ...]
    crashes: int
    kills: int
    changed_asks: int
    """How often an operator configures another ask and starts the node anew."""

    outages: int
    storms: int
    partitions: int
    slow_disks: int
    isolate_deciders: float
    """How likely the first node that decides a height is cut off before it can tell."""

    ambushes: float
    """How likely the first node that precommits a block is muted as it does, in bad weather."""

    mistakes: int
    """How often a machine takes others for silent that are not."""

    @property
    def validators(self) -> int:
        """How many validators genesis names."""
        return len(self.stakes)

    def describe(self) -> list[str]:
        """Give the plan in lines."""
        skipped = ("params", "seed", "kind")
        lines = [
            f"{f.name}: {getattr(self, f.name)}" for f in fields(self) if f.name not in skipped
        ]
        defaults = MarketParams()
        changed = {
            name: getattr(self.params, name)
            for name in MarketParams.__dataclass_fields__
            if getattr(self.params, name) != getattr(defaults, name)
        }
        return [f"{self.kind} {self.seed}", *lines, f"params: {changed}"]


def make_plan(kind: Kind, seed: int) -> Plan:
    """Let a seed decide."""
    random = Random(f"plan {kind} {seed}")
    n = random.choice((4, 4, 4, 4, 5, 5, 6, 7, 8, 10) if kind is Kind.LEDGER else (4, 4, 4, 5, 7))
    is_late = seed % 3 == 0 and kind is Kind.LEDGER
    is_plotted = kind is Kind.LEDGER and random.random() < 0.12
    if is_plotted:
        n = random.choice((4, 4, 7))
        stakes = (2 * MICROS_PER_CREDIT,) * n
        plotter = VillainPlan(tricks=(PLOT,), eagerness=1.0, has_twin=False)
        villains = dict.fromkeys(sorted(random.sample(range(n), (n - 1) // 3)), plotter)
    else:
        stakes = _draw_stakes(random, n)
        villains = _draw_villains(random, kind, stakes, (FALSE_SNAPSHOT,) if is_late else ())
    worst = random.random() < 0.5
    machines = n + 2
    faults_ms = random.randint(5_000, 60_000 // n)
    return Plan(
        kind=kind,
        seed=seed,
        stakes=stakes,
        observers=random.choice((1, 2)) if kind is Kind.LEDGER else 1,
        villains=villains,
        params=_draw_params(random, kind, has_villains=bool(villains)),
        network=NetworkFaults(
            least_delay_ms=1,
            most_delay_ms=random.choice((5, 20) if is_plotted else (5, 20, 60, 120)),
            loss_ppm=0 if is_plotted else random.choice((0, 10_000, 50_000, 150_000)),
            duplication_ppm=random.choice((0, 10_000, 50_000)),
        ),
        snapshot_interval=2 + seed % 5 if kind is Kind.LEDGER else 500,
        observers_late_ms=faults_ms * 2 // 3 if is_late else 0,
        faults_ms=faults_ms,
        transactions=random.randint(20, 100),
        requesters=random.choice((1, 2, 3)),
        skews_ms=_draw_deviations(random, machines, MOST_SKEW_MS),
        drifts_ppm=_draw_deviations(random, machines, MOST_DRIFT_PPM),
        crashes=random.randint(0, 8) if worst else random.randint(0, 2),
        kills=random.randint(0, 3),
        changed_asks=random.randint(1, 6) if kind is Kind.MARKET else 0,
        outages=int(random.random() < 0.15),
        storms=random.randint(0, 4) if worst and not is_plotted else random.randint(0, 1),
        partitions=random.randint(0, 3),
        slow_disks=random.randint(0, 3),
        isolate_deciders=random.choice((0.0, 0.0, 0.1, 0.4)),
        ambushes=0.7 if is_plotted else random.choice((0.0, 0.0, 0.2, 0.5)),
        mistakes=random.choice((0, 0, 2, 10)) if kind is Kind.LEDGER else 0,
    )


def _draw_stakes(random: Random, n: int) -> tuple[int, ...]:
    """Equal, or unequal with nobody at a third or more."""
    if random.random() < 0.5:
        return (2 * MICROS_PER_CREDIT,) * n
    while True:
        stakes = tuple(random.randint(2, 6) * MICROS_PER_CREDIT for _ in range(n))
        if 3 * max(stakes) < sum(stakes):
            return stakes


def _draw_villains(
    random: Random, kind: Kind, stakes: tuple[int, ...], always: tuple[str, ...]
) -> dict[int, VillainPlan]:
    """Some or none, with some tricks each, and those that they always have."""
    if random.random() < 0.45:
        return {}
    chosen: list[int] = []
    for number in random.sample(range(len(stakes)), random.randint(1, len(stakes) // 3)):
        if 3 * (sum(stakes[n] for n in chosen) + stakes[number]) < sum(stakes):
            chosen.append(number)
    known = CONSENSUS_TRICKS if kind is Kind.LEDGER else (*TRICKS, WITHHELD_REVEAL)
    return {
        number: VillainPlan(
            tricks=tuple(dict.fromkeys((*always, *random.sample(known, random.randint(1, 6))))),
            eagerness=random.choice((0.05, 0.2, 0.5)),
            has_twin=kind is Kind.LEDGER and random.random() < 0.4,
        )
        for number in sorted(chosen)
    }


def _draw_params(random: Random, kind: Kind, *, has_villains: bool) -> MarketParams:
    is_sealed = kind is Kind.MARKET or random.random() < 0.4
    # Where nobody lies, evidence may run out and validators may be jailed for their absence.
    is_short = kind is Kind.LEDGER and not has_villains and random.random() < 0.5
    return MarketParams(
        term_ms=random.choice((1_500, 3_000)),
        settle_terms=random.choice((2, 6)) if kind is Kind.LEDGER else 40,
        idle_block_interval_ms=random.choice((1_000, 5_000)),
        evidence_window_ms=4_000 if is_short else 86_400_000,
        unbonding_ms=5_000 if is_short else 90_000_000,
        absence_limit=2 if is_short else 1_000,
        jail_ms=2_000,
        sealed_asks=is_sealed,
        ask_epoch_ms=6_000 if kind is Kind.MARKET else 4_000,
        ask_reveal_ms=4_000 if kind is Kind.MARKET else 500,
        ask_bond_micros=ASK_BOND_MICROS,
        idempotency_window_ms=2_000,
    )


def _draw_deviations(random: Random, machines: int, most: int) -> tuple[int, ...]:
    """Most clocks are right, or none is."""
    if random.random() < 0.5:
        return (0,) * machines
    return tuple(random.randint(-most, most) for _ in range(machines))
