"""Absence, return, evidence. Source: docs/spec/election.md, docs/spec/ledger.md §5."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas.core.errors import InvalidTranscriptError
from iemas.core.types import HubId
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    AbsenceVote,
    ResultCode,
    ReturnToDuty,
)
from iemas.testing.chain import LedgerChain, make_genesis


def vote(chain: LedgerChain, voter: str, accused: str, term: int | None = None) -> ResultCode:
    number = chain.state.get_term(chain.hub).number if term is None else term
    return chain.submit(voter, AbsenceVote(chain.hub, number, chain.get_node(accused))).code


def get_duties(chain: LedgerChain) -> tuple[str, str, str]:
    """Name auctioneer, witness and the one that is neither."""
    term = chain.state.get_term(chain.hub)
    auctioneer, witness = chain.get_name(term.auctioneer), chain.get_name(term.witness)
    rest = {"node-1", "node-2", "node-3"} - {auctioneer, witness}
    return auctioneer, witness, rest.pop()


def test_one_vote_of_two_others_is_not_enough(chain: LedgerChain) -> None:
    auctioneer, witness, _ = get_duties(chain)
    assert vote(chain, witness, auctioneer) is ResultCode.OK
    assert chain.state.is_live(chain.hub, chain.get_node(auctioneer))


def test_more_than_half_of_the_others_take_the_auctioneer_out(chain: LedgerChain) -> None:
    auctioneer, witness, third = get_duties(chain)
    vote(chain, witness, auctioneer)
    vote(chain, third, auctioneer)
    term = chain.state.get_term(chain.hub)
    assert not chain.state.is_live(chain.hub, chain.get_node(auctioneer))
    assert (term.number, term.started_at_ms) == (1, chain.now_ms)
    assert chain.get_node(auctioneer) not in (term.auctioneer, term.witness)


def test_an_absent_witness_ends_the_term_too(chain: LedgerChain) -> None:
    auctioneer, witness, third = get_duties(chain)
    vote(chain, auctioneer, witness)
    vote(chain, third, witness)
    assert chain.state.get_term(chain.hub).number == 1


def test_the_absence_of_anyone_else_does_not_end_the_term(chain: LedgerChain) -> None:
    auctioneer, witness, third = get_duties(chain)
    vote(chain, auctioneer, third)
    vote(chain, witness, third)
    assert not chain.state.is_live(chain.hub, chain.get_node(third))
    assert chain.state.get_term(chain.hub).number == 0


def test_votes_count_by_stake() -> None:
    genesis = make_genesis()
    heavy, *rest = genesis.validators
    chain = LedgerChain(replace(genesis, validators=(replace(heavy, stake_micros=10_000), *rest)))
    assert vote(chain, "node-1", "node-2") is ResultCode.OK
    assert not chain.state.is_live(chain.hub, chain.get_node("node-2"))


def test_absent_validators_are_not_elected(chain: LedgerChain) -> None:
    auctioneer, witness, third = get_duties(chain)
    vote(chain, witness, auctioneer)
    vote(chain, third, auctioneer)
    for _ in range(5):
        assert chain.get_auctioneer() != auctioneer
        chain.end_term()


def test_of_two_live_validators_one_vote_suffices() -> None:
    chain = LedgerChain(make_genesis(validators=["node-1", "node-2"]))
    assert vote(chain, "node-2", "node-1") is ResultCode.OK
    assert chain.state.get_live_validators(chain.hub) == (chain.get_node("node-2"),)


def test_the_last_live_validator_cannot_be_voted_out() -> None:
    chain = LedgerChain(make_genesis(validators=["node-1", "node-2"]))
    vote(chain, "node-2", "node-1")
    assert vote(chain, "node-1", "node-2") is ResultCode.NOT_VALIDATOR
    assert chain.state.get_live_validators(chain.hub) == (chain.get_node("node-2"),)


def test_a_vote_of_another_term_is_refused(chain: LedgerChain) -> None:
    chain.end_term()
    assert vote(chain, "node-1", "node-2", term=0) is ResultCode.UNKNOWN_TERM


def test_votes_end_with_their_term(chain: LedgerChain) -> None:
    vote(chain, "node-1", "node-2")
    chain.end_term()
    vote(chain, "node-3", "node-2")
    assert chain.state.is_live(chain.hub, chain.get_node("node-2"))


def test_a_second_vote_counts_once(chain: LedgerChain) -> None:
    vote(chain, "node-1", "node-2")
    assert vote(chain, "node-1", "node-2") is ResultCode.ALREADY_DONE
    assert chain.state.is_live(chain.hub, chain.get_node("node-2"))


@pytest.mark.parametrize(
    ("voter", "accused", "code"),
    [
        ("alice", "node-1", ResultCode.NOT_VALIDATOR),
        ("node-1", "alice", ResultCode.NOT_VALIDATOR),
        ("node-1", "node-1", ResultCode.INVALID_ENTRY),
    ],
)
def test_a_vote_needs_two_validators(
    chain: LedgerChain, voter: str, accused: str, code: ResultCode
) -> None:
    assert vote(chain, voter, accused) is code


def test_an_absent_validator_returns_with_the_next_term(chain: LedgerChain) -> None:
    auctioneer, witness, third = get_duties(chain)
    vote(chain, witness, auctioneer)
    vote(chain, third, auctioneer)
    assert chain.submit(auctioneer, ReturnToDuty(chain.hub)).code is ResultCode.OK
    assert not chain.state.is_live(chain.hub, chain.get_node(auctioneer))
    chain.end_term()
    assert chain.state.is_live(chain.hub, chain.get_node(auctioneer))


def test_a_returned_validator_waits_behind_the_others(chain: LedgerChain) -> None:
    auctioneer, witness, third = get_duties(chain)
    vote(chain, witness, auctioneer)
    vote(chain, third, auctioneer)
    chain.submit(auctioneer, ReturnToDuty(chain.hub))
    for _ in range(2):
        chain.end_term()
        assert chain.get_auctioneer() != auctioneer


def test_returning_without_having_been_absent_is_refused(chain: LedgerChain) -> None:
    assert chain.submit("node-1", ReturnToDuty(chain.hub)).code is ResultCode.ALREADY_DONE


def test_only_validators_return(chain: LedgerChain) -> None:
    assert chain.submit("alice", ReturnToDuty(chain.hub)).code is ResultCode.NOT_VALIDATOR


def test_an_unknown_hub_is_refused(chain: LedgerChain) -> None:
    nowhere = HubId("nowhere")
    body = AbsenceVote(nowhere, 0, chain.get_node("node-2"))
    assert chain.submit("node-1", body).code is ResultCode.UNKNOWN_HUB
    assert chain.submit("node-1", ReturnToDuty(nowhere)).code is ResultCode.UNKNOWN_HUB


# --- evidence ------------------------------------------------------------------------------------


def find_wrong(transcript: object, state: LedgerState) -> None:
    raise InvalidTranscriptError("the matching is not optimal")


def test_a_wrong_transcript_takes_its_auctioneer_out() -> None:
    chain = LedgerChain(verify_transcript=find_wrong)
    auctioneer = chain.get_auctioneer()
    result = chain.submit("alice", chain.make_transcript_evidence(auctioneer, 0))
    assert (result.code, result.detail) == (ResultCode.OK, "InvalidTranscriptError")
    assert not chain.state.is_live(chain.hub, chain.get_node(auctioneer))
    assert chain.state.get_term(chain.hub).number == 1


def test_a_right_transcript_is_no_evidence(chain: LedgerChain) -> None:
    auctioneer = chain.get_auctioneer()
    result = chain.submit("alice", chain.make_transcript_evidence(auctioneer, 0))
    assert result.code is ResultCode.INVALID_ENTRY
    assert chain.state.is_live(chain.hub, chain.get_node(auctioneer))


def test_a_transcript_of_someone_else_proves_nothing() -> None:
    chain = LedgerChain(verify_transcript=find_wrong)
    _, witness, _ = get_duties(chain)
    result = chain.submit("alice", chain.make_transcript_evidence(witness, 0))
    assert result.code is ResultCode.NOT_AUCTIONEER


def test_evidence_of_one_term_convicts_once() -> None:
    chain = LedgerChain(verify_transcript=find_wrong)
    auctioneer = chain.get_auctioneer()
    chain.submit("alice", chain.make_transcript_evidence(auctioneer, 0))
    chain.submit(auctioneer, ReturnToDuty(chain.hub))
    chain.end_term()
    result = chain.submit("alice", chain.make_transcript_evidence(auctioneer, 0))
    assert result.code is ResultCode.ALREADY_DONE
    assert chain.state.is_live(chain.hub, chain.get_node(auctioneer))


def test_evidence_about_an_unknown_term_is_refused() -> None:
    chain = LedgerChain(verify_transcript=find_wrong)
    result = chain.submit("alice", chain.make_transcript_evidence("node-1", 50))
    assert result.code is ResultCode.UNKNOWN_TERM


def test_evidence_never_empties_the_hub() -> None:
    chain = LedgerChain(make_genesis(validators=["node-1"]), verify_transcript=find_wrong)
    result = chain.submit("alice", chain.make_transcript_evidence("node-1", 0))
    assert result.code is ResultCode.OK
    assert chain.state.get_live_validators(chain.hub) == (chain.get_node("node-1"),)
