"""The workload of a ledger market: everybody's transactions, right and wrong ones.

Settlements are what a provider would hand in: totals that the account signed under allocations that
the term's auctioneer signed. Every total is also handed in again, out of order and in parts, as a
provider would that wants to be paid twice.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from iemas.core.auction import Ask
from iemas.core.envelope import Signed
from iemas.core.types import (
    MICROS_PER_CREDIT,
    AccountId,
    ChannelId,
    Hash,
    HubId,
    NodeId,
    Prices,
)
from iemas.ledger.records import TotalKey
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    AbsenceVote,
    CommitAsk,
    FundEscrow,
    HoldFunds,
    PlaceDeposit,
    PostAsk,
    PostHold,
    ReturnToDuty,
    RevealAsk,
    RoundRoots,
    Settle,
    SettlementEntry,
    Stake,
    Transaction,
    TransactionBody,
    TransferFunds,
    Unstake,
    VoidHold,
    VoteModel,
    VoteParameter,
    WithdrawDeposit,
    WithdrawEscrow,
)
from iemas.testing.chain import LedgerChain

if TYPE_CHECKING:
    from tests.simulation.ledger_market import LedgerMarket, LedgerNode

ACCOUNTS = ("alice", "bob", "carol")
PROBER = "dave"
"""An account that the end of the simulation alone uses."""

ESCROW_MICROS = 400_000
AVAILABLE_MICROS = 50 * MICROS_PER_CREDIT

Step = tuple[str, TransactionBody]
"""A sender's name and what it asks for."""


class Clients:
    """Signs and hands in transactions, each at a node chosen by chance."""

    def __init__(self, market: LedgerMarket, tools: LedgerChain, random: Random) -> None:
        self._market = market
        self._tools = tools
        self._random = random
        self._nonces: dict[str, int] = {}
        self._channels = {name: ChannelId(random.getrandbits(60)) for name in (*ACCOUNTS, PROBER)}
        self._last: dict[TotalKey, tuple[int, int]] = {}
        self._entries: list[tuple[str, SettlementEntry]] = []
        self._holds: list[tuple[str, str, bytes]] = []
        self._commitments: dict[tuple[str, int], tuple[Prices, Hash]] = {}
        self._unstaked_at_ms = -1_000_000
        self._actions: dict[Callable[[LedgerState], Step | None], int] = {
            self._settle: 8,
            self._settle_again: 6,
            self._settle_many: 3,
            self._transfer: 3,
            self._fund_escrow: 3,
            self._withdraw_escrow: 2,
            self._post_ask: 2,
            self._hold: 3,
            self._end_hold: 3,
            self._close_books: 3,
            self._vote_absent: 2,
            self._return: 3,
            self._stake: 1,
            self._unstake: 1,
            self._deposit: 2,
            self._commit_ask: 3,
            self._reveal_ask: 3,
            self._govern: 2,
        }

    @property
    def _hub(self) -> HubId:
        return self._tools.hub

    # --- handing in ------------------------------------------------------------------------------

    def act(self) -> None:
        """Do something by chance, as far as the ledger as some node has it goes."""
        view = self._market.choose_view()
        if view is None:
            return
        actions = list(self._actions)
        (action,) = self._random.choices(actions, weights=list(self._actions.values()))
        name, body = action(view.state) or self._transfer(view.state)
        transaction = self.sign(name, body)
        nodes = [node for node in self._market.nodes if node.alive]
        for node in self._random.sample(nodes, min(len(nodes), self._random.choice((1, 1, 2)))):
            node.submit(transaction)
        if self._random.random() < 0.03:  # the same once more, and a nonce that was used
            view.submit(transaction)
            stale = Transaction(transaction.message.account, transaction.message.nonce, body)
            view.submit(self._tools.sign(name, stale))

    def sign(self, name: str, body: TransactionBody) -> Signed[Transaction]:
        """Sign a transaction under the sender's next nonce, sometimes a later one."""
        applied = self._market.history.state.get_nonce(self._tools.get_id(name))
        nonce = max(self._nonces.get(name, 0), applied) + self._random.choice((1, 1, 1, 2))
        self._nonces[name] = nonce
        signed: Signed[Transaction] = self._tools.make_transaction(name, body, nonce=nonce)
        return signed

    # --- money -----------------------------------------------------------------------------------

    def _anyone(self) -> str:
        return self._random.choice((*ACCOUNTS, *self._market.names))

    def _validator(self) -> str:
        return self._random.choice(self._market.validator_names)

    def _draw_micros(self, most: int) -> int:
        return self._random.randint(1, most)

    def _transfer(self, state: LedgerState) -> Step:
        to = self._tools.get_id(self._anyone())
        return self._anyone(), TransferFunds(to, self._draw_micros(2 * MICROS_PER_CREDIT))

    def _fund_escrow(self, state: LedgerState) -> Step:
        return self._random.choice(ACCOUNTS), FundEscrow(self._hub, self._draw_micros(200_000))

    def _withdraw_escrow(self, state: LedgerState) -> Step:
        return self._random.choice(ACCOUNTS), WithdrawEscrow(self._hub, self._draw_micros(50_000))

    def _hold(self, state: LedgerState) -> Step:
        payer, payee = self._anyone(), self._anyone()
        key = self._random.randbytes(16)
        if self._holds and self._random.random() < 0.2:
            payer, payee, key = self._random.choice(self._holds)
        self._holds.append((payer, payee, key))
        timeout_ms = self._random.choice((500, 5_000, 60_000))
        to = self._tools.get_id(payee)
        return payer, HoldFunds(key, to, self._draw_micros(10_000), timeout_ms)

    def _end_hold(self, state: LedgerState) -> Step | None:
        if not self._holds:
            return None
        payer, payee, key = self._random.choice(self._holds[-8:])
        payer_id = self._tools.get_id(payer)
        if self._random.random() < 0.3:
            return payee, VoidHold(payer_id, key)
        sender = self._random.choice((payer, payee))
        return sender, PostHold(payer_id, key, self._draw_micros(10_000))

    # --- settlement ------------------------------------------------------------------------------

    def make_entry(self, state: LedgerState, account: str, provider: str) -> SettlementEntry:
        """Let an account owe a provider more, in an open term, and sign it."""
        term = self._random.choice(state.get_terms_open(self._hub)[-2:])
        key = TotalKey(
            self._hub,
            term.number,
            self._tools.get_id(account),
            self._channels[account],
            self._tools.get_node(provider),
        )
        sequence, total = self._last.get(key, (0, 0))
        sequence, total = sequence + 1, total + self._random.choice((0, 100, 1_000, 30_000))
        self._last[key] = (sequence, total)
        self._market.history.cosigned[key] = total
        reserved = max(total + self._random.choice((0, 5_000, -50)), 0)
        return self._tools.make_entry(
            account,
            provider,
            term.number,
            total,
            sequence=sequence,
            reserved_micros=reserved,
            channel=key.channel,
            auctioneer=self._tools.get_name(term.auctioneer),
        )

    def _make_entry(self, state: LedgerState) -> tuple[str, SettlementEntry]:
        provider = self._validator()
        entry = self.make_entry(state, self._random.choice(ACCOUNTS), provider)
        self._entries.append((provider, entry))
        return provider, entry

    def _settle(self, state: LedgerState) -> Step:
        provider, entry = self._make_entry(state)
        return provider, Settle((entry,))

    def _settle_again(self, state: LedgerState) -> Step | None:
        """Hand in again what was handed in before: the same, twice at once, or an older total."""
        if not self._entries:
            return None
        provider, entry = self._random.choice(self._entries[-6:])
        return provider, Settle((entry,) * self._random.choice((1, 2)))

    def _settle_many(self, state: LedgerState) -> Step:
        provider, entry = self._make_entry(state)
        others = [other for name, other in self._entries[-12:] if name == provider]
        return provider, Settle((*others, entry))

    def _close_books(self, state: LedgerState) -> Step | None:
        past = state.get_terms_open(self._hub)[:-1]
        if not past:
            return None
        term = self._random.choice(past)
        sender = self._tools.get_name(term.auctioneer)
        return sender, RoundRoots(self._hub, term.number, (), (), ())

    # --- validators ------------------------------------------------------------------------------

    def _vote_absent(self, state: LedgerState) -> Step:
        term = state.get_term(self._hub)
        accused = self._random.choice(
            [term.auctioneer, *(self._tools.get_node(n) for n in self._market.validator_names)]
        )
        for name in self._random.sample(
            self._market.validator_names, len(self._market.validator_names) // 2
        ):
            body = AbsenceVote(self._hub, term.number, accused)
            self._market.submit_anywhere(self.sign(name, body))
        return self._validator(), AbsenceVote(self._hub, term.number, accused)

    def _return(self, state: LedgerState) -> Step | None:
        away = [n for n in state.get_validators(self._hub) if state.may_return(self._hub, n)]
        if not away:
            return None
        return self._tools.get_name(self._random.choice(away)), ReturnToDuty(self._hub)

    def _stake(self, state: LedgerState) -> Step | None:
        name = self._random.choice(self._market.names)
        amount = self._draw_micros(3 * MICROS_PER_CREDIT)
        if self._market.is_villain(self._tools.get_node(name)):
            stakes = {node: state.get_stake_micros(node) for node in self._market.ids}
            evil = sum(stakes[node] for node in self._market.history.villains)
            if 4 * (evil + amount) >= sum(stakes.values()):
                return None
        return name, Stake(amount)

    def _unstake(self, state: LedgerState) -> Step | None:
        """Let someone honest leave, one at a time, as far as villains then stay below a third."""
        now_ms = self._market.clock.now_ms
        honest = [node.name for node in self._market.honest]
        name = self._random.choice(honest)
        stake = state.get_stake_micros(self._tools.get_node(name))
        amount = stake if self._random.random() < 0.5 else stake // 3
        powers = dict(state.get_consensus_validators())
        total = sum(powers.values())
        evil = sum(power for node, power in powers.items() if self._market.is_villain(node))
        largest = max(powers.values())
        is_safe = 4 * evil < total - amount and 3 * largest < total - amount
        if amount == 0 or not is_safe or now_ms < self._unstaked_at_ms + 10_000:
            return None
        self._unstaked_at_ms = now_ms
        return name, Unstake(amount)

    def _govern(self, state: LedgerState) -> Step:
        name = self._validator()
        epoch = state.ask_epochs[self._hub].number
        value = self._random.choice((2, 3))
        for other in self._market.validator_names:
            if self._random.random() < 0.7:
                body = VoteParameter("bid_fee_micros", value)
                self._market.submit_anywhere(self.sign(other, body))
        return name, VoteModel(self._hub, epoch + 1, Hash(bytes([value]) * 32))

    # --- asks ------------------------------------------------------------------------------------

    def _draw_prices(self) -> Prices:
        return Prices(*(self._random.randint(10, 1_000) for _ in range(3)))

    def _post_ask(self, state: LedgerState) -> Step:
        return self._validator(), PostAsk(Ask(self._hub, self._draw_prices()))

    def _deposit(self, state: LedgerState) -> Step:
        amount = self._draw_micros(2 * MICROS_PER_CREDIT)
        if self._random.random() < 0.2:
            return self._validator(), WithdrawDeposit(amount)
        return self._validator(), PlaceDeposit(amount + MICROS_PER_CREDIT)

    def _commit_ask(self, state: LedgerState) -> Step:
        name, epoch = self._validator(), state.ask_epochs[self._hub].number + 1
        prices = self._draw_prices()
        commitment: CommitAsk = self._tools.make_commitment(name, epoch, prices)
        self._commitments[name, epoch] = (prices, commitment.commitment)
        return name, commitment

    def _reveal_ask(self, state: LedgerState) -> Step | None:
        epoch = state.ask_epochs[self._hub].number
        known = [name for name, number in self._commitments if number == epoch]
        if not known:
            return None
        name = self._random.choice(known)
        reveal: RevealAsk = self._tools.make_reveal(name, epoch, self._commitments[name, epoch][0])
        return name, reveal

    # --- probes ----------------------------------------------------------------------------------

    def make_probe(self) -> Signed[Transaction]:
        """Make a transaction that any working market takes in."""
        return self.sign(PROBER, FundEscrow(self._hub, 1))

    def make_probe_settlement(self, view: LedgerNode) -> tuple[TotalKey, Signed[Transaction]]:
        """Make a settlement that any working market pays."""
        state = view.state
        term, provider = state.get_term(self._hub), view.name
        key = TotalKey(
            self._hub,
            term.number,
            self._tools.get_id(PROBER),
            self._channels[PROBER],
            NodeId(self._tools.get_id(provider)),
        )
        self._market.history.cosigned[key] = 1
        entry = self._tools.make_entry(
            PROBER,
            provider,
            term.number,
            1,
            channel=key.channel,
            auctioneer=self._tools.get_name(term.auctioneer),
        )
        return key, self.sign(provider, Settle((entry,)))


def list_accounts(names: tuple[str, ...]) -> tuple[tuple[str, AccountId], ...]:
    """Name the accounts that genesis gives money to."""
    tools = LedgerChain()
    return tuple((name, tools.get_id(name)) for name in (*ACCOUNTS, PROBER, *names))
