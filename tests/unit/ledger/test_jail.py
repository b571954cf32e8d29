"""Repeated absence jails without slashing. Source: docs/spec/ledger.md §7, election.md."""

from __future__ import annotations

import pytest

from iemas.core.params import MarketParams
from iemas.ledger.transaction import (
    AbsenceVote,
    ResultCode,
    ReturnToDuty,
    Stake,
    TransferFunds,
    Unstake,
)
from iemas.testing.chain import LedgerChain, make_genesis

PARAMS = MarketParams(
    absence_limit=2, absence_window_terms=5, jail_ms=15_000, min_stake_micros=1_000
)
NODES = ("node-1", "node-2", "node-3", "node-4")


@pytest.fixture
def chain() -> LedgerChain:
    """Four equal validators; two absences within five terms jail for 15 s."""
    return LedgerChain(make_genesis(validators=NODES, params=PARAMS))


def make_absent(chain: LedgerChain, accused: str) -> None:
    """Let all others vote, as far as that is needed."""
    term = chain.state.get_term(chain.hub).number
    for voter in NODES:
        node = chain.get_node(accused)
        if voter != accused and chain.state.is_live(chain.hub, node):
            chain.submit(voter, AbsenceVote(chain.hub, term, node))
    assert not chain.state.is_live(chain.hub, chain.get_node(accused))


def come_back(chain: LedgerChain, name: str) -> None:
    chain.submit(name, ReturnToDuty(chain.hub))
    chain.end_term()
    assert chain.state.is_live(chain.hub, chain.get_node(name))


def is_jailed(chain: LedgerChain, name: str) -> bool:
    return chain.state.is_jailed(chain.get_node(name))


def jail(chain: LedgerChain, name: str) -> None:
    make_absent(chain, name)
    come_back(chain, name)
    make_absent(chain, name)


def test_one_absence_is_forgiven(chain: LedgerChain) -> None:
    make_absent(chain, "node-1")
    assert not is_jailed(chain, "node-1")
    assert chain.get_node("node-1") in dict(chain.state.get_consensus_validators())


def test_repeated_absence_jails_without_slashing(chain: LedgerChain) -> None:
    jail(chain, "node-1")
    assert is_jailed(chain, "node-1")
    assert chain.get_node("node-1") not in dict(chain.state.get_consensus_validators())
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 1_000


def test_absences_beyond_the_window_are_forgotten(chain: LedgerChain) -> None:
    make_absent(chain, "node-1")
    come_back(chain, "node-1")
    for _ in range(PARAMS.absence_window_terms):
        chain.end_term()
    make_absent(chain, "node-1")
    assert not is_jailed(chain, "node-1")


def test_a_jailed_validator_returns_after_its_time(chain: LedgerChain) -> None:
    jail(chain, "node-1")
    chain.apply(after_ms=PARAMS.jail_ms - 2)
    assert not chain.state.may_return(chain.hub, chain.get_node("node-1"))
    assert chain.submit("node-1", ReturnToDuty(chain.hub)).code is ResultCode.JAILED
    chain.apply(after_ms=2)
    assert chain.submit("node-1", ReturnToDuty(chain.hub)).code is ResultCode.OK
    assert chain.get_node("node-1") in dict(chain.state.get_consensus_validators())
    chain.end_term()
    assert chain.state.is_live(chain.hub, chain.get_node("node-1"))


def test_not_more_than_a_third_of_the_stake_is_jailed(chain: LedgerChain) -> None:
    jail(chain, "node-1")
    jail(chain, "node-2")
    assert not is_jailed(chain, "node-2")
    assert not chain.state.is_live(chain.hub, chain.get_node("node-2"))


def test_leaving_does_not_shorten_the_jail(chain: LedgerChain) -> None:
    jail(chain, "node-1")
    chain.submit("node-1", Unstake(1_000))
    chain.submit("alice", TransferFunds(chain.get_id("node-1"), 1_000))
    chain.submit("node-1", Stake(1_000))
    assert chain.get_node("node-1") not in dict(chain.state.get_consensus_validators())
    assert chain.submit("node-1", ReturnToDuty(chain.hub)).code is ResultCode.JAILED


def test_a_jail_that_is_over_is_forgotten_of_who_left(chain: LedgerChain) -> None:
    jail(chain, "node-1")
    chain.submit("node-1", Unstake(1_000))
    chain.apply(after_ms=PARAMS.jail_ms)
    assert not is_jailed(chain, "node-1")


def test_a_double_vote_turns_a_jail_into_one_for_good(chain: LedgerChain) -> None:
    chain.apply()
    jail(chain, "node-1")
    chain.submit("alice", chain.make_double_vote("node-1", 1))
    chain.apply(after_ms=PARAMS.jail_ms)
    assert chain.submit("node-1", ReturnToDuty(chain.hub)).code is ResultCode.JAILED
