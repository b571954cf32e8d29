"""Admission, channel totals and settlement of a provider.

Source: docs/spec/execution.md §3 and §4; design §4 steps 6 to 8, §7 (settlement).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas.core.envelope import verify_signed
from iemas.core.errors import (
    InvalidAllocationError,
    InvalidReceiptError,
    InvalidSignatureError,
    LocalProtocolError,
    ProviderBusyError,
)
from iemas.core.execution import Busy, ReceiptCountersigned, TaskStart, UnsettledChannel
from iemas.core.params import MarketParams
from iemas.core.types import FinishReason
from iemas.ledger.transaction import ResultCode, Settle
from iemas.testing.builders import make_payload
from tests.unit.node.selling import Desk, Task


@pytest.fixture
def desk() -> Desk:
    return Desk()


def begin(desk: Desk, start: TaskStart) -> None:
    desk.provider.begin(start, now_ms=desk.now_ms)


def change_request(desk: Desk, start: TaskStart, **changes: object) -> TaskStart:
    """Change the task request and have the requester sign it again."""
    request = replace(start.task_request.message, **changes)
    return replace(start, task_request=desk.chain.sign("alice", request))


def change_total(desk: Desk, start: TaskStart, **changes: object) -> TaskStart:
    """Change the running total and have the requester sign it again."""
    total = replace(start.total.message, **changes)
    return replace(start, total=desk.chain.sign("alice", total))


def settle(desk: Desk) -> tuple[Settle, ResultCode]:
    """Submit what is to be settled; give it and the ledger's verdict."""
    body = desk.provider.collect_settlement()
    assert body is not None
    return body, desk.chain.submit("node-1", body).code


# --- admission (R10) -----------------------------------------------------------------------------


def test_a_task_is_taken_in(desk: Desk) -> None:
    task = desk.begin()
    assert desk.provider.active == (task.start.allocation.hash,)


def test_an_allocation_is_good_until_it_expires_with_tolerance(desk: Desk) -> None:
    start = desk.make_start()
    desk.now_ms += 10_000 + desk.params.clock_tolerance_ms
    begin(desk, start)


def test_an_expired_allocation_is_refused(desk: Desk) -> None:
    start = desk.make_start()
    desk.now_ms += 10_001 + desk.params.clock_tolerance_ms
    with pytest.raises(InvalidAllocationError, match="expired"):
        begin(desk, start)


def test_an_allocation_to_another_provider_is_refused(desk: Desk) -> None:
    start = desk.make_start(provider=desk.chain.get_node("node-2"))
    with pytest.raises(InvalidAllocationError, match="another provider"):
        begin(desk, start)


def test_an_allocation_of_another_hub_is_refused(desk: Desk) -> None:
    with pytest.raises(InvalidAllocationError, match="another hub"):
        begin(desk, desk.make_start(hub="another"))


def test_an_allocation_by_another_than_the_auctioneer_is_refused(desk: Desk) -> None:
    with pytest.raises(InvalidSignatureError):
        begin(desk, desk.make_start(signed_by="bob"))


def test_an_allocation_serves_one_task(desk: Desk) -> None:
    start = desk.make_start()
    begin(desk, start)
    with pytest.raises(InvalidAllocationError, match="used before"):
        begin(desk, start)


def test_an_allocation_serves_no_second_task_after_its_end(desk: Desk) -> None:
    task = desk.begin()
    task.complete()
    with pytest.raises(InvalidAllocationError, match="used before"):
        begin(desk, task.start)


def test_an_allocation_of_the_last_term_is_taken(desk: Desk) -> None:
    """Design §13: open allocations stay valid when the auctioneer changes."""
    start = desk.make_start()
    desk.chain.end_term()
    begin(desk, start)


def test_an_allocation_of_an_earlier_term_is_refused(desk: Desk) -> None:
    start = desk.make_start()
    desk.chain.end_term()
    desk.chain.end_term()
    with pytest.raises(InvalidAllocationError, match="of term 0"):
        begin(desk, start)


def test_an_allocation_of_a_term_not_yet_known_is_refused(desk: Desk) -> None:
    start = desk.make_start(term=5, signed_by="node-1")
    with pytest.raises(InvalidAllocationError, match="of term 5"):
        begin(desk, start)


def test_a_prompt_that_was_not_committed_to_is_refused(desk: Desk) -> None:
    start = replace(desk.make_start(), payload=make_payload(token_ids=(2,) * 100))
    with pytest.raises(InvalidAllocationError, match="prompt is not the one"):
        begin(desk, start)


def test_a_prompt_longer_than_allocated_is_refused(desk: Desk) -> None:
    meter = desk.get_buyer().make_meter(payload=make_payload(100))
    longer = make_payload(101)
    meter._payload = longer
    with pytest.raises(InvalidAllocationError, match="not those of the allocation"):
        begin(desk, meter.start(now_ms=desk.now_ms))


def test_more_output_than_allocated_is_refused(desk: Desk) -> None:
    meter = desk.get_buyer().make_meter()
    meter._payload = make_payload(100, 51)
    with pytest.raises(InvalidAllocationError, match="not those of the allocation"):
        begin(desk, meter.start(now_ms=desk.now_ms))


@pytest.mark.parametrize("field", ["allocation_hash", "provider"])
def test_a_request_for_another_allocation_is_refused(desk: Desk, field: str) -> None:
    start = change_request(desk, desk.make_start(), **{field: bytes(32)})
    with pytest.raises(InvalidAllocationError, match="another allocation"):
        begin(desk, start)


def test_a_request_by_another_account_is_refused(desk: Desk) -> None:
    start = desk.make_start()
    forged = desk.chain.sign("bob", start.task_request.message)
    with pytest.raises(InvalidSignatureError):
        begin(desk, replace(start, task_request=forged))


# --- capacity (R11) ------------------------------------------------------------------------------


def test_over_capacity_is_answered_by_a_signed_busy() -> None:
    desk = Desk(slots=1)
    desk.begin()
    start = desk.make_start("bob")
    with pytest.raises(ProviderBusyError) as error:
        begin(desk, start)
    busy = error.value.operands["busy"]
    verify_signed(busy, desk.chain.chain_id, expected_signer=desk.chain.get_node("node-1"))
    assert isinstance(busy.message, Busy)
    assert busy.message.allocation_hash == start.allocation.hash


def test_busy_owes_nothing() -> None:
    desk = Desk(slots=1)
    desk.begin("bob")
    meter = desk.get_buyer().make_meter()
    with pytest.raises(ProviderBusyError) as error:
        begin(desk, meter.start(now_ms=desk.now_ms))
    meter.take_busy(error.value.operands["busy"])
    assert desk.get_total() == 0
    assert desk.provider.unsettled_channels == 1


def test_a_slot_is_free_again_after_the_end() -> None:
    desk = Desk(slots=1)
    first = desk.begin()
    first.complete()
    desk.begin("bob")
    assert desk.provider.finished == (first.start.allocation.hash,)


def test_a_slot_is_free_before_the_last_receipt_is_countersigned() -> None:
    """So a requester that goes on at once finds the slot of its last turn."""
    desk = Desk(slots=1)
    task = desk.begin()
    task.deliver(5)
    desk.provider.release(task.execution)
    assert desk.provider.active == ()
    assert desk.provider.finished == (task.start.allocation.hash,)
    task.finish()
    desk.begin("bob")
    task.acknowledge()
    task.end()
    assert desk.provider.finished == (task.start.allocation.hash,)


def test_a_released_task_is_still_owed(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(5)
    desk.provider.release(task.execution)
    start = desk.make_start()
    with pytest.raises(InvalidReceiptError):
        begin(desk, change_total(desk, start, total_micros=196))


def test_an_allocation_refused_as_busy_may_be_tried_again() -> None:
    desk = Desk(slots=1)
    first = desk.begin()
    start = desk.make_start("bob")
    with pytest.raises(ProviderBusyError):
        begin(desk, start)
    first.complete()
    begin(desk, start)


def test_a_backend_that_is_down_takes_nothing(desk: Desk) -> None:
    desk.provider.backend_healthy = False
    assert desk.provider.slots == 0
    with pytest.raises(ProviderBusyError, match="backend is down"):
        begin(desk, desk.make_start())


def test_waiting_prompt_tokens_are_counted_until_the_first_token(desk: Desk) -> None:
    task = desk.begin(cached_tokens=64)
    desk.begin("bob")
    assert desk.provider.pending_prompt_tokens == 36 + 100
    task.deliver(1)
    assert desk.provider.pending_prompt_tokens == 100


def test_a_task_ends_once(desk: Desk) -> None:
    task = desk.begin()
    task.end()
    with pytest.raises(LocalProtocolError):
        desk.provider.end(task.execution)


# --- running totals (R12 to R15) -----------------------------------------------------------------


def test_a_total_below_receipt_0_is_refused(desk: Desk) -> None:
    start = desk.make_start()
    short = start.total.message.total_micros - 1
    with pytest.raises(InvalidReceiptError) as error:
        begin(desk, change_total(desk, start, total_micros=short))
    assert error.value.operands == {"total_micros": short, "owed_micros": short + 1}
    assert desk.provider.active == ()


@pytest.mark.parametrize("field", ["channel", "term", "hub"])
def test_a_total_of_another_channel_is_refused(desk: Desk, field: str) -> None:
    value = "another" if field == "hub" else 3
    with pytest.raises(InvalidReceiptError, match="another channel's"):
        begin(desk, change_total(desk, desk.make_start(), **{field: value}))


def test_a_total_signed_by_another_is_refused(desk: Desk) -> None:
    start = desk.make_start()
    with pytest.raises(InvalidSignatureError):
        begin(desk, replace(start, total=desk.chain.sign("bob", start.total.message)))


def test_a_total_counts_all_parallel_tasks(desk: Desk) -> None:
    desk.begin()
    start = desk.make_start()
    with pytest.raises(InvalidReceiptError):
        begin(desk, change_total(desk, start, total_micros=196))
    begin(desk, start)


def test_a_task_that_ended_stays_owed(desk: Desk) -> None:
    """A requester cannot talk its way out of what it has countersigned."""
    desk.begin().complete()
    start = desk.make_start()
    with pytest.raises(InvalidReceiptError):
        begin(desk, change_total(desk, start, total_micros=196))
    begin(desk, start)


def test_a_total_that_does_not_grow_is_refused(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    (answer,) = task.answers
    total = replace(answer.total.message, total_micros=131)
    answer = replace(answer, total=desk.chain.sign("alice", total))
    with pytest.raises(InvalidReceiptError):
        desk.provider.acknowledge(task.execution, answer, now_ms=desk.now_ms)


def test_a_refused_acknowledgement_changes_nothing(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    (good,) = task.answers
    bad = replace(good, total=desk.chain.sign("bob", good.total.message))
    with pytest.raises(InvalidSignatureError):
        desk.provider.acknowledge(task.execution, bad, now_ms=desk.now_ms)
    assert task.execution.last_acknowledged is None
    task.acknowledge()
    assert task.execution.last_acknowledged is not None


def test_what_is_durable_after_each_step_is_the_channels_last_word(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    total = task.answers[0].total
    record = task.acknowledge()
    counted = task.receipts[0].message.amount_micros
    assert record.value == UnsettledChannel(task.start.allocation, total, counted)


def test_acknowledgements_of_parallel_tasks_may_overtake_each_other(desk: Desk) -> None:
    one, other = desk.begin(max_tokens=200), desk.begin(max_tokens=200)
    for task in (one, other):
        for _ in range(6):
            task.deliver(16)
    while one.answers:
        other.acknowledge()
        one.acknowledge()


def test_a_total_may_count_a_last_receipt_that_owes_less_than_the_one_acknowledged(
    desk: Desk,
) -> None:
    """The backend found more cached at the end than the allocation showed."""
    one, other = desk.begin(prompt_tokens=400), desk.begin(prompt_tokens=400)
    one.deliver(50)
    other.deliver(50)
    one.finish(cached_tokens=384)
    other.finish(cached_tokens=384)
    assert one.answers[-1].total.message.total_micros < other.answers[0].total.message.total_micros
    other.acknowledge_all()
    one.acknowledge_all()


def test_starts_of_parallel_tasks_may_overtake_acknowledgements(desk: Desk) -> None:
    one = desk.begin(max_tokens=200)
    meter = desk.get_buyer().make_meter()
    start = meter.start(now_ms=desk.now_ms)
    for _ in range(5):
        one.deliver(16)
    one.acknowledge_all()
    desk.accept(start, meter)


def test_a_total_that_counts_a_task_not_yet_here_is_taken(desk: Desk) -> None:
    """Its allocation bounds more than those known here; until it comes, older totals settle."""
    one = desk.begin(max_tokens=20)
    bound = one.start.allocation.message.channel_reserved_micros
    meter = desk.get_buyer().make_meter()
    start = meter.start(now_ms=desk.now_ms)
    one.deliver(16)
    entry = one.acknowledge().value
    assert isinstance(entry, UnsettledChannel)
    assert entry.total.message.total_micros <= bound
    late = desk.accept(start, meter)
    late.deliver(16)
    entry = late.acknowledge().value
    assert isinstance(entry, UnsettledChannel)
    assert entry.total.message.total_micros == desk.get_total() > bound


def test_a_first_chunk_beyond_the_window_is_trusted_like_a_window() -> None:
    """A backend may send more at once than a window; the next task's start is still on its way."""
    desk = Desk(params=MarketParams(window_tokens=6, receipt_interval_tokens=3))
    task = desk.begin(max_tokens=200)
    desk.get_buyer().make_meter(max_tokens=200).start(now_ms=desk.now_ms)
    receipt = task.deliver(190)
    assert receipt is not None
    assert receipt.message.amount_micros > task.execution.first_window_micros
    task.acknowledge()
    assert task.execution.cosigned_micros == receipt.message.amount_micros


def test_totals_beyond_the_bound_are_trusted_for_one_window_only(desk: Desk) -> None:
    task = desk.begin(max_tokens=200)

    def acknowledge_beyond_the_bound() -> None:
        task.deliver(16)
        answer = task.answers.pop(0)
        total = replace(answer.total.message, total_micros=2**50)
        forged = ReceiptCountersigned(answer.acknowledgement, desk.chain.sign("alice", total))
        desk.provider.acknowledge(task.execution, forged, now_ms=desk.now_ms)

    for _ in range(9):
        acknowledge_beyond_the_bound()
    with pytest.raises(InvalidReceiptError):
        acknowledge_beyond_the_bound()
    # Receipt 0 promised 196, and as much more was taken on trust.
    assert task.execution.cosigned_micros <= 2 * task.execution.first_window_micros


def test_an_allocation_refused_as_busy_still_bounds_its_channel() -> None:
    """A parallel task's last total may count it, if the busy answer was still on its way."""
    desk = Desk(slots=1)
    one = desk.begin(max_tokens=20)
    meter = desk.get_buyer().make_meter(max_tokens=20)
    start = meter.start(now_ms=desk.now_ms)
    one.deliver(16)
    one.finish()
    with pytest.raises(ProviderBusyError):
        begin(desk, start)
    one.acknowledge_all()
    one.end()
    desk.chain.end_term()
    body, code = settle(desk)
    assert code is ResultCode.OK
    assert body.entries[0].allocation == start.allocation


def test_a_task_that_was_given_up_does_not_hinder_the_others(desk: Desk) -> None:
    one, other = desk.begin(), desk.begin()
    one.deliver(5)
    one.end()
    other.deliver(16)
    other.acknowledge()


def test_a_new_task_counts_what_was_delivered_of_one_given_up(desk: Desk) -> None:
    """Else the first window of every task would be free to who hangs up."""
    task = desk.begin()
    task.execution.deliver("x" * 10, tuple(range(10)), now_ms=desk.now_ms)
    task.end()
    assert desk.get_total() == 0
    with pytest.raises(InvalidReceiptError) as error:
        begin(desk, desk.make_start())
    assert error.value.operands["owed_micros"] == 196 + 120


def test_a_task_given_up_before_its_first_token_owes_nothing(desk: Desk) -> None:
    desk.begin().end()
    assert desk.get_total() == 0
    begin(desk, desk.make_start())


# --- settlement (R16, R17) -----------------------------------------------------------------------


def complete(desk: Desk, **changes: object) -> Task:
    task = desk.begin(**changes)
    task.complete()
    return task


def test_a_term_is_settled_after_its_end(desk: Desk) -> None:
    complete(desk)
    assert desk.provider.collect_settlement() is None
    desk.chain.end_term()
    body, code = settle(desk)
    assert code is ResultCode.OK
    assert body.entries[0].total.message.total_micros == 100 + 40


def test_one_entry_settles_all_tasks_of_a_channel(desk: Desk) -> None:
    for _ in range(3):
        complete(desk)
    complete(desk, account="bob")
    desk.chain.end_term()
    body, code = settle(desk)
    assert code is ResultCode.OK
    assert sorted(e.total.message.total_micros for e in body.entries) == [140, 420]


def test_a_channel_with_a_running_task_is_not_settled(desk: Desk) -> None:
    complete(desk)
    running = desk.begin()
    desk.chain.end_term()
    assert desk.provider.collect_settlement() is None
    running.complete()
    assert desk.provider.collect_settlement() is not None


def test_a_task_that_outlasts_its_term_is_paid_while_it_runs(desk: Desk) -> None:
    running = desk.begin(max_tokens=200)
    for _ in range(desk.params.settle_terms // 2):
        desk.chain.end_term()
    assert desk.provider.collect_settlement() is None
    desk.chain.end_term()
    first, code = settle(desk)
    assert code is ResultCode.OK
    assert desk.provider.collect_settlement() is None
    running.complete(100)
    for _ in range(desk.params.settle_terms - desk.params.settle_terms // 2 - 1):
        desk.chain.end_term()
    last, _ = settle(desk)
    seller = desk.chain.get_id("node-1")
    paid = last.entries[0].total.message.total_micros
    assert paid > first.entries[0].total.message.total_micros > 0
    assert desk.chain.state.get_balance(seller)[0] == paid


def test_the_escrow_pays_what_was_countersigned(desk: Desk) -> None:
    complete(desk)
    desk.chain.end_term()
    alice, seller = desk.chain.get_id("alice"), desk.chain.get_id("node-1")
    before = desk.chain.state.get_balance(alice)[1]
    settle(desk)
    assert desk.chain.state.get_balance(alice)[1] == before - 140
    assert desk.chain.state.get_balance(seller)[0] == 140


def test_what_is_settled_is_not_settled_again(desk: Desk) -> None:
    complete(desk)
    desk.chain.end_term()
    settle(desk)
    assert desk.provider.collect_settlement() is None
    assert desk.provider.unsettled_channels == 0


def test_a_book_is_kept_while_its_allocations_are_taken(desk: Desk) -> None:
    """A late task of a settled channel must count what was settled."""
    task = desk.get_buyer().make_meter()
    complete(desk)
    late = task.start(now_ms=desk.now_ms)
    desk.chain.end_term()
    settle(desk)
    assert desk.provider.forget_settled() == ()
    with pytest.raises(InvalidReceiptError):
        begin(desk, change_total(desk, late, total_micros=196))
    begin(desk, late)


def test_a_book_is_forgotten_after_that(desk: Desk) -> None:
    complete(desk)
    desk.chain.end_term()
    settle(desk)
    desk.chain.end_term()
    (record,) = desk.provider.forget_settled()
    assert record.value is None


def test_a_channel_that_owes_nothing_is_forgotten(desk: Desk) -> None:
    task = desk.begin()
    task.finish(FinishReason.FAILED)
    task.acknowledge()
    task.end()
    desk.chain.end_term()
    assert desk.provider.collect_settlement() is None
    desk.chain.end_term()
    assert len(desk.provider.forget_settled()) == 1


def test_what_can_no_longer_be_settled_is_forgotten(desk: Desk) -> None:
    complete(desk)
    for _ in range(desk.params.settle_terms + 1):
        desk.chain.end_term()
    assert len(desk.provider.forget_settled()) == 1


def test_a_restarted_provider_settles_what_was_durable(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    entry = task.acknowledge().value
    desk.provider = desk.make_provider()
    desk.provider.restore([entry])
    desk.chain.end_term()
    _, code = settle(desk)
    assert code is ResultCode.OK


def test_a_restarted_provider_is_owed_what_was_countersigned_before(desk: Desk) -> None:
    """Or whoever saw it restart could sign it a small new total, which supersedes the old one."""
    task = desk.begin()
    task.complete(40)
    owed = desk.get_total()
    (record,) = [desk.provider._keep_book(*item) for item in desk.provider._books.items()]
    desk.provider = desk.make_provider()
    desk.provider.restore([record.value])
    start = desk.make_start()
    forgetful = change_total(desk, start, total_micros=start.total.message.total_micros - owed)
    with pytest.raises(InvalidReceiptError):
        begin(desk, forgetful)
    begin(desk, start)


def test_a_restarted_provider_takes_less_for_the_task_that_it_broke_off(desk: Desk) -> None:
    task = desk.begin()
    task.deliver(16)
    record = task.acknowledge()
    task.meter.abandon()  # 16 tokens came, receipt 0 promised more
    desk.provider = desk.make_provider()
    desk.provider.restore([record.value])
    desk.begin().complete()
    owed = desk.get_total()
    desk.chain.end_term()
    body, code = settle(desk)
    assert code is ResultCode.OK
    assert body.entries[0].total.message.total_micros == owed


def test_what_no_allocation_bounds_keeps_nothing_else_from_being_settled() -> None:
    """Or an account with many such channels could fill every settlement with them."""
    desk = Desk()
    for channel in (1, 2):
        start = desk.make_start(channel=channel)
        begin(desk, change_total(desk, start, total_micros=2**50))
    desk.begin(channel=3)
    for execution in list(desk.provider._active.values()):
        desk.provider.end(execution)
    assert desk.provider.unsettled_channels == 1
    desk.chain.end_term()
    body, code = settle(desk)
    assert code is ResultCode.OK
    assert [entry.total.message.channel for entry in body.entries] == [3]


def test_a_restarted_provider_takes_no_allocation_twice(desk: Desk) -> None:
    start = desk.make_start()
    _, record = desk.provider.begin(start, now_ms=desk.now_ms)
    desk.provider = desk.make_provider()
    desk.provider.restore([record.value])
    with pytest.raises(InvalidAllocationError, match="used before"):
        begin(desk, start)


def test_a_requester_that_vanishes_pays_receipt_0(desk: Desk) -> None:
    """Design §13: the provider is paid the last co-signed receipt, receipt 0 at least."""
    desk.begin().end()
    desk.chain.end_term()
    body, code = settle(desk)
    assert code is ResultCode.OK
    assert body.entries[0].total.message.total_micros == 196
