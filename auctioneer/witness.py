"""The witness: keeps half of each bid's key until the round is closed, then opens exactly that.

It countersigns a bid only if its own sealed share opens to what the bid committed to, signs at
most one close a round, and releases the shares of the bids under that close's root. So nobody sees
a bid before the set is fixed, and no bidder can withdraw. Source: design §4 steps 2 and 3, §6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from auctioneer.opening import get_bid_context
from iemas.core.auction import (
    BidAcknowledgement,
    CloseNotice,
    CountersignRequest,
    CountersignResponse,
    ReleaseNotice,
    RoundClose,
    SealedBid,
    ShareRelease,
)
from iemas.core.election import Term
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import InvalidBidError, InvalidInputError, RemoteProtocolError
from iemas.core.merkle import compute_root
from iemas.core.ready import Event, Ready, Record, RecordKind, Send
from iemas.core.sealing import open_share
from iemas.core.types import NodeId, short_id

KEPT_TERMS = 3


@dataclass(slots=True)
class _WitnessedTerm:
    """What this witness holds of one term."""

    term: Term
    shares: dict[bytes, bytes] = field(default_factory=dict)  # bid hash -> share
    released: dict[int, Signed[ShareRelease]] = field(default_factory=dict)  # by round
    spent: set[bytes] = field(default_factory=set)  # bid hashes under a released close
    last_round: int = -1


class Witness:
    """The witness's side of every round of the terms that it witnesses."""

    def __init__(self, *, chain_id: str, signer: Signer, hpke_key: X25519PrivateKey) -> None:
        self._chain_id = chain_id
        self._signer = signer
        self._hpke_key = hpke_key
        self._terms: dict[int, _WitnessedTerm] = {}

    def begin_term(self, term: Term) -> None:
        """Witness this term; drop what is held of terms long over."""
        self._terms.setdefault(term.number, _WitnessedTerm(term))
        for number in sorted(self._terms):
            if number <= term.number - KEPT_TERMS:
                del self._terms[number]

    def restore(self, release: Signed[ShareRelease]) -> None:
        """Remember after a restart which rounds were released, so that none is released twice."""
        witnessed = self._terms.get(release.message.term)
        if witnessed is not None:
            witnessed.released[release.message.round] = release
            witnessed.last_round = max(witnessed.last_round, release.message.round)

    def countersign(self, sender: NodeId, request: CountersignRequest) -> Ready:
        """Acknowledge the bids whose share opens; name the others."""
        acknowledgements, refused, reasons = [], [], []
        for bid in request.bids:
            try:
                acknowledgements.append(self._countersign_one(sender, bid))
            except InvalidInputError as error:
                refused.append(bid.hash)
                reasons.append(str(error))
        response = CountersignResponse(tuple(acknowledgements), tuple(refused), tuple(reasons))
        return Ready(send=(Send(sender, response),))

    def _countersign_one(
        self, sender: NodeId, bid: Signed[SealedBid]
    ) -> Signed[BidAcknowledgement]:
        sealed = bid.message
        verify_signed(bid, self._chain_id, expected_signer=sealed.account)
        witnessed = self._get_term(sender, sealed.term)
        share = open_share(
            sealed.witness_seal,
            self._hpke_key,
            get_bid_context(self._chain_id, sealed),
            sealed.witness_share_hash,
        )
        if bid.hash in witnessed.spent:
            raise InvalidBidError("this bid is in an earlier close")
        witnessed.shares[bid.hash] = share
        return self._signer.sign(BidAcknowledgement(sealed.hub, sealed.term, bid.hash))

    def _get_term(self, sender: NodeId, number: int) -> _WitnessedTerm:
        witnessed = self._terms.get(number)
        if witnessed is None:
            raise InvalidBidError(f"this node does not witness term {number}", term=number)
        if witnessed.term.auctioneer != sender:
            raise RemoteProtocolError(
                f"{short_id(sender)} is not the auctioneer of term {number}", term=number
            )
        return witnessed

    def release(self, sender: NodeId, notice: CloseNotice, receivers: Sequence[NodeId]) -> Ready:
        """Check a close and release its shares to all receivers.

        A close that came twice gets the same release again; one of a round that was skipped none.

        Raises: InvalidBidError, InvalidSignatureError, RemoteProtocolError.
        """
        close = notice.close.message
        verify_signed(notice.close, self._chain_id, expected_signer=sender)
        witnessed = self._get_term(sender, close.term)
        earlier = witnessed.released.get(close.round)
        if earlier is not None:
            return self._repeat(earlier, notice.close, receivers)
        self._check_close(witnessed, close, notice.bid_hashes)
        shares = tuple(witnessed.shares.pop(bid_hash) for bid_hash in notice.bid_hashes)
        release = self._signer.sign(
            ShareRelease(close.hub, close.term, close.round, notice.close.hash, shares)
        )
        witnessed.spent.update(notice.bid_hashes)
        witnessed.released[close.round] = release
        witnessed.last_round = close.round
        key = close.term.to_bytes(8, "big") + close.round.to_bytes(8, "big")
        return Ready(
            persist=(Record(RecordKind.RELEASED_CLOSE, key, release),),
            send=tuple(Send(receiver, ReleaseNotice(release)) for receiver in receivers),
        )

    def _repeat(
        self,
        release: Signed[ShareRelease],
        close: Signed[RoundClose],
        receivers: Sequence[NodeId],
    ) -> Ready:
        if release.message.close_hash != close.hash:
            fields = {
                "term": close.message.term,
                "round": close.message.round,
                "auctioneer": short_id(close.signer_id),
            }
            return Ready(events=(Event("second_close_refused", fields),))
        return Ready(send=tuple(Send(to, ReleaseNotice(release)) for to in receivers))

    def _check_close(
        self, witnessed: _WitnessedTerm, close: RoundClose, bid_hashes: Sequence[bytes]
    ) -> None:
        if close.round <= witnessed.last_round:
            # Honest where the auctioneer restarted and what it had sent before comes late.
            raise InvalidBidError("a later round of this term is released", round=close.round)
        if len(bid_hashes) != close.bid_count or compute_root(bid_hashes) != close.bids_root:
            raise RemoteProtocolError("the close does not commit to these bids")
        if len(set(bid_hashes)) != len(bid_hashes):
            raise RemoteProtocolError("the close counts a bid twice")
        for bid_hash in bid_hashes:
            if bid_hash not in witnessed.shares:
                # A witness that restarted has to be asked for its countersignatures again.
                raise InvalidBidError(
                    "the close holds a bid that was not countersigned", bid_hash=bid_hash
                )
