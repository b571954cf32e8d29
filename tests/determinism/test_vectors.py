"""The same blocks give the same roots: here, and in processes that hash otherwise.

Other versions of Python: `make test-determinism`. Source: docs/spec/application.md A1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from auctioneer.mechanism import lateness as rounds
from iemas.core.types import AccountId
from iemas.genesis import load_genesis
from iemas.ledger import application, blocks
from iemas.ledger.application import LedgerApplication
from iemas.ledger.state import LedgerState
from tests.determinism import vectors as golden
from tests.determinism.rounds import MARKETS
from tests.determinism.story import EVERYTHING, judge


@pytest.fixture(scope="module")
def vectors() -> golden.Vectors:
    return golden.load_vectors()


def test_the_golden_chain_replays(vectors: golden.Vectors) -> None:
    assert golden.replay(vectors) == vectors.blocks[-1].state_root


def test_the_drawn_rounds_come_to_the_same() -> None:
    assert golden.repeat_rounds() == MARKETS


def test_a_round_that_differs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PPM", rounds.PPM + 1)
    with pytest.raises(golden.VectorMismatchError, match="drawn round 0"):
        golden.repeat_rounds()


@pytest.mark.parametrize("hash_seed", ["0", "1", "4294967295"])
def test_the_golden_chain_replays_whatever_python_hashes(
    vectors: golden.Vectors, hash_seed: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.determinism"],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["state_root"] == vectors.blocks[-1].state_root


def test_everything_happens_in_the_golden_chain(vectors: golden.Vectors) -> None:
    genesis, _, _ = load_genesis(vectors.genesis)
    app = LedgerApplication(genesis, vectors.chain_id, verify_transcript=judge)
    reached: set[str] = set()
    for vector in vectors.blocks:
        finalized = app.finalize_block(vector.block)
        app.commit()
        reached |= {type(signed.message.body).__name__ for signed in vector.block.transactions}
        reached |= {result.code.name for result in finalized.results}
        reached |= {transfer.reason.name for transfer in finalized.transfers}
    missing = EVERYTHING - reached
    assert not missing, f"teach tests/determinism/story.py to do {missing}, then {golden.COMMAND}"


def test_a_difference_names_its_height_and_the_command(vectors: golden.Vectors) -> None:
    wrong = replace(vectors.blocks[6], state_root="00" * 32)
    changed = replace(vectors, blocks=(*vectors.blocks[:6], wrong))
    with pytest.raises(golden.VectorMismatchError, match="height 7: the state root") as caught:
        golden.replay(changed)
    assert golden.COMMAND in str(caught.value)


def test_a_rule_that_depends_on_hashes_is_seen(
    vectors: golden.Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_block(state: LedgerState, *, elapsed_ms: int) -> None:
        state.set_nonce(AccountId(bytes(32)), abs(hash("in another order in every process")))
        blocks.begin_block(state, elapsed_ms=elapsed_ms)

    monkeypatch.setattr(application, "begin_block", begin_block)
    with pytest.raises(golden.VectorMismatchError, match="height 1: the state root"):
        golden.replay(vectors)
