"""Re-checking a round from its transcript: what every node does with every round.

`verify_transcript` needs the transcript, the ledger and nothing else: no solver (the clearing's
certificate proves itself) and no trust in the auctioneer. Its checks stand in the order in which
the round happened. What it cannot see is named in docs/spec/round.md. Source: design §4 step 5,
§5 (certificate), §6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from auctioneer.clear_round import choose_funded, compute_provider_rank, compute_round_valuation
from auctioneer.mechanism import decode_clearing, verify
from auctioneer.opening import BidDecoder, open_bid
from auctioneer.outcomes import ClearedRound
from auctioneer.predictors.errors import WrongModelError
from auctioneer.predictors.first import FIRST_MODEL
from iemas.core.auction import MAX_TOKENS, Bid, ProviderInput, TaskInput, Transcript
from iemas.core.election import Term
from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import InvalidInputError, InvalidTranscriptError
from iemas.core.merkle import compute_root
from iemas.core.params import MarketParams
from iemas.core.report import ReportStamp
from iemas.core.sealing import SHARE_BYTES, compute_share_hash
from iemas.core.types import AccountId, Hash, HubId, NodeId, Prices, UnmatchedReason, short_id


class LedgerView(Protocol):
    """What a verifier reads of the ledger."""

    def get_term_by_number(self, hub: HubId, number: int) -> Term | None:
        """Give a term that can still be settled, or None."""

    def get_asks_of_term(self, hub: HubId, node: NodeId, term: int) -> tuple[Prices, ...]:
        """Give every ask that stood for a provider at some time in a term."""

    def get_allowance(self, hub: HubId, account: AccountId, term: int) -> int:
        """Give what an account's allocations in a term may draw on."""

    def get_model_of_term(self, hub: HubId, term: int) -> Hash | None:
        """Give the hash of the QoS model that a term clears under; None before any was decided."""


def require_valid(condition: bool, message: str, **operands: object) -> None:  # noqa: FBT001
    """Raise InvalidTranscriptError unless the condition holds."""
    if not condition:
        raise InvalidTranscriptError(message, **operands)


def verify_transcript(
    signed: Signed[Transcript],
    *,
    ledger: LedgerView,
    chain_id: str,
    params: MarketParams,
    decode_bid: BidDecoder,
    get_reserved: Callable[[AccountId], int] | None = None,
) -> ClearedRound:
    """Re-check a round; give what follows from it, for `derive_outcomes`.

    `get_reserved` gives what each account had reserved in the term before this round, if the
    verifier followed all of the term's rounds; without it, funding is not re-checked.
    Raises: InvalidTranscriptError naming what is wrong.
    """
    transcript = signed.message
    try:
        term = _check_term(signed, ledger, chain_id)
        _check_close(transcript, term, chain_id)
        bids = [_check_task(transcript, task, chain_id, decode_bid) for task in transcript.tasks]
        _check_model(transcript, ledger)
        _check_providers(transcript, ledger, chain_id, params)
        if get_reserved is not None:
            _check_funding(transcript, bids, ledger, get_reserved)
        return _check_clearing(signed, bids, params)
    except InvalidTranscriptError:
        raise
    except InvalidInputError as error:
        raise InvalidTranscriptError(
            f"round {transcript.round} of term {transcript.term}: {error}"
        ) from error


def _check_term(signed: Signed[Transcript], ledger: LedgerView, chain_id: str) -> Term:
    transcript = signed.message
    term = ledger.get_term_by_number(transcript.hub, transcript.term)
    if term is None:
        raise InvalidTranscriptError("the ledger knows no such open term", term=transcript.term)
    verify_signed(signed, chain_id, expected_signer=term.auctioneer)
    witness = term.witness if term.witness is not None else term.auctioneer
    require_valid(
        transcript.auctioneer == term.auctioneer and transcript.witness == witness,
        "the transcript names another auctioneer or witness than the ledger",
    )
    return term


def _check_close(transcript: Transcript, term: Term, chain_id: str) -> None:
    close, release = transcript.close.message, transcript.release.message
    verify_signed(transcript.close, chain_id, expected_signer=transcript.auctioneer)
    verify_signed(transcript.release, chain_id, expected_signer=transcript.witness)
    place = (transcript.hub, transcript.term, transcript.round)
    require_valid((close.hub, close.term, close.round) == place, "the close is another round's")
    require_valid(release.close_hash == transcript.close.hash, "the release is another close's")
    require_valid(
        close.sealed == (term.witness is not None), "the close is wrongly marked (un)sealed"
    )
    hashes = [task.sealed_bid.hash for task in transcript.tasks]
    require_valid(
        close.bid_count == len(hashes) and close.bids_root == compute_root(hashes),
        "the bids are not those under the close's root",
    )
    require_valid(len(set(hashes)) == len(hashes), "a bid stands in the round twice")
    require_valid(
        release.shares == tuple(task.witness_share for task in transcript.tasks),
        "the witness's shares are not those released",
    )
    require_valid(
        transcript.cleared_at_ms >= close.closed_at_ms, "the round cleared before it closed"
    )


def _check_task(
    transcript: Transcript, task: TaskInput, chain_id: str, decode_bid: BidDecoder
) -> Bid | UnmatchedReason:
    """Check a sealed bid and open it again."""
    sealed = task.sealed_bid.message
    verify_signed(task.sealed_bid, chain_id, expected_signer=sealed.account)
    require_valid(
        (sealed.hub, sealed.term) == (transcript.hub, transcript.term), "a bid of another term"
    )
    require_valid(
        len(task.auctioneer_share) == len(task.witness_share) == SHARE_BYTES,
        f"a key share is not {SHARE_BYTES} bytes",
    )
    require_valid(
        max(task.matched_blocks, default=0) <= MAX_TOKENS, "more matched blocks than tokens"
    )
    require_valid(
        compute_share_hash(task.auctioneer_share) == sealed.auctioneer_share_hash
        and compute_share_hash(task.witness_share) == sealed.witness_share_hash,
        "a key share is not the one that its bid commits to",
        bid_hash=task.sealed_bid.hash,
    )
    bid = open_bid(chain_id, sealed, task.auctioneer_share, task.witness_share, decode_bid)
    if isinstance(bid, UnmatchedReason):
        require_valid(task.dropped is bid, "a bid that does not open took part")
    else:
        require_valid(
            task.dropped in (UnmatchedReason.UNSPECIFIED, UnmatchedReason.UNFUNDED),
            "a valid bid was dropped",
            bid_hash=task.sealed_bid.hash,
        )
    return bid


def _check_model(transcript: Transcript, ledger: LedgerView) -> None:
    """Check that everything is predicted from what the validators decided, and nothing else."""
    decided = ledger.get_model_of_term(transcript.hub, transcript.term)
    expected = FIRST_MODEL.hash if decided is None else decided
    if transcript.model.hash != expected:
        raise WrongModelError(
            "the round was cleared under another QoS model than its term's",
            model_hash=transcript.model.hash,
            expected_hash=expected,
        )


def _check_providers(
    transcript: Transcript, ledger: LedgerView, chain_id: str, params: MarketParams
) -> None:
    root = transcript.close.message.bids_root
    ranks = []
    for provider in transcript.providers:
        node_id = NodeId(provider.capability.message.stamp.node_id)
        verify_signed(provider.capability, chain_id, expected_signer=node_id)
        verify_signed(provider.load, chain_id, expected_signer=node_id)
        _check_provider(transcript, provider, ledger, params)
        ranks.append(compute_provider_rank(root, node_id))
    require_valid(
        ranks == sorted(set(ranks)), "providers are not in the order of their ranks, each once"
    )


def _check_provider(
    transcript: Transcript, provider: ProviderInput, ledger: LedgerView, params: MarketParams
) -> None:
    capability, load = provider.capability.message, provider.load.message
    node_id = capability.stamp.node_id
    name = short_id(node_id)
    require_valid(load.stamp.node_id == node_id, f"{name}'s load report is another node's")
    require_valid(
        load.stamp.incarnation == capability.stamp.incarnation,
        f"{name}'s reports are of different incarnations",
    )
    require_valid(capability.hub == transcript.hub, f"{name} is not of this hub")
    _check_age(transcript, capability.stamp, capability.stamp.ttl_ms, params)
    _check_age(transcript, load.stamp, params.report_max_age_ms, params)
    asks = ledger.get_asks_of_term(transcript.hub, node_id, transcript.term)
    require_valid(provider.ask in asks, f"{name}'s ask is not one on the ledger")
    free_slots = min(capability.slots, load.slots) - len(load.active)
    require_valid(
        provider.free_slots <= max(0, free_slots), f"{name} was given more slots than it has"
    )


def _check_age(
    transcript: Transcript, stamp: ReportStamp, max_age_ms: int, params: MarketParams
) -> None:
    age_ms = transcript.cleared_at_ms - stamp.issued_at_ms
    require_valid(
        -params.clock_tolerance_ms <= age_ms <= max_age_ms + params.clock_tolerance_ms,
        f"a report of {short_id(stamp.node_id)} was {age_ms} ms old",
        age_ms=age_ms,
    )


def _check_funding(
    transcript: Transcript,
    bids: list[Bid | UnmatchedReason],
    ledger: LedgerView,
    get_reserved: Callable[[AccountId], int],
) -> None:
    def get_funds(account: AccountId) -> int:
        allowance = ledger.get_allowance(transcript.hub, account, transcript.term)
        return allowance - get_reserved(account)

    accounts = [AccountId(task.sealed_bid.message.account) for task in transcript.tasks]
    dropped = choose_funded(bids, accounts, get_funds)
    require_valid(
        dropped == [task.dropped for task in transcript.tasks],
        "bids were dropped or admitted against their allowances",
    )


def _check_clearing(
    signed: Signed[Transcript], bids: list[Bid | UnmatchedReason], params: MarketParams
) -> ClearedRound:
    """Recompute the valuation and check the clearing's certificate against it."""
    transcript = signed.message
    taking_part = [
        n for n, task in enumerate(transcript.tasks) if task.dropped is UnmatchedReason.UNSPECIFIED
    ]
    open_bids = [bid for n in taking_part if isinstance(bid := bids[n], Bid)]
    matched = [transcript.tasks[n].matched_blocks for n in taking_part]
    valuation, slots = compute_round_valuation(
        open_bids, transcript.providers, matched, transcript.model, params
    )
    require_valid(transcript.clearing.mode == params.mode, "cleared in another mode than genesis")
    clearing = decode_clearing(transcript.clearing, valuation.welfare_micros, slots)
    verify(valuation.welfare_micros, slots, clearing)
    return ClearedRound(signed, open_bids, taking_part, valuation, clearing)
