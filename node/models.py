"""A node's part in QoS models: propose one, judge those of others, keep and fetch the decided ones.

Pure. While the ledger has a model to decide (`find_due_epoch`), the auctioneer of the term proposes
one from what it learnt; so whoever proposes changes with the term, and a proposer that is silent,
knows too little or bends its model costs a term, no more. Validators vote for the first proposal of
a term that they agree with. Rounds then clear under the model that stood when their term started;
whoever lacks it asks the others. Source: docs/spec/round.md §9, docs/spec/ledger.md §10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from auctioneer.predictors.base import Predictor
from auctioneer.predictors.first import FIRST_MODEL
from auctioneer.predictors.proposals import make_model, validate_model
from iemas.core.auction import ModelNotice, ModelProposal, ModelRequest, ModelResponse, QosModel
from iemas.core.envelope import Signed, Signer, verify_signed
from iemas.core.errors import RemoteProtocolError
from iemas.core.membership import Membership
from iemas.core.ready import Event, Ready, Record, RecordKind, Send
from iemas.core.types import Hash, HubId, NodeId, short_id
from iemas.ledger.records import ModelKey, ModelVoteKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import VoteModel

ModelMessage = ModelNotice | ModelRequest | ModelResponse

PROPOSING_TERMS = 6
"""The next epoch's model is proposed from so many terms before it on: as many may fail."""

PROPOSAL_INTERVAL_MS = 1_000
"""How often a node looks whether to propose, or sends again what is not decided."""

REQUEST_INTERVAL_MS = 500
"""How often a model is asked for again, of the next validator: rounds wait for it."""


def find_due_epoch(state: LedgerState, hub: HubId) -> int | None:
    """Give the ask epoch whose model is to be proposed now; None for none.

    An epoch that began without a model gets one as soon as anybody has something to say, and a
    better one whenever its age has doubled: what a young market knows doubles as fast.
    """
    epoch, params = state.ask_epochs[hub], state.params
    votable = state.list_votable_epochs(hub)
    decided = state.models.get(ModelKey(hub, epoch.number))
    if decided is None:
        return epoch.number
    next_start_ms = state.get_epoch_start(epoch.number + 1)
    is_late = state.time_ms >= next_start_ms - PROPOSING_TERMS * params.term_ms
    if epoch.number + 1 in votable and is_late:
        return epoch.number + 1
    age_ms = decided.decided_at_ms - state.get_epoch_start(epoch.number)
    age_ms = max(age_ms, params.term_ms)
    is_outgrown = state.time_ms >= decided.decided_at_ms + age_ms
    return epoch.number if epoch.number in votable and is_outgrown else None


@dataclass(frozen=True, slots=True)
class _Choice:
    """What this node votes for, and in which term it was proposed."""

    epoch: int
    term: int
    model_hash: Hash


class Models:
    """The QoS models that one node knows of one hub.

    `get_state` gives the ledger replica's current state; it is read afresh at every use.
    """

    def __init__(
        self,
        *,
        hub: HubId,
        chain_id: str,
        signer: Signer,
        membership: Membership,
        predictor: Predictor,
        get_state: Callable[[], LedgerState],
    ) -> None:
        self._hub = hub
        self._chain_id = chain_id
        self._signer = signer
        self._membership = membership
        self._predictor = predictor
        self._get_state = get_state
        self._known: dict[Hash, QosModel] = {}
        self._since: dict[Hash, int] = {}
        self._proposal: Signed[ModelProposal] | None = None
        self._choice: _Choice | None = None
        self._stood: Hash | None = None
        self._next_proposal_ms = 0
        self._next_request_ms = 0
        self._asked = 0

    def restore(self, models: Sequence[QosModel]) -> None:
        """Remember after a restart the models that this node held."""
        for model in models:
            self._known[model.hash] = model

    # --- what rounds clear under -----------------------------------------------------------------

    def get_model(self, term: int) -> QosModel | None:
        """Give the model that a term's rounds clear under; None as long as it is not at hand."""
        model_hash = self._get_state().get_model_of_term(self._hub, term)
        return FIRST_MODEL if model_hash is None else self._known.get(model_hash)

    def _get_standing(self) -> QosModel | None:
        model_hash = self._get_state().get_model(self._hub)
        return FIRST_MODEL if model_hash is None else self._known.get(model_hash)

    # --- proposing -------------------------------------------------------------------------------

    def tick(self, *, now_ms: int) -> Ready:
        """Propose if it is this node's turn, and ask for what it lacks."""
        ready = Ready()
        if now_ms >= self._next_proposal_ms:
            self._next_proposal_ms = now_ms + PROPOSAL_INTERVAL_MS
            ready += self._propose()
        return ready + self._ask_for_missing(now_ms)

    def _propose(self) -> Ready:
        """Send this term's proposal to all who vote, again as long as nothing is decided."""
        state = self._get_state()
        epoch, term = find_due_epoch(state, self._hub), state.get_term(self._hub)
        if epoch is None or term.auctioneer != self._signer.node_id:
            return Ready()
        last = self._proposal
        if last is None or (last.message.epoch, last.message.term) != (epoch, term.number):
            stood = self._get_standing()
            model = None
            if stood is not None:
                model = make_model(self._predictor, stood, self._list_members())
            if model is None or model == stood:
                return Ready()
            proposal = ModelProposal(self._hub, epoch, term.number, model)
            self._proposal = last = self._signer.sign(proposal)
        notice = ModelNotice(last)
        voters = [voter for voter, _ in state.get_consensus_validators()]
        return Ready(send=tuple(Send(voter, notice) for voter in voters))

    def _list_members(self) -> set[NodeId]:
        """List the providers of the hub that are members now: those whom rounds can match."""
        members = set()
        for node, record in self._membership.get_nodes():
            capability = record.capability.message
            if capability.sells and capability.hub == self._hub:
                members.add(node)
        return members

    # --- messages ------------------------------------------------------------------------------

    def receive(self, sender: NodeId, message: ModelMessage) -> Ready:
        """Take a message of another node, or of this one.

        Raises: InvalidSignatureError, RemoteProtocolError, ModelRefusedError.
        """
        match message:
            case ModelNotice(proposal):
                return self._receive_proposal(proposal)
            case ModelRequest(model_hash):
                return self._answer_request(sender, model_hash)
            case ModelResponse(model):
                return self._receive_model(model)

    # --- judging ---------------------------------------------------------------------------------

    def _receive_proposal(self, signed: Signed[ModelProposal]) -> Ready:
        """Judge the proposal of the term's auctioneer: this node votes for it if it agrees.

        One of another term than the current one here is left: it is sent again.
        """
        proposal, state = signed.message, self._get_state()
        verify_signed(signed, self._chain_id)
        term, stood = state.get_term(self._hub), self._get_standing()
        if (proposal.hub, proposal.term) != (self._hub, term.number) or stood is None:
            return Ready()
        if signed.signer_id != term.auctioneer:
            raise RemoteProtocolError(f"{short_id(signed.signer_id)} proposes a model out of turn")
        place = (proposal.epoch, proposal.term)
        chosen = self._choice
        is_due = proposal.epoch == find_due_epoch(state, self._hub)
        votes = any(voter == self._signer.node_id for voter, _ in state.get_consensus_validators())
        if not (is_due and votes) or (chosen is not None and (chosen.epoch, chosen.term) == place):
            return Ready()
        validate_model(proposal.model, self._predictor, stood, self._list_members())
        self._choice = _Choice(*place, proposal.model.hash)
        fields = {"epoch": proposal.epoch, "proposer": short_id(signed.signer_id)}
        return self._keep(proposal.model) + Ready(events=(Event("model_agreed", fields),))

    def list_votes(self) -> dict[str, VoteModel]:
        """List the vote that the ledger does not show yet, by name."""
        state, chosen = self._get_state(), self._choice
        if chosen is None:
            return {}
        key = ModelVoteKey(self._hub, chosen.epoch, self._signer.node_id)
        if state.model_votes.get(key) == chosen.model_hash:
            return {}
        vote = VoteModel(self._hub, chosen.epoch, chosen.model_hash)
        return {f"model of epoch {chosen.epoch}": vote}

    # --- keeping and fetching --------------------------------------------------------------------

    def _keep(self, model: QosModel) -> Ready:
        """Hold a model, on disk before anybody can hear of a vote for it."""
        model_hash = model.hash
        self._since[model_hash] = self._get_state().ask_epochs[self._hub].number
        if model_hash in self._known:
            return Ready()
        self._known[model_hash] = model
        return Ready(persist=(Record(RecordKind.MODEL, model_hash, model),))

    def follow_ledger(self, *, now_ms: int) -> Ready:
        """After new blocks: forget models that nothing names any more, ask for those that it does.

        A model is kept until the epoch after it was met is over: a vote may be on its way.
        """
        state = self._get_state()
        if self._choice is not None and self._choice.epoch != find_due_epoch(state, self._hub):
            self._choice = None  # decided, for this model or another, or its time is over
        current = state.ask_epochs[self._hub].number
        named = self._list_decided() | set(state.model_votes.values())
        forgotten = [
            model_hash
            for model_hash in sorted(self._known.keys() - named)
            if self._since.setdefault(model_hash, current) + 1 < current
        ]
        for model_hash in forgotten:
            del self._known[model_hash], self._since[model_hash]
        records = [Record(RecordKind.MODEL, model_hash, None) for model_hash in forgotten]
        ready = Ready(persist=tuple(records), events=self._note_standing(state))
        return ready + self._ask_for_missing(now_ms)

    def _note_standing(self, state: LedgerState) -> tuple[Event, ...]:
        """Tell when another model stands than at the last look."""
        before, self._stood = self._stood, state.get_model(self._hub)
        if self._stood is None or self._stood == before:
            return ()
        fields = {"epoch": state.ask_epochs[self._hub].number, "model": short_id(self._stood)}
        return (Event("model_stands", fields),)

    def _list_decided(self) -> set[Hash]:
        """List the models that stand, will stand, or stood in an open term."""
        state = self._get_state()
        decided = {r.model_hash for key, r in state.models.items() if key.hub == self._hub}
        of_terms = {r.model for key, r in state.terms.items() if key.hub == self._hub}
        return decided | {one for one in of_terms if one is not None}

    def _ask_for_missing(self, now_ms: int) -> Ready:
        """Ask one validator after the other for a decided model that is not at hand."""
        state, own_id = self._get_state(), self._signer.node_id
        others = [node for node in state.get_validators(self._hub) if node != own_id]
        missing = sorted(self._list_decided() - self._known.keys())
        is_needed = missing and others and state.is_validator(own_id, self._hub)
        if not is_needed or now_ms < self._next_request_ms:
            return Ready()
        self._next_request_ms = now_ms + REQUEST_INTERVAL_MS
        self._asked += 1
        asked = others[self._asked % len(others)]
        return Ready(send=tuple(Send(asked, ModelRequest(one)) for one in missing))

    def _answer_request(self, sender: NodeId, model_hash: Hash) -> Ready:
        """Give another validator a model, if it is at hand; it asks others, too."""
        model = self._known.get(model_hash)
        if model is None or not self._get_state().is_validator(sender, self._hub):
            return Ready()
        return Ready(send=(Send(sender, ModelResponse(model)),))

    def _receive_model(self, model: QosModel) -> Ready:
        """Take in a model that the ledger names, and no other: an answer may come late."""
        model_hash = model.hash
        if model_hash in self._known or model_hash not in self._list_decided():
            return Ready()
        return self._keep(model)
