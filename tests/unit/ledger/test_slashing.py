"""Who gets slashed money, and what the ledger knows of unpaid providers.

Source: docs/spec/ledger.md §7.
"""

from __future__ import annotations

import pytest

from iemas.core.errors import InvalidTranscriptError, MalformedMessageError
from iemas.core.params import MarketParams
from iemas.core.types import ChannelId
from iemas.ledger.transaction import ResultCode, Settle
from iemas.ledger.transfer import TREASURY
from iemas.testing.chain import LedgerChain, make_genesis

PARAMS = MarketParams(transcript_slash_ppm=400_000, reporter_ppm=50_000, unpaid_ppm=500_000)
ALLOWANCE = 100_000  # a quarter of the escrow of 400,000


def find_wrong(transcript: object, state: object) -> None:
    raise InvalidTranscriptError("the matching is not optimal")


@pytest.fixture
def chain() -> LedgerChain:
    """Three validators with 1,000 each; a wrong transcript costs 400."""
    return LedgerChain(make_genesis(params=PARAMS), verify_transcript=find_wrong)


def claim(chain: LedgerChain, provider: str, micros: int, channel: int = 7) -> ResultCode:
    """Settle more than the allowance has."""
    entry = chain.make_entry("alice", provider, 0, ALLOWANCE + micros, channel=ChannelId(channel))
    return chain.submit(provider, Settle((entry,))).code


def convict(chain: LedgerChain, reporter: str = "bob") -> ResultCode:
    return chain.submit(reporter, chain.make_transcript_evidence(chain.get_auctioneer(0), 0)).code


def get_earned(chain: LedgerChain, name: str) -> int:
    return chain.state.get_balance(chain.get_id(name))[0]


def get_others(chain: LedgerChain) -> list[str]:
    return sorted({"node-1", "node-2", "node-3"} - {chain.get_auctioneer(0)})


def test_a_wrong_transcript_is_slashed_but_not_jailed(chain: LedgerChain) -> None:
    auctioneer = chain.get_node(chain.get_auctioneer())
    assert convict(chain) is ResultCode.OK
    assert chain.state.get_stake_micros(auctioneer) == 600
    assert not chain.state.is_live(chain.hub, auctioneer)
    assert not chain.state.is_jailed(auctioneer)
    assert auctioneer in {node for node, _ in chain.state.get_consensus_validators()}


def test_without_claims_reporter_and_treasury_share(chain: LedgerChain) -> None:
    convict(chain)
    assert get_earned(chain, "bob") == 1_000_000 + 20
    assert chain.state.get_funds(TREASURY) == 380


def test_a_small_claim_is_paid_in_full(chain: LedgerChain) -> None:
    provider = get_others(chain)[0]
    chain.submit(provider, Settle((chain.make_entry("alice", provider, 0, ALLOWANCE),)))
    entry = chain.make_entry("alice", provider, 0, ALLOWANCE + 70, sequence=2)
    assert chain.submit(provider, Settle((entry,))).code is ResultCode.OVER_ALLOWANCE
    convict(chain)
    assert get_earned(chain, provider) == ALLOWANCE + 70
    assert chain.state.get_funds(TREASURY) == 400 - 70 - 20


def test_what_a_slash_paid_is_not_settled_again(chain: LedgerChain) -> None:
    """Of a total over the allowance a part may still be settled after a slash paid some."""
    provider = get_others(chain)[0]
    part = chain.make_entry("alice", provider, 0, ALLOWANCE)
    whole = chain.make_entry("alice", provider, 0, ALLOWANCE + 50, sequence=2)
    assert chain.submit(provider, Settle((whole,))).code is ResultCode.OVER_ALLOWANCE
    convict(chain)
    paid = get_earned(chain, provider)
    assert paid == 200  # as much as claims get of the slash
    assert chain.submit(provider, Settle((part,))).code is ResultCode.OK
    assert get_earned(chain, provider) == ALLOWANCE
    assert chain.submit(provider, Settle((whole,))).code is ResultCode.OK
    assert get_earned(chain, provider) == ALLOWANCE + 50, "its total, and no more"


def test_large_claims_share_half_of_the_slash_in_proportion(chain: LedgerChain) -> None:
    one, other = get_others(chain)
    assert claim(chain, one, 100_000) is ResultCode.OVER_ALLOWANCE
    assert claim(chain, other, 500_000) is ResultCode.OVER_ALLOWANCE
    convict(chain)
    assert get_earned(chain, one) == 200 * 200_000 // 800_000
    assert get_earned(chain, other) == 200 * 600_000 // 800_000
    assert chain.state.get_funds(TREASURY) == 400 - 200 - 20


def test_rounding_leaves_the_rest_to_the_treasury(chain: LedgerChain) -> None:
    one, other = get_others(chain)
    claim(chain, one, 1)
    claim(chain, other, 1, channel=1)
    claim(chain, other, 1, channel=2)
    convict(chain)
    assert (get_earned(chain, one), get_earned(chain, other)) == (66, 132)
    assert chain.state.get_funds(TREASURY) == 400 - 198 - 20


def test_a_claim_is_what_was_neither_settled_nor_paid(chain: LedgerChain) -> None:
    provider = get_others(chain)[0]
    claim(chain, provider, 50)
    (key,) = chain.state.shortfalls
    assert chain.state.get_unpaid(key) == ALLOWANCE + 50
    chain.submit(provider, Settle((chain.make_entry("alice", provider, 0, ALLOWANCE),)))
    assert chain.state.get_unpaid(key) == 50
    convict(chain)
    assert chain.state.get_unpaid(key) == 0


def test_the_largest_claim_of_a_channel_counts(chain: LedgerChain) -> None:
    provider = get_others(chain)[0]
    for micros in (10, 30, 20):
        claim(chain, provider, micros)
    assert [s.claimed_micros for s in chain.state.shortfalls.values()] == [ALLOWANCE + 30]


def test_an_auctioneer_gets_nothing_back_by_its_own_claims(chain: LedgerChain) -> None:
    auctioneer = chain.get_auctioneer()
    claim(chain, auctioneer, 1_000)
    convict(chain)
    assert get_earned(chain, auctioneer) == 0


def test_claims_under_another_auctioneer_are_not_paid(chain: LedgerChain) -> None:
    convicted = chain.get_auctioneer()
    provider = get_others(chain)[0]
    chain.end_term()
    assert chain.get_auctioneer(1) != convicted
    entry = chain.make_entry("alice", provider, 1, 10**6)
    chain.submit(provider, Settle((entry,)))
    convict(chain)
    assert get_earned(chain, provider) == 0


def test_what_the_auctioneer_did_not_allocate_is_no_claim(chain: LedgerChain) -> None:
    provider = get_others(chain)[0]
    forged = chain.make_entry("alice", provider, 0, 10**6, auctioneer="bob")
    uncovered = chain.make_entry("alice", provider, 0, 10**6, reserved_micros=10)
    chain.submit(provider, Settle((forged, uncovered)))
    assert chain.state.shortfalls == {}


def test_claims_end_with_their_term(chain: LedgerChain) -> None:
    claim(chain, get_others(chain)[0], 10)
    for _ in range(PARAMS.settle_terms + 1):
        chain.end_term()
    assert chain.state.shortfalls == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reporter_ppm", 50_001),
        ("double_vote_slash_ppm", 1_000_000),
        ("transcript_slash_ppm", -1),
        ("unpaid_ppm", 950_001),
    ],
)
def test_shares_have_bounds(name: str, value: int) -> None:
    with pytest.raises(MalformedMessageError, match=name):
        MarketParams(**{name: value})  # type: ignore[arg-type]
