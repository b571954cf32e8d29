"""Votes on parameters and models. Source: docs/spec/ledger.md §10."""

from __future__ import annotations

import pytest

from iemas.core.params import MarketParams
from iemas.core.types import Hash, HubId
from iemas.ledger.rules.governance import CHANGEABLE_PARAMETERS
from iemas.ledger.snapshot import decode_state, take_snapshot
from iemas.ledger.transaction import ResultCode, Stake, Unstake, VoteModel, VoteParameter
from iemas.testing.chain import LedgerChain, make_genesis

NODES = ("node-1", "node-2", "node-3", "node-4")
PARAMS = MarketParams(ask_epoch_ms=20_000, ask_reveal_ms=10, min_stake_micros=2_000)
MODEL, OTHER = Hash(b"\x01" * 32), Hash(b"\x02" * 32)


@pytest.fixture
def chain() -> LedgerChain:
    """Four equal validators, so three decide."""
    return LedgerChain(make_genesis(validators=NODES, params=PARAMS))


def vote(
    chain: LedgerChain, name: str, value: int, parameter: str = "bid_fee_micros"
) -> ResultCode:
    return chain.submit(name, VoteParameter(parameter, value)).code


def vote_model(chain: LedgerChain, name: str, model: Hash, epoch: int = 1) -> ResultCode:
    return chain.submit(name, VoteModel(chain.hub, epoch, model)).code


# --- parameters ----------------------------------------------------------------------------------


def test_two_thirds_are_not_more_than_two_thirds() -> None:
    chain = LedgerChain(make_genesis())
    for name in NODES[:2]:
        assert vote(chain, name, 5) is ResultCode.OK
    assert chain.state.parameter_changes == {}


def test_a_change_counts_from_the_next_term_on(chain: LedgerChain) -> None:
    for name in NODES[:3]:
        vote(chain, name, 5)
    assert chain.state.params.bid_fee_micros == 1
    chain.end_term()
    assert chain.state.params.bid_fee_micros == 5
    assert chain.state.parameter_votes == {}


def test_votes_count_by_stake(chain: LedgerChain) -> None:
    chain.submit("alice", Stake(9_000))
    vote(chain, "alice", 5)
    chain.end_term()
    assert chain.state.params.bid_fee_micros == 5


def test_a_validator_changes_its_vote(chain: LedgerChain) -> None:
    for name, value in (("node-1", 4), ("node-2", 5), ("node-3", 5), ("node-1", 5)):
        assert vote(chain, name, value) is ResultCode.OK
    assert chain.state.parameter_changes == {"bid_fee_micros": 5}


def test_votes_go_with_the_stake(chain: LedgerChain) -> None:
    chain.submit("alice", Stake(2_000))
    vote(chain, "alice", 5)
    vote(chain, "node-1", 5)
    chain.submit("alice", Unstake(2_000))
    assert {key.voter for key in chain.state.parameter_votes} == {chain.get_node("node-1")}


def test_a_vote_for_what_holds_takes_the_vote_back(chain: LedgerChain) -> None:
    assert vote(chain, "node-1", 1) is ResultCode.ALREADY_DONE
    vote(chain, "node-1", 5)
    assert vote(chain, "node-1", 5) is ResultCode.ALREADY_DONE
    assert vote(chain, "node-1", 1) is ResultCode.OK
    assert chain.state.parameter_votes == {}


def test_only_validators_vote(chain: LedgerChain) -> None:
    assert vote(chain, "alice", 5) is ResultCode.NOT_VALIDATOR
    assert vote_model(chain, "alice", MODEL) is ResultCode.NOT_VALIDATOR


def test_jailed_validators_do_not_vote(chain: LedgerChain) -> None:
    chain.submit("alice", chain.make_double_vote("node-1", 1))
    assert vote(chain, "node-1", 5) is ResultCode.NOT_VALIDATOR


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("term_ms", 1), ("nonsense", 1), ("bid_fee_micros", -1), ("reporter_ppm", 50_001)],
)
def test_what_cannot_be_changed_is_refused(chain: LedgerChain, parameter: str, value: int) -> None:
    assert vote(chain, "node-1", value, parameter) is ResultCode.INVALID_ENTRY


def test_what_can_be_changed_is_a_number() -> None:
    assert all(type(getattr(PARAMS, name)) is int for name in CHANGEABLE_PARAMETERS)


def test_a_snapshot_keeps_changed_parameters(chain: LedgerChain) -> None:
    for name in NODES[:3]:
        vote(chain, name, 5)
    chain.end_term()
    decoded = decode_state(chain.genesis, take_snapshot(chain.state).leaves)
    assert decoded.params == chain.state.params != chain.genesis.params


# --- models --------------------------------------------------------------------------------------


def test_a_model_stands_from_its_epoch_on(chain: LedgerChain) -> None:
    for name in NODES[:3]:
        assert vote_model(chain, name, MODEL) is ResultCode.OK
    assert chain.state.get_model(chain.hub) is None
    for _ in range(3):
        chain.apply(after_ms=PARAMS.ask_epoch_ms)
        assert chain.state.get_model(chain.hub) == MODEL
    assert len(chain.state.models) == 1


def test_without_two_thirds_the_model_before_stays(chain: LedgerChain) -> None:
    for name in NODES[:3]:
        vote_model(chain, name, MODEL)
    chain.apply(after_ms=PARAMS.ask_epoch_ms)
    for name in NODES[:2]:
        vote_model(chain, name, OTHER, epoch=2)
    chain.apply(after_ms=PARAMS.ask_epoch_ms)
    assert chain.state.get_model(chain.hub) == MODEL
    assert chain.state.model_votes == {}


def test_a_decided_model_does_not_change(chain: LedgerChain) -> None:
    for name in NODES[:3]:
        vote_model(chain, name, MODEL)
    assert vote_model(chain, "node-4", OTHER) is ResultCode.ALREADY_DONE


def test_a_validator_may_change_its_mind_until_then(chain: LedgerChain) -> None:
    votes = [("node-1", OTHER), ("node-2", MODEL), ("node-3", MODEL), ("node-1", MODEL)]
    codes = [vote_model(chain, name, model) for name, model in votes]
    assert codes == [ResultCode.OK] * 4
    assert [record.model_hash for record in chain.state.models.values()] == [MODEL]


def test_the_same_vote_again_is_already_done(chain: LedgerChain) -> None:
    vote_model(chain, "node-1", MODEL)
    assert vote_model(chain, "node-1", MODEL) is ResultCode.ALREADY_DONE


def decide(chain: LedgerChain, model: Hash, epoch: int) -> list[ResultCode]:
    return [vote_model(chain, name, model, epoch) for name in NODES[:3]]


def test_votes_are_for_the_next_epoch(chain: LedgerChain) -> None:
    decide(chain, MODEL, 1)
    chain.apply(after_ms=PARAMS.ask_epoch_ms)
    assert vote_model(chain, "node-1", OTHER, 1) is ResultCode.ALREADY_DONE
    assert vote_model(chain, "node-1", OTHER, 2) is ResultCode.OK
    assert vote_model(chain, "node-1", OTHER, 3) is ResultCode.UNKNOWN_EPOCH


def test_an_epoch_that_began_without_a_model_gets_one_at_once(chain: LedgerChain) -> None:
    assert decide(chain, MODEL, 0) == [ResultCode.OK] * 3
    assert chain.state.get_model(chain.hub) == MODEL
    assert chain.state.model_votes == {}
    assert vote_model(chain, "node-4", MODEL, 0) is ResultCode.ALREADY_DONE


def test_and_better_ones_until_it_ends(chain: LedgerChain) -> None:
    decide(chain, MODEL, 0)
    assert decide(chain, OTHER, 0) == [ResultCode.OK] * 3
    assert chain.state.get_model(chain.hub) == OTHER
    chain.apply(after_ms=PARAMS.ask_epoch_ms)
    assert chain.state.get_model(chain.hub) == OTHER
    assert vote_model(chain, "node-1", MODEL, 1) is ResultCode.ALREADY_DONE


def test_a_term_keeps_the_model_that_stood_at_its_start(chain: LedgerChain) -> None:
    number = chain.state.get_term(chain.hub).number
    decide(chain, MODEL, 0)
    assert chain.state.get_model_of_term(chain.hub, number) is None
    chain.end_term()
    decide(chain, OTHER, 0)
    assert chain.state.get_model_of_term(chain.hub, number + 1) == MODEL
    chain.end_term()
    models = [chain.state.get_model_of_term(chain.hub, number + n) for n in range(3)]
    assert models == [None, MODEL, OTHER]


def test_a_model_decided_for_an_epoch_counts_from_its_first_term_on(chain: LedgerChain) -> None:
    decide(chain, MODEL, 1)
    chain.end_term()
    assert chain.state.get_model_of_term(chain.hub, chain.state.get_term(chain.hub).number) is None
    chain.apply(after_ms=PARAMS.ask_epoch_ms)
    term = chain.state.get_term(chain.hub)
    assert term.started_at_ms == chain.state.time_ms
    assert chain.state.get_model_of_term(chain.hub, term.number) == MODEL


def test_a_closed_term_has_no_model(chain: LedgerChain) -> None:
    decide(chain, MODEL, 0)
    assert chain.state.get_model_of_term(chain.hub, 99) is None


def test_a_model_of_an_unknown_hub_is_refused(chain: LedgerChain) -> None:
    body = VoteModel(HubId("nowhere"), 1, MODEL)
    assert chain.submit("node-1", body).code is ResultCode.UNKNOWN_HUB
