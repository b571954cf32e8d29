"""Snapshots: the whole state as one canonical byte string, from which a replica can start.

A snapshot is the canonical CBOR of all records in the root's order, cut into chunks. It is
accepted only if what it decodes to has the state root that the taker already trusts.
Source: docs/spec/application.md.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from typing import Any, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import cbor2

from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.errors import InvalidInputError, MalformedMessageError
from iemas.core.params import Genesis
from iemas.core.types import Hash
from iemas.ledger.records import ChainFacts, to_plain
from iemas.ledger.state import TABLE_NAMES, LedgerState

T = TypeVar("T")

SNAPSHOT_FORMAT = 1
CHUNK_BYTES = 256 * 1024
MAX_SNAPSHOT_CHUNKS = 4096


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a replica offers: the height that it was taken at, its chunks, and its hash."""

    height: int
    format: int
    chunks: int
    hash: Hash


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """An offer with its chunks."""

    offer: Snapshot
    data: tuple[bytes, ...]


def take_snapshot(state: LedgerState) -> StoredSnapshot:
    """Encode a committed state and cut it into chunks."""
    data = encode_state(state)
    chunks = tuple(data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES))
    offer = Snapshot(state.height, SNAPSHOT_FORMAT, len(chunks), compute_hash(data))
    return StoredSnapshot(offer, chunks)


def encode_state(state: LedgerState) -> bytes:
    """Encode all records, sorted by table and key."""
    records = [
        (name, to_plain(key), to_plain(value)) for name, key, value in state.iterate_records()
    ]
    records.sort(key=lambda record: encode_canonical(record[:2]))
    return encode_canonical(tuple(records))


def decode_state(genesis: Genesis, data: bytes) -> LedgerState:
    """Decode a snapshot. The caller checks the root.

    Raises: MalformedMessageError if the bytes are no snapshot.
    """
    try:
        records = cbor2.loads(data)
        tables: dict[str, dict[Any, Any]] = {name: {} for name in TABLE_NAMES}
        facts: ChainFacts | None = None
        for name, key, value in records:
            if name == "facts":
                facts = rebuild(ChainFacts, value)
            else:
                key_type, value_type = TABLE_TYPES[name]
                tables[name][rebuild(key_type, key)] = rebuild(value_type, value)
        if facts is None:
            raise MalformedMessageError("the snapshot lacks the chain's facts")
        state = LedgerState(genesis, facts)
        for name, table in tables.items():
            setattr(state, name, table)
    except InvalidInputError:
        raise
    except (cbor2.CBORDecodeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MalformedMessageError(f"the bytes are no snapshot: {error}") from error
    state.restore_index()
    return state


def rebuild(annotation: Any, plain: Any) -> Any:
    """Give `plain` the type that `to_plain` took from it."""
    while isinstance(annotation, NewType):
        annotation = annotation.__supertype__
    origin = get_origin(annotation)
    if origin is tuple:
        return tuple(rebuild(get_args(annotation)[0], item) for item in plain)
    if origin in (types.UnionType, Union):
        member = next(arg for arg in get_args(annotation) if arg is not types.NoneType)
        return None if plain is None else rebuild(member, plain)
    if is_dataclass(annotation) or hasattr(annotation, "_fields"):
        return _rebuild_record(annotation, plain)
    if issubclass(annotation, IntEnum):
        return annotation(plain)
    if not isinstance(plain, annotation):
        raise MalformedMessageError(f"{plain!r} is no {annotation.__name__}")
    return plain


def _rebuild_record(cls: Any, plain: Any) -> Any:
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)] if is_dataclass(cls) else cls._fields
    return cls(*[rebuild(hints[n], item) for n, item in zip(names, plain, strict=True)])


def _find_table_types() -> dict[str, tuple[Any, Any]]:
    hints = get_type_hints(LedgerState)
    return {name: get_args(hints[name]) for name in TABLE_NAMES}


TABLE_TYPES = _find_table_types()
"""The types of every table's keys and records."""
