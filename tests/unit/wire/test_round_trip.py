"""Encoding and decoding is the identity, deterministic, and total over bad bytes."""

import contextlib
import typing
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iemas import wire
from iemas.core.envelope import Envelope, Signed, verify_signed
from iemas.core.errors import MalformedMessageError
from iemas.core.identity import Identity

Strategies = Callable[[type], st.SearchStrategy[Any]]
QUICK = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(data=st.data())
def test_messages_survive_the_wire(
    message_class: type, messages: Strategies, data: st.DataObject
) -> None:
    message = data.draw(messages(message_class))
    encoded = wire.encode(message)
    decoded = wire.decode(message_class, encoded)
    assert decoded == message
    assert wire.encode(decoded) == encoded


@QUICK
@given(data=st.data())
def test_bytes_decode_or_are_refused_by_name(
    message_class: type, messages: Strategies, data: st.DataObject
) -> None:
    encoded = bytearray(wire.encode(data.draw(messages(message_class))))
    position = data.draw(st.integers(0, len(encoded)))
    encoded[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(MalformedMessageError):
        assert isinstance(wire.decode(message_class, bytes(encoded)), message_class)


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=80))
def test_junk_is_refused_by_name_or_decodes(junk: bytes) -> None:
    for cls in (Envelope, *typing.get_args(wire.PeerMessage)):
        with contextlib.suppress(MalformedMessageError):
            wire.decode(cls, junk)


@QUICK
@given(data=st.data(), seed=st.binary(min_size=32, max_size=32))
def test_signed_messages_keep_the_bytes_that_were_signed(
    message_class: type, messages: Strategies, data: st.DataObject, seed: bytes
) -> None:
    message = data.draw(messages(message_class))
    signer = wire.WireSigner(Identity(seed), "market-1")
    signed = signer.sign(message)
    received: Signed[Any] = wire.decode_signed(message_class, wire.encode_signed(signed))
    assert received == signed
    assert received.hash == signed.hash
    verify_signed(received, "market-1", expected_signer=signer.node_id)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_peer_messages_survive_their_stream(messages: Strategies, data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(typing.get_args(wire.PeerMessage)))
    message = data.draw(messages(cls))
    request = wire.to_deliver_request(message)
    received = type(request).FromString(request.SerializeToString())
    assert wire.from_deliver_request(received) == message
