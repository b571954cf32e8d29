"""Catching up: which peer to ask for decided blocks, and when.

A node knows that it is behind when a peer says so, by its height in a message or by speaking of a
later height; or it finds out by asking, after it has heard of no new block for long. A claim is
worth one request and no more, and validators have every other one, so that no number of strangers
that claim and never answer keeps a node from the blocks. What comes back is verified by its commit.

Source: docs/spec/engine.md E40 to E44.
"""

from __future__ import annotations

from collections.abc import Sequence

from iemas.core.types import NodeId

GRACE_MS = 100
"""How long a validator that is one block behind waits for the votes that may be on their way."""

RETRY_MS = 500
STALL_GRACE_MS = 1_000
"""How long after the idle interval a node waits for a block before it asks around."""


class CatchUp:
    """Whom to ask for the blocks after a height."""

    def __init__(self, *, idle_ms: int) -> None:
        self._stall_ms = idle_ms + STALL_GRACE_MS
        self._claims: dict[NodeId, int] = {}
        self._behind_since_ms: int | None = None
        self._heard_at_ms = 0  # nothing yet: a node that starts asks at once
        self._requested_at_ms: int | None = None
        self._requests = 0
        self._asked: dict[NodeId, int] = {}  # which request was the last one to a peer
        self._is_unanswered = False  # who claimed more was asked and said nothing yet

    def note_claim(self, peer: NodeId, height: int, *, own_height: int, now_ms: int) -> None:
        """Note that a peer says to have a block of this height."""
        self._claims[peer] = height
        if height > own_height and self._behind_since_ms is None:
            self._behind_since_ms = now_ms

    def note_block(self, own_height: int, *, now_ms: int) -> None:
        """Note that a block was applied."""
        self._heard_at_ms = now_ms
        self._claims = {peer: at for peer, at in self._claims.items() if at > own_height}
        self._behind_since_ms = now_ms if self._claims else None
        self._is_unanswered = False

    def note_answer(
        self, peer: NodeId, height: int, *, own_height: int, advanced: bool, now_ms: int
    ) -> bool:
        """Note a peer's answer; tell whether to ask it for more at once.

        A claim counts as long as it leads somewhere.
        """
        self._is_unanswered = False
        if height == own_height:
            self._heard_at_ms = now_ms
        if not advanced or height <= own_height:
            self._claims.pop(peer, None)
            return False
        self.note_claim(peer, height, own_height=own_height, now_ms=now_ms)
        self._requested_at_ms = now_ms
        return True

    def forget_claim(self, peer: NodeId) -> None:
        """Believe no more that a peer has what it claims, until it answers or claims again."""
        self._claims.pop(peer, None)

    def list_claimants(self, height: int, peers: Sequence[NodeId]) -> list[NodeId]:
        """List the peers that claim to have a block of this height."""
        return [peer for peer in peers if self._claims.get(peer, 0) >= height]

    def choose_peer(
        self,
        own_height: int,
        validators: Sequence[NodeId],
        others: Sequence[NodeId] = (),
        *,
        now_ms: int,
    ) -> tuple[NodeId | None, int]:
        """Give whom to ask now, if anyone, and when to look again.

        First those that claim to have more; then, after long silence, everyone. Whoever was not
        asked for longest has its turn. A claim is forgotten when its peer is asked: the answer
        restores it.
        """
        self._clamp(now_ms)
        peers = [*validators, *others]
        claimants = self.list_claimants(own_height + 1, peers)
        stalled_at_ms = self._heard_at_ms + self._stall_ms
        if claimants:
            since_ms = self._behind_since_ms if self._behind_since_ms is not None else now_ms
            due_ms = since_ms + GRACE_MS
        else:
            due_ms = now_ms if self._is_unanswered else stalled_at_ms
        if self._requested_at_ms is not None:
            due_ms = max(due_ms, self._requested_at_ms + RETRY_MS)
        if now_ms < due_ms or not peers:
            return None, max(due_ms, now_ms + 1)
        candidates = peers
        if claimants:
            is_turn_of_validators = self._requests % 2 == 0
            preferred = [one for one in claimants if (one in validators) is is_turn_of_validators]
            if is_turn_of_validators and not preferred and now_ms >= stalled_at_ms:
                preferred = list(validators)  # those that claim may all be strangers
            candidates = preferred or claimants
        peer = min(candidates, key=lambda one: self._asked.get(one, -1))
        self._is_unanswered = self._is_unanswered or peer in claimants
        self._claims = {one: at for one, at in self._claims.items() if one != peer}
        self._asked = {one: at for one, at in self._asked.items() if one in peers}
        self._asked[peer] = self._requests
        self._requests += 1
        self._requested_at_ms = now_ms
        return peer, now_ms + RETRY_MS

    def _clamp(self, now_ms: int) -> None:
        """Count from now what a clock that went back since has put into the future."""
        self._heard_at_ms = min(self._heard_at_ms, now_ms)
        if self._behind_since_ms is not None:
            self._behind_since_ms = min(self._behind_since_ms, now_ms)
        if self._requested_at_ms is not None:
            self._requested_at_ms = min(self._requested_at_ms, now_ms)
