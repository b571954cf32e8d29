"""A whole market in one thread: simulated clock, network, disks and backends, one seed.

The nodes are `node.core.NodeCore`, the requesters `iemas.client._base`: the same classes that run
in production. Only what carries out their effects is simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from auctioneer.verify import verify_transcript
from iemas import wire
from iemas.core.auction import Bid, Transcript
from iemas.core.envelope import Signed
from iemas.core.params import Genesis, GenesisAccount, GenesisValidator, MarketParams
from iemas.core.ready import RecordKind
from iemas.core.types import AccountId
from iemas.ledger.state import LedgerState
from iemas.testing.clock import SimulatedClock
from iemas.testing.network import NetworkFaults, SimulatedNetwork
from iemas.testing.sealing import seal_share_with
from tests.simulation.history import History
from tests.simulation.host import Host
from tests.simulation.market_node import HUB, SimulatedNode, make_identity
from tests.simulation.requester import SimulatedRequester
from tests.simulation.villains import Villain
from tests.simulation.watcher import Watcher

START_MS = 1_800_000_000_000
OBSERVER = "observer"
"""A node that neither sells nor votes: it follows the blocks and checks every round."""
ESCROW_MICROS = 10_000_000
STAKE_MICROS = 1_000_000


class SimulatedMarket:
    """Nodes, requesters, and the clock and network between them."""

    def __init__(
        self,
        seed: int,
        *,
        providers: int = 4,
        requesters: int = 4,
        turns: int = 4,
        params: MarketParams | None = None,
        faults: NetworkFaults | None = None,
        stakes: tuple[int, ...] | None = None,
        provider_micros: int = 0,
        keep_account: bool = False,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.clock = SimulatedClock(start_ms=START_MS)
        self.network = SimulatedNetwork(self.clock, self.random, faults)
        self.log: list[tuple[int, str, str, dict[str, object]]] = []
        self.refusals: list[tuple[str, str]] = []
        self._last_arrivals: dict[object, int] = {}
        names = [f"node{n}" for n in range(providers)]
        people = [f"requester{n}" for n in range(requesters)]
        self.genesis = Genesis(
            name="simulation",
            time_ms=START_MS,
            hub=HUB,
            model=HUB,
            validators=tuple(
                GenesisValidator(make_identity(seed, name).node_id, stake)
                for name, stake in zip(names, stakes or (STAKE_MICROS,) * providers, strict=True)
            ),
            accounts=tuple(
                GenesisAccount(AccountId(make_identity(seed, name).node_id), available, escrow)
                for named, available, escrow in (
                    (people, 1_000_000, ESCROW_MICROS),
                    (names if provider_micros else [], provider_micros, 0),
                )
                for name in named
            ),
            params=params if params is not None else MarketParams(),
        )
        self.chain_id = self.genesis.compute_chain_id(b"simulation")
        self.history = History(self.genesis, self.chain_id, self._verify_transcript)
        self.watcher = Watcher(self.history, keep_account=keep_account)
        self.watcher.now_ms = lambda: self.clock.now_ms - START_MS
        self.chance = Random(f"market {seed} chance")
        self.nodes = {name: SimulatedNode(self, name, sells=True) for name in names}
        self.nodes[OBSERVER] = SimulatedNode(self, OBSERVER, sells=False)
        self.by_id = {node.node_id: node for node in self.nodes.values()}
        self.requesters = [SimulatedRequester(self, name, turns) for name in people]

    def _verify_transcript(self, transcript: Signed[Transcript], state: LedgerState) -> None:
        verify_transcript(
            transcript,
            ledger=state,
            chain_id=self.chain_id,
            params=self.genesis.params,
            decode_bid=lambda data: wire.decode(Bid, data),
        )

    def attach(self, host: Host) -> None:
        """Connect a machine whose process started."""
        self.network.attach(host.node_id, host.receive, host.receive_spoilt)

    def detach(self, host: Host) -> None:
        """Disconnect a machine whose process died."""
        self.network.detach(host.node_id)

    def seal(self, share: bytes, hpke_public_key: bytes, context: bytes) -> bytes:
        """Seal like HPKE, with an ephemeral key from the seed."""
        ephemeral = X25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        return seal_share_with(ephemeral, share, hpke_public_key, context)

    def later(self, callback: Callable[[], None]) -> None:
        """Run something after a network delay."""
        faults = self.network.faults
        delay_ms = self.random.randint(faults.least_delay_ms, faults.most_delay_ms)
        self.clock.call_later(delay_ms, callback)

    def in_order(self, stream: object, callback: Callable[[], None]) -> None:
        """Run something after a network delay, never before what the same stream sent earlier."""
        faults = self.network.faults
        delay_ms = self.random.randint(faults.least_delay_ms, faults.most_delay_ms)
        at_ms = max(self.clock.now_ms + delay_ms, self._last_arrivals.get(stream, 0))
        self._last_arrivals[stream] = at_ms
        self.clock.call_at(at_ms, callback)

    def get_view(self, turn: int = 0) -> SimulatedNode:
        """Give a live node that requesters ask for the term: another in each turn."""
        alive = [node for node in self.nodes.values() if node.alive]
        return alive[turn % len(alive)]

    def start(self) -> None:
        """Start every node."""
        for node in reversed(self.nodes.values()):
            node.start()

    def corrupt(self, name: str, *tricks: str) -> SimulatedNode:
        """Let a node lie whenever it can."""
        node = self.nodes[name]
        self.history.villains.add(node.node_id)
        node.villain = Villain(
            wire.WireSigner(node.identity, self.chain_id),
            Random(f"villain {name}"),
            tricks=tricks,
            eagerness=1.0,
            count=self.watcher.count,
        )
        node.villain.bent = self.history.bent
        return node

    def run_conversations(self, *, limit_ms: int = 120_000) -> None:
        """Let every requester hold its conversation, then let everything settle."""
        for requester in self.requesters:
            self.clock.call_later(self.random.randint(0, 500), requester.begin_turn)
        end_ms = self.clock.now_ms + limit_ms
        self.clock.run_until(end_ms, until=lambda: all(r.done for r in self.requesters))

    def settle(self, *, limit_ms: int = 60_000) -> None:
        """Run until all is settled, all books are closed, and all have the same ledger."""

        def is_settled() -> bool:
            alive = [node for node in self.nodes.values() if node.alive]
            heights = {node.core.state.height for node in alive}
            unsettled = sum(node.core.provider.unsettled_channels for node in alive)
            open_books = sum(node.core.rounds.open_books for node in alive)
            return unsettled == 0 and open_books == 0 and len(heights) == 1

        self.clock.run_until(self.clock.now_ms + limit_ms, until=is_settled)

    def get_transcripts(self) -> list[Transcript]:
        """Give the rounds that the observer verified, in order."""
        disk = self.nodes[OBSERVER].disk
        return [t.message for t in disk.scan_signed(RecordKind.TRANSCRIPT, Transcript)]

    @property
    def events(self) -> list[str]:
        return [name for _, _, name, _ in self.log]
