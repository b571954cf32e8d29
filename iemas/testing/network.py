"""A simulated network of nodes: delay, loss, duplication, reordering, cuts, all from one seed.

Messages travel as bytes, encoded and decoded by the real codec, so that a simulated market also
tests what goes over the wire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from google.protobuf.message import DecodeError

from iemas import wire
from iemas.core.errors import MalformedMessageError
from iemas.core.types import NodeId
from iemas.testing.clock import SimulatedClock
from iemas.v1 import peer_service_pb2


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """How bad the network is: one-way delay bounds, and shares of messages in millionths."""

    least_delay_ms: int = 1
    most_delay_ms: int = 5
    loss_ppm: int = 0
    duplication_ppm: int = 0


Receiver = Callable[[NodeId, wire.PeerMessage], None]
SpoiltReceiver = Callable[[NodeId, MalformedMessageError], None]


class SimulatedNetwork:
    """Carries peer messages between the nodes attached to it.

    Each message takes its own time, so later ones overtake earlier ones. What does not decode is
    dropped and counted, as the servicer of a node would.
    """

    def __init__(
        self, clock: SimulatedClock, random: Random, faults: NetworkFaults | None = None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.faults = faults if faults is not None else NetworkFaults()
        self._clock = clock
        self._random = random
        self._receivers: dict[NodeId, tuple[Receiver, SpoiltReceiver | None]] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._links: dict[tuple[NodeId, NodeId], NetworkFaults] = {}
        self._last_encoded: tuple[wire.PeerMessage | None, bytes] = (None, b"")
        self._last_arrivals: dict[tuple[NodeId, NodeId], int] = {}

    def attach(
        self, node_id: NodeId, receiver: Receiver, on_spoilt: SpoiltReceiver | None = None
    ) -> None:
        """Connect a node; `on_spoilt` is told of what arrives there and does not decode."""
        self._receivers[node_id] = (receiver, on_spoilt)

    def detach(self, node_id: NodeId) -> None:
        """Disconnect a node: what is on its way to it is lost."""
        self._receivers.pop(node_id, None)

    # --- faults ----------------------------------------------------------------------------------

    def cut(self, sender: NodeId, receiver: NodeId) -> None:
        """Silently drop everything from one node to another (one way)."""
        self._cut.add((sender, receiver))

    def worsen(self, sender: NodeId, receiver: NodeId, faults: NetworkFaults) -> None:
        """Let one link (one way) have faults of its own."""
        self._links[sender, receiver] = faults

    def mend(self, sender: NodeId, receiver: NodeId) -> None:
        """Undo what was done to one link (one way)."""
        self._cut.discard((sender, receiver))
        self._links.pop((sender, receiver), None)

    def heal(self) -> None:
        """Undo what was done to any link."""
        self._cut.clear()
        self._links.clear()

    def is_troubled(self, node_id: NodeId) -> bool:
        """Tell whether any link from or to a node is cut or has faults of its own."""
        return any(node_id in link for link in (*self._cut, *self._links))

    # --- messages --------------------------------------------------------------------------------

    def send(self, sender: NodeId, receiver: NodeId, message: wire.PeerMessage) -> None:
        """Put a message on its way."""
        if self._last_encoded[0] is not message:  # one message mostly goes to many
            data = wire.to_deliver_request(message).SerializeToString(deterministic=True)
            self._last_encoded = (message, data)
        self.send_bytes(sender, receiver, self._last_encoded[1])

    def send_bytes(self, sender: NodeId, receiver: NodeId, data: bytes) -> None:
        """Put bytes on their way, whatever they are."""
        self.counts["sent"] += 1
        link = (sender, receiver)
        if link in self._cut:
            self.counts["cut"] += 1
            self.counts["lost"] += 1
            return
        faults = self._links.get(link, self.faults)
        if self._draw(faults.loss_ppm):
            self.counts["lost"] += 1
            return
        copies = 1
        if self._draw(faults.duplication_ppm):
            self.counts["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            delay_ms = self._random.randint(faults.least_delay_ms, faults.most_delay_ms)
            arrives_at_ms = self._clock.now_ms + delay_ms
            self.counts["reordered"] += arrives_at_ms < self._last_arrivals.get(link, 0)
            self._last_arrivals[link] = max(arrives_at_ms, self._last_arrivals.get(link, 0))
            self._clock.call_later(delay_ms, lambda: self._deliver(sender, receiver, data))

    def _draw(self, share_ppm: int) -> bool:
        return share_ppm > 0 and self._random.randrange(1_000_000) < share_ppm

    def _deliver(self, sender: NodeId, receiver: NodeId, data: bytes) -> None:
        receivers = self._receivers.get(receiver)
        if receivers is None:
            self.counts["lost"] += 1
            return
        receive, on_spoilt = receivers
        try:
            message = _decode(data)
        except (DecodeError, MalformedMessageError) as error:
            self.counts["malformed"] += 1
            if on_spoilt is not None:
                on_spoilt(sender, MalformedMessageError(str(error)))
            return
        self.counts["delivered"] += 1
        receive(sender, message)


@lru_cache(maxsize=4096)
def _decode(data: bytes) -> wire.PeerMessage:
    """Decode a message once for all that get it: messages never change."""
    return wire.from_deliver_request(peer_service_pb2.DeliverRequest.FromString(data))
