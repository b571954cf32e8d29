"""More rounds and more validators: place by place instead of every interleaving.

A place is a round and a kind of vote. What a validator may vote at a place depends on votes at
earlier places only: `Interleavings.find_dependence` finds no exception in any situation that the
full search meets. So the votes of every schedule can be cast in the order of their places, by the
same validators for the same values. And votes at a place that is over stay as they are, so only two
things about them matter from then on: for which values they make a quorum, and whether they make
one of any kind (in both cases with the help of the Byzantine votes).

A state is what the correct validators would persist, and that. In a transition each of them casts
one of the votes that it may cast at the next place, or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from tests.model.validators import START, VALUES, CorrectValidators, Local

NO_VOTE = -1


class State(NamedTuple):
    """Validators by number, the tally of each value, and the next place."""

    numbers: tuple[int, ...]
    tallies: tuple[int, ...]
    place: int


class Layers:
    """Validators and the two valid values are interchangeable."""

    def __init__(self, validators: CorrectValidators) -> None:
        self.validators = validators

    def get_start(self) -> State:
        number = self.validators.number(START)
        return State((number,) * self.validators.n_correct, (0,) * len(VALUES), 0)

    def succeed(self, state: State) -> Iterator[State]:
        if state.place == len(self.validators.places):
            return
        options = [self._list_options(number, state) for number in state.numbers]
        for choice in sorted({tuple(sorted(choice)) for choice in itertools.product(*options)}):
            closed = self.validators.close_place(
                state.place, [value for _, value in choice if value != NO_VOTE]
            )
            tallies = tuple(map(sum, zip(state.tallies, closed, strict=True)))
            yield State(tuple(number for number, _ in choice), tallies, state.place + 1)

    def _list_options(self, number: int, state: State) -> list[tuple[int, int]]:
        """List the votes that a validator may cast at the place: where it gets to, for what."""
        options = {(number, NO_VOTE)}
        for value, tally in enumerate(state.tallies):
            for after in self.validators.list_steps(number, value, tally):
                local = self.validators.locals[after]
                cast = local.votes[-1]
                if cast.place == state.place:
                    options.add((self.validators.number(Local(local.state)), cast.value))
        return sorted(options)

    def canonicalise(self, state: State) -> State:
        in_a, in_b, *others = state.tallies
        swapped = sorted(self.validators.swapped[number] for number in state.numbers)
        return min(
            State(tuple(sorted(state.numbers)), state.tallies, state.place),
            State(tuple(swapped), (in_b, in_a, *others), state.place),
        )

    def get_tallies(self, state: State) -> tuple[int, ...]:
        return state.tallies

    def describe(self, state: State) -> list[str]:
        quorums = self.validators.describe_quorums(state.tallies)
        return [*map(self.validators.describe, state.numbers), f"quorums: {quorums}"]
