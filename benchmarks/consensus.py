"""Consensus of real processes: gRPC with mutual TLS, SQLite with fsync, one process a node.

A local market of `--nodes` validators; the load and all nodes share the machine. Three phases of
`--seconds` each. First one client submits one small transaction after the other, to each node in
turn: the time from submitting to the recorded result is that of one height begun on demand. Then
every node has `--clients` clients that do so at once: heights a second. Then providers settle
distinct co-signed totals, `--batch` in a transaction, as fast as the ledger takes them. Figures:

    p50_ms, p99_ms                     of the first phase
    heights_per_s, transactions_per_s  of the second phase
    loaded_p50_ms, loaded_p99_ms       of the second phase: a transaction waits for its turn too
    cpu_ms_per_height                  of one node, on average, in the second phase
    totals_per_s                       of the third phase
    rss_mb                             of the largest node, after all

Targets at 4 nodes: ≥ 30 heights/s, p50 ≤ 40 ms, ≥ 500 totals/s.

    python -m benchmarks.consensus --nodes 4 --json -
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks._report import add_json_option, write_report
from iemas import tls, wire
from iemas.core.auction import Allocation
from iemas.core.envelope import Signed
from iemas.core.execution import ChannelTotal
from iemas.core.types import AccountId, ChannelId, HubId, Lateness, NodeId, Prices
from iemas.genesis import load_genesis
from iemas.keystore import load_key
from iemas.ledger.transaction import (
    FundEscrow,
    Settle,
    SettlementEntry,
    Transaction,
    TransactionBody,
)
from iemas.tls import parse_address
from iemas.v1 import ledger_pb2
from iemas.v1 import market_service_pb2 as pb
from iemas.v1.market_service_pb2_grpc import MarketServiceStub
from node.local_market import Funds, LocalMarket, MarketPlan
from node.local_market.market import RunningNode
from node.local_market.probe import get_status, get_term

TERM_MS = 3_600_000
FUNDS = Funds(10**9, 10**9)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BUYERS = 8
SELLERS = 4


class Sender:
    """An account that has its transactions ordered through one node."""

    def __init__(self, market: LocalMarket, name: str, stub: Any) -> None:
        _, chain_id, _ = load_genesis(market.home.genesis_file)
        identity = load_key(market.home.get_account_key(name))
        self.account = AccountId(identity.node_id)
        self.signer = wire.WireSigner(identity, chain_id)
        self._stub = stub
        self._nonces = itertools.count(1)

    def make_request(self, body: TransactionBody) -> pb.SubmitTransactionRequest:
        """Sign a transaction under the next nonce."""
        signed = self.signer.sign(Transaction(self.account, next(self._nonces), body))
        return pb.SubmitTransactionRequest(transaction=wire.to_proto(signed.envelope))

    async def send(self, request: pb.SubmitTransactionRequest) -> float:
        """Have it ordered; give the time until the recorded result is here, in ms."""
        started = time.perf_counter()
        answer = await self._stub.SubmitTransaction(request, timeout=30)
        if answer.code != ledger_pb2.RESULT_CODE_OK or answer.detail:
            raise RuntimeError(f"refused with {answer.code} {answer.detail}")
        return (time.perf_counter() - started) * 1_000


class Totals:
    """Makes settlement entries that the ledger accepts, each of a channel of its own."""

    def __init__(self, market: LocalMarket, auctioneer: NodeId) -> None:
        genesis, chain_id, _ = load_genesis(market.home.genesis_file)
        self._hub = genesis.hub
        name = market.find_node(auctioneer).name
        key = load_key(market.home.get_node_key(name))
        self._auctioneer = wire.WireSigner(key, chain_id)
        self._channels = itertools.count(1)

    def make_settlement(self, buyers: list[Sender], seller: Sender, count: int) -> Settle:
        """Make one transaction's worth of totals of one micro-credit each."""
        return Settle(tuple(self._make(buyers[n % len(buyers)], seller) for n in range(count)))

    def _make(self, buyer: Sender, seller: Sender) -> SettlementEntry:
        channel, provider = ChannelId(next(self._channels)), NodeId(seller.account)
        allocation: Signed[Allocation] = self._auctioneer.sign(
            Allocation(
                hub=self._hub,
                term=0,
                round=0,
                bid_hash=bytes(32),
                account=buyer.account,
                channel=channel,
                provider=provider,
                prompt_tokens=10,
                cached_tokens=0,
                max_tokens=10,
                rates=Prices(1, 1, 1),
                lateness=Lateness(),
                price_micros=1,
                reserved_micros=1,
                channel_reserved_micros=1,
                expected_ttft_ms=1,
                expires_at_ms=1,
                transcript_hash=bytes(32),
            )
        )
        total = ChannelTotal(self._hub, 0, buyer.account, channel, provider, 1, 1)
        return SettlementEntry(allocation, buyer.signer.sign(total))


def read_cpu_ms(pid: int) -> float:
    """Read how much processor time a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1_000 / TICKS_PER_S


def read_rss_mb(pid: int) -> float:
    """Read how much memory a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1_024


async def repeat(seconds: float, act: Callable[[], Awaitable[float]]) -> list[float]:
    """Do one after the other for so long; give what each gave."""
    results, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        results.append(await act())
    return results


def summarise(latencies: list[float], prefix: str = "") -> dict[str, float]:
    """Give the median and the 99th percentile of times in ms."""
    return {
        f"{prefix}p50_ms": round(statistics.median(latencies), 1),
        f"{prefix}p99_ms": round(statistics.quantiles(latencies, n=100)[98], 1),
    }


async def measure_one_by_one(senders: list[Sender], hub: HubId, seconds: float) -> list[float]:
    """Have one small transaction ordered after the other, through each node in turn."""
    turns = itertools.cycle(senders)

    async def send() -> float:
        sender = next(turns)
        return await sender.send(sender.make_request(FundEscrow(hub, 1)))

    await repeat(1, send)
    return await repeat(seconds, send)


async def measure_heights(
    market: LocalMarket, senders: list[Sender], seconds: float
) -> dict[str, float]:
    """Keep every sender at one small transaction after the other, all at once."""
    hub = market.require_genesis().hub
    nodes = list(market.nodes.values())
    before, cpu_before = await read_height(nodes[0]), sum(read_cpu_ms(n.pid) for n in nodes)
    started = time.monotonic()

    def keep_sending(sender: Sender) -> Awaitable[list[float]]:
        return repeat(seconds, lambda: sender.send(sender.make_request(FundEscrow(hub, 1))))

    found = await asyncio.gather(*(keep_sending(sender) for sender in senders))
    elapsed_s = time.monotonic() - started
    heights = await read_height(nodes[0]) - before
    cpu_ms = sum(read_cpu_ms(node.pid) for node in nodes) - cpu_before
    latencies = [latency for one in found for latency in one]
    return {
        "heights_per_s": round(heights / elapsed_s, 1),
        "transactions_per_s": round(len(latencies) / elapsed_s, 1),
        **summarise(latencies, "loaded_"),
        "cpu_ms_per_height": round(cpu_ms / heights / len(nodes), 2),
    }


async def read_height(node: RunningNode) -> int:
    """Ask a node for its height."""
    return (await get_status(parse_address(node.address))).height


async def measure_totals(
    market: LocalMarket,
    buyers: list[Sender],
    sellers: list[Sender],
    *,
    batch: int,
    seconds: float,
) -> float:
    """Settle totals that were signed before; give how many a second."""
    term = await get_term(parse_address(market.bootstrap[0]))
    totals = Totals(market, NodeId(term.auctioneer))
    most = int(seconds * 2_000 / len(sellers) / batch) + 1
    prepared = {
        id(seller): [
            seller.make_request(totals.make_settlement(buyers, seller, batch)) for _ in range(most)
        ]
        for seller in sellers
    }
    started = time.monotonic()

    async def settle(seller: Sender) -> int:
        settled = 0
        for request in prepared[id(seller)]:
            if time.monotonic() > started + seconds:
                break
            await seller.send(request)
            settled += batch
        return settled

    settled = await asyncio.gather(*(settle(seller) for seller in sellers))
    return round(sum(settled) / (time.monotonic() - started), 1)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start the nodes, measure both phases, stop everything."""
    count = options.nodes * options.clients
    clients = [f"client-{number}" for number in range(count)]
    buyers = [f"buyer-{number}" for number in range(BUYERS)]
    sellers = [f"seller-{number}" for number in range(SELLERS)]
    plan = MarketPlan(
        name="consensus",
        nodes=1,
        validators=options.nodes,
        params={"term_ms": str(TERM_MS), "block_interval_ms": "1"},
        accounts=dict.fromkeys((*clients, *buyers, *sellers), FUNDS),
    )
    with tempfile.TemporaryDirectory(prefix="iemas-consensus-") as folder:
        async with LocalMarket(Path(folder)) as market:
            await market.start(plan, lambda _: None)
            nodes = list(market.nodes.values())
            channels = [await tls.connect(parse_address(node.address)) for node in nodes]
            stubs = itertools.cycle([MarketServiceStub(channel) for channel in channels])
            made = {n: Sender(market, n, next(stubs)) for n in (*clients, *sellers, *buyers)}
            senders, hub = [made[name] for name in clients], market.require_genesis().hub
            alone = await measure_one_by_one(senders[: options.nodes], hub, options.seconds)
            figures: dict[str, Any] = summarise(alone)
            figures |= await measure_heights(market, senders, options.seconds)
            figures["totals_per_s"] = await measure_totals(
                market,
                [made[name] for name in buyers],
                [made[name] for name in sellers],
                batch=options.batch,
                seconds=options.seconds,
            )
            figures["rss_mb"] = round(max(read_rss_mb(node.pid) for node in nodes), 1)
            for channel in channels:
                await channel.close()
            return figures


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.consensus", description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=1, help="clients a node")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each phase")
    parser.add_argument("--batch", type=int, default=50, help="totals a settlement")
    add_json_option(parser)
    options = parser.parse_args()
    figures = asyncio.run(run(options))
    names = ("nodes", "clients", "seconds", "batch")
    parameters = {name: getattr(options, name) for name in names}
    write_report(options.json, name="consensus", parameters=parameters, figures=figures)


if __name__ == "__main__":
    main()
