"""How long the ledger takes to apply a block of settlements, signatures apart.

Each of `--totals` accounts has one co-signed total with one of `--providers` providers; each
provider settles its own in one transaction of one block. Beside them `--others` accounts only
exist. Figures, each of a replica of its own:

    check_tx_ms     what checking the transactions takes when they arrive, before the block: one
                    signature a transaction, two a total
    apply_ms        the block after that: what the rules themselves take
    cold_ms         the block without that: it has to check every signature itself
    copy_ms, rules_ms, invariants_ms, root_ms
                    what `apply_ms` consists of: copying the tables, the transactions, checking the
                    invariants, the state root
    empty_ms        a block without transactions, on the same state

Figures are medians over `--repeats` replicas. Target: apply_ms ≤ 100 at 1,000 totals.

    python -m benchmarks.ledger_apply --json -
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks._report import add_json_option, write_report
from iemas.core.identity import forget_verdicts
from iemas.ledger import application
from iemas.ledger.application import LedgerApplication
from iemas.ledger.header import Block
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import ResultCode, Settle
from iemas.testing.chain import LedgerChain, make_genesis

ESCROW_MICROS = 4_000_000
AMOUNT_MICROS = 1_000


@dataclass
class Stopwatch:
    """Sums up how long some functions run."""

    seconds: dict[str, float] = field(default_factory=dict)

    def watch(self, owner: object, name: str, label: str) -> Callable[[], None]:
        """Time each call of `owner.name` from now on; give what undoes it."""
        original = getattr(owner, name)

        def timed(*args: object, **kwargs: object) -> object:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                self.seconds[label] = self.seconds.get(label, 0.0) + elapsed

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, original)


def make_chain(totals: int, providers: int, others: int) -> tuple[LedgerChain, Block]:
    """Make a ledger and the block that settles everything on it."""
    buyers = [f"buyer-{n}" for n in range(totals)]
    sellers = [f"seller-{n}" for n in range(providers)]
    idle = [f"other-{n}" for n in range(others)]
    chain = LedgerChain(
        make_genesis(accounts=(*buyers, *sellers, *idle), escrow_micros=ESCROW_MICROS)
    )
    transactions = []
    for index, seller in enumerate(sellers):
        entries = [
            chain.make_entry(buyer, seller, 0, AMOUNT_MICROS) for buyer in buyers[index::providers]
        ]
        transactions.append(chain.make_transaction(seller, Settle(tuple(entries))))
    return chain, chain.make_block(transactions)


def make_empty_block(chain: LedgerChain, replica: LedgerApplication) -> Block:
    """Make the block after the replica's last one, without transactions."""
    state = replica.state
    return chain.make_block(
        height=state.height + 1,
        state_root=state.compute_root(),
        results_root=state.facts.results_root,
    )


def measure(totals: int, providers: int, others: int, repeats: int) -> dict[str, object]:
    """Apply the block with and without checking its transactions first, and split the former."""
    chain, block = make_chain(totals, providers, others)
    checks, cold, warm, empty = [], [], [], []
    parts: dict[str, list[float]] = {}
    for _ in range(repeats):
        forget_verdicts()
        cold.append(time_block(chain.make_app(), block, chain)[0])
        forget_verdicts()
        replica = chain.make_app()
        started = time.perf_counter()
        for signed in block.transactions:
            replica.check_tx(signed)
        checks.append(time.perf_counter() - started)
        seconds, split, replica = time_block(replica, block, chain)
        warm.append(seconds)
        for label, value in split.items():
            parts.setdefault(label, []).append(value)
        empty.append(time_block(replica, make_empty_block(chain, replica), chain)[0])
    return {
        "totals": totals,
        "providers": providers,
        "accounts": len(replica.state.accounts),
        "records": sum(1 for _ in replica.state.iterate_records()),
        "repeats": repeats,
        "check_tx_ms": median_ms(checks),
        "cold_ms": median_ms(cold),
        "apply_ms": median_ms(warm),
        **{f"{label}_ms": median_ms(values) for label, values in parts.items()},
        "empty_ms": median_ms(empty),
    }


def time_block(
    replica: LedgerApplication, block: Block, chain: LedgerChain
) -> tuple[float, dict[str, float], LedgerApplication]:
    """Time one block; every settlement must have been paid."""
    watch = Stopwatch()
    undo = [
        watch.watch(LedgerState, "copy", "copy"),
        watch.watch(LedgerApplication, "_apply_transactions", "rules"),
        watch.watch(application, "check_invariants", "invariants"),
        watch.watch(LedgerState, "compute_root", "root"),
    ]
    started = time.perf_counter()
    finalized = replica.finalize_block(block)
    seconds = time.perf_counter() - started
    for restore in undo:
        restore()
    replica.commit()
    if any(result.code is not ResultCode.OK or result.detail for result in finalized.results):
        raise RuntimeError(f"{chain.chain_id}: a settlement was refused")
    return seconds, watch.seconds, replica


def median_ms(seconds: list[float]) -> float:
    """Give the median in milliseconds."""
    return round(statistics.median(seconds) * 1e3, 1)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_json_option(parser)
    parser.add_argument("--totals", type=int, default=1000, help="co-signed totals in the block")
    parser.add_argument("--providers", type=int, default=10, help="who settles them")
    parser.add_argument("--others", type=int, default=1000, help="accounts that do nothing")
    parser.add_argument("--repeats", type=int, default=7, help="replicas behind each median")
    given = parser.parse_args()
    results = [measure(given.totals, given.providers, given.others, given.repeats)]
    names = ("totals", "providers", "others", "repeats")
    parameters = {name: getattr(given, name) for name in names}
    write_report(
        given.json, name="ledger_apply", parameters=parameters, figures={"results": results}
    )


if __name__ == "__main__":
    main()
