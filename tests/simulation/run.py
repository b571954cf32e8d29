"""Run one seed: give what came of it, or how it failed."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.broken_rules import break_rule
from tests.simulation.checkers import BrokenPromiseError
from tests.simulation.ledger_market import LedgerMarket
from tests.simulation.plan import Kind, Plan, make_plan

CRASH, LIVENESS, SAFETY = 127, 128, 129


@dataclass
class Outcome:
    """What came of one seed. `exit_code` is 0, 127 crash, 128 liveness, 129 safety."""

    kind: Kind
    seed: int
    broken: str = ""
    exit_code: int = 0
    failure: str = ""
    digest: str = ""
    simulated_ms: int = 0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    durations_ms: dict[str, int] = field(default_factory=dict)
    account: list[str] = field(default_factory=list)

    @property
    def reproduction(self) -> str:
        """Give the command that replays it."""
        broken = f" --broken {self.broken}" if self.broken else ""
        return f"python -m tests.simulation --{self.kind} --seed {self.seed}{broken}"


def run_seed(kind: Kind, seed: int, *, broken: str = "", keep_account: bool = False) -> Outcome:
    """Run one seed, with a rule broken on purpose if one is named."""
    plan = make_plan(kind, seed)
    outcome = Outcome(kind, seed, broken)
    began_s = time.process_time()
    with break_rule(broken):
        _run(plan, outcome, keep_account=keep_account)
    outcome.cpu_s = time.process_time() - began_s
    return outcome


def _run(plan: Plan, outcome: Outcome, *, keep_account: bool) -> None:
    market = LedgerMarket(plan, keep_account=keep_account)
    try:
        market.run()
    except BrokenPromiseError as error:
        outcome.exit_code, outcome.failure = error.exit_code, str(error)
    except Exception as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
        outcome.exit_code = CRASH
        outcome.failure = f"{type(error).__name__} at {place}: {error}"
        if keep_account:
            market.watcher.account += traceback.format_exc().splitlines()
    watcher = market.watcher
    outcome.digest = watcher.digest
    outcome.counts = watcher.counts + Counter(
        {f"messages {what}": number for what, number in market.network.counts.items()}
    )
    outcome.durations_ms = watcher.durations_ms
    outcome.simulated_ms = watcher.now_ms()
    outcome.account = [*plan.describe(), *watcher.account]
