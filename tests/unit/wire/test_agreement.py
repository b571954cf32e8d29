"""Every dataclass and its protobuf message agree field by field."""

import dataclasses
import types
import typing
from enum import IntEnum
from typing import Any

import pytest
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from iemas import wire
from iemas.core.envelope import Signed
from iemas.v1 import peer_service_pb2

INTEGERS = {
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_SINT64,
}


def test_every_proto_message_has_its_dataclass(message_classes: list[type]) -> None:
    messages = {
        name for module in wire._PROTO_MODULES for name in module.DESCRIPTOR.message_types_by_name
    }
    assert messages == {cls.__name__ for cls in message_classes}


def test_fields_agree(message_class: type) -> None:
    descriptor = wire._find_message_class(message_class).DESCRIPTOR
    hints = typing.get_type_hints(message_class)
    names = [field.name for field in dataclasses.fields(message_class)]
    in_oneofs = {
        field.name for oneof in descriptor.oneofs if oneof.name in names for field in oneof.fields
    }
    plain = {field.name for field in descriptor.fields} - in_oneofs
    assert plain | {oneof.name for oneof in descriptor.oneofs if oneof.name in names} == set(names)
    for name in names:
        if name in descriptor.oneofs_by_name:
            assert_oneof_agrees(hints[name], descriptor.oneofs_by_name[name].fields)
        else:
            assert_field_agrees(hints[name], descriptor.fields_by_name[name])


def assert_oneof_agrees(annotation: Any, fields: list[FieldDescriptor]) -> None:
    members = sorted(member.__name__ for member in typing.get_args(annotation))
    assert members == sorted(field.message_type.name for field in fields)


def assert_field_agrees(annotation: Any, field: FieldDescriptor) -> None:
    annotation = wire._strip_newtype(annotation)
    if typing.get_origin(annotation) is tuple:
        assert field.is_repeated
        annotation = wire._strip_newtype(typing.get_args(annotation)[0])
    else:
        assert not field.is_repeated
    if typing.get_origin(annotation) in {types.UnionType, typing.Union}:
        (annotation,) = (
            wire._strip_newtype(member)
            for member in typing.get_args(annotation)
            if member is not types.NoneType
        )
        assert field.has_presence
    if annotation is bool:
        assert field.type == FieldDescriptor.TYPE_BOOL
    elif annotation is int:
        assert field.type in INTEGERS
    elif annotation is bytes:
        assert field.type == FieldDescriptor.TYPE_BYTES
    elif annotation is str:
        assert field.type == FieldDescriptor.TYPE_STRING
    elif typing.get_origin(annotation) is Signed:
        assert field.message_type.name == "Envelope"
    elif issubclass(annotation, IntEnum):
        assert_enum_agrees(annotation, field.enum_type)
    else:
        assert field.message_type.name == annotation.__name__


def assert_enum_agrees(enum: type[IntEnum], descriptor: EnumDescriptor) -> None:
    assert descriptor.name == enum.__name__
    prefix = "".join(f"_{c}" if c.isupper() else c for c in enum.__name__).strip("_").upper()
    expected = {f"{prefix}_{member.name}": member.value for member in enum}
    assert {value.name: value.number for value in descriptor.values} == expected


def test_peer_messages_are_what_a_stream_delivers() -> None:
    fields = peer_service_pb2.DeliverRequest.DESCRIPTOR.oneofs_by_name["message"].fields
    assert_oneof_agrees(wire.PeerMessage, fields)


def test_envelopes_say_of_what_they_are(message_class: type, proto_sources: str) -> None:
    """The comment behind an envelope's field names the message that its payload is."""
    hints = typing.get_type_hints(message_class)
    for field in dataclasses.fields(message_class):
        annotation = hints[field.name]
        for part in (annotation, *typing.get_args(annotation)):
            if typing.get_origin(part) is Signed:
                (inner,) = typing.get_args(part)
                start = proto_sources.index(f"message {message_class.__name__} {{")
                body = proto_sources[start : proto_sources.index("\n}", start)]
                (line,) = (line for line in body.splitlines() if f" {field.name} = " in line)
                if "// of " not in line:
                    pytest.fail(f"{message_class.__name__}.{field.name} does not say of what")
                assert line.endswith(f"// of {inner.__name__}")
