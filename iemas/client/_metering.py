"""The requester's meter: it counts what arrives and countersigns only receipts that agree.

One meter a task. It makes receipt 0, takes chunks and receipts as they come, and checks every
receipt against its own count of tokens, its own clock and the settlement formula, so the account
never signs for more than it got. Source: design §4 steps 6 and 7, §5 (settlement on outcome).
"""

from __future__ import annotations

from iemas.client._channel import Channel
from iemas.core.auction import Allocation
from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import (
    InvalidAllocationError,
    InvalidReceiptError,
    LocalProtocolError,
    RemoteProtocolError,
)
from iemas.core.execution import (
    Busy,
    OutputChunk,
    Receipt,
    ReceiptAcknowledgement,
    ReceiptCountersigned,
    TaskPayload,
    TaskRequest,
    TaskStart,
    compute_first_window_micros,
    compute_prompt_hash,
    extend_output_hash,
)
from iemas.core.settlement import Delivery, MeteredUsage, compute_amount_micros
from iemas.core.types import FinishReason


class TaskMeter:
    """Meters one task at its winner.

    Args:
        allocation: the checked allocation (`PendingBid.check_outcome`).
        payload: prompt and sampling parameters, for the winner alone.
        channel: the account's channel, on which the task is owed.
        chain_id: the market's chain id.
        window_tokens: output tokens that may run ahead of acknowledgements (`MarketParams`).
        tolerance_ms: how far the provider's clock and this one may disagree.

    """

    def __init__(
        self,
        allocation: Signed[Allocation],
        payload: TaskPayload,
        *,
        channel: Channel,
        chain_id: str,
        window_tokens: int,
        tolerance_ms: int,
    ) -> None:
        terms = allocation.message
        if (len(payload.token_ids), payload.max_tokens) != (terms.prompt_tokens, terms.max_tokens):
            raise InvalidAllocationError("the allocation is for another prompt or max_tokens")
        self.allocation = allocation
        self.receipt: Signed[Receipt] | None = None
        """The last receipt that was countersigned."""
        self.output_token_ids: list[int] = []
        self._payload = payload
        self._channel = channel
        self._chain_id = chain_id
        self._window_tokens = window_tokens
        self._tolerance_ms = tolerance_ms
        self._output_hash = b""
        self._started_at_ms: int | None = None
        # Weighed by this side's clock: what a receipt may claim at most.
        self._delivery = Delivery()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether nothing more is owed or expected: last receipt, busy, or given up."""
        return self._ended

    def start(self, *, now_ms: int) -> TaskStart:
        """Make the task's first message: allocation, receipt 0, the total that owes it, prompt.

        Raises: LocalProtocolError if the task was started before.
        """
        if self._started_at_ms is not None:
            raise LocalProtocolError("the task was started before")
        self._started_at_ms = now_ms
        terms = self.allocation.message
        request = TaskRequest(
            allocation_hash=self.allocation.hash,
            account=self._channel.account,
            provider=terms.provider,
            prompt_hash=compute_prompt_hash(self._payload),
            prompt_tokens=terms.prompt_tokens,
            max_tokens=terms.max_tokens,
            requested_at_ms=now_ms,
        )
        amount_micros = compute_first_window_micros(terms, self._window_tokens)
        total = self._channel.open_task(self.allocation, amount_micros)
        signed = self._channel.signer.sign(request)
        self._output_hash = signed.hash
        return TaskStart(self.allocation, signed, total, self._payload)

    def take_chunk(self, chunk: OutputChunk, *, now_ms: int) -> None:
        """Count delivered tokens at the time they arrived.

        Raises: RemoteProtocolError if they come out of place or beyond `max_tokens`.
        """
        started_at_ms = self._require_running()
        if len(self.output_token_ids) + len(chunk.token_ids) > self.allocation.message.max_tokens:
            raise RemoteProtocolError("the provider sent more than max_tokens tokens")
        late_ppm = self._compute_late_ppm(now_ms - started_at_ms)
        self._delivery = self._delivery.add(len(chunk.token_ids), late_ppm)
        self.output_token_ids.extend(chunk.token_ids)
        self._output_hash = extend_output_hash(self._output_hash, chunk.token_ids)

    def take_receipt(self, signed: Signed[Receipt]) -> ReceiptCountersigned:
        """Check a receipt and countersign it, with the new total.

        Raises: InvalidSignatureError, InvalidReceiptError with `field`, RemoteProtocolError.
        """
        self._require_running()
        terms = self.allocation.message
        verify_signed(signed, self._chain_id, expected_signer=terms.provider)
        receipt = signed.message
        self._check_place(receipt)
        self._check_usage(receipt)
        self._check_amount(receipt)
        final = receipt.finish is not FinishReason.UNSPECIFIED
        self._ended = final
        self.receipt = signed
        acknowledgement = ReceiptAcknowledgement(
            signed.hash, self.allocation.hash, receipt.sequence
        )
        total = self._channel.acknowledge(self.allocation, receipt.amount_micros, final=final)
        return ReceiptCountersigned(self._channel.signer.sign(acknowledgement), total)

    def take_busy(self, signed: Signed[Busy]) -> None:
        """Accept that the provider is over capacity: the task owes nothing.

        Raises: InvalidSignatureError, RemoteProtocolError if it delivered before.
        """
        self._require_running()
        provider = self.allocation.message.provider
        verify_signed(signed, self._chain_id, expected_signer=provider)
        busy = signed.message
        if (busy.allocation_hash, busy.provider) != (self.allocation.hash, provider):
            raise RemoteProtocolError("the provider is busy for another task")
        if self.receipt is not None or self.output_token_ids:
            raise RemoteProtocolError("a provider that delivers is not busy")
        self._channel.void_task(self.allocation)
        self._ended = True

    def abandon(self) -> None:
        """Give the task up without a last receipt.

        What arrived is owed by this side's own count, at most what was signed for, and nothing at
        all if no token arrived.
        """
        if self._ended or self._started_at_ms is None:
            return
        terms = self.allocation.message
        usage = self._delivery.bill(terms.prompt_tokens, shown_cached_tokens=terms.cached_tokens)
        self._channel.abandon_task(self.allocation, compute_amount_micros(terms.rates, usage))
        self._ended = True

    def _require_running(self) -> int:
        if self._started_at_ms is None:
            raise LocalProtocolError("the task was not started")
        if self._ended:
            raise RemoteProtocolError("the provider goes on after the task's end")
        return self._started_at_ms

    def _compute_late_ppm(self, elapsed_ms: int) -> int:
        lateness = self.allocation.message.lateness
        return lateness.compute_ppm(max(0, elapsed_ms - self._tolerance_ms))

    def _check_place(self, receipt: Receipt) -> None:
        """Check that the receipt is the next one of this very task."""
        terms = self.allocation.message
        last = self.receipt.message.sequence if self.receipt is not None else 0
        _require_fields(
            receipt,
            allocation_hash=self.allocation.hash,
            account=terms.account,
            provider=terms.provider,
            hub=terms.hub,
            term=terms.term,
            channel=terms.channel,
            max_tokens=terms.max_tokens,
            prompt_tokens=terms.prompt_tokens,
            sequence=last + 1,
        )

    def _check_usage(self, receipt: Receipt) -> None:
        """Check the receipt's usage against what arrived here, and when."""
        _require_fields(
            receipt,
            output_tokens=len(self.output_token_ids),
            output_hash=self._output_hash,
        )
        shown = self.allocation.message.cached_tokens
        if receipt.billed_cached_tokens < max(shown, receipt.cached_tokens):
            raise InvalidReceiptError(
                f"{receipt.billed_cached_tokens} tokens are billed as cached, of {shown} in the "
                f"allocation and {receipt.cached_tokens} by the backend",
                field="billed_cached_tokens",
            )
        _require_most(receipt, "prompt_late_ppm", self._delivery.prompt_late_ppm)
        _require_most(receipt, "output_late_ppm_tokens", self._delivery.output_late_ppm_tokens)

    def _check_amount(self, receipt: Receipt) -> None:
        amount_micros = compute_amount_micros(
            self.allocation.message.rates,
            MeteredUsage(
                uncached_tokens=receipt.prompt_tokens - receipt.billed_cached_tokens,
                cached_tokens=receipt.billed_cached_tokens,
                prompt_late_ppm=receipt.prompt_late_ppm,
                output_late_ppm_tokens=receipt.output_late_ppm_tokens,
            ),
        )
        _require_fields(receipt, amount_micros=amount_micros)


def _require_fields(receipt: Receipt, **expected: object) -> None:
    for name, value in expected.items():
        given = getattr(receipt, name)
        if given != value:
            shown = f"is {given}, not {value}" if isinstance(value, int) else "is another"
            raise InvalidReceiptError(f"the receipt's {name} {shown}", field=name)


def _require_most(receipt: Receipt, name: str, most: int) -> None:
    given = getattr(receipt, name)
    if given > most:
        raise InvalidReceiptError(f"the receipt's {name} is {given}, above {most}", field=name)
