"""Snapshots: the whole state in chunks, each of which can be checked against the state root.

A chunk holds so many neighbouring leaves of the state's Merkle tree that they make up one inner
node; the snapshot names these nodes. So whoever trusts a state root checks the names at once, and
every chunk as it arrives, whoever sent it. Source: docs/spec/application.md §4.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import cbor2

from iemas.core.encoding import encode_canonical
from iemas.core.errors import InvalidInputError, MalformedMessageError
from iemas.core.merkle import compute_root, compute_root_of_hashes
from iemas.core.params import Genesis
from iemas.core.types import Hash, require, require_id
from iemas.ledger.records import ChainFacts
from iemas.ledger.state import TABLE_NAMES, LedgerState
from iemas.ledger.transfer import ISSUANCE, LedgerAccount, Transfer, TransferReason

T = TypeVar("T")

SNAPSHOT_FORMAT = 2
CHUNK_LEAVES = 64
"""A power of two: so many aligned leaves are below one inner node of an RFC 6962 tree."""

MAX_SNAPSHOT_CHUNKS = 65_536


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a replica offers: the height that it was taken at, and the nodes above its chunks."""

    height: int
    format: int
    chunk_roots: tuple[Hash, ...]

    def __post_init__(self) -> None:
        require(len(self.chunk_roots) <= MAX_SNAPSHOT_CHUNKS, "too many chunks")
        for chunk_root in self.chunk_roots:
            require_id("chunk_roots", chunk_root)

    @property
    def chunks(self) -> int:
        """How many chunks it has."""
        return len(self.chunk_roots)

    def compute_state_root(self) -> Hash:
        """Compute the root of the state that it is said to be."""
        return compute_root_of_hashes(self.chunk_roots)


class StoredSnapshot(NamedTuple):
    """An offer with its leaves, which the state that it was taken of holds as well."""

    offer: Snapshot
    leaves: tuple[bytes, ...]

    def encode_chunk(self, index: int) -> bytes:
        """Encode a chunk."""
        start = index * CHUNK_LEAVES
        return encode_chunk(self.leaves[start : start + CHUNK_LEAVES])


def take_snapshot(state: LedgerState) -> StoredSnapshot:
    """Take a snapshot of a committed state."""
    pairs = state.list_leaves()
    hashes = [leaf_hash for _, leaf_hash in pairs]
    roots = [
        compute_root_of_hashes(hashes[start : start + CHUNK_LEAVES])
        for start in range(0, len(hashes), CHUNK_LEAVES)
    ]
    offer = Snapshot(state.height, SNAPSHOT_FORMAT, tuple(roots))
    return StoredSnapshot(offer, tuple([leaf for leaf, _ in pairs]))


def sum_up(before: LedgerState, after: LedgerState) -> tuple[Transfer, ...]:
    """Give what a replica posts that goes from one state to the other without the blocks between.

    One transfer an account, out of the issuance or back to it: they add up to nothing.
    """
    changes: Counter[LedgerAccount] = Counter()
    for state, sign in ((after, 1), (before, -1)):
        for owner, record in state.accounts.items():
            for balance in record.balances:
                changes[LedgerAccount(balance.kind, owner, balance.hub)] += sign * balance.micros
    transfers = []
    for account, micros in sorted(changes.items()):
        if micros > 0:
            transfers.append(Transfer(ISSUANCE, account, micros, TransferReason.SNAPSHOT))
        elif micros < 0:
            transfers.append(Transfer(account, ISSUANCE, -micros, TransferReason.SNAPSHOT))
    return tuple(transfers)


def encode_chunk(leaves: Iterable[bytes]) -> bytes:
    """Encode leaves as the canonical CBOR of an array of byte strings."""
    return encode_canonical(tuple(leaves))


def decode_chunk(data: bytes) -> tuple[tuple[bytes, ...], Hash]:
    """Give a chunk's leaves, and the root over them: what a snapshot must name.

    Raises: MalformedMessageError if the bytes are no chunk.
    """
    try:
        leaves = cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessageError(f"the bytes are no chunk of a snapshot: {error}") from error
    is_array = isinstance(leaves, list) and 1 <= len(leaves) <= CHUNK_LEAVES
    require(
        is_array and all(isinstance(leaf, bytes) for leaf in leaves),
        f"a chunk is an array of 1 to {CHUNK_LEAVES} byte strings",
    )
    return tuple(leaves), compute_root(leaves)


def decode_state(genesis: Genesis, leaves: Iterable[bytes]) -> LedgerState:
    """Decode a snapshot's leaves. The caller checks the root.

    Raises: MalformedMessageError if they are no state.
    """
    tables: dict[str, dict[Any, Any]] = {name: {} for name in TABLE_NAMES}
    facts: ChainFacts | None = None
    try:
        for leaf in leaves:
            name, key, value = cbor2.loads(leaf)
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
        raise MalformedMessageError(f"the leaves are no state: {error}") from error
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
    return cls(*[rebuild(hint, item) for hint, item in zip(_list_hints(cls), plain, strict=True)])


@cache
def _list_hints(cls: Any) -> tuple[Any, ...]:
    """List the types of a record's fields, in order."""
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)] if is_dataclass(cls) else cls._fields
    return tuple(hints[name] for name in names)


def _find_table_types() -> dict[str, tuple[Any, Any]]:
    hints = get_type_hints(LedgerState)
    return {name: get_args(hints[name]) for name in TABLE_NAMES}


TABLE_TYPES = _find_table_types()
"""The types of every table's keys and records."""
