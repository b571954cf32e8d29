"""The validators of one height: who votes, with how much power, and who proposes when.

Power is an integer (staked micro-credits). A *quorum* is more than two thirds of all power: any
two quorums share more than one third, so at least one correct validator, as long as faulty ones
hold less than one third. The proposer of each round comes from the weighted round-robin that
elects auctioneers too (`iemas.core.election`), so power buys turns in proportion.

Source: docs/spec/consensus.md T1 to T5; cometbft `spec/consensus/proposer-selection.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from iemas.core.election import Candidate, compute_turn
from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.types import Hash, NodeId, require, require_id


@dataclass(frozen=True, slots=True)
class Validator:
    """One who votes: its power, and its place in the round-robin before the height's first turn."""

    node_id: NodeId
    power: int
    priority: int = 0

    def __post_init__(self) -> None:
        require_id("node_id", self.node_id)
        require(self.power >= 1, f"power must be at least 1, got {self.power}")


class ValidatorSet:
    """The validators of one height, in id order. A value: it never changes.

    Raises: MalformedMessageError if there is none, or one is named twice.
    """

    def __init__(self, validators: Iterable[Validator]) -> None:
        self.validators = tuple(sorted(validators, key=lambda validator: validator.node_id))
        self._powers = {validator.node_id: validator.power for validator in self.validators}
        require(len(self.validators) > 0, "a validator set needs at least one validator")
        require(len(self._powers) == len(self.validators), "a validator is named twice")
        self.total_power = sum(self._powers.values())
        self.quorum_power = 2 * self.total_power // 3 + 1
        """The least power that is more than two thirds of all: the paper's 2f + 1."""
        self.one_correct_power = self.total_power // 3 + 1
        """The least power that is more than one third, so not all of it faulty: f + 1."""
        self._turns: list[NodeId] = []  # proposers of the rounds looked at so far
        self._upcoming = tuple(
            Candidate(validator.node_id, validator.power, validator.priority)
            for validator in self.validators
        )

    def __len__(self) -> int:
        return len(self.validators)

    def __iter__(self) -> Iterator[Validator]:
        return iter(self.validators)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._powers

    def compute_power(self, node_ids: Iterable[NodeId]) -> int:
        """Sum the power of some of the validators, each named once."""
        return sum(self._powers[node_id] for node_id in node_ids)

    def get_proposer(self, round_number: int) -> NodeId:
        """Give the proposer of a round of this height: a turn of the round-robin a round.

        Where the turn falls to whoever had the round before, the others take it among themselves:
        a dead one with much power costs one round at a time (T3). Costs time in proportion to the
        round when it is first asked for: bound it before asking.
        """
        while len(self._turns) <= round_number:
            proposer, after = compute_turn(self._upcoming)
            if self._turns and proposer == self._turns[-1]:
                proposer, after = compute_turn(self._upcoming, sitting_out=proposer)
            self._turns.append(proposer)
            self._upcoming = after
        return self._turns[round_number]

    def compute_hash(self) -> Hash:
        """Name the members and their power, as block headers do; whose turn it is stays out."""
        return compute_members_hash((v.node_id, v.power) for v in self.validators)


def compute_members_hash(members: Iterable[tuple[NodeId, int]]) -> Hash:
    """Name a set of validators by id and power, in id order."""
    return compute_hash(b"iemas.v1.ValidatorSet", encode_canonical(tuple(map(tuple, members))))
