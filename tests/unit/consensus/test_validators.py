"""Power, quorums and turns. Source: docs/spec/consensus.md T1 to T3."""

from __future__ import annotations

from fractions import Fraction

import pytest

from iemas.consensus.validators import Validator, ValidatorSet
from iemas.core.errors import MalformedMessageError
from iemas.core.types import NodeId
from tests.committee import Committee

IDS = [NodeId(letter * 32) for letter in (b"a", b"b", b"c", b"d")]


def make_set(*powers: int) -> ValidatorSet:
    return ValidatorSet(Validator(*pair) for pair in zip(IDS, powers, strict=False))


def list_proposers(validators: ValidatorSet, rounds: int) -> str:
    return "".join(validators.get_proposer(number)[:1].decode() for number in range(rounds))


# --- T1, T2: members and quorums -----------------------------------------------------------------


def test_members_are_in_id_order() -> None:
    backwards = ValidatorSet(Validator(node_id, 1) for node_id in reversed(IDS))
    assert [validator.node_id for validator in backwards] == IDS
    assert len(backwards) == 4
    assert IDS[2] in backwards
    assert NodeId(b"x" * 32) not in backwards


@pytest.mark.parametrize(
    ("members", "why"),
    [([], "at least one"), ([Validator(IDS[0], 1), Validator(IDS[0], 2)], "named twice")],
)
def test_a_set_needs_members_each_named_once(members: list[Validator], why: str) -> None:
    with pytest.raises(MalformedMessageError, match=why):
        ValidatorSet(members)


@pytest.mark.parametrize(("node_id", "power"), [(IDS[0], 0), (NodeId(b"short"), 1)])
def test_ids_and_power_are_in_range(node_id: NodeId, power: int) -> None:
    with pytest.raises(MalformedMessageError):
        Validator(node_id, power)


def test_quorums_are_exact() -> None:
    """Source: T2: more than two thirds, more than one third; 2f + 1 and f + 1 for n = 3f + 1."""
    for total in [*range(1, 200), 2**53 + 1, 3 * 2**60, 3 * 2**60 + 1]:
        validators = make_set(total)
        for least, share in (
            (validators.quorum_power, Fraction(2, 3)),
            (validators.one_correct_power, Fraction(1, 3)),
        ):
            assert Fraction(least, total) > share
            assert Fraction(least - 1, total) <= share
    assert [(make_set(n).quorum_power, make_set(n).one_correct_power) for n in (4, 7, 10)] == [
        (3, 2),
        (5, 3),
        (7, 4),
    ]


def test_power_adds_up() -> None:
    validators = make_set(10, 20, 30)
    assert validators.total_power == 60
    assert validators.compute_power([IDS[0], IDS[2]]) == 40


# --- T3 to T5: turns -----------------------------------------------------------------------------


def test_equal_validators_propose_in_turn() -> None:
    assert list_proposers(make_set(1, 1, 1, 1), 9) == "abcdabcda"


def test_turns_are_in_proportion_to_power() -> None:
    turns = list_proposers(make_set(4, 3, 2, 1), 100)
    assert [turns.count(letter) for letter in "abcd"] == [40, 30, 20, 10]


def test_nobody_has_two_rounds_running() -> None:
    """Source: T3: a dead proposer with much power must not hold a height up for long."""
    assert list_proposers(make_set(30, 25, 25, 20), 60).count("aa") == 0
    assert list_proposers(make_set(2**53, 1, 1), 7) == "abacaba"
    assert list_proposers(make_set(7), 3) == "aaa"


# --- the hash in headers -------------------------------------------------------------------------


def test_the_hash_names_members_and_power_but_no_turns() -> None:
    """Source: T1."""
    validators = make_set(3, 1)
    later = ValidatorSet(Validator(v.node_id, v.power, 5 - v.power) for v in validators)
    assert validators.compute_hash() == later.compute_hash()
    others = [make_set(3, 2), make_set(3), make_set(1, 3), make_set(3, 1, 1)]
    assert len({validators.compute_hash(), *(other.compute_hash() for other in others)}) == 5


def test_the_committee_of_the_tests_proposes_in_number_order() -> None:
    committee = Committee([1] * 7)
    assert [committee.get_proposer(number) for number in range(8)] == [0, 1, 2, 3, 4, 5, 6, 0]
