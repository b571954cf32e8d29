"""Leases: of a hub's auctioneers at most one signs at a time, though each is cut off unawares.

The auctioneer asks every validator for its lease again and again. A validator grants it if the
term is the current one of its own ledger, and not to another auctioneer before its last grant has
run out or was released. With grants of more than two thirds of the power, counted from when they
were asked for, the auctioneer holds the lease. Two quorums share a correct validator, which grants
the second only once the first cannot be used any more: docs/spec/election.md L1 to L6 and the
proof in docs/adr/0021. Two pure state machines. Source: design §7 (election).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iemas.core.auction import LeaseGrant, LeaseRelease, LeaseRequest
from iemas.core.election import Term
from iemas.core.params import MarketParams
from iemas.core.ready import Ready, Send
from iemas.core.types import PPM, NodeId

RETRY_MS = 50
"""How often an auctioneer asks that does not hold its lease."""

CLOCK_RATE_PPM = 50_000
"""By how much the rates of two clocks may differ."""

Powers = Sequence[tuple[NodeId, int]]
"""Who votes on blocks, with what power."""


def compute_lease_ms(params: MarketParams) -> int:
    """Give how long a lease lasts, from when it was asked for: less than suspicion takes."""
    return params.probe_interval_ms * params.probe_misses


def compute_grant_ms(params: MarketParams) -> int:
    """Give how long a grant binds a validator, by its own clock: rounded up."""
    return -(-compute_lease_ms(params) * (PPM + CLOCK_RATE_PPM) // PPM)


class Lease:
    """The lease of one term's auctioneer, on its side.

    Args:
        get_powers: reads who votes on the ledger's next block, and with what power.
    """

    def __init__(
        self, *, term: Term, own_id: NodeId, params: MarketParams, get_powers: Callable[[], Powers]
    ) -> None:
        self._term = term
        self._own_id = own_id
        self._renew_ms = params.probe_interval_ms
        self._lease_ms = compute_lease_ms(params)
        self._wait_ms = 2 * compute_grant_ms(params)
        self._get_powers = get_powers
        self._began_at_ms: int | None = None
        self._ask_at_ms = 0
        self._asked_at_ms = 0
        self._granted_at_ms: dict[NodeId, int] = {}  # when the grant was asked for
        self._released_at_ms: int | None = None

    def holds(self, *, now_ms: int) -> bool:
        """Tell whether the auctioneer may sign."""
        if self._released_at_ms is not None:
            return False
        asked_at_ms = self._find_quorum_ms()
        return asked_at_ms is not None and asked_at_ms <= now_ms < asked_at_ms + self._lease_ms

    def is_expired(self, *, now_ms: int) -> bool:
        """Tell whether there is no lease, and none is about to come as at a term's start."""
        if self.holds(now_ms=now_ms):
            return False
        is_new = self._find_quorum_ms() is None and self._released_at_ms is None
        began_at_ms = self._began_at_ms if self._began_at_ms is not None else now_ms
        return not (is_new and now_ms < began_at_ms + self._wait_ms)

    def _find_quorum_ms(self) -> int | None:
        """Give the latest time since which more than two thirds of the power have granted."""
        powers = self._get_powers()
        total = sum(power for _, power in powers)
        granted = sorted(
            ((self._granted_at_ms[node], power) for node, power in powers if self._has(node)),
            reverse=True,
        )
        held = 0
        for asked_at_ms, power in granted:
            held += power
            if 3 * held > 2 * total:
                return asked_at_ms
        return None

    def _has(self, node: NodeId) -> bool:
        return node in self._granted_at_ms

    def tick(self, *, now_ms: int) -> Ready:
        """Ask for the lease, or tell that it is released, whenever that is due."""
        if self._began_at_ms is None:
            self._began_at_ms = now_ms
        over_at_ms = self._released_at_ms
        if over_at_ms is not None and now_ms >= over_at_ms + self._lease_ms:
            return Ready()
        if self._asked_at_ms <= now_ms < self._ask_at_ms:
            return Ready(wake_at_ms=self._ask_at_ms)
        if now_ms < self._asked_at_ms:
            self._granted_at_ms.clear()  # the clock went back: nothing is known of what runs
        self._asked_at_ms = now_ms
        is_settled = over_at_ms is not None or self.holds(now_ms=now_ms)
        self._ask_at_ms = now_ms + (self._renew_ms if is_settled else RETRY_MS)
        term = self._term
        message = LeaseRequest(term.hub, term.number, now_ms)
        validators = [node for node, _ in self._get_powers()]
        if over_at_ms is not None:
            released = LeaseRelease(term.hub, term.number)
            return Ready(
                send=tuple(Send(to, released) for to in validators), wake_at_ms=self._ask_at_ms
            )
        return Ready(send=tuple(Send(to, message) for to in validators), wake_at_ms=self._ask_at_ms)

    def receive(self, sender: NodeId, grant: LeaseGrant) -> None:
        """Take a validator's grant; one of a request that was never made counts for nothing."""
        if (grant.hub, grant.term) != (self._term.hub, self._term.number):
            return
        if grant.asked_at_ms <= self._asked_at_ms:
            before = self._granted_at_ms.get(sender, grant.asked_at_ms)
            self._granted_at_ms[sender] = max(before, grant.asked_at_ms)

    def release(self, *, now_ms: int) -> Ready:
        """Give the lease up: the term is over."""
        if self._released_at_ms is not None:
            return Ready()
        self._released_at_ms = now_ms
        self._ask_at_ms = now_ms
        return self.tick(now_ms=now_ms)


class LeaseGrants:
    """What one validator has granted in one hub.

    Args:
        term: the current term when this process started. What an earlier process of this node
            granted is not known: an auctioneer before this term's may still hold it.
    """

    def __init__(self, *, params: MarketParams, term: Term, now_ms: int) -> None:
        self._grant_ms = compute_grant_ms(params)
        self._holder: NodeId | None = None
        self._term = -1
        self._bound_until_ms = now_ms + self._grant_ms if term.number > 0 else now_ms
        self._bound_at_ms = now_ms

    def grant(
        self, sender: NodeId, request: LeaseRequest, *, term: Term, now_ms: int
    ) -> LeaseGrant | None:
        """Grant a lease, or not: `term` is the current one of this node's ledger."""
        if (request.hub, request.term) != (term.hub, term.number) or sender != term.auctioneer:
            return None
        if now_ms < self._bound_at_ms:  # the clock went back: wait as long as ever
            self._bound_at_ms, self._bound_until_ms = now_ms, now_ms + self._grant_ms
        if sender != self._holder and now_ms < self._bound_until_ms:
            return None
        self._holder, self._term = sender, term.number
        self._bound_at_ms, self._bound_until_ms = now_ms, now_ms + self._grant_ms
        return LeaseGrant(request.hub, request.term, request.asked_at_ms)

    def release(self, sender: NodeId, release: LeaseRelease, *, now_ms: int) -> None:
        """Be free for the next: who held the lease knows that its term is over."""
        if sender == self._holder and release.term >= self._term:
            self._bound_until_ms = now_ms
