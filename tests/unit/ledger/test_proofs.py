"""Proofs of single records, and every way of lying with one. Source: light_client.md §3."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from iemas.core.errors import InvalidInputError, InvalidProofError, MalformedMessageError
from iemas.core.merkle import InclusionProof
from iemas.core.types import AccountId
from iemas.ledger import proofs
from iemas.ledger.proofs import (
    ProvenLeaf,
    StateProof,
    StateProver,
    TableProof,
    verify_record,
    verify_table,
)
from iemas.ledger.records import AccountRecord, ChainFacts, TermKey, TermRecord, encode_leaf
from iemas.ledger.transaction import TransferFunds
from iemas.ledger.transfer import AccountKind
from iemas.testing.chain import LedgerChain


@pytest.fixture
def chain() -> LedgerChain:
    chain = LedgerChain()
    chain.submit("alice", TransferFunds(chain.get_id("carol"), 5))
    return chain


@pytest.fixture
def prover(chain: LedgerChain) -> StateProver:
    return StateProver(chain.state)


def test_the_provers_root_is_the_states(chain: LedgerChain, prover: StateProver) -> None:
    assert prover.root == chain.state.compute_root()


def test_every_record_is_proven(chain: LedgerChain, prover: StateProver) -> None:
    for name, key, value in chain.state.iterate_records():
        proof = prover.prove(name, key)
        assert [leaf.leaf for leaf in proof.leaves] == [encode_leaf(name, key, value)]
        if name == "accounts":
            assert verify_record(proof, prover.root, name, key, AccountRecord) == value
        if name == "terms":
            assert verify_record(proof, prover.root, name, key, TermRecord) == value
        if name == "facts":
            assert verify_record(proof, prover.root, name, key, ChainFacts) == value
        if name == "current_terms":
            assert verify_record(proof, prover.root, name, key, int) == value


def test_no_record_is_proven_too(chain: LedgerChain, prover: StateProver) -> None:
    """Also below and above every leaf of the tree, where there is one neighbour only."""
    known = set(chain.state.accounts)
    for number in range(256):
        account = AccountId(bytes([number]) * 32)
        assert account not in known
        proof = prover.prove("accounts", account)
        assert verify_record(proof, prover.root, "accounts", account, AccountRecord) is None
    for table, single in (("", True), ("x" * 200, True), ("terms", False)):
        proof = prover.prove(table, TermKey(chain.hub, 99))
        assert (len(proof.leaves) == 1) is single
        key = TermKey(chain.hub, 99)
        assert verify_record(proof, prover.root, table, key, TermRecord) is None


def test_each_state_is_proven_under_its_own_root_only(chain: LedgerChain) -> None:
    alice, old = chain.get_id("alice"), StateProver(chain.state)
    chain.submit("alice", TransferFunds(chain.get_id("bob"), 7))
    new = StateProver(chain.state)
    proof = old.prove("accounts", alice)
    assert verify_record(proof, old.root, "accounts", alice, AccountRecord) is not None
    with pytest.raises(InvalidProofError, match="does not lead to the state root"):
        verify_record(proof, new.root, "accounts", alice, AccountRecord)


def edit(proof: StateProof, **changes: object) -> StateProof:
    first = proof.leaves[0]
    changed = replace(first, proof=replace(first.proof, **changes))  # type: ignore[arg-type]
    return StateProof((changed, *proof.leaves[1:]))


def raise_balance(proof: StateProof) -> StateProof:
    first = proof.leaves[0]
    record = AccountRecord(1, ())
    return StateProof((replace(first, leaf=encode_leaf("accounts", b"a" * 32, record)),))


LIES: list[Callable[[StateProof], StateProof]] = [
    lambda p: edit(p, path=p.leaves[0].proof.path[:-1]),
    lambda p: edit(p, path=p.leaves[0].proof.path[1:]),
    lambda p: edit(p, path=()),
    lambda p: edit(p, path=(*p.leaves[0].proof.path, bytes(32))),
    lambda p: edit(p, path=(bytes(32), *p.leaves[0].proof.path[1:])),
    lambda p: edit(p, index=p.leaves[0].proof.index ^ 1),
    raise_balance,
    lambda p: StateProof((p.leaves[0], p.leaves[0])),
]


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_a_record_are_refused(
    chain: LedgerChain, prover: StateProver, lie: Callable[[StateProof], StateProof]
) -> None:
    alice = chain.get_id("alice")
    proof = prover.prove("accounts", alice)
    assert verify_record(proof, prover.root, "accounts", alice, AccountRecord) is not None
    with pytest.raises(InvalidProofError):
        verify_record(lie(proof), prover.root, "accounts", alice, AccountRecord)


def test_a_record_cannot_be_denied(chain: LedgerChain, prover: StateProver) -> None:
    """Neither its neighbours nor any other pair or single leaf prove that it is not there."""
    alice = chain.get_id("alice")
    size = len(chain.state.list_leaves())
    leaves = [prover._prove(index) for index in range(size)]
    own = prover.prove("accounts", alice).leaves[0].proof.index
    pairs = [(leaves[own - 1], leaves[own + 1]), (leaves[own + 1], leaves[own + 2])]
    pairs += [(leaves[own - 1], leaves[own]), (leaves[own + 1], leaves[own - 1])]
    renumbered = replace(leaves[own + 1], proof=replace(leaves[own + 1].proof, index=own))
    pairs.append((leaves[own - 1], renumbered))
    for candidate in [*((leaf,) for leaf in leaves if leaf is not leaves[own]), *pairs]:
        with pytest.raises(InvalidProofError):
            verify_record(StateProof(candidate), prover.root, "accounts", alice, AccountRecord)


def test_no_made_up_size_turns_an_inner_leaf_into_the_last(
    chain: LedgerChain, prover: StateProver
) -> None:
    """A single leaf proves absence only at an end of the tree, whatever size its proof claims."""
    absent = AccountId(b"\xff" * 32)
    size = len(chain.state.list_leaves())
    for index in range(1, size - 1):
        leaf = prover._prove(index)
        for claimed in range(1, 2 * size):
            for number in {0, claimed - 1}:
                forged = InclusionProof(number, claimed, leaf.proof.path)
                proof = StateProof((ProvenLeaf(leaf.leaf, forged),))
                with pytest.raises(InvalidProofError):
                    verify_record(proof, prover.root, "accounts", absent, AccountRecord)


def test_a_record_of_another_kind_is_refused(chain: LedgerChain, prover: StateProver) -> None:
    proof = prover.prove("current_terms", chain.hub)
    with pytest.raises(InvalidProofError, match="another kind"):
        verify_record(proof, prover.root, "current_terms", chain.hub, AccountRecord)


def test_balances_come_out_of_the_proof(chain: LedgerChain, prover: StateProver) -> None:
    carol = chain.get_id("carol")
    proof = prover.prove("accounts", carol)
    record = verify_record(proof, prover.root, "accounts", carol, AccountRecord)
    assert record is not None
    assert [(b.kind, b.micros) for b in record.balances] == [(AccountKind.AVAILABLE, 5)]


def test_a_proof_is_bounded() -> None:
    proof = InclusionProof(0, 1, ())
    with pytest.raises(MalformedMessageError, match="at most"):
        ProvenLeaf(bytes(2**20 + 1), proof)
    with pytest.raises(MalformedMessageError, match="at most"):
        ProvenLeaf(b"", replace(proof, path=(bytes(32),) * 65))
    with pytest.raises(MalformedMessageError, match="1 or 2"):
        StateProof(())


# --- whole tables --------------------------------------------------------------------------------


def test_every_table_is_proven_whole(chain: LedgerChain, prover: StateProver) -> None:
    """Full ones, empty ones, and those at the ends of the tree."""
    tables = chain.state.get_tables()
    assert any(tables.values())
    assert not all(tables.values())
    for name, table in tables.items():
        assert verify_table(prover.prove_table(name), prover.root, name) == table


def test_a_table_cannot_be_shown_in_part(chain: LedgerChain, prover: StateProver) -> None:
    leaves = prover.prove_table("validators").leaves
    assert len(leaves) == len(chain.state.validators) + 2
    parts = [leaves[:-1], leaves[1:], leaves[1:-1], leaves[:1], leaves[-1:], leaves[::-1]]
    parts += [(*leaves[:at], *leaves[at + 1 :]) for at in range(1, len(leaves) - 1)]
    for part in parts:
        with pytest.raises(InvalidProofError):
            verify_table(TableProof(tuple(part)), prover.root, "validators")


def test_no_made_up_size_ends_a_table_early(prover: StateProver) -> None:
    """The last leaf shown would have to be the tree's, whatever its proof claims."""
    leaves = prover.prove_table("validators").leaves[:-1]
    for claimed in range(1, 60):
        forged = []
        for number, leaf in enumerate(leaves):
            index = claimed - len(leaves) + number
            if index < 0:
                break
            proof = InclusionProof(index, claimed, leaf.proof.path)
            forged.append(ProvenLeaf(leaf.leaf, proof))
        else:
            with pytest.raises(InvalidProofError):
                verify_table(TableProof(tuple(forged)), prover.root, "validators")


def test_a_table_of_another_state_is_refused(chain: LedgerChain, prover: StateProver) -> None:
    old = prover.prove_table("validators")
    chain.submit("alice", TransferFunds(chain.get_id("bob"), 7))
    with pytest.raises(InvalidProofError, match="does not lead to the state root"):
        verify_table(old, chain.state.compute_root(), "validators")


def test_the_proof_of_another_table_is_refused(prover: StateProver) -> None:
    with pytest.raises(InvalidProofError):
        verify_table(prover.prove_table("validators"), prover.root, "accounts")


def test_a_table_is_bounded(prover: StateProver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "MAX_TABLE", 2)
    with pytest.raises(InvalidInputError, match="more than 2 records"):
        prover.prove_table("validators")
    with pytest.raises(MalformedMessageError, match="1 to 4 leaves"):
        TableProof(prover.prove_table("jails").leaves * 3)
