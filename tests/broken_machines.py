"""Consensus with a safety rule left out, which its tests must catch."""

from __future__ import annotations

from iemas.consensus.tendermint import Step, Tendermint
from iemas.consensus.validators import ValidatorSet
from iemas.consensus.voting import NO_ROUND, VoteKind


class NeverLocks(Tendermint):
    """Forgets lines 38 and 39."""

    def _upon_prevotes_for_value(self) -> bool:
        fired = super()._upon_prevotes_for_value()
        self.locked_value, self.locked_round = None, NO_ROUND
        return fired


class UnlocksOnAnyQuorum(Tendermint):
    """Line 28 without the value: a later quorum of any prevotes outdates a lock."""

    def _upon_earlier_value_proposed(self) -> bool:
        if self.step is not Step.PROPOSE:
            return False
        for proposal, is_valid in self._get_proposals(self.round).items():
            at = proposal.valid_round
            if at >= 0 and self.votes.has_quorum_of_any(at, VoteKind.PREVOTE):
                may_accept = self.locked_round <= at
                self._prevote(proposal.block_hash if is_valid and may_accept else None)
                return True
        return False


class UnlocksOnEarlierQuorum(Tendermint):
    """Line 29 without lockedRound ≤ vr: any quorum for the value outdates a lock."""

    def _upon_earlier_value_proposed(self) -> bool:
        locked_round, self.locked_round = self.locked_round, NO_ROUND
        fired = super()._upon_earlier_value_proposed()
        self.locked_round = locked_round
        return fired


class VotesAgainAfterRestart(Tendermint):
    """Goes back to the first step of its round when it is made from a sign state."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.step = Step.PROPOSE


def halve_quorum(set_type: type[ValidatorSet]) -> type[ValidatorSet]:
    """Make half of the power enough for a quorum."""

    class HalfQuorum(set_type):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            self.quorum_power = (self.total_power + 1) // 2

    return HalfQuorum
