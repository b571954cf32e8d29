"""Each rule of the paper's Algorithm 1, and what a restart and hostile peers must not change.

Source: Buchman, Kwon, Milosevic, "The latest gossip on BFT consensus", arXiv 1807.04938; the lines
are those of Algorithm 1. Four validators of equal power propose in turn; this node is number 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from iemas.consensus.tendermint import (
    Decided,
    Output,
    Propose,
    SignState,
    Step,
    Tendermint,
    Timeout,
    compute_timeout_ms,
)
from iemas.consensus.voting import NO_ROUND, Proposal, Vote, VoteKind
from iemas.core.errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from iemas.core.types import Hash
from tests.committee import HEIGHT, A, B, C, Committee

OWN = 3
FOUR = Committee([1, 1, 1, 1])
Outputs = tuple[Output, ...]


def prevote(value: Hash | None, *, at: int = 0) -> Vote:
    return Vote(HEIGHT, at, VoteKind.PREVOTE, value)


def precommit(value: Hash | None, *, at: int = 0) -> Vote:
    return Vote(HEIGHT, at, VoteKind.PRECOMMIT, value)


class Node:
    """A machine that hands its own votes in again, as its caller must."""

    def __init__(self, number: int = OWN, *, sign_state: SignState | None = None) -> None:
        self.number = number
        self.machine = FOUR.make_machine(number, sign_state=sign_state)

    def start(self) -> Outputs:
        return self.loop_back(self.machine.start())

    def loop_back(self, outputs: Outputs) -> Outputs:
        for output in outputs:
            if isinstance(output, Vote):
                signed = FOUR.sign(self.number, output)
                outputs += self.loop_back(self.machine.receive_vote(signed))
        return outputs

    def propose(
        self, value: Hash, *, at: int = 0, valid_at: int = NO_ROUND, is_valid: bool = True
    ) -> Outputs:
        signed = FOUR.propose(value, at=at, valid_at=valid_at)
        return self.loop_back(self.machine.receive_proposal(signed, is_valid=is_valid))

    def prevotes(self, value: Hash | None, *, at: int = 0, of: Iterable[int] = (0, 1)) -> Outputs:
        return self._votes(VoteKind.PREVOTE, value, at, of)

    def precommits(self, value: Hash | None, *, at: int = 0, of: Iterable[int] = (0, 1)) -> Outputs:
        return self._votes(VoteKind.PRECOMMIT, value, at, of)

    def _votes(self, kind: VoteKind, value: Hash | None, at: int, of: Iterable[int]) -> Outputs:
        outputs: Outputs = ()
        for number in of:
            signed = FOUR.vote(number, kind, value, at=at)
            outputs += self.loop_back(self.machine.receive_vote(signed))
        return outputs

    def time_out(self, step: Step, *, at: int = 0) -> Outputs:
        return self.loop_back(self.machine.receive_timeout(Timeout(step, at)))


@pytest.fixture
def node() -> Node:
    """A node in round 0 that waits for validator 0's proposal."""
    node = Node()
    node.start()
    return node


def lock(node: Node, value: Hash, *, at: int = 0) -> None:
    """Let the node lock on a value; nobody else precommits."""
    node.propose(value, at=at)
    outputs = node.prevotes(value, at=at)
    assert precommit(value, at=at) in outputs
    assert (node.machine.locked_value, node.machine.locked_round) == (value, at)


def fail_round(node: Node, *, at: int = 0) -> Outputs:
    """Let a round end without a decision."""
    node.precommits(None, at=at, of=(0, 1, 2))
    return node.time_out(Step.PRECOMMIT, at=at)


# --- lines 10 to 21: rounds begin ----------------------------------------------------------------


def test_a_height_starts_in_round_0_with_nothing_locked_or_valid() -> None:
    """Source: lines 1 to 10."""
    machine = Node().machine
    machine.start()
    assert machine.sign_state == SignState(HEIGHT, 0, Step.PROPOSE, None, -1, None, -1)
    assert machine.decision is None


def test_the_proposer_of_a_round_proposes_a_new_value_if_it_has_no_valid_one() -> None:
    """Source: lines 14, 17 to 19."""
    assert Node(0).start() == (Propose(0, None, NO_ROUND),)


def test_the_proposer_proposes_its_valid_value_again_with_its_valid_round() -> None:
    """Source: lines 15, 16, 19."""
    node = Node(1)
    node.start()
    node.propose(A)
    node.prevotes(A, of=(0, 2))
    assert Propose(1, A, 0) in fail_round(node)


def test_everyone_else_waits_for_the_proposal_for_a_bounded_time() -> None:
    """Source: lines 20 and 21."""
    assert Node().start() == (Timeout(Step.PROPOSE, 0),)


def test_nothing_happens_before_the_start_but_nothing_is_lost() -> None:
    """Source: line 10; messages of the next height wait in the log."""
    node = Node()
    assert node.propose(A) == ()
    assert node.prevotes(A) == ()
    assert node.time_out(Step.PROPOSE) == ()
    assert node.start() == (Timeout(Step.PROPOSE, 0), prevote(A), precommit(A))


def test_a_height_starts_once(node: Node) -> None:
    with pytest.raises(LocalProtocolError, match="started before"):
        node.machine.start()


# --- lines 22 to 27: a new value is proposed -----------------------------------------------------


def test_a_valid_new_value_is_prevoted(node: Node) -> None:
    """Source: lines 22 to 24, 27."""
    assert node.propose(A) == (prevote(A),)
    assert node.machine.step is Step.PREVOTE


def test_an_invalid_value_is_answered_with_nil(node: Node) -> None:
    """Source: lines 23, 26."""
    assert node.propose(A, is_valid=False) == (prevote(None),)


def test_one_that_is_locked_prevotes_nil_for_another_new_value(node: Node) -> None:
    """Source: lines 23, 26."""
    lock(node, A)
    fail_round(node)
    assert node.propose(B, at=1) == (prevote(None, at=1),)


def test_one_that_is_locked_prevotes_its_own_value_proposed_as_new(node: Node) -> None:
    """Source: line 23, lockedValue = v."""
    lock(node, A)
    fail_round(node)
    assert node.propose(A, at=1) == (prevote(A, at=1),)


def test_a_proposal_is_answered_only_in_the_propose_step(node: Node) -> None:
    """Source: line 22, while step = propose."""
    node.time_out(Step.PROPOSE)
    assert node.propose(A) == ()


def test_a_second_proposal_of_a_round_is_not_answered(node: Node) -> None:
    """Source: line 27."""
    node.propose(A)
    assert node.propose(B) == ()


def test_a_proposal_of_the_next_round_waits_for_it(node: Node) -> None:
    """Source: line 22, h_p and round_p."""
    assert node.propose(A, at=1) == ()
    assert fail_round(node) == (Timeout(Step.PROPOSE, 1), prevote(A, at=1))


# --- lines 28 to 33: an earlier value is proposed again ------------------------------------------


def test_an_earlier_value_is_prevoted_once_its_quorum_is_seen(node: Node) -> None:
    """Source: lines 28 to 30, 33."""
    fail_round(node)
    assert node.propose(A, at=1, valid_at=0) == ()
    assert node.prevotes(A, of=(0, 1)) == ()
    assert node.prevotes(A, of=(2,)) == (prevote(A, at=1),)


def test_an_invalid_earlier_value_is_answered_with_nil(node: Node) -> None:
    """Source: lines 29, 32."""
    fail_round(node)
    node.prevotes(A, of=(0, 1, 2))
    outputs = node.propose(A, at=1, valid_at=0, is_valid=False)
    assert outputs == (prevote(None, at=1),)


def test_a_later_quorum_outdates_a_lock(node: Node) -> None:
    """Source: line 29, lockedRound ≤ vr."""
    lock(node, A)
    fail_round(node)
    fail_round(node, at=1)
    node.prevotes(B, at=1, of=(0, 1, 2))
    assert node.propose(B, at=2, valid_at=1) == (prevote(B, at=2),)
    assert (node.machine.locked_value, node.machine.locked_round) == (A, 0)  # until line 38


def test_an_earlier_quorum_does_not_outdate_a_lock(node: Node) -> None:
    """Source: lines 29, 32."""
    node.prevotes(B, of=(0, 1, 2))
    fail_round(node)
    lock(node, A, at=1)
    fail_round(node, at=1)
    assert node.propose(B, at=2, valid_at=0) == (prevote(None, at=2),)


def test_a_quorum_of_the_locks_own_round_outdates_it(node: Node) -> None:
    """Source: line 29, lockedRound = vr: with less than a third faulty it is the same value."""
    lock(node, A)
    fail_round(node)
    assert node.propose(A, at=1, valid_at=0) == (prevote(A, at=1),)


def test_the_locked_value_is_prevoted_whatever_its_valid_round(node: Node) -> None:
    """Source: line 29, lockedValue = v."""
    node.prevotes(A, of=(0, 1, 2))
    fail_round(node)
    lock(node, A, at=1)
    fail_round(node, at=1)
    assert node.propose(A, at=2, valid_at=0) == (prevote(A, at=2),)


def test_a_claimed_valid_round_without_quorum_is_not_believed(node: Node) -> None:
    """Source: line 28; lines 57 to 60 go on without the proposal."""
    fail_round(node)
    assert node.propose(A, at=1, valid_at=0) == ()
    assert node.time_out(Step.PROPOSE, at=1) == (prevote(None, at=1),)


def test_a_proposal_cannot_name_its_own_round_as_valid() -> None:
    """Source: line 28, vr < round_p."""
    with pytest.raises(MalformedMessageError):
        Proposal(HEIGHT, 1, A, 1)


# --- lines 34 and 35: prevotes without agreement -------------------------------------------------


def test_a_quorum_of_any_prevotes_schedules_the_prevote_timeout_once(node: Node) -> None:
    """Source: lines 34 and 35."""
    node.propose(A)
    assert node.prevotes(B, of=(0,)) == ()
    assert node.prevotes(None, of=(1,)) == (Timeout(Step.PREVOTE, 0),)
    assert node.prevotes(None, of=(2,)) == ()


def test_prevotes_schedule_nothing_before_the_own_prevote(node: Node) -> None:
    """Source: line 34, while step = prevote."""
    assert node.prevotes(B, of=(0, 1, 2)) == ()
    assert Timeout(Step.PREVOTE, 0) in node.time_out(Step.PROPOSE)


# --- lines 36 to 43: a quorum prevoted a value ---------------------------------------------------


def test_a_quorum_of_prevotes_locks_the_value_and_precommits_it(node: Node) -> None:
    """Source: lines 36 to 43."""
    node.propose(A)
    assert node.prevotes(A) == (precommit(A),)
    assert node.machine.sign_state == SignState(HEIGHT, 0, Step.PRECOMMIT, A, 0, A, 0)


def test_a_quorum_that_comes_late_only_makes_the_value_valid(node: Node) -> None:
    """Source: lines 37, 42, 43."""
    node.propose(A)
    node.time_out(Step.PREVOTE)
    assert node.prevotes(A) == ()
    assert node.machine.sign_state == SignState(HEIGHT, 0, Step.PRECOMMIT, None, -1, A, 0)


def test_a_quorum_without_the_proposal_locks_nothing(node: Node) -> None:
    """Source: line 36, ⟨PROPOSAL⟩."""
    node.time_out(Step.PROPOSE)
    node.prevotes(A, of=(0, 1, 2))
    assert node.machine.sign_state == SignState(HEIGHT, 0, Step.PREVOTE)
    assert node.machine.find_missing_proposals() == ((0, A),)
    assert node.propose(A) == (precommit(A),)
    assert node.machine.find_missing_proposals() == ()


def test_a_quorum_before_the_own_prevote_waits_for_it(node: Node) -> None:
    """Source: line 36, step ≥ prevote."""
    node.prevotes(A, of=(0, 1, 2))
    assert node.propose(A) == (prevote(A), precommit(A))


def test_an_invalid_value_is_never_locked(node: Node) -> None:
    """Source: line 36, valid(v)."""
    node.propose(A, is_valid=False)
    node.prevotes(A, of=(0, 1, 2))
    assert node.machine.locked_value is None
    assert node.machine.valid_value is None


def test_a_quorum_of_an_earlier_round_locks_nothing(node: Node) -> None:
    """Source: line 36, round_p."""
    node.propose(A)
    fail_round(node)
    assert node.prevotes(A, of=(0, 1, 2)) == ()
    assert node.machine.valid_value is None


# --- lines 44 to 46: a quorum prevoted nil -------------------------------------------------------


def test_a_quorum_of_nil_prevotes_precommits_nil(node: Node) -> None:
    """Source: lines 44 to 46."""
    node.propose(A)
    outputs = node.prevotes(None, of=(0, 1, 2))
    assert outputs == (Timeout(Step.PREVOTE, 0), precommit(None))
    assert node.machine.sign_state == SignState(HEIGHT, 0, Step.PRECOMMIT)


def test_a_quorum_of_nil_prevotes_keeps_an_earlier_lock(node: Node) -> None:
    """Source: lines 44 to 46 change no lock."""
    lock(node, A)
    fail_round(node)
    node.propose(B, at=1)
    assert precommit(None, at=1) in node.prevotes(None, at=1)
    assert (node.machine.locked_value, node.machine.locked_round) == (A, 0)


def test_nil_prevotes_precommit_nothing_before_the_own_prevote(node: Node) -> None:
    """Source: line 44, while step = prevote."""
    assert node.prevotes(None, of=(0, 1, 2)) == ()


# --- lines 47 and 48: precommits without decision ------------------------------------------------


def test_a_quorum_of_any_precommits_schedules_the_precommit_timeout_once(node: Node) -> None:
    """Source: lines 47 and 48, in whatever step."""
    node.precommits(A, of=(0,))
    assert node.precommits(None, of=(1,)) == ()
    assert node.precommits(B, of=(2,)) == (Timeout(Step.PRECOMMIT, 0),)
    node.time_out(Step.PROPOSE)
    assert node.time_out(Step.PREVOTE) == (precommit(None),)


# --- lines 49 to 54: the decision ----------------------------------------------------------------


def test_a_quorum_of_precommits_decides(node: Node) -> None:
    """Source: lines 49 to 51; the precommits prove it."""
    node.propose(A)
    node.prevotes(A)
    outputs = node.precommits(A, of=(1, 0))
    expected = tuple(FOUR.precommit(number, A) for number in (0, 1, OWN))
    assert outputs == (Decided(A, 0, expected),)
    assert node.machine.decision == outputs[0]


def test_a_decision_needs_no_vote_of_ones_own(node: Node) -> None:
    """Source: line 49 has no condition on the step."""
    node.precommits(A, of=(0, 1, 2))
    (decided,) = node.propose(A)
    assert isinstance(decided, Decided)


def test_an_earlier_round_can_still_decide(node: Node) -> None:
    """Source: line 49, any round r."""
    lock(node, A)
    node.precommits(A, of=(0,))
    node.precommits(None, of=(1,))
    node.time_out(Step.PRECOMMIT)
    assert node.machine.round == 1
    (decided,) = node.precommits(A, of=(2,))
    assert isinstance(decided, Decided)
    assert (decided.block_hash, decided.round) == (A, 0)


def test_a_quorum_without_the_proposal_does_not_decide(node: Node) -> None:
    """Source: line 49, ⟨PROPOSAL⟩."""
    node.precommits(A, of=(0, 1, 2))
    assert node.machine.decision is None
    assert node.machine.find_missing_proposals() == ((0, A),)


def test_an_invalid_value_is_never_decided(node: Node) -> None:
    """Source: line 50, valid(v)."""
    node.propose(A, is_valid=False)
    node.precommits(A, of=(0, 1, 2))
    assert node.machine.decision is None


def test_precommits_of_different_rounds_do_not_add_up(node: Node) -> None:
    """Source: line 49, one round r."""
    node.propose(A)
    node.precommits(A, of=(0, 1))
    node.propose(A, at=1)
    node.precommits(A, at=1, of=(1, 2))
    assert node.machine.decision is None


def test_nothing_happens_after_the_decision(node: Node) -> None:
    """Source: lines 52 to 54; the next height is another machine."""
    node.propose(A)
    node.precommits(A, of=(0, 1, 2))
    before = node.machine.sign_state
    assert node.time_out(Step.PREVOTE) == ()
    assert node.time_out(Step.PRECOMMIT) == ()
    assert node.precommits(B, at=5) == ()
    assert node.machine.sign_state == before


# --- lines 55 and 56: others are ahead -----------------------------------------------------------


def test_votes_of_more_than_a_third_in_a_later_round_are_followed(node: Node) -> None:
    """Source: lines 55 and 56, any kind of message."""
    assert node.prevotes(A, at=2, of=(0,)) == ()
    assert node.precommits(None, at=2, of=(1,)) == (Timeout(Step.PROPOSE, 2),)
    assert (node.machine.round, node.machine.step) == (2, Step.PROPOSE)


def test_what_is_known_of_the_round_jumped_to_is_used_at_once(node: Node) -> None:
    """Source: line 56; then lines 22 to 27."""
    node.propose(A, at=1)
    outputs = node.prevotes(A, at=1)
    assert outputs == (Timeout(Step.PROPOSE, 1), prevote(A, at=1), precommit(A, at=1))


def test_one_validator_alone_is_not_followed(node: Node) -> None:
    """Source: line 55: f + 1 different senders."""
    node.prevotes(A, at=1, of=(0,))
    node.precommits(A, at=1, of=(0,))
    node.prevotes(B, at=1, of=(0,))
    assert node.machine.round == 0


def test_the_proposer_of_the_round_jumped_to_proposes(node: Node) -> None:
    """Source: lines 56 and 14."""
    assert node.prevotes(None, at=3) == (Propose(3, None, NO_ROUND),)


def test_votes_of_earlier_rounds_are_not_followed(node: Node) -> None:
    """Source: line 55, round > round_p."""
    node.prevotes(None, at=2)
    node.prevotes(None, at=1)
    assert node.machine.round == 2


# --- lines 57 to 67: timeouts --------------------------------------------------------------------


def test_the_propose_timeout_prevotes_nil(node: Node) -> None:
    """Source: lines 57 to 60."""
    assert node.time_out(Step.PROPOSE) == (prevote(None),)
    assert node.machine.step is Step.PREVOTE


def test_the_propose_timeout_comes_too_late_after_a_prevote(node: Node) -> None:
    """Source: line 58, step = propose."""
    node.propose(A)
    assert node.time_out(Step.PROPOSE) == ()


def test_the_prevote_timeout_precommits_nil(node: Node) -> None:
    """Source: lines 61 to 64."""
    node.propose(A)
    assert node.time_out(Step.PREVOTE) == (precommit(None),)
    assert node.machine.step is Step.PRECOMMIT


def test_the_prevote_timeout_comes_too_late_after_a_precommit(node: Node) -> None:
    """Source: line 62, step = prevote."""
    lock(node, A)
    assert node.time_out(Step.PREVOTE) == ()


def test_the_precommit_timeout_starts_the_next_round(node: Node) -> None:
    """Source: lines 65 to 67."""
    assert node.time_out(Step.PRECOMMIT) == (Timeout(Step.PROPOSE, 1),)
    assert (node.machine.round, node.machine.step) == (1, Step.PROPOSE)


@pytest.mark.parametrize("step", list(Step))
def test_timeouts_of_another_round_do_nothing(node: Node, step: Step) -> None:
    """Source: lines 58, 62, 66, round = round_p."""
    assert node.time_out(step, at=1) == ()
    fail_round(node)
    assert node.time_out(step, at=0) == ()
    assert (node.machine.round, node.machine.step) == (1, Step.PROPOSE)


@pytest.mark.parametrize(
    ("step", "durations"),
    [
        (Step.PROPOSE, [300, 400, 500]),
        (Step.PREVOTE, [100, 200, 300]),
        (Step.PRECOMMIT, [100, 200, 300]),
    ],
)
def test_timeouts_grow_with_the_round(step: Step, durations: list[int]) -> None:
    """Source: §III, timeoutX(r) increases with r; docs/spec/consensus.md T16."""
    assert [compute_timeout_ms(Timeout(step, number)) for number in range(3)] == durations


# --- restarts ------------------------------------------------------------------------------------


def restart(node: Node) -> Node:
    """Make a machine from what is persisted, and hand in nothing else."""
    return Node(node.number, sign_state=node.machine.sign_state)


def test_a_restarted_proposer_does_not_propose_again() -> None:
    node = Node(0)
    node.start()
    restarted = restart(node)
    assert restarted.start() == (Timeout(Step.PROPOSE, 0),)


def test_a_restarted_validator_does_not_prevote_again(node: Node) -> None:
    node.propose(A)
    restarted = restart(node)
    assert restarted.start() == ()
    assert restarted.propose(B) == ()
    assert restarted.time_out(Step.PROPOSE) == ()


def test_a_restarted_validator_may_go_on_to_precommit(node: Node) -> None:
    node.propose(A)
    restarted = restart(node)
    restarted.start()
    restarted.propose(A)
    assert restarted.prevotes(A, of=(0, 1, OWN)) == (precommit(A),)


def test_a_restarted_validator_does_not_precommit_again(node: Node) -> None:
    lock(node, A)
    restarted = restart(node)
    restarted.start()
    restarted.propose(A)
    assert restarted.prevotes(A, of=(0, 1, 2)) == ()
    assert restarted.time_out(Step.PREVOTE) == ()


def test_a_restarted_validator_keeps_its_lock(node: Node) -> None:
    lock(node, A)
    restarted = restart(node)
    restarted.start()
    fail_round(restarted)
    assert restarted.propose(B, at=1) == (prevote(None, at=1),)


def test_a_restarted_validator_knows_what_it_is_locked_on(node: Node) -> None:
    lock(node, A)
    restarted = restart(node)
    restarted.start()
    fail_round(restarted)
    assert restarted.propose(A, at=1) == (prevote(A, at=1),)


def test_a_restarted_validator_proposes_its_valid_value() -> None:
    node = Node(1)
    node.start()
    node.propose(A)
    node.prevotes(A, of=(0, 2))
    restarted = restart(node)
    restarted.start()
    assert Propose(1, A, 0) in fail_round(restarted)


def test_a_restarted_validator_signs_nothing_for_earlier_rounds(node: Node) -> None:
    fail_round(node)
    node.propose(A, at=1)
    restarted = restart(node)
    restarted.start()
    assert restarted.propose(B) == ()
    assert restarted.time_out(Step.PROPOSE, at=0) == ()
    assert restarted.prevotes(None, of=(0, 1, 2)) == ()


def test_a_sign_state_of_another_height_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        Node(sign_state=SignState(HEIGHT + 1, 0, Step.PROPOSE))


# --- hostile peers and observers -----------------------------------------------------------------


def test_a_proposal_by_another_than_the_proposer_is_refused(node: Node) -> None:
    """Source: lines 22, 28, 36, 49, from proposer(h_p, round)."""
    signed = FOUR.sign(2, Proposal(HEIGHT, 0, A))
    with pytest.raises(RemoteProtocolError, match="not the proposer"):
        node.machine.receive_proposal(signed, is_valid=True)
    assert node.machine.step is Step.PROPOSE


def test_messages_of_another_height_are_refused(node: Node) -> None:
    with pytest.raises(LocalProtocolError):
        node.machine.receive_vote(FOUR.sign(0, Vote(HEIGHT + 1, 0, VoteKind.PREVOTE, A)))
    with pytest.raises(LocalProtocolError):
        node.machine.receive_proposal(FOUR.sign(0, Proposal(HEIGHT - 1, 0, A)), is_valid=True)


def test_proposals_far_ahead_are_dropped(node: Node) -> None:
    far = FOUR.sign(0, Proposal(HEIGHT, 2**31 - 1, A))
    assert node.machine.receive_proposal(far, is_valid=True) == ()
    assert node.machine._proposals == {}


def test_a_proposer_cannot_fill_the_memory(node: Node) -> None:
    for number in range(100):
        node.propose(Hash(bytes([number]) * 32))
    assert len(node.machine._proposals[0]) == 2


def test_the_same_block_proposed_otherwise_takes_no_more_memory(node: Node) -> None:
    fail_round(node)
    fail_round(node, at=1)
    node.prevotes(A, at=2, of=(0, 1, 2))
    for valid_at in (NO_ROUND, 0, 1):
        node.propose(A, at=2, valid_at=valid_at)
    assert len(node.machine._proposals[2]) == 2


def test_among_many_proposals_the_one_that_others_vote_for_is_kept(node: Node) -> None:
    node.propose(B)
    node.propose(C)
    node.propose(A)
    node.precommits(A, of=(0, 1, 2))
    assert node.machine.decision is None
    assert node.machine.find_missing_proposals() == ((0, A),)
    (decided,) = node.propose(A)
    assert isinstance(decided, Decided)


def test_an_observer_follows_and_decides_but_says_nothing() -> None:
    five = Committee([1, 1, 1, 1, 1])
    observer = Tendermint(height=HEIGHT, validators=FOUR.validators, own_id=five.ids[-1])
    assert observer._own_id not in FOUR.validators
    outputs = observer.start()
    outputs += observer.receive_proposal(FOUR.propose(A), is_valid=True)
    for number in range(3):
        outputs += observer.receive_vote(FOUR.prevote(number, A))
        outputs += observer.receive_vote(FOUR.precommit(number, A))
    assert not any(isinstance(output, Vote) for output in outputs)
    assert observer.decision is not None


def test_a_validator_alone_decides_by_itself() -> None:
    alone = Committee([5])
    machine = alone.make_machine(0)
    assert machine.start() == (Propose(0, None, NO_ROUND),)
    (vote,) = machine.receive_proposal(alone.propose(A), is_valid=True)
    assert vote == prevote(A)
    (vote, *_) = machine.receive_vote(alone.prevote(0, A))
    assert vote == precommit(A)
    (decided,) = machine.receive_vote(alone.precommit(0, A))
    assert isinstance(decided, Decided)
