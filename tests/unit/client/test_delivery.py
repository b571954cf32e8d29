"""A transaction is signed once and sent until its fate is known, whoever fails to tell it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest

from iemas import wire
from iemas.client import _delivery
from iemas.client._delivery import Delivery, Recorded, UnconfirmedTransactionWarning
from iemas.client._network import Market, Network
from iemas.client._types import RecordedTransaction
from iemas.core.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    IemasError,
    InsufficientBalanceError,
    NonceMismatchError,
    UnconfirmedTransactionError,
    UnknownTransactionError,
)
from iemas.core.types import AccountId, NodeId
from iemas.ledger.transaction import ResultCode, Transaction, TransferFunds
from iemas.testing.chain import make_genesis, make_identity
from iemas.tls import Address
from iemas.v1 import market_service_pb2 as pb

PAYER = make_identity("payer")
NODES = [make_identity(f"node-{number}").node_id for number in range(1, 4)]
SIGNED = wire.WireSigner(PAYER, "chain").sign(
    Transaction(AccountId(PAYER.node_id), 1, TransferFunds(AccountId(NODES[0]), 5))
)
RECORDED = pb.SubmitTransactionResponse(code=1, height=9)
TIMED_OUT = APITimeoutError("not ordered")
INTERNAL = APIStatusError("it broke", code="INTERNAL", status_code="INTERNAL")
TAKEN = NonceMismatchError("the last nonce was 1")


class ToldNetwork(Network):
    """A network whose nodes answer a submission with what they are told to, the last for ever."""

    def __init__(self, answers: list[Any]) -> None:
        addresses = [Address(node_id, "localhost", 1) for node_id in NODES]
        super().__init__(addresses, Market(make_genesis(), "chain"))
        self.answers = deque(answers)
        self.unreachable: set[NodeId] = set()
        self.asked: list[NodeId] = []
        self.sent: set[bytes] = set()

    async def get_channel(self, node_id: NodeId) -> Any:
        if node_id in self.unreachable:
            raise APIConnectionError("dead")

    async def ask_node(self, node_id: NodeId, call: Any) -> Any:
        self.asked.append(node_id)
        await call(self)
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, IemasError):
            raise answer
        return answer

    async def SubmitTransaction(self, request: Any, timeout: float) -> None:  # noqa: N802, ASYNC109
        self.sent.add(request.SerializeToString())


class ToldLight:
    """A light client to which nodes prove what became of the transaction, or cannot."""

    def __init__(self, code: str | None) -> None:
        self._code = code

    async def get_transaction(self, transaction_id: bytes) -> RecordedTransaction:
        if self._code is None:
            raise UnknownTransactionError("no node has it")
        body, account = SIGNED.message.body, PAYER.node_id.hex()
        return RecordedTransaction(transaction_id.hex(), 7, 1, account, 1, body, self._code, "")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delivery, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(_delivery, "PATIENCE_SECONDS", 0.05)


def deliver(network: ToldNetwork, proven: str | None = None) -> Recorded:
    light: Any = ToldLight(proven)
    return asyncio.run(Delivery(network, light, SIGNED).run())


@pytest.mark.parametrize("failure", [TIMED_OUT, INTERNAL, APIConnectionError("cut off")])
def test_the_same_bytes_go_to_the_next_node(failure: IemasError) -> None:
    network = ToldNetwork([failure, failure, RECORDED])
    assert deliver(network) == Recorded(ResultCode.OK, "", 9)
    assert network.asked == NODES
    assert len(network.sent) == 1


def test_a_refusal_by_the_first_node_is_final() -> None:
    network = ToldNetwork([InsufficientBalanceError("too little")])
    with pytest.raises(InsufficientBalanceError):
        deliver(network)
    assert len(network.asked) == 1


@pytest.mark.parametrize("refusal", [TAKEN, pb.SubmitTransactionResponse(code=2, height=9)])
def test_a_nonce_that_the_transaction_took_itself_is_no_refusal(refusal: Any) -> None:
    network = ToldNetwork([TIMED_OUT, refusal])
    assert deliver(network, "ok") == Recorded(ResultCode.OK, "", 7)


def test_a_refusal_after_a_time_out_counts_once_it_is_proven() -> None:
    network = ToldNetwork([TIMED_OUT, TAKEN])
    assert deliver(network, "nonce_too_low").code is ResultCode.NONCE_TOO_LOW


@pytest.mark.parametrize("answers", [[TIMED_OUT], [TIMED_OUT, TAKEN], [INTERNAL]])
def test_a_fate_that_nobody_tells_is_named(answers: list[Any]) -> None:
    network = ToldNetwork(answers)
    with pytest.raises(UnconfirmedTransactionError) as caught:
        deliver(network)
    transaction = SIGNED.hash.hex()
    assert caught.value.operands["transaction"] == transaction
    assert f"`iemas transaction {transaction}` before you repeat it" in str(caught.value)
    assert "may still be recorded within a minute or two" in str(caught.value)
    assert not caught.value.retryable
    assert len(network.sent) == 1
    assert set(network.asked) == set(NODES)


def test_what_was_sent_to_no_node_is_not_waited_for() -> None:
    network = ToldNetwork([RECORDED])
    network.unreachable = set(NODES)
    with pytest.raises(APIConnectionError, match="was sent to none: dead") as caught:
        deliver(network)
    assert not isinstance(caught.value, APITimeoutError)
    assert network.asked == []


def test_whoever_stops_waiting_is_told_what_to_look_for() -> None:
    network = ToldNetwork([TIMED_OUT])
    light: Any = ToldLight(None)

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await Delivery(network, light, SIGNED).run()

    with (
        pytest.warns(UnconfirmedTransactionWarning, match=SIGNED.hash.hex()),
        pytest.raises(TimeoutError),
    ):
        asyncio.run(give_up())
