"""The last verified header on disk: what is read back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from iemas import wire
from iemas.client._trust_store import MAX_BYTES, TrustStore
from iemas.consensus.messages import LightBlock
from iemas.core.errors import TrustFileError
from tests.light_chain import CHAIN_ID, LightChain, drop_votes

CHAIN = LightChain([{1: 1, 2: 1, 3: 1, 4: 1}] * 4)


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "state" / "trusted")


def test_a_kept_block_is_read_back(store: TrustStore) -> None:
    assert store.load(CHAIN_ID) is None
    store.save(CHAIN_ID, CHAIN[1])
    assert store.load(CHAIN_ID) == CHAIN[1]
    store.save(CHAIN_ID, CHAIN[3])
    assert store.load(CHAIN_ID) == CHAIN[3]
    assert store.load("another-chain") is None


def test_only_its_owner_may_read_it_and_nothing_else_is_left(store: TrustStore) -> None:
    store.save(CHAIN_ID, CHAIN[1])
    path = store.get_path(CHAIN_ID)
    assert path.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


def spoil(block: LightBlock, at: int) -> bytes:
    data = bytearray(wire.encode(block))
    data[at] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no block",
        wire.encode(CHAIN[2])[:-1],
        wire.encode(CHAIN[2]) + b"\0",
        wire.encode(drop_votes(CHAIN[2], keep=1)),
        *[spoil(CHAIN[2], at) for at in range(0, len(wire.encode(CHAIN[2])), 37)],
        bytes(MAX_BYTES + 1),
    ],
)
def test_a_damaged_file_is_refused(store: TrustStore, data: bytes) -> None:
    """Wherever a bit turned: no part of a light block stands without the others."""
    store.save(CHAIN_ID, CHAIN[2])
    store.get_path(CHAIN_ID).write_bytes(data)
    with pytest.raises(TrustFileError, match="does not hold a verified header") as caught:
        store.load(CHAIN_ID)
    assert caught.value.operands["path"] == store.get_path(CHAIN_ID)


def test_another_chains_block_is_refused(store: TrustStore) -> None:
    store.save("another-chain", CHAIN[2])
    with pytest.raises(TrustFileError, match="is of chain 'light-chain'"):
        store.load("another-chain")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = TrustStore(tmp_path / "file")
    with pytest.raises(TrustFileError, match="set state_dir"):
        store.save(CHAIN_ID, CHAIN[1])
    with pytest.raises(TrustFileError, match="cannot be read"):
        store.load(CHAIN_ID)
