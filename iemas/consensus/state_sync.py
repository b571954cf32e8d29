"""Catching up by a snapshot: which peer is asked, and what makes its snapshot the ledger here.

No peer is trusted. Its snapshot is taken only if the header of the block after it names the
snapshot's root, and that block is decided by the light client's rules, from genesis or from this
replica's own last block. Then every chunk is checked as it arrives. Whoever sends something false
or is silent is set aside, and another peer is asked; chunks that were good are kept. Nothing is
stored before all is here, so a crash in the middle begins anew. Blocks wait for a snapshot only
while it comes on: peers that never answer, however many, must not hold up both.

Source: docs/spec/engine.md E53 to E57; docs/spec/light_client.md §2.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from iemas.consensus.chain import Chain, make_light_validators
from iemas.consensus.light import (
    TrustedBlock,
    bisect,
    check_trust,
    make_rules,
    trust_genesis,
)
from iemas.consensus.messages import (
    ChunksRequest,
    ChunksResponse,
    CommittedBlock,
    LightBlock,
    LightBlockRequest,
    LightBlockResponse,
    SnapshotOffer,
    SnapshotRequest,
)
from iemas.core.errors import (
    InvalidBlockError,
    InvalidInputError,
    InvalidSnapshotError,
    TrustExpiredError,
)
from iemas.core.params import Genesis
from iemas.core.ready import Event, Ready, Send
from iemas.core.types import NodeId, short_id
from iemas.ledger.header import compute_transactions_root
from iemas.ledger.snapshot import Snapshot

ANSWER_MS = 2_000
"""How long a peer has for one answer."""

SESSION_MS = 60_000
"""How long a peer has for a whole snapshot; after that another one goes on where it stopped."""

ASIDE_MS = 30_000
"""For how long a peer that was silent or sent something false is not asked again."""

NONE_MS = 5_000
"""The same for a peer that had no snapshot to offer."""

PATIENCE_MS = 5_000
"""How long blocks wait for a snapshot of which nothing comes, whoever is asked."""

WAIT_MS = 60_000
"""How long they wait in all. After that it is as long again before they wait another time."""

SnapshotPart = SnapshotOffer | LightBlockResponse | ChunksResponse


@dataclass(slots=True)
class _Session:
    """What is going on with the one peer that is asked."""

    peer: NodeId
    least_height: int
    began_at_ms: int
    asked_at_ms: int
    offered: tuple[Snapshot, CommittedBlock] | None = None
    search: Generator[int, LightBlock, TrustedBlock] | None = None
    first_chunk: int | None = None


class StateSync:
    """Fetches the state from a peer, for a replica that is far behind.

    `interval` is how many blocks lie between two snapshots of a node.
    """

    def __init__(self, chain: Chain, *, genesis: Genesis, chain_id: str, interval: int) -> None:
        self._chain = chain
        self._genesis = genesis
        self._chain_id = chain_id
        self._interval = interval
        self._session: _Session | None = None
        self._aside_until_ms: dict[NodeId, int] = {}
        self._wait_began_at_ms: int | None = None
        self._came_on_at_ms = 0  # when the wait began, an offer was trusted, or chunks came

    @property
    def peer(self) -> NodeId | None:
        """Who is being asked."""
        return None if self._session is None else self._session.peer

    def find_wait(self, *, now_ms: int) -> int | None:
        """Give until when blocks wait for a snapshot that may come; None if they need not."""
        began_at_ms = self._wait_began_at_ms
        if self._session is None or began_at_ms is None:
            return None
        until_ms = min(self._came_on_at_ms + PATIENCE_MS, began_at_ms + WAIT_MS)
        return until_ms if began_at_ms <= now_ms < until_ms else None

    @property
    def least_claim(self) -> int:
        """The least height of a peer that makes a snapshot worth it: it spares an interval."""
        return self._chain.height + 2 * self._interval

    # --- whom to ask -----------------------------------------------------------------------------

    def tick(self, peers: Sequence[NodeId], *, now_ms: int) -> Ready:
        """Leave a peer that takes too long; if none is asked, begin with the first that is able.

        `peers` is empty unless one of them claims to be far ahead.
        """
        ready, session = Ready(), self._session
        if session is not None:
            due_ms = min(session.asked_at_ms + ANSWER_MS, session.began_at_ms + SESSION_MS)
            if session.asked_at_ms <= now_ms < due_ms:
                return Ready(wake_at_ms=due_ms)
            ready = self._leave("it takes too long", now_ms)
        able = [
            peer
            for peer in peers
            if not now_ms < self._aside_until_ms.get(peer, 0) <= now_ms + ASIDE_MS
        ]
        if not able or not self._is_trusting(now_ms):
            return ready
        least_height = self._chain.height + self._interval
        self._session = _Session(able[0], least_height, now_ms, now_ms)
        began_at_ms = self._wait_began_at_ms
        if began_at_ms is None or not began_at_ms <= now_ms < began_at_ms + 2 * WAIT_MS:
            self._wait_began_at_ms = self._came_on_at_ms = now_ms
        request = SnapshotRequest(least_height)
        return ready + Ready(send=(Send(able[0], request),), wake_at_ms=now_ms + ANSWER_MS)

    def _is_trusting(self, now_ms: int) -> bool:
        """Tell whether what this replica trusts is fresh enough to go on from by skipping."""
        rules = make_rules(self._chain_id, self._chain.app.state.params)
        try:
            check_trust(self._get_trusted(), rules, now_ms=now_ms)
        except TrustExpiredError:
            return False  # only blocks, one after the other, lead on from here
        return True

    def _get_trusted(self) -> TrustedBlock:
        """Trust this replica's own last block, or genesis."""
        last, state = self._chain.last_block, self._chain.app.state
        if last is None:
            return trust_genesis(self._genesis)
        header = last.block.header.message
        return TrustedBlock(
            height=last.height,
            hash=last.block.hash,
            time_ms=header.time_ms,
            state_root=header.state_root,
            validators=make_light_validators(state.get_consensus_validators_at(last.height)),
            next_validators_hash=header.next_validators_hash,
        )

    def _leave(self, why: str, now_ms: int, *, for_ms: int = ASIDE_MS) -> Ready:
        """Set the peer aside."""
        session, self._session = self._session, None
        if session is None:
            return Ready()
        self._aside_until_ms[session.peer] = now_ms + for_ms
        fields = {"peer": short_id(session.peer), "reason": why}
        return Ready(events=(Event("snapshot_peer_left", fields),))

    # --- what it answers -------------------------------------------------------------------------

    def receive(
        self, part: SnapshotPart, sender: NodeId, *, now_ms: int
    ) -> tuple[Ready, CommittedBlock | None]:
        """Take an answer; once the snapshot is the state, give the block that follows it.

        Raises: InvalidInputError if it is false: the peer's fault, and it is set aside.
        """
        session = self._session
        if session is None or sender != session.peer:
            return Ready(), None
        if session.offered is not None and session.offered[0].height <= self._chain.height:
            return self._leave("blocks were faster", now_ms), None
        try:
            match part:
                case SnapshotOffer():
                    return self._receive_offer(session, part, now_ms), None
                case LightBlockResponse(block):
                    return self._receive_light_block(session, block, now_ms), None
                case ChunksResponse():
                    return self._receive_chunks(session, part, now_ms)
        except InvalidBlockError as error:
            # Also a clock of ours that is behind makes a header untrusted: no proof of a lie.
            self._leave("it sent something false", now_ms)
            raise InvalidSnapshotError(str(error)) from error
        except InvalidInputError:
            self._leave("it sent something false", now_ms)
            raise

    def _receive_offer(self, session: _Session, offer: SnapshotOffer, now_ms: int) -> Ready:
        if session.offered is not None:
            return Ready()
        snapshot, following = offer.snapshot, offer.block
        if snapshot is None or following is None:
            return self._leave("it has none", now_ms, for_ms=NONE_MS)
        header = following.block.header.message
        if header.height != snapshot.height + 1:
            raise InvalidSnapshotError("the block of the offer is not the one after the snapshot")
        if snapshot.height < session.least_height:
            raise InvalidSnapshotError("the snapshot is older than what was asked for")
        if snapshot.height <= self._chain.height:
            return self._leave("blocks were faster", now_ms)
        if header.transactions_root != compute_transactions_root(following.block.transactions):
            raise InvalidSnapshotError("the block of the offer has not the transactions it names")
        session.offered = (snapshot, following)
        target = LightBlock(following.block.header, following.commit, offer.validators)
        rules = make_rules(self._chain_id, self._chain.app.state.params)
        search = session.search = bisect(self._get_trusted(), target, rules, now_ms=now_ms)
        return self._follow(session, lambda: next(search), now_ms)

    def _receive_light_block(
        self, session: _Session, block: LightBlock | None, now_ms: int
    ) -> Ready:
        search = session.search
        if search is None:
            return Ready()
        if block is None:
            return self._leave("it lacks headers", now_ms)
        return self._follow(session, lambda: search.send(block), now_ms)

    def _follow(self, session: _Session, advance: Callable[[], int], now_ms: int) -> Ready:
        """Go a step towards the offered header; once it is trusted, ask for chunks."""
        try:
            height = advance()
        except StopIteration as done:
            session.search = None
            return self._accept(session, done.value, now_ms)
        except TrustExpiredError:
            return self._leave("trust expired on the way", now_ms)
        return self._ask(session, LightBlockRequest(height), now_ms)

    def _accept(self, session: _Session, trusted: TrustedBlock, now_ms: int) -> Ready:
        if session.offered is None or trusted.state_root is None:
            return self._leave("nothing is trusted", now_ms)
        snapshot, _ = session.offered
        if not self._chain.app.offer_snapshot(snapshot, trusted.state_root):
            raise InvalidSnapshotError("the snapshot has not the root that its block names")
        return self._ask_for_chunks(session, snapshot, now_ms)

    def _ask_for_chunks(self, session: _Session, snapshot: Snapshot, now_ms: int) -> Ready:
        self._came_on_at_ms = now_ms
        session.first_chunk = self._chain.app.find_missing_chunk() or 0
        return self._ask(session, ChunksRequest(snapshot.height, session.first_chunk), now_ms)

    def _ask(self, session: _Session, request: object, now_ms: int) -> Ready:
        session.asked_at_ms = now_ms
        return Ready(send=(Send(session.peer, request),), wake_at_ms=now_ms + ANSWER_MS)

    def _receive_chunks(
        self, session: _Session, answer: ChunksResponse, now_ms: int
    ) -> tuple[Ready, CommittedBlock | None]:
        if session.offered is None:
            return Ready(), None
        snapshot, following = session.offered
        if (snapshot.height, session.first_chunk) != (answer.height, answer.first):
            return Ready(), None
        if not answer.chunks:
            return self._leave("its snapshot is gone", now_ms), None
        app, before = self._chain.app, self._chain.app.state
        for chunk in answer.chunks:
            if app.apply_snapshot_chunk(chunk):
                self._session = self._wait_began_at_ms = None
                self._chain.follow_snapshot(following.block, before=before)
                return Ready(), following
        if app.find_missing_chunk() == answer.first:
            raise InvalidSnapshotError("the answer lacks the chunk that was asked for")
        return self._ask_for_chunks(session, snapshot, now_ms), None
