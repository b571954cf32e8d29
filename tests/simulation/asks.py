"""Sealed asks under faults: operators change them, and who could reveal loses no bond."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from iemas.core.ready import RecordKind
from iemas.core.types import NodeId, Prices
from tests.simulation.checkers import BrokenPromiseError
from tests.simulation.host import Doom, Moment
from tests.simulation.market_node import HUB, SimulatedNode
from tests.simulation.plan import Plan
from tests.simulation.villains import WITHHELD_REVEAL

if TYPE_CHECKING:
    from tests.simulation.market import SimulatedMarket

WELL_MS = 2_000
"""Half of the reveal window: so long a node must have been well for its reveal to be in a block."""

POLL_MS = 100
LONGEST_RESTART_MS = 1_500


class AskOrdeal:
    """Changes asks at any time, and watches whose bonds are burned."""

    def __init__(
        self, market: SimulatedMarket, nodes: list[SimulatedNode], plan: Plan, random: Random
    ) -> None:
        self._market = market
        self._nodes = [node for node in nodes if node.sells]
        self._plan = plan
        self._random = random
        self._well_since_ms = dict.fromkeys(nodes, market.clock.now_ms)
        self._processes = {node: node.process for node in nodes}
        market.watcher.on_bond_burned = self._check_burned

    def begin(self) -> None:
        """Schedule the changes, and watch how everybody is."""
        for _ in range(self._plan.changed_asks):
            delay_ms = self._random.randint(500, self._plan.faults_ms)
            self._market.clock.call_later(delay_ms, self._change)
        self._watch()

    @property
    def is_over(self) -> bool:
        """Whether at every honest node that runs what is configured stands."""
        state = self._market.history.state
        return all(
            state.get_ask(HUB, node.node_id) == node.prices
            for node in self._nodes
            if node.is_honest and node.alive
        )

    def _change(self) -> None:
        """Configure another ask at a node, and start it anew."""
        node = self._choose()
        if not node.alive:
            return
        random = self._random
        node.prices = Prices(random.randint(100_000, 200_000), 50_000, random.randint(1, 6) * 10**5)
        self._market.watcher.tell(node.name, "is started anew with another ask")
        self._market.watcher.count("changed asks")
        node.crash(kept_bytes=node.disk.measure_unsynced())
        moment = random.choice((None, None, *Moment))
        self._start_later(node, moment)

    def _start_later(self, node: SimulatedNode, moment: Moment | None) -> None:
        """Start a node; let it die as it writes down what it commits to, if a moment is given."""

        def start() -> None:
            if not node.alive:
                node.start()
            if moment is not None:
                on_death = partial(self._start_later, node, None)
                node.doom = Doom(moment, 0, RecordKind.SEALED_ASK, on_death)

        delay_ms = self._random.randint(1, LONGEST_RESTART_MS)
        self._market.clock.call_later(delay_ms, start)

    def _choose(self) -> SimulatedNode:
        """Choose a node; half of the time one that withholds its reveals, if there is any."""
        silent = [
            self._nodes[number]
            for number, villain in self._plan.villains.items()
            if WITHHELD_REVEAL in villain.tricks
        ]
        if silent and self._random.random() < 0.5:
            return self._random.choice(silent)
        return self._random.choice(self._nodes)

    # --- whose bonds are burned ------------------------------------------------------------------

    def _watch(self) -> None:
        now_ms = self._market.clock.now_ms
        for node in self._nodes:
            if not self._is_well(node):
                self._well_since_ms[node] = now_ms
            self._processes[node] = node.process
        self._market.clock.call_later(POLL_MS, self._watch)

    def _is_well(self, node: SimulatedNode) -> bool:
        """Tell whether a machine has run since the last look, with a disk and links that work."""
        is_linked = not self._market.network.is_troubled(node.node_id)
        return node.alive and node.process == self._processes[node] and is_linked

    def _check_burned(self, owner: NodeId) -> None:
        node = self._market.by_id[owner]
        whose = "an honest node" if node.is_honest else "a villain"
        self._market.watcher.count(f"bonds burned of {whose}")
        well_ms = self._market.clock.now_ms - self._well_since_ms[node]
        if node.is_honest and well_ms >= WELL_MS:
            what = f"{node.name} lost its bond and was well for {well_ms} ms"
            raise BrokenPromiseError("no honest bond burned", what)
