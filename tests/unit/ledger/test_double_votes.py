"""Double votes: what is evidence, and what it does. Source: docs/spec/ledger.md §7."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iemas.core.envelope import Signed
from iemas.core.params import MarketParams
from iemas.core.vote import VoteKind
from iemas.ledger.transaction import (
    DoubleVoteEvidence,
    Evidence,
    ResultCode,
    ReturnToDuty,
    Stake,
    TransferFunds,
    Unstake,
)
from iemas.ledger.transfer import TREASURY, get_unbonding
from iemas.testing.chain import SOME_HASH, LedgerChain, make_genesis

PARAMS = MarketParams(
    min_stake_micros=400,
    evidence_window_ms=64_000,
    unbonding_ms=100_000,
    double_vote_slash_ppm=100_000,
    reporter_ppm=50_000,
)
OTHER_HASH = b"\x01" * 32


@pytest.fixture
def chain() -> LedgerChain:
    """Three validators with 1,000 each at height 1; a double vote costs a tenth."""
    chain = LedgerChain(make_genesis(params=PARAMS))
    chain.apply()
    return chain


def get_voters(chain: LedgerChain) -> set[str]:
    return {chain.get_name(node) for node, _ in chain.state.get_consensus_validators()}


def get_available(chain: LedgerChain, name: str) -> int:
    return chain.state.get_balance(chain.get_id(name))[0]


def test_a_double_vote_is_slashed_and_jailed(chain: LedgerChain) -> None:
    result = chain.submit("alice", chain.make_double_vote("node-1", 1))
    assert (result.code, result.detail) == (ResultCode.OK, "DoubleVote")
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 900
    assert get_voters(chain) == {"node-2", "node-3"}
    assert not chain.state.is_live(chain.hub, chain.get_node("node-1"))


def test_the_reporter_gets_at_most_a_twentieth_and_the_treasury_the_rest(
    chain: LedgerChain,
) -> None:
    chain.submit("alice", chain.make_double_vote("node-1", 1))
    assert get_available(chain, "alice") == 1_000_000 + 5
    assert chain.state.get_funds(TREASURY) == 95


def test_who_reports_itself_gets_nothing(chain: LedgerChain) -> None:
    chain.submit("node-1", chain.make_double_vote("node-1", 1))
    assert get_available(chain, "node-1") == 0
    assert chain.state.get_funds(TREASURY) == 100


def test_unbonding_money_is_slashed_too(chain: LedgerChain) -> None:
    chain.submit("node-1", Unstake(600))
    chain.submit("alice", chain.make_double_vote("node-1", 1))
    node = chain.get_id("node-1")
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 360
    assert chain.state.get_funds(get_unbonding(node)) == 540
    chain.apply(after_ms=PARAMS.unbonding_ms)
    assert get_available(chain, "node-1") == 540


def test_who_has_left_is_slashed_while_its_stake_unbonds(chain: LedgerChain) -> None:
    chain.submit("node-1", Unstake(1_000))
    assert chain.submit("alice", chain.make_double_vote("node-1", 1)).code is ResultCode.OK
    assert chain.state.get_funds(get_unbonding(chain.get_id("node-1"))) == 900


def test_a_height_is_punished_once(chain: LedgerChain) -> None:
    chain.submit("alice", chain.make_double_vote("node-1", 1))
    again = (
        chain.make_vote("node-1", 1, SOME_HASH, round_number=3),
        chain.make_vote("node-1", 1, OTHER_HASH, round_number=3),
    )
    result = chain.submit("bob", Evidence(DoubleVoteEvidence(*again)))
    assert result.code is ResultCode.ALREADY_DONE
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 900


def test_return_to_duty_does_not_free_a_double_voter(chain: LedgerChain) -> None:
    chain.submit("alice", chain.make_double_vote("node-1", 1))
    chain.apply(after_ms=PARAMS.jail_ms)
    assert chain.submit("node-1", ReturnToDuty(chain.hub)).code is ResultCode.JAILED


def test_staking_anew_frees_a_double_voter(chain: LedgerChain) -> None:
    chain.submit("alice", chain.make_double_vote("node-1", 1))
    chain.submit("alice", TransferFunds(chain.get_id("node-1"), 1_000))
    assert chain.submit("node-1", Stake(399)).code is ResultCode.JAILED
    assert chain.submit("node-1", Stake(400)).code is ResultCode.OK
    assert get_voters(chain) == {"node-1", "node-2", "node-3"}
    assert not chain.state.is_live(chain.hub, chain.get_node("node-1"))
    chain.end_term()
    assert chain.state.is_live(chain.hub, chain.get_node("node-1"))


def test_the_last_one_is_slashed_but_not_jailed() -> None:
    chain = LedgerChain(make_genesis(validators=["node-1"], params=PARAMS))
    chain.apply()
    assert chain.submit("alice", chain.make_double_vote("node-1", 1)).code is ResultCode.OK
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 900
    assert get_voters(chain) == {"node-1"}
    assert chain.state.is_live(chain.hub, chain.get_node("node-1"))


# --- what is no evidence -------------------------------------------------------------------------


def submit_votes(chain: LedgerChain, one: Signed[Any], other: Signed[Any]) -> ResultCode:
    code = chain.submit("alice", Evidence(DoubleVoteEvidence(one, other))).code
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 1_000
    return code


def test_one_vote_shown_twice_is_no_evidence(chain: LedgerChain) -> None:
    vote = chain.make_vote("node-1", 1, SOME_HASH)
    assert submit_votes(chain, vote, vote) is ResultCode.INVALID_ENTRY


@pytest.mark.parametrize(
    "other",
    [
        {"height": 2},
        {"round_number": 1},
        {"kind": VoteKind.PRECOMMIT},
        {"name": "node-2"},
    ],
)
def test_votes_that_do_not_contradict_each_other_are_no_evidence(
    chain: LedgerChain, other: dict[str, Any]
) -> None:
    chain.apply()
    given = {"name": "node-1", "height": 1, "block_hash": OTHER_HASH} | other
    one, two = chain.make_vote("node-1", 1, SOME_HASH), chain.make_vote(**given)
    assert submit_votes(chain, one, two) is ResultCode.INVALID_ENTRY


def test_a_forged_vote_is_no_evidence(chain: LedgerChain) -> None:
    one, two = chain.make_vote("node-1", 1, SOME_HASH), chain.make_vote("node-1", 1, None)
    forged = Signed(two.message, replace(two.envelope, signature=bytes(64)))
    assert submit_votes(chain, one, forged) is ResultCode.WRONG_SIGNER
    assert submit_votes(chain, forged, one) is ResultCode.WRONG_SIGNER


def test_votes_on_a_height_to_come_are_no_evidence(chain: LedgerChain) -> None:
    evidence = chain.make_double_vote("node-1", chain.state.height + 2)
    assert chain.submit("alice", evidence).code is ResultCode.INVALID_ENTRY


def test_the_votes_of_others_are_no_evidence(chain: LedgerChain) -> None:
    result = chain.submit("alice", chain.make_double_vote("bob", 1))
    assert result.code is ResultCode.NOT_VALIDATOR


def test_a_vote_before_one_was_a_validator_is_no_evidence(chain: LedgerChain) -> None:
    chain.submit("bob", Stake(400))  # in block 2: a validator from block 4 on
    chain.apply()
    chain.apply()
    assert chain.submit("alice", chain.make_double_vote("bob", 3)).code is ResultCode.NOT_VALIDATOR
    assert chain.submit("alice", chain.make_double_vote("bob", 4)).code is ResultCode.OK


def test_evidence_expires(chain: LedgerChain) -> None:
    chain.apply(after_ms=PARAMS.evidence_window_ms)
    assert chain.submit("alice", chain.make_double_vote("node-1", 1)).code is ResultCode.OK
    chain.apply(after_ms=1)
    assert chain.submit("alice", chain.make_double_vote("node-2", 1)).code is ResultCode.EXPIRED
