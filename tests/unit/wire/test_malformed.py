"""What is missing, out of range or of an unknown kind is refused by name."""

from typing import Any

import pytest

from iemas import wire
from iemas.core.auction import Ask, BidAcknowledgement, TaskInput
from iemas.core.errors import MalformedMessageError
from iemas.core.gossip import Probe
from iemas.core.report import CacheDigest, ReportStamp
from iemas.core.types import HubId, NodeId, Prices
from iemas.ledger.transaction import Transaction
from iemas.v1 import auction_pb2, ledger_pb2, peer_service_pb2, report_pb2, types_pb2

PRICES = types_pb2.Prices(
    prompt_micros_per_mtok=1, cached_micros_per_mtok=1, output_micros_per_mtok=1
)


@pytest.mark.parametrize(
    ("cls", "proto", "reason"),
    [
        (Ask, auction_pb2.Ask(hub="h"), "prices is missing"),
        (Ask, auction_pb2.Ask(hub="h", prices=types_pb2.Prices()), "price must be"),
        (BidAcknowledgement, auction_pb2.BidAcknowledgement(hub="h", bid_hash=b"x"), "32 bytes"),
        (
            CacheDigest,
            report_pb2.CacheDigest(
                stamp=report_pb2.ReportStamp(node_id=bytes(32), incarnation=1, ttl_ms=1),
                block_size=16,
                blocks=b"1234567",
            ),
            "8-byte keys",
        ),
        (TaskInput, auction_pb2.TaskInput(), "sealed_bid is missing"),
        (Transaction, ledger_pb2.Transaction(account=bytes(32), nonce=1), "nothing is set in body"),
    ],
)
def test_messages_outside_their_ranges_are_refused(cls: type, proto: Any, reason: str) -> None:
    with pytest.raises(MalformedMessageError, match=reason):
        wire.decode(cls, proto.SerializeToString())


def test_an_unknown_enum_value_is_refused() -> None:
    known = auction_pb2.Unmatched(
        hub="h", bid_hash=bytes(32), account=bytes(32), transcript_hash=bytes(32), reason=1
    )
    cls = wire.auction.Unmatched
    assert wire.decode(cls, known.SerializeToString()).reason == 1
    known.reason = 77  # type: ignore[assignment]
    with pytest.raises(MalformedMessageError, match="77"):
        wire.decode(cls, known.SerializeToString())


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(MalformedMessageError, match="no Ask"):
        wire.decode(Ask, b"\x0a\x01\xff")


def test_truncated_bytes_are_refused() -> None:
    encoded = wire.encode(Ask(HubId("hub"), Prices(1, 2, 3)))
    with pytest.raises(MalformedMessageError):
        wire.decode(Ask, encoded[:-1])


def test_an_empty_or_unknown_peer_message_is_refused() -> None:
    for data in (b"", b"\xe2\x03\x02\x08\x01"):
        request = peer_service_pb2.DeliverRequest.FromString(data)
        with pytest.raises(MalformedMessageError, match="unknown here"):
            wire.from_deliver_request(request)


@pytest.mark.parametrize("sequence", [-1, 2**64])
def test_a_value_that_does_not_fit_its_field_cannot_travel(sequence: int) -> None:
    with pytest.raises(MalformedMessageError, match="Probe cannot travel"):
        wire.encode(Probe(sequence))


def test_errors_name_the_field() -> None:
    with pytest.raises(MalformedMessageError) as caught:
        ReportStamp(NodeId(b"short"), 1, 0, 0, 1)
    assert caught.value.operands == {"field": "node_id"}
