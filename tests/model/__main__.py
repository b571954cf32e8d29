"""An exhaustive check of `iemas.consensus.tendermint` at one height: ``python -m tests.model``.

The paper's asynchronous system is explored, run by the real code: n validators of equal power, of
which f = ⌊(n − 1) / 3⌋ are Byzantine, two valid values and an invalid one.

Checked in every reachable state:

- *agreement*: no two values have what a validator needs in order to decide;
- *validity*: the invalid value never has;
- *no contradiction* (every interleaving only): no correct validator votes twice at one place, that
  is in one round with one kind of vote, or at an earlier place than before.

Two searches: `tests.model.interleavings` takes steps in every order; `tests.model.layers` goes
place by place, which covers the same schedules in far fewer states, so more rounds and validators.

How few states stand for all schedules. Each of these makes more happen than can, or merges states
that differ in names only, so no schedule is missed:

- Messages are never used up, and a step may use any of those that exist: loss, delay, duplication
  and every order of delivery are covered. A rule needs votes for one value, or for nil, and one
  proposal; so it is enough to offer it all correct votes, the Byzantine votes for that value, and
  one proposal at a time.
- Byzantine validators have sent every vote for every value from the start. As a step may do
  without, they equivocate, are silent, or anything between, towards each validator differently.
- A Byzantine validator proposes in every round, and has sent every proposal with every valid round:
  what a correct proposer might send is among them.
- Any rule that can fire may fire, in any order; any timeout may fire at any time.
- Every step starts from a sign state and an empty log: validators crash and restart at every point.
  One that loses steps in which it signed nothing is as if it had not taken them yet.
- Steps in which a validator signs nothing are taken together with the next one in which it does:
  others cannot see them, and messages do not go away while they wait.
- The valid value only decides what a correct proposer proposes, so it is left out.
- Validators that could decide go on. What can be decided can be decided in every later state, so it
  is enough to look at what can be decided in each state.
- States that differ in the names of correct validators, or of the two valid values, are one.

Not covered: more rounds than given; more values; unequal power; liveness (tests/property/consensus
has schedules that must terminate); which votes and proposals are remembered, and in which order the
rules fire if several can (unit and property tests); the engine around the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from iemas.consensus.tendermint import Tendermint
from tests.broken_machines import (
    NeverLocks,
    UnlocksOnAnyQuorum,
    UnlocksOnEarlierQuorum,
    VotesAgainAfterRestart,
    halve_quorum,
)
from tests.model.interleavings import Interleavings
from tests.model.layers import Layers
from tests.model.search import Report, search
from tests.model.validators import (
    DECISION_RULE,
    RULES,
    ByzantineProposers,
    CorrectValidators,
)

SpaceType = Callable[[CorrectValidators], Any]

WHOLE: list[tuple[SpaceType, int, int]] = [
    (Interleavings, 2, 4),
    (Layers, 4, 4),
    (Layers, 3, 7),
    (Layers, 2, 10),
]
BROKEN: list[tuple[SpaceType, int, type[Tendermint], type[ByzantineProposers]]] = [
    (Interleavings, 2, NeverLocks, ByzantineProposers),
    (Layers, 2, UnlocksOnAnyQuorum, ByzantineProposers),
    (Layers, 3, UnlocksOnEarlierQuorum, ByzantineProposers),
    (Interleavings, 2, Tendermint, halve_quorum(ByzantineProposers)),
    (Interleavings, 2, VotesAgainAfterRestart, ByzantineProposers),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument(
        "--counterexamples", action="store_true", help="print how broken variants fail"
    )
    arguments = parser.parse_args()
    failed = False
    for space_type, rounds, committee in WHOLE:
        validators = CorrectValidators(rounds=rounds, committee=committee)
        space = space_type(validators)
        print(f"{space_type.__name__}, {rounds} rounds, {committee} validators:", flush=True)
        report = run(space)
        failed |= report.broken is not None
        if report.broken:
            show(space, report)
        fired = [validators.fired[rule] for rule in (DECISION_RULE, *RULES)]
        print(f"  rules: each fired in {min(fired):,} situations or more")
        if isinstance(space, Interleavings):
            dependence = space.find_dependence()
            failed |= dependence is not None
            print(f"  votes that depend on votes at their own or a later place: {dependence}")
    for space_type, rounds, machine_type, set_type in BROKEN:
        validators = CorrectValidators(rounds=rounds, machine_type=machine_type, set_type=set_type)
        space = space_type(validators)
        print(f"broken on purpose: {machine_type.__name__} with {set_type.__name__}", flush=True)
        report = run(space)
        failed |= report.broken is None
        if arguments.counterexamples:
            show(space, report)
    print("FAILED" if failed else "all as it should be")
    return int(failed)


def run(space: Any) -> Report[Any]:
    started_s = time.perf_counter()
    report = search(space)
    took_s = time.perf_counter() - started_s
    print(
        f"  {report.states:,} states, {report.transitions:,} transitions, depth {report.depth}, "
        f"decisions possible in {report.deciding:,} states, {took_s:.1f} s"
    )
    print(f"  broken: {report.broken}", flush=True)
    return report


def show(space: Any, report: Report[Any]) -> None:
    for number, state in enumerate(report.way):
        print(f"  step {number}")
        for line in space.describe(state):
            print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
