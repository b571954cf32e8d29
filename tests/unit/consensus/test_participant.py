"""One validator's part in one height: old proposals, and clocks. Source: engine.md E3, E20, E24."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from iemas.consensus.mempool import Mempool
from iemas.consensus.messages import ProposalNotice, VoteNotice
from iemas.consensus.participant import KEPT_ROUNDS, Participant
from iemas.consensus.tendermint import Step, Timeout, compute_timeout_ms
from iemas.consensus.voting import NO_ROUND, Proposal
from iemas.core.envelope import Signed
from iemas.core.types import Hash
from iemas.core.vote import Vote, VoteKind
from tests.cluster import Cluster

LATER = KEPT_ROUNDS + 1
"""A round in which proposals of round 0 are kept no more."""


class Height:
    """Height 2 of four validators, named in the order of their turns to propose."""

    def __init__(self) -> None:
        self.cluster = Cluster().start()
        self.cluster.run(200)
        self.engine = self.cluster["node-1"].engine
        self.chain = self.cluster.chain
        self.now_ms = self.cluster.clock.now_ms
        get_proposer = self.engine.validators.get_proposer
        self.names = [self.chain.get_name(get_proposer(number)) for number in range(4)]

    def make_participant(self, name: str) -> Participant:
        participant = Participant(
            self.engine._chain,
            Mempool(self.engine.app),
            chain_id=self.chain.chain_id,
            signer=self.chain.get_signer(name),
            tolerance_ms=self.chain.genesis.params.clock_tolerance_ms,
        )
        participant.start(now_ms=self.now_ms)
        return participant

    def propose(self, at: int, *, time_ms: int = 0) -> ProposalNotice:
        """Propose a new block; its time makes it another one."""
        name = self.names[at % 4]
        block = self.engine._chain.make_block(
            (), signer=self.chain.get_signer(name), now_ms=self.now_ms + time_ms
        )
        return ProposalNotice(
            self.chain.sign(name, Proposal(block.height, at, block.hash, NO_ROUND)), block
        )

    def vote(
        self, names: Iterable[str], kind: VoteKind, value: Hash | None, *, at: int
    ) -> list[Signed[Vote]]:
        height = self.engine.height + 1
        return [self.chain.sign(name, Vote(height, at, kind, value)) for name in names]


@pytest.fixture
def height() -> Height:
    return Height()


def lead(height: Height, participant: Participant, own: str, at: int) -> None:
    """Lead a participant to a later round, where it hears a proposal."""
    others = [name for name in height.names if name != own]
    votes = height.vote(others[:2], VoteKind.PREVOTE, None, at=at)
    participant.receive_votes(votes, now_ms=height.now_ms)
    participant.receive_proposal(height.propose(at, time_ms=at), now_ms=height.now_ms)
    assert participant.round == at


@pytest.mark.parametrize("was_heard", [True, False], ids=["heard and dropped", "never heard"])
def test_a_block_of_an_old_round_that_is_decided_is_asked_for_and_committed(
    height: Height, *, was_heard: bool
) -> None:
    own = height.names[2]
    others = [name for name in height.names if name != own]
    participant, notice = height.make_participant(own), height.propose(0)
    if was_heard:
        participant.receive_proposal(notice, now_ms=height.now_ms)
    lead(height, participant, own, LATER)
    assert not participant.lacks_blocks
    votes = height.vote(others, VoteKind.PRECOMMIT, notice.block.hash, at=0)
    participant.receive_votes(votes, now_ms=height.now_ms)
    assert participant.committed is None
    assert participant.lacks_blocks
    assert participant.make_status(wants_blocks=True).rounds == (0,)
    participant.receive_proposal(notice, now_ms=height.now_ms)
    assert participant.committed is not None
    assert participant.committed.block == notice.block


def test_who_locked_a_block_in_an_old_round_has_it_for_who_asks(height: Height) -> None:
    own, asker = height.names[2:]
    locked, lagging = height.make_participant(own), height.make_participant(asker)
    notice = height.propose(0)
    locked.receive_proposal(notice, now_ms=height.now_ms)
    prevotes = height.vote(height.names[:2], VoteKind.PREVOTE, notice.block.hash, at=0)
    locked.receive_votes(prevotes, now_ms=height.now_ms)
    lead(height, locked, own, LATER)
    lead(height, lagging, asker, LATER)
    precommits = height.vote(height.names[:3], VoteKind.PRECOMMIT, notice.block.hash, at=0)
    lagging.receive_votes(precommits, now_ms=height.now_ms)
    for answer in locked.answer_status(lagging.make_status(wants_blocks=True)):
        if isinstance(answer, ProposalNotice):
            lagging.receive_proposal(answer, now_ms=height.now_ms)
    assert lagging.committed is not None


def test_old_blocks_are_bounded_and_those_that_nobody_needs_refused(height: Height) -> None:
    own = height.names[2]
    participant = height.make_participant(own)
    for number in range(1, 5 * KEPT_ROUNDS):
        lead(height, participant, own, number) if number % 4 != 2 else None
    assert len(participant._blocks) <= KEPT_ROUNDS + 1
    assert len(participant._machine._proposals) <= KEPT_ROUNDS + 1
    before = dict(participant._blocks)
    participant.receive_proposal(height.propose(0), now_ms=height.now_ms)
    assert participant._blocks == before


def test_a_block_that_a_quorum_only_prevoted_in_an_old_round_is_not_asked_for(
    height: Height,
) -> None:
    own = height.names[2]
    others = [name for name in height.names if name != own]
    participant, notice = height.make_participant(own), height.propose(0)
    lead(height, participant, own, LATER)
    votes = height.vote(others, VoteKind.PREVOTE, notice.block.hash, at=0)
    participant.receive_votes(votes, now_ms=height.now_ms)
    assert not participant.lacks_blocks


def test_a_clock_that_goes_back_prolongs_no_timeout(height: Height) -> None:
    participant = height.make_participant(height.names[2])
    back_ms = height.now_ms - 600_000
    participant.tick(now_ms=back_ms)
    wait_ms = compute_timeout_ms(Timeout(Step.PROPOSE, 0))
    assert participant.wake_at_ms == back_ms + wait_ms
    participant.tick(now_ms=back_ms + wait_ms - 1)
    assert not participant.take_messages()
    participant.tick(now_ms=back_ms + wait_ms)
    (message,) = participant.take_messages()
    assert isinstance(message, VoteNotice)
    assert [vote.message.block_hash for vote in message.votes] == [None]
