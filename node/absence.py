"""Whom this node holds to be absent, and when it is in a position to say so.

A validator that stays silent, and an auctioneer that leaves a bid unanswered, is voted absent on
the ledger (docs/spec/election.md, "Absence"). A node that hears no quorum accuses nobody: then it
is the one that is cut off, and its votes could be decided only once they are not true any more.
A pure state machine: it reads the ledger and the membership and says whom to watch and whom to vote
absent. Source: design §7 (election), §13.
"""

from __future__ import annotations

from collections.abc import Callable

from iemas.core.membership import Membership
from iemas.core.params import MarketParams
from iemas.core.ready import Ready
from iemas.core.types import HubId, NodeId
from iemas.ledger.records import VoteKey
from iemas.ledger.state import LedgerState
from node.stuck_bids import StuckBids

JOIN_GRACE_MS = 5_000
QUORUM_INTERVALS = 3
"""A validator counts as present that was heard within so many probe intervals."""


class Absence:
    """One validator's view of who of a hub's validators is absent.

    Args:
        started_at_ms: since when the node runs; who has not joined is no absentee at first.
    """

    def __init__(
        self,
        *,
        hub: HubId,
        own_id: NodeId,
        params: MarketParams,
        membership: Membership,
        stuck_bids: StuckBids,
        get_state: Callable[[], LedgerState],
        started_at_ms: int,
    ) -> None:
        self._hub = hub
        self._own_id = own_id
        self._params = params
        self._membership = membership
        self._stuck_bids = stuck_bids
        self._get_state = get_state
        self._started_at_ms = started_at_ms
        self._absent: set[NodeId] = set()

    def follow_ledger(self, *, now_ms: int) -> Ready:
        """Watch who is on duty, and whoever another validator has accused in this term.

        Who was just voted absent and is silent here too is suspected at once, so that the next
        auctioneer's first round does not send a task to a dead provider.
        """
        state = self._get_state()
        validators = state.get_validators(self._hub)
        absent = {node for node in validators if not state.is_live(self._hub, node)}
        new, self._absent = sorted(absent - self._absent - {self._own_id}), absent
        ready = Ready()
        for node in new:
            ready += self._membership.suspect(node, now_ms=now_ms)
        term = state.get_term(self._hub)
        on_duty = {node for node in (term.auctioneer, term.witness) if node is not None}
        accused = {key.accused for key in state.votes if key.hub == self._hub}
        return ready + self._membership.watch(on_duty | accused, now_ms=now_ms)

    def list_accused(self, *, now_ms: int) -> list[NodeId]:
        """List whom this node is to vote absent now: not those that it has voted on."""
        state, hub = self._get_state(), self._hub
        accused = [
            node
            for node in state.get_live_validators(hub)
            if node != self._own_id
            and VoteKey(hub, node, self._own_id) not in state.votes
            and self._is_absent(node, now_ms)
        ]
        return accused if accused and self._hears_quorum(state, now_ms) else []

    def is_silent(self, node: NodeId, *, now_ms: int) -> bool:
        """Tell whether nothing has come from a validator for long, or nothing ever."""
        if self._membership.get_node(node) is None:
            return now_ms > self._started_at_ms + JOIN_GRACE_MS
        return self._membership.is_suspected(node)

    def _is_absent(self, node: NodeId, now_ms: int) -> bool:
        return node == self._stuck_bids.mute or self.is_silent(node, now_ms=now_ms)

    def _hears_quorum(self, state: LedgerState, now_ms: int) -> bool:
        """Tell whether validators with more than two thirds of the power were heard lately."""
        since_ms = now_ms - QUORUM_INTERVALS * self._params.probe_interval_ms
        heard = total = 0
        for node, power in state.get_consensus_validators_at(state.height + 1):
            total += power
            if node == self._own_id or self._membership.has_heard(node, since_ms=since_ms):
                heard += power
        return 3 * heard > 2 * total
