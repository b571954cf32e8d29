"""What a simulation has shown so far: the one chain, who has how much of it, who signed what."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from iemas.consensus.chain import AppliedBlock, Chain
from iemas.consensus.messages import CommittedBlock
from iemas.core.params import Genesis
from iemas.core.types import Hash, NodeId
from iemas.ledger.application import LedgerApplication
from iemas.ledger.records import TotalKey
from iemas.ledger.rules.evidence import TranscriptVerifier
from iemas.ledger.state import LedgerState
from iemas.ledger.transfer import LedgerAccount

Place = tuple[object, ...]
"""Where a statement stands, of which an honest node signs one: kind, height and round."""


@dataclass
class History:
    """The chain, replayed by a replica of its own that no fault befalls."""

    genesis: Genesis
    chain_id: str
    verify_transcript: TranscriptVerifier
    villains: set[NodeId] = field(default_factory=set)
    bent: set[Hash] = field(default_factory=set)
    """QoS models that villains proposed and nobody may agree with."""
    blocks: dict[int, CommittedBlock] = field(default_factory=dict)
    roots: dict[int, bytes] = field(default_factory=dict)
    committed: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Of which heights each honest machine has blocks on disk."""
    signed: dict[tuple[NodeId, Place], bytes] = field(default_factory=dict)
    proposals: set[tuple[NodeId, int, int]] = field(default_factory=set)
    cosigned: dict[TotalKey, int] = field(default_factory=lambda: defaultdict(int))
    """The highest total that each channel's account ever signed."""
    settled: dict[TotalKey, int] = field(default_factory=lambda: defaultdict(int))
    """The highest total of each channel that a block settled."""
    paid: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    """What settlements moved, by account and provider."""
    paid_by_slash: Counter[bytes] = field(default_factory=Counter)
    """What slashes paid of totals, by provider."""
    balances: Counter[LedgerAccount] = field(default_factory=Counter)
    """The double entry, added up here."""

    def __post_init__(self) -> None:
        app = LedgerApplication(
            self.genesis, self.chain_id, verify_transcript=self.verify_transcript
        )
        self.chain = Chain(app, chain_id=self.chain_id)
        self.post(app.genesis_transfers)
        self.roots[0] = app.state.compute_root()

    @property
    def state(self) -> LedgerState:
        """The ledger after the last block that anyone honest has."""
        return self.chain.app.state

    @property
    def height(self) -> int:
        """The last height that anyone honest has decided."""
        return self.chain.height

    def is_spare(self, node: NodeId) -> bool:
        """Tell whether the market can do without a node: it has less than a third of the power.

        Also at the heights to come, whose validators are known already.
        """
        sets = [self.state.get_consensus_validators_at(self.height + ahead) for ahead in (1, 2)]
        return all(3 * dict(powers).get(node, 0) < sum(dict(powers).values()) for powers in sets)

    def apply(self, committed: CommittedBlock) -> AppliedBlock:
        """Take in the next block."""
        applied = self.chain.apply(committed)
        self.chain.take_applied()
        self.chain.take_journal()
        self.blocks[committed.height] = committed
        self.roots[committed.height] = applied.state_root
        return applied

    def post(self, transfers: object) -> None:
        """Add transfers to the double entry."""
        for transfer in transfers:  # type: ignore[attr-defined]
            self.balances[transfer.debit] -= transfer.amount_micros
            self.balances[transfer.credit] += transfer.amount_micros
