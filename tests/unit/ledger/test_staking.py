"""Stake, unbonding, and who votes on blocks. Source: docs/spec/ledger.md §6."""

from __future__ import annotations

import pytest

from iemas.core.errors import MalformedMessageError
from iemas.core.params import MarketParams
from iemas.ledger.rules.staking import MAX_UNBONDING_ENTRIES
from iemas.ledger.transaction import ResultCode, Stake, Unstake
from iemas.ledger.transfer import Transfer, TransferReason, get_stake, get_unbonding
from iemas.testing.chain import LedgerChain, make_genesis

UNBONDING_MS = 100_000
LEAST = 500
PARAMS = MarketParams(
    min_stake_micros=LEAST,
    min_total_stake_micros=1_500,
    max_validators=4,
    evidence_window_ms=64_000,
    unbonding_ms=UNBONDING_MS,
)


@pytest.fixture
def chain() -> LedgerChain:
    """Three validators with 1,000 each; 500 is the least stake, 1,500 the least total."""
    return LedgerChain(make_genesis(params=PARAMS))


def get_powers(chain: LedgerChain) -> dict[str, int]:
    return {chain.get_name(node): power for node, power in chain.state.get_consensus_validators()}


def test_staking_makes_a_validator_that_votes_at_once(chain: LedgerChain) -> None:
    assert chain.submit("alice", Stake(LEAST)).code is ResultCode.OK
    assert get_powers(chain) == {"node-1": 1_000, "node-2": 1_000, "node-3": 1_000, "alice": 500}
    assert chain.state.get_balance(chain.get_id("alice"))[0] == 1_000_000 - LEAST


def test_a_newcomer_is_elected_from_the_next_term_on(chain: LedgerChain) -> None:
    chain.submit("alice", Stake(LEAST))
    alice = chain.get_node("alice")
    assert not chain.state.is_live(chain.hub, alice)
    assert chain.state.get_term(chain.hub).number == 0
    chain.end_term()
    assert chain.state.is_live(chain.hub, alice)


def test_a_newcomer_starts_behind_the_others(chain: LedgerChain) -> None:
    chain.submit("alice", Stake(1_000))
    auctioneers = []
    for _ in range(8):
        chain.end_term()
        auctioneers.append(chain.get_auctioneer())
    assert auctioneers.index("alice") >= 3


def test_more_stake_is_more_power_at_the_next_height(chain: LedgerChain) -> None:
    chain.submit("alice", Stake(LEAST))
    chain.submit("alice", Stake(1))
    assert get_powers(chain)["alice"] == LEAST + 1


@pytest.mark.parametrize(
    ("amount", "code"),
    [(1_000_001, ResultCode.INSUFFICIENT_BALANCE), (LEAST - 1, ResultCode.BELOW_MINIMUM)],
)
def test_a_wrong_stake_is_refused(chain: LedgerChain, amount: int, code: ResultCode) -> None:
    assert chain.submit("alice", Stake(amount)).code is code
    assert "alice" not in get_powers(chain)


def test_there_are_only_so_many_validators(chain: LedgerChain) -> None:
    chain.submit("alice", Stake(LEAST))
    assert chain.submit("bob", Stake(LEAST)).code is ResultCode.LIMIT_REACHED
    assert chain.submit("alice", Stake(1)).code is ResultCode.OK


def test_unstaked_money_is_released_after_its_time(chain: LedgerChain) -> None:
    node = chain.get_id("node-1")
    assert chain.submit("node-1", Unstake(400)).code is ResultCode.OK
    assert chain.state.get_stake_micros(chain.get_node("node-1")) == 600
    assert chain.state.get_funds(get_unbonding(node)) == 400
    chain.apply(after_ms=UNBONDING_MS - 1)
    assert chain.state.get_balance(node)[0] == 0
    chain.apply(after_ms=1)
    assert chain.state.get_balance(node)[0] == 400
    assert chain.state.get_funds(get_unbonding(node)) == 0


def test_unstaking_is_a_transfer(chain: LedgerChain) -> None:
    node = chain.get_id("node-1")
    finalized = chain.apply([chain.make_transaction("node-1", Unstake(400))])
    expected = Transfer(get_stake(node), get_unbonding(node), 400, TransferReason.UNSTAKED)
    assert finalized.transfers == (expected,)


def test_who_unstakes_everything_is_no_validator(chain: LedgerChain) -> None:
    chain.submit("node-1", Unstake(1_000))
    assert not chain.state.is_validator(chain.get_node("node-1"))
    assert set(get_powers(chain)) == {"node-2", "node-3"}


def test_an_auctioneer_that_unstakes_everything_ends_its_term(chain: LedgerChain) -> None:
    auctioneer = chain.get_auctioneer()
    chain.submit(auctioneer, Unstake(1_000))
    term = chain.state.get_term(chain.hub)
    assert term.number == 1
    assert chain.get_node(auctioneer) not in (term.auctioneer, term.witness)


@pytest.mark.parametrize(
    ("name", "amount", "code"),
    [
        ("alice", 1, ResultCode.NOT_VALIDATOR),
        ("node-1", 1_001, ResultCode.INSUFFICIENT_BALANCE),
        ("node-1", 501, ResultCode.BELOW_MINIMUM),
    ],
)
def test_a_wrong_unstake_is_refused(
    chain: LedgerChain, name: str, amount: int, code: ResultCode
) -> None:
    assert chain.submit(name, Unstake(amount)).code is code
    assert sum(get_powers(chain).values()) == 3_000


def test_the_validators_keep_the_least_total(chain: LedgerChain) -> None:
    assert chain.submit("node-1", Unstake(1_000)).code is ResultCode.OK
    assert chain.submit("node-2", Unstake(500)).code is ResultCode.OK
    assert chain.submit("node-3", Unstake(500)).code is ResultCode.BELOW_MINIMUM
    assert get_powers(chain) == {"node-2": 500, "node-3": 1_000}


def test_only_so_many_parts_unbond_at_once(chain: LedgerChain) -> None:
    for _ in range(MAX_UNBONDING_ENTRIES):
        chain.apply(after_ms=1)
        assert chain.submit("node-1", Unstake(1)).code is ResultCode.OK
    assert chain.submit("node-1", Unstake(1)).code is ResultCode.OK  # same time, same entry
    chain.apply(after_ms=1)
    assert chain.submit("node-1", Unstake(1)).code is ResultCode.LIMIT_REACHED


def test_the_validators_of_past_heights_are_remembered(chain: LedgerChain) -> None:
    before = chain.state.get_consensus_validators()
    chain.submit("alice", Stake(LEAST))  # in block 1: votes on block 3
    chain.apply()
    assert chain.state.get_consensus_validators_at(1) == before
    assert chain.state.get_consensus_validators_at(2) == before
    assert chain.state.get_consensus_validators_at(3) == chain.state.get_consensus_validators()


def test_validators_beyond_the_evidence_window_are_forgotten(chain: LedgerChain) -> None:
    chain.submit("alice", Stake(LEAST))
    for _ in range(3):
        chain.apply(after_ms=PARAMS.evidence_window_ms)
    assert chain.state.get_consensus_validators_at(1) == ()
    assert list(chain.state.validator_sets) == [3]
    assert len(chain.state.checkpoints) <= 2


def test_checkpoints_are_bounded(chain: LedgerChain) -> None:
    for _ in range(300):
        chain.apply(after_ms=500)
    assert len(chain.state.checkpoints) <= 65


def test_unbonding_must_outlast_the_evidence_window() -> None:
    with pytest.raises(MalformedMessageError, match="unbonding_ms"):
        MarketParams(evidence_window_ms=1_000, unbonding_ms=1_000)
