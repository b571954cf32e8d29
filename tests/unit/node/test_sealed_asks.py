"""Sealed asks among whole nodes: who has fixed what before it can see what.

Source: docs/spec/ledger.md §9; design §6 (an auctioneer that also sells has fixed its ask before it
can see another).
"""

from __future__ import annotations

import pytest

from iemas import wire
from iemas.consensus.messages import SubmitTransaction
from iemas.core.auction import Ask
from iemas.core.params import MarketParams
from iemas.core.types import Prices
from iemas.ledger.records import CommitmentKey
from iemas.ledger.transaction import (
    CommitAsk,
    PostAsk,
    ResultCode,
    RevealAsk,
    Transaction,
    TransactionBody,
)
from iemas.ledger.transfer import get_deposit
from iemas.testing.builders import ASK
from iemas.testing.chain import HUB
from node.core import ReceiveTransaction
from node.standing_ask import AskPhase
from tests.unit.node.nodes import OBSERVER, Nodes

EPOCH_MS, BOND = 8_000, 500
PARAMS = MarketParams(
    ask_epoch_ms=EPOCH_MS, ask_reveal_ms=2_000, ask_bond_micros=BOND, idle_block_interval_ms=500
)
OTHERS_ASK, UNDERCUT = Prices(700, 70, 7_000), Prices(699, 69, 6_999)


@pytest.fixture
def nodes() -> Nodes:
    """Two validators that sell, their first asks on the ledger, and an observer."""
    made = Nodes(params=PARAMS, accounts=("alice", "node-1", "node-2"))
    made.join()
    made.pass_time(1_000)
    return made


def name_rivals(nodes: Nodes) -> tuple[str, str]:
    """Name the term's auctioneer, which sells too, and the other seller."""
    auctioneer = nodes.chain.get_name(nodes.cores[OBSERVER].state.get_term(HUB).auctioneer)
    return auctioneer, "node-2" if auctioneer == "node-1" else "node-1"


def get_standing(nodes: Nodes, name: str) -> Prices | None:
    return nodes.cores[OBSERVER].state.get_ask(HUB, nodes.chain.get_node(name))


def get_epoch(nodes: Nodes, name: str = OBSERVER) -> int:
    return nodes.cores[name].state.ask_epochs[HUB].number


def submit(nodes: Nodes, name: str, body: TransactionBody) -> ResultCode:
    """Let a node's owner sign a transaction by hand, and have it ordered."""
    core = nodes.cores[name]
    account = nodes.chain.get_id(name)
    nonce = core.state.get_nonce(account) + 100
    signed = nodes.chain.sign(name, Transaction(account, nonce, body))
    nodes.step(name, ReceiveTransaction(signed))
    nodes.pass_time(500)
    return core.results[signed.hash][0].code


def find_reveals(nodes: Nodes) -> list[RevealAsk]:
    """List the reveals that have left any node."""
    bodies = [
        message.transaction.message.body
        for _, message in nodes.sent
        if isinstance(message, SubmitTransaction)
    ]
    return [body for body in bodies if isinstance(body, RevealAsk)]


def test_an_auctioneer_that_sells_cannot_see_an_ask_before_its_own_is_fixed(nodes: Nodes) -> None:
    auctioneer, other = name_rivals(nodes)
    nodes.restart(other, OTHERS_ASK)
    nodes.pass_time(1_000)
    key = CommitmentKey(HUB, 1, nodes.chain.get_node(other))
    assert key in nodes.cores[auctioneer].state.commitments
    while not (reveals := find_reveals(nodes)):
        # All that has left the other node so far holds neither the ask nor what hides it.
        nodes.pass_time(250)
    assert get_epoch(nodes, other) == 1
    salt = reveals[0].salt
    before = nodes.sent[: next(i for i, (_, m) in enumerate(nodes.sent) if is_reveal(m))]
    assert not any(salt in wire.to_deliver_request(m).SerializeToString() for _, m in before)

    # Now it sees it, and nothing that it can do changes its own ask of this epoch.
    nodes.restart(auctioneer, UNDERCUT)
    late = nodes.chain.make_commitment(auctioneer, 1, UNDERCUT)
    assert submit(nodes, auctioneer, late) is ResultCode.UNKNOWN_EPOCH
    assert submit(nodes, auctioneer, PostAsk(Ask(HUB, UNDERCUT))) is ResultCode.ASKS_SEALED
    nodes.pass_time(2_000)
    assert get_epoch(nodes) == 1
    assert (get_standing(nodes, other), get_standing(nodes, auctioneer)) == (OTHERS_ASK, ASK)


def is_reveal(message: object) -> bool:
    return isinstance(message, SubmitTransaction) and isinstance(
        message.transaction.message.body, RevealAsk
    )


def test_an_ask_stands_from_the_epoch_after_its_change_on(nodes: Nodes) -> None:
    nodes.restart("node-1", OTHERS_ASK)
    while get_epoch(nodes) == 0:
        assert get_standing(nodes, "node-1") == ASK
        nodes.pass_time(250)
    nodes.pass_time(1_000)
    assert get_standing(nodes, "node-1") == OTHERS_ASK
    assert nodes.cores["node-1"].ask.phase is AskPhase.STANDS


def test_a_crash_between_commitment_and_reveal_burns_no_bond(nodes: Nodes) -> None:
    nodes.restart("node-1", OTHERS_ASK)
    nodes.pass_time(1_000)
    assert nodes.cores["node-1"].ask.phase is AskPhase.COMMITTED
    nodes.restart("node-1", UNDERCUT)
    while get_epoch(nodes) == 0:
        nodes.pass_time(250)
    nodes.restart("node-1", UNDERCUT)
    nodes.pass_time(4_000)
    deposit = get_deposit(nodes.chain.get_id("node-1"))
    assert nodes.cores[OBSERVER].state.get_funds(deposit) == BOND
    assert get_standing(nodes, "node-1") == OTHERS_ASK


def test_nobody_else_commits_where_one_changes_its_ask(nodes: Nodes) -> None:
    nodes.restart("node-1", OTHERS_ASK)
    nodes.pass_time(1_000)
    commitments = nodes.cores[OBSERVER].state.commitments
    assert [key.node for key in commitments] == [nodes.chain.get_node("node-1")]
    assert CommitAsk.__name__ in {
        type(m.transaction.message.body).__name__
        for _, m in nodes.sent
        if isinstance(m, SubmitTransaction)
    }
