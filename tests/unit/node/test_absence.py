"""Whom a validator votes absent, and when it is in no position to.

Source: docs/spec/election.md A5 to A9.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from iemas.core.gossip import ReportPush, SignedReport
from iemas.core.membership import Membership, ReceiveGossip, Tick
from iemas.core.types import NodeId
from iemas.ledger.transaction import AbsenceVote
from iemas.testing.builders import make_reports
from iemas.testing.chain import HUB, START_MS, LedgerChain, make_genesis
from node.absence import JOIN_GRACE_MS, QUORUM_INTERVALS, Absence

NAMES = ("node-1", "node-2", "node-3", "node-4")
SELF = "node-1"


class Seat:
    """One of four validators, and what it hears of the others."""

    def __init__(self, *, joined: tuple[str, ...] = NAMES[1:]) -> None:
        self.chain = LedgerChain(make_genesis(validators=NAMES))
        self.params = self.chain.genesis.params
        self.patience_ms = self.params.probe_interval_ms * (self.params.probe_misses + 1)
        self.now_ms = START_MS
        self.mute: NodeId | None = None
        self.membership = Membership(
            own_id=self.chain.get_node(SELF), chain_id=self.chain.chain_id, params=self.params
        )
        for name in joined:
            reports = make_reports(self.chain.get_signer(name), now_ms=START_MS)
            push = ReportPush(tuple(SignedReport.wrap(report) for report in reports))
            sender = self.chain.get_node(name)
            self.membership.step(ReceiveGossip(sender, push), now_ms=START_MS)
        self.absence = Absence(
            hub=HUB,
            own_id=self.chain.get_node(SELF),
            params=self.params,
            membership=self.membership,
            stuck_bids=cast("Any", SimpleNamespace(mute=None)),
            get_state=lambda: self.chain.state,
            started_at_ms=START_MS,
        )
        self.absence.follow_ledger(now_ms=START_MS)

    def pass_time(self, total_ms: int, *hearing: str) -> None:
        """Let time pass in which only these are heard."""
        for _ in range(total_ms // 50):
            self.now_ms += 50
            for name in hearing:
                self.membership.hear(self.chain.get_node(name), now_ms=self.now_ms)
            self.membership.step(Tick(), now_ms=self.now_ms)

    def list_accused(self) -> list[str]:
        return [self.chain.get_name(node) for node in self.absence.list_accused(now_ms=self.now_ms)]

    @property
    def on_duty(self) -> str:
        """Another node on duty than this one, which all of this is about."""
        term = self.chain.state.get_term(HUB)
        assert term.witness is not None
        names = [self.chain.get_name(node) for node in (term.auctioneer, term.witness)]
        return next(name for name in names if name != SELF)

    def list_others(self, *names: str) -> list[str]:
        return [name for name in NAMES[1:] if name not in names]


@pytest.fixture
def seat() -> Seat:
    return Seat()


def test_who_is_heard_is_not_accused(seat: Seat) -> None:
    seat.pass_time(20_000, *NAMES[1:])
    assert seat.list_accused() == []


def test_who_is_silent_on_duty_is_accused(seat: Seat) -> None:
    silent = seat.on_duty
    seat.pass_time(seat.patience_ms - 50, *seat.list_others(silent))
    assert seat.list_accused() == []
    seat.pass_time(50, *seat.list_others(silent))
    assert seat.list_accused() == [silent]


def test_a_mute_auctioneer_is_accused_though_it_is_heard(seat: Seat) -> None:
    auctioneer = seat.chain.state.get_term(HUB).auctioneer
    mute = auctioneer if auctioneer != seat.chain.get_node(SELF) else seat.chain.get_node("node-2")
    seat.absence._stuck_bids = cast("Any", SimpleNamespace(mute=mute))
    seat.pass_time(100, *NAMES[1:])
    assert seat.list_accused() == [seat.chain.get_name(mute)]


def test_who_hears_no_quorum_accuses_nobody(seat: Seat) -> None:
    silent = seat.on_duty
    (one, _) = seat.list_others(silent)
    seat.pass_time(10 * seat.patience_ms, one)
    assert seat.membership.is_suspected(seat.chain.get_node(silent))
    assert seat.list_accused() == []


def test_who_is_cut_off_accuses_nobody_at_any_moment(seat: Seat) -> None:
    seat.pass_time(5_000, *NAMES[1:])
    for _ in range(200):
        seat.pass_time(50)
        assert seat.list_accused() == []


def test_who_is_back_accuses_nobody_before_a_quorum_is_heard(seat: Seat) -> None:
    silent = seat.on_duty
    seat.pass_time(10_000)
    (one, other) = seat.list_others(silent)
    seat.pass_time(50, one)
    assert seat.list_accused() == []
    seat.pass_time(50, one, other)
    assert seat.list_accused() == [silent]


def test_what_was_heard_long_ago_makes_no_quorum(seat: Seat) -> None:
    silent = seat.on_duty
    (one, other) = seat.list_others(silent)
    seat.pass_time(seat.patience_ms, one, other)
    assert seat.list_accused() == [silent]
    seat.pass_time(QUORUM_INTERVALS * seat.params.probe_interval_ms + 50, one)
    assert seat.list_accused() == []


def test_who_was_voted_on_is_not_voted_on_again(seat: Seat) -> None:
    silent = seat.on_duty
    seat.pass_time(2 * seat.patience_ms, *seat.list_others(silent))
    seat.chain.submit(SELF, AbsenceVote(HUB, 0, seat.chain.get_node(silent)))
    assert seat.list_accused() == []


def test_whom_another_accuses_is_probed_at_once_and_has_no_more_patience_than_on_duty(
    seat: Seat,
) -> None:
    term = seat.chain.state.get_term(HUB)
    duty = {term.auctioneer, term.witness, seat.chain.get_node(SELF)}
    accused = next(name for name in NAMES if seat.chain.get_node(name) not in duty)
    voter = seat.list_others(accused)[0]
    seat.chain.submit(voter, AbsenceVote(HUB, 0, seat.chain.get_node(accused)))
    sends = seat.absence.follow_ledger(now_ms=seat.now_ms).send
    assert [send.to for send in sends] == [seat.chain.get_node(accused)]
    seat.pass_time(seat.patience_ms, *seat.list_others(accused))
    assert seat.list_accused() == [accused]


def vote_absent(seat: Seat, name: str) -> None:
    for voter in NAMES:
        if voter != name and seat.chain.state.is_live(HUB, seat.chain.get_node(name)):
            seat.chain.submit(voter, AbsenceVote(HUB, 0, seat.chain.get_node(name)))
    seat.absence.follow_ledger(now_ms=seat.now_ms)


def test_who_was_voted_absent_and_is_silent_is_suspected_at_once(seat: Seat) -> None:
    silent = seat.on_duty
    seat.pass_time(seat.params.probe_interval_ms, *seat.list_others(silent))
    vote_absent(seat, silent)
    assert seat.membership.is_suspected(seat.chain.get_node(silent))


def test_who_was_voted_absent_but_is_heard_is_not_suspected(seat: Seat) -> None:
    seat.pass_time(1_000, *NAMES[1:])
    vote_absent(seat, seat.on_duty)
    assert not seat.membership.is_suspected(seat.chain.get_node(seat.on_duty))


def test_who_has_not_joined_is_no_absentee_at_first() -> None:
    seat = Seat(joined=NAMES[1:3])
    seat.pass_time(JOIN_GRACE_MS, *NAMES[1:3])
    assert seat.list_accused() == []
    seat.pass_time(50, *NAMES[1:3])
    assert seat.list_accused() == [NAMES[3]]
