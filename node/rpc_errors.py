"""Errors of servicers: whatever a handler raises becomes one gRPC status, counted once.

`ErrorInterceptor` stands in front of every handler of both listeners, so servicers just raise.
Errors that IEMAS raises on purpose go out by the table in `iemas.rpc_errors`; anything else is our
bug: the caller learns INTERNAL and nothing more, the log gets the traceback.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from iemas.core.errors import IemasError, InternalError, MalformedMessageError
from iemas.rpc_errors import encode_error, from_rpc_error

Parse = Callable[[bytes], Any]

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def translate_errors(
    context: Any,
    refused: Counter[str] | None = None,
    *,
    method: str = "",
    on_internal_error: Callable[[InternalError], None] | None = None,
) -> AsyncIterator[None]:
    """End the call of `context` with the status of whatever the body raises.

    `refused` counts errors by class name. `on_internal_error` is told of invariants that broke,
    so that the node can stop; other unexpected exceptions are only logged, or one odd request
    could stop a node: calls of the core stop it by themselves (`Driver.guard`). Cancellation
    passes through.
    """
    try:
        yield
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - this is the boundary where unknown errors end
        named = _name_error(error)
        if refused is not None:
            refused[type(named).__name__] += 1
        if isinstance(named, InternalError):
            _log.error("handler_failed", method=method, exc_info=error)
            if on_internal_error is not None and isinstance(error, InternalError):
                on_internal_error(error)
            named = InternalError("the node failed to answer; its log says why")
        await context.abort(*encode_error(named))


def _name_error(error: Exception) -> IemasError:
    if isinstance(error, IemasError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    return InternalError("unexpected error")


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Puts `translate_errors` around every handler of a server.

    `refused` is shared with whoever reports it: error class name to count.
    """

    def __init__(
        self,
        refused: Counter[str],
        on_internal_error: Callable[[InternalError], None] | None = None,
    ) -> None:
        self._refused = refused
        self._on_internal_error = on_internal_error

    def _translate(self, context: Any, method: str) -> AbstractAsyncContextManager[None]:
        return translate_errors(
            context, self._refused, method=method, on_internal_error=self._on_internal_error
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler that gRPC found; unknown methods stay UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        for kind in ("unary_unary", "stream_unary", "unary_stream", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None and _is_async(behaviour):
                # gRPC parses a single request outside of the handler, so that is done here.
                parse = _name_parse_errors(handler.request_deserializer)
                inside = None if handler.request_streaming else parse
                outside = parse if handler.request_streaming else None
                wrapped = self._wrap(behaviour, method, inside)
                return handler._replace(**{kind: wrapped}, request_deserializer=outside)
        return handler

    def _wrap(
        self, behaviour: Callable[..., Any], method: str, parse: Parse | None
    ) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
                async with (
                    self._translate(context, method),
                    aclosing(behaviour(parse(request) if parse else request, context)) as responses,
                ):
                    async for response in responses:
                        yield response

            return generate

        async def answer(request: Any, context: Any) -> Any:
            async with self._translate(context, method):
                return await behaviour(parse(request) if parse else request, context)

        return answer


def _is_async(behaviour: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(behaviour) or inspect.iscoroutinefunction(behaviour)


def _name_parse_errors(deserialize: Parse | None) -> Parse | None:
    """Make bytes that do not parse a `MalformedMessageError`."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            raise MalformedMessageError("the request does not parse") from error

    return parse
