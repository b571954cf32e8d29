"""A simulated network of nodes: delay, loss, duplication, reordering, cuts, all from one seed.

Messages travel as bytes, encoded and decoded by the real codec, so that a simulated market also
tests what goes over the wire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from iemas import wire
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


class SimulatedNetwork:
    """Carries peer messages between the nodes attached to it."""

    def __init__(
        self, clock: SimulatedClock, random: Random, faults: NetworkFaults | None = None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.faults = faults if faults is not None else NetworkFaults()
        self._clock = clock
        self._random = random
        self._receivers: dict[NodeId, Receiver] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()

    def attach(self, node_id: NodeId, receiver: Receiver) -> None:
        """Connect a node."""
        self._receivers[node_id] = receiver

    def detach(self, node_id: NodeId) -> None:
        """Disconnect a node: what is on its way to it is lost."""
        self._receivers.pop(node_id, None)

    def cut(self, sender: NodeId, receiver: NodeId) -> None:
        """Silently drop everything from one node to another (one way)."""
        self._cut.add((sender, receiver))

    def heal(self) -> None:
        """Undo every cut."""
        self._cut.clear()

    def send(self, sender: NodeId, receiver: NodeId, message: wire.PeerMessage) -> None:
        """Put a message on its way."""
        self.counts["sent"] += 1
        data = wire.to_deliver_request(message).SerializeToString()
        if (sender, receiver) in self._cut or self._draw(self.faults.loss_ppm):
            self.counts["lost"] += 1
            return
        copies = 1
        if self._draw(self.faults.duplication_ppm):
            self.counts["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            delay_ms = self._random.randint(self.faults.least_delay_ms, self.faults.most_delay_ms)
            self._clock.call_later(delay_ms, lambda: self._deliver(sender, receiver, data))

    def _draw(self, share_ppm: int) -> bool:
        return share_ppm > 0 and self._random.randrange(1_000_000) < share_ppm

    def _deliver(self, sender: NodeId, receiver: NodeId, data: bytes) -> None:
        receive = self._receivers.get(receiver)
        if receive is None:
            self.counts["lost"] += 1
            return
        self.counts["delivered"] += 1
        request = peer_service_pb2.DeliverRequest.FromString(data)
        receive(sender, wire.from_deliver_request(request))
