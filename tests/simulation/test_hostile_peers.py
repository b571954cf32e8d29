"""What a member says that is not true: refused by name, remembered by nobody, harmless to all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas import wire
from iemas.core.auction import (
    CountersignRequest,
    SealedBid,
    Transcript,
    TranscriptNotice,
)
from iemas.core.envelope import Signed
from iemas.core.execution import Receipt, ReceiptAcknowledgement, ReceiptNotice
from iemas.core.ready import RecordKind
from iemas.core.types import FinishReason, NodeId
from node.core import ReceivePeerMessage
from tests.simulation.market import SimulatedMarket
from tests.simulation.market_node import SimulatedNode, make_identity


@pytest.fixture
def market() -> SimulatedMarket:
    """A market with one requester that wants one task."""
    market = SimulatedMarket(41, requesters=1, turns=1)
    market.start()
    return market


def listen(market: SimulatedMarket) -> list[ReceiptNotice]:
    """Run the market; give the receipt notices that went around."""
    send, notices = market.network.send, []

    def keep(sender: NodeId, receiver: NodeId, message: wire.PeerMessage) -> None:
        if isinstance(message, ReceiptNotice):
            notices.append(message)
        send(sender, receiver, message)

    market.network.send = keep  # type: ignore[method-assign]
    market.run_conversations()
    market.clock.run_until(market.clock.now_ms + 200)
    return notices


def get_transcript(node: SimulatedNode) -> Transcript:
    message: Transcript = node.disk.scan_signed(RecordKind.TRANSCRIPT, Transcript)[0].message
    return message


def count_samples(node: SimulatedNode, provider: NodeId) -> int:
    return node.core._predictor.quantise(provider).samples


def test_a_receipt_teaches_once(market: SimulatedMarket) -> None:
    notice = listen(market)[0]
    node = market.by_id[notice.receipt.message.provider]
    assert count_samples(node, node.node_id) == 1
    node.step(ReceivePeerMessage(market.nodes["observer"].node_id, notice))
    assert count_samples(node, node.node_id) == 1
    assert node.core.refused["InvalidReceiptError"] == 1


def test_a_task_that_no_round_allocated_teaches_nothing(market: SimulatedMarket) -> None:
    listen(market)
    node, accomplice = market.nodes["node0"], make_identity(41, "accomplice")
    signer = wire.WireSigner(accomplice, market.chain_id)
    receipt = make_invented_receipt(node, signer)
    acknowledgement = ReceiptAcknowledgement(receipt.hash, bytes(32), 1)
    notice = ReceiptNotice(receipt, signer.sign(acknowledgement))
    node.step(ReceivePeerMessage(market.nodes["node1"].node_id, notice))
    assert count_samples(node, signer.node_id) == 0
    assert node.core.refused["InvalidReceiptError"] == 1


def make_invented_receipt(node: SimulatedNode, signer: wire.WireSigner) -> Signed[Receipt]:
    transcript = get_transcript(node)
    return signer.sign(
        Receipt(
            allocation_hash=bytes(32),
            account=signer.node_id,
            provider=signer.node_id,
            hub=transcript.hub,
            term=transcript.term,
            channel=1,
            sequence=1,
            prompt_tokens=10,
            cached_tokens=0,
            billed_cached_tokens=0,
            output_tokens=1,
            prompt_late_ppm=0,
            output_late_ppm_tokens=0,
            ttft_ms=1,
            elapsed_ms=1,
            amount_micros=0,
            output_hash=bytes(32),
            active_tasks=0,
            max_tokens=1,
            finish=FinishReason.STOP,
        )
    )


@pytest.mark.parametrize("height", [0, 2**60])
def test_a_strangers_transcript_is_not_remembered(market: SimulatedMarket, height: int) -> None:
    listen(market)
    node = market.nodes["node0"]
    market.history.villains.add(market.nodes["node1"].node_id)  # it passes them on
    before = node.core.rounds.verdicts.copy()
    stranger = wire.WireSigner(make_identity(41, "stranger"), market.chain_id)
    remembered = len(node.core.rounds._checked)
    for number in range(3):
        forged = replace(get_transcript(node), ledger_height=height, round=number)
        notice = TranscriptNotice(stranger.sign(forged))
        node.step(ReceivePeerMessage(market.nodes["node1"].node_id, notice))
    assert node.core.rounds.verdicts == before
    assert node.core.rounds._deferred == []
    assert len(node.core.rounds._checked) == remembered
    assert (
        node.core.refused["InvalidTranscriptError"] + node.core.refused["InvalidSignatureError"]
        == 3
    )


def test_a_validators_transcripts_of_the_future_are_bounded(market: SimulatedMarket) -> None:
    listen(market)
    node, validator = market.nodes["node0"], market.nodes["node1"]
    signer = wire.WireSigner(validator.identity, market.chain_id)
    for number in range(100):
        forged = replace(get_transcript(node), ledger_height=2**60, round=number)
        node.step(ReceivePeerMessage(validator.node_id, TranscriptNotice(signer.sign(forged))))
    assert len(node.core.rounds._deferred) == 64


def test_only_validators_may_ask_for_a_later_terms_countersignature(
    market: SimulatedMarket,
) -> None:
    listen(market)
    node = market.nodes["node0"]
    signed = get_transcript(node).tasks[0].sealed_bid
    bid: SealedBid = replace(signed.message, term=2**60)
    request = CountersignRequest((replace(signed, message=bid),))
    node.step(ReceivePeerMessage(market.nodes["observer"].node_id, request))
    assert node.core.rounds._early_requests == []
