"""A market under everything at once: loss, crashes at the worst moment, a cut node, skewed clocks.

`Ordeal` schedules the faults from the seed and watches all that is signed; `check` gives what was
broken. A node may crash between any two steps, or within one after its records are on disk and
before its messages leave.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

from iemas import wire
from iemas.consensus.messages import BlockAnnouncement, ProposalNotice, VoteNotice
from iemas.core.auction import CloseNotice, ReleaseNotice, TranscriptNotice
from iemas.core.errors import LocalProtocolError
from iemas.core.params import MarketParams
from iemas.core.ready import Ready
from iemas.core.types import AccountId, NodeId
from iemas.ledger.records import TotalKey
from iemas.testing.network import NetworkFaults
from tests.simulation.market import HUB, SimulatedMarket, SimulatedNode

LAST_FAULT_MS = 25_000
LONGEST_DOWN_MS = 8_000
LONGEST_CUT_MS = 15_000


class SkewedClock:
    """A clock that is wrong by a constant."""

    def __init__(self, market: SimulatedMarket, skew_ms: int) -> None:
        self._clock = market.clock
        self._skew_ms = skew_ms

    @property
    def now_ms(self) -> int:
        return self._clock.now_ms + self._skew_ms

    def call_at(self, at_ms: int, callback: Callable[[], None]) -> None:
        self._clock.call_at(max(self._clock.now_ms, at_ms - self._skew_ms), callback)

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> None:
        self._clock.call_later(delay_ms, callback)


class SkewedMarket:
    """The market as a node with a wrong clock sees it."""

    def __init__(self, market: SimulatedMarket, skew_ms: int) -> None:
        self._market = market
        self.clock = SkewedClock(market, skew_ms)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._market, name)


class Ordeal:
    """A market, the faults that befall it, and all that was signed meanwhile."""

    def __init__(self, seed: int, *, crashes: int = 6, cuts: int = 1, skew_ms: int = 900) -> None:
        self.market = SimulatedMarket(
            seed,
            params=MarketParams(term_ms=3_000, settle_terms=40),
            faults=NetworkFaults(most_delay_ms=60, loss_ppm=20_000, duplication_ppm=10_000),
        )
        self._random = Random(~seed)
        self._signed: dict[tuple[str, int, int], set[bytes]] = defaultdict(set)
        self._totals: dict[TotalKey, int] = defaultdict(int)
        self._watch()
        for node in self.market.nodes.values():
            skewed = SkewedMarket(self.market, self._random.randint(-skew_ms, skew_ms))
            node._market = skewed  # type: ignore[assignment]
        for _ in range(crashes):
            self._at_any_time(self._crash)
        for _ in range(cuts):
            self._at_any_time(self._cut)

    # --- watching --------------------------------------------------------------------------------

    def _watch(self) -> None:
        send = self.market.network.send

        def remember(sender: NodeId, receiver: NodeId, message: wire.PeerMessage) -> None:
            self._remember(message)
            send(sender, receiver, message)

        self.market.network.send = remember  # type: ignore[method-assign]
        for requester in self.market.requesters:
            channel = requester.channel
            channel._sign_total = self._remember_totals(channel._sign_total)  # type: ignore[method-assign]

    def _remember(self, message: wire.PeerMessage) -> None:
        match message:
            case CloseNotice(signed, _) | ReleaseNotice(signed) | TranscriptNotice(signed):
                place = (type(message).__name__, signed.message.term, signed.message.round)
                self._signed[place].add(signed.hash)
            case BlockAnnouncement(committed):
                self._signed["Block", committed.height, 0].add(committed.block.hash)
            case ProposalNotice(proposal):
                p = proposal.message
                name = f"Proposal by {proposal.signer_id.hex()}"
                self._signed[name, p.height, p.round].add(proposal.hash)
            case VoteNotice(votes):
                for vote in votes:
                    v = vote.message
                    name = f"{v.kind.name} by {vote.signer_id.hex()}"
                    self._signed[name, v.height, v.round].add(vote.hash)

    def _remember_totals(self, sign: Callable[..., Any]) -> Callable[..., Any]:
        def sign_total(*arguments: Any) -> Any:
            signed = sign(*arguments)
            total = signed.message
            key = TotalKey(total.hub, total.term, total.account, total.channel, total.provider)
            self._totals[key] = max(self._totals[key], total.total_micros)
            return signed

        return sign_total

    # --- faults ----------------------------------------------------------------------------------

    def _at_any_time(self, fault: Callable[[SimulatedNode], None]) -> None:
        node = self._random.choice(list(self.market.nodes.values()))
        at_ms = self.market.clock.now_ms + self._random.randint(500, LAST_FAULT_MS)
        self.market.clock.call_at(at_ms, lambda: fault(node))

    def _crash(self, node: SimulatedNode) -> None:
        if self._random.random() < 0.5:
            self._kill(node)
            return
        carry_out = type(node).carry_out

        def crash_before_sending(ready: Ready) -> None:
            if not ready.persist:
                carry_out(node, ready)
                return
            node.disk.write(ready.persist)
            vars(node).pop("carry_out")
            # The step is still on the stack: the process goes at once, before anything else.
            self.market.clock.call_at(self.market.clock.now_ms, lambda: self._kill(node))
            node.carry_out = lambda _: None  # type: ignore[method-assign]

        node.carry_out = crash_before_sending  # type: ignore[method-assign]

    def _kill(self, node: SimulatedNode) -> None:
        vars(node).pop("carry_out", None)
        if node.alive:
            node.crash()
            down_ms = self._random.randint(300, LONGEST_DOWN_MS)
            self.market.clock.call_later(down_ms, lambda: self._start(node))

    def _start(self, node: SimulatedNode) -> None:
        if not node.alive:
            node.start()

    def _cut(self, node: SimulatedNode) -> None:
        network = self.market.network
        for other in self.market.nodes.values():
            network.cut(node.node_id, other.node_id)
            network.cut(other.node_id, node.node_id)
        self.market.clock.call_later(self._random.randint(1_000, LONGEST_CUT_MS), network.heal)

    # --- running and checking --------------------------------------------------------------------

    def run(self) -> None:
        """Hold all conversations, let the last fault pass, and let everything settle."""
        market = self.market
        until_ms = market.clock.now_ms + LAST_FAULT_MS + LONGEST_CUT_MS
        market.start()
        market.run_conversations(limit_ms=240_000)
        market.clock.run_until(max(until_ms, market.clock.now_ms))
        for node in market.nodes.values():
            vars(node).pop("carry_out", None)
        market.clock.run_until(market.clock.now_ms + LONGEST_DOWN_MS + 1)
        market.settle(limit_ms=120_000)

    def check(self) -> list[str]:
        """List what must not have happened."""
        nodes = self.market.nodes
        broken = [f"{name} is dead" for name, node in nodes.items() if not node.alive]
        broken += [f"signed twice: {at}" for at, hashes in self._signed.items() if len(hashes) > 1]
        if len({node.core.engine.state_root for node in nodes.values()}) != 1:
            broken.append("the replicas have different state roots")
        for name, node in nodes.items():
            if node.core.state.get_total_money() != node.core.state.facts.supply_micros:
                broken.append(f"{name} does not conserve money")
            if node.core.rounds.verdicts["refused"]:
                broken.append(f"{name} refused a round")
        return broken + self._check_payments()

    def _check_payments(self) -> list[str]:
        """Nobody paid more than it signed; every provider got what its receipts say."""
        state = self.market.nodes["observer"].core.state
        broken = [
            f"{key} settled {record.total_micros}, signed were {self._totals[key]}"
            for key, record in state.totals.items()
            if record.total_micros > self._totals[key]
        ]
        for name, node in self.market.nodes.items():
            rows = [row for requester in self.market.requesters for row in requester.results]
            owed_micros = sum(row.amount_micros for row in rows if row.winner == name)
            signed_micros = sum(
                t for key, t in self._totals.items() if key.provider == node.node_id
            )
            paid_micros = state.get_balance(AccountId(node.node_id), HUB)[0]
            if not owed_micros <= paid_micros <= signed_micros:
                broken.append(
                    f"{name} was paid {paid_micros}, owed {owed_micros}, signed {signed_micros}"
                )
        return broken


def run_ordeal(seed: int) -> list[str]:
    """Run one seed; list what was broken, liveness included."""
    ordeal = Ordeal(seed)
    try:
        ordeal.run()
    except LocalProtocolError as error:
        return [f"it does not go on: {error}", *ordeal.check()]
    return ordeal.check()
