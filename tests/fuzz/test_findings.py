"""What the fuzzing found once, kept: each input ended in an error without a name."""

from __future__ import annotations

import json

import msgspec
import pytest

from iemas.core.digest import InvalidBlockEventError
from iemas.core.errors import ConfigurationError, IemasError, MalformedMessageError
from node.backends.base import BackendProtocolError
from tests.fuzz.decoders import list_decoders

BY_NAME = {decoder.name: decoder for decoder in list_decoders()}
ENDLESS = b"9" * 5_000
DEEP = b"[" * 100_000


def make_stream(**fields: object) -> bytes:
    choice = {"text": "Hi", "token_ids": [5, 6], "finish_reason": "stop", **fields}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, **fields}
    events = [{"choices": [choice]}, {"choices": [], "usage": usage}]
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return b"".join((*lines, b"data: [DONE]\n\n"))


GENESIS = BY_NAME["genesis JSON"].seeds[0]
METRICS = BY_NAME["metrics"].seeds[0]
SETTINGS = BY_NAME["settings file"].seeds[0]
FOUND: list[tuple[str, bytes, type[IemasError]]] = [
    ("genesis JSON", GENESIS.replace(b"1800000000000", ENDLESS), ConfigurationError),
    ("settings file", SETTINGS.replace(b"slots = 4", b"slots = " + ENDLESS), ConfigurationError),
    ("settings file", b"slots = " + b"[" * 8_000, ConfigurationError),
    ("settings file", b"a." * 20_000 + b"a = 1", ConfigurationError),
    ("market plan", b'{"name":"\xff"}', ConfigurationError),
    ("market plan", b'{"name":' + DEEP, ConfigurationError),
    ("KV events", b"\x93\xcb" + bytes(8) + b"\x91" * 100_000, InvalidBlockEventError),
    ("bundle chat_template.jinja", b"\xff", MalformedMessageError),
    ("bundle chat_template.jinja", b"{{" + b"(" * 20_000, MalformedMessageError),
    ("bundle tokenizer_config.json", DEEP, MalformedMessageError),
    ("completion stream", b'data: {"choices":"\xff"}\n\n', BackendProtocolError),
    ("completion stream", b"data: " + DEEP + b"\n\n", BackendProtocolError),
    ("completion stream", make_stream(finish_reason={}), IemasError),
    ("completion stream", make_stream(token_ids=[{}]), BackendProtocolError),
    ("completion stream", make_stream(token_ids=[2**32]), BackendProtocolError),
    ("completion stream", make_stream(prompt_tokens="x"), BackendProtocolError),
    ("completion stream", make_stream(completion_tokens={}), BackendProtocolError),
    ("metrics", METRICS.replace(b'"16"', b'"x"'), BackendProtocolError),
    ("metrics", METRICS.replace(b'"16"', b'"9999999"'), BackendProtocolError),
    ("model list", b'{"data":' + DEEP, BackendProtocolError),
]


@pytest.mark.parametrize(("name", "data", "error"), FOUND)
def test_what_was_found_has_a_name_now(name: str, data: bytes, error: type[IemasError]) -> None:
    with pytest.raises(error):
        BY_NAME[name].decode(data)


def test_odd_but_harmless_parts_are_read_past() -> None:
    details = make_stream(prompt_tokens_details="none")
    assert BY_NAME["completion stream"].decode(details)
    templates = msgspec.json.encode({"chat_template": [1, {"name": "default"}, {}]})
    assert BY_NAME["bundle tokenizer_config.json"].decode(templates)
    assert BY_NAME["metrics"].decode(METRICS.replace(b" 1.0", b" 1.0 " + b"9" * 400)) == 16
    assert BY_NAME["compatible stream"].decode(make_stream(prompt_tokens_details={"a": []}))
