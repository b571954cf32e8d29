"""A validator whose data is older than what it signed. Source: docs/spec/engine.md E27 to E29."""

from __future__ import annotations

import copy
from dataclasses import replace
from random import Random

import pytest

from iemas.consensus.messages import ProposalNotice, RecallRequest, RecallResponse, VoteNotice
from iemas.consensus.recall import Recall
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidSignatureError, RemoteProtocolError
from iemas.core.params import MarketParams
from iemas.testing.chain import make_genesis
from iemas.testing.disk import SimulatedDisk
from tests.cluster import FOUR, Cluster, Replica
from tests.committee import HEIGHT, Committee

PARAMS = MarketParams(block_interval_ms=10)


def make_cluster() -> Cluster:
    cluster = Cluster(FOUR, genesis=make_genesis(validators=FOUR, params=PARAMS))
    for name in FOUR:
        cluster[name].start()
    transaction = cluster.submit("node-1")
    cluster.run(5_000, until=lambda: cluster.is_applied(transaction))
    return cluster


@pytest.fixture
def cluster() -> Cluster:
    return make_cluster()


def begin_height_without_quorum(cluster: Cluster) -> int:
    """Let two of four vote at a height that the other two do not help to decide."""
    for name in FOUR[2:]:
        cluster[name].crash()
    height = cluster["node-1"].height + 1
    cluster.submit("node-1")
    cluster.run(1_000)
    assert cluster["node-1"].height == height - 1
    return height


def restore(replica: Replica, disk: SimulatedDisk) -> None:
    """Start from another disk than the one that it left."""
    replica.crash()
    replica.disk = disk
    replica.start()


def list_events(replica: Replica, name: str) -> list[int]:
    return [int(str(e.fields["height"])) for e in replica.events if e.name == name]


def count_signed(cluster: Cluster, name: str) -> int:
    """Count what left a node under its own signature."""
    own = cluster[name].node_id
    sent = [message for sender, _, message in cluster.sent if sender == own]
    votes = [v for m in sent if isinstance(m, VoteNotice) for v in m.votes if v.signer_id == own]
    proposals = [m for m in sent if isinstance(m, ProposalNotice) and m.proposal.signer_id == own]
    return len(votes) + len(proposals)


@pytest.mark.parametrize("is_empty", [False, True], ids=["older copy", "nothing left"])
@pytest.mark.parametrize("name", FOUR[:2])
def test_a_validator_signs_nothing_where_others_hold_what_it_forgot(
    cluster: Cluster, name: str, *, is_empty: bool
) -> None:
    older = SimulatedDisk() if is_empty else copy.deepcopy(cluster[name].disk)
    height = begin_height_without_quorum(cluster)
    restore(cluster[name], older)
    signed = count_signed(cluster, name)
    cluster.run(500)
    assert list_events(cluster[name], "own_statement_unknown") == [height]
    for other in FOUR[2:]:
        cluster[other].start()
    cluster.run(10_000, until=lambda: cluster["node-3"].height >= height)
    assert count_signed(cluster, name) == signed
    for _ in range(3):
        later = cluster.submit("node-3")
        cluster.run(10_000, until=lambda t=later: cluster.is_applied(t))  # type: ignore[misc]
    assert count_signed(cluster, name) > signed  # at later heights it takes part again


def test_without_recall_it_would_sign_twice(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iemas.consensus.recall.Recall.may_sign", lambda *_: True)
    older = copy.deepcopy(cluster["node-1"].disk)
    begin_height_without_quorum(cluster)
    restore(cluster["node-1"], older)
    cluster["node-3"].start()
    with pytest.raises(AssertionError):
        cluster.run(5_000)
    assert cluster.broken[0].startswith("signed twice")


def test_a_validator_that_remembers_goes_on_at_once(cluster: Cluster) -> None:
    height = begin_height_without_quorum(cluster)
    cluster["node-1"].crash()
    cluster["node-1"].start()
    cluster["node-3"].start()
    cluster.run(3_000, until=lambda: cluster["node-1"].height >= height)
    assert list_events(cluster["node-1"], "own_statement_unknown") == []


def test_a_validator_signs_nothing_before_a_quorum_has_answered(cluster: Cluster) -> None:
    for name in FOUR:
        cluster[name].crash()
    before = sum(count_signed(cluster, name) for name in FOUR)
    for name in FOUR[:2]:
        cluster[name].start()
        cluster.submit(name)
    cluster.run(20_000)
    assert sum(count_signed(cluster, name) for name in FOUR) == before
    cluster["node-3"].start()
    height = cluster["node-1"].height
    cluster.run(5_000, until=lambda: cluster["node-1"].height > height)


def test_a_validator_that_starts_behind_signs_nothing_for_decided_heights(
    cluster: Cluster,
) -> None:
    older = copy.deepcopy(cluster["node-1"].disk)
    behind = cluster["node-1"].height
    for _ in range(3):
        transaction = cluster.submit("node-1")
        cluster.run(5_000, until=lambda t=transaction: cluster.is_applied(t))  # type: ignore[misc]
    cluster.should_lose = lambda _sender, to, message: (
        to == "node-1" and not isinstance(message, RecallResponse)
    )
    restore(cluster["node-1"], older)
    signed = count_signed(cluster, "node-1")
    cluster.run(20_000)  # it hears the others' heights and gets no block
    assert cluster["node-1"].height == behind
    assert count_signed(cluster, "node-1") == signed


def test_one_peer_alone_cannot_keep_it_from_signing(cluster: Cluster) -> None:
    cluster.tamper = lambda sender, _to, message: (
        RecallResponse(10**9, (), ())
        if sender == "node-4" and isinstance(message, RecallResponse)
        else message
    )
    cluster["node-1"].crash()
    cluster["node-1"].start()
    signed, transaction = count_signed(cluster, "node-1"), cluster.submit("node-1")
    cluster.run(5_000, until=lambda: cluster.is_applied(transaction))
    assert count_signed(cluster, "node-1") > signed


def make_answers(cluster: Cluster, asker: Replica) -> dict[str, RecallResponse]:
    """Give what the others would show a validator that has just started."""
    answers = {}
    for name in FOUR:
        if cluster[name] is not asker:
            ready = cluster[name].engine.step(
                RecallRequest(1), sender=asker.node_id, now_ms=cluster[name].now_ms
            )
            (answers[name],) = [s.message for s in ready.send if s.to == asker.node_id]
    return answers  # type: ignore[return-value]


def test_a_liar_and_one_that_is_ahead_are_no_quorum(cluster: Cluster) -> None:
    node, older = cluster["node-1"], copy.deepcopy(cluster["node-1"].disk)
    for _ in range(2):
        transaction = cluster.submit("node-2")
        cluster.run(5_000, until=lambda t=transaction: cluster.is_applied(t))  # type: ignore[misc]
    cluster.should_lose = lambda *_: True
    restore(node, older)
    answers = make_answers(cluster, node)
    node.step(RecallResponse(node.height, (), ()), cluster["node-4"].node_id)
    for name in ("node-2", "node-3"):
        node.step(answers[name], cluster[name].node_id)
        assert not node.engine._recall.may_sign(node.height + 1, node.engine.validators)
    cluster.should_lose = lambda *_: False
    signed = count_signed(cluster, "node-1")
    for _ in range(2):  # it catches up, then signs
        transaction = cluster.submit("node-2")
        cluster.run(5_000, until=lambda t=transaction: cluster.is_applied(t))  # type: ignore[misc]
    assert count_signed(cluster, "node-1") > signed


def test_what_is_shown_after_the_asking_still_ends_the_signing(cluster: Cluster) -> None:
    older = copy.deepcopy(cluster["node-1"].disk)
    height = begin_height_without_quorum(cluster)
    node, witness = cluster["node-1"], cluster["node-2"]
    cluster.should_lose = lambda *_: True
    restore(node, older)
    answer = make_answers(cluster, node)["node-2"]
    for name in FOUR[2:]:  # they have heard nothing of the height
        node.step(RecallResponse(height - 1, (), ()), cluster[name].node_id)
    assert node.engine._recall.may_sign(height, node.engine.validators)
    node.step(answer, witness.node_id)
    assert list_events(node, "own_statement_unknown") == [height]
    assert not node.engine._recall.may_sign(height, node.engine.validators)
    signed = count_signed(cluster, "node-1")
    cluster.submit("node-1")
    cluster.run(3_000)
    assert count_signed(cluster, "node-1") == signed


def test_what_it_signed_since_the_start_is_remembered_however_late_it_is_shown(
    cluster: Cluster,
) -> None:
    for name in FOUR[2:]:
        cluster[name].crash()
    node, witness = cluster["node-1"], cluster["node-2"]
    cluster.should_lose = lambda _sender, _to, message: isinstance(message, RecallResponse)
    node.crash()
    node.start()
    for name in FOUR[2:]:
        node.step(RecallResponse(node.height, (), ()), cluster[name].node_id)
    cluster.submit("node-1")
    cluster.run(1_000)
    answer = make_answers(cluster, node)["node-2"]
    assert answer.votes
    node.step(answer, witness.node_id)
    assert list_events(node, "own_statement_unknown") == []
    assert node.engine._recall.may_sign(node.height + 1, node.engine.validators)


def test_four_that_start_at_once_at_two_heights_go_on_in_spite_of_a_liar(
    cluster: Cluster,
) -> None:
    older = {name: copy.deepcopy(cluster[name].disk) for name in FOUR[1:3]}
    transaction = cluster.submit("node-1")
    cluster.run(5_000, until=lambda: cluster.is_applied(transaction))
    cluster.tamper = lambda sender, _to, message: (
        RecallResponse(10**9, (), ())
        if sender == "node-4" and isinstance(message, RecallResponse)
        else message
    )
    for name in FOUR:
        cluster[name].crash()
        cluster[name].disk = older.get(name, cluster[name].disk)
    for name in FOUR:
        cluster[name].start()
    later = cluster.submit("node-2")
    cluster.run(5_000, until=lambda: cluster.is_applied(later))
    assert cluster.is_applied(later)


@pytest.mark.parametrize(
    ("powers", "level", "may_sign"),
    [
        ((1, 1, 1, 1), (1, 2), True),
        ((1, 1, 1, 1), (1,), False),
        ((3, 2, 1, 1), (1,), True),
        ((3, 2, 1, 1), (2, 3), True),
        ((1, 2, 3, 1), (2,), False),
        ((1, 2, 3, 1), (1, 2), True),
        ((5, 1, 1, 1), (), False),
    ],
)
def test_a_quorum_is_one_of_power(
    powers: tuple[int, ...], level: tuple[int, ...], *, may_sign: bool
) -> None:
    """The validator that asks is the first; those not in `level` are ahead."""
    committee = Committee(powers)
    recall = Recall(committee.ids[0], "chain")
    recall.begin(None)
    for number in range(1, 4):
        height = HEIGHT - 1 if number in level else HEIGHT
        recall.receive(RecallResponse(height, (), ()), committee.ids[number], own_height=HEIGHT - 1)
    assert recall.may_sign(HEIGHT, committee.validators) is may_sign


@pytest.mark.parametrize("is_forged", [True, False])
def test_what_is_not_its_own_is_refused(cluster: Cluster, *, is_forged: bool) -> None:
    node, peer = cluster["node-1"], cluster["node-2"].node_id
    node.crash()
    node.start()
    vote = cluster.chain.make_vote("node-1" if is_forged else "node-3", node.height + 1, None)
    if is_forged:
        vote = Signed(vote.message, replace(vote.envelope, signature=bytes(64)))
    answer = RecallResponse(node.height, (vote,), ())
    with pytest.raises(InvalidSignatureError if is_forged else RemoteProtocolError):
        node.engine.step(answer, sender=peer, now_ms=node.now_ms)
    assert peer not in node.engine._recall._heights


def test_an_engine_shows_what_it_holds_and_only_that(cluster: Cluster) -> None:
    height = begin_height_without_quorum(cluster)
    node, asker = cluster["node-2"], cluster["node-1"].node_id
    ready = node.engine.step(RecallRequest(height), sender=asker, now_ms=node.now_ms)
    (answer,) = [s.message for s in ready.send if isinstance(s.message, RecallResponse)]
    assert answer.height == height - 1
    assert answer.votes
    assert {vote.signer_id for vote in answer.votes} == {asker}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_copy_a_validator_comes_back_with_it_never_signs_twice(seed: int) -> None:
    """As long as the others did not lose what they heard."""
    random, cluster = Random(seed), make_cluster()
    copies = [copy.deepcopy(cluster["node-1"].disk), SimulatedDisk()]
    for _ in range(6):
        cluster.submit(random.choice(FOUR[1:]))
        cluster.run(random.randint(1, 60))
        copies.append(copy.deepcopy(cluster["node-1"].disk))
        if random.random() < 0.6:
            restore(cluster["node-1"], copy.deepcopy(random.choice(copies)))
            cluster.run(random.randint(1, 300))
    last = cluster.submit("node-2")
    cluster.run(20_000, until=lambda: cluster.is_applied(last))
