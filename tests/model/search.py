"""Breadth-first search of a space of states for one that breaks a promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tests.model.validators import VALUES, ContradictionError, CorrectValidators, X

StateT = TypeVar("StateT")


class Space(Protocol[StateT]):
    """States and how they follow each other."""

    validators: CorrectValidators

    def get_start(self) -> StateT:
        """Give the first state."""

    def succeed(self, state: StateT) -> Iterable[StateT]:
        """Give the states that can follow. Raises: ContradictionError."""

    def canonicalise(self, state: StateT) -> StateT:
        """Give one state for all that differ in names only."""

    def get_tallies(self, state: StateT) -> tuple[int, ...]:
        """Give the votes that exist, as a tally for each value."""

    def describe(self, state: StateT) -> list[str]:
        """Describe a state, a line a validator."""


@dataclass(frozen=True)
class Report(Generic[StateT]):
    """What a search found: how much there was, and the way to a broken promise if there is one."""

    states: int
    transitions: int
    depth: int
    deciding: int
    """In how many states some value can be decided."""
    broken: str | None
    way: tuple[StateT, ...]


def search(space: Space[StateT]) -> Report[StateT]:
    """Visit every state; stop at the first that breaks a promise."""
    start = space.get_start()
    parents: dict[StateT, StateT | None] = {start: None}
    frontier, depth, transitions, deciding = [start], 0, 0, 0
    while frontier:
        following: list[StateT] = []
        for state in frontier:
            decidable = _list_decidable(space, state)
            deciding += bool(decidable)
            broken = _find_broken(decidable)
            try:
                successors = [] if broken else list(map(space.canonicalise, space.succeed(state)))
            except ContradictionError as error:
                broken = str(error)
            if broken:
                way = _retrace(space, state, parents)
                return Report(len(parents), transitions, depth, deciding, broken, way)
            transitions += len(successors)
            for after in successors:
                if after not in parents:
                    parents[after] = state
                    following.append(after)
        depth += bool(following)
        frontier = following
    return Report(len(parents), transitions, depth, deciding, None, ())


def _list_decidable(space: Space[StateT], state: StateT) -> list[int]:
    tallies = space.get_tallies(state)
    return [
        value for value, tally in enumerate(tallies) if space.validators.can_decide(value, tally)
    ]


def _find_broken(decidable: list[int]) -> str | None:
    if VALUES.index(X) in decidable:
        return "validity: the invalid value can be decided"
    return "agreement: two values can be decided" if len(decidable) > 1 else None


def _retrace(
    space: Space[StateT], state: StateT, parents: dict[StateT, StateT | None]
) -> tuple[StateT, ...]:
    """Find the way to a state again, with the same names throughout."""
    path = [state]
    while (parent := parents[path[-1]]) is not None:
        path.append(parent)
    way = [path.pop()]
    while path:
        expected = path.pop()
        way.append(next(a for a in space.succeed(way[-1]) if space.canonicalise(a) == expected))
    return tuple(way)
