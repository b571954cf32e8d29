"""What tests that kill real nodes hold against a market from outside.

Nothing here asks a node whether it is right. `Wallet` keeps what requesters signed to owe,
`VoteBook` every vote that a validator has on disk, `Pulse` when rounds complete; `audit` replays
the chain and compares it with all of these and with every node's SQLite file.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from iemas import AsyncClient, BidOptions, wire
from iemas.client._channel import Channel
from iemas.consensus.messages import CommittedBlock, SignRecord, ValidRecord
from iemas.consensus.voting import Vote
from iemas.core.auction import Allocation
from iemas.core.envelope import Signed
from iemas.core.errors import APIConnectionError, IemasError, UnmatchedError
from iemas.core.execution import ChannelTotal
from iemas.core.ready import RecordKind
from iemas.core.types import AccountId, Prices
from iemas.ledger.transfer import ISSUANCE, LedgerAccount, TransferReason, get_available, get_escrow
from iemas.v1 import market_service_pb2 as pb
from node.cli.history import History
from node.local_market import LocalMarket
from node.local_market.probe import get_term
from tests.market_checks import list_running, replay_history, wait_in_step, wait_settled
from tests.totals import watch_totals

BELOW_EVERY_ASK = BidOptions(prices=Prices(1, 1, 1))


async def ask_term(market: LocalMarket) -> pb.GetTermResponse:
    """Give the term as the first node that answers knows it."""
    for address in list_running(market):
        with contextlib.suppress(APIConnectionError):
            return await get_term(address)
    raise AssertionError("no node answers")


# --- when rounds complete ------------------------------------------------------------------------


class Outcome(NamedTuple):
    """The outcome of a round, as a bidder was given it."""

    at_s: float
    term: int
    round: int


class Pulse:
    """Bids below every ask, some a second: each outcome is a whole round, and sells nothing."""

    def __init__(self, client: AsyncClient, *, bidders: int = 3, pause_s: float = 0.1) -> None:
        self.outcomes: list[Outcome] = []
        self.failures: Counter[str] = Counter()
        self.bid_left = asyncio.Event()
        self._client = client
        self._pause_s = pause_s
        self._bidders = bidders
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._bid(n)) for n in range(self._bidders)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _bid(self, number: int) -> None:
        await asyncio.sleep(self._pause_s * number / self._bidders)
        while True:
            self.bid_left.set()
            try:
                await self._client.completions.create(
                    prompt=(1, 2, 3), max_tokens=1, bid=BELOW_EVERY_ASK, timeout=30
                )
            except UnmatchedError as error:
                term, round_number = error.operands["term"], error.operands["round"]
                self.outcomes.append(Outcome(time.monotonic(), int(term), int(round_number)))  # type: ignore[call-overload]
            except IemasError as error:
                self.failures[type(error).__name__] += 1
            await asyncio.sleep(self._pause_s)

    async def wait_outcome(self, after_s: float, *, after_term: int, limit_s: float) -> Outcome:
        """Wait for the first outcome after a moment, of a later term than that one."""
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + limit_s):
            while True:
                for outcome in self.outcomes:
                    if outcome.at_s > after_s and outcome.term > after_term:
                        return outcome
                await asyncio.sleep(0.005)

    async def catch_round(self, into_s: float) -> None:
        """Return so long after a bid left: in the midst of its round."""
        self.bid_left.clear()
        await self.bid_left.wait()
        await asyncio.sleep(into_s)

    def measure_calm(self, until_s: float) -> float:
        """Give the longest time without an outcome until a moment, in seconds."""
        times = [outcome.at_s for outcome in self.outcomes if outcome.at_s <= until_s]
        return max(b - a for a, b in zip(times, [*times[1:], until_s], strict=True))


# --- what was signed to be owed ------------------------------------------------------------------


@dataclass
class Wallet:
    """Every running total that watched channels signed, by (account, provider, term, channel).

    `broken` are those of which a task ended without its last receipt: there the provider may hold
    an earlier total than the last one.
    """

    signed: dict[tuple[bytes, bytes, int, int], list[int]] = field(
        default_factory=lambda: defaultdict(list)
    )
    broken: set[tuple[bytes, bytes, int, int]] = field(default_factory=set)

    async def watch(self, client: AsyncClient) -> None:
        """Note from now on what a client's channel signs."""
        _, buyer = await client._core.open()
        channel: Channel = buyer._channel
        abandon, void = channel.abandon_task, channel.void_task

        def name(terms: Allocation) -> tuple[bytes, bytes, int, int]:
            return (channel.account, terms.provider, terms.term, channel.channel_id)

        def note_total(total: ChannelTotal) -> None:
            key = (total.account, total.provider, total.term, total.channel)
            self.signed[key].append(total.total_micros)

        def abandon_task(allocation: Signed[Allocation], amount_micros: int) -> None:
            self.broken.add(name(allocation.message))
            abandon(allocation, amount_micros)

        def void_task(allocation: Signed[Allocation]) -> None:
            self.broken.add(name(allocation.message))
            void(allocation)

        watch_totals(channel, note_total)
        channel.abandon_task = abandon_task  # type: ignore[method-assign]
        channel.void_task = void_task  # type: ignore[method-assign]

    def get_bounds(self, account: bytes, provider: bytes) -> tuple[int, int]:
        """Give the least and the most that a provider may have been paid by an account."""
        least = most = 0
        for key, totals in self.signed.items():
            if key[:2] == (account, provider):
                least += min(totals) if key in self.broken else totals[-1]
                most += max(totals) if key in self.broken else totals[-1]
        return least, most


# --- what was voted ------------------------------------------------------------------------------


class VoteBook:
    """Every vote on the nodes' disks: in sign records, in valid blocks, and in commits."""

    def __init__(self, market: LocalMarket) -> None:
        self._market = market
        self._values: dict[tuple[bytes, int, int, int], set[bytes | None]] = defaultdict(set)
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Read what each validator signs last, again and again: it keeps one height only."""
        while True:
            await asyncio.to_thread(self.read_signed)
            await asyncio.sleep(0.05)

    def read_signed(self) -> None:
        """Take in what each validator has signed at the height that it is in."""
        for path in list_databases(self._market):
            with contextlib.suppress(sqlite3.OperationalError), open_database(path) as database:
                for kind, value in read_records(database, RecordKind.SIGNED, RecordKind.VALID):
                    if kind == RecordKind.SIGNED:
                        self._add(wire.decode(SignRecord, value).votes)
                    else:
                        self._add(wire.decode(ValidRecord, value).prevotes)

    def read_commits(self) -> None:
        """Take in the commits that each node stores."""
        for path in list_databases(self._market):
            with open_database(path) as database:
                for _, value in read_records(database, RecordKind.BLOCK):
                    self._add(wire.decode(CommittedBlock, value).commit.precommits)

    def _add(self, votes: tuple[Signed[Vote], ...]) -> None:
        for vote in votes:
            v = vote.message
            place = (vote.signer_id, v.height, v.round, v.kind.value)
            self._values[place].add(v.block_hash)

    @property
    def places(self) -> int:
        """How many different (validator, height, round, kind) were seen."""
        return len(self._values)

    def list_double(self) -> list[tuple[bytes, int, int, int]]:
        """Give where a validator voted for two values."""
        return [place for place, values in self._values.items() if len(values) > 1]


# --- the nodes' SQLite files ---------------------------------------------------------------------


def list_databases(market: LocalMarket) -> list[Path]:
    """Give the nodes' SQLite files."""
    return [market.home.get_data_dir(name) / "node.db" for name in market.nodes]


@contextlib.contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a node's file to read, beside the node."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        yield database


def read_records(database: sqlite3.Connection, *kinds: RecordKind) -> list[tuple[str, bytes]]:
    """Read all records of some kinds."""
    marks = ", ".join("?" * len(kinds))
    query = f"SELECT kind, value FROM records WHERE kind IN ({marks}) ORDER BY kind, key"
    return database.execute(query, kinds).fetchall()


Row = tuple[int, int, str, str, int, str]


def read_journal(path: Path) -> tuple[dict[str, int], list[Row]]:
    """Read a node's balances and transfers; the balances must be what the transfers add up to."""
    with open_database(path) as database:
        database.execute("BEGIN")
        balances = dict(database.execute("SELECT account, balance_micros FROM accounts"))
        rows: list[Row] = database.execute(
            "SELECT height, idx, debit, credit, amount_micros, reason FROM transfers "
            "ORDER BY height, idx"
        ).fetchall()
    assert balances == add_up(rows), path
    assert sum(balances.values()) == 0, path
    return balances, rows


def add_up(rows: list[Row]) -> dict[str, int]:
    """Give the balances that transfers lead to."""
    balances: Counter[str] = Counter()
    for _, _, debit, credit, amount, _ in rows:
        balances[debit] -= amount
        balances[credit] += amount
    return dict(balances)


def check_ledger_files(market: LocalMarket, history: History) -> list[Row]:
    """Every node's tables hold what the replay gives; give the transfers."""
    expected = {
        LedgerAccount(balance.kind, account, balance.hub).name: balance.micros
        for account, record in history.state.accounts.items()
        for balance in record.balances
    }
    journals = [read_journal(path)[1] for path in list_databases(market)]
    longest = max(journals, key=len)
    for rows in journals:
        assert rows == longest[: len(rows)]
    until = [row for row in longest if row[0] <= history.height]
    assert {name: micros for name, micros in add_up(until).items() if micros} == {
        **expected,
        ISSUANCE.name: -history.findings.supply_micros,
    }
    return longest


def check_payments(market: LocalMarket, wallet: Wallet, rows: list[Row]) -> None:
    """Every provider was paid what requesters signed, once."""
    genesis = market.require_genesis()
    paid: Counter[tuple[str, str]] = Counter()
    for _, _, debit, credit, amount, reason in rows:
        if reason == TransferReason.SETTLEMENT:
            paid[debit, credit] += amount
    pairs = {key[:2] for key in wallet.signed}
    names = {
        (get_escrow(AccountId(a), genesis.hub).name, get_available(AccountId(p)).name): (a, p)
        for a, p in pairs
    }
    assert paid.keys() <= names.keys()
    for name, (account, provider) in names.items():
        least, most = wallet.get_bounds(account, provider)
        assert least <= paid[name] <= most, (market.find_node(provider).name, least, paid, most)
    exact = len(wallet.signed) - len(wallet.broken)
    print(f"paid {sum(paid.values())}: {exact} of {len(wallet.signed)} totals are whole tasks")


# --- everything ----------------------------------------------------------------------------------


async def audit(market: LocalMarket, wallet: Wallet, votes: VoteBook) -> History:
    """Wait until all is settled; then re-check everything from outside."""
    await wait_settled(market, same_rounds=False)
    await wait_in_step(market)
    history = await replay_history(market)
    assert history.state.offences == {}
    rows = check_ledger_files(market, history)
    check_payments(market, wallet, rows)
    votes.read_signed()
    votes.read_commits()
    assert votes.list_double() == []
    # A commit alone holds three of four validators' precommits.
    assert votes.places >= 3 * history.height
    return history
