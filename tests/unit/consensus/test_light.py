"""Every way of lying to a light client about headers. Source: docs/spec/light_client.md §2."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from iemas.consensus.light import (
    LightRules,
    bisect,
    compare,
    make_rules,
    trust_block,
    trust_genesis,
    verify_light_block,
)
from iemas.consensus.messages import LightBlock, LightValidator
from iemas.core.errors import (
    ConfigurationError,
    IemasError,
    InvalidBlockError,
    InvalidSignatureError,
    LedgerForkError,
    MalformedMessageError,
    TrustExpiredError,
    UntrustedBlockError,
)
from iemas.core.params import MarketParams
from iemas.core.vote import Vote, VoteKind
from iemas.testing.chain import LedgerChain, make_genesis
from tests.light_chain import (
    CHAIN_ID,
    PERIOD_MS,
    RULES,
    START_MS,
    LightChain,
    drop_votes,
    get_signer,
    list_members,
    replace_votes,
)

FOUR = {1: 1, 2: 1, 3: 1, 4: 1}
NOW_MS = START_MS + 100_000


@pytest.fixture
def chain() -> LightChain:
    """Ten blocks of four equal validators."""
    return LightChain([FOUR] * 11)


def test_the_next_header_is_taken_over(chain: LightChain) -> None:
    trusted = verify_light_block(chain.genesis, chain[1], RULES, now_ms=NOW_MS)
    assert (trusted.height, trusted.hash) == (1, chain[1].hash)
    assert trusted.state_root == chain[1].header.message.state_root
    assert verify_light_block(trusted, chain[2], RULES, now_ms=NOW_MS).height == 2


def test_a_header_far_ahead_of_the_same_validators_takes_one_step(chain: LightChain) -> None:
    assert chain.follow(chain.genesis, chain[10]).hash == chain[10].hash
    assert chain.asked == []


def break_hash(chain: LightChain) -> LightBlock:
    other = get_signer(1).sign(replace(chain[1].header.message, state_root=bytes(32)))
    return replace(chain[1], header=other)


def keep_signature(chain: LightChain) -> LightBlock:
    """Another state root under the old header's signature and votes that name the new hash."""
    forged = chain.make_block(1, state_root=bytes(32))
    envelope = replace(forged.header.envelope, signature=chain[1].header.envelope.signature)
    return replace(forged, header=replace(forged.header, envelope=envelope))


def forge_vote(chain: LightChain) -> LightBlock:
    votes = list(chain[1].commit.precommits)
    envelope = replace(votes[0].envelope, signature=bytes(64))
    return replace_votes(chain[1], [replace(votes[0], envelope=envelope), *votes[1:]])


def vote_twice(chain: LightChain) -> LightBlock:
    votes = chain[1].commit.precommits[:2]
    return replace_votes(chain[1], [*votes, votes[0]])


def let_strangers_vote(chain: LightChain) -> LightBlock:
    return chain.make_block(1, signers=(1, 2, 9))


def change_round(chain: LightChain) -> LightBlock:
    commit = replace(chain[1].commit, round=1)
    return replace(chain[1], commit=commit)


def show_prevotes(chain: LightChain) -> LightBlock:
    block = chain[1]
    votes = [get_signer(n).sign(Vote(1, 0, VoteKind.PREVOTE, block.hash)) for n in (1, 2, 3)]
    return replace_votes(block, votes)


def sign_for_another_chain(chain: LightChain) -> LightBlock:
    block = chain[1]
    signers = [get_signer(n, "other-chain") for n in (1, 2, 3)]
    votes = [s.sign(Vote(1, 0, VoteKind.PRECOMMIT, block.hash)) for s in signers]
    return replace_votes(block, votes)


def list_other_powers(chain: LightChain) -> LightBlock:
    """One validator stands for all: its own vote would be a quorum."""
    members = (replace(chain[1].validators[0], power=100), *chain[1].validators[1:])
    return replace(drop_votes(chain[1], 1), validators=members)


def list_one_twice(chain: LightChain) -> LightBlock:
    return replace(chain[1], validators=(*chain[1].validators, chain[1].validators[0]))


LIES: list[tuple[Callable[[LightChain], LightBlock], type[IemasError], str]] = [
    (break_hash, InvalidBlockError, "another block's"),
    (keep_signature, InvalidSignatureError, "does not hold"),
    (forge_vote, InvalidBlockError, "false vote"),
    (vote_twice, InvalidBlockError, "voted twice"),
    (let_strangers_vote, InvalidBlockError, "no validator"),
    (change_round, InvalidBlockError, "something else"),
    (show_prevotes, InvalidBlockError, "something else"),
    (sign_for_another_chain, InvalidBlockError, "false vote"),
    (list_other_powers, InvalidBlockError, "other validators"),
    (list_one_twice, MalformedMessageError, "named twice"),
    (lambda c: drop_votes(c[1], 2), InvalidBlockError, "2 of 4 of the power"),
    (lambda c: c.make_block(1, chain_id="other"), InvalidBlockError, "of chain 'other'"),
    (lambda c: c.make_block(1, proposer=9), InvalidBlockError, "no validator"),
    (lambda c: c.make_block(1, time_ms=START_MS - 1), InvalidBlockError, "before the trusted"),
    (lambda c: c.make_block(1, time_ms=NOW_MS + 11_000), InvalidBlockError, "ahead of this clock"),
    (lambda c: replace(c[1], validators=()), MalformedMessageError, "at least one"),
]


@pytest.mark.parametrize(("lie", "error", "text"), LIES)
def test_lies_about_a_header_are_refused(
    chain: LightChain,
    lie: Callable[[LightChain], LightBlock],
    error: type[IemasError],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        verify_light_block(chain.genesis, lie(chain), RULES, now_ms=NOW_MS)


def test_two_thirds_of_the_power_are_not_enough() -> None:
    chain = LightChain([{1: 2, 2: 2, 3: 2}] * 2)
    with pytest.raises(InvalidBlockError, match="4 of 6 of the power, a quorum is 5"):
        verify_light_block(chain.genesis, chain.make_block(1, signers=(1, 2)), RULES, now_ms=NOW_MS)


def test_other_validators_than_the_header_before_names_are_refused(chain: LightChain) -> None:
    others = {7: 1, 8: 1, 9: 1}
    usurped = chain.make_block(1, powers=others)
    with pytest.raises(InvalidBlockError, match="not those that the block before it names"):
        verify_light_block(chain.genesis, usurped, RULES, now_ms=NOW_MS)


def test_strangers_far_ahead_are_never_taken_over(chain: LightChain) -> None:
    """They decide among themselves; headers in between of their own does not help them."""
    others = {7: 1, 8: 1, 9: 1}
    with pytest.raises(UntrustedBlockError, match="0 of the 4 power"):
        verify_light_block(chain.genesis, chain.make_block(8, powers=others), RULES, now_ms=NOW_MS)
    wanted = bisect(chain.genesis, chain.make_block(8, powers=others), RULES, now_ms=NOW_MS)
    heights = [next(wanted)]
    with pytest.raises(InvalidBlockError, match="not those that the block before it names"):  # noqa: PT012
        while True:
            heights.append(wanted.send(chain.make_block(heights[-1], powers=others)))
    assert heights == [4, 2, 1]


def test_a_third_of_the_trusted_power_is_not_enough_to_skip() -> None:
    before, after = {1: 1, 2: 1, 3: 1}, {1: 1, 7: 1, 8: 1, 9: 1}
    chain = LightChain([before, before, before, after, after, after])
    block = chain.make_block(5, signers=(1, 7, 8))
    with pytest.raises(UntrustedBlockError, match="1 of the 3 power"):
        verify_light_block(chain.genesis, block, RULES, now_ms=NOW_MS)
    assert chain.follow(chain.genesis, block).height == 5
    assert chain.asked == [2, 3, 4]


def test_a_removed_validators_signature_does_not_count() -> None:
    before, after = {1: 1, 2: 1, 3: 1, 4: 1}, {2: 1, 3: 1, 4: 1}
    chain = LightChain([before, before, after, after])
    with pytest.raises(InvalidBlockError, match="no validator"):
        chain.follow(chain.genesis, chain.make_block(3, signers=(1, 2, 3)))
    trusted = chain.follow(chain.genesis, chain[2])
    with pytest.raises(InvalidBlockError, match="not those that the block before it names"):
        chain.follow(trusted, chain.make_block(3, powers=before))
    with pytest.raises(InvalidBlockError, match="not those that the block before it names"):
        chain.follow(chain.genesis, chain.make_block(3, powers={1: 1}, proposer=1))


def test_everybody_may_change_at_once() -> None:
    """The header before names them, so no old validator has to sign anything more."""
    chain = LightChain([{1: 1}, {1: 1}, {2: 5}, {2: 5}, {2: 5}])
    assert chain.follow(chain.genesis, chain[4]).hash == chain[4].hash


def test_an_older_height_is_refused(chain: LightChain) -> None:
    trusted = chain.follow(chain.genesis, chain[5])
    for height in (4, 5):
        with pytest.raises(InvalidBlockError, match="not above"):
            verify_light_block(trusted, chain[height], RULES, now_ms=NOW_MS)


def test_a_block_that_does_not_follow_is_refused(chain: LightChain) -> None:
    trusted = chain.follow(chain.genesis, chain[5])
    block = chain.make_block(6, previous_hash=chain[4].hash)
    with pytest.raises(InvalidBlockError, match="does not follow"):
        verify_light_block(trusted, block, RULES, now_ms=NOW_MS)


def test_another_height_than_was_asked_for_is_refused() -> None:
    chain = LightChain([{1: 1}, {1: 1}, {2: 1}, {3: 1}, {4: 1}, {4: 1}])
    wanted = bisect(chain.genesis, chain[5], RULES, now_ms=NOW_MS)
    assert next(wanted) == 2
    with pytest.raises(InvalidBlockError, match="block 2 was asked for"):
        wanted.send(chain[1])


# --- trust ---------------------------------------------------------------------------------------


def test_trust_expires(chain: LightChain) -> None:
    last_ms = chain.genesis.time_ms + PERIOD_MS - 1
    assert verify_light_block(chain.genesis, chain[1], RULES, now_ms=last_ms).height == 1
    with pytest.raises(TrustExpiredError, match="trusted_block") as caught:
        verify_light_block(chain.genesis, chain[1], RULES, now_ms=last_ms + 1)
    assert caught.value.height == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("period_ms", [0, MarketParams().evidence_window_ms])
def test_trust_must_end_while_its_signers_can_be_punished(period_ms: int) -> None:
    with pytest.raises(ConfigurationError, match="evidence window"):
        make_rules("chain", MarketParams(), trusting_period_ms=period_ms)


def test_trust_lasts_two_thirds_of_the_evidence_window() -> None:
    params = MarketParams(evidence_window_ms=300, unbonding_ms=400)
    assert make_rules("chain", params) == LightRules("chain", 200)


def test_genesis_is_what_the_first_header_follows() -> None:
    ledger = LedgerChain(make_genesis(validators=("node-1", "node-2"), stake_micros=7))
    trusted = trust_genesis(ledger.genesis)
    assert trusted.height == 0
    assert [m.power for m in trusted.validators] == [7, 7]
    ids = [m.node_id for m in trusted.validators]
    assert ids == sorted(ids)
    assert set(ids) == {ledger.get_node("node-1"), ledger.get_node("node-2")}


def test_a_block_known_from_elsewhere_is_where_to_begin(chain: LightChain) -> None:
    trusted = trust_block(chain[5], chain[5].hash, chain_id=CHAIN_ID)
    assert chain.follow(trusted, chain[9]).hash == chain[9].hash
    with pytest.raises(InvalidBlockError, match="not"):
        trust_block(chain[5], chain[6].hash, chain_id=CHAIN_ID)
    with pytest.raises(InvalidBlockError, match="of the power"):
        trust_block(drop_votes(chain[5], 2), chain[5].hash, chain_id=CHAIN_ID)


# --- forks ---------------------------------------------------------------------------------------


def test_two_decided_blocks_of_one_height_are_a_fork(chain: LightChain) -> None:
    other = chain.make_block(4, signers=(2, 3, 4), state_root=bytes(32))
    assert verify_light_block(chain.genesis, other, RULES, now_ms=NOW_MS)
    compare(chain[4], chain[4])
    with pytest.raises(LedgerForkError, match="forked") as caught:
        compare(chain[4], other)
    error = caught.value
    assert (error.first, error.second) == (chain[4], other)  # type: ignore[attr-defined]
    for first, second in error.double_votes:  # type: ignore[attr-defined]
        assert first.signer_id == second.signer_id
        assert first.message.block_hash != second.message.block_hash
    assert len(error.double_votes) == 2  # type: ignore[attr-defined]


def test_votes_of_different_rounds_are_no_double_votes(chain: LightChain) -> None:
    other = chain.make_block(4, round_number=1, state_root=bytes(32))
    with pytest.raises(LedgerForkError) as caught:
        compare(chain[4], other)
    assert caught.value.double_votes == ()  # type: ignore[attr-defined]


def test_a_set_is_named_whatever_order_it_is_listed_in(chain: LightChain) -> None:
    block = replace(chain[1], validators=tuple(reversed(chain[1].validators)))
    assert verify_light_block(chain.genesis, block, RULES, now_ms=NOW_MS).height == 1
    assert list_members(FOUR) == tuple(sorted(list_members(FOUR), key=lambda m: m.node_id))


def test_a_set_too_large_to_check_is_refused(chain: LightChain) -> None:
    many = tuple(LightValidator(i.to_bytes(32, "big"), 1) for i in range(10_001))
    with pytest.raises(InvalidBlockError, match="lists 10001"):
        verify_light_block(chain.genesis, replace(chain[1], validators=many), RULES, now_ms=NOW_MS)
