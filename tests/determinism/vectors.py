"""The golden vectors: blocks as bytes, and what each must do, whoever replays them.

Replaying needs no more than the pure packages, their codec and the genesis file. Nothing that the
vectors say is computed here: blocks are what was signed once.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iemas import wire
from iemas.core.encoding import compute_hash
from iemas.core.errors import InvalidInputError
from iemas.genesis import encode_genesis, load_genesis
from iemas.ledger.application import FinalizedBlock, LedgerApplication
from iemas.ledger.header import Block
from tests.determinism.rounds import list_rounds
from tests.determinism.story import judge, tell_everything

FOLDER = Path(__file__).parents[1] / "vectors"
PATH = FOLDER / "chain.json"
ROUNDS_PATH = FOLDER / "rounds.json"
COMMAND = "python -m tests.determinism --write"
ADVICE = (
    f"If a rule, a record or a genesis parameter was changed on purpose: {COMMAND} "
    "(tests/vectors/README.md). If not, replicas of two versions would fork here."
)


class VectorMismatchError(AssertionError):
    """A replay did not give what the vectors say."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A block, and what it did: `results` hashes all results and transfers."""

    height: int
    block: Block
    block_hash: str
    state_root: str
    results: str


@dataclass(frozen=True, slots=True)
class Vectors:
    """A chain from its genesis file on."""

    genesis: bytes
    chain_id: str
    root: str
    blocks: Sequence[Vector]


def describe(finalized: FinalizedBlock) -> str:
    """Hash what a block did besides the state: codes, details and transfers, in order."""
    plain = [
        *[f"{result.code.name} {result.detail}" for result in finalized.results],
        *[f"{t.debit} {t.credit} {t.amount_micros} {t.reason}" for t in finalized.transfers],
    ]
    return compute_hash(*[line.encode() for line in plain]).hex()[:16]


def make_vectors() -> dict[str, Any]:
    """Tell the story anew; give the file's contents."""
    chain = tell_everything()
    finalized = next(iter(chain.engine.replicas.values())).finalized
    return {
        "genesis": encode_genesis(chain.genesis).decode(),
        "chain_id": chain.chain_id,
        "state_root": chain.make_app().info().state_root.hex(),
        "blocks": [
            {
                "hash": block.hash.hex(),
                "state_root": finalized[block.height].state_root.hex(),
                "results": describe(finalized[block.height]),
                "block": b64encode(wire.encode(block)).decode(),
            }
            for block in chain.blocks
        ],
    }


def save_vectors() -> None:
    """Write both files anew."""
    PATH.write_text(json.dumps(make_vectors(), indent=0) + "\n")
    ROUNDS_PATH.write_text(json.dumps(list_rounds(), indent=0) + "\n")


def load_vectors() -> Vectors:
    """Load the file. Raises: VectorMismatchError if its blocks do not decode any more."""
    try:
        return _decode(json.loads(PATH.read_text()))
    except InvalidInputError as error:
        raise VectorMismatchError(
            f"the vectors' blocks do not decode ({error}). {ADVICE}"
        ) from error


def _decode(data: dict[str, Any]) -> Vectors:
    return Vectors(
        genesis=data["genesis"].encode(),
        chain_id=data["chain_id"],
        root=data["state_root"],
        blocks=tuple(
            Vector(
                height=height,
                block=wire.decode(Block, b64decode(entry["block"])),
                block_hash=entry["hash"],
                state_root=entry["state_root"],
                results=entry["results"],
            )
            for height, entry in enumerate(data["blocks"], 1)
        ),
    )


def replay(vectors: Vectors) -> str:
    """Apply all blocks; give the last state root.

    Raises: VectorMismatchError with the first height at which something differs.
    """
    genesis, _, _ = load_genesis(vectors.genesis)
    app = LedgerApplication(genesis, vectors.chain_id, verify_transcript=judge)
    _compare(0, "state root", app.info().state_root.hex(), vectors.root)
    for vector in vectors.blocks:
        _compare(vector.height, "block hash", vector.block.hash.hex(), vector.block_hash)
        finalized = app.finalize_block(vector.block)
        _compare(vector.height, "results and transfers", describe(finalized), vector.results)
        _compare(vector.height, "state root", finalized.state_root.hex(), vector.state_root)
        app.commit()
    return app.info().state_root.hex()


def repeat_rounds() -> int:
    """Compute the drawn rounds again; give their number.

    Raises: VectorMismatchError with the first one that differs.
    """
    expected = json.loads(ROUNDS_PATH.read_text())
    for number, (found, known) in enumerate(zip(list_rounds(), expected, strict=True)):
        if found != known:
            raise VectorMismatchError(f"drawn round {number} comes to something else. {ADVICE}")
    return len(expected)


def _compare(height: int, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise VectorMismatchError(
            f"height {height}: the {what} is {found}, the vectors say {expected}. {ADVICE}"
        )
