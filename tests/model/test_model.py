"""The exhaustive check, reduced; ``python -m tests.model`` is the whole and says what it covers."""

from __future__ import annotations

import pytest

from tests.model.__main__ import BROKEN, SpaceType
from tests.model.interleavings import Interleavings
from tests.model.layers import Layers
from tests.model.search import Report, search
from tests.model.validators import (
    DECISION_RULE,
    RULES,
    ByzantineProposers,
    CorrectValidators,
)


def test_two_rounds_in_every_interleaving() -> None:
    validators = CorrectValidators(rounds=2)
    space = Interleavings(validators)
    report = search(space)
    assert report.broken is None
    assert (report.states, report.transitions, report.depth) == (28_907, 201_511, 12)
    assert report.deciding > 0
    assert all(validators.fired[rule] > 0 for rule in (DECISION_RULE, *RULES))
    assert space.find_dependence() is None


def test_three_rounds_place_by_place() -> None:
    report = search(Layers(CorrectValidators(rounds=3)))
    assert report.broken is None
    assert (report.states, report.deciding) == (28_874, 7_254)


def test_both_searches_find_the_same_to_be_decidable() -> None:
    """Of one round: what the places' quorums are in the end, and what they decide."""

    def find_ends(space_type: SpaceType) -> set[tuple[bool, ...]]:
        validators = CorrectValidators(rounds=1)
        space = space_type(validators)
        found, unexplored = set(), [space.get_start()]
        seen = set(unexplored)
        while unexplored:
            state = unexplored.pop()
            tallies = enumerate(space.get_tallies(state))
            found.add(tuple(validators.can_decide(value, tally) for value, tally in tallies))
            following = set(space.succeed(state)) - seen
            seen |= following
            unexplored += following
        return found

    assert find_ends(Interleavings) == find_ends(Layers)
    assert len(find_ends(Layers)) == 3  # A, B, nothing


@pytest.mark.parametrize(
    "broken", BROKEN, ids=lambda broken: f"{broken[2].__name__}-{broken[3].__name__}"
)
def test_broken_variants_have_a_counterexample(broken: tuple) -> None:
    space_type, rounds, machine_type, set_type = broken
    validators = CorrectValidators(rounds=rounds, machine_type=machine_type, set_type=set_type)
    space = space_type(validators)
    report: Report = search(space)
    expected = "contradiction" if machine_type.__name__.startswith("VotesAgain") else "agreement"
    assert expected in (report.broken or "")
    assert len(report.way) == report.depth + 1
    assert report.way[0] == space.get_start()
    assert all(space.describe(state) for state in report.way)


def test_a_byzantine_third_is_too_much() -> None:
    """With two of four validators Byzantine, the model finds what must go wrong."""

    class OneTooMany(CorrectValidators):
        def __init__(self) -> None:
            super().__init__(rounds=1, set_type=ByzantineProposers)
            self.n_byzantine += 1
            self.n_correct -= 1

    assert "agreement" in (search(Interleavings(OneTooMany())).broken or "")
