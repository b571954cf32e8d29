"""The task stream: prompt in, tokens and receipts out, countersignatures back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import structlog

from iemas import wire
from iemas.core.errors import BackendError, IemasError, ProviderBusyError, RemoteProtocolError
from iemas.core.execution import OutputChunk, ReceiptCountersigned, TaskStart
from iemas.core.types import FinishReason, short_id
from iemas.v1 import execution_service_pb2, execution_service_pb2_grpc
from node.backends.base import Backend, BackendUsage
from node.cache_watch import CacheWatch
from node.clock import get_now_ms
from node.driver import Driver
from node.execution import Execution, ExecutionFrame
from node.metrics import TASKS, TOKENS

_log = structlog.get_logger(__name__)
START_TIMEOUT_S = 10.0
ACKNOWLEDGE_TIMEOUT_S = 30.0
FINAL_ACKNOWLEDGE_TIMEOUT_S = 5.0

Request = execution_service_pb2.ExecuteRequest
Response = execution_service_pb2.ExecuteResponse


class ExecutionServicer(execution_service_pb2_grpc.ExecutionServiceServicer):
    """`ExecutionService` on the public listener of a provider."""

    def __init__(self, driver: Driver, backend: Backend, watch: CacheWatch) -> None:
        self._driver = driver
        self._backend = backend
        self._watch = watch

    async def Execute(
        self, request_iterator: AsyncIterator[Request], context: Any
    ) -> AsyncIterator[Response]:
        """Serve one task."""
        requests = aiter(request_iterator)
        start = await _read_start(requests)
        try:
            with self._driver.guard():
                execution, ready = self._driver.core.begin_task(start, now_ms=get_now_ms())
        except ProviderBusyError as error:
            yield Response(busy=wire.to_proto(error.operands["busy"].envelope))  # type: ignore[attr-defined]
            return
        self._driver.carry_out(ready)
        call = _Call(self._driver, execution)
        reader = asyncio.create_task(call.read(requests))
        try:
            async with aclosing(self._serve(call)) as frames:
                async for frame in frames:
                    yield _to_response(frame)
        finally:
            reader.cancel()
            with self._driver.guard():
                ready = self._driver.core.end_task(execution, now_ms=get_now_ms())
            self._driver.carry_out(ready)
            _count(execution)

    async def _serve(self, call: _Call) -> AsyncGenerator[ExecutionFrame, None]:
        """Stream the backend's output under the window; end with a final receipt."""
        execution = call.execution
        reason, cached_tokens = FinishReason.CANCELLED, None
        try:
            stream = self._backend.stream(execution.start.payload)
            async with aclosing(stream) as items:
                async for item in _until(items, call.cancelled):
                    if isinstance(item, BackendUsage):
                        reason, cached_tokens = item.finish, item.cached_tokens
                        continue
                    for frame in execution.deliver(item.text, item.token_ids, now_ms=get_now_ms()):
                        yield frame
                    await call.wait_unblocked()
        except BackendError as error:
            _log.warning(
                "task_failed", task=short_id(execution.start.allocation.hash), error=str(error)
            )
            reason = FinishReason.FAILED
        self._watch.flush()
        with self._driver.guard():
            ready = self._driver.core.release_task(execution, now_ms=get_now_ms())
        self._driver.carry_out(ready)
        # The requester may bid for its next turn as soon as it has the last receipt: the digest and
        # the free slot must not come after that bid.
        await self._driver.flush_sends()
        for frame in execution.finish(reason, cached_tokens=cached_tokens):
            yield frame
        await call.wait_done()


class _Call:
    """One stream's reading side: acknowledgements and cancellation."""

    def __init__(self, driver: Driver, execution: Execution) -> None:
        self.execution = execution
        self.cancelled = asyncio.Event()
        self._driver = driver
        self._changed = asyncio.Event()
        self._error: IemasError | None = None
        self._hung_up = False

    async def read(self, requests: AsyncIterator[Request]) -> None:
        """Take what the requester sends until it hangs up or sends something wrong."""
        try:
            async for request in requests:
                self._take(request)
        except IemasError as error:
            self._error = error
        finally:
            self._hung_up = True
            self.cancelled.set()
            self._changed.set()

    def _take(self, request: Request) -> None:
        match request.WhichOneof("message"):
            case "countersigned":
                message = wire.from_proto(ReceiptCountersigned, request.countersigned)
                core, now_ms = self._driver.core, get_now_ms()
                with self._driver.guard():
                    ready = core.acknowledge_receipt(self.execution, message, now_ms=now_ms)
                self._driver.carry_out(ready)
                self._changed.set()
            case "cancel":
                self.cancelled.set()
            case other:
                raise RemoteProtocolError(f"{other} does not belong in a running task")

    async def wait_unblocked(self) -> None:
        """Wait while the window is full.

        Raises: what the requester's wrong message raised; RemoteProtocolError if it stays silent.
        """
        await self._wait(lambda: not self.execution.blocked, ACKNOWLEDGE_TIMEOUT_S)
        if self.execution.blocked and not self.cancelled.is_set():
            raise RemoteProtocolError("the requester acknowledges no receipts")

    async def wait_done(self) -> None:
        """Wait a little for the final receipt's countersignature."""
        await self._wait(lambda: self.execution.done, FINAL_ACKNOWLEDGE_TIMEOUT_S)

    async def _wait(self, condition: Any, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not condition() and not self._hung_up:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return
        finally:
            if self._error is not None:
                raise self._error


async def _read_start(requests: AsyncIterator[Request]) -> TaskStart:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            first = await anext(requests)
    except StopAsyncIteration:
        raise RemoteProtocolError("the stream ended before it began") from None
    except TimeoutError:
        raise RemoteProtocolError(f"no start message came within {START_TIMEOUT_S:.0f} s") from None
    if first.WhichOneof("message") != "start":
        raise RemoteProtocolError("a task begins with its start message")
    return wire.from_proto(TaskStart, first.start)


async def _until(items: AsyncIterator[Any], stop: asyncio.Event) -> AsyncIterator[Any]:
    """Give the items of an iterator until an event is set."""
    stopper = asyncio.create_task(stop.wait())
    try:
        while True:
            getter = asyncio.ensure_future(anext(items, None))
            await asyncio.wait({getter, stopper}, return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                getter.cancel()
                await asyncio.gather(getter, return_exceptions=True)
                return
            item = getter.result()
            if item is None:
                return
            yield item
    finally:
        stopper.cancel()


def _to_response(frame: ExecutionFrame) -> Response:
    if isinstance(frame, OutputChunk):
        return Response(chunk=wire.to_proto(frame))
    return Response(receipt=wire.to_proto(frame.envelope))


def _count(execution: Execution) -> None:
    notice = execution.last_acknowledged
    if notice is None:
        TASKS.labels("UNACKNOWLEDGED").inc()
        return
    receipt = notice.receipt.message
    TASKS.labels(receipt.finish.name).inc()
    TOKENS.labels("prompt").inc(receipt.prompt_tokens)
    TOKENS.labels("cached").inc(receipt.cached_tokens)
    TOKENS.labels("output").inc(receipt.output_tokens)
