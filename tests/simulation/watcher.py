"""The global observer of a simulation: it sees all that is sent, written and decided.

What it sees goes to the checkers, which stop the simulation at the first broken promise; and into
counts of the faults that happened and the states that were reached.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from iemas import wire
from iemas.consensus.messages import (
    BlocksResponse,
    CommittedBlock,
    ProposalNotice,
    SignRecord,
    VoteNotice,
)
from iemas.consensus.voting import NO_ROUND, Proposal, VoteKind
from iemas.core.auction import CloseNotice, ReleaseNotice, TranscriptNotice
from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import InvalidSignatureError
from iemas.core.ready import Event, Fault, Ready, Record, RecordKind
from iemas.core.types import NodeId, short_id
from iemas.ledger.transaction import Evidence, ResultCode
from iemas.ledger.transfer import TransferReason
from tests.simulation import checkers
from tests.simulation.history import History, Place

if TYPE_CHECKING:
    from tests.simulation.host import Host, Moment

MAX_ACCOUNT_LINES = 4_000


class Watcher:
    """Watches one simulation. `log` is its readable account, `digest` names it byte for byte."""

    def __init__(self, history: History, *, keep_account: bool = False) -> None:
        self.history = history
        self.counts: Counter[str] = Counter()
        self.durations_ms: dict[str, int] = {}
        self.account: list[str] = []
        self.now_ms = lambda: 0
        self.on_first_commit: Callable[[Host], None] = lambda _: None
        self.on_bond_burned: Callable[[NodeId], None] = lambda _: None
        self.on_precommit: Callable[[Host, int, int], None] = lambda *_: None
        self._keep_account = keep_account
        self._digest = hashlib.sha256()
        self._locks: dict[tuple[str, int], bytes] = {}
        self._rounds: dict[str, tuple[int, int]] = {}

    @property
    def digest(self) -> str:
        """Hash of all that happened."""
        return self._digest.hexdigest()

    def count(self, what: str, number: int = 1) -> None:
        """Count a fault or a state."""
        self.counts[what] += number

    def tell(self, who: str, what: str) -> None:
        """Add a line to the account, and to the digest."""
        line = f"{self.now_ms():>7} {who:14} {what}"
        self._digest.update(line.encode())
        if self._keep_account and len(self.account) < MAX_ACCOUNT_LINES:
            self.account.append(line)

    def note_duration(self, what: str, duration_ms: int) -> None:
        """Note how long something took in simulated time."""
        self.durations_ms[what] = duration_ms
        self.tell("-", f"{what} took {duration_ms} ms")

    # --- machines --------------------------------------------------------------------------------

    def note_start(self, host: Host) -> None:
        """A process started, or started again."""
        self.tell(host.name, f"starts at height {host.height}")
        if host.process > 1:
            self.count("restarts")
            signed = host.disk.scan(RecordKind.SIGNED, SignRecord)
            if signed and signed[0].height == host.height + 1:
                self.count("restarts within a height")
                self.count("restarts with a lock", signed[0].locked_value is not None)
        if host.is_honest:
            checkers.check_nothing_lost(self.history, host)

    def note_death(self, host: Host, moment: Moment, ready: Ready) -> None:
        """A process dies in a write."""
        kinds = sorted({record.kind.value for record in ready.persist})
        self.tell(host.name, f"dies at a write of {', '.join(kinds)}: {moment}")
        self.count(f"crash {moment}")
        for kind in kinds:
            self.count(f"crash at write of {kind}")

    def note_event(self, host: Host, event: Event) -> None:
        """A process logs something."""
        fields = " ".join(f"{name}={value}" for name, value in event.fields.items())
        self.tell(host.name, f"{event.name} {fields}")
        if not host.is_honest:
            return
        self.count(f"event {event.name}")
        if event.name == "peer_disconnected":
            checkers.check_cut_off(self.history, host, str(event.fields["peer"]))

    def note_fault(self, host: Host, fault: Fault) -> None:
        """A process refused something of a peer's."""
        self.tell(host.name, f"refuses {fault.message} of {short_id(fault.peer)}: {fault.error!r}")
        if host.is_honest:
            self.count(f"refused {fault.name}")
            checkers.check_fault(self.history, host, fault)

    # --- writes ----------------------------------------------------------------------------------

    def note_durable(self, host: Host, records: Sequence[Record]) -> None:
        """A process's write is on disk."""
        for record in records:
            if isinstance(record.value, CommittedBlock):
                self._note_block(host, record.value)
            elif isinstance(record.value, SignRecord) and host.is_honest:
                self._note_sign_state(host, record.value)

    def _note_block(self, host: Host, committed: CommittedBlock) -> None:
        block = committed.block
        self.tell(host.name, f"has block {block.height} {block.hash.hex()[:8]}")
        if not host.is_honest:
            return
        history = self.history
        is_first = committed.height not in history.blocks
        checkers.check_agreement(history, host, committed)
        if is_first:
            self._note_first(host, committed)
        history.committed[host.name].add(committed.height)
        if host.height == committed.height:
            checkers.check_same_state(history, host)

    def _note_first(self, host: Host, committed: CommittedBlock) -> None:
        history = self.history
        before = history.state
        applied = checkers.check_validity(history, committed)
        checkers.check_conservation(history, applied)
        checkers.check_payments(history, applied)
        checkers.check_convictions(history, applied)
        for transfer in applied.transfers:
            if transfer.reason is TransferReason.BOND_BURNED:
                self.on_bond_burned(NodeId(transfer.debit.owner))
        checkers.check_models(history)
        self.count("heights")
        self.count("heights decided in a later round", committed.commit.round > 0)
        self.count("blocks without transactions", not committed.block.transactions)
        for transaction, result in zip(committed.block.transactions, applied.results, strict=True):
            kind = type(transaction.message.body).__name__
            self.count(f"transaction {kind} {result.code.name}")
            if kind == Evidence.__name__ and result.code is ResultCode.OK:
                self.count(f"conviction {result.detail}")
        if before.validator_sets != history.state.validator_sets:
            self.count("changes of the validators")
        for hub, number in history.state.current_terms.items():
            begun = number - before.current_terms[hub]
            self.count("terms", begun)
            after = history.state.get_term(hub)
            early = after.started_at_ms - before.get_term(hub).started_at_ms
            self.count("terms cut short", begun and early < history.genesis.params.term_ms)
        self.on_first_commit(host)

    def _note_sign_state(self, host: Host, record: SignRecord) -> None:
        height = record.height
        if self._rounds.get(host.name) != (height, record.round):
            self._rounds[host.name] = (height, record.round)
            self.count("rounds above 0", record.round > 0)
            self.count("rounds above 2", record.round > 2)
        last = record.votes[-1].message if record.votes else None
        if last is not None and last.kind is VoteKind.PRECOMMIT and last.block_hash is not None:
            self.on_precommit(host, height, record.round)
        if record.locked_value is not None:
            place = (host.name, height)
            before = self._locks.get(place)
            if before != record.locked_value:
                self.count("locks" if before is None else "locks moved to another value")
            self._locks[place] = record.locked_value

    # --- messages --------------------------------------------------------------------------------

    def note_sent(self, host: Host, to: NodeId, message: wire.PeerMessage) -> None:
        """A process sends a message."""
        name = type(message).__name__
        self._digest.update(f"{self.now_ms()}{host.name}{name}".encode())
        self._digest.update(to[:4])
        match message:
            case ProposalNotice(proposal):
                self._note_proposal(proposal)
                p = proposal.message
                self._note_signed(host, proposal, ("PROPOSAL", p.height, p.round), proposal.hash)
            case VoteNotice(votes):
                for vote in votes:
                    v = vote.message
                    place = (v.kind.name, v.height, v.round)
                    self._note_signed(host, vote, place, v.block_hash or b"")
            case CloseNotice(signed, _) | ReleaseNotice(signed) | TranscriptNotice(signed):
                place = (name, signed.message.term, signed.message.round)
                self._note_signed(host, signed, place, signed.hash)
            case BlocksResponse(blocks) if blocks and host.is_honest:
                self.count("batches of blocks served")

    def _note_proposal(self, proposal: Signed[Proposal]) -> None:
        p, signer = proposal.message, proposal.signer_id
        is_new = (signer, p.height, p.round) not in self.history.proposals
        self.history.proposals.add((signer, p.height, p.round))
        if is_new and signer not in self.history.villains:
            self.count("proposals")
            self.count("proposals of a valid value", p.valid_round != NO_ROUND)

    def _note_signed(self, host: Host, signed: Signed[Any], place: Place, value: bytes) -> None:
        """Have a statement checked; what a villain says in another's name may be forged."""
        signer = signed.signer_id
        if signer in self.history.villains:
            return
        if not host.is_honest:
            try:
                verify_signed(signed, self.history.chain_id)
            except InvalidSignatureError:
                return
        checkers.check_signed_once(self.history, signer, place, value)
