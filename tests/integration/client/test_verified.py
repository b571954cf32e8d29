"""Verified answers from real nodes over gRPC, some of which lie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from iemas import (
    AsyncClient,
    Client,
    ConfigurationError,
    LedgerForkError,
    UnverifiedBalanceError,
    UnverifiedSettlementError,
    tls,
    wire,
)
from iemas.client import _light
from iemas.consensus.messages import Commit, LightBlock
from iemas.core.vote import Vote, VoteKind
from iemas.genesis import load_genesis
from iemas.keystore import load_key
from iemas.v1 import market_service_pb2 as pb
from iemas.v1 import market_service_pb2_grpc
from node.local_market import Funds, LocalMarket, MarketPlan
from node.local_market.plan import CUSTOMER
from tests.lying_node import Lie, cut, isolate, lying_node

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

SIMULATED = ("--decode-ms", "1", "--prefill-us-per-token", "10")


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let clients of a test know nothing that those of another one verified."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMarket]:
    plan = MarketPlan(
        name="proofs",
        params={"term_ms": "3000", "idle_block_interval_ms": "500"},
        accounts={CUSTOMER: Funds()},
        simulated_arguments=SIMULATED,
    )
    async with LocalMarket(tmp_path_factory.mktemp("market")) as started:
        await started.start(plan, lambda _line: None)
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def client(market: LocalMarket, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        market.bootstrap,
        key=market.customer_key,
        genesis=market.home.genesis_file,
        state_dir=tmp_path / "own",
    ) as made:
        yield made


# --- honest nodes --------------------------------------------------------------------------------


async def test_a_balance_is_proven_after_every_transaction(client: AsyncClient) -> None:
    before = await client.balance(verify=True)
    assert before.verified
    assert before.exists
    receipt = await client.fund_escrow(1_000)
    after = await client.balance(verify=True)
    assert after.height >= receipt.height
    assert after.escrow_micros == before.escrow_micros + 1_000
    assert after.available_micros == before.available_micros - 1_000
    claimed = await client.balance()
    assert not claimed.verified
    assert claimed.escrow_micros == after.escrow_micros
    assert claimed.allowance_micros == after.allowance_micros


async def test_that_an_account_does_not_exist_is_proven(client: AsyncClient) -> None:
    balance = await client.balance("ab" * 32, verify=True)
    assert (balance.exists, balance.verified, balance.available_micros) == (False, True, 0)


async def test_what_is_settled_is_proven(client: AsyncClient, market: LocalMarket) -> None:
    completion = await client.chat.completions.create(
        messages=[{"role": "user", "content": "Name a prime."}], max_tokens=8
    )
    settlement = await client.get_settlement(completion.allocation)
    assert settlement.is_open
    assert settlement.signed_micros == completion.receipt.amount_micros
    async with asyncio.timeout(15):
        while not settlement.is_settled:
            await asyncio.sleep(0.2)
            settlement = await client.get_settlement(completion.allocation)
    assert settlement.is_settled
    assert settlement.settled_micros == completion.receipt.amount_micros > 0
    assert settlement.provider == completion.market.winner


async def test_another_client_goes_on_from_a_trusted_block(
    client: AsyncClient, market: LocalMarket
) -> None:
    await client.balance(verify=True)
    start = client.trusted_block
    assert start is not None
    async with AsyncClient(market.bootstrap, key=market.customer_key, trusted_block=start) as other:
        assert other.trusted_block is None
        assert (await other.balance(verify=True)).height >= start[0] - 1
    async with AsyncClient(
        market.bootstrap, key=market.customer_key, trusted_block=(start[0], "ab" * 32)
    ) as other:
        with pytest.raises(UnverifiedBalanceError, match="no node has the trusted block"):
            await other.balance(verify=True)


async def test_a_trusted_block_is_height_and_hash(market: LocalMarket) -> None:
    with pytest.raises(ConfigurationError, match="trusted_block"):
        AsyncClient(market.bootstrap, key=market.customer_key, trusted_block=(1, "ab"))


async def test_the_sync_client_verifies_too(market: LocalMarket) -> None:
    def verify() -> None:
        with Client(market.bootstrap, key=market.customer_key) as client:
            balance = client.balance(verify=True)
            assert balance.verified
            assert client.trusted_block is not None
            assert client.trusted_block[0] > balance.height

    await asyncio.to_thread(verify)


# --- lies ----------------------------------------------------------------------------------------


def swap(answer: Any) -> None:
    """Show the hold where the account should be."""
    answer.account.CopyFrom(answer.hold)


def change_root(answer: Any) -> None:
    payload = bytearray(answer.block.header.payload)
    payload[-40] ^= 1
    answer.block.header.payload = bytes(payload)


def drop_votes(answer: Any) -> None:
    del answer.block.commit.precommits[1:]


def make_up_validators(answer: Any) -> None:
    answer.block.validators[0].power += 10**9


def forget_block(answer: Any) -> None:
    answer.ClearField("block")


LIES: list[tuple[Lie, str]] = [
    (cut("account"), "account"),
    (cut("hold"), "hold"),
    (cut("current_term"), "current_term"),
    (swap, "account"),
    (lambda a: a.ClearField("account"), "account"),
    (change_root, "block"),
    (drop_votes, "block"),
    (make_up_validators, "block"),
    (forget_block, "block"),
]


@pytest.mark.parametrize(("lie", "field"), LIES)
async def test_a_lying_node_convinces_nobody(market: LocalMarket, lie: Lie, field: str) -> None:
    async with (
        lying_node(market.bootstrap[0], GetAccountProof=lie) as (address, servicer),
        AsyncClient(address, key=market.customer_key, genesis=market.home.genesis_file) as client,
    ):
        await isolate(client)
        with pytest.raises(UnverifiedBalanceError) as caught:
            await client.balance(verify=True)
        assert caught.value.field == field  # type: ignore[attr-defined]
        assert "GetAccountProof" in servicer.asked


async def test_the_first_node_cannot_hide_the_others(market: LocalMarket) -> None:
    """Who is auctioneer is signed by itself and names its address: the client asks there too."""
    async with (
        lying_node(market.bootstrap[0], GetAccountProof=drop_votes) as (address, servicer),
        AsyncClient(address, key=market.customer_key) as client,
    ):
        assert (await client.balance(verify=True)).verified
        assert "GetAccountProof" in servicer.asked


async def test_a_lying_node_is_passed_over_for_an_honest_one(market: LocalMarket) -> None:
    async with (
        lying_node(market.bootstrap[0], GetAccountProof=drop_votes) as (address, servicer),
        AsyncClient([address, *market.bootstrap], key=market.customer_key) as client,
    ):
        assert (await client.balance(verify=True)).verified
        assert "GetAccountProof" in servicer.asked


async def test_powers_are_those_of_the_trusted_block(market: LocalMarket) -> None:
    """A block that is trusted already is known by its hash, which does not cover its voters."""
    first: list[bytes] = []

    def repeat_with_more_power(answer: Any) -> None:
        first.append(answer.SerializeToString())
        if len(first) > 1:
            answer.ParseFromString(first[0])
            make_up_validators(answer)

    async with (
        lying_node(market.bootstrap[0], GetTablesProof=repeat_with_more_power) as (address, _),
        AsyncClient(address, key=market.customer_key) as client,
    ):
        await isolate(client)
        honest = await client.ledger.validators()
        assert await client.ledger.validators() == honest
        assert len(first) == 2


async def test_an_old_but_true_answer_is_not_the_newest(
    market: LocalMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liar repeats its first answer for ever: true then, and behind what is known since."""
    monkeypatch.setattr(_light, "PATIENCE_SECONDS", 0.0)
    first: list[bytes] = []

    def repeat(answer: Any) -> None:
        first.append(answer.SerializeToString())
        answer.ParseFromString(first[0])

    async with (
        lying_node(market.bootstrap[0], GetAccountProof=repeat) as (address, _),
        AsyncClient(address, key=market.customer_key) as client,
        AsyncClient(market.bootstrap, key=market.customer_key) as honest,
    ):
        await isolate(client)
        old = await client.balance(verify=True)
        client._core._funds._recorded_height = (await honest.fund_escrow(1)).height  # type: ignore[union-attr]
        with pytest.raises(UnverifiedBalanceError, match="was asked for") as caught:
            await client.balance(verify=True)
        assert caught.value.field == "height"  # type: ignore[attr-defined]
        assert old.verified


async def test_a_settlement_cannot_be_made_up(market: LocalMarket, client: AsyncClient) -> None:
    completion = await client.chat.completions.create(
        messages=[{"role": "user", "content": "Name a colour."}], max_tokens=4
    )
    async with (
        lying_node(market.bootstrap[0], GetSettlementProof=cut("total")) as (address, _),
        AsyncClient(address, key=market.customer_key) as deceived,
    ):
        await isolate(deceived)
        with pytest.raises(UnverifiedSettlementError) as caught:
            await deceived.get_settlement(completion.allocation)
        assert caught.value.field == "total"  # type: ignore[attr-defined]


async def test_a_fork_is_evidence(market: LocalMarket) -> None:
    """Here all validators' keys are at hand: together they sign two blocks of one height."""
    _, chain_id, _ = load_genesis(market.home.genesis_file)
    keys = [load_key(market.home.get_node_key(name)) for name in market.nodes]
    signers = [wire.WireSigner(key, chain_id) for key in keys]

    def fork(answer: Any) -> None:
        for index, proto in enumerate(answer.blocks):
            block = wire.from_proto(LightBlock, proto)
            answer.blocks[index].CopyFrom(wire.to_proto(make_twin(block, signers)))

    async with (
        lying_node(market.bootstrap[0], ListLightBlocks=fork) as (address, _),
        AsyncClient([*market.bootstrap[:1], address], key=market.customer_key) as client,
    ):
        with pytest.raises(LedgerForkError, match="forked") as caught:
            await client.balance(verify=True)
        first, second = caught.value.first, caught.value.second  # type: ignore[attr-defined]
        assert first.height == second.height
        assert first.hash != second.hash
        with pytest.raises(LedgerForkError):  # It does not go away by asking again.
            await client.balance("ab" * 32, verify=True)


def make_twin(block: LightBlock, signers: list[wire.WireSigner]) -> LightBlock:
    """Decide another block of the same height: the same header, signed by another proposer."""
    other = next(s for s in signers if s.node_id != block.header.signer_id)
    header = other.sign(block.header.message)
    voters = {member.node_id for member in block.validators}
    votes = tuple(
        signer.sign(Vote(block.height, block.commit.round, VoteKind.PRECOMMIT, header.hash))
        for signer in signers
        if signer.node_id in voters
    )
    commit = Commit(block.height, block.commit.round, header.hash, votes)
    return LightBlock(header, commit, block.validators)


# --- bounds --------------------------------------------------------------------------------------


async def test_a_node_bounds_what_it_lists(market: LocalMarket) -> None:
    async with await tls.connect(tls.parse_address(market.bootstrap[0])) as channel:
        stub: Any = market_service_pb2_grpc.MarketServiceStub(channel)
        many = await stub.ListLightBlocks(pb.ListLightBlocksRequest(from_height=1, limit=2**31))
        assert [wire.from_proto(LightBlock, b).height for b in many.blocks][:3] == [1, 2, 3]
        assert len(many.blocks) <= 64
        last = await stub.ListLightBlocks(pb.ListLightBlocksRequest())
        assert len(last.blocks) == 1
        beyond = await stub.ListLightBlocks(pb.ListLightBlocksRequest(from_height=2**64 - 1))
        assert list(beyond.blocks) == []
