"""A whole market under faults: nodes with rounds, tasks and requesters, as `market.py` has them.

It shares plan, faults, villains, observer and checkers with the ledger markets. Villains also
withhold the shares of rounds that they witness and the asks that they committed to, sign
transcripts of wrong clearings or under another QoS model than was decided, and propose models that
favour themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from iemas import wire
from iemas.core.errors import LocalProtocolError
from iemas.core.ready import RecordKind
from tests.simulation.asks import AskOrdeal
from tests.simulation.checkers import BrokenPromiseError, NoProgressError
from tests.simulation.market import SimulatedMarket
from tests.simulation.market_node import HUB, SimulatedNode
from tests.simulation.nemesis import Nemesis
from tests.simulation.plan import Plan
from tests.simulation.villains import Villain

TURNS = 3
RECOVERY_MS = 120_000
SERVICE_BACK_MS = 2_000
POLL_MS = 20
PROVIDER_BONDS = 10
"""How many bonds a provider has money for."""
STANDING_MS = 60_000


class WholeMarket:
    """A market of whole nodes, and what befalls it."""

    def __init__(self, plan: Plan, *, keep_account: bool = False) -> None:
        self.plan = plan
        self.market = SimulatedMarket(
            plan.seed,
            providers=plan.validators,
            requesters=plan.requesters,
            turns=TURNS,
            params=plan.params,
            faults=plan.network,
            stakes=plan.stakes,
            provider_micros=PROVIDER_BONDS * plan.params.ask_bond_micros,
            keep_account=keep_account,
        )
        self.network = self.market.network
        self.watcher = self.market.watcher
        self.nodes = list(self.market.nodes.values())
        for number, villain in plan.villains.items():
            self._corrupt(self.nodes[number], villain.tricks, villain.eagerness)
        self.nemesis = Nemesis(
            self.market,
            self.nodes,
            plan,
            self._make_random("nemesis"),
            doom_kinds=(None, *RecordKind),
        )

        self.asks = AskOrdeal(self.market, self.nodes, plan, self._make_random("asks"))

    def _make_random(self, purpose: str) -> Random:
        return Random(f"{self.plan.kind} {self.plan.seed} {purpose}")

    def _corrupt(self, node: SimulatedNode, tricks: tuple[str, ...], eagerness: float) -> None:
        self.market.history.villains.add(node.node_id)
        node.villain = Villain(
            wire.WireSigner(node.identity, self.market.chain_id),
            self._make_random(f"villain {node.name}"),
            tricks=tricks,
            eagerness=eagerness,
            count=self.watcher.count,
        )
        node.villain.bent = self.market.history.bent

    @property
    def honest(self) -> list[SimulatedNode]:
        """The machines that keep to the protocol."""
        return [node for node in self.nodes if node.is_honest]

    # --- running ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Hold conversations under faults, then let the market recover, then kill its auctioneer.

        Raises: BrokenPromiseError.
        """
        market = self.market
        self.nemesis.set_clocks()
        market.start()
        self.nemesis.begin()
        self.asks.begin()
        for requester in market.requesters:
            market.clock.call_later(self.market.random.randint(0, 500), requester.begin_turn)
        market.clock.run_until(market.clock.now_ms + self.plan.faults_ms)
        self.watcher.tell("-", "the faults are over")
        self.nemesis.end()
        self._recover()
        self._await(lambda: self.asks.is_over, STANDING_MS, "asks stand")
        self._check_earnings()
        self._check_verdicts()
        if not self.plan.villains:
            self._kill_auctioneer()
        self._count()
        root = market.history.roots[market.history.height]
        self.watcher.tell("-", f"state root {root.hex()}")

    def _recover(self) -> None:
        """All conversations end, all that is owed is settled, and all have one ledger."""
        market, began_at_ms = self.market, self.market.clock.now_ms
        self._await(lambda: all(r.done for r in market.requesters), RECOVERY_MS, "recovery")
        self.watcher.note_duration("recovery", market.clock.now_ms - began_at_ms)
        settling_at_ms = market.clock.now_ms

        def is_settled() -> bool:
            honest = self.honest
            return (
                all(node.core.provider.unsettled_channels == 0 for node in honest)
                and len({node.state_root for node in honest}) == 1
            )

        self._await(is_settled, RECOVERY_MS, "settlement")
        self.watcher.note_duration("settlement", market.clock.now_ms - settling_at_ms)

    def _check_earnings(self) -> None:
        """Whoever never died was paid what its receipts say, and nobody more than was signed."""
        history = self.market.history
        for name, node in self.market.nodes.items():
            rows = [row for requester in self.market.requesters for row in requester.results]
            owed = sum(row.amount_micros for row in rows if row.winner == name)
            paid = sum(m for (_, to), m in history.paid.items() if to == node.node_id)
            paid += history.paid_by_slash[node.node_id]
            if node.is_honest and node.process == 1 and paid < owed:
                what = f"{name} was paid {paid}, its receipts say {owed}"
                raise BrokenPromiseError("what is owed is paid", what)

    def _check_verdicts(self) -> None:
        """No round of an honest auctioneer is refused by anyone honest."""
        tricks = {trick for villain in self.plan.villains.values() for trick in villain.tricks}
        if tricks & {"wrong clearing", "another model"}:
            return
        for node in self.honest:
            if node.core.rounds.verdicts["refused"]:
                raise BrokenPromiseError("rounds re-check", f"{node.name} refused a round")

    def _kill_auctioneer(self) -> None:
        """With its auctioneer dead the market allocates again within bounded time.

        In every other seed a bid gets stuck; otherwise nobody bids until there is the next one.
        """
        market = self.market
        for node in self.nodes:
            node.skew_ms = node.drift_ppm = 0
            node.doom = None
        self._await(lambda: all(node.alive for node in self.nodes), STANDING_MS, "all run")
        market.clock.run_until(market.clock.now_ms + 1_000)
        state = market.get_view().core.state
        dead = market.by_id[state.get_term(HUB).auctioneer]
        if not market.history.is_spare(dead.node_id):
            return
        self.watcher.tell("-", f"{dead.name} is killed for good")
        self.watcher.count("kills for good of the auctioneer")
        dead.crash()
        began_at_ms = market.clock.now_ms
        cleared = self.watcher.counts["event round_cleared"]
        requester = market.requesters[0]
        requester.turns += 1

        def bid_once_there_is_an_auctioneer() -> None:
            term = market.get_view().core.state.get_term(HUB)
            duty = [market.by_id[node] for node in (term.auctioneer, term.witness) if node]
            if all(node.alive for node in duty):
                requester.begin_turn()
            else:
                market.clock.call_later(POLL_MS, bid_once_there_is_an_auctioneer)

        if self.plan.seed % 2:
            bid_once_there_is_an_auctioneer()
        else:
            self.watcher.count("kills for good with a bid on its way")
            requester.begin_turn()
        self._await(
            lambda: self.watcher.counts["event round_cleared"] > cleared,
            SERVICE_BACK_MS,
            "service back",
        )
        self.watcher.note_duration("service back", market.clock.now_ms - began_at_ms)

    def _await(self, condition: Callable[[], bool], limit_ms: int, promise: str) -> None:
        clock = self.market.clock
        try:
            clock.run_until(clock.now_ms + limit_ms, until=condition)
        except LocalProtocolError as error:
            where = {n.name: n.height if n.alive else "dead" for n in self.nodes}
            turns = [len(requester.results) for requester in self.market.requesters]
            what = f"not within {limit_ms} ms: heights {where}, turns {turns}"
            raise NoProgressError(promise, what) from error

    def _count(self) -> None:
        for requester in self.market.requesters:
            self.watcher.count("turns of conversations", len(requester.results))
        for error, reason in self.market.refusals:
            name = f"{error} {reason}" if error == "Unmatched" else error
            self.watcher.count(f"requester refused {name}")
        for node in self.honest:
            for verdict, number in node.core.rounds.verdicts.items():
                self.watcher.count(f"rounds {verdict}", number)
