"""A term, its signers and a bid, for tests of the pure requester."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from iemas import wire
from iemas.client._base import Channel, PendingBid, TaskMeter, TermInfo, make_bid_submission
from iemas.core.auction import Allocation, Bid, BidAcknowledgement, RoundClose, RoundOutcome
from iemas.core.envelope import Signed
from iemas.core.execution import Receipt, TaskPayload, TaskStart, extend_output_hash
from iemas.core.identity import Identity
from iemas.core.merkle import compute_inclusion_proof, compute_root
from iemas.core.settlement import MeteredUsage, compute_amount_micros
from iemas.core.types import AccountId, ChannelId, FinishReason, HubId, Lateness, Prices

CHAIN = "test-chain"
HUB = HubId("hub")
NOW_MS = 1_000_000
RATES = Prices(500_000, 100_000, 2_000_000)
BID = Bid(
    model="hub",
    prompt_tokens=100,
    max_tokens=40,
    prices=Prices(1_000_000, 1_000_000, 3_000_000),
    lateness=Lateness(1_000, 1_000),
    reservation_micros=220,
)


def sign(identity: Identity, message: Any) -> Signed[Any]:
    return wire.WireSigner(identity, CHAIN).sign(message)


@dataclass
class World:
    """Everybody in one term."""

    auctioneer: Identity
    witness: Identity
    provider: Identity
    account: Identity
    channel: Channel
    term: TermInfo

    def bid(self, **changes: Any) -> PendingBid:
        return make_bid_submission(
            replace(BID, **changes),
            b"k" * 8 * 6,
            term=self.term,
            channel=self.channel,
            chain_id=CHAIN,
            block_size=16,
            entropy=bytes(range(64)),
        )

    def acknowledgement(self, pending: PendingBid) -> BidAcknowledgement:
        return BidAcknowledgement(HUB, self.term.number, pending.bid_hash)

    def allocation(self, pending: PendingBid, **changes: Any) -> Allocation:
        terms = Allocation(
            hub=HUB,
            term=self.term.number,
            round=3,
            bid_hash=pending.bid_hash,
            account=self.channel.account,
            channel=self.channel.channel_id,
            provider=self.provider.node_id,
            prompt_tokens=BID.prompt_tokens,
            cached_tokens=32,
            max_tokens=BID.max_tokens,
            rates=RATES,
            lateness=BID.lateness,
            price_micros=90,
            reserved_micros=130,
            channel_reserved_micros=130,
            expected_ttft_ms=10,
            expires_at_ms=NOW_MS + 10_000,
            transcript_hash=b"t" * 32,
        )
        return replace(terms, **changes)

    def outcome(self, pending: PendingBid, message: Any, **close_changes: Any) -> RoundOutcome:
        leaves = [b"x" * 32, pending.bid_hash, b"y" * 32]
        close = RoundClose(HUB, self.term.number, 3, compute_root(leaves), 3, NOW_MS, True)
        signed = sign(self.auctioneer, message)
        return RoundOutcome(
            sign(self.auctioneer, replace(close, **close_changes)),
            compute_inclusion_proof(leaves, 1),
            signed if isinstance(message, Allocation) else None,
            None if isinstance(message, Allocation) else signed,
        )

    def payload(self) -> TaskPayload:
        return TaskPayload(tuple(range(100)), 40, "salt", 0, 1_000_000, -1, (), False)

    def meter(self, **changes: Any) -> TaskMeter:
        allocation = sign(self.auctioneer, self.allocation(self.bid(), **changes))
        return TaskMeter(
            allocation,
            self.payload(),
            channel=self.channel,
            chain_id=CHAIN,
            window_tokens=8,
            tolerance_ms=100,
        )

    def receipt(self, meter: TaskMeter, start: TaskStart, **changes: Any) -> Signed[Receipt]:
        """Make an honest receipt for what the meter counted, on time; then change it."""
        signer = changes.pop("signer", self.provider)
        terms = meter.allocation.message
        tokens = meter.output_token_ids
        last = meter.receipt.message.sequence if meter.receipt is not None else 0
        values: dict[str, Any] = {
            "billed_cached_tokens": terms.cached_tokens,
            "prompt_late_ppm": 1_000_000,
            "output_late_ppm_tokens": len(tokens) * 1_000_000,
            **changes,
        }
        usage = MeteredUsage(
            terms.prompt_tokens - values["billed_cached_tokens"],
            values["billed_cached_tokens"],
            values["prompt_late_ppm"],
            values["output_late_ppm_tokens"],
        )
        receipt = Receipt(
            allocation_hash=meter.allocation.hash,
            account=terms.account,
            provider=terms.provider,
            hub=terms.hub,
            term=terms.term,
            channel=terms.channel,
            sequence=last + 1,
            prompt_tokens=terms.prompt_tokens,
            cached_tokens=terms.cached_tokens,
            billed_cached_tokens=values["billed_cached_tokens"],
            output_tokens=len(tokens),
            prompt_late_ppm=values["prompt_late_ppm"],
            output_late_ppm_tokens=values["output_late_ppm_tokens"],
            ttft_ms=1,
            elapsed_ms=1,
            amount_micros=compute_amount_micros(terms.rates, usage),
            output_hash=extend_output_hash(start.task_request.hash, tokens),
            active_tasks=0,
            max_tokens=terms.max_tokens,
            finish=FinishReason.UNSPECIFIED,
        )
        return sign(signer, replace(receipt, **changes))


@pytest.fixture
def world() -> World:
    auctioneer, witness, provider, account = (Identity(bytes([n]) * 32) for n in (1, 2, 3, 4))
    channel = Channel(wire.WireSigner(account, CHAIN), ChannelId(77))
    assert channel.account == AccountId(account.node_id)
    term = TermInfo(
        hub=HUB,
        number=5,
        auctioneer=auctioneer.node_id,
        auctioneer_hpke_key=auctioneer.derive_hpke_key().public_key().public_bytes_raw(),
        witness=witness.node_id,
        witness_hpke_key=witness.derive_hpke_key().public_key().public_bytes_raw(),
    )
    return World(auctioneer, witness, provider, account, channel, term)


@pytest.fixture(name="sign")
def sign_fixture() -> Any:
    """Sign a message for an identity."""
    return sign
