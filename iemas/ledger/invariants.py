"""What must be true of the ledger after every block, checked rather than assumed.

Source: docs/spec/ledger.md §11; design §7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from iemas.core.errors import InternalError
from iemas.core.types import AccountId, HubId, short_id
from iemas.ledger.records import PendingStatus
from iemas.ledger.state import LedgerState, group_open_micros
from iemas.ledger.transfer import AccountKind

Holdings = Mapping[AccountKind, Mapping[tuple[AccountId, HubId], int]]
"""What the ledger accounts hold, by kind, owner and hub: collected once for all checks."""


def check_invariants(state: LedgerState) -> None:
    """Check all of them. Raises: InternalError naming the height and the broken invariant."""
    holdings = collect_holdings(state)
    check_conservation(state)
    check_non_negative(state, holdings)
    check_coverage(state, holdings)
    check_stakes(state, holdings)
    check_entries(state, holdings)


def collect_holdings(state: LedgerState) -> Holdings:
    """Group all balances by the kind of account."""
    holdings: dict[AccountKind, dict[tuple[AccountId, HubId], int]] = {k: {} for k in AccountKind}
    for owner, record in state.accounts.items():
        for balance in record.balances:
            holdings[balance.kind][owner, balance.hub] = balance.micros
    return holdings


def check_conservation(state: LedgerState) -> None:
    """I1: all accounts together hold what genesis issued, to the micro-credit."""
    total_micros = state.get_total_money()
    if total_micros != state.facts.supply_micros:
        raise InternalError(
            f"height {state.height}: the ledger holds {total_micros} micro-credits, "
            f"genesis issued {state.facts.supply_micros}",
            height=state.height,
        )


def check_non_negative(state: LedgerState, holdings: Holdings) -> None:
    """I2: no ledger account is overdrawn."""
    for kind, held in holdings.items():
        if min(held.values(), default=0) < 0:
            (owner, _), micros = min(held.items(), key=lambda item: item[1])
            broken = f"{kind.name.lower()} of {short_id(owner)} is {micros}"
            raise InternalError(f"height {state.height}: {broken}", height=state.height)


def check_coverage(state: LedgerState, holdings: Holdings) -> None:
    """I3: the escrow of every account covers what its open terms may still settle."""
    escrow = holdings[AccountKind.ESCROW]
    for hub in state.get_hubs():
        for account, open_micros in group_open_micros(state.holds, hub).items():
            escrow_micros = escrow.get((account, hub), 0)
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


def check_stakes(state: LedgerState, holdings: Holdings) -> None:
    """I4: validators are those with stake, and there always is one to clear and one to vote."""
    staked = {owner for owner, _ in holdings[AccountKind.STAKE]}
    for hub in state.get_hubs():
        validators = {AccountId(node) for node in state.get_validators(hub)}
        _require(validators == staked, state, f"the validators of {hub} are not those with stake")
        _require(bool(state.get_live_validators(hub)), state, f"{hub} has no live validator")
    _require(bool(state.get_consensus_validators()), state, "nobody votes on blocks")


def check_entries(state: LedgerState, holdings: Holdings) -> None:
    """I5: what accounts hold for a purpose is what the entries of that purpose add up to."""
    unbonding: Counter[AccountId] = Counter()
    for key, micros in state.unbonding.items():
        unbonding[key.account] += micros
    pending: Counter[AccountId] = Counter()
    for payer, transfers in state.pending.items():
        for transfer in transfers:
            if transfer.status is PendingStatus.PENDING:
                pending[payer] += transfer.amount_micros
    for kind, sums in ((AccountKind.UNBONDING, unbonding), (AccountKind.PENDING, pending)):
        held = {owner: micros for (owner, _), micros in holdings[kind].items()}
        broken = f"the {kind.name.lower()} accounts do not hold the sum of their entries"
        _require(held == {owner: micros for owner, micros in sums.items() if micros}, state, broken)
    bonded: Counter[AccountId] = Counter()
    for commitment, record in state.commitments.items():
        bonded[AccountId(commitment.node)] += record.bond_micros
    deposits = {owner: micros for (owner, _), micros in holdings[AccountKind.DEPOSIT].items()}
    for owner, micros in bonded.items():
        broken = f"the deposit of {short_id(owner)} does not cover its bonds"
        _require(micros <= deposits.get(owner, 0), state, broken)


def _require(holds: bool, state: LedgerState, broken: str) -> None:  # noqa: FBT001
    if not holds:
        raise InternalError(f"height {state.height}: {broken}", height=state.height)
