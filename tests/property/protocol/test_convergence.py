"""Membership converges: whatever is lost, doubled or overtaken, exchanges make tables equal.

Source: docs/spec/membership.md R2, R3, R10; design §8.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from iemas.core.envelope import Signed
from iemas.core.gossip import ExchangeRequest
from iemas.core.membership import Membership, PublishReport, ReceiveGossip
from iemas.core.params import MarketParams
from iemas.core.ready import Ready, Send
from iemas.core.report import Report
from iemas.core.types import NodeId
from iemas.testing.builders import (
    INCARNATION,
    make_capability,
    make_digest,
    make_load,
    make_stamp,
)
from iemas.testing.chain import LedgerChain

NOW_MS = 1_800_000_000_000
CHAIN = LedgerChain()
NAMES = ("a", "b", "c")
MAKERS = {"capability": make_capability, "load": make_load, "digest": make_digest}

names = st.sampled_from(NAMES)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), names, st.sampled_from(sorted(MAKERS))),
        st.tuples(st.just("restart"), names, st.just("")),
        st.tuples(st.sampled_from(["deliver", "lose", "double"]), st.integers(0, 20), st.just("")),
    ),
    max_size=30,
)


class Members:
    """Three nodes and all messages between them, which arrive in any order, or never."""

    def __init__(self) -> None:
        self.mail: list[tuple[str, Send]] = []
        self.members: dict[str, Membership] = {}
        self.events: list[str] = []
        self._incarnations = dict.fromkeys(NAMES, INCARNATION)
        self._sequences = dict.fromkeys(NAMES, 0)
        self._names = {CHAIN.get_node(name): name for name in NAMES}
        for name in NAMES:
            self.start(name)

    def start(self, name: str) -> None:
        """Start a process that knows itself, and the first other one's address."""
        self._incarnations[name] += 1
        self._sequences[name] = 0
        self.members[name] = Membership(
            own_id=CHAIN.get_node(name), chain_id=CHAIN.chain_id, params=MarketParams()
        )
        report = self.publish(name, "capability")
        for other, member in self.members.items():
            if other != name:
                self.take(other, member.receive_report(report, now_ms=NOW_MS))
                break

    def publish(self, name: str, kind: str) -> Signed[Report]:
        signer = CHAIN.get_signer(name)
        self._sequences[name] += 1
        stamp = make_stamp(
            signer, self._sequences[name], now_ms=NOW_MS, incarnation=self._incarnations[name]
        )
        report: Signed[Report] = signer.sign(MAKERS[kind](stamp))
        self.take(name, self.members[name].step(PublishReport(report), now_ms=NOW_MS))
        return report

    def take(self, name: str, ready: Ready) -> None:
        self.mail += [(name, send) for send in ready.send]
        self.events += [f.name for f in ready.faults if f.name != "ReplayedReportError"]

    def deliver(self, index: int) -> None:
        sender, send = self.mail.pop(index % len(self.mail))
        self.deliver_to(sender, send)

    def deliver_to(self, sender: str, send: Send) -> None:
        to = self._names[send.to]
        inp = ReceiveGossip(CHAIN.get_node(sender), send.message)
        self.take(to, self.members[to].step(inp, now_ms=NOW_MS))

    def operate(self, operation: str, subject: int | str, kind: str) -> None:
        if operation == "publish":
            self.publish(str(subject), kind)
        elif operation == "restart":
            self.start(str(subject))
        elif self.mail and isinstance(subject, int):
            if operation == "double":
                self.mail.append(self.mail[subject % len(self.mail)])
            elif operation == "lose":
                del self.mail[subject % len(self.mail)]
            else:
                self.deliver(subject)

    def exchange(self) -> None:
        """Lose what is under way; let each node exchange once with each other."""
        self.mail.clear()
        for name in NAMES:
            for other in NAMES:
                if other != name:
                    request = ExchangeRequest(self.members[name]._get_versions())
                    self.deliver_to(name, Send(CHAIN.get_node(other), request))
                    while self.mail:
                        self.deliver(0)

    def get_table(self, name: str) -> dict[NodeId, list[bytes]]:
        return {
            node_id: [report.hash for report in record.get_reports()]
            for node_id, record in self.members[name].get_nodes()
        }


@settings(max_examples=80, deadline=None)
@given(operations)
def test_one_round_of_exchanges_makes_all_tables_equal(
    steps: list[tuple[str, int | str, str]],
) -> None:
    members = Members()
    for step in steps:
        members.operate(*step)
    members.exchange()
    tables = [members.get_table(name) for name in NAMES]
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) == len(NAMES)


@settings(max_examples=80, deadline=None)
@given(operations)
def test_everyone_holds_what_each_node_last_said(steps: list[tuple[str, int | str, str]]) -> None:
    members = Members()
    for step in steps:
        members.operate(*step)
    members.exchange()
    for name in NAMES:
        node_id = CHAIN.get_node(name)
        own = members.get_table(name)[node_id]
        assert all(members.get_table(other)[node_id] == own for other in NAMES)


@settings(max_examples=80, deadline=None)
@given(operations)
def test_honest_nodes_are_refused_for_nothing_but_age(
    steps: list[tuple[str, int | str, str]],
) -> None:
    """Overtaken reports are stale, reports before their node's first are unknown: no forgeries."""
    members = Members()
    for step in steps:
        members.operate(*step)
    members.exchange()
    assert set(members.events) <= {"StaleReportError", "UnknownSignerError"}
