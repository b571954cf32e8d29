"""What a client is told once: its market, its key, and how it should behave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict

from iemas.client._keys import Key
from iemas.client._network import Market, parse_bootstrap
from iemas.client._options import BidOptions
from iemas.core.errors import BadRequestError, ConfigurationError, MalformedMessageError
from iemas.core.types import ID_BYTES, AccountId, Hash
from iemas.genesis import load_genesis
from iemas.tls import Address

Bootstrap = str | Address | Sequence[str | Address]


class ClientOptions(TypedDict, total=False):
    """What a client may be told beside its market's addresses; only `key` is needed.

    `key`: the account's key: an `Identity`, or the path of a file that `iemas-node keygen` wrote.
    `model`: what to ask for where a request names no model; by default the market's.
    `bid`: what tasks are worth where a request does not say; see `BidOptions`.
    `timeout`: seconds that a whole request may take where it does not say; 600 by default.
    `max_retries`: how often to bid again after a round without a winner, a busy winner, or one that
    failed before its first token; 6 by default.
    `cache_dir`: where fetched tokenizers are kept; by default the user's cache folder.
    `state_dir`: where the last verified header of each market is kept, from which the next run goes
    on; by default in the user's state folder.
    `genesis`: the market's genesis file (path or bytes): what verified answers are proven from.
    Without it the first node's is believed.
    `trusted_block`: height and hash (hex) of a block that you trust, to prove answers from instead
    of the kept header or genesis; see `trusted_block` of a client that verified one.
    """

    key: Required[Key]
    model: str | None
    bid: BidOptions | None
    timeout: float
    max_retries: int
    cache_dir: str | os.PathLike[str] | None
    state_dir: str | os.PathLike[str] | None
    genesis: str | os.PathLike[str] | bytes | None
    trusted_block: tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """`ClientOptions` with every value set, or None for the default."""

    key: Key
    model: str | None = None
    bid: BidOptions | None = None
    timeout: float = 600.0
    max_retries: int = 6
    cache_dir: str | os.PathLike[str] | None = None
    state_dir: str | os.PathLike[str] | None = None
    genesis: str | os.PathLike[str] | bytes | None = None
    trusted_block: tuple[int, str] | None = None

    def parse_bootstrap(self, bootstrap: Bootstrap) -> list[Address]:
        """Read the addresses to start from. Raises: ConfigurationError."""
        try:
            return parse_bootstrap(bootstrap)
        except MalformedMessageError as error:
            raise ConfigurationError(f"bootstrap: {error}") from error

    def load_market(self) -> Market | None:
        """Give the market of the genesis file, if one was given. Raises: ConfigurationError."""
        if self.genesis is None:
            return None
        source = self.genesis if isinstance(self.genesis, bytes) else Path(self.genesis)
        genesis, chain_id, _ = load_genesis(source)
        return Market(genesis, chain_id)

    def parse_trusted_block(self) -> tuple[int, Hash] | None:
        """Read height and hash of the block to start from. Raises: ConfigurationError."""
        if self.trusted_block is None:
            return None
        height, text = self.trusted_block
        block_hash = _parse_hex(text)
        if height < 1 or len(block_hash) != ID_BYTES:
            raise ConfigurationError(
                "trusted_block is (height, hash): a height from 1 on and 64 hex digits",
                key="trusted_block",
            )
        return height, Hash(block_hash)


def parse_account(account: str | bytes) -> AccountId:
    """Read an account's id. Raises: BadRequestError."""
    raw = _parse_hex(account)
    if len(raw) != ID_BYTES:
        raise BadRequestError(
            "an account is named by 64 hex digits (`client.account` is your own)",
            code="bad_account",
        )
    return AccountId(raw)


def parse_id(transaction: str | bytes) -> Hash:
    """Read a transaction's id. Raises: BadRequestError."""
    raw = _parse_hex(transaction)
    if len(raw) != ID_BYTES:
        raise BadRequestError(
            "a transaction is named by 64 hex digits, the `id` of its receipt",
            code="bad_transaction",
        )
    return Hash(raw)


def _parse_hex(text: str | bytes) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else text
    except ValueError:
        return b""
