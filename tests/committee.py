"""Validators by number, and what they sign, for tests of consensus. Signatures are left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from iemas.consensus.tendermint import SignState, Tendermint
from iemas.consensus.validators import Validator, ValidatorSet
from iemas.consensus.voting import NO_ROUND, Proposal, Vote, VoteKind
from iemas.core.envelope import Envelope, Signed
from iemas.core.identity import compute_node_id
from iemas.core.types import Hash, NodeId

MessageT = TypeVar("MessageT")

HEIGHT = 7
A, B, C = (Hash(letter * 32) for letter in (b"A", b"B", b"C"))


class Committee:
    """Validators 0 to n − 1 in id order; of equal power they propose in that order."""

    def __init__(
        self, powers: Sequence[int], *, set_type: type[ValidatorSet] = ValidatorSet
    ) -> None:
        keys = (bytes([number + 1]) * 32 for number in range(len(powers)))
        self.keys = sorted(keys, key=compute_node_id)
        self.ids = [compute_node_id(key) for key in self.keys]
        members = zip(self.ids, powers, strict=True)
        self.validators = set_type(Validator(node_id, power) for node_id, power in members)
        self._numbers = {node_id: number for number, node_id in enumerate(self.ids)}

    def get_number(self, node_id: NodeId) -> int:
        return self._numbers[node_id]

    def get_proposer(self, round_number: int) -> int:
        return self.get_number(self.validators.get_proposer(round_number))

    def sign(self, number: int, message: MessageT) -> Signed[MessageT]:
        return Signed(message, Envelope(repr(message).encode(), self.keys[number], b""))

    def vote(self, number: int, kind: VoteKind, value: Hash | None, *, at: int = 0) -> Signed[Vote]:
        return self.sign(number, Vote(HEIGHT, at, kind, value))

    def prevote(self, number: int, value: Hash | None, *, at: int = 0) -> Signed[Vote]:
        return self.vote(number, VoteKind.PREVOTE, value, at=at)

    def precommit(self, number: int, value: Hash | None, *, at: int = 0) -> Signed[Vote]:
        return self.vote(number, VoteKind.PRECOMMIT, value, at=at)

    def propose(self, value: Hash, *, at: int = 0, valid_at: int = NO_ROUND) -> Signed[Proposal]:
        """Sign as the round's proposer."""
        proposer = self.get_proposer(at)
        return self.sign(proposer, Proposal(HEIGHT, at, value, valid_at))

    def make_machine(
        self,
        number: int,
        *,
        sign_state: SignState | None = None,
        machine_type: type[Tendermint] = Tendermint,
    ) -> Tendermint:
        return machine_type(
            height=HEIGHT,
            validators=self.validators,
            own_id=self.ids[number],
            sign_state=sign_state,
        )
