"""The ledger's state: tables of plain records, a root over all of them, and how they are read.

A state that the application has committed is never changed again: a block is applied to a copy,
and records are frozen, so a reader may keep a state as long as it likes. The root is the Merkle
root over one leaf a record, in sorted order; a leaf is the canonical CBOR of
``(table, key, value)``. Source: docs/spec/ledger.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from iemas.core.election import Candidate, Term, compute_next_auctioneer
from iemas.core.errors import InternalError
from iemas.core.merkle import (
    EMPTY_ROOT,
    InclusionProof,
    compute_inclusion_proof,
    compute_leaf_hash,
    compute_root_of_hashes,
)
from iemas.core.params import Genesis, MarketParams
from iemas.core.types import AccountId, ChannelId, Hash, HubId, NodeId, Prices
from iemas.ledger.records import (
    AccountRecord,
    AskEpochRecord,
    AskKey,
    AskRecord,
    Balance,
    ChainFacts,
    CommitmentKey,
    CommitmentRecord,
    Duty,
    HoldKey,
    HoldRecord,
    JailRecord,
    ModelKey,
    ModelRecord,
    ModelVoteKey,
    OffenceKey,
    ParameterVoteKey,
    PendingTransfer,
    ShortfallRecord,
    TermKey,
    TermRecord,
    TotalKey,
    TotalRecord,
    UnbondingKey,
    ValidatorKey,
    ValidatorPower,
    ValidatorRecord,
    VoteKey,
    encode_leaf,
)
from iemas.ledger.transfer import (
    ISSUANCE,
    LedgerAccount,
    Transfer,
    get_available,
    get_escrow,
    get_stake,
)

_Leaf = tuple[Any, tuple[bytes, bytes]]
"""A record as it was encoded, its leaf, and the leaf's hash."""


@dataclass(frozen=True, slots=True)
class ProvenEntry:
    """One record of the state, as canonical CBOR of (table, key, value), with its proof."""

    leaf: bytes
    proof: InclusionProof
    root: Hash


@dataclass(slots=True)
class LedgerState:
    """All replicated tables, and the transfers posted since the copy was made."""

    genesis: Genesis
    facts: ChainFacts
    accounts: dict[AccountId, AccountRecord] = field(default_factory=dict)
    asks: dict[AskKey, AskRecord] = field(default_factory=dict)
    validators: dict[ValidatorKey, ValidatorRecord] = field(default_factory=dict)
    current_terms: dict[HubId, int] = field(default_factory=dict)
    terms: dict[TermKey, TermRecord] = field(default_factory=dict)
    holds: dict[HoldKey, HoldRecord] = field(default_factory=dict)
    totals: dict[TotalKey, TotalRecord] = field(default_factory=dict)
    votes: dict[VoteKey, int] = field(default_factory=dict)
    applied: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    """Ids of the applied transactions by height, for a window of heights."""
    unbonding: dict[UnbondingKey, int] = field(default_factory=dict)
    """Micro-credits that are released at a time; together what `UNBONDING` accounts hold."""
    validator_sets: dict[int, tuple[ValidatorPower, ...]] = field(default_factory=dict)
    """The consensus validators from a height on, where they changed; as far as evidence goes."""
    proposers: dict[NodeId, int] = field(default_factory=dict)
    """The next height's validators' places in the round-robin of proposers, before its turns."""
    checkpoints: dict[int, int] = field(default_factory=dict)
    """The times of some blocks by height: how old what was signed at a height is at most."""
    jails: dict[NodeId, JailRecord] = field(default_factory=dict)
    offences: dict[OffenceKey, int] = field(default_factory=dict)
    """When double votes were punished; as far back as evidence goes."""
    absences: dict[ValidatorKey, tuple[int, ...]] = field(default_factory=dict)
    """In which of the last terms a validator was voted absent."""
    shortfalls: dict[TotalKey, ShortfallRecord] = field(default_factory=dict)
    """What providers proved that they were not paid; open terms only."""
    pending: dict[AccountId, tuple[PendingTransfer, ...]] = field(default_factory=dict)
    """By payer, in the order in which they were held."""
    ask_epochs: dict[HubId, AskEpochRecord] = field(default_factory=dict)
    commitments: dict[CommitmentKey, CommitmentRecord] = field(default_factory=dict)
    models: dict[ModelKey, ModelRecord] = field(default_factory=dict)
    """The QoS models of the current ask epoch and, once decided, of the next."""
    model_votes: dict[ModelVoteKey, Hash] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    """What differs from genesis' parameters."""
    parameter_changes: dict[str, int] = field(default_factory=dict)
    """What was decided and counts from the next term on."""
    parameter_votes: dict[ParameterVoteKey, int] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)
    """Journal of this copy; not part of the root."""
    _applied_ids: set[bytes] = field(default_factory=set, repr=False)
    _leaves: dict[str, dict[Any, _Leaf]] = field(default_factory=dict, repr=False)
    _params: MarketParams | None = field(default=None, repr=False)
    _root: Hash | None = field(default=None, repr=False)

    # --- reading -------------------------------------------------------------------------------

    @property
    def params(self) -> MarketParams:
        """What all nodes of the market agree on: genesis' parameters as changed by vote."""
        if self._params is None:
            self._params = self.make_params({})
        return self._params

    @property
    def chain_id(self) -> str:
        """The chain's id."""
        return self.facts.chain_id

    @property
    def height(self) -> int:
        """Height of the last applied block; 0 after genesis."""
        return self.facts.height

    @property
    def time_ms(self) -> int:
        """Ledger time: the last applied block's."""
        return self.facts.time_ms

    def make_params(self, changes: Mapping[str, int]) -> MarketParams:
        """Give the parameters as they would be with changes to those that hold now.

        Raises: MalformedMessageError if they would be out of bounds.
        """
        given: dict[str, Any] = {**self.parameters, **changes}
        return replace(self.genesis.params, **given)

    def get_model(self, hub: HubId) -> Hash | None:
        """Give the hash of the QoS model of the hub's current ask epoch; None before any vote."""
        epoch = self.ask_epochs.get(hub)
        record = None if epoch is None else self.models.get(ModelKey(hub, epoch.number))
        return None if record is None else record.model_hash

    def get_model_of_term(self, hub: HubId, number: int) -> Hash | None:
        """Give the hash of the QoS model that an open term clears under; None for the first one."""
        record = self.terms.get(TermKey(hub, number))
        return None if record is None else record.model

    def list_votable_epochs(self, hub: HubId) -> tuple[int, ...]:
        """List the ask epochs whose QoS model can be voted on now, the current one first.

        The next one until it is decided. The current one if it began without a model: then a
        decision counts from the next term on, and a later one replaces it.
        """
        epoch = self.ask_epochs[hub]
        current = self.models.get(ModelKey(hub, epoch.number))
        is_young = current is None or current.decided_at_ms >= self.get_epoch_start(epoch.number)
        is_open = ModelKey(hub, epoch.number + 1) not in self.models
        return (epoch.number,) * is_young + (epoch.number + 1,) * is_open

    def get_epoch_start(self, number: int) -> int:
        """Give the time from which on an ask epoch is due, in ms."""
        return self.genesis.time_ms + number * self.params.ask_epoch_ms

    def get_hubs(self) -> tuple[HubId, ...]:
        """List the hubs in sorted order."""
        return tuple(sorted(self.current_terms))

    def has_account(self, account: AccountId) -> bool:
        """Tell whether the account was ever credited or posted an ask."""
        return account in self.accounts

    def get_nonce(self, account: AccountId) -> int:
        """Give the account's last nonce; 0 for an unknown one."""
        record = self.accounts.get(account)
        return record.nonce if record else 0

    def get_funds(self, account: LedgerAccount) -> int:
        """Give what one ledger account holds, in micro-credits."""
        record = self.accounts.get(account.owner)
        for balance in record.balances if record else ():
            if balance.kind == account.kind and balance.hub == account.hub:
                return balance.micros
        return 0

    def get_balance(self, account: AccountId, hub: HubId | None = None) -> tuple[int, int]:
        """Give (available, escrow) in micro-credits; escrow of all hubs unless one is named."""
        hubs = self.get_hubs() if hub is None else (hub,)
        escrow_micros = sum(self.get_funds(get_escrow(account, name)) for name in hubs)
        return self.get_funds(get_available(account)), escrow_micros

    def get_total_money(self) -> int:
        """Add up everything that all accounts hold: constant from genesis on."""
        return sum(
            balance.micros for record in self.accounts.values() for balance in record.balances
        )

    def get_stake_micros(self, node: NodeId) -> int:
        """Give a validator's stake; 0 for anyone else."""
        return self.get_funds(get_stake(AccountId(node)))

    def is_validator(self, node: NodeId, hub: HubId | None = None) -> bool:
        """Tell whether the node is a validator (of the hub, or of any), absent or not."""
        hubs = self.get_hubs() if hub is None else (hub,)
        return any(ValidatorKey(name, node) in self.validators for name in hubs)

    def is_live(self, hub: HubId, node: NodeId) -> bool:
        """Tell whether the node is a validator of the hub that takes part in the election."""
        record = self.validators.get(ValidatorKey(hub, node))
        return record is not None and record.duty is Duty.LIVE

    def get_validators(self, hub: HubId) -> tuple[NodeId, ...]:
        """List the hub's validators in id order, absent ones included."""
        return tuple(key.node for key in sorted(self.validators) if key.hub == hub)

    def get_live_validators(self, hub: HubId) -> tuple[NodeId, ...]:
        """List the hub's live validators in id order."""
        return tuple(node for node in self.get_validators(hub) if self.is_live(hub, node))

    def get_consensus_validators(self) -> tuple[ValidatorPower, ...]:
        """List who is to vote on blocks and with what power, in id order; never empty.

        After block h these vote from height h + 2 on. Everyone with stake who is not jailed; who
        is only absent from a hub's election still votes on blocks.
        """
        nodes = sorted({key.node for key in self.validators if key.node not in self.jails})
        return tuple(ValidatorPower(node, self.get_stake_micros(node)) for node in nodes)

    def get_consensus_validators_at(self, height: int) -> tuple[ValidatorPower, ...]:
        """List who voted on a height, as far back as evidence goes; empty for older ones."""
        start = max((start for start in self.validator_sets if start <= height), default=None)
        return () if start is None else self.validator_sets[start]

    def get_voting_time(self, height: int) -> int | None:
        """Give a time not after the block of a height; None if evidence does not go so far back."""
        noted = max((noted for noted in self.checkpoints if noted <= height), default=None)
        return None if noted is None else self.checkpoints[noted]

    def is_jailed(self, node: NodeId) -> bool:
        """Tell whether the node is jailed: it neither votes on blocks nor is elected."""
        return node in self.jails

    def may_return(self, hub: HubId, node: NodeId) -> bool:
        """Tell whether `ReturnToDuty` would let the node back into a hub's election."""
        record, jail = self.validators.get(ValidatorKey(hub, node)), self.jails.get(node)
        is_held = jail is not None and (jail.until_ms is None or self.time_ms < jail.until_ms)
        return record is not None and record.duty is Duty.ABSENT and not is_held

    def get_unpaid(self, key: TotalKey) -> int:
        """Give what a provider proved and was neither settled nor paid from a slash."""
        record = self.shortfalls.get(key)
        if record is None:
            return 0
        settled_micros = self.get_settled_total(key).total_micros
        return max(0, record.claimed_micros - settled_micros)

    def get_pending_transfer(self, payer: AccountId, key: bytes) -> PendingTransfer | None:
        """Give a hold by its idempotency key, as long as the key is known."""
        known = self.pending.get(payer, ())
        return next((transfer for transfer in known if transfer.key == key), None)

    def get_unbonding(self, account: AccountId) -> tuple[UnbondingKey, ...]:
        """List the account's unbonding entries, the first to be released first."""
        return tuple(sorted(key for key in self.unbonding if key.account == account))

    def get_candidates(self, hub: HubId) -> tuple[Candidate, ...]:
        """List the live validators with stake and priority, in id order."""
        return tuple(
            Candidate(
                node, self.get_stake_micros(node), self.validators[ValidatorKey(hub, node)].priority
            )
            for node in self.get_live_validators(hub)
        )

    def get_term(self, hub: HubId) -> Term:
        """Give the hub's current term. Raises: KeyError for an unknown hub."""
        return self._make_term(TermKey(hub, self.current_terms[hub]))

    def get_term_by_number(self, hub: HubId, number: int) -> Term | None:
        """Give an open term, the current one included; None once it is closed or unknown."""
        key = TermKey(hub, number)
        return self._make_term(key) if key in self.terms else None

    def get_terms_open(self, hub: HubId) -> tuple[Term, ...]:
        """List the terms that may still be settled, oldest first, the current one last."""
        return tuple(self._make_term(key) for key in sorted(self.terms) if key.hub == hub)

    def get_next_auctioneer(self, hub: HubId) -> NodeId:
        """Foresee the next term's auctioneer, as long as the live validators stay the same."""
        candidates = self.get_candidates(hub)
        return compute_next_auctioneer(candidates, sitting_out=self.get_sitting_out(hub))

    def count_consecutive_terms(self, hub: HubId, node: NodeId) -> int:
        """Count a node's terms as auctioneer in a row up to the current one; 0 if it is not."""
        record = self.terms.get(TermKey(hub, self.current_terms.get(hub, -1)))
        return record.consecutive if record is not None and record.auctioneer == node else 0

    def get_sitting_out(self, hub: HubId) -> NodeId | None:
        """Give the auctioneer that cannot have the next term too (election.md R7), or None."""
        record = self.terms.get(TermKey(hub, self.current_terms.get(hub, -1)))
        if record is None or record.consecutive < self.params.max_consecutive_terms:
            return None
        return record.auctioneer

    def get_ask(self, hub: HubId, node: NodeId) -> Prices | None:
        """Give a provider's standing ask, or None."""
        record = self.asks.get(AskKey(hub, node))
        return record.prices if record else None

    def get_asks(self, hub: HubId) -> dict[NodeId, Prices]:
        """Give the hub's standing asks in id order."""
        return {key.node: self.asks[key].prices for key in sorted(self.asks) if key.hub == hub}

    def get_asks_of_term(self, hub: HubId, node: NodeId, term: int) -> tuple[Prices, ...]:
        """List the asks of a provider that stood at any time of an open term, newest first."""
        record = self.asks.get(AskKey(hub, node))
        if record is None:
            return ()
        current = (record.prices,) if record.from_term <= term else ()
        past = [p.prices for p in reversed(record.past) if p.from_term <= term <= p.to_term]
        return (*current, *past)

    def get_bonded(self, node: NodeId) -> int:
        """Give what the node's outstanding commitments bond of its deposit, over all hubs."""
        return sum(
            record.bond_micros
            for hub, epoch in self.ask_epochs.items()
            for number in (epoch.number, epoch.number + 1)
            if (record := self.commitments.get(CommitmentKey(hub, number, node))) is not None
        )

    def get_allowance(self, hub: HubId, account: AccountId, term: int) -> int:
        """Give what an account's allocations of an open term may hold in all; 0 if none."""
        record = self.holds.get(HoldKey(hub, term, account))
        return record.allowance_micros if record else 0

    def get_settleable(self, hub: HubId, account: AccountId, term: int) -> int:
        """Give what may still be settled of an account in an open term."""
        record = self.holds.get(HoldKey(hub, term, account))
        return record.open_micros if record else 0

    def get_free_escrow(self, hub: HubId, account: AccountId) -> int:
        """Give the account's escrow that no open term may still settle."""
        escrow_micros = self.get_funds(get_escrow(account, hub))
        return escrow_micros - sum(
            self.get_settleable(hub, account, key.number) for key in self.terms if key.hub == hub
        )

    def get_settled_total(self, key: TotalKey) -> TotalRecord:
        """Give the last settled total of a channel with a provider in an open term."""
        return self.totals.get(key, TotalRecord(0, 0))

    def get_settled_sequence(
        self, hub: HubId, term: int, account: AccountId, channel: ChannelId, provider: NodeId
    ) -> int:
        """Give the sequence of a channel's last settled total with a provider; 0 for none."""
        return self.get_settled_total(TotalKey(hub, term, account, channel, provider)).sequence

    def get_roots(self, hub: HubId, number: int) -> tuple[bytes, ...] | None:
        """Give the transcript hashes of an open term whose books are closed, else None."""
        record = self.terms.get(TermKey(hub, number))
        return record.roots if record and record.books_closed else None

    def is_applied(self, transaction_id: bytes) -> bool:
        """Tell whether a transaction was applied within the window of remembered heights."""
        return transaction_id in self._applied_ids

    def _make_term(self, key: TermKey) -> Term:
        record = self.terms[key]
        return Term(key.hub, key.number, record.auctioneer, record.witness, record.started_at_ms)

    # --- changing ------------------------------------------------------------------------------

    def copy(self) -> LedgerState:
        """Copy the tables (not the records, which are frozen), with an empty journal."""
        copied = replace(self, transfers=[], _applied_ids=set(self._applied_ids), _root=None)
        for name, table in self.get_tables().items():
            setattr(copied, name, dict(table))
        return copied

    def adopt_parameters(self) -> None:
        """Let the parameter changes count that were decided."""
        if self.parameter_changes:
            self.parameters |= self.parameter_changes
            self.parameter_changes = {}
            self._params = None

    def post(self, transfer: Transfer) -> None:
        """Move money. Raises: InternalError if `debit` does not hold it: check before."""
        if transfer.debit != ISSUANCE:
            self._add(transfer.debit, -transfer.amount_micros)
        self._add(transfer.credit, transfer.amount_micros)
        self.transfers.append(transfer)

    def set_nonce(self, account: AccountId, nonce: int) -> None:
        """Remember an account's last nonce; opens the account's record if there is none."""
        record = self.accounts.get(account, AccountRecord())
        self.accounts[account] = replace(record, nonce=nonce)

    def set_applied(self, height: int, ids: Iterable[bytes], *, window: int) -> None:
        """Remember a block's applied transactions and forget those out of the window."""
        self.applied[height] = tuple(ids)
        self._applied_ids.update(self.applied[height])
        # Heights follow each other, so exactly one falls out of the window.
        self._applied_ids.difference_update(self.applied.pop(height - window, ()))

    def remember_applied(self, transaction_id: bytes) -> None:
        """Know a transaction already while its block is applied, so that it cannot repeat it."""
        self._applied_ids.add(transaction_id)

    def restore_index(self) -> None:
        """Rebuild from the tables what is derived from them; after decoding a snapshot."""
        self._applied_ids = {i for ids in self.applied.values() for i in ids}

    def _add(self, account: LedgerAccount, micros: int) -> None:
        record = self.accounts.get(account.owner, AccountRecord())
        after = self.get_funds(account) + micros
        if after < 0:
            raise InternalError(f"{account.name} would hold {after} micro-credits")
        kept = [b for b in record.balances if (b.kind, b.hub) != (account.kind, account.hub)]
        if after:
            kept.append(Balance(account.kind, account.hub, after))
        kept.sort(key=lambda balance: (balance.kind, balance.hub))
        self.accounts[account.owner] = replace(record, balances=tuple(kept))

    # --- root, proofs --------------------------------------------------------------------------

    def get_tables(self) -> dict[str, dict[Any, Any]]:
        """Give the replicated tables by name, the chain's facts as a table of one record."""
        return {name: getattr(self, name) for name in TABLE_NAMES}

    def compute_root(self) -> Hash:
        """Compute the Merkle root over all records (cached until the next copy)."""
        if self._root is None:
            hashes = [leaf_hash for _, leaf_hash in self._collect_leaves()]
            self._root = compute_root_of_hashes(hashes)
        return self._root

    def prove_account(self, account: AccountId) -> ProvenEntry | None:
        """Prove an account's record under the root; None for an unknown account."""
        record = self.accounts.get(account)
        if record is None:
            return None
        leaf = encode_leaf("accounts", account, record)
        leaves = [encoded for encoded, _ in self._collect_leaves()]
        proof = compute_inclusion_proof(leaves, leaves.index(leaf))
        return ProvenEntry(leaf, proof, self.compute_root())

    def _collect_leaves(self) -> list[tuple[bytes, bytes]]:
        """Give every record's leaf with its hash, sorted; what is as before is not encoded again.

        A leaf starts with its table and key, which are unique, so sorting leaves sorts keys.
        """
        fresh: dict[str, dict[Any, _Leaf]] = {}
        for name, table in (("facts", {"": self.facts}), *self.get_tables().items()):
            known = self._leaves.get(name, {})
            kept = fresh[name] = {}
            for key, value in table.items():
                leaf = known.get(key)
                if leaf is None or leaf[0] is not value:
                    encoded = encode_leaf(name, key, value)
                    leaf = (value, (encoded, compute_leaf_hash(encoded)))
                kept[key] = leaf
        self._leaves = fresh
        return sorted([leaf[1] for kept in fresh.values() for leaf in kept.values()])

    def list_leaves(self) -> list[tuple[bytes, bytes]]:
        """Give every record's leaf with its hash, in the root's order."""
        return self._collect_leaves()

    def iterate_records(self) -> Iterator[tuple[str, Any, Any]]:
        """Give (table, key, value) of every record, in no particular order."""
        yield "facts", "", self.facts
        for name, table in self.get_tables().items():
            for key, value in table.items():
                yield name, key, value


TABLE_NAMES = (
    "accounts",
    "asks",
    "validators",
    "current_terms",
    "terms",
    "holds",
    "totals",
    "votes",
    "applied",
    "unbonding",
    "validator_sets",
    "proposers",
    "checkpoints",
    "jails",
    "offences",
    "absences",
    "shortfalls",
    "pending",
    "ask_epochs",
    "commitments",
    "models",
    "model_votes",
    "parameters",
    "parameter_changes",
    "parameter_votes",
)


def make_genesis_state(genesis: Genesis, chain_id: str) -> LedgerState:
    """Make the empty state before genesis' money and first terms are put in."""
    supply_micros = sum(validator.stake_micros for validator in genesis.validators) + sum(
        account.available_micros + account.escrow_micros for account in genesis.accounts
    )
    return LedgerState(genesis, ChainFacts(chain_id, 0, genesis.time_ms, supply_micros, EMPTY_ROOT))


def group_open_micros(holds: Mapping[HoldKey, HoldRecord], hub: HubId) -> dict[AccountId, int]:
    """Add up per account what the hub's open terms may still settle."""
    sums: dict[AccountId, int] = {}
    for key, record in holds.items():
        if key.hub == hub:
            sums[key.account] = sums.get(key.account, 0) + record.open_micros
    return sums
