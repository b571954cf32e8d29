"""Rendering and tokenizing on the requester's side, exactly as the provider's backend would.

The prompt leaves this process as token ids, to the winner alone, so the requester renders the
chat template and tokenizes itself. Templates are code of strangers: they run in Jinja's immutable
sandbox, with the globals that Hugging Face's `apply_chat_template` offers them.
Source: design §8; transformers `utils/chat_template_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import platformdirs
import tokenizers

from iemas.core.errors import BadRequestError, ConfigurationError, MalformedMessageError
from iemas.core.tokenizer_bundle import decode_bundle, encode_bundle
from iemas.files import write_atomically

Message = Mapping[str, Any]

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class _GenerationTag(jinja2.ext.Extension):
    """Lets templates mark the assistant's part with ``{% generation %}``: rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 (the filter's arguments)
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _compile_template(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _load_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(f"{name} in the tokenizer bundle is no JSON") from error
    if not isinstance(value, dict):
        raise MalformedMessageError(f"{name} in the tokenizer bundle is no JSON object")
    return value


def _get_template_source(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise MalformedMessageError("the chat template is no UTF-8") from error
    source = config.get("chat_template")
    if isinstance(source, list):  # several templates by name
        named = (entry for entry in source if isinstance(entry, Mapping))
        default = (e.get("template") for e in named if e.get("name") == "default")
        source = next(default, None)
    return source if isinstance(source, str) else None


def _get_special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for source in sources:
        for name in _SPECIAL_TOKENS:
            value = source.get(name)
            if isinstance(value, Mapping):
                value = value.get("content")
            if isinstance(value, str):
                tokens[name] = value
    return tokens


class ChatTokenizer:
    """Renders messages and tokenizes text as a model's own tokenizer does.

    Args:
        files: the bundle's files by name (`iemas.core.tokenizer_bundle`).

    Raises: MalformedMessageError if a file does not parse.

    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        config = _load_json(files, "tokenizer_config.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
        except Exception as error:  # the binding raises bare Exception
            raise MalformedMessageError("tokenizer.json in the bundle does not load") from error
        source = _get_template_source(files, config)
        try:
            self._template = _compile_template(source) if source is not None else None
        except (jinja2.TemplateError, RecursionError) as error:
            raise MalformedMessageError("the chat template does not compile") from error
        self._special_tokens = _get_special_tokens(
            _load_json(files, "special_tokens_map.json"), config
        )

    @property
    def has_template(self) -> bool:
        """Whether the bundle has a chat template; without one only completions work."""
        return self._template is not None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Render messages to the text that the model is prompted with.

        Raises: BadRequestError if the model has no template or its template refuses the messages.
        """
        if self._template is None:
            raise BadRequestError(
                "the model has no chat template; use client.completions", code="no_chat_template"
            )
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            # Only a template's own words: the text of other errors may quote the prompt.
            raise BadRequestError(
                f"the model's chat template refuses the messages: {error}", code="bad_messages"
            ) from error
        except Exception:  # noqa: BLE001 (a template may raise anything)
            raise BadRequestError(
                "the model's chat template fails on these messages; check roles and contents",
                code="bad_messages",
            ) from None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Tokenize text; special tokens written out in it become their ids."""
        token_ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens
        ).ids
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Give the text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text


class TokenizerCache:
    """Bundles on disk, one file a hash, written atomically and checked whenever read.

    Args:
        folder: where to keep them; by default the user's cache folder.

    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(platformdirs.user_cache_dir("iemas")) / "tokenizers"

    def load(self, bundle_hash: bytes) -> dict[str, bytes] | None:
        """Give a cached bundle, or None if it is not there or no longer what it was."""
        try:
            return decode_bundle(self._get_path(bundle_hash).read_bytes(), bundle_hash)
        except (OSError, MalformedMessageError):
            return None

    def save(self, bundle_hash: bytes, files: Mapping[str, bytes]) -> None:
        """Keep a bundle. Raises: ConfigurationError if the folder cannot be written."""
        data = encode_bundle(files)
        try:
            write_atomically(self._get_path(bundle_hash), data)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the tokenizer cache {self._folder}: {error}; set cache_dir"
            ) from error

    def _get_path(self, bundle_hash: bytes) -> Path:
        return self._folder / bundle_hash.hex()
