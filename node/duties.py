"""What a node owes the ledger: its ask, settlements, books, evidence, votes.

`Duties.do` looks at the ledger's state, lists what it does not show yet, and submits a transaction
for each, again only if the last try came to nothing. So a duty needs no memory of its own: it is
due until the ledger shows it done. Source: docs/spec/ledger.md §5, §7; docs/spec/election.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import SubmitTransaction
from iemas.consensus.voting import DoubleVote
from iemas.core.envelope import Signed, Signer
from iemas.core.ready import Ready
from iemas.core.types import AccountId, HubId, NodeId
from iemas.ledger.records import OffenceKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    AbsenceVote,
    DoubleVoteEvidence,
    Evidence,
    ReturnToDuty,
    Transaction,
    TransactionBody,
)
from node.absence import Absence
from node.models import Models
from node.provider import Provider
from node.rounds import Rounds
from node.standing_ask import StandingAsk

RESUBMIT_MS = 2_000
REPEAT_LANDED_MS = 5_000


@dataclass(slots=True)
class _Submission:
    """A duty's last transaction."""

    transaction: Signed[Transaction]
    sent_at_ms: int


class Duties:
    """One node's transactions of its own.

    Args:
        ask: makes a provider's configured ask stand.
    """

    def __init__(
        self,
        *,
        hub: HubId,
        signer: Signer,
        ask: StandingAsk,
        engine: TendermintEngine,
        absence: Absence,
        provider: Provider,
        rounds: Rounds,
        models: Models,
    ) -> None:
        self._hub = hub
        self._signer = signer
        self._node_id = signer.node_id
        self._account = AccountId(signer.node_id)
        self._ask = ask
        self._engine = engine
        self._absence = absence
        self._provider = provider
        self._rounds = rounds
        self._models = models
        self._last_nonce = 0
        self._submissions: dict[str, _Submission] = {}
        self._double_votes: dict[NodeId, DoubleVote] = {}

    @property
    def _state(self) -> LedgerState:
        return self._engine.state

    def do(self, *, now_ms: int) -> Ready:
        """Submit what is due and not on its way. Call on every block and every tick."""
        due = self.list_due(now_ms=now_ms)
        ask, ready = self._ask.follow(self._state)
        if ask is not None:
            due["ask"] = ask
        self._submissions = {name: last for name, last in self._submissions.items() if name in due}
        for name, body in due.items():
            ready += self._submit(name, body, now_ms)
        return ready

    # --- what is due -------------------------------------------------------------------------

    def list_due(self, *, now_ms: int) -> dict[str, TransactionBody]:
        """List what the ledger does not show yet, by name; but the ask, which is on disk first."""
        state, hub = self._state, self._hub
        due: dict[str, TransactionBody] = {}
        settlement = self._provider.collect_settlement()
        if settlement is not None:
            due["settlement"] = settlement
        for books in self._rounds.get_due_books():
            due[f"books of term {books.term}"] = books
        due |= self._list_double_votes()
        evidence = self._rounds.get_evidence()
        if evidence is not None:
            due["evidence"] = evidence
        due |= self._models.list_votes()
        if state.is_validator(self._node_id):
            if state.is_live(hub, self._node_id):
                due |= self._list_absence_votes(now_ms)
            elif state.may_return(hub, self._node_id):
                due["return to duty"] = ReturnToDuty(hub)
        return due

    def _list_double_votes(self) -> dict[str, TransactionBody]:
        """Report who voted twice, once its height is decided and until it is punished for it."""
        state = self._state
        for double in self._engine.take_evidence():
            self._double_votes.setdefault(double.first.signer_id, double)
        due: dict[str, TransactionBody] = {}
        for signer, double in list(self._double_votes.items()):
            height = double.first.message.height
            if height > state.height:
                continue  # the ledger judges it once the height is decided
            is_too_old = state.get_voting_time(height) is None
            if is_too_old or OffenceKey(signer, height) in state.offences:
                del self._double_votes[signer]
            else:
                evidence = DoubleVoteEvidence(double.first, double.second)
                due[f"double vote of {signer.hex()} at height {height}"] = Evidence(evidence)
        return due

    def _list_absence_votes(self, now_ms: int) -> dict[str, TransactionBody]:
        """Vote absent whom this node holds to be absent, once a term."""
        hub, term = self._hub, self._state.get_term(self._hub).number
        return {
            f"absence of {node.hex()} in term {term}": AbsenceVote(hub, term, node)
            for node in self._absence.list_accused(now_ms=now_ms)
        }

    # --- submitting --------------------------------------------------------------------------

    def _submit(self, name: str, body: TransactionBody, now_ms: int) -> Ready:
        """Submit a duty's transaction, and again only if the last try came to nothing."""
        last = self._submissions.get(name)
        if last is not None and not self._is_over(last, body, now_ms):
            return Ready()
        nonce = max(self._last_nonce, self._state.get_nonce(self._account)) + 1
        self._last_nonce = nonce
        transaction = self._signer.sign(Transaction(self._account, nonce, body))
        self._submissions[name] = _Submission(transaction, now_ms)
        return self._engine.step(SubmitTransaction(transaction), now_ms=now_ms)

    def _is_over(self, last: _Submission, body: TransactionBody, now_ms: int) -> bool:
        """Tell whether a duty that is still due needs a new transaction."""
        transaction = last.transaction
        waited_ms = now_ms - last.sent_at_ms
        changed = body != transaction.message.body
        if self._state.is_applied(transaction.hash):
            return changed or waited_ms >= REPEAT_LANDED_MS
        if self._state.get_nonce(self._account) >= transaction.message.nonce:
            return True  # a later one overtook it on the way: it can never be applied
        if self._engine.is_waiting(transaction.hash):
            return changed and waited_ms >= RESUBMIT_MS
        return waited_ms >= RESUBMIT_MS
