"""`iemas verify`'s replay: what an honest market leaves passes, whatever was changed does not."""

from dataclasses import replace
from typing import Any

import pytest

from iemas import wire
from iemas.consensus.messages import CommittedBlock
from iemas.core.auction import Transcript
from iemas.core.envelope import Signed
from iemas.core.errors import IemasError
from iemas.core.ready import RecordKind
from node.cli.findings import export_findings
from node.cli.history import History
from tests.simulation.market import SimulatedMarket

Blocks = list[CommittedBlock]
Transcripts = list[Signed[Transcript]]


@pytest.fixture(scope="module")
def market() -> SimulatedMarket:
    made = SimulatedMarket(11, requesters=2, turns=2)
    made.start()
    made.run_conversations()
    made.settle()
    return made


@pytest.fixture
def blocks(market: SimulatedMarket) -> Blocks:
    return market.nodes["observer"].disk.scan(RecordKind.BLOCK, CommittedBlock)


@pytest.fixture
def transcripts(market: SimulatedMarket) -> Transcripts:
    return market.nodes["observer"].disk.scan_signed(RecordKind.TRANSCRIPT, Transcript)


def replay(market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts) -> History:
    history = History(market.genesis, market.chain_id)
    history.add_transcripts(transcripts)
    for block in blocks:
        history.add_block(block)
    history.finish()
    return history


def resign(
    market: SimulatedMarket, transcript: Signed[Transcript], **changes: Any
) -> Signed[Transcript]:
    """Have the auctioneer itself sign a changed transcript."""
    identity = next(
        node.identity
        for node in market.nodes.values()
        if node.node_id == transcript.message.auctioneer
    )
    signer = wire.WireSigner(identity, market.chain_id)
    return signer.sign(replace(transcript.message, **changes))


def test_an_honest_history_holds(
    market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts
) -> None:
    history = replay(market, blocks, transcripts)
    findings = history.findings
    assert findings.problems == []
    assert findings.rounds == len(transcripts) > 0
    assert findings.height == len(blocks)
    assert findings.state_root == market.nodes["observer"].core.engine.state_root
    assert findings.money_micros == findings.supply_micros > 0
    assert export_findings(findings)["holds"] is True


def test_every_height_has_the_root_that_the_next_block_names(
    market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts
) -> None:
    history = replay(market, blocks, transcripts)
    for block in blocks:
        header = block.block.header.message
        assert history.roots[header.height - 1] == header.state_root


def test_a_round_that_the_ledger_names_and_nobody_shows_is_a_problem(
    market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts
) -> None:
    problems = replay(market, blocks, transcripts[:-1]).findings.problems
    assert any("no node shows" in problem for problem in problems)


def test_a_missing_round_in_the_middle_is_a_problem(
    market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts
) -> None:
    assert len(transcripts) > 2
    problems = replay(market, blocks, transcripts[1:]).findings.problems
    assert any("is missing" in problem for problem in problems)


def test_a_wrong_clearing_is_a_problem(
    market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts
) -> None:
    clearing = transcripts[0].message.clearing
    lie = replace(clearing, welfare_micros=clearing.welfare_micros + 1)
    changed = resign(market, transcripts[0], clearing=lie)
    problems = replay(market, blocks, [changed, *transcripts[1:]]).findings.problems
    place = f"term {transcripts[0].message.term} round {transcripts[0].message.round}"
    assert any(problem.startswith(place) for problem in problems)


def test_two_transcripts_of_one_round_are_a_problem(
    market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts
) -> None:
    other = resign(market, transcripts[0], cleared_at_ms=transcripts[0].message.cleared_at_ms + 1)
    problems = replay(market, blocks, [*transcripts, other]).findings.problems
    assert any("two transcripts" in problem for problem in problems)


def test_a_block_without_a_quorum_of_precommits_ends_the_replay(
    market: SimulatedMarket, blocks: Blocks
) -> None:
    history = History(market.genesis, market.chain_id)
    commit = replace(blocks[0].commit, precommits=blocks[0].commit.precommits[:2])
    with pytest.raises(IemasError, match="a quorum is"):
        history.add_block(replace(blocks[0], commit=commit))


def test_a_block_that_its_commit_does_not_name_ends_the_replay(
    market: SimulatedMarket, blocks: Blocks
) -> None:
    history = History(market.genesis, market.chain_id)
    header = blocks[0].block.header
    validator = market.by_id[header.signer_id].identity
    forged = wire.WireSigner(validator, market.chain_id).sign(
        replace(header.message, time_ms=header.message.time_ms + 1)
    )
    block = replace(blocks[0].block, header=forged)
    with pytest.raises(IemasError, match="another block's"):
        history.add_block(replace(blocks[0], block=block))


def test_a_left_out_block_ends_the_replay(
    market: SimulatedMarket, blocks: Blocks, transcripts: Transcripts
) -> None:
    history = History(market.genesis, market.chain_id)
    history.add_block(blocks[0])
    with pytest.raises(IemasError, match="does not follow"):
        history.add_block(blocks[2])
