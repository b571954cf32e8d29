"""Asks: the first one in the open, later ones committed in one epoch and revealed in the next.

Source: docs/spec/ledger.md §9; design §6.
"""

from __future__ import annotations

from iemas.core.asks import compute_ask_commitment, compute_ask_ratio
from iemas.core.types import AccountId, HubId, NodeId, Prices
from iemas.ledger.records import (
    MAX_PAST_ASKS,
    AskKey,
    AskRecord,
    CommitmentKey,
    CommitmentRecord,
    PastAsk,
)
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    CommitAsk,
    PlaceDeposit,
    PostAsk,
    ResultCode,
    RevealAsk,
    TransactionResult,
    WithdrawDeposit,
)
from iemas.ledger.transfer import Transfer, TransferReason, get_available, get_deposit

MAX_UNFUNDED_ASKS = 1_000
"""Standing asks in a hub of accounts that hold nothing, before no more of these join."""


def apply_post_ask(state: LedgerState, account: AccountId, body: PostAsk) -> TransactionResult:
    """Post an ask in the open; where asks are sealed, only a provider's first.

    Every ask of an open term is remembered, as rounds cleared at it are still re-checked; so an ask
    can be replaced only so often.
    """
    hub = body.ask.hub
    record = state.asks.get(AskKey(hub, NodeId(account)))
    if record is not None and state.params.sealed_asks:
        return refuse(ResultCode.ASKS_SEALED, "commit to the next ask, then reveal it")
    refusal = _check_ask(state, body)
    if refusal is not None:
        return refusal
    if record is not None and len(record.past) >= MAX_PAST_ASKS:
        limit = f"the ask was replaced {MAX_PAST_ASKS} times within the open terms; wait"
        return refuse(ResultCode.INVALID_ENTRY, limit)
    _set_ask(state, hub, NodeId(account), body.ask.prices)
    return OK


def check_first_ask(state: LedgerState, body: PostAsk) -> TransactionResult | None:
    """Tell why an ask opens no account; None if it does.

    New keys cost nothing, so what those without money can put on the ledger is bounded.
    """
    refusal = _check_ask(state, body)
    if refusal is not None:
        return refusal
    unfunded = sum(
        key.hub == body.ask.hub and not state.accounts[AccountId(key.node)].balances
        for key in state.asks
    )
    if unfunded >= MAX_UNFUNDED_ASKS:
        wanted = "have some money sent to this account first"
        return refuse(ResultCode.LIMIT_REACHED, f"{unfunded} accounts ask without money; {wanted}")
    return None


def _check_ask(state: LedgerState, body: PostAsk) -> TransactionResult | None:
    if body.ask.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    if compute_ask_ratio(body.ask.prices) > state.params.ask_ratio_max:
        return refuse(ResultCode.INVALID_ENTRY, _describe_ratio(state.params.ask_ratio_max))
    return None


def apply_place_deposit(
    state: LedgerState, account: AccountId, body: PlaceDeposit
) -> TransactionResult:
    """Move available money into the deposit that bonds commitments."""
    available_micros = state.get_funds(get_available(account))
    if body.amount_micros > available_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{available_micros} are available")
    debit, credit = get_available(account), get_deposit(account)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.DEPOSIT_PLACED))
    return OK


def apply_withdraw_deposit(
    state: LedgerState, account: AccountId, body: WithdrawDeposit
) -> TransactionResult:
    """Take deposit back while it bonds nothing."""
    deposit_micros = state.get_funds(get_deposit(account))
    if body.amount_micros > deposit_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"{deposit_micros} are deposited")
    if state.get_bonded(NodeId(account)) > 0:
        return refuse(ResultCode.COMMITTED, "reveal the asks that are committed first")
    debit, credit = get_deposit(account), get_available(account)
    state.post(Transfer(debit, credit, body.amount_micros, TransferReason.DEPOSIT_WITHDRAWN))
    return OK


def apply_commit_ask(state: LedgerState, account: AccountId, body: CommitAsk) -> TransactionResult:
    """Fix an ask for the next epoch, hidden, with a bond that is lost if it is not revealed."""
    node = NodeId(account)
    if body.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    upcoming = state.ask_epochs[body.hub].number + 1
    if body.epoch != upcoming:
        return refuse(ResultCode.UNKNOWN_EPOCH, f"commitments are for epoch {upcoming} now")
    key = CommitmentKey(body.hub, body.epoch, node)
    if key in state.commitments:
        return refuse(ResultCode.ALREADY_DONE)
    bond_micros = state.params.ask_bond_micros
    wanted_micros = state.get_bonded(node) + bond_micros
    if state.get_funds(get_deposit(account)) < wanted_micros:
        return refuse(ResultCode.INSUFFICIENT_BALANCE, f"a deposit of {wanted_micros} is wanted")
    ratio_max = state.params.ask_ratio_max
    state.commitments[key] = CommitmentRecord(body.commitment, bond_micros, ratio_max)
    return OK


def apply_reveal_ask(state: LedgerState, account: AccountId, body: RevealAsk) -> TransactionResult:
    """Open a commitment within the window: the ask stands from now on until it is replaced."""
    node = NodeId(account)
    if body.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    epoch = state.ask_epochs[body.hub]
    if body.epoch != epoch.number:
        return refuse(ResultCode.UNKNOWN_EPOCH, f"the current epoch is {epoch.number}")
    if epoch.closed:
        return refuse(ResultCode.EXPIRED, "the reveal window is over")
    key = CommitmentKey(body.hub, body.epoch, node)
    record = state.commitments.get(key)
    if record is None:
        return refuse(ResultCode.UNKNOWN_COMMITMENT)
    expected = compute_ask_commitment(
        state.chain_id, body.hub, body.epoch, node, body.prices, salt=body.salt
    )
    if record.commitment != expected:
        return refuse(ResultCode.INVALID_ENTRY, "this is not what was committed to")
    if compute_ask_ratio(body.prices) > record.ratio_max:
        return refuse(ResultCode.INVALID_ENTRY, _describe_ratio(record.ratio_max))
    del state.commitments[key]
    _set_ask(state, body.hub, node, body.prices)
    return OK


def _set_ask(state: LedgerState, hub: HubId, node: NodeId, prices: Prices) -> None:
    """Replace the standing ask, and remember in which terms the old one stood."""
    key, current = AskKey(hub, node), state.current_terms[hub]
    record = state.asks.get(key)
    past: tuple[PastAsk, ...] = ()
    if record is not None:
        past = (*record.past, PastAsk(record.prices, record.from_term, current))
    state.asks[key] = AskRecord(prices, current, past)


def _describe_ratio(ratio_max: int) -> str:
    return f"no component may be more than {ratio_max} times another"
