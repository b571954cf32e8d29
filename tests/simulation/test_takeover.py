"""The auctioneer dies in each phase of a round: no bid, allowance or receipt is lost.

Source: docs/spec/election.md, "Hand-over"; design §13 (auctioneer dies or stalls).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import pytest

from iemas.core.auction import (
    BidAccepted,
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
    ReleaseNotice,
    RoundOutcome,
)
from iemas.core.ready import Ready
from node.core import BackendHealth
from tests.simulation.market import STAKE_MICROS, SimulatedMarket
from tests.simulation.market_node import HUB, SimulatedNode

SERVICE_BACK_MS = 2_000
TASK_MS = 1_000
"""How long a task may take once it was allocated, in a simulated market that is idle."""


class Phase(StrEnum):
    """When in the first round the auctioneer dies for a while."""

    BEFORE_WITNESS = "before its witness has the bid"
    BEFORE_ACKNOWLEDGEMENT = "before it signs the acknowledgement"
    ACKNOWLEDGED = "after the acknowledgement left, before the close did"
    CLOSED = "after the close left"
    RELEASED = "after the witness released, before it hears of that"
    CLEARED = "after clearing, before anything left"
    ANSWERED = "after the outcome left, before the transcript did"
    ANNOUNCED = "after all left, before its books"


class Killer:
    """Kills the auctioneer at a phase of the first round."""

    def __init__(self, market: SimulatedMarket, phase: Phase) -> None:
        self.phase = phase
        self.market = market
        self.dead: SimulatedNode | None = None
        self.died_at_ms = 0
        for node in market.nodes.values():
            node.carry_out = self._wrap(node, node.carry_out)  # type: ignore[method-assign]

    def _wrap(
        self, node: SimulatedNode, carry_out: Callable[[Ready], None]
    ) -> Callable[[Ready], None]:
        def carry(ready: Ready) -> None:
            auctioneer = self.market.by_id[node.core.state.get_term(HUB).auctioneer]
            last = self._find_last_effects(ready) if self.dead is None else None
            if last is None:
                carry_out(ready)
                return
            carry_out(last)
            self.dead, self.died_at_ms = auctioneer, self.market.clock.now_ms
            auctioneer.crash()

        return carry

    def _find_last_effects(self, ready: Ready) -> Ready | None:
        """Give what still happens of a step before the auctioneer dies; None if it does not."""
        sent = {type(send.message) for send in ready.send}
        answered = {type(answer.message) for answer in ready.answers}
        cleared = any(event.name == "round_cleared" for event in ready.events)
        answers = Ready(persist=ready.persist, answers=ready.answers)
        match self.phase:
            case Phase.BEFORE_WITNESS:
                return Ready() if CountersignRequest in sent else None
            case Phase.BEFORE_ACKNOWLEDGEMENT:
                return ready if CountersignResponse in sent else None
            case Phase.ACKNOWLEDGED:
                return answers if BidAccepted in answered else None
            case Phase.CLOSED:
                return ready if CloseNotice in sent else None
            case Phase.RELEASED:
                return ready if ReleaseNotice in sent else None
            case Phase.CLEARED:
                return Ready() if cleared else None
            case Phase.ANSWERED:
                return answers if RoundOutcome in answered else None
            case Phase.ANNOUNCED:
                return ready if cleared else None


def make_market(phase: Phase, seed: int) -> tuple[SimulatedMarket, Killer]:
    market = SimulatedMarket(seed, requesters=1, turns=1)
    killer = Killer(market, phase)
    market.start()
    auctioneer = market.by_id[market.get_view().core.state.get_term(HUB).auctioneer]
    auctioneer.step(BackendHealth(healthy=False))  # so the task is not on what dies
    market.clock.run_until(market.clock.now_ms + 2_000)
    return market, killer


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name.lower())
def test_nothing_is_lost_when_the_auctioneer_dies(phase: Phase) -> None:
    market, killer = make_market(phase, seed=7)
    asks = dict(market.history.state.asks)
    (requester,) = market.requesters
    requester.begin_turn()
    market.clock.run_until(market.clock.now_ms + 500, until=lambda: killer.dead is not None)
    dead = killer.dead
    assert dead is not None
    limit_ms = killer.died_at_ms + SERVICE_BACK_MS + TASK_MS
    market.clock.run_until(limit_ms, until=lambda: requester.done)
    (row,) = requester.results
    is_outcome_out = phase in (Phase.ANSWERED, Phase.ANNOUNCED)
    assert (row.auctioneer == dead.name) == is_outcome_out, "a task with an outcome runs on"
    assert asks.items() <= market.history.state.asks.items(), "asks stand through a takeover"

    dead.start()
    market.settle()
    winner = market.nodes[row.winner]
    paid = {to: micros for (_, to), micros in market.history.paid.items()}
    assert paid == {winner.node_id: row.amount_micros}, "paid once, what the receipt says"
    for key, hold in market.history.state.holds.items():
        assert 0 <= hold.open_micros <= hold.allowance_micros, f"lent beyond an allowance: {key}"


def test_the_next_round_comes_in_time_whoever_is_cut_off_from_the_requester() -> None:
    """A cut between requester and auctioneer alone is bridged, and nobody is accused."""
    market = SimulatedMarket(8, requesters=1, turns=1)
    market.start()
    market.clock.run_until(market.clock.now_ms + 2_000)
    (requester,) = market.requesters
    auctioneer = market.by_id[market.get_view().core.state.get_term(HUB).auctioneer]
    auctioneer.is_public_cut = True
    requester.begin_turn()
    market.clock.run_until(market.clock.now_ms + SERVICE_BACK_MS, until=lambda: requester.done)
    assert requester.results[0].auctioneer == auctioneer.name
    assert market.watcher.counts["stuck bids"] == 1
    assert market.watcher.counts["transaction AbsenceVote OK"] == 0


def test_a_witness_that_releases_false_shares_convicts_nobody() -> None:
    """Its release counts for nothing, as a withheld one; bids go on under the next term."""
    market = SimulatedMarket(9, requesters=2, turns=2)
    market.start()
    market.clock.run_until(market.clock.now_ms + 2_000)
    term = market.get_view().core.state.get_term(HUB)
    assert term.witness is not None
    villain = market.by_id[term.witness]
    market.corrupt(villain.name, "false shares")
    market.run_conversations()
    assert market.watcher.counts["villain false shares"]
    assert not market.watcher.counts["event transcript_refused"]
    state = market.history.state
    for node in market.nodes.values():
        if node.node_id in state.get_validators(HUB):
            assert state.get_stake_micros(node.node_id) == STAKE_MICROS, node.name
