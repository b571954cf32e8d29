"""Whose turn it is to propose is part of the state. Source: docs/spec/consensus.md T3 to T5."""

from __future__ import annotations

from dataclasses import replace

from iemas.consensus.commits import make_validators
from iemas.consensus.validators import ValidatorSet
from iemas.core.types import NodeId
from iemas.ledger.blocks import rotate_proposers
from iemas.ledger.records import ValidatorPower
from iemas.ledger.state import LedgerState, make_genesis_state
from iemas.testing.chain import LedgerChain, make_genesis

IDS = [NodeId(letter * 32) for letter in (b"a", b"b", b"c")]


class Rotation:
    """A state in which nothing happens but that heights pass and validators change."""

    def __init__(self, *powers: int) -> None:
        self.state: LedgerState = make_genesis_state(make_genesis(), "chain")
        self.set_powers(1, *powers)
        rotate_proposers(self.state)

    def set_powers(self, height: int, *powers: int) -> None:
        members = zip(IDS, powers, strict=False)
        self.state.validator_sets[height] = tuple(ValidatorPower(*m) for m in members if m[1])

    def pass_height(self) -> None:
        facts = self.state.facts
        self.state.facts = replace(facts, height=facts.height + 1)
        rotate_proposers(self.state)

    @property
    def validators(self) -> ValidatorSet:
        return make_validators(self.state)

    def list_turns(self, rounds: int) -> str:
        validators = self.validators
        return "".join(validators.get_proposer(n)[:1].decode() for n in range(rounds))


def test_the_worked_table_of_the_spec() -> None:
    """Source: T5's table: powers 3, 1, 1 over heights 1 to 3, rounds 0 to 4."""
    rotation = Rotation(3, 1, 1)
    rows = []
    for _ in range(3):
        priorities = [validator.priority for validator in rotation.validators]
        rows.append((priorities, rotation.list_turns(5)))
        rotation.pass_height()
    assert rows == [
        ([0, 0, 0], "abaca"),
        ([-2, 1, 1], "bacab"),
        ([1, -3, 2], "acaba"),
    ]


def test_a_height_takes_one_turn() -> None:
    rotation = Rotation(3, 2, 1)
    turns = rotation.list_turns(8)
    rotation.pass_height()
    assert rotation.list_turns(7) == turns[1:]


def test_newcomers_start_behind_and_who_leaves_is_forgotten() -> None:
    """Source: T4."""
    rotation = Rotation(4, 4)
    rotation.set_powers(2, 4, 5, 7)
    rotation.pass_height()
    found = [(v.power, v.priority) for v in rotation.validators]
    assert found == [(4, -4), (5, 4), (7, -18)]
    rotation.set_powers(3, 0, 5, 7)
    rotation.pass_height()
    assert sorted(rotation.state.proposers) == IDS[1:]


def test_the_state_root_covers_whose_turn_it_is() -> None:
    state = LedgerChain().state.copy()
    root = state.compute_root()
    changed = state.copy()
    changed.proposers[min(changed.proposers)] += 1
    assert changed.compute_root() != root


def test_every_block_takes_a_turn(chain: LedgerChain) -> None:
    before = dict(chain.state.proposers)
    chain.apply()
    assert chain.state.proposers != before
    assert sum(chain.state.proposers.values()) == 0
