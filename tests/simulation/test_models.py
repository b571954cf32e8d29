"""QoS models in whole markets: decided as they go, fair, fetched, never lost.

Source: docs/spec/round.md §9; docs/spec/ledger.md §10.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from auctioneer.predictors.first import FIRST_MODEL
from iemas.core.auction import ModelNotice, QosModel
from iemas.core.params import MarketParams
from iemas.core.ready import RecordKind
from iemas.core.types import NodeId
from iemas.ledger.transaction import Evidence
from tests.simulation.broken_rules import break_rule
from tests.simulation.checkers import BrokenPromiseError
from tests.simulation.market import SimulatedMarket
from tests.simulation.market_node import HUB
from tests.simulation.villains import Villain

PARAMS = MarketParams(
    term_ms=1_000, ask_epoch_ms=8_000, ask_reveal_ms=100, settle_terms=40, round_window_ms=5
)
"""An epoch lasts eight terms, so its model is proposed from its second term on."""


def make_market(seed: int, *, turns: int = 8, requesters: int = 3) -> SimulatedMarket:
    market = SimulatedMarket(seed, turns=turns, requesters=requesters, params=PARAMS)
    market.start()
    return market


def count_models(market: SimulatedMarket) -> int:
    return sum(name == "model_stands" and node == "observer" for _, node, name, _ in market.log)


# --- as it should go -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def market() -> SimulatedMarket:
    market = make_market(57, turns=12)
    market.run_conversations()
    market.settle()
    return market


def test_a_market_decides_models_as_it_goes(market: SimulatedMarket) -> None:
    epochs = {
        fields["epoch"]
        for _, node, name, fields in market.log
        if name == "model_stands" and node == "observer"
    }
    assert len(epochs) >= 3
    counts = market.watcher.counts
    assert counts["refused ModelRefusedError"] < counts["event model_agreed"]


def test_the_first_one_counts_from_the_next_term_on(market: SimulatedMarket) -> None:
    rounds = market.get_transcripts()
    assert rounds[0].model == FIRST_MODEL
    learnt = [transcript for transcript in rounds if transcript.model != FIRST_MODEL]
    assert {t.term for t in rounds if t.model == FIRST_MODEL}.isdisjoint(t.term for t in learnt)


def test_decided_models_know_who_served(market: SimulatedMarket) -> None:
    last = market.get_transcripts()[-1].model
    served = {market.nodes[row.winner].node_id for r in market.requesters for row in r.results}
    assert last.rows
    assert {row.provider for row in last.rows} <= served


def test_every_round_of_every_model_is_verified_by_all(market: SimulatedMarket) -> None:
    for node in market.nodes.values():
        assert set(node.core.rounds.verdicts) == {"verified"}


def test_old_models_are_forgotten(market: SimulatedMarket) -> None:
    node = market.nodes["node0"]
    held = node.disk.scan(RecordKind.MODEL, QosModel)
    assert {model.hash for model in held} == set(node.core.models._known)
    assert len(held) < market.watcher.counts["event model_agreed"]


# --- away, or dead -------------------------------------------------------------------------------


def run_until_a_model_stands(market: SimulatedMarket) -> bytes:
    for requester in market.requesters:
        market.clock.call_later(10, requester.begin_turn)
    state = market.history
    market.clock.run_until(
        market.clock.now_ms + 20_000, until=lambda: state.state.get_model(HUB) is not None
    )
    stood = state.state.get_model(HUB)
    assert stood is not None
    return stood


def test_who_was_away_fetches_what_was_decided() -> None:
    market = make_market(52)
    node = market.nodes["node1"]
    node.crash()
    stood = run_until_a_model_stands(market)
    node.start()
    market.clock.run_until(
        market.clock.now_ms + 5_000, until=lambda: stood in node.core.models._known
    )
    assert stood in {model.hash for model in node.disk.scan(RecordKind.MODEL, QosModel)}


def test_models_outlive_the_death_of_all_nodes_at_once() -> None:
    market = make_market(53)
    stood = run_until_a_model_stands(market)
    for node in market.nodes.values():
        node.crash()
    for node in market.nodes.values():
        node.start()
    voters = [node for node in market.nodes.values() if stood in node.core.models._known]
    assert len(voters) >= 3


# --- villains ------------------------------------------------------------------------------------


def test_an_auctioneer_that_bends_its_row_is_convicted() -> None:
    market = make_market(54, turns=3)
    villain = market.corrupt("node0", "another model")
    stake = market.nodes["node0"].core.state.get_stake_micros(villain.node_id)
    market.run_conversations()
    market.settle()
    state = market.history.state
    details = [
        result.detail
        for applied in market.history.blocks.values()
        for transaction in applied.block.transactions
        if isinstance(transaction.message.body, Evidence)
        for result, _ in [market.nodes["observer"].core.results[transaction.hash]]
    ]
    assert "WrongModelError" in details
    assert state.get_stake_micros(villain.node_id) < stake
    assert market.nodes["observer"].core.rounds.verdicts["refused"] > 0


class Flatterer(Villain):
    """Proposes that all others take a tenth of a second longer a token: nothing absurd."""

    def tamper(self, host: Any, to: NodeId, message: Any) -> tuple[Any, ...]:
        if not isinstance(message, ModelNotice) or message.proposal.signer_id != host.node_id:
            return (message,)
        proposal = message.proposal.message
        rows = [proposal.model.prior, *proposal.model.rows]
        prior, *others = [
            row if row.provider == host.node_id else replace(row, token_us=row.token_us + 100_000)
            for row in rows
        ]
        bent = replace(proposal.model, prior=prior, rows=tuple(others))
        self.bent.add(bent.hash)
        self._count("villain bent model")
        return (ModelNotice(self.signer.sign(replace(proposal, model=bent))),)


def find_first_proposer(seed: int) -> str:
    """Run a market until somebody proposes a model; give its name."""
    market = make_market(seed)
    proposers: list[str] = []
    send = market.network.send

    def listen(sender: NodeId, receiver: NodeId, message: Any) -> None:
        if isinstance(message, ModelNotice):
            proposers.append(market.by_id[sender].name)
        send(sender, receiver, message)

    market.network.send = listen  # type: ignore[method-assign]
    for requester in market.requesters:
        market.clock.call_later(market.random.randint(0, 500), requester.begin_turn)
    market.clock.run_until(market.clock.now_ms + 10_000, until=lambda: bool(proposers))
    return proposers[0]


def flatter(seed: int) -> SimulatedMarket:
    """Run a market whose first proposer flatters itself, whenever it proposes."""
    name = find_first_proposer(seed)
    market = make_market(seed)
    market.corrupt(name).villain.__class__ = Flatterer
    market.run_conversations()
    market.settle()
    return market


def test_a_bent_model_is_outvoted_and_the_next_proposer_heard() -> None:
    market = flatter(55)
    assert market.watcher.counts["villain bent model"] > 0
    assert market.watcher.counts["refused ModelRefusedError"] > 0
    assert count_models(market) >= 1


def test_without_judgement_it_would_stand() -> None:
    with break_rule("any-model"), pytest.raises(BrokenPromiseError, match="fair models"):
        flatter(55)
