"""One simulated machine: a process that may die at any write, its disk, its clock, its wires.

A process works as `node.driver.Driver` does: step, persist, then send. While its disk is slow it
takes no input. What it wrote and did not sync is lost when it dies, or torn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Protocol

from iemas.core.errors import IemasError
from iemas.core.identity import Identity
from iemas.core.ready import Fault, Ready, RecordKind, Send
from iemas.core.types import NodeId
from iemas.testing.clock import SimulatedClock
from iemas.testing.disk import SimulatedDisk
from iemas.testing.network import SimulatedNetwork
from tests.simulation.villains import Villain
from tests.simulation.watcher import Watcher

PPM = 1_000_000


class Moment(StrEnum):
    """Where in a write a process dies."""

    LOST = "written, not synced: lost"
    TORN = "written, not synced: torn"
    KEPT = "synced, before anything is sent"
    SENDING = "synced, between two messages"


@dataclass
class Doom:
    """A process dies at the so-many-th write from now on that has a record of this kind."""

    moment: Moment
    writes: int
    kind: RecordKind | None
    on_death: Callable[[], None]

    def strikes(self, ready: Ready) -> bool:
        """Count a write; tell whether it is the last one."""
        if self.kind is not None and all(record.kind != self.kind for record in ready.persist):
            return False
        self.writes -= 1
        return self.writes < 0


class World(Protocol):
    """What machines share."""

    clock: SimulatedClock
    network: SimulatedNetwork
    watcher: Watcher
    chance: Random

    def attach(self, host: Host) -> None:
        """Connect a machine whose process started."""

    def detach(self, host: Host) -> None:
        """Disconnect a machine whose process died."""


class Host:
    """A machine. Subclasses say what its process is."""

    def __init__(self, world: World, name: str, identity: Identity) -> None:
        self.world = world
        self.name = name
        self.identity = identity
        self.node_id: NodeId = identity.node_id
        self.disk = SimulatedDisk()
        self.alive = False
        self.process = 0
        self.skew_ms = 0
        self.drift_ppm = 0
        self.disk_delay_ms = 0
        self.doom: Doom | None = None
        self.villain: Villain | None = None
        self.hears: Callable[[NodeId], bool] = lambda _: True
        self._booted_at_ms = world.clock.now_ms
        self._held: list[Ready] = []
        self._inbox: deque[Callable[[], Ready]] = deque()
        self._wakes_at_ms: int | None = None  # by the world's clock

    # --- what its process is ---------------------------------------------------------------------

    def boot(self) -> None:
        """Make the process from what is on disk, and let it take its first step."""
        raise NotImplementedError

    def take(self, sender: NodeId, message: Any) -> Ready:
        """Let the process take a message."""
        raise NotImplementedError

    def take_spoilt(self, sender: NodeId, error: IemasError) -> Ready:
        """Let the process take note of what is no message."""
        return Ready(faults=(Fault(sender, error),))

    def tick(self) -> Ready:
        """Let the process do what is due."""
        raise NotImplementedError

    @property
    def height(self) -> int:
        """The process's last decided height."""
        raise NotImplementedError

    @property
    def state_root(self) -> bytes:
        """The process's state root."""
        raise NotImplementedError

    # --- life ------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """What the machine's clock shows."""
        now_ms = self.world.clock.now_ms
        return now_ms + self.skew_ms + (now_ms - self._booted_at_ms) * self.drift_ppm // PPM

    @property
    def is_honest(self) -> bool:
        """Whether it keeps to the protocol."""
        return self.villain is None

    def start(self) -> None:
        """Start the process from what is on disk."""
        self.process += 1
        self.alive = True
        self.doom = None
        self._wakes_at_ms = None
        self._held.clear()
        self._inbox.clear()
        self.world.attach(self)
        self.boot()
        if self.alive:
            self.world.watcher.note_start(self)

    def crash(self, *, kept_bytes: int = 0) -> None:
        """Kill the process: all is lost but what is on disk and what reached the platter."""
        self.alive = False
        self.process += 1
        self.doom = None
        if self.disk.crash(kept_bytes=kept_bytes):
            self.world.watcher.count("torn writes")
        self.world.detach(self)

    # --- steps -----------------------------------------------------------------------------------

    def run(self, work: Callable[[], Ready]) -> None:
        """Let the process do something, once its disk is done with what it did before."""
        if not self.alive:
            return
        if self._held:
            self._inbox.append(work)
        else:
            self.carry_out(self.guard(work))

    def guard(self, work: Callable[[], Ready]) -> Ready:
        """Do something; a villain whose lies broke its own process dies of it."""
        if self.is_honest:
            return work()
        try:
            return work()
        except Exception:  # noqa: BLE001
            self.world.watcher.count("villains that died of their lies")
            self.crash()
            return Ready()

    def carry_out(self, ready: Ready) -> None:
        """Persist, then send: in this order, whatever happens in between."""
        if not self.alive:
            return
        if ready.persist:
            self.disk.append(ready.persist)
            if self.doom is not None and self.doom.strikes(ready):
                self.die(self.doom, ready)
                return
        elif not self._held:
            self.finish(ready)
            return
        self._held.append(ready)
        if len(self._held) == 1:
            self._sync()

    def _sync(self) -> None:
        if not self.disk_delay_ms:
            self._finish_held()
            return
        process = self.process
        self.world.watcher.count("slow writes")
        self.world.clock.call_later(
            self.disk_delay_ms, lambda: self._finish_held() if self.process == process else None
        )

    def _finish_held(self) -> None:
        self.disk.sync()
        held, self._held = self._held, []
        process = self.process
        for ready in held:
            if self.process == process:
                self.finish(ready)
        while self._inbox and not self._held and self.process == process:
            self.carry_out(self.guard(self._inbox.popleft()))

    def die(self, doom: Doom, ready: Ready) -> None:
        """Die in a write."""
        chance, kept_bytes = self.world.chance, 0
        self.world.watcher.note_death(self, doom.moment, ready)
        if doom.moment is Moment.TORN:
            kept_bytes = chance.randrange(self.disk.measure_unsynced())
        elif doom.moment is not Moment.LOST:
            self.disk.sync()
            sent = chance.randint(0, len(ready.send)) if doom.moment is Moment.SENDING else 0
            self.finish(Ready(persist=ready.persist, send=ready.send[:sent]))
        if self.alive:
            self.crash(kept_bytes=kept_bytes)
        doom.on_death()

    def finish(self, ready: Ready) -> None:
        """Do what follows once all that was persisted is on disk."""
        if ready.persist:
            self.world.watcher.note_durable(self, ready.persist)
        for send in ready.send:
            self.transmit(send)
        for fault in ready.faults:
            self.world.watcher.note_fault(self, fault)
        for event in ready.events:
            self.world.watcher.note_event(self, event)
        if ready.wake_at_ms is not None:
            self._arm(ready.wake_at_ms)

    def transmit(self, send: Send) -> None:
        """Send a message, or what a villain makes of it."""
        world = self.world
        messages = (send.message,)
        if self.villain is not None:
            messages = self.villain.tamper(self, send.to, send.message)
        for message in messages:
            if isinstance(message, bytes):
                world.network.send_bytes(self.node_id, send.to, message)
            else:
                world.watcher.note_sent(self, send.to, message)
                world.network.send(self.node_id, send.to, message)

    def receive(self, sender: NodeId, message: Any) -> None:
        """Take a message from the network."""
        self.run(lambda: self.take(sender, message))

    def receive_spoilt(self, sender: NodeId, error: IemasError) -> None:
        """Take from the network what does not decode."""
        self.run(lambda: self.take_spoilt(sender, error))

    def _arm(self, wake_at_ms: int) -> None:
        clock, process = self.world.clock, self.process
        delay_ms = max(wake_at_ms - self.now_ms, 0) * PPM // (PPM + self.drift_ppm) + 1
        due_ms = clock.now_ms + delay_ms
        if self._wakes_at_ms is not None and self._wakes_at_ms <= due_ms:
            return
        self._wakes_at_ms = due_ms

        def wake() -> None:
            if self.process == process and self._wakes_at_ms == due_ms:  # or an earlier one was set
                self._wakes_at_ms = None
                self.run(self.tick)

        clock.call_later(delay_ms, wake)
