"""The ledger of real processes when nodes are killed: any one of four, for long, then all of them.

Source: design §13; docs/spec/engine.md §1.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from iemas import tls, wire
from iemas.core.types import AccountId
from iemas.genesis import load_genesis
from iemas.keystore import load_key
from iemas.ledger.transaction import FundEscrow, Transaction
from iemas.tls import parse_address
from iemas.v1 import ledger_pb2
from iemas.v1 import market_service_pb2 as pb
from iemas.v1.market_service_pb2_grpc import MarketServiceStub
from node.local_market import LocalMarket, MarketPlan
from node.local_market.market import RunningNode
from node.local_market.probe import get_status
from tests.market_checks import check_history, wait_in_step

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PLAN = MarketPlan(
    name="faults", nodes=1, validators=4, params={"term_ms": "3000", "block_interval_ms": "1"}
)
AWAY_BLOCKS = int(os.environ.get("IEMAS_AWAY_BLOCKS", "40"))
"""For how many blocks a node is away; from 1,000 on it needs a snapshot to be back."""

NAMES = PLAN.names


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMarket]:
    async with LocalMarket(tmp_path_factory.mktemp("faults")) as started:
        await started.start(PLAN, lambda _: None)
        yield started


class Payer:
    """The customer, who has one transaction after the other ordered."""

    def __init__(self, market: LocalMarket) -> None:
        self._genesis, chain_id, _ = load_genesis(market.home.genesis_file)
        identity = load_key(market.customer_key)
        self.account = AccountId(identity.node_id)
        self._signer = wire.WireSigner(identity, chain_id)

    async def fund(self, node: RunningNode) -> float:
        """Fund an escrow through a node; give how long it took, in seconds."""
        async with await tls.connect(parse_address(node.address)) as channel:
            stub = MarketServiceStub(channel)
            account = await stub.GetAccount(pb.GetAccountRequest(account=self.account))
            body = FundEscrow(self._genesis.hub, 1)
            signed = self._signer.sign(Transaction(self.account, account.nonce + 1, body))
            started = time.monotonic()
            request = pb.SubmitTransactionRequest(transaction=wire.to_proto(signed.envelope))
            answer = await stub.SubmitTransaction(request, timeout=20)
            assert answer.code == ledger_pb2.RESULT_CODE_OK
            return time.monotonic() - started


@pytest.mark.parametrize("name", NAMES)
async def test_any_one_of_four_is_killed_and_the_ledger_goes_on(
    market: LocalMarket, name: str
) -> None:
    payer, other = Payer(market), market.nodes[next(n for n in NAMES if n != name)]
    await market.kill_node(name)
    for _ in range(5):
        assert await payer.fund(other) < 5
    height = (await get_status(parse_address(other.address))).height
    await market.start_node(name)
    await wait_in_step(market, height)
    assert await payer.fund(market.nodes[name]) < 5


@pytest.mark.timeout(900)
async def test_a_node_that_was_away_for_long_catches_up_while_the_market_works(
    market: LocalMarket,
) -> None:
    payer, name, other = Payer(market), NAMES[3], market.nodes[NAMES[0]]
    address = parse_address(other.address)
    await market.kill_node(name)
    left_at = (await get_status(address)).height
    stop, submitted = asyncio.Event(), 0

    async def keep_submitting() -> None:
        nonlocal submitted
        while not stop.is_set():
            await payer.fund(other)
            submitted += 1

    while (await get_status(address)).height < left_at + AWAY_BLOCKS:
        await payer.fund(other)
    work = asyncio.create_task(keep_submitting())
    started = time.monotonic()
    node = await market.start_node(name)
    target = (await get_status(address)).height
    while (await get_status(parse_address(node.address))).height < target:
        assert time.monotonic() < started + 60
        await asyncio.sleep(0.05)
    print(f"{target - left_at} blocks in {time.monotonic() - started:.1f} s")
    stop.set()
    await work
    assert submitted > 0
    await wait_in_step(market, target)
    assert await payer.fund(node) < 5


async def test_two_of_four_are_killed_and_the_ledger_waits_for_one_of_them(
    market: LocalMarket,
) -> None:
    payer = Payer(market)
    for name in NAMES[2:]:
        await market.kill_node(name)
    waiting = asyncio.create_task(payer.fund(market.nodes[NAMES[0]]))
    await asyncio.sleep(2)
    assert not waiting.done()
    await market.start_node(NAMES[2])
    await waiting
    await market.start_node(NAMES[3])
    await wait_in_step(market)


async def test_all_are_killed_and_go_on_where_they_were(market: LocalMarket) -> None:
    payer = Payer(market)
    await payer.fund(market.nodes[NAMES[0]])
    height = (await get_status(parse_address(market.nodes[NAMES[0]].address))).height
    await asyncio.gather(*(market.kill_node(name) for name in NAMES))
    for name in NAMES:
        await market.start_node(name)
    await market._wait_open()
    assert await wait_in_step(market, height) >= height
    await payer.fund(market.nodes[NAMES[1]])
    await check_history(market)
