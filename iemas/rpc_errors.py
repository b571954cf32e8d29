"""Errors across gRPC: one table from exception to status, and the way back.

A server ends a call with the status of the error's class, its text, and in the trailing metadata
the class's name (``iemas-error``) and the operands that a caller acts on
(``iemas-error-operands``, JSON). A client rebuilds the same exception from them; without them
(the connection broke, another program answered) the status alone decides. ``grpc.RpcError`` stays
as ``__cause__`` and never reaches a user.

What a remote party says is a claim: only errors that speak about the call are rebuilt. Another
node's `InternalError` is an `APIStatusError` here, as it says nothing about our own invariants.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import grpc

from iemas.core import errors
from iemas.core.errors import APIStatusError, IemasError
from iemas.tls import InvalidCertificateError

ERROR_KEY = "iemas-error"
OPERANDS_KEY = "iemas-error-operands"

STATUS_OF: dict[type[IemasError], grpc.StatusCode] = {
    IemasError: grpc.StatusCode.UNKNOWN,
    errors.ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InternalError: grpc.StatusCode.INTERNAL,
    errors.LocalProtocolError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RemoteProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OversizedMessageError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.FloodError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PeerDisconnectedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.InvalidSignatureError: grpc.StatusCode.UNAUTHENTICATED,
    InvalidCertificateError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ReplayedReportError: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongSignerError: grpc.StatusCode.PERMISSION_DENIED,
    errors.InsufficientBalanceError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NonceMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnfundedBidError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DuplicateBidError: grpc.StatusCode.ALREADY_EXISTS,
    errors.UnknownAccountError: grpc.StatusCode.NOT_FOUND,
    errors.UnknownTransactionError: grpc.StatusCode.NOT_FOUND,
    errors.NotAuctioneerError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProviderBusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuorumUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.BackendError: grpc.StatusCode.UNAVAILABLE,
    errors.APIError: grpc.StatusCode.UNKNOWN,
    errors.APIConnectionError: grpc.StatusCode.UNAVAILABLE,
    errors.APITimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.PromptTooLongError: grpc.StatusCode.OUT_OF_RANGE,
    errors.InsufficientFundsError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnmatchedError: grpc.StatusCode.ABORTED,
    errors.ProviderFailedError: grpc.StatusCode.UNAVAILABLE,
}
"""The one table. A class that is not named has the status of its nearest named base."""

_FROM_STATUS: dict[grpc.StatusCode, type[errors.APIError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.APIConnectionError,
    grpc.StatusCode.CANCELLED: errors.APIConnectionError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.APITimeoutError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.BadRequestError,
    grpc.StatusCode.OUT_OF_RANGE: errors.BadRequestError,
}

_NOT_ABOUT_THE_CALL = (
    errors.ConfigurationError,
    errors.InternalError,
    errors.LocalProtocolError,
    errors.RemoteProtocolError,
    errors.LedgerForkError,
    errors.TrustExpiredError,
    errors.UnconfirmedTransactionError,
    errors.UnverifiedAnswerError,
)
_MAX_TEXT = 1024
_MAX_OPERANDS = 1024
_MAX_OPERAND_TEXT = 200


def get_status(error: IemasError) -> grpc.StatusCode:
    """Look an error's class, or its nearest base, up in the table."""
    for cls in type(error).__mro__:
        status = STATUS_OF.get(cls)
        if status is not None:
            return status
    return grpc.StatusCode.UNKNOWN


def encode_error(error: IemasError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Give what a call is aborted with: status, text (bounded), trailing metadata."""
    metadata = [(ERROR_KEY, type(error).__name__)]
    operands = encode_operands(error)
    if operands:
        metadata.append((OPERANDS_KEY, operands))
    return get_status(error), str(error)[:_MAX_TEXT], tuple(metadata)


def encode_operands(error: IemasError) -> str:
    """Encode the operands that a caller can act on as ASCII JSON; empty if there are none.

    Only integers, booleans, ids and hashes (as ``{"hex": …}``) and short texts travel: never the
    `text` of an answer, nor a nested object.
    """
    travelling: dict[str, object] = {}
    for name, value in error.operands.items():
        if isinstance(value, int) or (
            isinstance(value, str) and name != "text" and len(value) <= _MAX_OPERAND_TEXT
        ):
            travelling[name] = value
        elif isinstance(value, bytes) and len(value) <= 64:
            travelling[name] = {"hex": value.hex()}
    if not travelling:
        return ""
    encoded = json.dumps(travelling, separators=(",", ":"), sort_keys=True)
    return encoded if len(encoded) <= _MAX_OPERANDS else ""


def _decode_operands(encoded: str, cls: type[IemasError]) -> dict[str, Any]:
    """Decode operands, leaving out whatever a correct peer would not have sent."""
    try:
        values = json.loads(encoded[: _MAX_OPERANDS + 1]) if encoded else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    operands: dict[str, Any] = {}
    for name, value in values.items():
        # An operand becomes an attribute: it must never cover one that the class itself has.
        if not name.isidentifier() or name.startswith("_") or name in {"message", "operands"}:
            continue
        if hasattr(cls, name):
            continue
        if isinstance(value, (int, str)):
            operands[name] = value
        elif isinstance(value, dict) and isinstance(value.get("hex"), str):
            try:
                operands[name] = bytes.fromhex(value["hex"])
            except ValueError:
                continue
    return operands


def _walk(cls: type[IemasError]) -> Iterable[type[IemasError]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _walk(subclass)


def build_error(name: str, message: str, operands: str = "") -> IemasError:
    """Rebuild a named error that another party reported, also from a stream's `Refusal`.

    Names that are unknown here, or that do not speak about the call, become `APIStatusError` with
    the name as its `code`.
    """
    by_name = {cls.__name__: cls for cls in _walk(IemasError)}
    cls = by_name.get(name)
    if cls is None or cls is IemasError or issubclass(cls, _NOT_ABOUT_THE_CALL):
        return APIStatusError(message or f"the market answered with {name}", code=name)
    return cls(message, **{"code": name, **_decode_operands(operands, cls)})


def from_rpc_error(error: grpc.RpcError) -> IemasError:
    """Rebuild the named error of a failed call; the original is its ``__cause__``.

    The result has `status_code` (gRPC's name for it) and `code` (the error's own name). Use as
    ``raise from_rpc_error(error) from error``.
    """
    # The typing of gRPC hides that what is raised is also a call with these methods.
    status: grpc.StatusCode = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    details: str = (error.details() if hasattr(error, "details") else "") or ""
    metadata = {
        str(key): value if isinstance(value, str) else ""
        for key, value in (_get_trailing_metadata(error) or ())
    }
    name = metadata.get(ERROR_KEY)
    if name:
        rebuilt = build_error(name, details, metadata.get(OPERANDS_KEY, ""))
    else:
        cls = _FROM_STATUS.get(status, APIStatusError)
        rebuilt = cls(_describe(status, details), code=status.name)
    rebuilt.operands["status_code"] = status.name
    rebuilt.status_code = status.name  # type: ignore[attr-defined]
    rebuilt.__cause__ = error
    return rebuilt


def _get_trailing_metadata(error: grpc.RpcError) -> Any:
    return error.trailing_metadata() if hasattr(error, "trailing_metadata") else None


def _describe(status: grpc.StatusCode, details: str) -> str:
    if status is grpc.StatusCode.UNAVAILABLE:
        return f"the node cannot be reached: {details}" if details else "the node is unreachable"
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "the node did not answer within the deadline"
    if status is grpc.StatusCode.CANCELLED:
        return "the call was cut off before its answer"
    return f"the node answered {status.name}: {details}"
