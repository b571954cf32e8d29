"""A peer is read as fast as it may send, and waits beyond that."""

from iemas.consensus.messages import MAX_NOTICE_VOTES, BlocksRequest, VoteNotice
from iemas.core.gossip import Probe
from iemas.core.vote import Vote, VoteKind
from iemas.testing.chain import LedgerChain
from node.transport.pace import (
    BYTES_PER_UNIT,
    MOST_UNITS,
    REQUEST_UNITS,
    UNITS_PER_S,
    Pace,
    compute_units,
)


def test_a_burst_passes_and_then_a_second_fills_the_bucket_again() -> None:
    pace = Pace(0.0)
    assert pace.take(MOST_UNITS, now_s=0.0)
    assert not pace.take(1, now_s=0.0)
    assert pace.take(UNITS_PER_S - 1, now_s=1.0)
    assert not pace.take(1, now_s=1.0)


def test_the_bucket_holds_no_more_than_its_bound() -> None:
    pace = Pace(0.0)
    assert pace.take(1, now_s=1000.0)
    assert not pace.take(MOST_UNITS, now_s=1000.0)


def test_large_messages_cost_more() -> None:
    assert compute_units(Probe(1), 0) == 1
    assert compute_units(Probe(1), 100 * BYTES_PER_UNIT) == 101


def test_a_message_costs_what_work_it_makes() -> None:
    """Checking a vote takes 0.1 ms, and reading a batch of blocks 7 ms."""
    chain = LedgerChain()
    vote = chain.sign("a", Vote(1, 0, VoteKind.PREVOTE, None))
    assert compute_units(VoteNotice((vote,)), 100) == 1
    assert compute_units(VoteNotice((vote,) * MAX_NOTICE_VOTES), 100) == MAX_NOTICE_VOTES
    assert compute_units(BlocksRequest(1), 10) == 1 + REQUEST_UNITS


def test_what_a_validator_sends_under_full_load_is_not_slowed() -> None:
    """A hundred heights a second among ten, its status answered by all votes, and catching up."""
    vote = LedgerChain().sign("a", Vote(1, 0, VoteKind.PREVOTE, None))
    a_second = (
        100 * 2 * compute_units(VoteNotice((vote,)), 200)
        + 100 * compute_units(Probe(1), 64 * 1024)  # as large as a proposal
        + 10 * compute_units(VoteNotice((vote,) * 2 * 10), 3_000)
        + 16 * compute_units(BlocksRequest(1), 10)  # 64 blocks each: 10,000 blocks in 10 s
    )
    assert a_second < UNITS_PER_S / 2
