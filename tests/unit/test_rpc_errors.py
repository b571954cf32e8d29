"""Errors cross gRPC by name, and only what speaks about the call comes back as itself."""

import json

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iemas import rpc_errors
from iemas.core import errors
from iemas.core.errors import IemasError
from iemas.rpc_errors import ERROR_KEY, build_error, encode_error, from_rpc_error

CLASSES = sorted(
    {cls for cls in rpc_errors._walk(IemasError) if cls.__module__.startswith("iemas.")},
    key=lambda cls: cls.__name__,
)
REBUILT = [
    cls
    for cls in CLASSES
    if cls is not IemasError and not issubclass(cls, rpc_errors._NOT_ABOUT_THE_CALL)
]


class Call(grpc.RpcError):
    """What a failed call looks like."""

    def __init__(
        self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__()
        self._answer = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._answer[2]


@pytest.mark.parametrize("cls", REBUILT)
def test_an_error_about_the_call_comes_back_as_itself(cls: type[IemasError]) -> None:
    error = cls("what to do", term=3, account=bytes(32), hint="host:1", on=True)
    call = Call(*encode_error(error))
    rebuilt = from_rpc_error(call)
    assert type(rebuilt) is cls
    assert str(rebuilt) == "what to do"
    assert rebuilt.__cause__ is call
    assert vars(rebuilt).items() >= {"term": 3, "account": bytes(32), "hint": "host:1"}.items()
    assert rebuilt.operands["code"] == cls.__name__


@pytest.mark.parametrize("cls", rpc_errors._NOT_ABOUT_THE_CALL)
def test_another_nodes_invariants_are_not_ours(cls: type[IemasError]) -> None:
    rebuilt = from_rpc_error(Call(*encode_error(cls("broken"))))
    assert type(rebuilt) is errors.APIStatusError
    assert rebuilt.operands["code"] == cls.__name__


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_a_status(cls: type[IemasError]) -> None:
    status = rpc_errors.get_status(cls("x"))
    assert status is not grpc.StatusCode.OK
    if issubclass(cls, errors.InvalidInputError):
        assert status not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.APIConnectionError),
        (grpc.StatusCode.CANCELLED, errors.APIConnectionError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.APITimeoutError),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.BadRequestError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.APIStatusError),
        (grpc.StatusCode.INTERNAL, errors.APIStatusError),
    ],
)
def test_without_a_name_the_status_decides(
    status: grpc.StatusCode, cls: type[errors.APIError]
) -> None:
    rebuilt = from_rpc_error(Call(status, "socket closed"))
    assert type(rebuilt) is cls
    assert rebuilt.operands["status_code"] == status.name


def test_connection_errors_may_be_retried() -> None:
    rebuilt = from_rpc_error(Call(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert isinstance(rebuilt, errors.APIError)
    assert rebuilt.retryable


def test_an_unknown_name_is_kept_as_the_code() -> None:
    rebuilt = build_error("NewerError", "from a newer node")
    assert type(rebuilt) is errors.APIStatusError
    assert rebuilt.operands["code"] == "NewerError"


def test_a_bare_rpc_error_is_named_too() -> None:
    assert isinstance(from_rpc_error(grpc.RpcError()), errors.APIStatusError)


def test_what_was_streamed_does_not_travel_in_metadata() -> None:
    error = errors.ProviderFailedError("the provider failed", text="a private answer", tokens=3)
    _, _, metadata = encode_error(error)
    assert "private" not in repr(metadata)
    assert json.loads(dict(metadata)[rpc_errors.OPERANDS_KEY]) == {"tokens": 3}


def test_texts_are_bounded() -> None:
    error = errors.InvalidBidError("x" * 10_000, note="y" * 10_000, many="z" * 150)
    _, details, metadata = encode_error(error)
    assert len(details) <= 1024
    assert len(repr(metadata)) <= 2048


@pytest.mark.parametrize(
    "operands",
    [
        "junk",
        "[1]",
        '{"retryable": true, "args": 1, "__cause__": 1, "with_traceback": 1, "operands": 1}',
        '{"message": "x", "a b": 1, "x": {"hex": "zz"}, "y": {"hex": 1}, "z": [1]}',
        "[" * 2000,
    ],
)
def test_hostile_operands_are_left_out(operands: str) -> None:
    error = build_error("UnmatchedError", "no", operands)
    assert type(error) is errors.UnmatchedError
    assert error.operands == {"code": "UnmatchedError"}
    assert error.retryable is True


@given(name=st.text(max_size=30), message=st.text(max_size=30), operands=st.text(max_size=60))
def test_any_answer_gives_an_error(name: str, message: str, operands: str) -> None:
    assert isinstance(build_error(name, message, operands), IemasError)


def test_the_metadata_names_the_class() -> None:
    status, details, metadata = encode_error(errors.UnfundedBidError("add escrow"))
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert details == "add escrow"
    assert metadata == ((ERROR_KEY, "UnfundedBidError"),)


@pytest.mark.parametrize(
    "cls",
    [errors.LedgerForkError, errors.TrustExpiredError, errors.UnverifiedBalanceError],
)
def test_what_a_light_client_finds_cannot_be_claimed_by_a_node(cls: type[IemasError]) -> None:
    assert type(build_error(cls.__name__, "text")) is errors.APIStatusError
