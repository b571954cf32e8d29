"""Crashes at the worst moment: what was begun is finished, and nothing is signed twice."""

from __future__ import annotations

from iemas import wire
from iemas.consensus.messages import SubmitTransaction
from iemas.core.auction import CloseNotice
from iemas.core.params import MarketParams
from iemas.core.types import AccountId, NodeId
from iemas.ledger.transaction import Settle, Transaction, TransferFunds
from node.core import ReceiveTransaction
from tests.simulation.market import SimulatedMarket


def test_witness_that_comes_back_after_its_term_still_opens_the_closed_round() -> None:
    market = SimulatedMarket(31, turns=1, params=MarketParams(term_ms=3_000))
    send, closed = market.network.send, []

    def crash_witness_at_first_close(
        sender: NodeId, receiver: NodeId, message: wire.PeerMessage
    ) -> None:
        if isinstance(message, CloseNotice) and not closed:
            closed.append(message.close)
            witness = market.by_id[receiver]
            market.clock.call_later(0, witness.crash)
            market.clock.call_later(4_000, witness.start)
        send(sender, receiver, message)

    market.network.send = crash_witness_at_first_close  # type: ignore[method-assign]
    market.start()
    market.run_conversations()
    market.clock.run_until(market.clock.now_ms + 5_000)  # the witness is back by then
    market.settle()
    assert closed[0].message.term < market.get_view().core.state.get_term("simulated").number
    cleared = [
        (fields["term"], fields["round"])
        for _, _, name, fields in market.log
        if name == "round_cleared"
    ]
    assert (closed[0].message.term, closed[0].message.round) in cleared


def test_settlement_that_a_later_transaction_overtook_is_sent_anew_at_once() -> None:
    market = SimulatedMarket(32, requesters=1, turns=1, params=MarketParams(term_ms=3_000))
    send, overtaken = market.network.send, []

    def overtake_first_settlement(
        sender: NodeId, receiver: NodeId, message: wire.PeerMessage
    ) -> None:
        transaction = message.transaction if isinstance(message, SubmitTransaction) else None
        if transaction is not None and isinstance(transaction.message.body, Settle):
            if not overtaken:
                overtaken.append((transaction.hash, market.clock.now_ms))
                node = market.by_id[sender]
                later = wire.WireSigner(node.identity, market.chain_id).sign(
                    Transaction(
                        AccountId(sender),
                        transaction.message.nonce + 1,
                        TransferFunds(AccountId(receiver), 1),
                    )
                )
                observer = market.nodes["observer"]
                market.clock.call_later(0, lambda: observer.step(ReceiveTransaction(later)))
            if transaction.hash == overtaken[0][0]:
                return
        send(sender, receiver, message)

    market.network.send = overtake_first_settlement  # type: ignore[method-assign]
    market.start()
    market.run_conversations()
    market.clock.run_until(market.clock.now_ms + 3_000)
    settled = [
        committed_at_ms
        for committed_at_ms, node, name, fields in market.log
        if node == "observer" and name == "block_committed" and not fields["refused"]
        if fields["transactions"] and committed_at_ms > overtaken[0][1]
    ]
    assert settled[0] - overtaken[0][1] < 1_000
    assert all(node.core.provider.unsettled_channels == 0 for node in market.nodes.values())
