"""Consensus under faults from a seed, and that the checkers would notice if it broke."""

from __future__ import annotations

import pytest

from iemas.consensus import engine as engines
from iemas.consensus import participant as participants
from iemas.consensus.messages import ProposalNotice, VoteNotice
from iemas.consensus.voting import NO_ROUND, Proposal
from iemas.core.vote import Vote, VoteKind
from iemas.testing.disk import SimulatedDisk
from iemas.testing.network import NetworkFaults
from tests.cluster import FOUR, OBSERVER, Cluster
from tests.simulation.consensus_ordeal import ConsensusOrdeal


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_all_agree_and_go_on(seed: int) -> None:
    assert ConsensusOrdeal(seed).run() == []


def test_a_node_that_was_away_for_1_000_blocks_catches_up_while_the_others_go_on() -> None:
    """A single validator decides, so that a thousand blocks are quickly made."""
    cluster = Cluster(["node-1"], observers=(OBSERVER,)).start()
    cluster[OBSERVER].crash()

    def keep_busy() -> None:
        nonce = cluster["node-1"].engine.get_next_nonce(cluster.chain.get_id("alice"))
        cluster.submit("node-1", cluster.make_funding(nonce=nonce))
        cluster.clock.call_later(50, keep_busy)

    keep_busy()
    cluster.run(60_000, until=lambda: cluster["node-1"].height >= 1_000)
    cluster[OBSERVER].start()
    cluster.run(5_000, until=lambda: cluster[OBSERVER].height == cluster["node-1"].height)
    assert cluster[OBSERVER].height > 1_000


def test_a_node_with_an_emptied_disk_follows_again() -> None:
    cluster = Cluster().start()
    cluster.submit("node-1")
    cluster.run(6_000)
    cluster["node-2"].crash()
    cluster["node-2"].disk = SimulatedDisk()
    cluster.run(6_000)
    cluster["node-2"].start()
    cluster.run(6_000)
    assert len(cluster.get_roots()) == 1


def test_the_side_without_a_quorum_stands_still_and_heals_without_a_fork() -> None:
    cluster = Cluster().start()
    cluster.run(500)
    small, large = FOUR[:2], FOUR[2:]
    for one in small:
        for other in large:
            cluster.network.cut(cluster[one].node_id, cluster[other].node_id)
            cluster.network.cut(cluster[other].node_id, cluster[one].node_id)
    transactions = [
        cluster.submit(name, cluster.make_funding_by(sender, 1))
        for name, sender in (("node-1", "alice"), ("node-3", "bob"))
    ]
    cluster.run(10_000)
    assert {replica.height for replica in cluster.replicas.values()} == {1}
    cluster.network.heal()
    cluster.run(5_000)
    assert all(cluster.is_applied(transaction) for transaction in transactions)


def test_a_checker_notices_a_validator_that_forgets_what_it_signed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the sign record a validator votes against itself after a crash, and is caught."""
    monkeypatch.setattr(participants.Participant, "_make_records", lambda _: [])
    broken = [line for seed in range(6) for line in ConsensusOrdeal(seed, crashes=20).run()]
    assert any("signed twice" in line for line in broken)


def test_without_gossip_a_lossy_network_stops_consensus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STATUS_INTERVAL_MS", 10**9)
    assert any(ConsensusOrdeal(seed).run() for seed in range(4))


def split_the_vote(cluster: Cluster, liar: str) -> None:
    """Let a proposer show every other validator another block, and vote for all of them."""
    chain = cluster["node-1"].engine._chain
    signer = cluster.chain.get_signer(liar)
    height = cluster["node-1"].height + 1
    victims = [cluster[name] for name in FOUR if name != liar]
    notices = []
    for number in range(len(victims)):
        now_ms = cluster.clock.now_ms + number
        block = chain.make_block((), signer=signer, now_ms=now_ms)
        notices.append(
            ProposalNotice(signer.sign(Proposal(height, 0, block.hash, NO_ROUND)), block)
        )
    votes = tuple(
        signer.sign(Vote(height, 0, kind, notice.block.hash))
        for notice in notices
        for kind in (VoteKind.PREVOTE, VoteKind.PRECOMMIT)
    )
    for victim, notice in zip(victims, notices, strict=True):
        victim.step(notice, cluster[liar].node_id)
        victim.step(VoteNotice(votes), cluster[liar].node_id)


@pytest.mark.parametrize("seed", range(6))
def test_a_proposer_that_tells_everyone_something_else_splits_nobody(seed: int) -> None:
    faults = NetworkFaults(most_delay_ms=60, loss_ppm=50_000, duplication_ppm=20_000)
    cluster = Cluster(seed=seed, faults=faults).start()
    liar = "node-4"
    cluster.run(1_000)
    cluster[liar].crash()
    lies = 0
    for number in range(20):
        validators = cluster["node-1"].engine._chain.validators
        if validators.get_proposer(0) == cluster[liar].node_id:
            lies += 1
            split_the_vote(cluster, liar)
        cluster.submit("node-1", cluster.make_funding(number + 1))
        cluster.run(1_500)
    assert lies > 0
    cluster.run(5_000)
    assert cluster["node-1"].engine.state.get_nonce(cluster.chain.get_id("alice")) == 20
    accused = {
        double.first.signer_id
        for name in FOUR[:3]
        for double in cluster[name].engine.take_evidence()
    }
    assert accused == {cluster[liar].node_id}
