"""What a node owes the ledger: each duty until the ledger shows it done, each transaction once.

Source: node/duties.py; docs/spec/ledger.md §5, §7; docs/spec/election.md.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from iemas.consensus.messages import SubmitTransaction, VoteNotice
from iemas.core.auction import Ask
from iemas.core.envelope import Signed
from iemas.core.ready import Ready, RecordKind
from iemas.core.types import Hash, NodeId, Prices
from iemas.core.vote import VoteKind
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    AbsenceVote,
    CommitAsk,
    PostAsk,
    ResultCode,
    ReturnToDuty,
    Settle,
    Transaction,
    TransactionBody,
    TransferFunds,
)
from iemas.testing.builders import ASK
from iemas.testing.chain import HUB, START_MS, LedgerChain, make_genesis
from node.duties import REPEAT_LANDED_MS, RESUBMIT_MS, Duties
from node.standing_ask import StandingAsk
from tests.unit.node.nodes import OBSERVER, Nodes

SELF = "node-1"


class Ledger:
    """An engine that orders what it is given when the test says so."""

    def __init__(self, chain: LedgerChain) -> None:
        self.chain = chain
        self.waiting: list[Signed[Transaction]] = []
        self.submitted: list[Signed[Transaction]] = []

    @property
    def state(self) -> LedgerState:
        return self.chain.state

    def step(self, inp: SubmitTransaction, *, now_ms: int) -> Ready:
        del now_ms
        self.waiting.append(inp.transaction)
        self.submitted.append(inp.transaction)
        return Ready()

    def is_waiting(self, transaction_hash: Hash) -> bool:
        return any(transaction.hash == transaction_hash for transaction in self.waiting)

    def take_evidence(self) -> tuple[Any, ...]:
        return ()

    def order(self) -> list[ResultCode]:
        """Put all that waits into a block."""
        transactions, self.waiting = self.waiting, []
        return [result.code for result in self.chain.apply(transactions).results]


class Desk:
    """The duties of one node of three, beside roles that owe only what a test says."""

    def __init__(self, *, ask: Prices | None = None, chain: LedgerChain | None = None) -> None:
        self.chain = chain or LedgerChain(make_genesis(accounts=("alice", SELF)))
        self.ledger = Ledger(self.chain)
        self.accused: list[NodeId] = []
        self.settlement: Settle | None = None
        self.now_ms = START_MS
        absence = SimpleNamespace(list_accused=lambda **_: self.accused)
        provider = SimpleNamespace(collect_settlement=lambda: self.settlement)
        rounds = SimpleNamespace(get_due_books=list, get_evidence=lambda: None)
        standing = StandingAsk(
            prices=ask,
            hub=HUB,
            node_id=self.chain.get_node(SELF),
            chain_id=self.chain.chain_id,
            secret=bytes(32),
        )
        models = SimpleNamespace(list_votes=dict)
        self.duties = Duties(
            hub=HUB,
            signer=self.chain.get_signer(SELF),
            ask=standing,
            engine=cast("Any", self.ledger),
            absence=cast("Any", absence),
            provider=cast("Any", provider),
            rounds=cast("Any", rounds),
            models=cast("Any", models),
        )

    def do(self, *, after_ms: int = 0) -> list[TransactionBody]:
        """Do what is due; give what was submitted."""
        self.now_ms += after_ms
        count = len(self.ledger.submitted)
        self.duties.do(now_ms=self.now_ms)
        return [transaction.message.body for transaction in self.ledger.submitted[count:]]

    def make_settlement(self, total_micros: int) -> Settle:
        entry = self.chain.make_entry("alice", SELF, 0, total_micros, sequence=total_micros)
        return Settle((entry,))


# --- submitting ----------------------------------------------------------------------------------


def test_who_owes_nothing_submits_nothing() -> None:
    assert Desk().do() == []


def test_a_duty_is_submitted_once_while_it_waits() -> None:
    desk = Desk(ask=ASK)
    assert desk.do() == [PostAsk(Ask(HUB, ASK))]
    assert desk.do(after_ms=10 * RESUBMIT_MS) == []


def test_what_the_ledger_shows_is_no_duty_any_more() -> None:
    desk = Desk(ask=ASK)
    desk.do()
    assert desk.ledger.order() == [ResultCode.OK]
    assert desk.do(after_ms=10 * REPEAT_LANDED_MS) == []


def test_what_got_lost_is_submitted_again() -> None:
    desk = Desk(ask=ASK)
    desk.do()
    desk.ledger.waiting.clear()
    assert desk.do(after_ms=RESUBMIT_MS - 1) == []
    assert desk.do(after_ms=1) == [PostAsk(Ask(HUB, ASK))]


def test_what_a_later_nonce_overtook_is_submitted_again_at_once() -> None:
    desk = Desk(ask=ASK)
    desk.do()
    overtaken = desk.ledger.waiting
    desk.ledger.waiting = []
    desk.chain.submit(SELF, TransferFunds(desk.chain.get_id("alice"), 1))
    desk.ledger.waiting = overtaken
    assert desk.do() == [PostAsk(Ask(HUB, ASK))]


def test_what_landed_and_was_refused_is_tried_again_later() -> None:
    desk = Desk()
    forged = desk.chain.make_entry("alice", SELF, 0, 100, signed_by="node-2")
    desk.settlement = Settle((forged,))
    desk.do()
    assert desk.ledger.order() == [ResultCode.WRONG_SIGNER]
    assert desk.do(after_ms=REPEAT_LANDED_MS - 1) == []
    assert desk.do(after_ms=1) == [desk.settlement]


def test_what_is_sealed_is_persisted_with_the_step_that_sends_its_commitment() -> None:
    desk = Desk(ask=ASK)
    desk.do()
    desk.ledger.order()
    desk = Desk(ask=Prices(9, 9, 9), chain=desk.chain)
    desk.do()
    assert desk.ledger.order() == [ResultCode.OK]
    ready = desk.duties.do(now_ms=desk.now_ms)
    assert isinstance(desk.ledger.submitted[-1].message.body, CommitAsk)
    assert [record.kind for record in ready.persist] == [RecordKind.SEALED_ASK]


def test_a_duty_that_grew_replaces_what_waits_after_a_while() -> None:
    desk = Desk()
    desk.settlement = desk.make_settlement(100)
    desk.do()
    desk.settlement = desk.make_settlement(200)
    assert desk.do(after_ms=RESUBMIT_MS - 1) == []
    assert desk.do(after_ms=1) == [desk.settlement]


# --- votes ---------------------------------------------------------------------------------------


def test_who_is_held_absent_gets_a_vote_once() -> None:
    desk = Desk()
    node = desk.chain.get_node("node-3")
    desk.accused = [node]
    assert desk.do() == [AbsenceVote(HUB, 0, node)]
    assert desk.do(after_ms=RESUBMIT_MS) == []
    desk.ledger.order()
    desk.accused = []
    assert desk.do(after_ms=10 * REPEAT_LANDED_MS) == []


def test_who_was_voted_absent_returns_to_duty() -> None:
    desk = Desk()
    accused = desk.chain.get_node(SELF)
    for voter in ("node-2", "node-3"):
        desk.chain.submit(voter, AbsenceVote(HUB, 0, accused))
    assert not desk.chain.state.is_live(HUB, accused)
    assert ReturnToDuty(HUB) in desk.do()


# --- among nodes ---------------------------------------------------------------------------------


def test_a_provider_posts_its_ask() -> None:
    nodes = Nodes()
    nodes.join()
    nodes.pass_time(1_000)
    state = nodes.cores[OBSERVER].state
    assert state.get_ask(HUB, nodes.chain.get_node("node-1")) == ASK


def test_who_answers_nothing_is_voted_absent() -> None:
    nodes = Nodes(("node-1", "node-2", "node-3", "node-4"))
    nodes.join()
    silent = nodes.cores.pop("node-2")
    nodes.now_ms += 6_000
    nodes.pass_time(10_000)
    assert not nodes.cores["node-1"].state.is_live(HUB, silent.node_id)


def test_who_votes_twice_is_reported_and_slashed() -> None:
    nodes = Nodes(("node-1", "node-2", "node-3", "node-4"))
    nodes.join()
    nodes.pass_time(1_000)
    liar, height = nodes.chain.get_node("node-2"), nodes.cores["node-1"].state.height + 1
    votes = tuple(
        nodes.chain.make_vote("node-2", height, value, kind=VoteKind.PRECOMMIT)
        for value in (None, bytes(32))
    )
    before = nodes.cores["node-1"].state.get_stake_micros(liar)
    nodes.send("node-2", "node-1", VoteNotice(votes))
    nodes.pass_time(10_000)
    for core in nodes.cores.values():
        assert core.state.get_stake_micros(liar) < before
        assert core.state.is_jailed(liar)
