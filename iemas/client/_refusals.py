"""What the ledger's refusals mean to whoever sent the transaction, and what to do about them.

The codes are those of `iemas.ledger.transaction.ResultCode`; docs/spec/ledger.md §5 lists which
body is refused by which.
"""

from __future__ import annotations

from iemas.core.errors import (
    APIStatusError,
    IemasError,
    InsufficientBalanceError,
    NonceMismatchError,
)
from iemas.ledger.transaction import (
    CommitAsk,
    ResultCode,
    Stake,
    TransactionBody,
    Unstake,
    VoteParameter,
    WithdrawDeposit,
    WithdrawEscrow,
)

_ADVICE: dict[ResultCode, str] = {
    ResultCode.INSUFFICIENT_BALANCE: "take less, or have money transferred to the account first",
    ResultCode.NONCE_TOO_LOW: "another client or the node of this key was faster; send it again",
    ResultCode.UNKNOWN_ACCOUNT: "have money transferred to the account first",
    ResultCode.NOT_VALIDATOR: "only a validator may do this: stake first, with its node's own key",
    ResultCode.ALREADY_DONE: "nothing is left to do",
    ResultCode.LIMIT_REACHED: "wait until there is room again",
    ResultCode.JAILED: "stake at least the market's min_stake_micros anew, at once",
    ResultCode.COMMITTED: "wait until the committed ask is revealed, or has lapsed",
    ResultCode.UNKNOWN_HUB: "name the market's hub",
}

_ADVICE_OF_BODY: dict[tuple[type, ResultCode], str] = {
    (WithdrawEscrow, ResultCode.INSUFFICIENT_BALANCE): (
        "what open terms may still settle stays in escrow until they close: take less, or wait"
    ),
    (WithdrawDeposit, ResultCode.INSUFFICIENT_BALANCE): "take no more than is deposited",
    (CommitAsk, ResultCode.INSUFFICIENT_BALANCE): "place a deposit that covers the bond",
    (Stake, ResultCode.BELOW_MINIMUM): "stake at least so much in all",
    (Stake, ResultCode.LIMIT_REACHED): "wait until a validator leaves",
    (Unstake, ResultCode.INSUFFICIENT_BALANCE): "take no more than is staked",
    (Unstake, ResultCode.BELOW_MINIMUM): "take less",
    (Unstake, ResultCode.LIMIT_REACHED): "wait until one of them is released",
    (VoteParameter, ResultCode.ALREADY_DONE): "this is the account's vote, or holds, already",
    (VoteParameter, ResultCode.INVALID_ENTRY): (
        "see which parameters can be changed, and docs/spec/ledger.md §10 for their bounds"
    ),
}


_NAMES_AMOUNTS = {ResultCode.INSUFFICIENT_BALANCE, ResultCode.BELOW_MINIMUM, ResultCode.JAILED}


def describe_refusal(body: TransactionBody, code: ResultCode, detail: str) -> IemasError:
    """Make the error of a recorded refusal: what was refused, why, and what to do."""
    name = code.name.lower()
    text = f"the ledger refused the transaction: {name.replace('_', ' ')}"
    unit = ", in micro-credits" if code in _NAMES_AMOUNTS else ""
    text += f" ({detail}{unit})" if detail else ""
    advice = _ADVICE_OF_BODY.get((type(body), code), _ADVICE.get(code))
    text += f"; {advice}" if advice else ""
    match code:
        case ResultCode.INSUFFICIENT_BALANCE:
            return InsufficientBalanceError(text, code=name)
        case ResultCode.NONCE_TOO_LOW:
            return NonceMismatchError(text, code=name)
        case _:
            return APIStatusError(text, code=name)
