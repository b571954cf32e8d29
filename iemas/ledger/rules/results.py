"""Results of transactions, and the checks that several rules share."""

from __future__ import annotations

from collections.abc import Iterable

from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import InvalidSignatureError
from iemas.core.types import AccountId, NodeId
from iemas.ledger.records import TermKey, TermRecord
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import ResultCode, TransactionResult

OK = TransactionResult(ResultCode.OK)


def refuse(code: ResultCode, detail: str = "") -> TransactionResult:
    """Make the recorded result of a refusal."""
    return TransactionResult(code, detail)


def format_failures(failures: Iterable[tuple[int, ResultCode]]) -> str:
    """Write failed entries as ``index:CODE index:CODE``, for a result's `detail`."""
    return " ".join(f"{index}:{code.name}" for index, code in failures)


def parse_failures(detail: str) -> dict[int, ResultCode]:
    """Read what `format_failures` wrote: the failed entries by index."""
    pairs = (item.split(":", 1) for item in detail.split())
    return {int(index): ResultCode[name] for index, name in pairs}


def find_term(state: LedgerState, key: TermKey) -> tuple[TransactionResult, TermRecord | None]:
    """Give an open term, or else the refusal that tells why there is none."""
    if key.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB), None
    return refuse(ResultCode.UNKNOWN_TERM, "the term is not open"), state.terms.get(key)


def is_signed_by(signed: Signed[object], signer: NodeId | AccountId, state: LedgerState) -> bool:
    """Tell whether the message is rightly signed, on this chain, by this signer."""
    try:
        verify_signed(signed, state.chain_id, expected_signer=signer)
    except InvalidSignatureError:
        return False
    return True
