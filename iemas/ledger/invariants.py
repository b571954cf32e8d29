"""What must be true of the ledger after every block, checked rather than assumed.

Source: docs/spec/ledger.md §11; design §7.
"""

from __future__ import annotations

from iemas.core.errors import InternalError
from iemas.core.types import AccountId, short_id
from iemas.ledger.records import PendingStatus
from iemas.ledger.state import LedgerState, group_open_micros
from iemas.ledger.transfer import AccountKind, get_deposit, get_escrow


def check_invariants(state: LedgerState) -> None:
    """Check all of them. Raises: InternalError naming the height and the broken invariant."""
    check_conservation(state)
    check_non_negative(state)
    check_coverage(state)
    check_stakes(state)
    check_entries(state)


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


def check_stakes(state: LedgerState) -> None:
    """I4: validators are those with stake, and there always is one to clear and one to vote."""
    staked = set(_collect_held(state, AccountKind.STAKE))
    for hub in state.get_hubs():
        _require(
            {AccountId(node) for node in state.get_validators(hub)} == staked,
            state,
            f"the validators of {hub} are not those with stake",
        )
        _require(bool(state.get_live_validators(hub)), state, f"{hub} has no live validator")
    _require(bool(state.get_consensus_validators()), state, "nobody votes on blocks")


def check_entries(state: LedgerState) -> None:
    """I5: what accounts hold for a purpose is what the entries of that purpose add up to."""
    unbonding: dict[AccountId, int] = {}
    for key, micros in state.unbonding.items():
        unbonding[key.account] = unbonding.get(key.account, 0) + micros
    _check_sums(state, AccountKind.UNBONDING, unbonding)
    bonded: dict[AccountId, int] = {}
    for commitment, record in state.commitments.items():
        owner = AccountId(commitment.node)
        bonded[owner] = bonded.get(owner, 0) + record.bond_micros
    for owner, bond_micros in bonded.items():
        covered = bond_micros <= state.get_funds(get_deposit(owner))
        _require(covered, state, f"the deposit of {short_id(owner)} does not cover its bonds")
    pending = {
        payer: sum(t.amount_micros for t in transfers if t.status is PendingStatus.PENDING)
        for payer, transfers in state.pending.items()
    }
    _check_sums(state, AccountKind.PENDING, pending)


def _check_sums(state: LedgerState, kind: AccountKind, expected: dict[AccountId, int]) -> None:
    wanted = {account: micros for account, micros in expected.items() if micros}
    _require(
        _collect_held(state, kind) == wanted,
        state,
        f"the {kind.name.lower()} accounts do not hold the sum of their entries",
    )


def _collect_held(state: LedgerState, kind: AccountKind) -> dict[AccountId, int]:
    """Give what every account holds in a kind that belongs to no hub."""
    return {
        owner: balance.micros
        for owner, record in state.accounts.items()
        for balance in record.balances
        if balance.kind is kind
    }


def _require(holds: bool, state: LedgerState, broken: str) -> None:  # noqa: FBT001
    if not holds:
        raise InternalError(f"height {state.height}: {broken}", height=state.height)
