"""A node's part in QoS models: who proposes when, who votes for what, who fetches and forgets.

Source: docs/spec/round.md §9; docs/spec/ledger.md §10.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from auctioneer.predictors.errors import ModelRefusedError
from auctioneer.predictors.first import FIRST_MODEL
from auctioneer.predictors.linear import LinearPredictor
from iemas.core.auction import ModelNotice, ModelProposal, ModelRequest, ModelResponse, QosModel
from iemas.core.errors import InvalidSignatureError, RemoteProtocolError
from iemas.core.execution import Receipt
from iemas.core.params import MarketParams
from iemas.core.ready import Ready, RecordKind
from iemas.core.types import FinishReason, Hash, NodeId
from iemas.ledger.transaction import VoteModel
from iemas.testing.builders import make_qos_model
from iemas.testing.chain import HUB, LedgerChain, make_genesis
from node.models import PROPOSAL_INTERVAL_MS, PROPOSING_TERMS, Models, find_due_epoch

NODES = ("node-1", "node-2", "node-3", "node-4")
PARAMS = MarketParams(term_ms=1_000, ask_epoch_ms=100_000, ask_reveal_ms=10)
SELLER = NodeId(bytes([7]) * 32)


def make_receipt(ttft_ms: int) -> Receipt:
    return Receipt(
        allocation_hash=bytes(32),
        account=bytes(32),
        provider=SELLER,
        hub=HUB,
        term=0,
        channel=1,
        sequence=1,
        prompt_tokens=100,
        cached_tokens=0,
        billed_cached_tokens=0,
        output_tokens=10,
        prompt_late_ppm=0,
        output_late_ppm_tokens=0,
        ttft_ms=ttft_ms,
        elapsed_ms=ttft_ms + 90,
        amount_micros=0,
        output_hash=bytes(32),
        active_tasks=0,
        max_tokens=100,
        finish=FinishReason.STOP,
    )


class Hub:
    """Four validators' models around one ledger; messages go where a test lets them."""

    def __init__(self) -> None:
        self.chain = LedgerChain(make_genesis(validators=NODES, params=PARAMS))
        self.predictors = {name: LinearPredictor() for name in NODES}
        self.models = {name: self.make_models(name) for name in NODES}

    def make_models(self, name: str) -> Models:
        capability = SimpleNamespace(sells=True, hub=HUB)
        record = SimpleNamespace(capability=SimpleNamespace(message=capability))
        return Models(
            hub=HUB,
            chain_id=self.chain.chain_id,
            signer=self.chain.get_signer(name),
            membership=cast("Any", SimpleNamespace(get_nodes=lambda: [(SELLER, record)])),
            predictor=self.predictors[name],
            get_state=lambda: self.chain.state,
        )

    @property
    def proposer(self) -> str:
        """The current term's auctioneer."""
        return self.chain.get_name(self.chain.state.get_term(HUB).auctioneer)

    def learn(self, *names: str, count: int = 20, ttft_ms: int = 80) -> None:
        for name in names or NODES:
            for n in range(count):
                receipt = make_receipt(ttft_ms + n % 5)
                self.predictors[name].learn_one(receipt, max_tokens=receipt.max_tokens)

    def propose(self, name: str | None = None) -> ModelNotice:
        """Let somebody propose; give what it sends."""
        ready = self.models[name or self.proposer].tick(now_ms=self.chain.now_ms)
        (notice,) = {id(send.message): send.message for send in ready.send}.values()
        assert isinstance(notice, ModelNotice)
        return notice

    def receive(self, name: str, message: Any, *, sender: str = "node-1") -> Ready:
        return self.models[name].receive(self.chain.get_node(sender), message)

    def vote(self, *names: str) -> list[VoteModel]:
        """Put the votes that are due on the ledger."""
        votes = []
        for name in names:
            for body in self.models[name].list_votes().values():
                self.chain.submit(name, body)
                votes.append(body)
        return votes

    def decide(self) -> QosModel:
        """Take a model the whole way."""
        notice = self.propose()
        for name in NODES:
            self.receive(name, notice)
        self.vote(*NODES[:3])
        self.follow()
        return notice.proposal.message.model

    def follow(self) -> dict[str, Ready]:
        now_ms = self.chain.now_ms
        return {name: self.models[name].follow_ledger(now_ms=now_ms) for name in NODES}


@pytest.fixture
def hub() -> Hub:
    return Hub()


# --- proposing -----------------------------------------------------------------------------------


def test_the_auctioneer_of_the_term_proposes_to_all_who_vote(hub: Hub) -> None:
    hub.learn()
    for name in NODES:
        ready = hub.models[name].tick(now_ms=hub.chain.now_ms)
        expected = {hub.chain.get_node(n) for n in NODES} if name == hub.proposer else set()
        assert {send.to for send in ready.send} == expected


def test_who_knows_too_little_stays_silent(hub: Hub) -> None:
    hub.learn(count=3)
    assert hub.models[hub.proposer].tick(now_ms=hub.chain.now_ms) == Ready()


def test_a_proposal_is_repeated_as_it_was(hub: Hub) -> None:
    hub.learn()
    first = hub.propose()
    hub.learn(ttft_ms=500)
    proposer, now_ms = hub.models[hub.proposer], hub.chain.now_ms
    assert proposer.tick(now_ms=now_ms + PROPOSAL_INTERVAL_MS - 1) == Ready()
    again = proposer.tick(now_ms=now_ms + PROPOSAL_INTERVAL_MS)
    assert again.send[0].message == first


def test_what_stands_is_not_proposed_again(hub: Hub) -> None:
    hub.learn()
    hub.decide()
    hub.chain.apply(after_ms=2 * PARAMS.term_ms)
    assert find_due_epoch(hub.chain.state, HUB) == 0
    assert hub.models[hub.proposer].tick(now_ms=hub.chain.now_ms) == Ready()


# --- when a model is due -------------------------------------------------------------------------


def test_a_market_without_a_model_is_always_due(hub: Hub) -> None:
    assert find_due_epoch(hub.chain.state, HUB) == 0


def test_a_young_model_is_outgrown_when_its_age_has_doubled(hub: Hub) -> None:
    hub.chain.apply(after_ms=4_000)
    for name in NODES[:3]:
        hub.chain.submit(name, VoteModel(HUB, 0, Hash(b"m" * 32)))
    decided_at_ms = hub.chain.state.time_ms
    age_ms = decided_at_ms - hub.chain.genesis.time_ms
    hub.chain.apply(after_ms=age_ms - 500)
    assert find_due_epoch(hub.chain.state, HUB) is None
    hub.chain.apply(after_ms=500)
    assert find_due_epoch(hub.chain.state, HUB) == 0


def test_later_a_model_is_due_some_terms_before_its_epoch(hub: Hub) -> None:
    for name in NODES[:3]:
        hub.chain.submit(name, VoteModel(HUB, 1, Hash(b"m" * 32)))
    chain = hub.chain
    chain.apply(after_ms=PARAMS.ask_epoch_ms)
    ends_at_ms = chain.genesis.time_ms + 2 * PARAMS.ask_epoch_ms
    due_at_ms = ends_at_ms - PROPOSING_TERMS * PARAMS.term_ms
    chain.apply(after_ms=due_at_ms - chain.state.time_ms - 1)
    assert find_due_epoch(chain.state, HUB) is None
    chain.apply(after_ms=1)
    assert find_due_epoch(chain.state, HUB) == 2


# --- voting --------------------------------------------------------------------------------------


def test_who_agrees_holds_the_model_on_disk_and_votes_once(hub: Hub) -> None:
    hub.learn()
    notice = hub.propose()
    model = notice.proposal.message.model
    ready = hub.receive("node-2", notice)
    assert [(r.kind, r.key, r.value) for r in ready.persist] == [
        (RecordKind.MODEL, model.hash, model)
    ]
    assert hub.vote("node-2") == [VoteModel(HUB, 0, model.hash)]
    assert hub.vote("node-2") == []
    assert hub.receive("node-2", notice) == Ready()


def test_a_decided_model_stands_and_rounds_have_it_from_the_next_term_on(hub: Hub) -> None:
    hub.learn()
    term = hub.chain.state.get_term(HUB).number
    model = hub.decide()
    assert hub.chain.state.get_model(HUB) == model.hash
    assert hub.models["node-4"].list_votes() == {}
    hub.chain.end_term()
    assert hub.models["node-4"].get_model(term) == FIRST_MODEL
    assert hub.models["node-4"].get_model(term + 1) == model


def test_a_bent_model_gets_no_vote_and_the_next_proposer_does(hub: Hub) -> None:
    hub.learn()
    proposal = hub.propose().proposal.message
    prior = replace(proposal.model.prior, token_us=10 * proposal.model.prior.token_us + 100_000)
    bent = replace(proposal, model=replace(proposal.model, prior=prior))
    notice = ModelNotice(hub.chain.sign(hub.proposer, bent))
    for name in NODES:
        with pytest.raises(ModelRefusedError):
            hub.receive(name, notice)
    assert hub.vote(*NODES) == []
    hub.chain.end_term()
    assert hub.chain.state.get_model(HUB) is None
    hub.decide()
    assert hub.chain.state.get_model(HUB) is not None


def test_a_proposal_out_of_turn_is_refused(hub: Hub) -> None:
    hub.learn()
    proposal = hub.propose().proposal.message
    other = next(name for name in NODES if name != hub.proposer)
    with pytest.raises(RemoteProtocolError, match="out of turn"):
        hub.receive("node-2", ModelNotice(hub.chain.sign(other, proposal)))


def test_a_forged_proposal_is_refused(hub: Hub) -> None:
    hub.learn()
    signed = hub.propose().proposal
    forged = replace(signed, envelope=replace(signed.envelope, signature=bytes(64)))
    with pytest.raises(InvalidSignatureError):
        hub.receive("node-2", ModelNotice(forged))


@pytest.mark.parametrize("changes", [{"term": 9}, {"epoch": 1}, {"hub": "another"}])
def test_a_proposal_of_another_place_is_left(hub: Hub, changes: dict[str, Any]) -> None:
    hub.learn()
    proposal: ModelProposal = replace(hub.propose().proposal.message, **changes)
    notice = ModelNotice(hub.chain.sign(hub.proposer, proposal))
    assert hub.receive("node-2", notice) == Ready()
    assert hub.vote("node-2") == []


def test_one_proposal_a_term_is_agreed_with(hub: Hub) -> None:
    hub.learn()
    notice = hub.propose()
    proposal = notice.proposal.message
    hub.receive("node-2", notice)
    prior = replace(proposal.model.prior, token_us=proposal.model.prior.token_us + 1)
    second = replace(proposal, model=replace(proposal.model, prior=prior))
    hub.receive("node-2", ModelNotice(hub.chain.sign(hub.proposer, second)))
    assert hub.vote("node-2") == [VoteModel(HUB, 0, proposal.model.hash)]


def test_a_later_proposal_gets_the_vote_of_an_undecided_one(hub: Hub) -> None:
    hub.learn()
    hub.receive("node-2", hub.propose())
    hub.vote("node-2")
    hub.chain.end_term()
    hub.learn(count=1)
    later = hub.propose()
    hub.receive("node-2", later)
    assert hub.vote("node-2") == [VoteModel(HUB, 0, later.proposal.message.model.hash)]


# --- keeping and fetching ------------------------------------------------------------------------


def decide_without(hub: Hub, absent: str) -> QosModel:
    """Decide a model that one validator never hears of."""
    hub.learn()
    notice = hub.propose()
    others = [name for name in NODES if name != absent]
    for name in others:
        hub.receive(name, notice)
    hub.vote(*others)
    return notice.proposal.message.model


def test_who_lacks_the_model_asks_for_it(hub: Hub) -> None:
    model = decide_without(hub, "node-2")
    requests = hub.follow()["node-2"].send
    assert [send.message for send in requests] == [ModelRequest(model.hash)]
    answer = hub.receive("node-1", requests[0].message, sender="node-2")
    assert [(s.to, s.message) for s in answer.send] == [
        (hub.chain.get_node("node-2"), ModelResponse(model))
    ]
    ready = hub.receive("node-2", ModelResponse(model))
    assert ready.persist[0].value == model
    hub.chain.end_term()
    assert hub.models["node-2"].get_model(hub.chain.state.get_term(HUB).number) == model
    assert hub.follow()["node-2"].send == ()


def test_it_asks_one_after_the_other_and_not_all_the_time(hub: Hub) -> None:
    decide_without(hub, "node-2")
    models, now_ms = hub.models["node-2"], hub.chain.now_ms
    asked = [
        send.to for n in range(40) for send in models.follow_ledger(now_ms=now_ms + 100 * n).send
    ]
    others = {hub.chain.get_node(name) for name in NODES if name != "node-2"}
    assert len(asked) == 8
    assert set(asked) == others


def test_until_then_its_rounds_have_none(hub: Hub) -> None:
    decide_without(hub, "node-2")
    hub.chain.end_term()
    assert hub.models["node-2"].get_model(hub.chain.state.get_term(HUB).number) is None


def test_only_what_was_decided_is_taken_in(hub: Hub) -> None:
    assert hub.receive("node-2", ModelResponse(make_qos_model())) == Ready()


def test_only_validators_are_answered(hub: Hub) -> None:
    hub.learn()
    request = ModelRequest(hub.decide().hash)
    assert hub.receive("node-1", request, sender="node-2") != Ready()
    assert hub.receive("node-1", request, sender="alice") == Ready()


def test_a_restart_remembers(hub: Hub) -> None:
    hub.learn()
    model = hub.decide()
    hub.models["node-2"] = hub.make_models("node-2")
    hub.models["node-2"].restore([model])
    assert hub.follow()["node-2"].send == ()


def test_what_nothing_names_is_forgotten_after_two_epochs(hub: Hub) -> None:
    hub.learn()
    model = hub.decide()
    other = make_qos_model()
    hub.models["node-2"].restore([other])
    forgotten = []
    for _ in range(4):
        hub.chain.apply(after_ms=PARAMS.ask_epoch_ms)
        forgotten += [r.key for r in hub.follow()["node-2"].persist if r.value is None]
    assert forgotten == [other.hash]
    assert hub.models["node-2"].get_model(hub.chain.state.get_term(HUB).number) == model
