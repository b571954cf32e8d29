"""Whoever knows the validators of a height can check that a block was decided there.

Source: docs/spec/engine.md E30 to E32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from iemas.consensus.commits import make_validators, verify_commit
from iemas.consensus.messages import Commit, CommittedBlock
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidBlockError, InvalidSignatureError
from iemas.core.types import Hash
from iemas.core.vote import Vote, VoteKind
from iemas.testing.chain import LedgerChain, make_genesis
from tests.cluster import FOUR

CHAIN = LedgerChain(make_genesis(validators=FOUR))
VALIDATORS = make_validators(CHAIN.state)
BLOCK = CHAIN.make_block()


def precommit(name: str, **changes: object) -> Signed[Vote]:
    vote = Vote(1, 0, VoteKind.PRECOMMIT, BLOCK.hash)
    signed: Signed[Vote] = CHAIN.sign(name, replace(vote, **changes))  # type: ignore[arg-type]
    return signed


THREE = tuple(precommit(name) for name in FOUR[:3])
DECIDED = CommittedBlock(BLOCK, Commit(1, 0, BLOCK.hash, THREE))


def with_votes(*votes: Signed[Vote]) -> CommittedBlock:
    return replace(DECIDED, commit=replace(DECIDED.commit, precommits=votes))


def refuse(committed: CommittedBlock, error: type[Exception] = InvalidBlockError) -> str:
    with pytest.raises(error) as caught:
        verify_commit(committed, VALIDATORS, CHAIN.chain_id)
    return str(caught.value)


def test_three_of_four_equal_validators_decide() -> None:
    verify_commit(DECIDED, VALIDATORS, CHAIN.chain_id)
    verify_commit(with_votes(*THREE, precommit("node-4")), VALIDATORS, CHAIN.chain_id)


def test_two_of_four_do_not() -> None:
    assert "has 2000 of 4000 of the power" in refuse(with_votes(*THREE[:2]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: precommit("node-1"), "voted twice"),
        (lambda: precommit("alice"), "is no validator"),
        (lambda: precommit("node-4", height=2), "something else"),
        (lambda: precommit("node-4", round=1), "something else"),
        (lambda: precommit("node-4", kind=VoteKind.PREVOTE), "something else"),
        (lambda: precommit("node-4", block_hash=None), "something else"),
        (lambda: precommit("node-4", block_hash=Hash(bytes(32))), "something else"),
    ],
    ids=["twice", "stranger", "height", "round", "kind", "nil", "block"],
)
def test_one_wrong_vote_spoils_a_commit(make: Callable[[], Signed[Vote]], text: str) -> None:
    assert text in refuse(with_votes(*THREE[:2], make()))
    assert text in refuse(with_votes(*THREE, make()))


def test_a_forged_vote_spoils_a_commit() -> None:
    forged = Signed(THREE[2].message, replace(THREE[2].envelope, signature=bytes(64)))
    assert "a false vote" in refuse(with_votes(*THREE[:2], forged))


def test_a_commit_of_another_chain_is_refused() -> None:
    with pytest.raises(InvalidSignatureError):
        verify_commit(DECIDED, VALIDATORS, "another chain")


def test_a_commit_is_of_its_block() -> None:
    other = CHAIN.make_block(time_ms=5)
    assert "another block's" in refuse(replace(DECIDED, block=other))


def test_a_blocks_maker_is_a_validator() -> None:
    block = CHAIN.make_block(proposer="alice")
    commit = replace(DECIDED.commit, block_hash=block.hash)
    assert "is no validator" in refuse(CommittedBlock(block, commit))


def test_a_header_names_the_validators_that_decide() -> None:
    block = CHAIN.make_block(validators_hash=Hash(bytes(32)))
    commit = replace(DECIDED.commit, block_hash=block.hash)
    assert "other validators" in refuse(CommittedBlock(block, commit))
