"""Counting votes, evidence, and bounded memory. Source: docs/spec/consensus.md T6 to T10."""

from __future__ import annotations

from random import Random

import pytest

from iemas.consensus.votes import MAX_ROUNDS_AHEAD, HeightVotes
from iemas.consensus.voting import DoubleVote, Vote, VoteKind
from iemas.core.envelope import Signed
from iemas.core.errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from iemas.core.types import Hash
from tests.committee import HEIGHT, A, B, C, Committee

PREVOTE, PRECOMMIT = VoteKind.PREVOTE, VoteKind.PRECOMMIT
FOUR = Committee([1, 1, 1, 1])


def make_votes(*signed: Signed[Vote], committee: Committee = FOUR) -> HeightVotes:
    votes = HeightVotes(HEIGHT, committee.validators)
    for vote in signed:
        votes.add(vote, current_round=0)
    return votes


def count_remembered(votes: HeightVotes) -> int:
    return sum(
        len(counted) for tally in votes._tallies.values() for counted in tally.counted.values()
    )


# --- T6: quorums ---------------------------------------------------------------------------------


def test_a_quorum_for_a_value_is_more_than_two_thirds() -> None:
    votes = make_votes(FOUR.prevote(0, A), FOUR.prevote(1, A), FOUR.prevote(2, B))
    assert not votes.has_quorum(0, PREVOTE, A)
    assert votes.has_quorum_of_any(0, PREVOTE)
    assert votes.add(FOUR.prevote(3, A), current_round=0)
    assert votes.has_quorum(0, PREVOTE, A)
    assert not votes.has_quorum(0, PREVOTE, B)
    assert votes.find_quorum_values() == ((0, A),)


def test_nil_has_quorums_too() -> None:
    votes = make_votes(*(FOUR.precommit(number, None) for number in range(3)))
    assert votes.has_quorum(0, PRECOMMIT, None)
    assert votes.find_quorum_values() == ()


def test_rounds_and_kinds_are_counted_apart() -> None:
    votes = make_votes(
        FOUR.prevote(0, A), FOUR.precommit(1, A), FOUR.prevote(2, A, at=1), FOUR.precommit(3, A)
    )
    for number in (0, 1):
        for kind in (PREVOTE, PRECOMMIT):
            assert not votes.has_quorum_of_any(number, kind)


def test_power_counts_not_heads() -> None:
    rich = Committee([7, 1, 1, 1])
    votes = make_votes(
        *(rich.prevote(number, A) for number in (1, 2, 3)),
        rich.precommit(0, A),
        committee=rich,
    )
    assert not votes.has_quorum_of_any(0, PREVOTE)
    assert votes.has_quorum(0, PRECOMMIT, A)  # 7 of 10


def test_exactly_two_thirds_is_no_quorum() -> None:
    three = Committee([1, 1, 1])
    votes = make_votes(three.prevote(0, A), three.prevote(1, A), committee=three)
    assert not votes.has_quorum(0, PREVOTE, A)
    votes.add(three.prevote(2, A), current_round=0)
    assert votes.has_quorum(0, PREVOTE, A)


def test_duplicates_count_once() -> None:
    votes = make_votes(FOUR.prevote(0, A))
    for _ in range(5):
        assert not votes.add(FOUR.prevote(0, A), current_round=0)
    assert count_remembered(votes) == 1
    assert votes.evidence == ()


def test_a_quorums_votes_are_given_in_id_order() -> None:
    signed = [FOUR.precommit(number, A) for number in range(4)]
    votes = make_votes(*reversed(signed), FOUR.prevote(1, None))
    assert votes.get_votes(0, PRECOMMIT, A) == tuple(signed)
    assert votes.get_all_votes(0) == (FOUR.prevote(1, None), *signed)
    assert votes.get_votes(3, PRECOMMIT, A) == ()


def test_a_value_is_backed_by_a_correct_vote_of_either_kind() -> None:
    votes = make_votes(FOUR.prevote(0, A), FOUR.precommit(1, A))
    assert not votes.has_correct_vote(0, A)
    votes.add(FOUR.precommit(0, A), current_round=0)
    assert votes.has_correct_vote(0, A)
    assert not votes.has_correct_vote(0, B)


# --- T7: rounds ahead ----------------------------------------------------------------------------


def test_the_latest_round_with_more_than_a_third_is_found() -> None:
    votes = make_votes(
        FOUR.prevote(0, A, at=1),
        FOUR.precommit(1, B, at=1),
        FOUR.prevote(0, None, at=2),
        FOUR.prevote(1, None, at=2),
        FOUR.prevote(2, A, at=3),
    )
    assert votes.find_round_ahead(0) == 2
    assert votes.find_round_ahead(1) == 2
    assert votes.find_round_ahead(2) is None


def test_one_signer_of_many_votes_is_still_one() -> None:
    votes = make_votes(FOUR.prevote(0, A, at=1), FOUR.precommit(0, A, at=1))
    assert votes.find_round_ahead(0) is None


# --- T8: double votes ----------------------------------------------------------------------------


def test_a_double_vote_is_evidence_and_counts_once() -> None:
    votes = make_votes(FOUR.prevote(0, B), FOUR.prevote(0, A), FOUR.prevote(1, A))
    assert votes.evidence == (DoubleVote(FOUR.prevote(0, A), FOUR.prevote(0, B)),)
    assert votes.get_votes(0, PREVOTE, A) == (FOUR.prevote(1, A),)
    votes.add(FOUR.prevote(2, C), current_round=0)
    assert votes.has_quorum_of_any(0, PREVOTE)
    votes = make_votes(FOUR.prevote(0, B), FOUR.prevote(0, A), FOUR.prevote(1, A))
    assert not votes.has_quorum_of_any(0, PREVOTE)


def test_nil_and_a_block_contradict_each_other() -> None:
    votes = make_votes(FOUR.precommit(2, A), FOUR.precommit(2, None))
    assert votes.evidence == (DoubleVote(FOUR.precommit(2, None), FOUR.precommit(2, A)),)


def test_votes_of_different_rounds_and_kinds_do_not_contradict() -> None:
    votes = make_votes(FOUR.prevote(0, A), FOUR.precommit(0, None), FOUR.prevote(0, B, at=1))
    assert votes.evidence == ()


def test_one_piece_of_evidence_a_signer_is_kept() -> None:
    votes = make_votes(
        *(FOUR.prevote(3, Hash(bytes([number]) * 32)) for number in range(50)),
        FOUR.prevote(1, A),
        FOUR.prevote(1, B),
    )
    assert [evidence.first.signer_id for evidence in votes.evidence] == [FOUR.ids[1], FOUR.ids[3]]


def test_a_double_vote_counts_for_the_quorums_value_once_others_back_it() -> None:
    """A faulty validator cannot hide a quorum by telling this node another value first."""
    votes = make_votes(FOUR.prevote(0, B), FOUR.prevote(0, None), FOUR.prevote(1, A))
    assert not votes.add(FOUR.prevote(0, A), current_round=0)
    votes.add(FOUR.prevote(2, A), current_round=0)
    assert votes.add(FOUR.prevote(0, A), current_round=0)
    assert votes.has_quorum(0, PREVOTE, A)
    assert not votes.add(FOUR.prevote(0, A), current_round=0)


def test_contradicting_votes_back_nothing() -> None:
    """Only first votes let further ones count, so faulty validators cannot back each other."""
    seven = Committee([1] * 7)
    votes = make_votes(
        *(seven.prevote(number, B) for number in (0, 1)),
        *(seven.prevote(number, A) for number in (0, 1)),
        *(seven.prevote(number, A) for number in (2, 3)),
        *(seven.prevote(number, A) for number in (0, 1)),
        committee=seven,
    )
    assert len(votes.get_votes(0, PREVOTE, A)) == 2


def test_evidence_must_contradict() -> None:
    good = DoubleVote(FOUR.prevote(0, None), FOUR.prevote(0, A))
    assert good.first.signer_id == FOUR.ids[0]
    for first, second in (
        (FOUR.prevote(0, A), FOUR.prevote(0, A)),
        (FOUR.prevote(0, A), FOUR.prevote(0, None)),
        (FOUR.prevote(0, A), FOUR.prevote(1, B)),
        (FOUR.prevote(0, A), FOUR.precommit(0, B)),
        (FOUR.prevote(0, A), FOUR.prevote(0, B, at=1)),
        (FOUR.prevote(0, A), FOUR.sign(0, Vote(HEIGHT + 1, 0, PREVOTE, B))),
    ):
        with pytest.raises(MalformedMessageError):
            DoubleVote(first, second)


# --- T9, T10: what is refused, what is forgotten -------------------------------------------------


def test_unknown_signers_are_refused() -> None:
    five = Committee([1] * 5)
    (outsider,) = (n for n in range(5) if five.ids[n] not in FOUR.validators)
    votes = make_votes()
    with pytest.raises(RemoteProtocolError, match="no validator"):
        votes.add(five.prevote(outsider, A), current_round=0)
    assert count_remembered(votes) == 0


def test_votes_of_another_height_are_the_callers_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        make_votes().add(FOUR.sign(0, Vote(HEIGHT - 1, 0, PREVOTE, A)), current_round=0)


def test_of_rounds_far_ahead_a_signers_latest_are_kept() -> None:
    votes = make_votes(*(FOUR.prevote(0, A, at=number) for number in (5, 9, 7, 8, 6)))
    kept = [number for number in range(20) if votes.get_votes(number, PREVOTE, A)]
    assert kept == [8, 9]
    assert not votes.add(FOUR.precommit(0, A, at=7), current_round=0)
    assert votes.add(FOUR.precommit(0, A, at=8), current_round=0)


def test_the_first_round_that_is_too_far_counts_as_such() -> None:
    votes = make_votes(*(FOUR.prevote(0, A, at=number) for number in (2, 5, 6)))
    assert [number for number in range(9) if votes.get_votes(number, PREVOTE, A)] == [5, 6]


def test_a_dropped_vote_counts_no_more() -> None:
    votes = make_votes(*(FOUR.prevote(number, A, at=6) for number in (0, 1, 2)))
    assert votes.has_quorum(6, PREVOTE, A)
    for number in (7, 8):
        votes.add(FOUR.prevote(0, B, at=number), current_round=0)
    assert votes.get_votes(6, PREVOTE, A) == (FOUR.prevote(1, A, at=6), FOUR.prevote(2, A, at=6))
    assert not votes.has_quorum(6, PREVOTE, A)


def test_one_signers_far_rounds_cost_no_other_signers() -> None:
    votes = make_votes(*(FOUR.prevote(number, A, at=6) for number in (1, 2)))
    for number in range(5, 100):
        votes.add(FOUR.prevote(0, B, at=number), current_round=0)
    assert len(votes.get_votes(6, PREVOTE, A)) == 2
    assert votes.find_round_ahead(0) == 6


def test_rounds_up_to_the_next_one_are_always_kept() -> None:
    votes = make_votes(*(FOUR.prevote(0, A, at=number) for number in (50, 60)))
    for number in range(14):
        assert votes.add(FOUR.prevote(0, A, at=number), current_round=10) == (number <= 11)


def test_rounds_that_came_near_do_not_count_as_ahead() -> None:
    votes = make_votes(*(FOUR.prevote(0, A, at=number) for number in (2, 3)))
    for number in (5, 6):
        votes.add(FOUR.prevote(0, A, at=number), current_round=3)
    kept = [number for number in range(9) if votes.get_votes(number, PREVOTE, A)]
    assert kept == [2, 3, 5, 6]


def test_memory_is_bounded_whatever_is_signed() -> None:
    seven = Committee([1] * 7)
    votes = HeightVotes(HEIGHT, seven.validators)
    random = Random(1)
    current_round = 2
    for _ in range(20_000):
        number = random.randrange(7)
        value = random.choice([None, A, B, C, Hash(random.randbytes(32))])
        far = random.choice([random.randrange(4), random.randrange(2**31)])
        votes.add(
            seven.vote(number, random.choice([PREVOTE, PRECOMMIT]), value, at=far),
            current_round=current_round,
        )
    rounds = {number for number, _ in votes._tallies}
    assert len(rounds) <= current_round + 2 + 7 * MAX_ROUNDS_AHEAD
    assert count_remembered(votes) <= len(rounds) * 2 * 7 * 3
    assert len(votes.evidence) == 7
