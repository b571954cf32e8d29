"""An engine in one process: drives replicas of the application by ABCI's verbs, at explicit times.

No network, no votes, no clock of its own: whoever holds it says when time passes and who dies. It
calls what an engine calls, in the same order, so it stands in wherever only the application
matters; `tests/conformance` holds it to the same statements as the real one.
Source: docs/spec/application.md §2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from iemas.consensus.validators import compute_members_hash
from iemas.core.envelope import Signed, Signer
from iemas.core.errors import InternalError, InvalidBlockError, QuorumUnavailableError
from iemas.core.types import Hash, NodeId
from iemas.ledger.application import FinalizedBlock, LedgerApplication
from iemas.ledger.header import GENESIS_HASH, Block, BlockHeader, compute_transactions_root
from iemas.ledger.rules.results import OK
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import ResultCode, Transaction, TransactionResult

AppFactory = Callable[[NodeId], LedgerApplication]
"""Makes the application of a replica's process, at genesis."""


class CrashError(Exception):
    """An application's process died in the middle of a verb."""


@dataclass(slots=True)
class InProcessReplica:
    """One application, what waits at it, and what became of each block that it applied."""

    node_id: NodeId
    app: LedgerApplication
    waiting: dict[bytes, Signed[Transaction]] = field(default_factory=dict)
    finalized: dict[int, FinalizedBlock] = field(default_factory=dict)
    alive: bool = False


class InProcessEngine:
    """Orders transactions for `replicas`; time is `now_ms`, moved by `advance`.

    Who votes follows from the ledger as everywhere; `get_signer` has their keys. A proposal is
    decided if replicas with a quorum of the power accept it. Decided blocks are kept here.
    """

    def __init__(
        self,
        make_app: AppFactory,
        replicas: Sequence[NodeId],
        *,
        get_signer: Callable[[NodeId], Signer],
        now_ms: int,
    ) -> None:
        self.now_ms = now_ms
        self.blocks: list[Block] = []
        self._make_app = make_app
        self._get_signer = get_signer
        self.replicas = {n: InProcessReplica(n, make_app(n)) for n in replicas}
        for replica in self.replicas.values():
            self._shake_hands(replica)

    # --- what is looked at -----------------------------------------------------------------------

    @property
    def alive(self) -> tuple[InProcessReplica, ...]:
        """The replicas whose process runs. Raises: QuorumUnavailableError if none does."""
        alive = tuple(replica for replica in self.replicas.values() if replica.alive)
        if not alive:
            raise QuorumUnavailableError("no replica is alive")
        return alive

    @property
    def app(self) -> LedgerApplication:
        """The application of the first replica that is alive."""
        return self.alive[0].app

    @property
    def state(self) -> LedgerState:
        """Its committed state."""
        return self.app.state

    # --- transactions ----------------------------------------------------------------------------

    def submit(self, transaction: Signed[Transaction]) -> TransactionResult:
        """Let a transaction wait at every replica that does not refuse it; give a refusal."""
        refusal = OK
        for replica in self.alive:
            result = replica.app.check_tx(transaction)
            if result.code is ResultCode.OK:
                replica.waiting[transaction.hash] = transaction
            else:
                refusal = result
        return refusal

    # --- blocks ----------------------------------------------------------------------------------

    def advance(self, duration_ms: int) -> None:
        """Let time pass; then decide blocks while something waits, or if the chain was idle."""
        self.now_ms += duration_ms
        idle_ms = self.state.params.idle_block_interval_ms
        if self.now_ms >= self.state.time_ms + idle_ms:
            self.decide(self.propose())
        while self._has_work():
            self.decide(self.propose())

    def _has_work(self) -> bool:
        return any(replica.waiting for replica in self.alive)

    def propose(self) -> Block:
        """Let the replica whose turn it is make the next block of what waits at it."""
        voters = dict(self.state.get_consensus_validators_at(self.state.height + 1))
        able = [replica for replica in self.alive if replica.node_id in voters]
        proposer = able[len(self.blocks) % len(able)]
        transactions = proposer.app.prepare_proposal(proposer.waiting.values())
        return self.make_block(transactions, proposer=proposer.node_id, time_ms=self.now_ms)

    def make_block(
        self, transactions: Iterable[Signed[Transaction]], *, proposer: NodeId, time_ms: int
    ) -> Block:
        """Make the next block of exactly these transactions; its time never goes back."""
        state, chosen = self.state, tuple(transactions)
        height = state.height + 1
        header = BlockHeader(
            chain_id=state.chain_id,
            height=height,
            previous_hash=self.blocks[-1].hash if self.blocks else GENESIS_HASH,
            time_ms=max(time_ms, state.time_ms),
            state_root=state.compute_root(),
            transactions_root=compute_transactions_root(chosen),
            validators_hash=_hash_members(state, height),
            next_validators_hash=_hash_members(state, height + 1),
            results_root=state.facts.results_root,
        )
        return Block(self._get_signer(proposer).sign(header), chosen)

    def decide(self, block: Block) -> FinalizedBlock:
        """Put a proposal to all replicas; apply it if a quorum of the power accepts it.

        Raises: QuorumUnavailableError if not; InvalidBlockError if nobody accepts it.
        """
        powers = dict(self.state.get_consensus_validators_at(block.height))
        accepted, refusal = 0, None
        for replica in self.alive:
            try:
                replica.app.process_proposal(block)
            except InvalidBlockError as error:
                refusal = error
            else:
                accepted += powers.get(replica.node_id, 0)
        if refusal is not None and not accepted:
            raise refusal
        if 3 * accepted <= 2 * sum(powers.values()):
            raise QuorumUnavailableError(
                f"block {block.height}: {accepted} of {sum(powers.values())} of the power accept it"
            )
        return self.execute(block)

    def execute(self, block: Block) -> FinalizedBlock:
        """Apply a block as decided at every replica, whatever they would have voted.

        A replica whose application fails stops; give what the first of the others made of it.

        Raises: the failure of the last one, if all stop.
        """
        self.blocks.append(block)
        failure: Exception = QuorumUnavailableError("no replica is alive")
        results: list[FinalizedBlock] = []
        for replica in self.alive:
            try:
                results.append(self._apply(replica, block))
            except (CrashError, InternalError) as error:
                replica.alive, failure = False, error
        if not results:
            raise failure
        return results[0]

    def _apply(self, replica: InProcessReplica, block: Block) -> FinalizedBlock:
        replica.finalized[block.height] = finalized = replica.app.finalize_block(block)
        replica.app.commit()
        for signed in block.transactions:
            replica.waiting.pop(signed.hash, None)
        for signed in list(replica.waiting.values()):
            if replica.app.check_tx(signed).code is not ResultCode.OK:
                del replica.waiting[signed.hash]
        return finalized

    # --- processes -------------------------------------------------------------------------------

    def kill(self, node_id: NodeId) -> None:
        """Let a replica's process die; what waited at it is lost."""
        self.replicas[node_id].alive = False

    def restart(self, node_id: NodeId, app: LedgerApplication | None = None) -> None:
        """Start a replica's process again, with an application that kept its state, if given."""
        app = app if app is not None else self._make_app(node_id)
        replica = InProcessReplica(node_id, app)
        self.replicas[node_id] = replica
        self._shake_hands(replica)

    def start_from_snapshot(self, node_id: NodeId) -> None:
        """Start a replica's process anew, from another one's last snapshot."""
        source = next(replica for replica in self.alive if replica.node_id != node_id)
        replica = InProcessReplica(node_id, self._make_app(node_id))
        self.replicas[node_id] = replica
        offer = source.app.list_snapshots()[0]
        if replica.app.offer_snapshot(offer, self._get_root(offer.height)):
            for chunk in range(offer.chunks):
                data = source.app.load_snapshot_chunk(offer.height, chunk)
                if data is None:
                    raise InternalError("an offered snapshot is gone", height=offer.height)
                replica.app.apply_snapshot_chunk(data)
        self._shake_hands(replica)

    def _get_root(self, height: int) -> Hash:
        """Give the state root after a height: the next block names it."""
        if height < len(self.blocks):
            return self.blocks[height].header.message.state_root
        return self.state.compute_root()

    def _shake_hands(self, replica: InProcessReplica) -> None:
        """Ask the application where it stands; bring it to the last decided block."""
        info = replica.app.info()
        if info.height == 0:
            replica.app.init_chain()
        replica.alive = True
        for block in self.blocks[info.height :]:
            self._apply(replica, block)


def _hash_members(state: LedgerState, height: int) -> Hash:
    return compute_members_hash(state.get_consensus_validators_at(height))
