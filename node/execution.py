"""One task at its provider: tokens out, cumulative receipts, countersignatures back.

A pure state machine without a signature of its own: it meters what was delivered and when, makes a
receipt every `receipt_interval_tokens`, and is blocked while `window_tokens` are unacknowledged,
so that neither side can lose more than one window. Source: design §4 step 7, §5.
"""

from __future__ import annotations

from collections.abc import Sequence

from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import InvalidReceiptError, LocalProtocolError
from iemas.core.execution import (
    OutputChunk,
    Receipt,
    ReceiptCountersigned,
    ReceiptNotice,
    TaskStart,
    compute_first_window_micros,
    extend_output_hash,
)
from iemas.core.params import MarketParams
from iemas.core.settlement import Delivery, MeteredUsage, compute_amount_micros
from iemas.core.types import FinishReason

ExecutionFrame = OutputChunk | Signed[Receipt]


class Execution:
    """The provider's side of one running task.

    Args:
        start: what the requester sent, already checked by `node.provider.Provider.begin`.
        active_tasks: how many other tasks ran here when this one was accepted.

    """

    def __init__(
        self,
        start: TaskStart,
        *,
        chain_id: str,
        params: MarketParams,
        signer: Signer,
        active_tasks: int,
        now_ms: int,
    ) -> None:
        self.start = start
        self.allocation = start.allocation.message
        self.last_acknowledged: ReceiptNotice | None = None
        self._chain_id = chain_id
        self._params = params
        self._signer = signer
        self._active_tasks = active_tasks
        self._accepted_at_ms = now_ms
        self._blocked_ms = 0
        self._blocked_since_ms: int | None = None
        self._ttft_ms: int | None = None
        self._elapsed_ms = 0
        self._cached_tokens = self.allocation.cached_tokens
        self._delivery = Delivery()
        self._output_hash: bytes = start.task_request.hash
        self._acknowledged_tokens = 0
        self._sequence = 0
        self._receipted_tokens = 0
        self._finish = FinishReason.UNSPECIFIED
        self._issued: dict[int, Signed[Receipt]] = {}  # not yet acknowledged, by sequence
        self.first_window_micros = compute_first_window_micros(
            self.allocation, params.window_tokens
        )
        self.trusted_micros = self.first_window_micros
        """What was delivered before any receipt: the first window, or a first chunk beyond it."""
        self._acknowledged_micros = self.first_window_micros

    # --- reads -------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether the window is full: read nothing more from the backend until acknowledged."""
        unacknowledged = self._delivery.output_tokens - self._acknowledged_tokens
        return unacknowledged >= self._params.window_tokens

    @property
    def done(self) -> bool:
        """Whether the final receipt is countersigned."""
        notice = self.last_acknowledged
        return notice is not None and notice.receipt.message.finish != FinishReason.UNSPECIFIED

    @property
    def waits_for_prompt(self) -> bool:
        """Whether no token came yet: its prompt may still be computing."""
        return self._ttft_ms is None

    @property
    def least_owed_micros(self) -> int:
        """The least that a new task's running total must count for this one.

        It has acknowledged at least its last countersigned receipt (receipt 0 before the first),
        and its total may already count a later one.
        """
        return self._compute_least(self._acknowledged_micros)

    @property
    def cosigned_micros(self) -> int:
        """The least that any running total must count for this task from now on.

        That is its last countersigned receipt, nothing before the first: a requester that gave
        the task up counts what it got of it, not what receipt 0 promised.
        """
        notice = self.last_acknowledged
        return self._compute_least(notice.receipt.message.amount_micros if notice else 0)

    @property
    def metered_micros(self) -> int:
        """What all that was delivered until now owes."""
        return compute_amount_micros(self.allocation.rates, self._compute_usage())

    def compute_cosigned_with(self, receipt: Signed[Receipt]) -> int:
        """Compute `cosigned_micros` as it will be once this open receipt is acknowledged.

        A later receipt may owe less, when the backend reports more cached tokens at the end, and
        the requester's total may count it already.
        """
        later = [
            issued.message.amount_micros
            for sequence, issued in self._issued.items()
            if sequence > receipt.message.sequence
        ]
        return min([receipt.message.amount_micros, *later])

    def _compute_least(self, acknowledged_micros: int) -> int:
        issued = [receipt.message.amount_micros for receipt in self._issued.values()]
        return min([acknowledged_micros, *issued])

    # --- inputs ------------------------------------------------------------------------------

    def deliver(
        self, text: str, token_ids: Sequence[int], *, now_ms: int
    ) -> tuple[ExecutionFrame, ...]:
        """Meter output that goes to the requester now; add a receipt when one is due.

        Raises: LocalProtocolError after the task ended.
        """
        if self._finish is not FinishReason.UNSPECIFIED:
            raise LocalProtocolError("the task has ended")
        self._elapsed_ms = max(self._elapsed_ms, self._measure_ms(now_ms))
        if token_ids and self._ttft_ms is None:
            self._ttft_ms = self._elapsed_ms
        late_ppm = self.allocation.lateness.compute_ppm(self._elapsed_ms)
        self._delivery = self._delivery.add(len(token_ids), late_ppm)
        self._output_hash = extend_output_hash(self._output_hash, token_ids)
        if self.blocked and self._blocked_since_ms is None:
            self._blocked_since_ms = now_ms
        chunk = OutputChunk(text, tuple(token_ids))
        # A window that fills without a receipt in it could never be acknowledged.
        interval = min(self._params.receipt_interval_tokens, self._params.window_tokens)
        due = self._delivery.output_tokens - self._receipted_tokens >= interval
        return (chunk, self._make_receipt()) if due else (chunk,)

    def finish(
        self, reason: FinishReason, *, cached_tokens: int | None = None
    ) -> tuple[ExecutionFrame, ...]:
        """End the task and make its final receipt, with the backend's own cached tokens."""
        if self._finish is not FinishReason.UNSPECIFIED:
            return ()
        self._finish = reason
        if cached_tokens is not None:
            self._cached_tokens = min(cached_tokens, self.allocation.prompt_tokens)
        return (self._make_receipt(),)

    def check_acknowledgement(self, countersigned: ReceiptCountersigned) -> Signed[Receipt]:
        """Give the open receipt that is acknowledged; nothing changes.

        Raises: InvalidReceiptError, InvalidSignatureError.
        """
        signed = countersigned.acknowledgement
        verify_signed(signed, self._chain_id, expected_signer=self.allocation.account)
        receipt = self._issued.get(signed.message.sequence)
        if receipt is None or receipt.hash != signed.message.receipt_hash:
            raise InvalidReceiptError(
                "the acknowledgement names no receipt that is open here",
                sequence=signed.message.sequence,
            )
        return receipt

    def acknowledge(self, countersigned: ReceiptCountersigned, *, now_ms: int) -> None:
        """Take a countersigned receipt.

        Raises: InvalidReceiptError, InvalidSignatureError.
        """
        receipt = self.check_acknowledgement(countersigned)
        signed = countersigned.acknowledgement
        for sequence in [s for s in self._issued if s <= signed.message.sequence]:
            del self._issued[sequence]
        self._acknowledged_tokens = receipt.message.output_tokens
        self._acknowledged_micros = receipt.message.amount_micros
        self.last_acknowledged = ReceiptNotice(receipt, signed)
        if self._blocked_since_ms is not None and not self.blocked:
            self._blocked_ms += max(0, now_ms - self._blocked_since_ms)
            self._blocked_since_ms = None

    # --- metering ----------------------------------------------------------------------------

    def _measure_ms(self, now_ms: int) -> int:
        """Time since acceptance, less the time spent waiting with a full window."""
        until_ms = now_ms if self._blocked_since_ms is None else self._blocked_since_ms
        return max(0, until_ms - self._accepted_at_ms - self._blocked_ms)

    def _compute_usage(self) -> MeteredUsage:
        return self._delivery.bill(
            self.allocation.prompt_tokens,
            shown_cached_tokens=self.allocation.cached_tokens,
            reported_cached_tokens=self._cached_tokens,
        )

    def _make_receipt(self) -> Signed[Receipt]:
        allocation, usage = self.allocation, self._compute_usage()
        self._sequence += 1
        self._receipted_tokens = self._delivery.output_tokens
        receipt = self._signer.sign(
            Receipt(
                allocation_hash=self.start.allocation.hash,
                account=allocation.account,
                provider=allocation.provider,
                hub=allocation.hub,
                term=allocation.term,
                channel=allocation.channel,
                sequence=self._sequence,
                prompt_tokens=allocation.prompt_tokens,
                cached_tokens=self._cached_tokens,
                billed_cached_tokens=usage.cached_tokens,
                output_tokens=self._delivery.output_tokens,
                prompt_late_ppm=usage.prompt_late_ppm,
                output_late_ppm_tokens=usage.output_late_ppm_tokens,
                ttft_ms=self._ttft_ms or 0,
                elapsed_ms=self._elapsed_ms,
                amount_micros=compute_amount_micros(allocation.rates, usage),
                output_hash=self._output_hash,
                active_tasks=self._active_tasks,
                max_tokens=allocation.max_tokens,
                finish=self._finish,
            )
        )
        if self._sequence == 1:
            self.trusted_micros = max(self.first_window_micros, receipt.message.amount_micros)
        self._issued[self._sequence] = receipt
        return receipt
