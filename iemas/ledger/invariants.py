"""What must be true of the ledger after every block, checked rather than assumed.

Source: docs/spec/ledger.md §6; design §7.
"""

from __future__ import annotations

from iemas.core.errors import InternalError
from iemas.core.types import short_id
from iemas.ledger.state import LedgerState, group_open_micros
from iemas.ledger.transfer import get_escrow


def check_invariants(state: LedgerState) -> None:
    """Check all of them. Raises: InternalError naming the height and the broken invariant."""
    check_conservation(state)
    check_non_negative(state)
    check_coverage(state)


def check_conservation(state: LedgerState) -> None:
    """I1: all accounts together hold what genesis issued, to the micro-credit."""
    total_micros = state.get_total_money()
    if total_micros != state.facts.supply_micros:
        raise InternalError(
            f"height {state.height}: the ledger holds {total_micros} micro-credits, "
            f"genesis issued {state.facts.supply_micros}",
            height=state.height,
        )


def check_non_negative(state: LedgerState) -> None:
    """I2: no ledger account is overdrawn."""
    for account, record in state.accounts.items():
        for balance in record.balances:
            if balance.micros < 0:
                raise InternalError(
                    f"height {state.height}: {balance.kind.name.lower()} of "
                    f"{short_id(account)} is {balance.micros}",
                    height=state.height,
                )


def check_coverage(state: LedgerState) -> None:
    """I3: the escrow of every account covers what its open terms may still settle."""
    for hub in state.get_hubs():
        for account, open_micros in group_open_micros(state.holds, hub).items():
            escrow_micros = state.get_funds(get_escrow(account, hub))
            if escrow_micros < open_micros:
                raise InternalError(
                    f"height {state.height}: escrow {escrow_micros} of {short_id(account)} in "
                    f"{hub} does not cover the {open_micros} that open terms may settle",
                    height=state.height,
                )
    for key, hold in state.holds.items():
        if not 0 <= hold.settled_micros <= hold.held_micros <= hold.allowance_micros:
            raise InternalError(
                f"height {state.height}: the hold of {short_id(key.account)} in term {key.term} "
                f"settled {hold.settled_micros} of {hold.held_micros} "
                f"of {hold.allowance_micros}",
                height=state.height,
            )
