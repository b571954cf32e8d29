"""The bidder: seals a bid, and checks every statement that comes back about it.

Nothing that an auctioneer says is taken on trust: the acknowledgement carries two signatures, the
close proves that this very bid is in the round, and the allocation must lie within the bid.
Source: design §4 steps 2 to 5, §6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iemas import wire
from iemas.client._channel import Channel
from iemas.core.auction import (
    Allocation,
    Bid,
    BidAccepted,
    BidAcknowledgement,
    BidSubmission,
    RoundClose,
    RoundOutcome,
    SealedBid,
    Unmatched,
)
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import InvalidAllocationError, LocalProtocolError, RemoteProtocolError
from iemas.core.merkle import verify_inclusion
from iemas.core.sealing import (
    SHARE_BYTES,
    combine_shares,
    compute_bid_context,
    compute_share_hash,
    encrypt_bid,
    encrypt_chain,
    seal_share,
)
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import HubId, NodeId, short_id

ENTROPY_BYTES = 2 * SHARE_BYTES
STUCK_SECONDS = 0.3
"""A bid that nobody acknowledged for so long is given to other validators."""

OUTCOME_STUCK_SECONDS = 1.0
"""An acknowledged bid without an outcome for so long is stuck as well."""

HELPERS = 2
"""How many validators a stuck bid is given to."""

SealFunction = Callable[[bytes, bytes, bytes], bytes]
"""(share, holder's HPKE public key, context) to the sealed share."""


@dataclass(frozen=True, slots=True)
class TermInfo:
    """Whom a bid of this term is sealed to.

    `witness` is None where the hub has no second live validator: then the auctioneer holds both
    shares, and rounds are marked unsealed. `validators` are those that pass a stuck bid on.
    """

    hub: HubId
    number: int
    auctioneer: NodeId
    auctioneer_hpke_key: bytes
    witness: NodeId | None = None
    witness_hpke_key: bytes = b""
    validators: tuple[NodeId, ...] = ()

    @property
    def countersigner(self) -> NodeId:
        """Who signs acknowledgements first: the witness, or the auctioneer where there is none."""
        return self.auctioneer if self.witness is None else self.witness


@dataclass(frozen=True, slots=True)
class PendingBid:
    """A sealed bid on its way, and what must hold of every answer to it."""

    bid: Bid
    submission: BidSubmission
    term: TermInfo
    chain_id: str
    cacheable_tokens: int
    """Tokens in whole blocks of the prompt: no provider can hold more of it."""

    @property
    def bid_hash(self) -> bytes:
        """Hash of the signed sealed bid, by which answers name it."""
        return self.submission.sealed_bid.hash

    def check_acceptance(self, accepted: BidAccepted) -> None:
        """Check that witness and auctioneer both acknowledged this very bid.

        Raises: InvalidSignatureError, RemoteProtocolError.
        """
        self._check_acknowledgement(accepted.witness_acknowledgement, self.term.countersigner)
        self._check_acknowledgement(accepted.auctioneer_acknowledgement, self.term.auctioneer)

    def _check_acknowledgement(self, signed: Signed[BidAcknowledgement], signer: NodeId) -> None:
        verify_signed(signed, self.chain_id, expected_signer=signer)
        expected = BidAcknowledgement(self.term.hub, self.term.number, self.bid_hash)
        if signed.message != expected:
            raise RemoteProtocolError(
                f"{short_id(signer)} acknowledged another bid than {short_id(self.bid_hash)}"
            )

    def check_outcome(
        self, outcome: RoundOutcome, *, now_ms: int, tolerance_ms: int
    ) -> Signed[Allocation] | Signed[Unmatched]:
        """Check a round's outcome and give the allocation, or why there is none.

        The close must hold this bid under the auctioneer's signature, and an allocation must stay
        within what was bid.
        Raises: InvalidSignatureError, InvalidAllocationError with what is wrong.
        """
        self._check_close(outcome)
        if (outcome.allocation is None) == (outcome.unmatched is None):
            raise InvalidAllocationError("an outcome is either an allocation or an unmatched")
        if outcome.unmatched is not None:
            self._check_unmatched(outcome.unmatched, outcome.close.message)
            return outcome.unmatched
        if outcome.allocation is None:
            raise InvalidAllocationError("the outcome is empty")
        self._check_allocation(outcome.allocation, outcome.close.message)
        expires_at_ms = outcome.allocation.message.expires_at_ms
        if expires_at_ms + tolerance_ms < now_ms:
            raise InvalidAllocationError(
                f"the allocation expired {now_ms - expires_at_ms} ms ago",
                expires_at_ms=expires_at_ms,
            )
        return outcome.allocation

    def _check_close(self, outcome: RoundOutcome) -> None:
        verify_signed(outcome.close, self.chain_id, expected_signer=self.term.auctioneer)
        close, proof = outcome.close.message, outcome.inclusion_proof
        if (close.hub, close.term) != (self.term.hub, self.term.number):
            raise InvalidAllocationError(f"the close is of term {close.term} of {close.hub}")
        if close.sealed != (self.term.witness is not None):
            raise InvalidAllocationError("the close tells otherwise whether the round was sealed")
        if proof.size != close.bid_count or not verify_inclusion(
            self.bid_hash, proof, close.bids_root
        ):
            raise InvalidAllocationError("the bid is not proven to be in its round's close")

    def _check_unmatched(self, signed: Signed[Unmatched], close: RoundClose) -> None:
        verify_signed(signed, self.chain_id, expected_signer=self.term.auctioneer)
        unmatched = signed.message
        self._require_equal("bid_hash", unmatched.bid_hash, self.bid_hash)
        self._require_equal("account", unmatched.account, self._sealed.account)
        self._require_equal("round", _get_round(unmatched), _get_round(close))

    def _check_allocation(self, signed: Signed[Allocation], close: RoundClose) -> None:
        verify_signed(signed, self.chain_id, expected_signer=self.term.auctioneer)
        allocation, bid = signed.message, self.bid
        self._require_equal("bid_hash", allocation.bid_hash, self.bid_hash)
        self._require_equal("round", _get_round(allocation), _get_round(close))
        self._require_equal("account", allocation.account, self._sealed.account)
        self._require_equal("channel", allocation.channel, self._sealed.channel)
        self._require_equal("prompt_tokens", allocation.prompt_tokens, bid.prompt_tokens)
        self._require_equal("max_tokens", allocation.max_tokens, bid.max_tokens)
        self._require_equal("lateness", allocation.lateness, bid.lateness)
        if not bid.prices.covers(allocation.rates):
            raise InvalidAllocationError("a rate is above the bid's price", field="rates")
        worst_micros = compute_worst_case_micros(bid.prices, bid.prompt_tokens, bid.max_tokens)
        self._require_most("price_micros", allocation.price_micros, worst_micros)
        self._require_most("reserved_micros", allocation.reserved_micros, bid.reservation_micros)
        self._require_most("cached_tokens", allocation.cached_tokens, self.cacheable_tokens)

    @property
    def _sealed(self) -> SealedBid:
        return self.submission.sealed_bid.message

    @staticmethod
    def _require_equal(field: str, given: object, expected: object) -> None:
        if given != expected:
            raise InvalidAllocationError(f"{field} is not the bid's", field=field)

    @staticmethod
    def _require_most(field: str, given: int, most: int) -> None:
        if given > most:
            raise InvalidAllocationError(f"{field} is {given}, above {most}", field=field)


def _get_round(message: Allocation | Unmatched | RoundClose) -> tuple[HubId, int, int]:
    return (message.hub, message.term, message.round)


def choose_helpers(term: TermInfo, attempt: int) -> list[NodeId]:
    """Choose whom to give a stuck bid: the witness, then other validators, each attempt others.

    So an auctioneer that leaves every bid unanswered is found out by more of them each time.
    """
    others = sorted({*term.validators} - {term.auctioneer, term.witness})
    start = attempt * (HELPERS - 1) % len(others) if others else 0
    chosen = [*others[start:], *others[:start]]
    return (chosen if term.witness is None else [term.witness, *chosen])[:HELPERS]


def make_bid_submission(
    bid: Bid,
    chain: bytes,
    *,
    term: TermInfo,
    channel: Channel,
    chain_id: str,
    block_size: int,
    entropy: bytes,
    seal: SealFunction = seal_share,
) -> PendingBid:
    """Seal a bid: encrypt it and its block chain, split the key, commit to all, sign.

    Args:
        bid: the valuation; opened only after its round is closed.
        chain: the prompt's block keys, 8 bytes each, packed (`iemas.core.digest`).
        term: whom the key's shares are sealed to.
        channel: the account's channel, which counts the bid and signs it.
        chain_id: the market's chain id (`Genesis.compute_chain_id`).
        block_size: tokens a block of `chain`.
        entropy: 64 fresh random bytes: both shares of the one-time key.
        seal: HPKE; it draws an ephemeral key of its own, so a simulation that must repeat itself
            byte for byte passes another.

    Raises: LocalProtocolError if the entropy is not 64 bytes, MalformedMessageError.

    """
    if len(entropy) != ENTROPY_BYTES:
        raise LocalProtocolError(f"a bid takes {ENTROPY_BYTES} bytes of entropy")
    auctioneer_share, witness_share = entropy[:SHARE_BYTES], entropy[SHARE_BYTES:]
    key = combine_shares(auctioneer_share, witness_share)
    nonce = channel.take_nonce(term.hub, term.number)
    context = compute_bid_context(
        chain_id,
        hub=term.hub,
        term=term.number,
        account=channel.account,
        channel=channel.channel_id,
        nonce=nonce,
    )
    chain_ciphertext = encrypt_chain(key, chain, context)
    witness_key = term.auctioneer_hpke_key if term.witness is None else term.witness_hpke_key
    sealed_bid = SealedBid(
        hub=term.hub,
        term=term.number,
        account=channel.account,
        channel=channel.channel_id,
        nonce=nonce,
        ciphertext=encrypt_bid(key, wire.encode(bid), context),
        chain_hash=compute_hash(chain_ciphertext),
        auctioneer_seal=seal(auctioneer_share, term.auctioneer_hpke_key, context),
        witness_seal=seal(witness_share, witness_key, context),
        auctioneer_share_hash=compute_share_hash(auctioneer_share),
        witness_share_hash=compute_share_hash(witness_share),
    )
    submission = BidSubmission(channel.signer.sign(sealed_bid), chain_ciphertext)
    cacheable_tokens = min(len(chain) // 8 * block_size, bid.prompt_tokens)
    return PendingBid(bid, submission, term, chain_id, cacheable_tokens)
