"""One task at its winner: a pump that meters, countersigns at once, and hands on the text.

The pump reads on whether or not the user does, so that a slow reader neither stops the provider
with a full window nor makes its receipts look late. Source: design §4 steps 6 and 7.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from iemas import wire
from iemas.client._metering import TaskMeter
from iemas.core.envelope import Envelope
from iemas.core.errors import (
    IemasError,
    InvalidInputError,
    ProviderBusyError,
    ProviderFailedError,
    RemoteProtocolError,
)
from iemas.core.execution import Busy, OutputChunk, Receipt
from iemas.core.types import FinishReason, short_id
from iemas.rpc_errors import from_rpc_error
from iemas.v1.execution_service_pb2 import CancelTask, ExecuteRequest, ExecuteResponse
from iemas.v1.execution_service_pb2_grpc import ExecutionServiceStub

CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The task ended with its last receipt."""

    reason: FinishReason


TaskEvent = OutputChunk | Finished


class TaskStream:
    """A running task.

    Args:
        channel: the connection to the winner.
        meter: the task's meter, not yet started.
        clock: gives Unix milliseconds.
        timeout_seconds: when the call ends by itself, should nobody close it.
        on_done: called once the call is over, the last receipt's countersignature included.

    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        meter: TaskMeter,
        *,
        clock: Callable[[], int],
        timeout_seconds: float,
        on_done: Callable[[TaskStream], None],
    ) -> None:
        self.meter = meter
        self._clock = clock
        self._texts: list[str] = []
        self._events: asyncio.Queue[TaskEvent | IemasError] = asyncio.Queue()
        stub: Any = ExecutionServiceStub(channel)
        self._call = stub.Execute(timeout=timeout_seconds)
        self._writing = asyncio.Lock()
        self._over = False
        self._cancelled = False
        self._pump = asyncio.create_task(self._run())
        self._pump.add_done_callback(lambda _: on_done(self))

    @property
    def text(self) -> str:
        """The text delivered so far."""
        return "".join(self._texts)

    async def next_event(self) -> TaskEvent:
        """Give the next chunk, or the end.

        Raises: ProviderBusyError; ProviderFailedError with `text`, `receipt`, `output_tokens`.
        """
        if self._over and self._events.empty():
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, IemasError):
            raise event
        return event

    async def close(self) -> None:
        """Stop the task: cancel it if it runs, countersign what arrived, free the call."""
        if not self._pump.done() and not self.meter.ended and not self._cancelled:
            self._cancelled = True
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await self._write(ExecuteRequest(cancel=CancelTask()))
        await asyncio.wait({self._pump}, timeout=CLOSE_SECONDS)
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump

    # --- the pump ----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            start = self.meter.start(now_ms=self._clock())
            await self._write(ExecuteRequest(start=wire.to_proto(start)))
            async for response in self._call:
                await self._take(response)
            if not self.meter.ended:
                self._put(self._fail("the provider ended the stream without a last receipt"))
        except grpc.RpcError as error:
            cause = from_rpc_error(error)
            self._put(self._fail(f"the provider failed: {cause}", cause))
        except asyncio.InvalidStateError as error:
            self._put(self._fail("the provider's stream broke", error))
        except (InvalidInputError, RemoteProtocolError) as error:
            self._put(self._fail(f"the provider broke the protocol: {error}", error))
        finally:
            if not self._over:
                self._put(self._fail("the task was closed"))
            self.meter.abandon()
            self._call.cancel()

    async def _take(self, response: ExecuteResponse) -> None:
        match response.WhichOneof("message"):
            case "chunk":
                chunk = wire.from_proto(OutputChunk, response.chunk)
                self.meter.take_chunk(chunk, now_ms=self._clock())
                self._texts.append(chunk.text)
                self._put(chunk)
            case "receipt":
                await self._take_receipt(wire.from_proto(Envelope, response.receipt))
            case "busy":
                busy = wire.open_envelope(Busy, wire.from_proto(Envelope, response.busy))
                self.meter.take_busy(busy)
                self._put(ProviderBusyError(f"the provider is busy: {busy.message.reason}"))
            case _:
                raise RemoteProtocolError("the provider sent an empty message")

    async def _take_receipt(self, envelope: Envelope) -> None:
        receipt = wire.open_envelope(Receipt, envelope)
        countersigned = self.meter.take_receipt(receipt)
        reason = receipt.message.finish
        # The user need not wait for the provider to get its last signature.
        if reason is FinishReason.FAILED:
            self._put(self._fail("the provider's backend failed"))
        elif reason is not FinishReason.UNSPECIFIED:
            self._put(Finished(reason))
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._write(ExecuteRequest(countersigned=wire.to_proto(countersigned)))
            if self.meter.ended:
                await self._call.done_writing()

    async def _write(self, request: ExecuteRequest) -> None:
        async with self._writing:
            await self._call.write(request)

    def _put(self, event: TaskEvent | IemasError) -> None:
        """Hand an event on; nothing comes after the first that ends the task."""
        if not self._over:
            self._events.put_nowait(event)
            self._over = not isinstance(event, OutputChunk)

    def _fail(self, message: str, cause: BaseException | None = None) -> ProviderFailedError:
        receipt = self.meter.receipt
        provider = self.meter.allocation.message.provider
        error = ProviderFailedError(
            f"{message} (node {short_id(provider)}, after {len(self.meter.output_token_ids)} "
            "tokens; what was streamed is in `text`)",
            code="provider_failed",
            text=self.text,
            receipt=receipt.message if receipt is not None else None,
            output_tokens=len(self.meter.output_token_ids),
            provider=provider,
        )
        error.__cause__ = cause
        return error
