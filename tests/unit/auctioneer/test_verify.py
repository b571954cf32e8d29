"""Re-checking transcripts: an honest one passes, each corruption is refused for what it is.

Source: docs/spec/round.md §3 (what a verifier checks, in its order); design §4 step 5, §5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from auctioneer.books import TermBooks
from auctioneer.clear_round import compute_round_valuation
from auctioneer.mechanism import clear, encode_clearing
from auctioneer.mechanism.errors import (
    CapacityExceededError,
    ComplementarySlacknessError,
    PriceNotLeastError,
    WrongBonusError,
    WrongSurchargeError,
    WrongWelfareError,
)
from auctioneer.outcomes import derive_outcomes
from auctioneer.predictors.errors import WrongModelError
from auctioneer.predictors.first import FIRST_MODEL
from auctioneer.verify import verify_transcript
from iemas import wire
from iemas.core.auction import Allocation, Transcript
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidTranscriptError
from iemas.core.merkle import compute_root
from iemas.core.params import MarketParams
from iemas.core.types import Prices, UnmatchedReason
from iemas.ledger.records import TermKey
from iemas.testing.builders import make_capability, make_stamp
from tests.unit.auctioneer.round_bench import RoundBench, decode_bid

Corruption = Callable[[RoundBench], Signed[Transcript]]


@pytest.fixture
def cleared(bench: RoundBench) -> RoundBench:
    """Three tasks for three slots of two providers, one of them dearer: one slot is scarce."""
    bench.add_provider("node-1", slots=1)
    bench.add_provider("node-2", slots=1, ask=Prices(2_000_000, 1_000_000, 2_000_000))
    bench.clear(bench.seal(), bench.seal("bob"), bench.seal(max_tokens=20))
    return bench


def get_transcript(bench: RoundBench) -> Transcript:
    return bench.transcripts[-1].message


def change_task(bench: RoundBench, index: int = 0, **changes: Any) -> Signed[Transcript]:
    tasks = list(get_transcript(bench).tasks)
    tasks[index] = replace(tasks[index], **changes)
    return bench.forge(tasks=tuple(tasks))


def change_provider(bench: RoundBench, index: int = 0, **changes: Any) -> Signed[Transcript]:
    providers = list(get_transcript(bench).providers)
    providers[index] = replace(providers[index], **changes)
    return bench.forge(providers=tuple(providers))


def change_clearing(bench: RoundBench, **changes: Any) -> Signed[Transcript]:
    return bench.forge(clearing=replace(get_transcript(bench).clearing, **changes))


def change_close(bench: RoundBench, **changes: Any) -> Signed[Transcript]:
    """Sign another close, and have the witness release it: both collude."""
    old = get_transcript(bench)
    close = bench.chain.sign(bench.auctioneer_name, replace(old.close.message, **changes))
    released = replace(old.release.message, close_hash=close.hash)
    return bench.forge(close=close, release=bench.chain.sign(bench.witness_name, released))


def change_load(bench: RoundBench, *, signer: str | None = None, **changes: Any) -> Any:
    """Replace the first provider's load report by one that it signed itself."""
    provider = get_transcript(bench).providers[0]
    name = bench.chain.get_name(provider.load.message.stamp.node_id)
    load = bench.chain.sign(signer or name, replace(provider.load.message, **changes))
    return change_provider(bench, load=load)


# --- honest rounds -------------------------------------------------------------------------------


def test_an_honest_transcript_passes(cleared: RoundBench) -> None:
    cleared.verify()


def test_a_verifier_derives_what_the_auctioneer_signed(cleared: RoundBench) -> None:
    derived = derive_outcomes(cleared.verify(), TermBooks(), cleared.params)
    signed = [
        a.message.allocation or a.message.unmatched
        for a in cleared.answers
        if hasattr(a.message, "allocation")
    ]
    assert [outcome.message for outcome in signed] == list(derived)
    assert sum(isinstance(outcome, Allocation) for outcome in derived) == 2


def test_every_round_of_a_term_passes_with_its_books(bench: RoundBench) -> None:
    for _ in range(3):
        bench.clear(bench.seal(), bench.seal("bob"))
    books = bench.follow()
    assert books.get_holds() == bench.auctioneer.books.get_holds()


def test_rounds_with_bids_that_took_no_part_pass(bench: RoundBench) -> None:
    allowance = bench.market.get_allowance(bench.chain.get_id("alice"), 0)
    spoiled = bench.seal("bob")
    sealed = replace(spoiled.submission.sealed_bid.message, ciphertext=b"")
    submission = replace(spoiled.submission, sealed_bid=bench.chain.sign("bob", sealed))
    bench.clear(
        replace(spoiled, submission=submission),
        bench.seal(reservation_micros=allowance + 1),
        bench.seal(),
    )
    bench.verify()


def test_a_round_without_providers_passes() -> None:
    bench = RoundBench()
    bench.clear(bench.seal())
    bench.verify()


def test_a_transcript_passes_after_a_round_trip_over_the_wire(cleared: RoundBench) -> None:
    data = wire.encode_signed(cleared.transcripts[-1])
    cleared.verify(wire.decode_signed(Transcript, data))


# --- one corruption, one refusal -----------------------------------------------------------------


def overfill_a_provider(bench: RoundBench) -> Signed[Transcript]:
    return change_clearing(bench, assignment=(0, 0, 0))


def raise_welfare(bench: RoundBench) -> Signed[Transcript]:
    welfare = get_transcript(bench).clearing.welfare_micros
    return change_clearing(bench, welfare_micros=welfare + 1)


def raise_price(bench: RoundBench) -> Signed[Transcript]:
    prices = get_transcript(bench).clearing.slot_prices_micros
    return change_clearing(bench, slot_prices_micros=tuple(price + 1 for price in prices))


def lower_price(bench: RoundBench) -> Signed[Transcript]:
    prices = get_transcript(bench).clearing.slot_prices_micros
    return change_clearing(
        bench, slot_prices_micros=(0,) * len(prices), predecessor_tasks=(-1,) * len(prices)
    )


def drop_predecessors(bench: RoundBench) -> Signed[Transcript]:
    prices = get_transcript(bench).clearing.slot_prices_micros
    assert any(prices)
    return change_clearing(bench, predecessor_tasks=(-1,) * len(prices))


def raise_bonus(bench: RoundBench) -> Signed[Transcript]:
    bonuses = get_transcript(bench).clearing.vcg_bonuses_micros
    return change_clearing(bench, vcg_bonuses_micros=(bonuses[0] + 1, *bonuses[1:]))


def overcharge(bench: RoundBench) -> Signed[Transcript]:
    surcharges = get_transcript(bench).clearing.surcharges_micros
    return change_clearing(bench, surcharges_micros=(surcharges[0] + 1, *surcharges[1:]))


def leave_bonuses_out(bench: RoundBench) -> Signed[Transcript]:
    return change_clearing(bench, vcg_bonuses_micros=())


def drop_bid_silently(bench: RoundBench) -> Signed[Transcript]:
    old = get_transcript(bench)
    shares = replace(old.release.message, shares=old.release.message.shares[:-1])
    return bench.forge(tasks=old.tasks[:-1], release=bench.chain.sign(bench.witness_name, shares))


def drop_bid_as_undecryptable(bench: RoundBench) -> Signed[Transcript]:
    return change_task(bench, dropped=UnmatchedReason.UNDECRYPTABLE)


def drop_bid_as_unfunded(bench: RoundBench) -> Signed[Transcript]:
    return change_task(bench, dropped=UnmatchedReason.UNFUNDED)


def wrong_auctioneer_share(bench: RoundBench) -> Signed[Transcript]:
    return change_task(bench, auctioneer_share=bytes(32))


def wrong_witness_share(bench: RoundBench) -> Signed[Transcript]:
    return change_task(bench, witness_share=bytes(32))


def wrong_share_in_release_too(bench: RoundBench) -> Signed[Transcript]:
    old = get_transcript(bench)
    shares = (bytes(32), *old.release.message.shares[1:])
    release = bench.chain.sign(bench.witness_name, replace(old.release.message, shares=shares))
    tasks = (replace(old.tasks[0], witness_share=bytes(32)), *old.tasks[1:])
    return bench.forge(release=release, tasks=tasks)


def short_share(bench: RoundBench) -> Signed[Transcript]:
    return change_task(bench, auctioneer_share=b"short")


def huge_matched_blocks(bench: RoundBench) -> Signed[Transcript]:
    return change_task(bench, matched_blocks=(2**64 - 1, 0))


def reorder_bids(bench: RoundBench) -> Signed[Transcript]:
    old = get_transcript(bench)
    return bench.forge(tasks=tuple(reversed(old.tasks)))


def wrong_ask(bench: RoundBench) -> Signed[Transcript]:
    return change_provider(bench, ask=Prices(1, 1, 1))


def more_slots_than_reported(bench: RoundBench) -> Signed[Transcript]:
    return change_provider(bench, free_slots=2)


def stale_load(bench: RoundBench) -> Signed[Transcript]:
    stamp = get_transcript(bench).providers[0].load.message.stamp
    age_ms = bench.params.report_max_age_ms + bench.params.clock_tolerance_ms + 1
    return change_load(bench, stamp=replace(stamp, issued_at_ms=bench.now_ms - age_ms))


def future_load(bench: RoundBench) -> Signed[Transcript]:
    stamp = get_transcript(bench).providers[0].load.message.stamp
    at_ms = bench.now_ms + bench.params.clock_tolerance_ms + 1
    return change_load(bench, stamp=replace(stamp, issued_at_ms=at_ms))


def forged_load(bench: RoundBench) -> Signed[Transcript]:
    return change_load(bench, signer=bench.auctioneer_name + " in disguise")


def load_of_another_node(bench: RoundBench) -> Signed[Transcript]:
    other = get_transcript(bench).providers[1].load
    return change_provider(bench, load=other)


def load_of_another_incarnation(bench: RoundBench) -> Signed[Transcript]:
    stamp = get_transcript(bench).providers[0].load.message.stamp
    return change_load(bench, stamp=replace(stamp, incarnation=stamp.incarnation - 1))


def expired_capability(bench: RoundBench) -> Signed[Transcript]:
    old = get_transcript(bench).providers[0].capability.message
    signer = bench.chain.get_signer(bench.chain.get_name(old.stamp.node_id))
    stamp = make_stamp(signer, 1, now_ms=bench.now_ms - 62_001)
    return change_provider(bench, capability=signer.sign(make_capability(stamp, slots=1)))


def provider_of_another_hub(bench: RoundBench) -> Signed[Transcript]:
    old = get_transcript(bench).providers[0].capability.message
    signer = bench.chain.get_signer(bench.chain.get_name(old.stamp.node_id))
    return change_provider(bench, capability=signer.sign(replace(old, hub="another")))


def bend_own_row(bench: RoundBench) -> Signed[Transcript]:
    """Predict one provider a microsecond a token faster than was decided."""
    first, *others = get_transcript(bench).model.rows
    return clear_again(bench, rows=(replace(first, token_us=first.token_us - 1), *others))


def drop_a_row(bench: RoundBench) -> Signed[Transcript]:
    return clear_again(bench, rows=get_transcript(bench).model.rows[1:])


def bend_the_prior(bench: RoundBench) -> Signed[Transcript]:
    prior = get_transcript(bench).model.prior
    return clear_again(bench, prior=replace(prior, ttft_base_us=prior.ttft_base_us + 1))


def bend_a_scenario(bench: RoundBench) -> Signed[Transcript]:
    first, *others = get_transcript(bench).model.scenarios
    return clear_again(bench, scenarios=(replace(first, output_tokens=51), *others))


def clear_again(bench: RoundBench, **changes: Any) -> Signed[Transcript]:
    """Clear the last round again under a changed model: but for that all is right."""
    old, verified = get_transcript(bench), bench.verify()
    model = replace(old.model, **changes)
    matched = [old.tasks[n].matched_blocks for n in verified.tasks]
    valuation, slots = compute_round_valuation(
        verified.bids, old.providers, matched, model, bench.params
    )
    clearing = encode_clearing(clear(valuation.welfare_micros, slots, mode=bench.params.mode))
    return bench.forge(model=model, clearing=clearing)


def reorder_providers(bench: RoundBench) -> Signed[Transcript]:
    return bench.forge(providers=tuple(reversed(get_transcript(bench).providers)))


def provider_twice(bench: RoundBench) -> Signed[Transcript]:
    first = get_transcript(bench).providers[0]
    return bench.forge(providers=(first, first))


def another_witness(bench: RoundBench) -> Signed[Transcript]:
    return bench.forge(witness=bench.chain.get_node("bob"))


def another_auctioneer(bench: RoundBench) -> Signed[Transcript]:
    return bench.forge(auctioneer=bench.chain.get_node("bob"))


def signed_by_another(bench: RoundBench) -> Signed[Transcript]:
    return bench.chain.sign("bob", get_transcript(bench))


def unknown_term(bench: RoundBench) -> Signed[Transcript]:
    return bench.forge(term=99)


def release_by_another(bench: RoundBench) -> Signed[Transcript]:
    return bench.forge(release=bench.chain.sign("bob", get_transcript(bench).release.message))


def release_of_another_close(bench: RoundBench) -> Signed[Transcript]:
    release = replace(get_transcript(bench).release.message, close_hash=bytes(32))
    return bench.forge(release=bench.chain.sign(bench.witness_name, release))


def wrong_root(bench: RoundBench) -> Signed[Transcript]:
    return change_close(bench, bids_root=compute_root([bytes(32)]))


def wrong_count(bench: RoundBench) -> Signed[Transcript]:
    return change_close(bench, bid_count=2)


def close_of_another_round(bench: RoundBench) -> Signed[Transcript]:
    return change_close(bench, round=8)


def marked_unsealed(bench: RoundBench) -> Signed[Transcript]:
    return change_close(bench, sealed=False)


def cleared_before_it_closed(bench: RoundBench) -> Signed[Transcript]:
    return change_close(bench, closed_at_ms=bench.now_ms + 1)


def another_mode(bench: RoundBench) -> Signed[Transcript]:
    return change_clearing(bench, mode="threshold")


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (overfill_a_provider, "slots and got 3"),
        (raise_welfare, "matched pairs sum to"),
        (raise_price, "does not force its slot price"),
        (lower_price, "gain more elsewhere"),
        (drop_predecessors, "predecessor -1"),
        (raise_bonus, "adds"),
        (leave_bonuses_out, "vcg_bonuses_micros must have 2 entries"),
        (drop_bid_silently, "not those under the close's root"),
        (drop_bid_as_undecryptable, "a valid bid was dropped"),
        (drop_bid_as_unfunded, "against their allowances"),
        (wrong_auctioneer_share, "not the one that its bid commits to"),
        (wrong_witness_share, "not those released"),
        (wrong_share_in_release_too, "not the one that its bid commits to"),
        (short_share, "not 32 bytes"),
        (huge_matched_blocks, "more matched blocks than tokens"),
        (reorder_bids, "not those under the close's root"),
        (wrong_ask, "not one on the ledger"),
        (more_slots_than_reported, "more slots than it has"),
        (stale_load, "ms old"),
        (future_load, "ms old"),
        (forged_load, "is signed by"),
        (load_of_another_node, "is signed by"),
        (load_of_another_incarnation, "different incarnations"),
        (expired_capability, "ms old"),
        (provider_of_another_hub, "not of this hub"),
        (reorder_providers, "order of their ranks"),
        (provider_twice, "order of their ranks"),
        (another_witness, "another auctioneer or witness"),
        (another_auctioneer, "another auctioneer or witness"),
        (signed_by_another, "is signed by"),
        (unknown_term, "no such open term"),
        (release_by_another, "is signed by"),
        (release_of_another_close, "another close's"),
        (wrong_root, "not those under the close's root"),
        (wrong_count, "not those under the close's root"),
        (close_of_another_round, "another round's"),
        (marked_unsealed, "wrongly marked"),
        (cleared_before_it_closed, "before it closed"),
        (another_mode, "another mode than genesis"),
    ],
)
def test_a_corruption_is_refused_by_name(
    cleared: RoundBench, corrupt: Corruption, reason: str
) -> None:
    forged = corrupt(cleared)
    assert forged.message != get_transcript(cleared) or forged.signer_id != cleared.term.auctioneer
    with pytest.raises(InvalidTranscriptError, match=reason):
        cleared.verify(forged)


@pytest.mark.parametrize(
    ("corrupt", "error"),
    [
        (overfill_a_provider, CapacityExceededError),
        (raise_welfare, WrongWelfareError),
        (lower_price, ComplementarySlacknessError),
        (drop_predecessors, PriceNotLeastError),
        (raise_bonus, WrongBonusError),
        (overcharge, WrongSurchargeError),
    ],
)
def test_a_wrong_clearing_is_refused_by_the_mechanism(
    cleared: RoundBench, corrupt: Corruption, error: type[InvalidTranscriptError]
) -> None:
    with pytest.raises(error):
        cleared.verify(corrupt(cleared))


@pytest.mark.parametrize("corrupt", [bend_own_row, drop_a_row, bend_the_prior, bend_a_scenario])
def test_a_round_under_another_model_than_decided_is_refused(
    cleared: RoundBench, corrupt: Corruption
) -> None:
    with pytest.raises(WrongModelError):
        cleared.verify(corrupt(cleared))


def test_without_a_decision_only_the_first_model_holds(cleared: RoundBench) -> None:
    state, key = cleared.chain.state, TermKey(cleared.term.hub, cleared.term.number)
    state.terms[key] = replace(state.terms[key], model=None)
    with pytest.raises(WrongModelError):
        cleared.verify()
    changes = {name: getattr(FIRST_MODEL, name) for name in ("scenarios", "prior", "rows")}
    cleared.decide_model(get_transcript(cleared).model)
    forged = clear_again(cleared, **changes)
    state.terms[key] = replace(state.terms[key], model=None)
    cleared.verify(forged)


def test_a_worse_assignment_is_refused(bench: RoundBench) -> None:
    """Leaving the dearer provider's task to the cheaper one is not optimal any more."""
    bench.add_provider("node-1", slots=1)
    bench.add_provider("node-2", slots=1, ask=Prices(2_000_000, 1_000_000, 2_000_000))
    bench.clear(bench.seal())
    (chosen,) = get_transcript(bench).clearing.assignment
    dear = 1 - chosen
    with pytest.raises(InvalidTranscriptError):
        bench.verify(change_clearing(bench, assignment=(dear,)))


def test_a_transcript_of_another_chain_is_refused(cleared: RoundBench) -> None:
    other = RoundBench(params=MarketParams(term_ms=9_999))
    other.chain.chain_id = "elsewhere"
    forged = other.chain.sign(cleared.auctioneer_name, get_transcript(cleared))
    with pytest.raises(InvalidTranscriptError, match="does not hold"):
        cleared.verify(forged)


def test_an_unfunded_bid_that_was_admitted_is_refused(bench: RoundBench) -> None:
    """The verifier counts what the term's earlier rounds reserved."""
    bench.clear(bench.seal())
    books = TermBooks()
    books._reserved[bench.chain.get_id("alice")] = 99_999
    with pytest.raises(InvalidTranscriptError, match="against their allowances"):
        bench.verify(books=books)


def test_an_ask_that_was_replaced_within_the_term_still_holds(bench: RoundBench) -> None:
    bench.clear(bench.seal())
    bench.add_provider("node-1", ask=Prices(3_000_000, 3_000_000, 3_000_000))
    bench.verify()


def test_an_ask_of_a_later_term_does_not_hold(bench: RoundBench) -> None:
    bench.clear(bench.seal())
    bench.chain.end_term()
    later = Prices(3_000_000, 3_000_000, 3_000_000)
    bench.add_provider("node-1", ask=later)
    index = next(
        n for n, provider in enumerate(get_transcript(bench).providers) if provider.ask != later
    )
    with pytest.raises(InvalidTranscriptError, match="not one on the ledger"):
        bench.verify(change_provider(bench, index, ask=later))


# --- what a verifier cannot see (round.md §5) ----------------------------------------------------


def test_matched_blocks_are_the_bidders_to_check(bench: RoundBench) -> None:
    """Transcripts carry no hash chains, so nobody else can tell that a count is wrong.

    The bidder can: its allocation names `cached_tokens`, it knows its own chain, and the digest
    that the transcript names is public. The one bound that holds for all is that the allocation
    shows no more cached tokens than whole blocks of the prompt.
    """
    bench.clear(bench.seal())
    tasks = tuple(replace(task, matched_blocks=(2, 2)) for task in get_transcript(bench).tasks)
    forged = bench.forge(tasks=tasks)
    old = get_transcript(bench)
    # The clearing must be the right one for the forged counts, else the certificate shows it.
    bids = bench.verify().bids
    valuation, slots = compute_round_valuation(
        bids, old.providers, [(2, 2)], old.model, bench.params
    )
    clearing = encode_clearing(clear(valuation.welfare_micros, slots, mode=bench.params.mode))
    bench.verify(bench.forge(tasks=tasks, clearing=clearing))
    with pytest.raises(InvalidTranscriptError):
        bench.verify(forged)


def test_a_provider_that_was_left_out_is_not_missed(bench: RoundBench) -> None:
    """Which reports an auctioneer had is nobody's to prove: it may leave a provider out."""
    del bench.market.views["node-2"]
    bench.clear(bench.seal())
    bench.verify()
    assert len(get_transcript(bench).providers) == 1


def test_fewer_slots_than_reported_pass(bench: RoundBench) -> None:
    """Allocations that no load report has shown yet count as taken."""
    bench.clear(bench.seal())
    bench.clear(bench.seal())
    slots = [sum(p.free_slots for p in t.message.providers) for t in bench.transcripts]
    assert slots == [8, 7]
    for transcript in bench.transcripts:
        bench.verify(transcript)


def test_funding_is_only_checked_by_who_followed_the_term(bench: RoundBench) -> None:
    bench.clear(bench.seal())
    verify_transcript(
        drop_bid_as_unfunded_and_clear_nothing(bench),
        ledger=bench.chain.state,
        chain_id=bench.chain.chain_id,
        params=bench.params,
        decode_bid=decode_bid,
    )


def drop_bid_as_unfunded_and_clear_nothing(bench: RoundBench) -> Signed[Transcript]:
    old = get_transcript(bench)
    n = len(old.providers)
    clearing = replace(
        old.clearing,
        assignment=(),
        welfare_micros=0,
        slot_prices_micros=(0,) * n,
        predecessor_tasks=(-1,) * n,
        vcg_bonuses_micros=(0,) * n,
        surcharges_micros=(),
    )
    tasks = (replace(old.tasks[0], dropped=UnmatchedReason.UNFUNDED),)
    return bench.forge(tasks=tasks, clearing=clearing)


def test_load_reports_name_their_slots(bench: RoundBench) -> None:
    """A provider's free slots are its own, less those that run."""
    bench.add_provider("node-1", slots=3, load={"active": (bytes(32),)})
    bench.clear(bench.seal())
    free = {
        bench.chain.get_name(p.capability.message.stamp.node_id): p.free_slots
        for p in get_transcript(bench).providers
    }
    assert free == {"node-1": 2, "node-2": 4}
