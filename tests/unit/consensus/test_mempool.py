"""What waits for a block. Source: docs/spec/engine.md E10 to E13."""

from __future__ import annotations

from typing import Any

import pytest

from iemas.consensus import mempool as pools
from iemas.consensus.mempool import Dropped, Mempool
from iemas.core.envelope import Signed
from iemas.core.types import HubId
from iemas.ledger.transaction import FundEscrow, Transaction, TransferFunds
from iemas.testing.chain import LedgerChain


class Pool:
    """A mempool and the ledger behind it."""

    def __init__(self) -> None:
        self.chain = LedgerChain()
        self.mempool = Mempool(self.chain.app)

    def fund(self, amount: int = 1, *, by: str = "alice", nonce: int | None = None) -> Any:
        body = FundEscrow(self.chain.hub, amount)
        return self.chain.make_transaction(by, body, nonce=nonce)

    def add(
        self, transaction: Signed[Transaction], *, now_ms: int = 0, is_origin: bool = True
    ) -> str | None:
        dropped = self.mempool.add(transaction, now_ms=now_ms, is_origin=is_origin)
        return None if dropped is None else dropped.reason


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_what_waits_is_proposed_in_order_of_arrival(pool: Pool) -> None:
    transactions = (pool.fund(2), pool.fund(1, by="bob"))
    for transaction in transactions:
        assert pool.add(transaction) is None
    assert pool.mempool.get_proposable() == transactions


def test_what_validators_send_is_proposed_first(pool: Pool) -> None:
    transactions = [pool.fund(by=name) for name in ("alice", "node-1", "bob", "node-1")]
    for transaction in transactions:
        pool.add(transaction)
    order = [transactions[index] for index in (1, 3, 0, 2)]
    assert list(pool.mempool.get_proposable()) == order


def test_a_transaction_waits_once(pool: Pool) -> None:
    transaction = pool.fund()
    assert pool.add(transaction) is None
    assert pool.add(transaction) is None
    assert len(pool.mempool) == 1


def test_it_is_bounded_in_number(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MAX_TRANSACTIONS", 4)
    monkeypatch.setattr(pools, "ACCOUNT_PART", 1)
    reasons = [pool.add(pool.fund()) for _ in range(4)]
    assert reasons == [None, None, None, pools.FULL]
    reasons = [pool.add(pool.fund(by=name)) for name in ("bob", "node-1", "node-2")]
    assert reasons == [pools.FULL, None, pools.FULL]  # the reserve is the validators'


def test_it_is_bounded_in_bytes(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pool.fund()
    monkeypatch.setattr(pools, "MAX_BYTES", 2 * len(first.envelope.payload))
    monkeypatch.setattr(pools, "ACCOUNT_PART", 1)
    monkeypatch.setattr(pools, "RESERVED_PART", 2)
    assert [pool.add(first), pool.add(pool.fund())] == [None, pools.FULL]
    assert [pool.add(pool.fund(by=name)) for name in ("node-1", "node-2")] == [None, pools.FULL]
    pool.mempool.forget([first.hash])
    assert pool.add(pool.fund(by="node-2")) is None


def test_one_account_cannot_fill_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MAX_TRANSACTIONS", 8)
    first = pool.fund()
    assert [pool.add(one) for one in (first, pool.fund(), pool.fund())] == [None, None, pools.FULL]
    pool.mempool.forget([first.hash])
    monkeypatch.setattr(pools, "MAX_BYTES", 4 * (2 * len(first.envelope.payload) - 1))
    assert pool.add(pool.fund()) == pools.FULL
    assert pool.add(pool.fund(by="bob")) is None


def test_strangers_cannot_fill_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MAX_OF_UNKNOWN_ACCOUNTS", 1)
    reasons = [pool.add(pool.fund(by=name)) for name in ("x", "y")]
    assert reasons == [None, "UNKNOWN_ACCOUNT"]
    assert pool.add(pool.fund()) is None


def test_strangers_cannot_fill_it_with_few_large_ones(pool: Pool) -> None:
    half = FundEscrow(HubId("x" * (pools.MAX_BYTES_OF_UNKNOWN_ACCOUNTS // 2 - 200)), 1)
    large = [pool.chain.make_transaction(name, half) for name in ("x", "y", "z")]
    assert [pool.add(one) for one in large] == [None, None, "UNKNOWN_ACCOUNT"]
    pool.mempool.forget([large[0].hash])
    assert pool.add(large[2]) is None


def test_an_unknown_account_waits_until_it_is_credited(pool: Pool) -> None:
    transaction = pool.fund(by="carol")
    pool.add(transaction)
    assert not pool.mempool.has_proposable
    assert pool.mempool.get_proposable() == ()
    pool.chain.submit("alice", TransferFunds(pool.chain.get_id("carol"), 5))
    assert pool.mempool.recheck() == ()
    assert pool.mempool.get_proposable() == (transaction,)


def test_what_a_later_nonce_overtook_is_dropped(pool: Pool) -> None:
    early, late = pool.fund(nonce=1), pool.fund(nonce=2)
    pool.add(early)
    pool.add(late)
    pool.chain.apply([late])
    assert pool.mempool.recheck() == (Dropped(early, "NONCE_TOO_LOW"),)
    assert len(pool.mempool) == 0


def test_only_its_origin_sends_a_transaction_again(pool: Pool) -> None:
    own, other = pool.fund(), pool.fund()
    pool.add(own)
    pool.add(other, is_origin=False)
    assert pool.mempool.take_due(now_ms=pools.RESEND_MS - 1) == ((), ())
    assert pool.mempool.take_due(now_ms=pools.RESEND_MS) == ((own,), ())
    assert pool.mempool.take_due(now_ms=pools.RESEND_MS + 1) == ((), ())


def test_what_a_peer_gave_of_an_unknown_account_is_not_sent_again(pool: Pool) -> None:
    given, own = pool.fund(by="carol"), pool.fund(by="dave")
    pool.mempool.add(given, now_ms=0, is_origin=True, is_given=True)
    pool.add(own)
    assert pool.mempool.take_due(now_ms=pools.RESEND_MS) == ((own,), ())
    pool.chain.submit("alice", TransferFunds(pool.chain.get_id("carol"), 5))
    pool.mempool.recheck()
    assert pool.mempool.take_due(now_ms=pools.RESEND_MS + 1) == ((given,), ())


def test_not_all_are_sent_again_at_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MAX_RESENT", 2)
    waiting = tuple(pool.fund() for _ in range(5))
    for transaction in waiting:
        pool.add(transaction)
    checks = [pool.mempool.take_due(now_ms=pools.RESEND_MS + n)[0] for n in range(3)]
    assert checks == [waiting[:2], waiting[2:4], waiting[4:]]
    assert pool.mempool.take_due(now_ms=2 * pools.RESEND_MS)[0] == waiting[:2]
    monkeypatch.setattr(pools, "MAX_RESENT_BYTES", 1)
    assert pool.mempool.take_due(now_ms=3 * pools.RESEND_MS)[0] == waiting[2:3]


def test_everybody_gives_up_after_a_while(pool: Pool) -> None:
    own, other = pool.fund(), pool.fund()
    pool.add(own)
    pool.add(other, is_origin=False)
    again, dropped = pool.mempool.take_due(now_ms=pools.TIMEOUT_MS)
    assert again == ()
    assert {one.transaction for one in dropped} == {own, other}
    assert {one.reason for one in dropped} == {pools.TIMED_OUT}
    assert len(pool.mempool) == 0


def test_a_clock_that_goes_back_prolongs_no_wait(pool: Pool) -> None:
    own = pool.fund()
    pool.add(own, now_ms=pools.TIMEOUT_MS)
    assert pool.mempool.take_due(now_ms=0) == ((), ())
    assert pool.mempool.take_due(now_ms=pools.RESEND_MS) == ((own,), ())
    assert pool.mempool.take_due(now_ms=pools.TIMEOUT_MS)[1]


def test_waiting_nonces_are_known(pool: Pool) -> None:
    pool.add(pool.fund(nonce=5))
    assert pool.mempool.get_last_nonce(pool.chain.get_id("alice")) == 5
    assert pool.mempool.get_last_nonce(pool.chain.get_id("bob")) == 0
