"""What `iemas verify` makes of the history of a market whose nodes each missed something."""

from __future__ import annotations

from iemas.consensus.messages import CommittedBlock
from iemas.core.auction import Transcript
from iemas.core.envelope import Signed
from iemas.core.ready import RecordKind
from node.cli.history import Findings, History
from tests.simulation.market import SimulatedMarket


def check(market: SimulatedMarket, *shown: list[Signed[Transcript]]) -> Findings:
    """Replay the chain with the transcripts that each node shows."""
    history = History(market.genesis, market.chain_id)
    for transcripts in shown:
        history.add_transcripts(transcripts)
    for block in market.nodes["observer"].disk.scan(RecordKind.BLOCK, CommittedBlock):
        history.add_block(block)
    return history.finish()


def test_rounds_that_only_some_nodes_have_are_put_in_order() -> None:
    market = SimulatedMarket(51, turns=2)
    market.start()
    market.run_conversations()
    market.settle()
    all_rounds = market.nodes["node0"].disk.scan_signed(RecordKind.TRANSCRIPT, Transcript)
    second = next(t for t in all_rounds if t.message.round == 1)
    without = [t for t in all_rounds if t is not second]
    assert check(market, without, all_rounds).problems == []
    assert any("is missing" in problem for problem in check(market, without).problems)
