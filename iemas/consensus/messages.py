"""Messages between the consensus engines of the nodes, and what an engine keeps of its own.

Source: docs/spec/consensus.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from iemas.consensus.voting import Proposal, Vote
from iemas.core.envelope import Signed
from iemas.core.types import Hash, NodeId, require, require_id
from iemas.ledger.header import Block, BlockHeader
from iemas.ledger.snapshot import Snapshot
from iemas.ledger.transaction import Transaction

MAX_STATUS_ROUNDS = 16
"""How many rounds beside its own a status may ask for."""

PREFIX_BYTES = 8
"""How much of a hash names a statement in a status."""

MAX_HELD_BYTES = 64 * 1024
MAX_NOTICE_VOTES = 256
"""Bounds of what one message makes a validator do: checking a signature takes 0.1 ms."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The proof that a block was decided: precommits for it, of one round, by a quorum."""

    height: int
    round: int
    block_hash: Hash
    precommits: tuple[Signed[Vote], ...]

    def __post_init__(self) -> None:
        require_id("block_hash", self.block_hash)


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    """A decided block with its proof: what is stored, and served to whoever asks."""

    block: Block
    commit: Commit

    @property
    def height(self) -> int:
        """The block's height."""
        return self.block.height


# --- for light clients ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LightValidator:
    """A validator as headers name it."""

    node_id: NodeId
    power: int

    def __post_init__(self) -> None:
        require_id("node_id", self.node_id)


@dataclass(frozen=True, slots=True)
class LightBlock:
    """A decided block without its transactions: header, commit, and who voted on that height."""

    header: Signed[BlockHeader]
    commit: Commit
    validators: tuple[LightValidator, ...]

    @property
    def height(self) -> int:
        """The block's height."""
        return self.header.message.height

    @property
    def hash(self) -> Hash:
        """The block's hash: what its header says, and who signed it."""
        return self.header.hash

    @property
    def time_ms(self) -> int:
        """The block's ledger time."""
        return self.header.message.time_ms


# --- between engines -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubmitTransaction:
    """Please order this transaction."""

    transaction: Signed[Transaction]


@dataclass(frozen=True, slots=True)
class ProposalNotice:
    """A proposal with the block that it names; from its proposer, or passed on."""

    proposal: Signed[Proposal]
    block: Block


@dataclass(frozen=True, slots=True)
class VoteNotice:
    """Votes of one height: a validator's own, or passed on to who lacks them."""

    votes: tuple[Signed[Vote], ...]

    def __post_init__(self) -> None:
        require(len(self.votes) <= MAX_NOTICE_VOTES, f"at most {MAX_NOTICE_VOTES} votes at once")


@dataclass(frozen=True, slots=True)
class ConsensusStatus:
    """Where a validator stands in an undecided height: please send what I lack.

    `round` is its own, `rounds` others that it needs votes or proposals of. `held` joins the first
    `PREFIX_BYTES` of the hashes of all statements that it has of those rounds. `wants_blocks` asks
    for proposals too; blocks are large, so one peer at a time is asked for them.
    """

    height: int
    round: int
    rounds: tuple[int, ...]
    held: bytes
    wants_blocks: bool

    def __post_init__(self) -> None:
        require(len(self.rounds) <= MAX_STATUS_ROUNDS, f"at most {MAX_STATUS_ROUNDS} rounds")
        require(
            len(self.held) % PREFIX_BYTES == 0 and len(self.held) <= MAX_HELD_BYTES,
            f"held must be whole prefixes of {PREFIX_BYTES} bytes, at most {MAX_HELD_BYTES} bytes, "
            f"got {len(self.held)}",
        )


@dataclass(frozen=True, slots=True)
class BlockAnnouncement:
    """A block that was just decided, to nodes that do not vote."""

    block: CommittedBlock


@dataclass(frozen=True, slots=True)
class BlocksRequest:
    """Send me the decided blocks from this height on."""

    from_height: int


@dataclass(frozen=True, slots=True)
class BlocksResponse:
    """Consecutive decided blocks, at most a batch; `height` is the sender's own."""

    blocks: tuple[CommittedBlock, ...]
    height: int


# --- snapshots -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """Offer me your newest snapshot, if it is of this height or a later one."""

    least_height: int


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """A snapshot, the decided block after it, whose header names its root, and who voted on that.

    Without a snapshot it says that there is none.
    """

    snapshot: Snapshot | None = None
    block: CommittedBlock | None = None
    validators: tuple[LightValidator, ...] = ()


@dataclass(frozen=True, slots=True)
class LightBlockRequest:
    """Show me who decided this height: a step from what I trust to what you offered."""

    height: int


@dataclass(frozen=True, slots=True)
class LightBlockResponse:
    """The light block that was asked for; None if it is not here any more."""

    block: LightBlock | None


@dataclass(frozen=True, slots=True)
class ChunksRequest:
    """Send me the offered snapshot's chunks from this one on."""

    height: int
    first: int


@dataclass(frozen=True, slots=True)
class ChunksResponse:
    """Consecutive chunks of a snapshot, at most a batch; none if it is not at hand any more."""

    height: int
    first: int
    chunks: tuple[bytes, ...]


# --- after a start -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecallRequest:
    """I have just started: show me what I signed at this height or above."""

    height: int


@dataclass(frozen=True, slots=True)
class RecallResponse:
    """The sender's last decided height, and what it holds of the asker's own statements."""

    height: int
    votes: tuple[Signed[Vote], ...]
    proposals: tuple[Signed[Proposal], ...]

    def __post_init__(self) -> None:
        count = len(self.votes) + len(self.proposals)
        require(count <= MAX_NOTICE_VOTES, f"at most {MAX_NOTICE_VOTES} statements at once")


# --- what a node keeps ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """A chunk of the node's own last snapshot."""

    data: bytes


# --- what a validator keeps ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignRecord:
    """How far a validator has come in signing at a height, and the votes that it signed.

    It is on disk before any of them leaves, so that after a crash the validator repeats itself
    and never contradicts itself. The fields are those of `iemas.consensus.tendermint.SignState`.
    """

    height: int
    round: int
    step: int
    locked_value: Hash | None
    locked_round: int
    valid_value: Hash | None
    valid_round: int
    votes: tuple[Signed[Vote], ...]


@dataclass(frozen=True, slots=True)
class ValidRecord:
    """The block that a validator would propose again, with the prevotes that make it *valid*."""

    block: Block
    round: int
    prevotes: tuple[Signed[Vote], ...]
