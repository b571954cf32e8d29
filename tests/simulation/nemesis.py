"""Faults: what befalls a simulation, when and whom, all from the seed.

While they last, machines die at any write or at any time and come back from their disks, links
drop, delay, double and reorder messages, groups are cut from each other (also one way), some take
others for dead, disks are slow, and whoever decides a height first may be cut off before it can
tell.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TYPE_CHECKING

from iemas.core.ready import RecordKind
from iemas.core.types import NodeId
from iemas.testing.network import NetworkFaults
from tests.simulation.host import Doom, Host, Moment, World
from tests.simulation.plan import Plan
from tests.simulation.villains import Plot

if TYPE_CHECKING:
    from tests.simulation.watcher import Watcher

LONGEST_DOWN_MS = 2_500
CALM = NetworkFaults(least_delay_ms=1, most_delay_ms=10)


class Nemesis:
    """Carries out a plan's faults on a world."""

    def __init__(
        self,
        world: World,
        hosts: Sequence[Host],
        plan: Plan,
        random: Random,
        *,
        doom_kinds: tuple[RecordKind | None, ...],
    ) -> None:
        self._world = world
        self._hosts = list(hosts)
        self._plan = plan
        self._random = random
        self._doom_kinds = doom_kinds
        self.is_over = False
        self._ambushed_at = -1
        self.plot: Callable[[Plot | None], bool] = lambda _: False
        self.mistake: Callable[[Host, Collection[NodeId]], None] = lambda _, __: None
        """Let a machine take others for silent."""

    @property
    def _watcher(self) -> Watcher:
        return self._world.watcher

    def set_clocks(self) -> None:
        """Let every machine have the wrong time, before it starts."""
        plan = self._plan
        for host, skew_ms, drift_ppm in zip(
            self._hosts, plan.skews_ms, plan.drifts_ppm, strict=False
        ):
            host.skew_ms, host.drift_ppm = skew_ms, drift_ppm
            self._watcher.count("skewed clocks", skew_ms != 0)
            self._watcher.count("drifting clocks", drift_ppm != 0)

    def begin(self) -> None:
        """Schedule all faults."""
        plan = self._plan
        self._schedule(plan.crashes, self._doom)
        self._schedule(plan.kills, lambda: self._kill(self._choose()))
        self._schedule(plan.outages, self._kill_everyone)
        self._schedule(plan.storms, self._storm)
        self._schedule(plan.partitions, self._partition)
        self._schedule(plan.slow_disks, self._slow_disk)
        self._schedule(plan.mistakes, self._mistake)
        if plan.isolate_deciders:
            self._watcher.on_first_commit = self._isolate_decider
        if plan.ambushes:
            self._watcher.on_precommit = self._ambush

    def end(self) -> None:
        """Let the time of faults be over: mend all, start all."""
        self.is_over = True
        self._world.network.heal()
        self._world.network.faults = CALM
        for host in self._hosts:
            host.doom = None
            host.disk_delay_ms = 0
            self._start(host)
            self.mistake(host, ())

    def _schedule(self, times: int, fault: Callable[[], None]) -> None:
        for _ in range(times):
            delay_ms = self._random.randint(200, self._plan.faults_ms)
            self._later(delay_ms, fault)

    def _later(self, delay_ms: int, fault: Callable[[], None]) -> None:
        self._world.clock.call_later(delay_ms, lambda: None if self.is_over else fault())

    def _choose(self) -> Host:
        return self._random.choice(self._hosts)

    def _tell(self, what: str) -> None:
        self._watcher.tell("-", what)

    # --- crashes ---------------------------------------------------------------------------------

    def _doom(self) -> None:
        """Let a machine die at one of its next writes."""
        host = self._choose()
        moment = self._random.choice(list(Moment))
        kind = self._random.choice(self._doom_kinds)
        host.doom = Doom(moment, self._random.randint(0, 6), kind, lambda: self._restart(host))

    def _kill(self, host: Host) -> None:
        if host.alive:
            self._tell(f"{host.name} is killed")
            self._watcher.count("crash between writes")
            host.crash(kept_bytes=self._random.randrange(host.disk.measure_unsynced() + 1))
            self._restart(host)

    def _kill_everyone(self) -> None:
        self._watcher.count("crash of all at once")
        for host in self._hosts:
            self._kill(host)

    def _restart(self, host: Host) -> None:
        down_ms = self._random.choice((self._random.randint(1, 50), LONGEST_DOWN_MS))
        self._later(self._random.randint(1, down_ms), lambda: self._start(host))

    def _start(self, host: Host) -> None:
        if not host.alive:
            host.start()

    # --- network ---------------------------------------------------------------------------------

    def _storm(self) -> None:
        """Give every link faults of its own, again and again."""
        self._tell("a storm begins")
        self._watcher.count("storms")
        gusts = self._random.randint(1, 8)
        for number in range(gusts):
            self._later(number * 250, self._gust)
        self._later(gusts * 250, self._world.network.heal)

    def _gust(self) -> None:
        for one, other in self._list_links():
            loss_ppm = self._random.choice((0, 0, 300_000, 700_000, 1_000_000))
            delay_ms = self._random.choice((10, 100, 400))
            faults = NetworkFaults(1, delay_ms, loss_ppm, 50_000)
            self._world.network.worsen(one.node_id, other.node_id, faults)

    def _partition(self) -> None:
        """Cut a group from the rest, both ways or one way; or one link."""
        shape = self._random.choice(("both ways", "one way", "one link", "one machine"))
        hosts = list(self._hosts)
        self._random.shuffle(hosts)
        size = self._random.randint(1, len(hosts) - 1)
        if shape in ("one link", "one machine"):
            size = 1
        group, rest = hosts[:size], hosts[size:]
        if shape == "one link":
            rest = rest[:1]
        self._tell(f"partition {shape}: {', '.join(host.name for host in group)}")
        self._watcher.count(f"partition {shape}")
        length_ms = self._random.randint(200, 5_000)
        is_one_way = shape == "one way" or self._random.random() < 0.3
        for one in group:
            for other in rest:
                self._cut(one, other, length_ms)
                if not is_one_way:
                    self._cut(other, one, length_ms)

    def _cut(self, sender: Host, receiver: Host, length_ms: int) -> None:
        network, link = self._world.network, (sender.node_id, receiver.node_id)
        network.cut(*link)
        self._world.clock.call_later(length_ms, lambda: network.mend(*link))

    def _isolate_decider(self, host: Host) -> None:
        if not self.is_over and self._random.random() < self._plan.isolate_deciders:
            self._tell(f"{host.name} is cut off as it decides")
            self._watcher.count("deciders cut off")
            length_ms = self._random.choice((300, 1_500, 4_000))
            for other in self._hosts:
                if other is not host:
                    self._cut(host, other, length_ms)

    def _ambush(self, host: Host, height: int, round_number: int) -> None:
        """Mute who precommits a block, so that it may decide alone; let others miss votes.

        Only a lock keeps those that precommitted with it from deciding something else. Villains
        do their part.
        """
        if self.is_over or height <= self._ambushed_at:
            return
        self._ambushed_at = height
        if self._random.random() >= self._plan.ambushes:
            return
        self._tell(f"{host.name} is muted as it precommits")
        self._watcher.count("ambushes")
        length_ms = self._random.choice((600, 1_500, 3_000))
        for other in self._hosts:
            if other is not host:
                self._cut(host, other, length_ms)
        is_plotted = self.plot(Plot(host.node_id, height, round_number))
        if is_plotted:
            self._world.clock.call_later(length_ms, lambda: self.plot(None))
        else:
            for one, other in self._list_links():
                if self._random.random() < 0.3:
                    self._cut(one, other, self._random.choice((100, 300, 600)))

    def _list_links(self) -> list[tuple[Host, Host]]:
        return [(a, b) for a in self._hosts for b in self._hosts if a is not b]

    def _mistake(self) -> None:
        """Let a machine take some others for silent, whatever it hears of them."""
        host = self._choose()
        if host.alive:
            others = [one for one in self._hosts if self._random.random() < 0.5]
            self._tell(f"{host.name} takes {', '.join(o.name for o in others)} for silent")
            self._watcher.count("mistakes")
            self.mistake(host, [other.node_id for other in others])
            self._later(self._random.randint(200, 3_000), lambda: self.mistake(host, ()))

    # --- disks -----------------------------------------------------------------------------------

    def _slow_disk(self) -> None:
        host = self._choose()
        host.disk_delay_ms = self._random.choice((5, 40, 200))
        self._tell(f"the disk of {host.name} takes {host.disk_delay_ms} ms a write")
        self._watcher.count("slow disks")

        def recover() -> None:
            host.disk_delay_ms = 0

        self._world.clock.call_later(self._random.randint(500, 4_000), recover)
