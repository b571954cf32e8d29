"""Opening sealed bids: the same steps for the auctioneer that clears and whoever re-checks it.

Source: design §4 steps 2 and 3, §6.
"""

from __future__ import annotations

from collections.abc import Callable

from iemas.core.auction import Bid, SealedBid
from iemas.core.errors import InvalidBidError, MalformedMessageError
from iemas.core.report import BLOCK_KEY_BYTES
from iemas.core.sealing import combine_shares, compute_bid_context, decrypt_bid, decrypt_chain
from iemas.core.types import UnmatchedReason

BidDecoder = Callable[[bytes], Bid]


def get_bid_context(chain_id: str, sealed: SealedBid) -> bytes:
    """Give the context that the bid's ciphertexts and seals are bound to."""
    return compute_bid_context(
        chain_id,
        hub=sealed.hub,
        term=sealed.term,
        account=sealed.account,
        channel=sealed.channel,
        nonce=sealed.nonce,
    )


def open_bid(
    chain_id: str,
    sealed: SealedBid,
    auctioneer_share: bytes,
    witness_share: bytes,
    decode_bid: BidDecoder,
) -> Bid | UnmatchedReason:
    """Open a bid with both shares; one that does not open to a valid bid is UNDECRYPTABLE."""
    key = combine_shares(auctioneer_share, witness_share)
    try:
        plaintext = decrypt_bid(key, sealed.ciphertext, get_bid_context(chain_id, sealed))
        return decode_bid(plaintext)
    except (InvalidBidError, MalformedMessageError):
        return UnmatchedReason.UNDECRYPTABLE


def open_chain(
    chain_id: str,
    sealed: SealedBid,
    auctioneer_share: bytes,
    witness_share: bytes,
    chain_ciphertext: bytes,
) -> bytes:
    """Open the prompt's packed block keys; what does not open to whole keys counts as empty.

    It is the bidder's loss alone: no bid can spoil the round of the others.
    """
    key = combine_shares(auctioneer_share, witness_share)
    try:
        chain = decrypt_chain(key, chain_ciphertext, get_bid_context(chain_id, sealed))
    except InvalidBidError:
        return b""
    return chain if len(chain) % BLOCK_KEY_BYTES == 0 else b""
