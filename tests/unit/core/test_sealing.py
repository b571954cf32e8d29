"""Sealed bids: neither holder opens one alone, and nothing can be swapped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iemas.core.errors import InvalidBidError
from iemas.core.identity import Identity
from iemas.core.sealing import (
    combine_shares,
    compute_bid_context,
    compute_share_hash,
    decrypt_bid,
    decrypt_chain,
    encrypt_bid,
    encrypt_chain,
    open_share,
    seal_share,
)

HOLDER = Identity(bytes(32)).derive_hpke_key()
OTHER = Identity(b"1" * 32).derive_hpke_key()
PUBLIC = HOLDER.public_key().public_bytes_raw()
CONTEXT = compute_bid_context("market-1", hub="hub", term=3, account=bytes(32), channel=7, nonce=1)
SHARE, WITNESS_SHARE = b"a" * 32, b"w" * 32
KEY = combine_shares(SHARE, WITNESS_SHARE)


def test_a_sealed_share_opens_for_its_holder() -> None:
    sealed = seal_share(SHARE, PUBLIC, CONTEXT)
    assert SHARE not in sealed
    assert open_share(sealed, HOLDER, CONTEXT, compute_share_hash(SHARE)) == SHARE


def test_sealing_twice_gives_different_bytes() -> None:
    assert seal_share(SHARE, PUBLIC, CONTEXT) != seal_share(SHARE, PUBLIC, CONTEXT)


def test_a_share_opens_for_nobody_else_and_in_no_other_context() -> None:
    sealed = seal_share(SHARE, PUBLIC, CONTEXT)
    expected = compute_share_hash(SHARE)
    for key, context in ((OTHER, CONTEXT), (HOLDER, CONTEXT + b"x")):
        with pytest.raises(InvalidBidError, match="does not open"):
            open_share(sealed, key, context, expected)
    for damaged in (b"", sealed[:-1], sealed[:40], b"\0" * len(sealed)):
        with pytest.raises(InvalidBidError, match="does not open"):
            open_share(damaged, HOLDER, CONTEXT, expected)


@pytest.mark.parametrize("share", [b"b" * 32, b"short"])
def test_a_share_other_than_the_one_committed_to_is_refused(share: bytes) -> None:
    sealed = seal_share(share, PUBLIC, CONTEXT)
    with pytest.raises(InvalidBidError, match="committed"):
        open_share(sealed, HOLDER, CONTEXT, compute_share_hash(SHARE))


def test_a_share_of_the_wrong_length_is_refused_even_if_committed_to() -> None:
    sealed = seal_share(b"short", PUBLIC, CONTEXT)
    with pytest.raises(InvalidBidError, match="committed"):
        open_share(sealed, HOLDER, CONTEXT, compute_share_hash(b"short"))


@given(bid=st.binary(max_size=200), chain=st.binary(max_size=200))
def test_bid_and_chain_decrypt_under_both_shares(bid: bytes, chain: bytes) -> None:
    assert decrypt_bid(KEY, encrypt_bid(KEY, bid, CONTEXT), CONTEXT) == bid
    assert decrypt_chain(KEY, encrypt_chain(KEY, chain, CONTEXT), CONTEXT) == chain


@pytest.mark.parametrize("key", [SHARE, WITNESS_SHARE, bytes(32)])
def test_one_share_alone_opens_nothing(key: bytes) -> None:
    with pytest.raises(InvalidBidError, match="does not decrypt"):
        decrypt_bid(key, encrypt_bid(KEY, b"bid", CONTEXT), CONTEXT)


def test_ciphertexts_cannot_be_swapped_moved_or_changed() -> None:
    ciphertext = encrypt_bid(KEY, b"bid", CONTEXT)
    with pytest.raises(InvalidBidError):
        decrypt_chain(KEY, ciphertext, CONTEXT)
    with pytest.raises(InvalidBidError):
        decrypt_bid(KEY, ciphertext, CONTEXT + b"x")
    with pytest.raises(InvalidBidError):
        decrypt_bid(KEY, bytes([ciphertext[0] ^ 1]) + ciphertext[1:], CONTEXT)


def test_the_context_tells_every_bid_from_every_other() -> None:
    fields = {"hub": "hub", "term": 3, "account": bytes(32), "channel": 7, "nonce": 1}
    changes = {"hub": "hub2", "term": 4, "account": b"1" * 32, "channel": 8, "nonce": 2}
    contexts = {compute_bid_context("market-1", **fields), compute_bid_context("m", **fields)}
    for name, value in changes.items():
        contexts.add(compute_bid_context("market-1", **{**fields, name: value}))
    assert len(contexts) == 7


def test_shares_combine_to_the_key_in_any_order() -> None:
    assert combine_shares(WITNESS_SHARE, SHARE) == KEY
    assert combine_shares(KEY, SHARE) == WITNESS_SHARE
