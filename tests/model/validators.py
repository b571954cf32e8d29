"""Correct validators of the model: what the real code does with the messages that exist.

For each step a validator is made anew from its sign state, with an empty log, and is given messages
about one value; then one rule or timeout of the real machine happens. Results are remembered, so a
search of a million states runs the real code some ten thousand times.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from iemas.consensus.tendermint import SignState, Step, Tendermint
from iemas.consensus.validators import ValidatorSet
from iemas.consensus.votes import HeightVotes
from iemas.consensus.voting import NO_ROUND, Proposal, Vote, VoteKind
from iemas.core.types import Hash, NodeId
from tests.committee import HEIGHT, A, B, Committee

X = Hash(b"X" * 32)
"""The invalid value."""

VALID_VALUES = (A, B)
VALUES: tuple[Hash | None, ...] = (A, B, X, None)
RULES = (
    "_upon_new_value_proposed",
    "_upon_earlier_value_proposed",
    "_upon_any_prevotes",
    "_upon_prevotes_for_value",
    "_upon_prevotes_for_nil",
    "_upon_any_precommits",
    "_upon_votes_of_later_round",
)
DECISION_RULE = "_upon_precommits_for_value"
TIMEOUTS = ("_on_timeout_propose", "_on_timeout_prevote", "_on_timeout_precommit")

FIELD_BITS = 4
PLACE_BITS = 2 * FIELD_BITS


class ByzantineProposers(ValidatorSet):
    """The last validator, a Byzantine one, proposes in every round."""

    def get_proposer(self, round_number: int) -> NodeId:
        return self.validators[-1].node_id


class ContradictionError(Exception):
    """A correct validator contradicted itself."""


class Cast(NamedTuple):
    """A vote that was cast: where, and the index of its value in `VALUES`."""

    place: int
    value: int


class Local(NamedTuple):
    """One correct validator: what it would persist, and its votes."""

    state: SignState
    votes: tuple[Cast, ...] = ()


START = Local(SignState(HEIGHT, 0, Step.PROPOSE))


class CorrectValidators:
    """The correct ones of a committee of equal power; ⌊(n − 1) / 3⌋ of it are Byzantine.

    A *place* is a round and a kind of vote; places are numbered in order. A *tally* for a value
    packs into one integer, for each place, how many correct validators voted there and how many of
    them for the value, so that the tallies of several validators add up. Validators' states are
    numbered.
    """

    def __init__(
        self,
        *,
        rounds: int,
        committee: int = 4,
        machine_type: type[Tendermint] = Tendermint,
        set_type: type[ByzantineProposers] = ByzantineProposers,
    ) -> None:
        self.rounds = rounds
        self.places = tuple(
            itertools.product(range(rounds), (VoteKind.PREVOTE, VoteKind.PRECOMMIT))
        )
        self.n_byzantine = (committee - 1) // 3
        self.n_correct = committee - self.n_byzantine
        self.locals: list[Local] = []
        self.swapped: list[int] = []
        """By validator's number, the number of the same one with the valid values exchanged."""
        self.shares: list[tuple[int, ...]] = []
        """By validator's number, what its votes add to the tally of each value."""
        self.fired: Counter[str] = Counter()
        """How often each rule fired."""
        self._committee = Committee([1] * committee, set_type=set_type)
        self._machine_type = machine_type
        self._numbers: dict[Local, int] = {}
        self._steps: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self._decidable: dict[tuple[int, int], bool] = {}
        self._votes: dict[tuple[int, int], HeightVotes] = {}
        self._n_enough = self._committee.validators.quorum_power - self.n_byzantine

    # --- states and tallies ----------------------------------------------------------------------

    def number(self, local: Local) -> int:
        """Give a validator's state its number."""
        number = self._numbers.get(local)
        if number is None:
            number = self._numbers[local] = len(self.locals)
            self.locals.append(local)
            self.shares.append(tuple(_pack(local, value) for value in range(len(VALUES))))
            self.swapped.append(number)
            self.swapped[number] = self.number(_swap(local))
        return number

    def sum_tallies(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """Count the votes of these validators: a tally for each value."""
        return tuple(map(sum, zip(*[self.shares[number] for number in numbers], strict=True)))

    def close_place(self, place: int, values: list[int]) -> tuple[int, ...]:
        """Give the least tallies with the same quorums as these values voted at a place.

        A quorum here is one with the help of all Byzantine validators.
        """
        n_voted = self._n_enough if len(values) >= self._n_enough else 0
        return tuple(
            _place(place, n_voted, self._n_enough if values.count(value) >= self._n_enough else 0)
            for value in range(len(VALUES))
        )

    # --- the real code ---------------------------------------------------------------------------

    def list_steps(self, number: int, value: int, tally: int) -> tuple[int, ...]:
        """List where a validator can get to that casts a vote, by messages about one value.

        On the way it may take any steps that cast none. Raises: ContradictionError.
        """
        key = (number, value, tally)
        known = self._steps.get(key)
        if known is None:
            known = self._steps[key] = self._explore_steps(number, value, tally)
        return known

    def _explore_steps(self, number: int, value: int, tally: int) -> tuple[int, ...]:
        silent, voted = {number}, set[int]()
        unexplored = [number]
        while unexplored:
            local = self.locals[unexplored.pop()]
            for machine in self._take_steps(local.state, value, tally):
                if machine.round >= self.rounds:
                    continue
                after = self._follow(local, machine)
                if len(self.locals[after].votes) > len(local.votes):
                    voted.add(after)
                elif after not in silent:
                    silent.add(after)
                    unexplored.append(after)
        return tuple(sorted(voted))

    def _take_steps(self, state: SignState, value: int, tally: int) -> Iterator[Tendermint]:
        """Let each rule that can fire do so, and each timeout, on a machine of its own."""
        for proposal in _list_proposals(state.round, VALUES[value]):
            for rule in RULES:
                machine = self._make_machine(state, value, tally, proposal)
                if getattr(machine, rule)():
                    self.fired[rule] += 1
                    yield machine
        for timeout in TIMEOUTS:
            machine = self._make_machine(state, value, tally, None)
            getattr(machine, timeout)()
            yield machine

    def can_decide(self, value: int, tally: int) -> bool:
        """Tell whether the rule of the decision fires for a value, in any round."""
        key = (value, tally)
        known = self._decidable.get(key)
        block_hash = VALUES[value]
        if known is None and block_hash is not None:
            machine = self._make_machine(START.state, value, tally, None)
            for at in range(self.rounds):
                self._give(machine, Proposal(HEIGHT, at, block_hash))
            known = self._decidable[key] = getattr(machine, DECISION_RULE)()
            self.fired[DECISION_RULE] += known
        return bool(known)

    def _make_machine(
        self, state: SignState, value: int, tally: int, proposal: Proposal | None
    ) -> Tendermint:
        machine = self._committee.make_machine(0, sign_state=state, machine_type=self._machine_type)
        machine._is_started = True
        machine.votes = self._get_votes(value, tally)
        if proposal is not None:
            self._give(machine, proposal)
        return machine

    def _give(self, machine: Tendermint, proposal: Proposal) -> None:
        machine._keep_proposal(proposal, is_valid=proposal.block_hash in VALID_VALUES)

    def _get_votes(self, value: int, tally: int) -> HeightVotes:
        """Make votes that have this tally; the Byzantine validators vote for the value."""
        known = self._votes.get((value, tally))
        if known is None:
            known = self._votes[value, tally] = HeightVotes(HEIGHT, self._committee.validators)
            chosen = VALUES[value]
            other = A if chosen is None else None
            for place, (at, kind) in enumerate(self.places):
                n_voted, n_for = _unpack(tally, place)
                for number in range(self.n_correct + self.n_byzantine):
                    is_byzantine = number >= self.n_correct
                    if number < n_voted or is_byzantine:
                        voted = chosen if number < n_for or is_byzantine else other
                        signed = self._committee.vote(number, kind, voted, at=at)
                        known.add(signed, current_round=self.rounds)
        return known

    def _follow(self, local: Local, machine: Tendermint) -> int:
        """Give the state after a step; the valid value matters to proposers only.

        Raises: ContradictionError.
        """
        votes = list(local.votes)
        for output in machine._outputs:
            if isinstance(output, Vote):
                cast = Cast(
                    self.places.index((output.round, output.kind)),
                    VALUES.index(output.block_hash),
                )
                if votes and votes[-1].place >= cast.place:
                    raise ContradictionError(f"no contradiction: {cast} after {votes}")
                votes.append(cast)
        state = replace(machine.sign_state, valid_value=None, valid_round=NO_ROUND)
        return self.number(Local(state, tuple(votes)))

    # --- words -----------------------------------------------------------------------------------

    def describe(self, number: int) -> str:
        """Describe a validator in a line."""
        state, votes = self.locals[number]
        lock = f"lock {_name(state.locked_value)} of {state.locked_round}"
        where = f"round {state.round}, {lock if state.locked_value else 'no lock'}"
        return "; ".join([where, *(self._describe_vote(*vote) for vote in votes)])

    def describe_quorums(self, tallies: tuple[int, ...]) -> str:
        """Describe which quorums there can be with the help of all Byzantine votes."""
        quorums = [
            self._describe_vote(place, value)
            for place in range(len(self.places))
            for value, tally in enumerate(tallies)
            if _unpack(tally, place)[1] >= self._n_enough
        ]
        return "; ".join(quorums) or "none"

    def _describe_vote(self, place: int, value: int) -> str:
        at, kind = self.places[place]
        return f"{kind.name.lower()} {_name(VALUES[value])} in {at}"


def _list_proposals(at: int, value: Hash | None) -> list[Proposal | None]:
    if value is None:
        return [None]
    return [Proposal(HEIGHT, at, value, valid_at) for valid_at in range(NO_ROUND, at)]


def _name(value: Hash | None) -> str:
    return "nil" if value is None else value[:1].decode()


def _place(place: int, n_voted: int, n_for: int) -> int:
    return (n_voted | n_for << FIELD_BITS) << (PLACE_BITS * place)


def _unpack(tally: int, place: int) -> tuple[int, int]:
    fields = tally >> (PLACE_BITS * place)
    mask = (1 << FIELD_BITS) - 1
    return fields & mask, fields >> FIELD_BITS & mask


def _pack(local: Local, value: int) -> int:
    return sum(_place(cast.place, 1, int(cast.value == value)) for cast in local.votes)


def _swap(local: Local) -> Local:
    """Exchange the two valid values."""
    exchanged = {A: B, B: A}
    locked = local.state.locked_value
    state = local.state if locked is None else replace(local.state, locked_value=exchanged[locked])
    order = (1, 0, *range(2, len(VALUES)))
    return Local(state, tuple(Cast(cast.place, order[cast.value]) for cast in local.votes))
