"""Tokenizer bundles: the files that turn messages into token ids, named by their hash.

A capability report names the bundle of its model by hash, so that a requester renders and
tokenizes exactly as the provider's backend does, and fetches the files from any node, once.
The bundle's bytes are canonical CBOR of ``{file name: content}``; its hash is over those bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import cbor2

from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.errors import MalformedMessageError
from iemas.core.types import Hash, require

BUNDLE_FILES = (
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files of a model's folder that belong in its bundle, where they exist."""

MAX_BUNDLE_BYTES = 64 * 1024 * 1024


def compute_bundle_hash(files: Mapping[str, bytes]) -> Hash:
    """Name a bundle by its contents, whatever the order of its files."""
    return compute_hash(encode_bundle(files))


def encode_bundle(files: Mapping[str, bytes]) -> bytes:
    """Encode a bundle as the bytes that travel in `GetTokenizerResponse` pieces.

    Raises: MalformedMessageError if `tokenizer.json` is missing or the bundle is too large.
    """
    _validate_files(files)
    return encode_canonical(dict(files))


def decode_bundle(data: bytes, expected_hash: bytes) -> dict[str, bytes]:
    """Decode fetched bytes and check that they are the bundle that was asked for.

    Raises: MalformedMessageError if the hash differs or the bytes are no bundle.
    """
    require(len(data) <= MAX_BUNDLE_BYTES, "the tokenizer bundle is over 64 MiB")
    require(compute_hash(data) == expected_hash, "the tokenizer bundle has another hash")
    try:
        files = cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, RecursionError) as error:
        raise MalformedMessageError("the tokenizer bundle is no CBOR") from error
    _validate_files(files)
    return {str(name): bytes(content) for name, content in files.items()}


def _validate_files(files: object) -> None:
    """Refuse what is no bundle of known file names, so that no name can leave a folder."""
    if not isinstance(files, Mapping):
        raise MalformedMessageError("a tokenizer bundle maps file names to contents")
    for name, content in files.items():
        require(name in BUNDLE_FILES, f"a tokenizer bundle has no file {name!r}")
        require(isinstance(content, bytes), f"{name} in the tokenizer bundle is no byte string")
    require("tokenizer.json" in files, "the tokenizer bundle lacks tokenizer.json")
    size = sum(len(content) for content in files.values())
    require(size < MAX_BUNDLE_BYTES, "the tokenizer bundle is over 64 MiB")
