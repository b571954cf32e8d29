"""Leases: of a hub's auctioneers at most one signs at a time.

Source: docs/spec/election.md, "Leases" (L1 to L6).
"""

from __future__ import annotations

import itertools
from random import Random

from auctioneer.lease import (
    RETRY_MS,
    Lease,
    LeaseGrants,
    compute_grant_ms,
    compute_lease_ms,
)
from iemas.core.auction import LeaseGrant, LeaseRelease, LeaseRequest
from iemas.core.election import Term
from iemas.core.params import MarketParams
from iemas.core.types import HubId, NodeId

HUB = HubId("hub")
PARAMS = MarketParams()
A, B, C, D = NODES = [NodeId(bytes([n]) * 32) for n in range(1, 5)]
LEASE_MS, GRANT_MS = compute_lease_ms(PARAMS), compute_grant_ms(PARAMS)
START_MS = 1_000_000
RENEW_MS = PARAMS.probe_interval_ms


def make_term(number: int, auctioneer: NodeId = A) -> Term:
    return Term(HUB, number, auctioneer, None, START_MS)


def make_lease(number: int = 1, node: NodeId = A) -> Lease:
    powers = [(one, 1) for one in NODES]
    return Lease(
        term=make_term(number, node), own_id=node, params=PARAMS, get_powers=lambda: powers
    )


def make_grants(number: int = 0, *, now_ms: int = START_MS - GRANT_MS) -> LeaseGrants:
    return LeaseGrants(params=PARAMS, term=make_term(number), now_ms=now_ms)


def grant(lease: Lease, *validators: NodeId, asked_at_ms: int, term: int = 1) -> None:
    for node in validators:
        lease.receive(node, LeaseGrant(HUB, term, asked_at_ms))


# --- the auctioneer's side (L1 to L3) ------------------------------------------------------------


def test_all_validators_are_asked_and_soon_again_until_the_lease_is_held() -> None:
    lease = make_lease()
    ready = lease.tick(now_ms=START_MS)
    assert [send.to for send in ready.send] == NODES
    assert {send.message for send in ready.send} == {LeaseRequest(HUB, 1, START_MS)}
    assert ready.wake_at_ms == START_MS + RETRY_MS
    assert not lease.tick(now_ms=START_MS + RETRY_MS - 1).send
    assert lease.tick(now_ms=START_MS + RETRY_MS).send


def test_more_than_two_thirds_of_the_power_make_a_lease() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    grant(lease, A, B, asked_at_ms=START_MS)
    assert not lease.holds(now_ms=START_MS)
    grant(lease, B, asked_at_ms=START_MS)
    assert not lease.holds(now_ms=START_MS)
    grant(lease, C, asked_at_ms=START_MS)
    assert lease.holds(now_ms=START_MS)


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    grant(lease, A, B, C, asked_at_ms=START_MS)
    assert lease.holds(now_ms=START_MS + LEASE_MS - 1)
    assert not lease.holds(now_ms=START_MS + LEASE_MS)


def test_the_third_last_grant_of_four_counts() -> None:
    lease = make_lease()
    for n in range(3):
        lease.tick(now_ms=START_MS + n * RENEW_MS)
    for n, node in enumerate((D, C, B)):
        grant(lease, node, asked_at_ms=START_MS + n * RENEW_MS)
    assert lease.holds(now_ms=START_MS + LEASE_MS - 1)
    assert not lease.holds(now_ms=START_MS + LEASE_MS)
    grant(lease, A, asked_at_ms=START_MS + 2 * RENEW_MS)
    assert lease.holds(now_ms=START_MS + LEASE_MS)


def test_a_held_lease_is_renewed_each_interval() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    grant(lease, A, B, C, asked_at_ms=START_MS)
    lease.tick(now_ms=START_MS + RETRY_MS)
    assert lease.tick(now_ms=START_MS + RETRY_MS + 1).wake_at_ms == START_MS + RETRY_MS + RENEW_MS


def test_grants_of_another_term_or_of_no_request_count_for_nothing() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    grant(lease, A, B, C, asked_at_ms=START_MS, term=2)
    assert not lease.holds(now_ms=START_MS)
    grant(lease, A, B, C, asked_at_ms=START_MS + 60_000)
    assert not lease.holds(now_ms=START_MS + 60_000)


def test_a_released_lease_is_not_held_and_is_told_for_a_while() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    grant(lease, *NODES, asked_at_ms=START_MS)
    ready = lease.release(now_ms=START_MS + 5)
    assert {send.message for send in ready.send} == {LeaseRelease(HUB, 1)}
    assert not lease.holds(now_ms=START_MS + 5)
    assert lease.tick(now_ms=START_MS + 5 + RENEW_MS).send
    assert not lease.tick(now_ms=START_MS + 5 + LEASE_MS).send


def test_a_new_auctioneer_has_no_expired_lease_until_every_grant_must_be_free() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    assert not lease.is_expired(now_ms=START_MS + 2 * GRANT_MS - 1)
    assert lease.is_expired(now_ms=START_MS + 2 * GRANT_MS)


def test_a_lost_lease_is_expired_at_once() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    grant(lease, A, B, C, asked_at_ms=START_MS)
    assert not lease.is_expired(now_ms=START_MS + LEASE_MS - 1)
    assert lease.is_expired(now_ms=START_MS + LEASE_MS)


def test_a_clock_set_back_ends_the_lease() -> None:
    lease = make_lease()
    lease.tick(now_ms=START_MS)
    grant(lease, A, B, C, asked_at_ms=START_MS)
    lease.tick(now_ms=START_MS - 100)
    assert not lease.holds(now_ms=START_MS - 100)
    assert not lease.holds(now_ms=START_MS)


# --- the validator's side (L4, L5) ---------------------------------------------------------------


def ask(grants: LeaseGrants, node: NodeId, term: int, now_ms: int, *, known: int) -> bool:
    """Ask for a lease; `known` is the current term of the validator's ledger."""
    request = LeaseRequest(HUB, term, 7)
    given = grants.grant(node, request, term=make_term(known, node), now_ms=now_ms)
    assert given is None or given == LeaseGrant(HUB, term, 7)
    return given is not None


def test_only_the_current_terms_auctioneer_is_granted_a_lease() -> None:
    grants = make_grants()
    assert not ask(grants, A, 1, START_MS, known=2)
    assert not ask(grants, A, 3, START_MS, known=2)
    request = LeaseRequest(HUB, 2, 7)
    assert grants.grant(B, request, term=make_term(2, A), now_ms=START_MS) is None
    assert ask(grants, A, 2, START_MS, known=2)


def test_another_is_granted_only_once_the_last_grant_has_run_out() -> None:
    grants = make_grants()
    assert ask(grants, A, 1, START_MS, known=1)
    assert ask(grants, A, 1, START_MS + 10, known=1)
    assert not ask(grants, B, 2, START_MS + 10 + GRANT_MS - 1, known=2)
    assert ask(grants, B, 2, START_MS + 10 + GRANT_MS, known=2)


def test_a_release_makes_way_at_once() -> None:
    grants = make_grants()
    ask(grants, A, 1, START_MS, known=1)
    grants.release(A, LeaseRelease(HUB, 1), now_ms=START_MS + 1)
    assert ask(grants, B, 2, START_MS + 1, known=2)


def test_only_its_holder_releases_a_lease_and_not_an_earlier_terms() -> None:
    grants = make_grants()
    ask(grants, A, 2, START_MS, known=2)
    grants.release(B, LeaseRelease(HUB, 9), now_ms=START_MS)
    grants.release(A, LeaseRelease(HUB, 1), now_ms=START_MS)
    assert not ask(grants, B, 3, START_MS, known=3)


def test_an_auctioneer_of_two_terms_in_a_row_goes_on() -> None:
    grants = make_grants()
    ask(grants, A, 1, START_MS, known=1)
    assert ask(grants, A, 2, START_MS + 1, known=2)


def test_a_restarted_validator_grants_nothing_that_an_earlier_process_may_have_granted() -> None:
    grants = make_grants(3, now_ms=START_MS)
    assert not ask(grants, A, 3, START_MS + GRANT_MS - 1, known=3)
    assert ask(grants, A, 3, START_MS + GRANT_MS, known=3)


def test_in_the_first_term_there_is_nothing_to_wait_for() -> None:
    assert ask(make_grants(0, now_ms=START_MS), A, 0, START_MS, known=0)


def test_a_validator_whose_clock_was_set_back_waits_as_long_as_ever() -> None:
    grants = make_grants()
    ask(grants, A, 1, START_MS, known=1)
    assert not ask(grants, B, 2, START_MS - 5_000, known=2)
    assert not ask(grants, B, 2, START_MS - 5_000 + GRANT_MS - 1, known=2)
    assert ask(grants, B, 2, START_MS - 5_000 + GRANT_MS, known=2)


# --- safety (L6) ---------------------------------------------------------------------------------


class DriftingCommittee:
    """Four validators, one of which lies, with clocks of other rates and a network of any delay.

    The terms change at random; each validator, and each auctioneer, learns of it at random.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.terms = [0] * 4
        self.holds = 0
        self.changes = 0
        self.rates = [self.random.uniform(0.976, 1.024) for _ in NODES]
        self.offsets = [self.random.randrange(10**6) for _ in NODES]
        self.grants = [
            LeaseGrants(params=PARAMS, term=make_term(0), now_ms=self.read(n, 0)) for n in range(4)
        ]
        self.leases: dict[int, Lease] = {}
        self.mail: list[tuple[int, int, NodeId, object]] = []
        self.order = itertools.count()

    def read(self, n: int, at_ms: int) -> int:
        return int(at_ms * self.rates[n]) + self.offsets[n]

    def get_auctioneer(self, number: int) -> int:
        return number % 3  # never the liar, which leases do not bind

    def run(self, until_ms: int) -> None:
        newest = 0
        for now_ms in range(0, until_ms, 10):
            if self.random.random() < 0.004:
                newest += 1
                self.changes += 1
            for n in range(4):
                if self.terms[n] < newest and self.random.random() < 0.02:
                    self.learn(n, newest, now_ms)
            for number, lease in self.leases.items():
                n = self.get_auctioneer(number)
                self.post(n, now_ms, lease.tick(now_ms=self.read(n, now_ms)).send)
            self.deliver(now_ms)
            self.check(now_ms)

    def learn(self, n: int, number: int, now_ms: int) -> None:
        old = self.leases.get(self.terms[n])
        if old is not None and self.get_auctioneer(self.terms[n]) == n:
            self.post(n, now_ms, old.release(now_ms=self.read(n, now_ms)).send)
        self.terms[n] = number
        if self.get_auctioneer(number) == n:
            self.leases[number] = make_lease(number, NODES[n])

    def post(self, n: int, now_ms: int, sends: object) -> None:
        for send in sends:  # type: ignore[attr-defined]
            if self.random.random() < 0.8:
                arrives_ms = now_ms + self.random.choice((1, 5, 50, 400, 1_500))
                self.mail.append((arrives_ms, n, send.to, send.message))

    def deliver(self, now_ms: int) -> None:
        due = [letter for letter in self.mail if letter[0] <= now_ms]
        self.mail = [letter for letter in self.mail if letter[0] > now_ms]
        for _, sender, to, message in due:
            n = NODES.index(to)
            if isinstance(message, LeaseRequest):
                self.answer(n, sender, message, now_ms)
            elif isinstance(message, LeaseRelease):
                self.grants[n].release(NODES[sender], message, now_ms=self.read(n, now_ms))
            elif isinstance(message, LeaseGrant) and message.term in self.leases:
                self.leases[message.term].receive(NODES[sender], message)

    def answer(self, n: int, sender: int, request: LeaseRequest, now_ms: int) -> None:
        given: LeaseGrant | None = LeaseGrant(HUB, request.term, request.asked_at_ms)
        if n != 3:
            term = make_term(self.terms[n], NODES[self.get_auctioneer(self.terms[n])])
            at_ms = self.read(n, now_ms)
            given = self.grants[n].grant(NODES[sender], request, term=term, now_ms=at_ms)
        if given is not None:
            self.mail.append((now_ms + 1, n, NODES[sender], given))

    def check(self, now_ms: int) -> None:
        holders = {
            self.get_auctioneer(number)
            for number, lease in self.leases.items()
            if lease.holds(now_ms=self.read(self.get_auctioneer(number), now_ms))
        }
        self.holds += len(holders)
        assert len(holders) <= 1, f"{holders} hold a lease at {now_ms}"


def test_two_auctioneers_never_hold_a_lease_at_once() -> None:
    holds = changes = 0
    for seed in range(6):
        committee = DriftingCommittee(seed)
        committee.run(12_000)
        holds += committee.holds
        changes += committee.changes
    assert holds > 1_000
    assert changes > 10
