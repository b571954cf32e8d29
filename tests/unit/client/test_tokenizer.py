"""Rendering, tokenizing, and the bundle on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbor2
import pytest

from iemas.client._tokenizer import ChatTokenizer, TokenizerCache
from iemas.core.encoding import compute_hash
from iemas.core.errors import BadRequestError, ConfigurationError, MalformedMessageError
from iemas.core.tokenizer_bundle import compute_bundle_hash, decode_bundle, encode_bundle
from iemas.testing.tokenizer import build_byte_tokenizer, encode_text, render_chat

FILES = build_byte_tokenizer()
CHAT = [
    {"role": "user", "content": "Grüße ✓"},
    {"role": "assistant", "content": "a\nb"},
    {"role": "user", "content": "?"},
]


def with_template(template: Any, **config: Any) -> ChatTokenizer:
    settings = {**json.loads(FILES["tokenizer_config.json"]), "chat_template": template, **config}
    return ChatTokenizer({**FILES, "tokenizer_config.json": json.dumps(settings).encode()})


def test_renders_and_tokenizes_as_the_backend_does() -> None:
    tokenizer = ChatTokenizer(FILES)
    rendered = tokenizer.render(CHAT)
    assert rendered == render_chat(CHAT)
    assert tuple(tokenizer.encode(rendered)) == encode_text(rendered)
    assert tokenizer.decode(tokenizer.encode(rendered)) == rendered
    assert not tokenizer.render(CHAT, add_generation_prompt=False).endswith("assistant\n")


def test_template_file_wins_over_the_configuration() -> None:
    tokenizer = ChatTokenizer({**FILES, "chat_template.jinja": b"{{ messages|length }}"})
    assert tokenizer.render(CHAT) == "3"


def test_template_may_be_one_of_several() -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert with_template(named).render(CHAT) == "yes"


def test_template_has_hugging_faces_globals() -> None:
    template = (
        "{{ bos_token }}{% generation %}{{ messages[0] | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% break %}{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    rendered = with_template(template, bos_token={"content": "<s>"}).render(CHAT[:1])
    assert rendered == '<s>{"role": "user", "content": "Grüße ✓"}4'


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_hostile_and_broken_templates_are_refused_by_name(template: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        with_template(template).render([{"role": "user", "content": "secret words"}])
    assert "secret" not in str(caught.value)


def test_bundle_without_template_says_what_to_do() -> None:
    tokenizer = with_template(None)
    assert not tokenizer.has_template
    with pytest.raises(BadRequestError, match=r"client\.completions"):
        tokenizer.render(CHAT)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.json": b"{}"},
        {"tokenizer_config.json": b"nope"},
        {"tokenizer_config.json": b"[]"},
        {"chat_template.jinja": b"{% if %}"},
    ],
)
def test_broken_files_are_refused(change: dict[str, bytes]) -> None:
    with pytest.raises(MalformedMessageError):
        ChatTokenizer({**FILES, **change})


def test_bundle_round_trips_and_is_named_by_content() -> None:
    data, name = encode_bundle(FILES), compute_bundle_hash(FILES)
    assert decode_bundle(data, name) == FILES
    assert compute_bundle_hash(dict(reversed(FILES.items()))) == name
    with pytest.raises(MalformedMessageError, match="another hash"):
        decode_bundle(data + b"\0", name)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config.json": b""},
        {"tokenizer.json": b"", "../../evil": b""},
        {"tokenizer.json": "text"},
        [1],
        7,
    ],
)
def test_what_is_no_bundle_is_refused(files: Any) -> None:
    data = cbor2.dumps(files)
    with pytest.raises(MalformedMessageError):
        decode_bundle(data, compute_hash(data))


def test_cache_keeps_a_bundle_and_notices_damage(tmp_path: Path) -> None:
    cache, name = TokenizerCache(tmp_path / "new"), compute_bundle_hash(FILES)
    assert cache.load(name) is None
    cache.save(name, FILES)
    assert cache.load(name) == FILES
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == name.hex()
    path.write_bytes(b"torn")
    assert cache.load(name) is None


def test_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cache_dir"):
        TokenizerCache(tmp_path / "file").save(b"h" * 32, FILES)
