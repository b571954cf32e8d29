"""The genesis file: readable JSON, the same bytes on every node.

Ids are 64 hex digits, money integer micro-credits, times integer milliseconds. The chain id holds
the hash of the file's bytes, so the file is copied between nodes, never written again. Keys left
out of `params` have their defaults. Source: docs/spec/ledger.md §2.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from pathlib import Path
from typing import Any, NewType, get_args, get_origin, get_type_hints

from iemas.core.errors import ConfigurationError, MalformedMessageError
from iemas.core.params import Genesis
from iemas.core.types import ID_BYTES

MAX_GENESIS_BYTES = 4 * 1024 * 1024


def load_genesis(source: str | Path | bytes) -> tuple[Genesis, str, bytes]:
    """Load a genesis from its file or its bytes; give it with the chain id and the bytes.

    Raises: ConfigurationError naming the key and the fix.
    """
    name = "the genesis" if isinstance(source, bytes) else f"the genesis file {source}"
    data = source if isinstance(source, bytes) else _read(Path(source))
    try:
        genesis: Genesis = _decode(Genesis, _parse(data), "")
    except _WrongKeyError as error:
        text = f"{name}: {error.key} {error.problem}" if error.key else f"{name} {error.problem}"
        raise ConfigurationError(text, key=error.key) from error
    return genesis, genesis.compute_chain_id(data), data


def encode_genesis(genesis: Genesis) -> bytes:
    """Write a genesis as JSON bytes, all parameters included."""
    return json.dumps(_encode(genesis), indent=2).encode() + b"\n"


def save_genesis(genesis: Genesis, path: str | Path) -> bytes:
    """Write a genesis file, never over another one; give its bytes.

    Raises: ConfigurationError if the file exists or cannot be written.
    """
    data = encode_genesis(genesis)
    try:
        with Path(path).open("xb") as file:
            try:
                file.write(data)
                file.flush()
            except OSError:
                Path(path).unlink(missing_ok=True)  # a part of it would be taken for the whole
                raise
    except FileExistsError as error:
        raise ConfigurationError(
            f"the genesis file {path} exists; another genesis is another chain: choose a new path"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the genesis file {path} cannot be written ({error.strerror}); free space on its "
            "disk, or choose another path"
        ) from error
    return data


def describe_other_chain(own: str, other: str) -> str:
    """Say that nodes are of another chain than the genesis file at hand, and what to do."""
    return (
        f"this genesis file is of chain {own}, the nodes run chain {other}: take the genesis file "
        "of this market, from someone you trust, or the address of a node of the file's chain"
    )


class _WrongKeyError(Exception):
    """A key of the file is wrong."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key = key
        self.problem = problem


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the genesis file {path} cannot be read ({error.strerror}); "
            "get it from the market's operator or join with --bootstrap"
        ) from error


def _parse(data: bytes) -> Any:
    if len(data) > MAX_GENESIS_BYTES:
        raise _WrongKeyError("", f"is larger than {MAX_GENESIS_BYTES} bytes")
    try:
        return json.loads(data.decode(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, a number without end
        raise _WrongKeyError("", f"is no JSON ({error}); copy it again") from error


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _WrongKeyError(twice, "stands there twice; remove one of them")
    return found


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _decode(annotation: Any, value: Any, key: str) -> Any:
    while isinstance(annotation, NewType):
        annotation = annotation.__supertype__
    if isinstance(annotation, types.GenericAlias) and get_origin(annotation) is tuple:
        if not isinstance(value, list):
            raise _WrongKeyError(key, "must be a list")
        item = get_args(annotation)[0]
        return tuple(_decode(item, v, f"{key}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(annotation):
        return _decode_object(annotation, value, key)
    if annotation is bytes:
        return _decode_id(value, key)
    # In Python True is an int; in a genesis file it is a mistake.
    if type(value) is not annotation:
        names = {int: "an integer", str: "a string", bool: "true or false"}
        raise _WrongKeyError(key, f"must be {names[annotation]}, not {json.dumps(value)}")
    return value


def _decode_object(cls: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise _WrongKeyError(key, "must be an object in braces")
    hints = get_type_hints(cls)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            fix = f"; did you mean {near[0]}?" if near else "; remove it"
            raise _WrongKeyError(f"{prefix}{name}", f"is no key of a genesis{fix}")
    values = {n: _decode(hints[n], v, f"{prefix}{n}") for n, v in value.items()}
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise _WrongKeyError(f"{prefix}{field.name}", "is missing; add it")
    try:
        return cls(**values)
    except MalformedMessageError as error:
        raise _WrongKeyError(key, f"does not hold: {error}") from error


def _decode_id(value: Any, key: str) -> bytes:
    try:
        decoded = bytes.fromhex(value)
    except (TypeError, ValueError):
        decoded = b""
    if len(decoded) != ID_BYTES:
        raise _WrongKeyError(key, f"must be {2 * ID_BYTES} hex digits, as `iemas-node keygen` says")
    return decoded
