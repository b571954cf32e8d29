"""Consensus under everything at once: loss, duplication, reordering, one-way cuts, crashes, skew.

Every fault comes from the seed. Replicas crash between two steps or after a write and before its
messages leave. When the faults are over, all must be at one height with one state root, and every
transaction that was submitted must be in a block.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from iemas.core.errors import LocalProtocolError
from iemas.testing.network import NetworkFaults
from tests.cluster import OBSERVER, Cluster, Replica

FAULTS_MS = 15_000
LONGEST_DOWN_MS = 4_000
LONGEST_CUT_MS = 5_000
RECOVERY_MS = 60_000


class ConsensusOrdeal:
    """Four validators and an observer, what befalls them, and what it came to."""

    def __init__(
        self,
        seed: int,
        *,
        crashes: int = 8,
        cuts: int = 3,
        submissions: int = 60,
        total_outages: int = 1,
        skew_ms: int = 900,
    ) -> None:
        self.random = Random(seed)
        faults = NetworkFaults(most_delay_ms=80, loss_ppm=100_000, duplication_ppm=50_000)
        self.cluster = Cluster(observers=(OBSERVER,), seed=seed, faults=faults)
        self._submitted: list[bytes] = []
        for replica in self.cluster.replicas.values():
            replica.skew_ms = self.random.randint(-skew_ms, skew_ms)
        for number in range(submissions):
            self._at_any_time(lambda n=number: self._submit(n + 1))
        for _ in range(crashes):
            self._at_any_time(self._crash)
        for _ in range(cuts):
            self._at_any_time(self._cut)
        for _ in range(total_outages):
            self._at_any_time(self._crash_everyone)

    def _at_any_time(self, fault: Callable[[], None]) -> None:
        self.cluster.clock.call_later(self.random.randint(100, FAULTS_MS), fault)

    def _choose(self) -> Replica:
        return self.random.choice(list(self.cluster.replicas.values()))

    def _submit(self, number: int) -> None:
        alive = [replica for replica in self.cluster.replicas.values() if replica.alive]
        if alive:
            name = self.random.choice(alive).name
            # Accounts of their own, so that none can overtake another.
            sender = self.random.choice(("alice", "bob"))
            transaction = self.cluster.make_funding_by(sender, number)
            self._submitted.append(self.cluster.submit(name, transaction))

    def _crash(self) -> None:
        replica = self._choose()
        if not replica.alive:
            return
        if self.random.random() < 0.5:
            replica.crash_before_sending()
            self.cluster.clock.call_later(LONGEST_DOWN_MS, lambda: self._start(replica))
        else:
            self._kill(replica)

    def _kill(self, replica: Replica) -> None:
        replica.crash()
        down_ms = self.random.randint(100, LONGEST_DOWN_MS)
        self.cluster.clock.call_later(down_ms, lambda: self._start(replica))

    def _crash_everyone(self) -> None:
        for replica in self.cluster.replicas.values():
            if replica.alive:
                self._kill(replica)

    def _start(self, replica: Replica) -> None:
        if not replica.alive:
            replica.start()

    def _cut(self) -> None:
        """Cut some connections, each one way, for a while."""
        network = self.cluster.network
        ids = [replica.node_id for replica in self.cluster.replicas.values()]
        for sender in ids:
            for receiver in ids:
                if self.random.random() < 0.4:
                    network.cut(sender, receiver)
        self.cluster.clock.call_later(self.random.randint(500, LONGEST_CUT_MS), network.heal)

    def run(self) -> list[str]:
        """Run to the end; list what was broken, liveness included."""
        cluster = self.cluster
        cluster.start()
        cluster.clock.run_until(cluster.clock.now_ms + FAULTS_MS + LONGEST_CUT_MS)
        for replica in cluster.replicas.values():
            replica.lose_next_sends = False
            self._start(replica)
        cluster.network.faults = NetworkFaults(most_delay_ms=20)
        try:
            cluster.clock.run_until(cluster.clock.now_ms + RECOVERY_MS, until=self._is_recovered)
        except LocalProtocolError:
            return [*cluster.broken, f"it does not go on: {self.describe()}"]
        return cluster.broken

    def _is_recovered(self) -> bool:
        """Tell whether all agree and no mempool holds anything that could be applied."""
        cluster = self.cluster
        return (
            len(cluster.get_roots()) == 1
            and len({replica.alive for replica in cluster.replicas.values()}) == 1
            and not any(
                replica.engine.is_waiting(transaction_id)
                for replica in cluster.replicas.values()
                for transaction_id in self._submitted
            )
        )

    def describe(self) -> dict[str, tuple[int, int]]:
        return {
            name: (replica.height, len(replica.refused))
            for name, replica in self.cluster.replicas.items()
        }
