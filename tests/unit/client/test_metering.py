"""The meter: receipts that agree are signed, all others are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iemas.core.envelope import verify_signed
from iemas.core.errors import (
    InvalidAllocationError,
    InvalidReceiptError,
    InvalidSignatureError,
    LocalProtocolError,
    MalformedMessageError,
    RemoteProtocolError,
)
from iemas.core.execution import Busy, OutputChunk, compute_prompt_hash
from iemas.core.types import FinishReason, Lateness, Prices

CHAIN = "test-chain"
NOW_MS = 1_000_000
# 68 uncached at 0.5, 32 cached at 0.1, and 2 a token of output.
PROMPT_MICROS = (68 * 500_000 + 32 * 100_000) / 1_000_000


def deliver(meter: Any, count: int, *, at_ms: int = 0) -> None:
    meter.take_chunk(OutputChunk("x" * count, tuple(range(count))), now_ms=NOW_MS + at_ms)


def test_start_owes_prompt_and_first_window(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    assert start.total.message.total_micros == int(PROMPT_MICROS + 8 * 2)
    assert start.total.message.sequence == 1
    request = start.task_request.message
    assert request.prompt_hash == compute_prompt_hash(start.payload)
    assert request.requested_at_ms == NOW_MS
    for signed in (start.total, start.task_request):
        verify_signed(signed, CHAIN, expected_signer=world.account.node_id)


def test_first_window_is_no_longer_than_the_answer(world: Any) -> None:
    meter = world.meter()
    meter._window_tokens = 1_000
    assert meter.start(now_ms=NOW_MS).total.message.total_micros == int(PROMPT_MICROS + 40 * 2)


def test_honest_receipts_are_signed_up_to_the_last(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 4)
    first = meter.take_receipt(world.receipt(meter, start))
    # Receipt 0 promised more than four tokens: the running total keeps to it.
    assert first.total.message.total_micros == int(PROMPT_MICROS + 8 * 2)
    deliver(meter, 8)
    second = meter.take_receipt(world.receipt(meter, start))
    assert second.total.message.total_micros == int(PROMPT_MICROS + 12 * 2)
    assert second.acknowledgement.message.sequence == 2
    assert second.total.message.sequence == 3
    assert not meter.ended
    meter.take_receipt(world.receipt(meter, start, finish=FinishReason.STOP))
    assert meter.ended


def test_short_answer_owes_less_than_receipt_0(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 2)
    last = meter.take_receipt(world.receipt(meter, start, finish=FinishReason.STOP))
    assert last.total.message.total_micros == int(PROMPT_MICROS + 2 * 2)


@pytest.mark.parametrize(
    "change",
    [
        {"allocation_hash": b"a" * 32},
        {"account": b"a" * 32},
        {"provider": b"a" * 32},
        {"hub": "another"},
        {"term": 6},
        {"channel": 78},
        {"sequence": 2},
        {"max_tokens": 41},
        {"prompt_tokens": 101},
        {"output_tokens": 5},
        {"output_tokens": 3},
        {"output_hash": b"a" * 32},
        {"billed_cached_tokens": 31},
        {"cached_tokens": 33},
        {"amount_micros": 46},
        {"amount_micros": 44},
        {"prompt_late_ppm": 1_000_001},
        {"output_late_ppm_tokens": 4_000_001},
    ],
)
def test_receipt_that_disagrees_is_not_signed(world: Any, change: dict[str, Any]) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 4)
    total = world.channel.get_total_micros(world.term.hub, 5, world.provider.node_id)
    with pytest.raises(InvalidReceiptError) as caught:
        meter.take_receipt(world.receipt(meter, start, **change))
    assert caught.value.operands["field"]
    assert meter.receipt is None
    assert total == world.channel.get_total_micros(world.term.hub, 5, world.provider.node_id)


def test_receipt_of_another_signer_is_refused(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    with pytest.raises(InvalidSignatureError):
        meter.take_receipt(world.receipt(meter, start, signer=world.auctioneer))


def test_more_cached_than_shown_lowers_the_bill(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 1)
    receipt = world.receipt(
        meter, start, cached_tokens=96, billed_cached_tokens=96, finish=FinishReason.LENGTH
    )
    signed = meter.take_receipt(receipt)
    assert signed.total.message.total_micros == (4 * 500_000 + 96 * 100_000) // 1_000_000 + 2


def test_prompt_is_not_owed_before_a_token_came(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    with pytest.raises(InvalidReceiptError) as caught:
        meter.take_receipt(world.receipt(meter, start, finish=FinishReason.FAILED))
    assert caught.value.operands["field"] == "prompt_late_ppm"
    nothing = world.receipt(meter, start, finish=FinishReason.FAILED, prompt_late_ppm=0)
    assert meter.take_receipt(nothing).total.message.total_micros == 0


def test_late_tokens_are_not_paid_as_if_on_time(world: Any) -> None:
    """With a deadline of 1,000 ms and a tolerance of 100, nothing is due from 2,100 ms on."""
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 1, at_ms=1_100)
    deliver(meter, 1, at_ms=1_600)
    deliver(meter, 1, at_ms=2_100)
    with pytest.raises(InvalidReceiptError) as caught:
        meter.take_receipt(world.receipt(meter, start, output_late_ppm_tokens=1_500_001))
    assert caught.value.operands["field"] == "output_late_ppm_tokens"
    meter.take_receipt(world.receipt(meter, start, output_late_ppm_tokens=1_500_000))


def test_late_first_token_makes_the_prompt_worth_less(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 1, at_ms=1_600)
    with pytest.raises(InvalidReceiptError) as caught:
        meter.take_receipt(world.receipt(meter, start, output_late_ppm_tokens=0))
    assert caught.value.operands["field"] == "prompt_late_ppm"


def test_time_does_not_matter_without_a_deadline(world: Any) -> None:
    meter = world.meter(lateness=Lateness(0, 0))
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 3, at_ms=10_000_000)
    meter.take_receipt(world.receipt(meter, start))


def test_tokens_beyond_the_limit_are_refused(world: Any) -> None:
    meter = world.meter()
    meter.start(now_ms=NOW_MS)
    deliver(meter, 40)
    with pytest.raises(RemoteProtocolError, match="max_tokens"):
        deliver(meter, 1)


def test_nothing_may_follow_the_last_receipt(world: Any) -> None:
    meter = world.meter()
    start = meter.start(now_ms=NOW_MS)
    deliver(meter, 1)
    meter.take_receipt(world.receipt(meter, start, finish=FinishReason.STOP))
    with pytest.raises(RemoteProtocolError):
        deliver(meter, 1)
    with pytest.raises(RemoteProtocolError):
        meter.take_receipt(world.receipt(meter, start, finish=FinishReason.STOP))


def test_busy_owes_nothing(world: Any, sign: Any) -> None:
    meter = world.meter()
    meter.start(now_ms=NOW_MS)
    busy = Busy(meter.allocation.hash, world.provider.node_id, "full")
    with pytest.raises(InvalidSignatureError):
        meter.take_busy(sign(world.auctioneer, busy))
    with pytest.raises(RemoteProtocolError):
        meter.take_busy(sign(world.provider, replace(busy, allocation_hash=b"o" * 32)))
    meter.take_busy(sign(world.provider, busy))
    assert meter.ended
    assert world.channel.get_total_micros(world.term.hub, 5, world.provider.node_id) == 0


def test_who_delivers_is_not_busy(world: Any, sign: Any) -> None:
    meter = world.meter()
    meter.start(now_ms=NOW_MS)
    deliver(meter, 1)
    busy = Busy(meter.allocation.hash, world.provider.node_id, "full")
    with pytest.raises(RemoteProtocolError):
        meter.take_busy(sign(world.provider, busy))


@pytest.mark.parametrize(("delivered", "owed"), [(0, 0), (2, 41), (39, 53)])
def test_vanished_provider_is_owed_what_arrived_and_no_more_than_was_signed(
    world: Any, delivered: int, owed: int
) -> None:
    meter = world.meter()
    meter.start(now_ms=NOW_MS)
    if delivered:
        deliver(meter, delivered)
    meter.abandon()
    meter.abandon()
    assert meter.ended
    total = world.channel.get_total_micros(world.term.hub, 5, world.provider.node_id)
    assert total == min(owed, int(PROMPT_MICROS + 16))


def test_order_of_steps_is_kept(world: Any) -> None:
    meter = world.meter()
    with pytest.raises(LocalProtocolError):
        deliver(meter, 1)
    meter.start(now_ms=NOW_MS)
    with pytest.raises(LocalProtocolError):
        meter.start(now_ms=NOW_MS)


def test_allocation_for_another_prompt_is_refused(world: Any) -> None:
    with pytest.raises(InvalidAllocationError):
        world.meter(prompt_tokens=99)


def test_totals_add_up_over_tasks_and_stay_apart_by_provider(world: Any) -> None:
    one, two = world.meter(), world.meter()
    other = world.meter(provider=b"o" * 32)
    totals = [meter.start(now_ms=NOW_MS).total.message for meter in (one, two, other)]
    first = int(PROMPT_MICROS + 16)
    assert [(t.sequence, t.total_micros) for t in totals] == [
        (1, first),
        (2, 2 * first),
        (1, first),
    ]


def test_cheap_rates_round_down_to_nothing(world: Any) -> None:
    meter = world.meter(rates=Prices(1, 1, 1))
    assert meter.start(now_ms=NOW_MS).total.message.total_micros == 0


def test_malformed_prices_never_get_this_far() -> None:
    with pytest.raises(MalformedMessageError):
        Prices(0, 1, 1)
