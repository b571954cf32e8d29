"""Bids, reports, allocations and tasks with ordinary values, signed by keys derived from names.

What a test does not name is the default here; every number is small enough to check by hand. A
token costs one micro-credit at the default rates. The ledger behind them is
`iemas.testing.chain.LedgerChain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from iemas.client._bidding import PendingBid, TermInfo, make_bid_submission
from iemas.client._channel import Channel
from iemas.client._metering import TaskMeter
from iemas.core.auction import (
    N_SCENARIOS,
    Allocation,
    Bid,
    ProviderQos,
    QosModel,
    Scenario,
)
from iemas.core.election import Term
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed, Signer
from iemas.core.execution import TaskPayload
from iemas.core.identity import Identity
from iemas.core.report import CacheDigest, CapabilityReport, LoadReport, Report, ReportStamp
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import ID_BYTES, ChannelId, HashAlgorithm, Lateness, NodeId, Prices
from iemas.testing.chain import LedgerChain, make_identity

BLOCK_SIZE = 16
MODEL = "model"
ONE = 1_000_000
"""A micro-credit a token."""
RATES = Prices(ONE, ONE // 2, 2 * ONE)
ASK = Prices(ONE, ONE // 2, ONE)
BID_PRICES = Prices(4 * ONE, 4 * ONE, 4 * ONE)
INCARNATION = 1_700_000_000_000
NO_HASH = bytes(32)


def get_hpke_public_key(identity: Identity) -> bytes:
    """Give the raw public key that shares for this identity are sealed to."""
    return identity.derive_hpke_key().public_key().public_bytes_raw()


# --- reports -------------------------------------------------------------------------------------


def make_stamp(
    signer: Signer,
    sequence: int,
    *,
    now_ms: int,
    ttl_ms: int = 60_000,
    incarnation: int = INCARNATION,
) -> ReportStamp:
    """Make the stamp of a signer's own report."""
    return ReportStamp(signer.node_id, incarnation, sequence, now_ms, ttl_ms)


def make_capability(stamp: ReportStamp, **changes: Any) -> CapabilityReport:
    """Make the capability report of a provider with four slots."""
    values: dict[str, Any] = {
        "stamp": stamp,
        "public_address": "node:1",
        "peer_address": "node:2",
        "ca_certificate": b"",
        "hpke_public_key": NO_HASH,
        "software": "test",
        "hub": MODEL,
        "model": MODEL,
        "model_revision": "",
        "tokenizer_hash": NO_HASH,
        "block_size": BLOCK_SIZE,
        "hash_algorithm": HashAlgorithm.SHA256_CBOR,
        "context_tokens": 4096,
        "slots": 4,
        "kv_events": True,
        "hardware": "",
    }
    return CapabilityReport(**(values | changes))


def make_load(stamp: ReportStamp, **changes: Any) -> LoadReport:
    """Make the load report of an idle provider with four slots."""
    values: dict[str, Any] = {
        "stamp": stamp,
        "slots": 4,
        "active": (),
        "finished": (),
        "pending_prompt_tokens": 0,
    }
    return LoadReport(**(values | changes))


def make_digest(stamp: ReportStamp, blocks: bytes = b"") -> CacheDigest:
    """Make an exact digest of these packed block keys."""
    return CacheDigest(stamp, BLOCK_SIZE, estimated=False, blocks=blocks)


def make_reports(signer: Signer, *, now_ms: int, sequence: int = 1) -> tuple[Signed[Report], ...]:
    """Make one signed report of each kind, of an idle provider."""
    stamps = [make_stamp(signer, sequence + n, now_ms=now_ms) for n in range(3)]
    return (
        signer.sign(make_capability(stamps[0])),
        signer.sign(make_load(stamps[1])),
        signer.sign(make_digest(stamps[2])),
    )


def make_qos(provider: NodeId, **changes: Any) -> ProviderQos:
    """Make a model of a provider that takes 10 ms, and a millisecond a token."""
    values: dict[str, Any] = {
        "provider": provider,
        "samples": 10,
        "ttft_base_us": 10_000,
        "ttft_per_uncached_token_us": 10,
        "ttft_per_active_task_us": 0,
        "ttft_per_pending_token_us": 0,
        "ttft_sd_us": 0,
        "token_us": 1_000,
        "token_sd_us": 0,
    }
    return ProviderQos(**(values | changes))


def make_scenarios(
    output_tokens: Sequence[int] = (50,), *, deviations_ppm: Sequence[int] = (0,)
) -> tuple[Scenario, ...]:
    """Make scenarios of these lengths, by default all alike and without spread.

    Both are repeated until there are enough of them.
    """
    return tuple(
        Scenario(
            output_tokens[k % len(output_tokens)],
            deviations_ppm[k % len(deviations_ppm)],
            deviations_ppm[k % len(deviations_ppm)],
        )
        for k in range(N_SCENARIOS)
    )


def make_qos_model(
    *rows: ProviderQos, scenarios: tuple[Scenario, ...] | None = None, **prior: Any
) -> QosModel:
    """Make a model of these rows, in any order, and of a prior as `make_qos` has it."""
    return QosModel(
        scenarios if scenarios is not None else make_scenarios(),
        make_qos(NodeId(bytes(ID_BYTES)), **prior),
        tuple(sorted(rows, key=lambda row: row.provider)),
    )


# --- bids ----------------------------------------------------------------------------------------


def make_bid(**changes: Any) -> Bid:
    """Make a bid of 4 micro-credits a token for 100 tokens in and 50 out, no deadline."""
    values: dict[str, Any] = {
        "model": MODEL,
        "prompt_tokens": 100,
        "max_tokens": 50,
        "prices": BID_PRICES,
        "lateness": Lateness(),
    }
    values |= changes
    if "reservation_micros" not in values:
        values["reservation_micros"] = compute_worst_case_micros(
            values["prices"], values["prompt_tokens"], values["max_tokens"]
        )
    return Bid(**values)


def make_term_info(chain: LedgerChain, term: Term) -> TermInfo:
    """Make what a bidder must know of a term."""
    auctioneer = make_identity(chain.get_name(term.auctioneer))
    if term.witness is None:
        return TermInfo(term.hub, term.number, term.auctioneer, get_hpke_public_key(auctioneer))
    witness = make_identity(chain.get_name(term.witness))
    return TermInfo(
        term.hub,
        term.number,
        term.auctioneer,
        get_hpke_public_key(auctioneer),
        term.witness,
        get_hpke_public_key(witness),
    )


class Bidder:
    """An account's channel that seals bids; its entropy counts up, so bids repeat themselves.

    The HPKE seals draw an ephemeral key each, so their bytes do not.
    """

    def __init__(self, chain: LedgerChain, account: str, channel_id: int = 7) -> None:
        self.account = account
        self.channel = Channel(chain.get_signer(account), ChannelId(channel_id))
        self._chain = chain
        self._count = 0

    def seal(
        self, term: Term, *, bid: Bid | None = None, chain: bytes = b"", **changes: Any
    ) -> PendingBid:
        """Seal a bid for a term; `chain` are the prompt's packed block keys."""
        self._count += 1
        seed = (self.account.encode(), self.channel.channel_id.to_bytes(8, "big"))
        counter = self._count.to_bytes(8, "big")
        return make_bid_submission(
            bid if bid is not None else make_bid(**changes),
            chain,
            term=make_term_info(self._chain, term),
            channel=self.channel,
            chain_id=self._chain.chain_id,
            block_size=BLOCK_SIZE,
            entropy=compute_hash(b"A", *seed, counter) + compute_hash(b"W", *seed, counter),
        )


# --- tasks ---------------------------------------------------------------------------------------


def make_payload(prompt_tokens: int = 100, max_tokens: int = 50, **changes: Any) -> TaskPayload:
    """Make a prompt of ones with greedy sampling."""
    values: dict[str, Any] = {
        "token_ids": (1,) * prompt_tokens,
        "max_tokens": max_tokens,
        "cache_salt": "salt",
        "temperature_ppm": 0,
        "top_p_ppm": 1_000_000,
        "seed": -1,
        "stop": (),
        "ignore_eos": False,
    }
    return TaskPayload(**(values | changes))


class Buyer:
    """A requester at one provider: gets allocations from the term's auctioneer, meters tasks.

    Every allocation reserves its worst case on top of those before, as rounds do.
    """

    def __init__(
        self, chain: LedgerChain, account: str, provider: str, channel_id: int = 7
    ) -> None:
        self.account = account
        self.provider = provider
        self.channel = Channel(chain.get_signer(account), ChannelId(channel_id))
        self._chain = chain
        self._reserved: dict[int, int] = {}
        self._count = 0

    def allocate(
        self,
        *,
        term: int | None = None,
        signed_by: str | None = None,
        prompt_tokens: int = 100,
        max_tokens: int = 50,
        **changes: Any,
    ) -> Signed[Allocation]:
        """Get a signed allocation at `RATES`, good for ten seconds."""
        chain = self._chain
        number = chain.state.get_term(chain.hub).number if term is None else term
        rates = changes.get("rates", RATES)
        reserved = compute_worst_case_micros(rates, prompt_tokens, max_tokens)
        self._reserved[number] = self._reserved.get(number, 0) + reserved
        self._count += 1
        allocation = Allocation(
            hub=chain.hub,
            term=number,
            round=0,
            bid_hash=compute_hash(self.account.encode(), self._count.to_bytes(8, "big")),
            account=self.channel.account,
            channel=self.channel.channel_id,
            provider=chain.get_node(self.provider),
            prompt_tokens=prompt_tokens,
            cached_tokens=0,
            max_tokens=max_tokens,
            rates=rates,
            lateness=Lateness(),
            price_micros=reserved,
            reserved_micros=reserved,
            channel_reserved_micros=self._reserved[number],
            expected_ttft_ms=10,
            expires_at_ms=chain.now_ms + 10_000,
            transcript_hash=NO_HASH,
        )
        auctioneer = chain.get_auctioneer(number) if signed_by is None else signed_by
        signed: Signed[Allocation] = chain.sign(auctioneer, replace(allocation, **changes))
        return signed

    def make_meter(
        self,
        allocation: Signed[Allocation] | None = None,
        *,
        payload: TaskPayload | None = None,
        **changes: Any,
    ) -> TaskMeter:
        """Make the meter of a task, by default of a new allocation with these changes."""
        signed = allocation if allocation is not None else self.allocate(**changes)
        terms, params = signed.message, self._chain.genesis.params
        return TaskMeter(
            signed,
            payload if payload is not None else make_payload(terms.prompt_tokens, terms.max_tokens),
            channel=self.channel,
            chain_id=self._chain.chain_id,
            window_tokens=params.window_tokens,
            tolerance_ms=params.clock_tolerance_ms,
        )
