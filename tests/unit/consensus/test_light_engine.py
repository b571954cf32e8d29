"""A light client follows blocks that engines really decided, while validators come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas.consensus.commits import make_validators
from iemas.consensus.light import (
    TrustedBlock,
    bisect,
    make_rules,
    trust_genesis,
    verify_light_block,
)
from iemas.consensus.messages import CommittedBlock, LightBlock, LightValidator
from iemas.core.errors import InvalidBlockError
from iemas.core.params import MarketParams
from iemas.core.types import Hash
from iemas.ledger.proofs import StateProver, verify_record
from iemas.ledger.records import AccountRecord
from iemas.ledger.transaction import Stake, Unstake
from iemas.testing.chain import make_genesis
from tests.cluster import FOUR, OBSERVER, Cluster

WHALE = 100_000
"""So much more than all others that it decides alone, and no old signature reaches across."""


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """A newcomer takes over nearly all power, then two of the old ones leave."""
    params = MarketParams(min_stake_micros=1)
    genesis = make_genesis(validators=FOUR, accounts=("alice", OBSERVER), params=params)
    made = Cluster(observers=(OBSERVER,), genesis=genesis).start()
    made.run(200)
    changes = ((OBSERVER, Stake(WHALE)), ("node-1", Unstake(1_000)), ("node-2", Unstake(1_000)))
    for name, body in changes:
        made.submit("node-3", made.chain.make_transaction(name, body))
        for _ in range(3):
            made.run(300)
            made.submit("node-3")
    made.run(1_000)
    return made


def list_light_blocks(cluster: Cluster) -> list[LightBlock]:
    replica = cluster["node-3"]
    state = replica.engine.state
    return [
        LightBlock(
            committed.block.header,
            committed.commit,
            tuple(
                LightValidator(*member)
                for member in state.get_consensus_validators_at(committed.height)
            ),
        )
        for committed in replica.blocks
    ]


def test_going_through_all_and_skipping_trust_the_same(cluster: Cluster) -> None:
    blocks = list_light_blocks(cluster)
    assert len({block.header.message.validators_hash for block in blocks}) == 4
    rules = make_rules(cluster.chain.chain_id, cluster.chain.genesis.params)
    now_ms = cluster.clock.now_ms
    trusted = trust_genesis(cluster.chain.genesis)
    for block in blocks:
        trusted = verify_light_block(trusted, block, rules, now_ms=now_ms)
    found: TrustedBlock | None = None
    wanted = bisect(trust_genesis(cluster.chain.genesis), blocks[-1], rules, now_ms=now_ms)
    try:
        height = next(wanted)
        while True:
            height = wanted.send(blocks[height - 1])
    except StopIteration as done:
        found = done.value
    assert found == trusted


def test_a_state_is_proven_under_the_next_header(cluster: Cluster) -> None:
    engine = cluster["node-3"].engine
    assert engine.proven is not None
    committed, state = engine.proven
    assert committed.height == engine.height == state.height + 1
    root = committed.block.header.message.state_root
    prover = StateProver(state)
    assert prover.root == root
    alice = cluster.chain.get_id("alice")
    proof = prover.prove("accounts", alice)
    assert verify_record(proof, root, "accounts", alice, AccountRecord) == state.accounts[alice]


def test_nothing_is_proven_after_genesis(cluster: Cluster) -> None:
    assert cluster.make_engine("node-1").proven is None


def test_genesis_trusts_who_votes_first(cluster: Cluster) -> None:
    fresh = cluster.make_engine("node-1")
    first = make_validators(fresh.state)
    trusted = trust_genesis(cluster.chain.genesis)
    assert trusted.next_validators_hash == first.compute_hash()
    assert [(m.node_id, m.power) for m in trusted.validators] == [
        (v.node_id, v.power) for v in first
    ]


def test_a_replica_refuses_a_header_that_names_other_next_validators(cluster: Cluster) -> None:
    """Both as a proposal and as a decided block."""
    first: CommittedBlock = cluster["node-3"].blocks[0]
    chain = cluster.make_engine("node-1")._chain
    header = replace(first.block.header.message, next_validators_hash=Hash(bytes(32)))
    signed = cluster.chain.sign(cluster.chain.get_name(first.block.proposer), header)
    block = replace(first.block, header=signed)
    with pytest.raises(InvalidBlockError, match="other next validators"):
        chain.check_proposal(block)
    votes = tuple(
        cluster.chain.sign(name, replace(first.commit.precommits[0].message, block_hash=block.hash))
        for name in FOUR
    )
    commit = replace(first.commit, block_hash=block.hash, precommits=votes)
    with pytest.raises(InvalidBlockError, match="other next validators"):
        chain.apply(CommittedBlock(block, commit))
