"""Terms and allowances. Source: docs/spec/ledger.md §3, §4."""

from __future__ import annotations

from dataclasses import replace

from iemas.core.params import MarketParams
from iemas.ledger.transaction import FundEscrow
from iemas.testing.chain import START_MS, LedgerChain, make_genesis

PARAMS = MarketParams()


def test_term_zero_starts_at_genesis(chain: LedgerChain) -> None:
    term = chain.state.get_term(chain.hub)
    assert (term.number, term.started_at_ms) == (0, START_MS)
    assert term.witness not in (None, term.auctioneer)


def test_a_term_lasts_until_a_block_at_its_end(chain: LedgerChain) -> None:
    chain.apply(after_ms=PARAMS.term_ms - 1)
    assert chain.state.get_term(chain.hub).number == 0
    chain.apply(after_ms=1)
    assert chain.state.get_term(chain.hub).number == 1


def test_a_term_ends_before_the_transactions_of_its_block(chain: LedgerChain) -> None:
    transaction = chain.make_transaction("alice", FundEscrow(chain.hub, 1_000))
    chain.apply([transaction], after_ms=PARAMS.term_ms)
    allowance = chain.state.get_allowance(chain.hub, chain.get_id("alice"), 1)
    assert allowance == 300_000 // 4  # the block's own escrow counts from term 2 on


def test_after_a_pause_there_is_one_new_term(chain: LedgerChain) -> None:
    chain.apply(after_ms=100 * PARAMS.term_ms)
    term = chain.state.get_term(chain.hub)
    assert (term.number, term.started_at_ms) == (1, START_MS + 100 * PARAMS.term_ms)


def test_equal_validators_take_turns(chain: LedgerChain) -> None:
    auctioneers = []
    for _ in range(6):
        auctioneers.append(chain.get_auctioneer())
        chain.end_term()
    assert sorted(auctioneers[:3]) == ["node-1", "node-2", "node-3"]
    assert auctioneers[:3] == auctioneers[3:]


def test_the_next_auctioneer_is_known_a_term_ahead(chain: LedgerChain) -> None:
    for _ in range(6):
        foreseen = chain.state.get_next_auctioneer(chain.hub)
        chain.end_term()
        assert chain.state.get_term(chain.hub).auctioneer == foreseen


def test_a_dominant_stake_has_at_most_three_terms_in_a_row() -> None:
    genesis = make_genesis()
    stakes = zip(genesis.validators, (90, 5, 5), strict=True)
    unequal = tuple(replace(validator, stake_micros=stake) for validator, stake in stakes)
    chain = LedgerChain(replace(genesis, validators=unequal))
    auctioneers = []
    for _ in range(9):
        auctioneers.append(chain.get_auctioneer())
        foreseen = chain.state.get_next_auctioneer(chain.hub)
        chain.end_term()
        assert chain.state.get_term(chain.hub).auctioneer == foreseen
    assert auctioneers[:4] == ["node-1", "node-1", "node-1", auctioneers[3]]
    assert "node-1" not in (auctioneers[3], auctioneers[7])
    assert auctioneers[3] != auctioneers[7]  # the others take the turns among themselves


def test_the_only_live_validator_goes_on_beyond_the_cap() -> None:
    chain = LedgerChain(make_genesis(validators=["node-1"]))
    for _ in range(5):
        chain.end_term()
        assert chain.get_auctioneer() == "node-1"


def test_an_allowance_is_a_part_of_the_free_escrow(chain: LedgerChain) -> None:
    alice = chain.get_id("alice")
    assert chain.state.get_allowance(chain.hub, alice, 0) == 400_000 // 4
    chain.end_term()
    assert chain.state.get_allowance(chain.hub, alice, 1) == 300_000 // 4


def test_an_allowance_does_not_change_within_its_term(chain: LedgerChain) -> None:
    chain.submit("alice", FundEscrow(chain.hub, 100_000))
    assert chain.state.get_allowance(chain.hub, chain.get_id("alice"), 0) == 100_000


def test_an_account_without_escrow_has_no_allowance(chain: LedgerChain) -> None:
    assert chain.state.get_allowance(chain.hub, chain.get_id("node-1"), 0) == 0


def test_terms_are_open_until_their_settlement_is_over(chain: LedgerChain) -> None:
    for _ in range(PARAMS.settle_terms):
        chain.end_term()
    numbers = [term.number for term in chain.state.get_terms_open(chain.hub)]
    assert numbers == list(range(PARAMS.settle_terms + 1))
    chain.end_term()
    assert chain.state.get_term_by_number(chain.hub, 0) is None
    assert chain.state.get_term_by_number(chain.hub, 1) is not None


def test_a_closed_term_frees_its_allowances() -> None:
    chain = LedgerChain(make_genesis(params=MarketParams(settle_terms=1)))
    alice = chain.get_id("alice")
    chain.end_term()
    assert chain.state.get_free_escrow(chain.hub, alice) == 400_000 - 100_000 - 75_000
    chain.end_term()  # term 0 closes: 400,000 − 75,000 are free, a quarter is frozen again
    assert chain.state.get_allowance(chain.hub, alice, 0) == 0
    assert chain.state.get_allowance(chain.hub, alice, 2) == 325_000 // 4


def test_a_hub_with_one_validator_has_no_witness() -> None:
    chain = LedgerChain(make_genesis(validators=["node-1"]))
    assert chain.state.get_term(chain.hub).witness is None
