"""What is told of a question that no node answered with a proof."""

from __future__ import annotations

from iemas.client._headers import BehindError
from iemas.client._light import _explain
from iemas.core.errors import (
    APIConnectionError,
    APITimeoutError,
    UnknownTransactionError,
    UnverifiedTransactionError,
)

SILENT = APITimeoutError("did not answer in 5 s")


def test_a_silent_node_says_less_than_one_that_is_behind() -> None:
    behind = BehindError("its newest header is 40 s old", part="height")
    error = _explain([behind, SILENT], UnverifiedTransactionError)
    assert isinstance(error, UnverifiedTransactionError)
    assert error.operands["field"] == "height"


def test_a_silent_node_says_less_than_one_that_has_no_such_transaction() -> None:
    unknown = UnknownTransactionError("it has no transaction")
    assert _explain([unknown, SILENT], UnverifiedTransactionError) is unknown


def test_nodes_that_are_all_silent_proved_nothing_wrong() -> None:
    error = _explain([SILENT, SILENT], UnverifiedTransactionError)
    assert isinstance(error, APIConnectionError)
    assert "no node of the market answers" in str(error)
