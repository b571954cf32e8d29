"""Every way to get a clearing wrong, each with the error that names it.

A corruption changes one thing and, where the changed clearing would give itself away by its sums
or its surcharges, mends these: so it is the rule in question that has to catch it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from auctioneer.mechanism import Certificate, Clearing
from auctioneer.mechanism.arrays import IntArray
from auctioneer.mechanism.errors import (
    CapacityExceededError,
    ComplementarySlacknessError,
    InfeasiblePairError,
    MalformedClearingError,
    PriceNotLeastError,
    UnknownModeError,
    WrongBonusError,
    WrongSurchargeError,
    WrongWelfareError,
)
from iemas.core.errors import InternalError
from tests.property.mechanism.duals import (
    draw_tight_predecessors,
    expect_refusal,
    is_optimal_dual,
    list_other_optimal_duals,
)
from tests.property.mechanism.invariants import get_own_gains, split_every_way

Corruption = tuple[Clearing, type[Exception]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A market, its honest clearing, and dice."""

    welfare: IntArray
    slots: IntArray
    honest: Clearing
    rng: np.random.Generator

    @property
    def matched(self) -> IntArray:
        """The matched tasks, in any order."""
        return self.rng.permutation(np.flatnonzero(self.honest.assignment >= 0))

    @property
    def unmatched(self) -> IntArray:
        """The other tasks, in any order."""
        return self.rng.permutation(np.flatnonzero(self.honest.assignment < 0))

    @property
    def used(self) -> IntArray:
        """How many tasks each provider has."""
        matched = self.honest.assignment[self.honest.assignment >= 0]
        return np.bincount(matched, minlength=len(self.slots))

    def change(self, **changes: Any) -> Clearing:
        return dataclasses.replace(self.honest, **changes)

    def match(self, assignment: IntArray) -> Clearing:
        """Claim another matching, its total and the surcharges that go with it."""
        total = int(get_own_gains(self.welfare, assignment).sum())
        return self.mend(self.change(assignment=assignment, welfare_micros=total))

    def mend(self, clearing: Clearing) -> Clearing:
        """Charge what the mode's rule gives for a changed matching, price or bonus, if anything."""
        try:
            surcharges = split_every_way(self.welfare, self.slots, clearing)[clearing.mode]
        except (InternalError, ValueError):
            # There are no fallbacks from a matching that is not optimal, or over capacity.
            return clearing
        return dataclasses.replace(clearing, surcharges=surcharges)

    def judge(self, assignment: IntArray) -> Iterator[Corruption]:
        """Say what is wrong with another matching, unless it is optimal too."""
        at = np.flatnonzero(assignment >= 0)
        if (self.welfare[at, assignment[at]] <= 0).any():
            yield self.match(assignment), InfeasiblePairError
            return
        claim = self.match(assignment)
        if claim.welfare_micros < self.honest.welfare_micros:
            yield claim, ComplementarySlacknessError
            # As it stands, with the total of the honest one.
            yield self.change(assignment=assignment), WrongWelfareError


def replace_at(values: IntArray, index: Any, value: Any) -> IntArray:
    changed = values.copy()
    changed[index] = value
    return changed


def drop_a_task(case: Case) -> Iterator[Corruption]:
    for task in case.matched[:2]:
        yield from case.judge(replace_at(case.honest.assignment, task, -1))


def swap_two_tasks(case: Case) -> Iterator[Corruption]:
    matched = case.matched
    for one, other in itertools.pairwise(matched[:5]):
        swapped = case.honest.assignment.copy()
        swapped[[one, other]] = swapped[[other, one]]
        yield from case.judge(swapped)


def let_another_task_in(case: Case) -> Iterator[Corruption]:
    for out, task in zip(case.matched[:4], case.unmatched[:4], strict=False):
        taken = replace_at(case.honest.assignment, task, case.honest.assignment[out])
        yield from case.judge(replace_at(taken, out, -1))


def move_a_task_to_a_free_slot(case: Case) -> Iterator[Corruption]:
    free = case.rng.permutation(np.flatnonzero(case.used < case.slots))
    for task, provider in zip(case.matched[:4], free, strict=False):
        yield from case.judge(replace_at(case.honest.assignment, task, provider))


def match_over_capacity(case: Case) -> Iterator[Corruption]:
    for provider in case.rng.permutation(np.flatnonzero(case.used == case.slots))[:3]:
        wanting = (case.welfare[:, provider] > 0) & (case.honest.assignment != provider)
        for task in np.flatnonzero(wanting)[:1]:
            full = replace_at(case.honest.assignment, task, provider)
            yield case.match(full), CapacityExceededError


def match_an_infeasible_pair(case: Case) -> Iterator[Corruption]:
    pairs = case.rng.permutation(np.argwhere(case.welfare <= 0))
    for task, provider in pairs[:2]:
        pair = replace_at(case.honest.assignment, task, provider)
        yield case.match(pair), InfeasiblePairError


def state_another_total(case: Case) -> Iterator[Corruption]:
    for change in (-1, 1, 2**40):
        yield case.change(welfare_micros=case.honest.welfare_micros + change), WrongWelfareError


def move_a_price_by_one(case: Case) -> Iterator[Corruption]:
    honest = case.honest.slot_prices
    for provider in case.rng.permutation(len(honest))[:3]:
        for change in (-1, 1):
            prices = replace_at(honest, provider, honest[provider] + change)
            if prices[provider] < 0:
                yield case.change(slot_prices=prices), MalformedClearingError
            elif is_optimal_dual(case.welfare, case.slots, prices, case.honest.welfare_micros):
                yield case.mend(case.change(slot_prices=prices)), PriceNotLeastError
            else:
                yield case.mend(case.change(slot_prices=prices)), ComplementarySlacknessError


def price_by_another_optimal_dual(case: Case) -> Iterator[Corruption]:
    """The greatest competitive prices, and those between: they prove the matching, not the π."""
    for prices in list_other_optimal_duals(case.welfare, case.slots, case.honest):
        assert is_optimal_dual(case.welfare, case.slots, prices, case.honest.welfare_micros)
        claim = case.mend(case.change(slot_prices=prices))
        yield claim, PriceNotLeastError
        forged = draw_tight_predecessors(case.welfare, claim, case.rng)
        error = expect_refusal(case.welfare, prices, forged, claim.assignment)
        assert error is not None
        yield dataclasses.replace(claim, certificate=Certificate(forged)), error


def forge_a_predecessor(case: Case) -> Iterator[Corruption]:
    predecessors, prices = case.honest.certificate.predecessor_tasks, case.honest.slot_prices
    for provider in case.rng.permutation(len(prices))[:3]:
        for task in (-1, case.rng.integers(len(case.welfare))):
            forged = replace_at(predecessors, provider, task)
            error = expect_refusal(case.welfare, prices, forged, case.honest.assignment)
            if error is not None:
                yield case.change(certificate=Certificate(forged)), error


def move_a_bonus(case: Case) -> Iterator[Corruption]:
    honest = case.honest.vcg_bonuses
    for provider in case.rng.permutation(len(honest))[:2]:
        for change in (-1, 1, 1000):
            bonuses = replace_at(honest, provider, honest[provider] + change)
            if bonuses[provider] < 0:
                yield case.change(vcg_bonuses=bonuses), MalformedClearingError
            else:
                yield case.mend(case.change(vcg_bonuses=bonuses)), WrongBonusError


def give_one_bonus_to_another(case: Case) -> Iterator[Corruption]:
    one, other = case.rng.permutation(len(case.slots))[:2]
    bonuses = case.honest.vcg_bonuses.copy()
    bonuses[[one, other]] = bonuses[[other, one]]
    if bonuses[one] != bonuses[other]:
        yield case.mend(case.change(vcg_bonuses=bonuses)), WrongBonusError


def charge_a_task_otherwise(case: Case) -> Iterator[Corruption]:
    honest = case.honest.surcharges
    for task in case.rng.permutation(len(honest))[:2]:
        for change in (-1, 1):
            surcharges = replace_at(honest, task, honest[task] + change)
            yield case.change(surcharges=surcharges), WrongSurchargeError


def move_shares_between_tasks(case: Case) -> Iterator[Corruption]:
    """Of the same provider, so that it gains as much, and of two."""
    for provider in case.rng.permutation(len(case.slots)):
        tasks = np.flatnonzero(case.honest.assignment == provider)
        if len(tasks) > 1:
            pair = case.rng.permutation(tasks)[:2]
            moved = replace_at(case.honest.surcharges, pair, case.honest.surcharges[pair] + [1, -1])
            yield case.change(surcharges=moved), WrongSurchargeError
            break
    pair = case.matched[:2]
    if len(pair) > 1:
        moved = replace_at(case.honest.surcharges, pair, case.honest.surcharges[pair] + [1, -1])
        yield case.change(surcharges=moved), WrongSurchargeError


def name_another_mode(case: Case) -> Iterator[Corruption]:
    yield case.change(mode=case.honest.mode.upper()), UnknownModeError
    for mode, surcharges in split_every_way(case.welfare, case.slots, case.honest).items():
        if surcharges.tolist() != case.honest.surcharges.tolist():
            yield case.change(mode=mode), WrongSurchargeError


def break_an_array(case: Case) -> Iterator[Corruption]:
    """The wrong length, type or range: of each array in turn."""
    n_tasks, n_providers = case.welfare.shape
    ranges = {
        "assignment": (-2, n_providers),
        "slot_prices": (-1, 2**50 + 1),
        "vcg_bonuses": (-1, 2**50 + 1),
        "surcharges": (),
        "predecessor_tasks": (-2, n_tasks),
    }
    for name, outside in ranges.items():
        in_certificate = name == "predecessor_tasks"
        honest = getattr(case.honest.certificate if in_certificate else case.honest, name)
        broken = [honest[1:], honest[None], honest.astype(float), honest.astype(np.int32), None]
        broken += [replace_at(honest, 0, value) for value in outside]
        for values in broken:
            changes = {"certificate": Certificate(values)} if in_certificate else {name: values}
            yield case.change(**changes), MalformedClearingError
    for total in (float(case.honest.welfare_micros), np.int64(case.honest.welfare_micros), None):
        yield case.change(welfare_micros=total), MalformedClearingError


CORRUPTIONS: list[Callable[[Case], Iterator[Corruption]]] = [
    drop_a_task,
    swap_two_tasks,
    let_another_task_in,
    move_a_task_to_a_free_slot,
    match_over_capacity,
    match_an_infeasible_pair,
    state_another_total,
    move_a_price_by_one,
    price_by_another_optimal_dual,
    forge_a_predecessor,
    move_a_bonus,
    give_one_bonus_to_another,
    charge_a_task_otherwise,
    move_shares_between_tasks,
    name_another_mode,
    break_an_array,
]
