"""A provider's standing ask: from what its operator configured to what stands on the ledger.

The first ask is posted in the open. Where asks are sealed, another one is committed to for the next
ask epoch and revealed when that begins; an ask that does not change needs no commitment. What is
committed to is on disk before the commitment leaves, and an epoch once committed to keeps its ask
whatever is configured since, so no crash and no restart can burn the bond.
Source: docs/spec/ledger.md §9; docs/adr/0017-sealed-asks-where-they-change.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from enum import StrEnum

from iemas.core.asks import compute_ask_commitment, compute_ask_ratio
from iemas.core.auction import Ask
from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.ready import Event, Ready, Record, RecordKind
from iemas.core.types import AccountId, Hash, HubId, NodeId, Prices
from iemas.ledger.records import CommitmentKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    CommitAsk,
    PlaceDeposit,
    PostAsk,
    RevealAsk,
    TransactionBody,
)
from iemas.ledger.transfer import get_available, get_deposit

SALT_DOMAIN = b"iemas.v1.AskSalt"


class AskPhase(StrEnum):
    """Where the configured ask is on its way to stand; the values are shown to operators."""

    NONE = "none"
    """This node sells nothing."""
    POSTING = "being posted"
    STANDS = "stands"
    OUT_OF_BOUNDS = "beyond the market's ratio"
    BOND_MISSING = "waits for money for its bond"
    PLACING_BOND = "places its bond"
    COMMITTING = "being committed"
    COMMITTED = "committed for the next ask epoch"
    REVEALING = "being revealed"
    UNKNOWN = "committed by another installation of this node"
    """The commitment on the ledger is of no ask that is known here: its bond will be lost."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What is to be done about the ask now."""

    phase: AskPhase
    due: TransactionBody | None = None
    persist: tuple[Record, ...] = ()
    missing_micros: int = 0


class StandingAsk:
    """Makes one provider's configured ask stand, step by step, as the ledger shows the last done.

    Args:
        prices: what the operator configured; None for a node that sells nothing.
        secret: 32 bytes that only this node knows and that it knows again after it lost its disk.
    """

    def __init__(
        self, *, prices: Prices | None, hub: HubId, node_id: NodeId, chain_id: str, secret: bytes
    ) -> None:
        self.phase = AskPhase.NONE
        self.missing_micros = 0
        """What the account lacks for the bond."""
        self._prices = prices
        self._hub = hub
        self._node_id = node_id
        self._chain_id = chain_id
        self._secret = secret
        self._kept: dict[int, RevealAsk] = {}  # by ask epoch: what may be committed to

    def restore(self, reveals: Iterable[RevealAsk]) -> None:
        """Take back what was persisted."""
        self._kept = {reveal.epoch: reveal for reveal in reveals}

    def follow(self, state: LedgerState) -> tuple[TransactionBody | None, Ready]:
        """Give the transaction that is due now, if any; persist its `Ready` before that leaves."""
        ready = self._forget_past(state)
        step = self._plan(state)
        if (step.phase, step.missing_micros) != (self.phase, self.missing_micros):
            self.phase, self.missing_micros = step.phase, step.missing_micros
            ready += Ready(events=(self._describe(state),))
        return step.due, ready + Ready(persist=step.persist)

    # --- what is to be done ------------------------------------------------------------------

    def _plan(self, state: LedgerState) -> _Step:
        prices, epoch = self._prices, self._get_epoch(state)
        if self._find_commitment(state, epoch) is not None:
            return self._reveal(state, epoch)
        if self._find_commitment(state, epoch + 1) is not None:
            return _Step(AskPhase.COMMITTED)
        if prices is None:
            return _Step(AskPhase.NONE)
        standing = state.get_ask(self._hub, self._node_id)
        if standing == prices:
            return _Step(AskPhase.STANDS)
        if standing is not None and state.params.sealed_asks:
            kept = self._kept.get(epoch + 1)
            return self._commit(state, kept or self._draft(epoch + 1, prices))
        if _is_out_of_bounds(state, prices):
            return _Step(AskPhase.OUT_OF_BOUNDS)
        return _Step(AskPhase.POSTING, PostAsk(Ask(self._hub, prices)))

    def _reveal(self, state: LedgerState, epoch: int) -> _Step:
        """Open what is committed to: what was kept, or if the disk was lost what is configured."""
        reveal = self._kept.get(epoch)
        if reveal is None and self._prices is not None:
            reveal = self._draft(epoch, self._prices)
        if reveal is None or self._find_commitment(state, epoch) != self._compute_hash(reveal):
            return _Step(AskPhase.UNKNOWN)
        return _Step(AskPhase.REVEALING, reveal)

    def _commit(self, state: LedgerState, reveal: RevealAsk) -> _Step:
        """Commit to an ask that can be revealed, once its bond is deposited and it is kept."""
        if _is_out_of_bounds(state, reveal.prices):
            return _Step(AskPhase.OUT_OF_BOUNDS)
        bond_micros = state.get_bonded(self._node_id) + state.params.ask_bond_micros
        account = AccountId(self._node_id)
        wanted_micros = bond_micros - state.get_funds(get_deposit(account))
        missing_micros = wanted_micros - state.get_funds(get_available(account))
        if wanted_micros > 0 and missing_micros > 0:
            return _Step(AskPhase.BOND_MISSING, missing_micros=missing_micros)
        if wanted_micros > 0:
            return _Step(AskPhase.PLACING_BOND, PlaceDeposit(wanted_micros))
        persist: tuple[Record, ...] = ()
        if reveal.epoch not in self._kept:
            self._kept[reveal.epoch] = reveal
            persist = (Record(RecordKind.SEALED_ASK, _make_key(reveal.epoch), reveal),)
        commitment = CommitAsk(self._hub, reveal.epoch, self._compute_hash(reveal))
        return _Step(AskPhase.COMMITTING, commitment, persist)

    def _forget_past(self, state: LedgerState) -> Ready:
        """Forget asks that are revealed, and those that cannot be revealed any more."""
        past = [
            epoch
            for epoch in sorted(self._kept)
            if epoch <= self._get_epoch(state) and self._find_commitment(state, epoch) is None
        ]
        standing, ready = state.get_ask(self._hub, self._node_id), Ready()
        for epoch in past:
            reveal = self._kept.pop(epoch)
            ready += Ready(persist=(Record(RecordKind.SEALED_ASK, _make_key(epoch), None),))
            if reveal.prices != standing:
                ready += Ready(events=(Event("ask_not_replaced", {"epoch": epoch}),))
        return ready

    # --- helpers -----------------------------------------------------------------------------

    def _get_epoch(self, state: LedgerState) -> int:
        return state.ask_epochs[self._hub].number

    def _find_commitment(self, state: LedgerState, epoch: int) -> Hash | None:
        """Give this node's outstanding commitment for an epoch, if the ledger shows one."""
        record = state.commitments.get(CommitmentKey(self._hub, epoch, self._node_id))
        return None if record is None else record.commitment

    def _draft(self, epoch: int, prices: Prices) -> RevealAsk:
        """Make the reveal of an ask; its salt follows from the secret, and shows nothing of it."""
        place = (self._chain_id, self._hub, epoch, astuple(prices))
        salt = compute_hash(SALT_DOMAIN, self._secret, encode_canonical(place))
        return RevealAsk(self._hub, epoch, prices, salt)

    def _compute_hash(self, reveal: RevealAsk) -> Hash:
        return compute_ask_commitment(
            self._chain_id,
            self._hub,
            reveal.epoch,
            self._node_id,
            reveal.prices,
            salt=reveal.salt,
        )

    def _describe(self, state: LedgerState) -> Event:
        """Tell what the ask has come to; never its prices, which may be sealed."""
        fields: dict[str, object] = {"epoch": self._get_epoch(state)}
        if self.missing_micros:
            fields["missing_micros"] = self.missing_micros
        return Event(f"ask_{self.phase.name.lower()}", fields)


def _is_out_of_bounds(state: LedgerState, prices: Prices) -> bool:
    return compute_ask_ratio(prices) > state.params.ask_ratio_max


def _make_key(epoch: int) -> bytes:
    return epoch.to_bytes(8, "big")
