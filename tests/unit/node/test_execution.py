"""The provider's side of one task: metering, receipts, the window.

Source: docs/spec/execution.md §1 and §2; design §4 step 7, §5 (settlement on outcome).
"""

from __future__ import annotations

import pytest

from iemas.core.errors import InvalidReceiptError, InvalidSignatureError, LocalProtocolError
from iemas.core.execution import (
    OutputChunk,
    Receipt,
    compute_first_window_micros,
    extend_output_hash,
)
from iemas.core.params import MarketParams
from iemas.core.types import PPM, FinishReason, Lateness, Prices
from iemas.testing.builders import ONE
from tests.unit.node.selling import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- receipts (R2, R3) ---------------------------------------------------------------------------


def test_a_receipt_is_due_every_interval(desk: Desk) -> None:
    task = desk.begin()
    due = [task.deliver() is not None for _ in range(33)]
    assert [n + 1 for n, is_due in enumerate(due) if is_due] == [16, 32]


def test_receipts_are_cumulative(desk: Desk) -> None:
    task = desk.begin()
    for _ in range(32):
        task.deliver()
    first, second = [receipt.message for receipt in task.receipts]
    assert (first.sequence, second.sequence) == (1, 2)
    assert (first.output_tokens, second.output_tokens) == (16, 32)
    assert second.amount_micros - first.amount_micros == 16 * 2


def test_an_amount_is_the_formula_of_its_receipt(desk: Desk) -> None:
    """100 prompt tokens at 1 and 16 output tokens at 2 micro-credits."""
    receipt = desk.begin().deliver(16)
    assert receipt is not None
    assert receipt.message.amount_micros == 100 + 32


def test_the_output_hash_chains_the_tokens_from_the_task_request(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(10)
    receipt = task.deliver(6)
    assert receipt is not None
    tokens = (*range(10), *range(6))
    expected = extend_output_hash(task.start.task_request.hash, tokens)
    assert receipt.message.output_hash == expected


def test_a_receipt_is_signed_by_the_provider(desk: Desk) -> None:
    receipt = desk.begin().deliver(16)
    assert receipt is not None
    assert receipt.signer_id == desk.chain.get_node("node-1")


def test_a_receipt_tells_how_busy_the_provider_was(desk: Desk) -> None:
    desk.begin()
    receipt = desk.begin("bob").deliver(16)
    assert receipt is not None
    assert receipt.message.active_tasks == 1


def test_chunks_carry_the_text(desk: Desk) -> None:
    task = desk.begin()
    (chunk,) = task.execution.deliver("hello", (5, 6), now_ms=desk.now_ms)
    assert chunk == OutputChunk("hello", (5, 6))


# --- the end (R6) --------------------------------------------------------------------------------


def test_the_final_receipt_says_why_it_ended(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(5)
    final = task.finish(FinishReason.LENGTH).message
    assert final.finish is FinishReason.LENGTH
    assert final.output_tokens == 5


def test_a_task_is_done_once_its_final_receipt_is_countersigned(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    task.acknowledge()
    task.finish()
    assert not task.execution.done
    task.acknowledge()
    assert task.execution.done


def test_nothing_is_delivered_after_the_end(desk: Desk) -> None:
    task = desk.begin()
    task.finish()
    with pytest.raises(LocalProtocolError):
        task.execution.deliver("x", (1,), now_ms=desk.now_ms)


def test_a_task_ends_once(desk: Desk) -> None:
    task = desk.begin()
    task.finish()
    assert task.execution.finish(FinishReason.STOP) == ()


def test_nothing_delivered_owes_nothing(desk: Desk) -> None:
    """Not even the prompt (design §5: the debt only grows while tokens arrive)."""
    task = desk.begin()
    assert task.finish(FinishReason.FAILED).message.amount_micros == 0
    assert desk.get_total() == 0


def test_text_without_tokens_is_no_first_token(desk: Desk) -> None:
    task = desk.begin()
    desk.now_ms += 100
    task.execution.deliver("", (), now_ms=desk.now_ms)
    assert task.execution.waits_for_prompt
    assert task.finish().message.amount_micros == 0


# --- cached tokens (R5; design §8) ---------------------------------------------------------------


@pytest.mark.parametrize(("shown", "reported", "billed"), [(32, 64, 64), (32, 0, 32), (0, 48, 48)])
def test_billed_as_cached_is_at_least_what_the_allocation_showed(
    desk: Desk, shown: int, reported: int, billed: int
) -> None:
    task = desk.begin(cached_tokens=shown)
    task.deliver(1)
    final = task.finish(cached_tokens=reported).message
    assert final.cached_tokens == reported
    assert final.billed_cached_tokens == billed
    # Uncached prompt at 1, cached at 1/2, one output token at 2.
    assert final.amount_micros == (100 - billed) + billed // 2 + 2


def test_without_the_backends_figure_the_allocations_stands(desk: Desk) -> None:
    task = desk.begin(cached_tokens=32)
    task.deliver(1)
    final = task.finish().message
    assert final.cached_tokens == final.billed_cached_tokens == 32


def test_no_more_than_the_prompt_is_cached(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(1)
    assert task.finish(cached_tokens=10_000).message.cached_tokens == 100


# --- the window (R4) -----------------------------------------------------------------------------


def test_a_full_window_blocks(desk: Desk) -> None:
    task = desk.begin()
    for _ in range(47):
        task.deliver()
    assert not task.execution.blocked
    task.deliver()
    assert task.execution.blocked


def test_an_acknowledgement_unblocks(desk: Desk) -> None:
    task = desk.begin()
    for _ in range(48):
        task.deliver()
    task.acknowledge()
    assert not task.execution.blocked


def test_a_full_window_always_holds_a_receipt() -> None:
    """Else it could never be acknowledged: an interval above the window counts as the window."""
    desk = Desk(params=MarketParams(receipt_interval_tokens=100, window_tokens=10))
    task = desk.begin()
    for _ in range(10):
        task.deliver()
    assert task.execution.blocked
    task.acknowledge_all()
    assert not task.execution.blocked


def test_a_later_acknowledgement_stands_for_those_before(desk: Desk) -> None:
    task = desk.begin()
    for _ in range(48):
        task.deliver()
    task.acknowledge(2)
    notice = task.execution.last_acknowledged
    assert notice is not None
    assert notice.receipt.message.sequence == 3
    assert not task.execution.blocked
    with pytest.raises(InvalidReceiptError):
        task.acknowledge()


# --- time (R7; design §8: a full window does not count as latency) -------------------------------

LATENESS = Lateness(deadline_ms=1_000, decay_ms=1_000)


def test_time_runs_from_acceptance_to_the_last_token(desk: Desk) -> None:
    task = desk.begin()
    desk.now_ms += 300
    task.deliver(1)
    desk.now_ms += 200
    task.deliver(1)
    desk.now_ms += 5_000
    final = task.finish().message
    assert (final.ttft_ms, final.elapsed_ms) == (300, 500)


def test_waiting_for_acknowledgements_does_not_count(desk: Desk) -> None:
    task = desk.begin(max_tokens=100)
    desk.now_ms += 100
    for _ in range(48):
        task.deliver()
    desk.now_ms += 5_000
    task.acknowledge_all()
    desk.now_ms += 50
    task.deliver(1)
    assert task.finish().message.elapsed_ms == 150


def test_waits_add_up(desk: Desk) -> None:
    task = desk.begin(max_tokens=200)
    for _ in range(2):
        for _ in range(3):
            task.deliver(16)
        desk.now_ms += 1_000
        task.acknowledge_all()
    desk.now_ms += 7
    task.deliver(1)
    assert task.finish().message.elapsed_ms == 7


def test_a_clock_that_steps_back_shortens_nothing(desk: Desk) -> None:
    task = desk.begin()
    desk.now_ms += 400
    task.deliver(1)
    desk.now_ms -= 1_000
    task.deliver(1)
    assert task.finish().message.elapsed_ms == 400


def test_tokens_count_what_they_are_worth_when_they_come(desk: Desk) -> None:
    """On time, half-way through the decay, and too late."""
    task = desk.begin(lateness=LATENESS)
    for elapsed_ms in (1_000, 500, 500):
        desk.now_ms += elapsed_ms
        task.deliver(1)
    final = task.finish().message
    assert final.prompt_late_ppm == PPM
    assert final.output_late_ppm_tokens == PPM + PPM // 2
    assert final.amount_micros == 100 + 3


def test_the_prompt_is_worth_what_the_first_token_is(desk: Desk) -> None:
    task = desk.begin(lateness=LATENESS)
    desk.now_ms += 1_750
    task.deliver(1)
    final = task.finish().message
    assert final.prompt_late_ppm == PPM // 4
    assert final.amount_micros == (100 + 2) // 4


def test_nothing_is_owed_for_what_comes_after_the_decay(desk: Desk) -> None:
    task = desk.begin(lateness=LATENESS)
    desk.now_ms += 2_000
    task.deliver(16)
    assert task.finish().message.amount_micros == 0


# --- acknowledgements (R8) -----------------------------------------------------------------------


def test_an_acknowledgement_by_another_is_refused(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    (answer,) = task.answers
    forged = desk.chain.sign("bob", answer.acknowledgement.message)
    with pytest.raises(InvalidSignatureError):
        task.execution.check_acknowledgement(type(answer)(forged, answer.total))


def test_an_acknowledgement_of_another_receipt_is_refused(desk: Desk) -> None:
    one, other = desk.begin(), desk.begin()
    one.deliver(16)
    other.deliver(16)
    one.answers, other.answers = other.answers, one.answers
    with pytest.raises(InvalidReceiptError):
        one.acknowledge()


def test_an_acknowledgement_counts_once(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    task.answers *= 2
    task.acknowledge()
    with pytest.raises(InvalidReceiptError):
        task.acknowledge()


# --- what is owed (R1, R9) -----------------------------------------------------------------------


@pytest.mark.parametrize(("max_tokens", "owed"), [(50, 100 + 96), (10, 100 + 20)])
def test_receipt_0_owes_the_prompt_and_the_first_window(
    desk: Desk, max_tokens: int, owed: int
) -> None:
    start = desk.make_start(max_tokens=max_tokens)
    assert compute_first_window_micros(start.allocation.message, desk.params.window_tokens) == owed
    assert start.total.message.total_micros == owed


def test_receipt_0_owes_cached_tokens_at_their_rate(desk: Desk) -> None:
    start = desk.make_start(cached_tokens=64, max_tokens=10)
    assert (
        compute_first_window_micros(start.allocation.message, desk.params.window_tokens)
        == 36 + 32 + 20
    )


def test_before_the_first_acknowledgement_receipt_0_is_owed(desk: Desk) -> None:
    task = desk.begin()
    assert task.execution.least_owed_micros == 196
    assert task.execution.cosigned_micros == 0


def test_an_open_receipt_below_receipt_0_may_be_counted_already(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(5)
    task.finish()
    assert task.execution.least_owed_micros == 100 + 10


def test_a_countersigned_receipt_is_owed(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    task.acknowledge()
    assert task.execution.cosigned_micros == 132
    task.deliver(5)
    assert task.execution.metered_micros == 142


def test_an_amount_is_never_above_the_reservation(desk: Desk) -> None:
    """Even if more turns out cached than expected, at a rate above the prompt's."""
    task = desk.begin(rates=Prices(ONE, 3 * ONE, ONE), max_tokens=20)
    task.deliver(16)
    task.deliver(4)
    final = task.finish(cached_tokens=100).message
    assert final.amount_micros == 320
    assert final.amount_micros <= task.start.allocation.message.reserved_micros


def test_receipts_hold_no_text_and_no_tokens(desk: Desk) -> None:
    """Design §4: prompt and answer are seen by requester and winner only."""
    receipt = desk.begin().deliver(16)
    assert receipt is not None
    kinds = {type(getattr(receipt.message, name)) for name in Receipt.__dataclass_fields__}
    assert kinds <= {int, bytes, str, FinishReason}
    strings = {getattr(receipt.message, name) for name in ("hub",)}
    assert strings == {desk.chain.hub}
