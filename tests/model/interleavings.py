"""Every interleaving: correct validators take their steps in any order.

A state is what each correct validator would persist, and the votes that it has cast. In a
transition one of them casts a vote.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.validators import PLACE_BITS, START, CorrectValidators

State = tuple[int, ...]


class Interleavings:
    """States are validators by number; they and the two valid values are interchangeable."""

    def __init__(self, validators: CorrectValidators) -> None:
        self.validators = validators
        self._looked_up: set[tuple[int, int, int]] = set()

    def get_start(self) -> State:
        return (self.validators.number(START),) * self.validators.n_correct

    def succeed(self, state: State) -> Iterator[State]:
        for value, tally in enumerate(self.get_tallies(state)):
            for position, number in enumerate(state):
                if position and number == state[position - 1]:
                    continue  # of two validators in the same state one stands for both
                self._looked_up.add((number, value, tally))
                for after in self.validators.list_steps(number, value, tally):
                    yield (*state[:position], after, *state[position + 1 :])

    def canonicalise(self, state: State) -> State:
        swapped = self.validators.swapped
        return min(tuple(sorted(state)), tuple(sorted(swapped[number] for number in state)))

    def get_tallies(self, state: State) -> tuple[int, ...]:
        return self.validators.sum_tallies(state)

    def describe(self, state: State) -> list[str]:
        return [self.validators.describe(number) for number in state]

    def find_dependence(self) -> tuple[int, int, int] | None:
        """Find a vote that depends on votes at its own or a later place, after a search.

        There must be none: then the search place by place of `tests.model.layers` is complete.
        """
        for number, value, tally in sorted(self._looked_up):
            for place in range(len(self.validators.places)):
                earlier = tally & ((1 << (PLACE_BITS * place)) - 1)
                if self._list_votes(number, value, tally, place) != self._list_votes(
                    number, value, earlier, place
                ):
                    return number, value, tally
        return None

    def _list_votes(self, number: int, value: int, tally: int, place: int) -> set[int]:
        return {
            after
            for after in self.validators.list_steps(number, value, tally)
            if self.validators.locals[after].votes[-1].place == place
        }
