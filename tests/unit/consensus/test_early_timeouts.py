"""Timeouts that are waited for in vain are handed in early. Source: docs/spec/consensus.md T16."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection
from typing import Any

import pytest

from iemas.consensus.tendermint import (
    Decided,
    Output,
    Propose,
    Step,
    Tendermint,
    Timeout,
    compute_timeout_ms,
)
from iemas.consensus.voting import Proposal, Vote, VoteKind
from iemas.core.envelope import Signed
from iemas.core.types import Hash, NodeId
from tests.committee import HEIGHT, A, Committee

FAULTY = 0
CORRECT = (1, 2, 3)
NETWORK_MS = 1
MOST_ROUNDS = 12


class HastyTendermint(Tendermint):
    """Leaves a round as soon as nothing can be decided in it."""

    def is_vain(self, timeout: Timeout, *, silent: Collection[NodeId] = ()) -> bool:
        is_nil = self.votes.has_quorum(timeout.round, VoteKind.PRECOMMIT, None)
        return timeout.step is Step.PRECOMMIT and is_nil


class LeapfrogRun:
    """Three correct validators of four, and one that wants them on locks that outrun each other.

    It prevotes each round's value to its proposer alone, just before that one would give up, so
    that it locks; and it helps the others to a quorum of precommits for nil. What it told one,
    the others hear `relay_ms` later.
    """

    def __init__(self, machine_type: type[Tendermint], relay_ms: int) -> None:
        self.committee = Committee([1] * 4)
        self.machines = {
            number: self.committee.make_machine(number, machine_type=machine_type)
            for number in CORRECT
        }
        self.decided: dict[int, int] = {}
        self._relay_ms = relay_ms
        self._now_ms = 0
        self._order = itertools.count()
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._timeouts: dict[int, dict[Timeout, int]] = {number: {} for number in CORRECT}

    def run(self) -> bool:
        """Tell whether all decide before there were too many rounds."""
        bait = self.committee.sign(FAULTY, Proposal(HEIGHT, 0, A, -1))
        for number in (1, 2):
            self._later(295, lambda n=number: self._hear_faulty(n, bait))
        for number, machine in self.machines.items():
            self._carry_out(number, machine.start())
        while self._due and len(self.decided) < len(CORRECT):
            if max(machine.round for machine in self.machines.values()) > MOST_ROUNDS:
                return False
            self._now_ms, _, act = heapq.heappop(self._due)
            act()
        return len(self.decided) == len(CORRECT)

    def _later(self, delay_ms: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._now_ms + delay_ms, next(self._order), act))

    def _hear_faulty(self, number: int, signed: Signed[Any]) -> None:
        for other in CORRECT:
            if other != number:
                self._later(self._relay_ms, lambda n=other: self._hear(n, signed))
        self._hear(number, signed)

    def _hear(self, number: int, signed: Signed[Any]) -> None:
        machine = self.machines[number]
        if isinstance(signed.message, Vote):
            self._carry_out(number, machine.receive_vote(signed))
        else:
            self._carry_out(number, machine.receive_proposal(signed, is_valid=True))

    def _carry_out(self, number: int, outputs: tuple[Output, ...]) -> None:
        waiting = list(outputs)
        while waiting:
            match waiting.pop(0):
                case Vote() as vote:
                    signed = self.committee.sign(number, vote)
                    waiting += self.machines[number].receive_vote(signed)
                    self._tell_others(number, signed)
                case Propose(round=at, block_hash=held, valid_round=valid_round):
                    value = held or Hash(bytes([at, number]) * 16)
                    proposal = self.committee.sign(number, Proposal(HEIGHT, at, value, valid_round))
                    waiting += self.machines[number].receive_proposal(proposal, is_valid=True)
                    self._tell_others(number, proposal)
                case Timeout() as timeout:
                    self._wait_for(number, timeout)
                case Decided(round=at):
                    self.decided[number] = at
        self._tick(number)

    def _tell_others(self, number: int, signed: Signed[Any]) -> None:
        for other in CORRECT:
            if other != number:
                self._later(NETWORK_MS, lambda n=other: self._hear(n, signed))

    def _wait_for(self, number: int, timeout: Timeout) -> None:
        wait_ms = compute_timeout_ms(timeout)
        self._timeouts[number][timeout] = self._now_ms + wait_ms
        self._later(wait_ms, lambda: self._tick(number))
        proposer = self.committee.get_proposer(timeout.round)
        if timeout.step is Step.PREVOTE and number == (proposer or 2):
            self._later(wait_ms - NETWORK_MS, lambda: self._help(number, timeout.round))

    def _tick(self, number: int) -> None:
        machine, timeouts = self.machines[number], self._timeouts[number]
        for timeout, at_ms in list(timeouts.items()):
            if timeout in timeouts and (at_ms <= self._now_ms or machine.is_vain(timeout)):
                del timeouts[timeout]
                self._carry_out(number, machine.receive_timeout(timeout))

    def _help(self, number: int, at: int) -> None:
        """Let one lock on a value that it and one more prevoted, and the others give up."""
        own_id = self.committee.ids[number]
        for proposal in list(self.machines[number]._get_proposals(at)):
            value = proposal.block_hash
            votes = self.machines[number].votes.get_votes(at, VoteKind.PREVOTE, value)
            if len(votes) == 2 and own_id in {vote.signer_id for vote in votes}:
                self._hear_faulty(number, self.committee.prevote(FAULTY, value, at=at))
                nil = self.committee.precommit(FAULTY, None, at=at)
                for other in CORRECT:
                    if other != number:
                        self._later(2 * NETWORK_MS, lambda n=other, v=nil: self._hear_faulty(n, v))


@pytest.mark.parametrize("relay_ms", [5, 50, 200])
def test_locks_do_not_outrun_each_other(relay_ms: int) -> None:
    assert LeapfrogRun(Tendermint, relay_ms).run()


@pytest.mark.parametrize("relay_ms", [5, 50, 200])
def test_they_would_if_a_quorum_of_precommits_for_nil_ended_the_round(relay_ms: int) -> None:
    assert not LeapfrogRun(HastyTendermint, relay_ms).run()


def test_a_proposal_is_waited_for_unless_its_proposer_is_silent() -> None:
    committee = Committee([1] * 4)
    machine = committee.make_machine(3)
    (timeout,) = machine.start()
    assert isinstance(timeout, Timeout)
    others = [committee.ids[number] for number in (1, 2)]
    assert not machine.is_vain(timeout, silent=others)
    assert machine.is_vain(timeout, silent=[committee.ids[committee.get_proposer(0)]])
