"""The votes of one height: who voted for what, and which quorums that makes.

A validator that votes twice in one (round, kind) is faulty: both signed votes are kept as
evidence. It counts once where the question is how many voted at all. Where the question is whether
a quorum voted for one value, the paper counts it for each value it signed. That is safe (a quorum
holds a correct majority, which votes once) and needed: otherwise a faulty validator that tells
everyone something else could hide a quorum for good from those it told something else first.

What is remembered is bounded, whatever faulty validators sign: per (round, kind) a validator's
first vote, and one for each of the at most two values that more than a third of the power named
first; per validator two rounds beyond the next one; one piece of evidence a validator.

Source: Buchman, Kwon, Milosevic 2018 (arXiv 1807.04938); docs/spec/consensus.md T6 to T10.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from iemas.consensus.validators import ValidatorSet
from iemas.consensus.voting import DoubleVote, Vote, VoteKind
from iemas.core.envelope import Signed
from iemas.core.errors import LocalProtocolError, RemoteProtocolError
from iemas.core.types import Hash, NodeId, short_id

MAX_ROUNDS_AHEAD = 2
"""How many rounds beyond the next one a validator's votes are kept of: its latest."""

_VOTE_KINDS = (VoteKind.PREVOTE, VoteKind.PRECOMMIT)


@dataclass(slots=True)
class _Tally:
    """The votes of one (round, kind)."""

    first: dict[NodeId, Hash | None] = field(default_factory=dict)
    """What each signer voted for first."""
    counted: dict[Hash | None, dict[NodeId, Signed[Vote]]] = field(default_factory=dict)
    """The votes that count for each value."""

    def get_votes(self, value: Hash | None) -> dict[NodeId, Signed[Vote]]:
        return self.counted.get(value, {})

    def count(self, signer: NodeId, signed: Signed[Vote]) -> None:
        value = signed.message.block_hash
        self.first.setdefault(signer, value)
        self.counted.setdefault(value, {})[signer] = signed

    def forget(self, signer: NodeId) -> None:
        self.first.pop(signer, None)
        for votes in self.counted.values():
            votes.pop(signer, None)
        self.counted = {value: votes for value, votes in self.counted.items() if votes}


class HeightVotes:
    """The votes of one height, whose signatures the caller has checked."""

    def __init__(self, height: int, validators: ValidatorSet) -> None:
        self._height = height
        self._validators = validators
        self._tallies: dict[tuple[int, VoteKind], _Tally] = {}
        self._evidence: dict[NodeId, DoubleVote] = {}

    # --- taking votes in -------------------------------------------------------------------------

    def add(self, signed: Signed[Vote], *, current_round: int) -> bool:
        """Count a vote; tell whether anything changed.

        A further value of a signer counts once more than a third of the power named it first; one
        that comes earlier has to come again.

        Raises: LocalProtocolError for another height; RemoteProtocolError for an unknown signer.
        """
        vote, signer = signed.message, signed.signer_id
        if vote.height != self._height:
            raise LocalProtocolError(
                f"a vote of height {vote.height} was given to height {self._height}",
                height=vote.height,
            )
        if signer not in self._validators:
            raise RemoteProtocolError(
                f"{short_id(signer)} votes at height {vote.height} but is no validator there",
                signer_id=signer,
            )
        if not self._make_room(signer, vote.round, current_round):
            return False
        tally = self._tallies.setdefault((vote.round, vote.kind), _Tally())
        if signer in tally.get_votes(vote.block_hash):
            return False
        if signer in tally.first:
            self._keep_evidence(tally.get_votes(tally.first[signer])[signer], signed)
            if not self._is_backed(tally, vote.block_hash):
                return False
        tally.count(signer, signed)
        return True

    def _make_room(self, signer: NodeId, round_number: int, current_round: int) -> bool:
        """Forget the signer's votes of the lowest round ahead if this one would be too many."""
        if round_number <= current_round + 1:
            return True
        ahead = {
            voted_round
            for (voted_round, _), tally in self._tallies.items()
            if voted_round > current_round + 1 and signer in tally.first
        } | {round_number}
        if len(ahead) <= MAX_ROUNDS_AHEAD:
            return True
        lowest = min(ahead)
        for kind in _VOTE_KINDS:
            tally = self._tallies.get((lowest, kind))
            if tally is not None:
                tally.forget(signer)
                if not tally.first:
                    del self._tallies[lowest, kind]
        return lowest != round_number

    def _keep_evidence(self, one: Signed[Vote], other: Signed[Vote]) -> None:
        if (one.message.block_hash or b"") > (other.message.block_hash or b""):
            one, other = other, one
        self._evidence.setdefault(one.signer_id, DoubleVote(one, other))

    def _is_backed(self, tally: _Tally, value: Hash | None) -> bool:
        """Tell whether more than a third of the power named the value first.

        Every value that a quorum votes for gets there, as the quorum's correct validators do not
        hold another vote; and never more than two values do.
        """
        named = [signer for signer, first in tally.first.items() if first == value]
        return self._validators.compute_power(named) >= self._validators.one_correct_power

    # --- asking ----------------------------------------------------------------------------------

    @property
    def evidence(self) -> tuple[DoubleVote, ...]:
        """The first double vote seen of each validator that signed one, in id order."""
        return tuple(self._evidence[signer] for signer in sorted(self._evidence))

    def get_votes(
        self, round_number: int, kind: VoteKind, value: Hash | None
    ) -> tuple[Signed[Vote], ...]:
        """Give the counted votes for a value, in the order of their signers' ids."""
        votes = self._get_tally(round_number, kind).get_votes(value)
        return tuple(votes[signer] for signer in sorted(votes))

    def get_all_votes(self, round_number: int) -> tuple[Signed[Vote], ...]:
        """Give all counted votes of a round, prevotes first: what a peer that lags may lack."""
        return tuple(
            votes[signer]
            for kind in _VOTE_KINDS
            for votes in self._get_tally(round_number, kind).counted.values()
            for signer in sorted(votes)
        )

    def list_of(self, signer: NodeId) -> tuple[Signed[Vote], ...]:
        """List the counted votes of a signer, by round."""
        return tuple(
            votes[signer]
            for _, tally in sorted(self._tallies.items())
            for votes in tally.counted.values()
            if signer in votes
        )

    def has_quorum(self, round_number: int, kind: VoteKind, value: Hash | None) -> bool:
        """Tell whether a quorum voted for the value: the paper's 2f + 1 ⟨kind, h, round, id(v)⟩."""
        votes = self._get_tally(round_number, kind).get_votes(value)
        return self._reaches(votes, self._validators.quorum_power)

    def has_quorum_of_any(self, round_number: int, kind: VoteKind) -> bool:
        """Tell whether a quorum voted, for whatever: the paper's 2f + 1 ⟨kind, h, round, *⟩."""
        signers = self._get_tally(round_number, kind).first
        return self._reaches(signers, self._validators.quorum_power)

    def has_correct_vote(self, round_number: int, value: Hash) -> bool:
        """Tell whether a correct validator must have voted for the value in the round: f + 1."""
        return any(
            self._reaches(
                self._get_tally(round_number, kind).get_votes(value),
                self._validators.one_correct_power,
            )
            for kind in _VOTE_KINDS
        )

    def find_quorum_values(self) -> tuple[tuple[int, Hash], ...]:
        """Find the blocks with a quorum of either kind of vote, with their rounds, sorted."""
        found = {
            (round_number, value)
            for (round_number, kind), tally in self._tallies.items()
            for value in tally.counted
            if value is not None and self.has_quorum(round_number, kind, value)
        }
        return tuple(sorted(found))

    def find_round_ahead(self, current_round: int) -> int | None:
        """Find the latest later round that a correct validator must be in: f + 1 voted there.

        The paper also counts a proposal; its proposer votes in the same round.
        """
        signers: dict[int, set[NodeId]] = {}
        for (round_number, _), tally in self._tallies.items():
            if round_number > current_round:
                signers.setdefault(round_number, set()).update(tally.first)
        reached = [
            round_number
            for round_number, voted in signers.items()
            if self._reaches(voted, self._validators.one_correct_power)
        ]
        return max(reached, default=None)

    def _get_tally(self, round_number: int, kind: VoteKind) -> _Tally:
        return self._tallies.get((round_number, kind)) or _Tally()

    def _reaches(self, signers: Iterable[NodeId], least_power: int) -> bool:
        return self._validators.compute_power(signers) >= least_power
