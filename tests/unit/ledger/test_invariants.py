"""Each invariant catches what breaks it. Source: docs/spec/ledger.md §11."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iemas.core.errors import InternalError
from iemas.core.types import Hash
from iemas.ledger.invariants import check_invariants
from iemas.ledger.records import (
    Balance,
    CommitmentKey,
    CommitmentRecord,
    Duty,
    HoldKey,
    HoldRecord,
    JailRecord,
    UnbondingKey,
    ValidatorKey,
)
from iemas.ledger.transfer import (
    AccountKind,
    LedgerAccount,
    Transfer,
    TransferReason,
    get_available,
)
from iemas.testing.chain import LedgerChain


def test_a_ledger_as_it_should_be_passes(chain: LedgerChain) -> None:
    check_invariants(chain.state)


def test_money_from_nowhere_is_caught(chain: LedgerChain) -> None:
    state, alice = chain.state.copy(), chain.get_id("alice")
    record = state.accounts[alice]
    state.accounts[alice] = replace(
        record, balances=(Balance(AccountKind.AVAILABLE, chain.hub, 1), *record.balances)
    )
    with pytest.raises(InternalError, match="genesis issued"):
        check_invariants(state)


def test_an_overdrawn_account_is_caught(chain: LedgerChain) -> None:
    state, alice, bob = chain.state.copy(), chain.get_id("alice"), chain.get_id("bob")
    for account, micros in ((alice, -5), (bob, 5)):
        balance = Balance(AccountKind.TREASURY, chain.hub, micros)
        record = state.accounts[account]
        state.accounts[account] = replace(record, balances=(*record.balances, balance))
    with pytest.raises(InternalError, match="is -5"):
        check_invariants(state)


def test_a_hold_that_the_escrow_does_not_cover_is_caught(chain: LedgerChain) -> None:
    state = chain.state.copy()
    key = HoldKey(chain.hub, 0, chain.get_id("alice"))
    state.holds[key] = HoldRecord(400_001, 400_001)
    with pytest.raises(InternalError, match="does not cover"):
        check_invariants(state)


@pytest.mark.parametrize("hold", [HoldRecord(10, 11), HoldRecord(10, 5, 6)])
def test_a_hold_out_of_its_bounds_is_caught(chain: LedgerChain, hold: HoldRecord) -> None:
    state = chain.state.copy()
    state.holds[HoldKey(chain.hub, 0, chain.get_id("alice"))] = hold
    with pytest.raises(InternalError):
        check_invariants(state)


def test_stake_without_a_validator_is_caught(chain: LedgerChain) -> None:
    state = chain.state.copy()
    del state.validators[ValidatorKey(chain.hub, chain.get_node("node-1"))]
    with pytest.raises(InternalError, match="not those with stake"):
        check_invariants(state)


def test_a_hub_without_a_live_validator_is_caught(chain: LedgerChain) -> None:
    state = chain.state.copy()
    for key, record in state.validators.items():
        state.validators[key] = replace(record, duty=Duty.ABSENT)
    with pytest.raises(InternalError, match="no live validator"):
        check_invariants(state)


def test_that_nobody_votes_is_caught(chain: LedgerChain) -> None:
    state = chain.state.copy()
    state.jails = {key.node: JailRecord(None) for key in state.validators}
    with pytest.raises(InternalError, match="nobody votes"):
        check_invariants(state)


@pytest.mark.parametrize("kind", [AccountKind.UNBONDING, AccountKind.PENDING])
def test_money_without_its_entries_is_caught(chain: LedgerChain, kind: AccountKind) -> None:
    state, alice = chain.state.copy(), chain.get_id("alice")
    state.post(
        Transfer(get_available(alice), LedgerAccount(kind, alice), 5, TransferReason.TRANSFER)
    )
    with pytest.raises(InternalError, match="sum of their entries"):
        check_invariants(state)


def test_entries_without_their_money_are_caught(chain: LedgerChain) -> None:
    state = chain.state.copy()
    state.unbonding[UnbondingKey(1, chain.get_id("alice"))] = 5
    with pytest.raises(InternalError, match="sum of their entries"):
        check_invariants(state)


def test_a_bond_that_no_deposit_covers_is_caught(chain: LedgerChain) -> None:
    state = chain.state.copy()
    key = CommitmentKey(chain.hub, 1, chain.get_node("alice"))
    state.commitments[key] = CommitmentRecord(Hash(bytes(32)), 5, 1_000)
    with pytest.raises(InternalError, match="does not cover its bonds"):
        check_invariants(state)


def test_the_application_checks_them_every_block(chain: LedgerChain) -> None:
    chain.state.facts = replace(chain.state.facts, supply_micros=1)
    block = chain.make_block()
    with pytest.raises(InternalError, match="height 1"):
        chain.app.finalize_block(block)
