"""Transactions, settlements of closed terms and tables from real nodes, some of which lie."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from iemas import (
    AsyncClient,
    BadRequestError,
    Client,
    InsufficientBalanceError,
    TrustFileWarning,
    UnknownAccountError,
    UnknownTransactionError,
    UnverifiedSettlementError,
    UnverifiedStateError,
    UnverifiedTransactionError,
)
from iemas.client import _light
from iemas.client._trust_store import TrustStore
from iemas.client._types import Settlement, TransactionReceipt
from iemas.core.identity import Identity
from iemas.genesis import load_genesis
from iemas.ledger.transaction import Settle, TransferFunds
from iemas.tls import parse_address
from node.cli.history import _fetch_blocks
from node.local_market import Funds, LocalMarket, MarketPlan
from node.local_market.plan import CUSTOMER
from tests.lying_node import Lie, isolate, lying_node

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

FRIEND = "ab" * 32
PARAMS = {
    "term_ms": "1000",
    "settle_terms": "2",
    "idle_block_interval_ms": "200",
    "unbonding_ms": "86400000",
    "evidence_window_ms": "3600000",
}


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let clients of a test know nothing that those of another one verified."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMarket]:
    plan = MarketPlan(
        name="recorded",
        nodes=1,
        params=PARAMS,
        accounts={CUSTOMER: Funds()},
        simulated_arguments=("--decode-ms", "1", "--prefill-us-per-token", "10"),
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


async def wait_for_height(client: AsyncClient, height: int) -> None:
    """Wait until a balance is proven after the block of a height."""
    proven = await client.balance(verify=True)
    async with asyncio.timeout(20):
        while proven.height < height:
            await asyncio.sleep(0.2)
            proven = await client.balance(verify=True)


# --- transactions --------------------------------------------------------------------------------


async def test_a_payment_is_proven_by_its_receipt_and_by_its_id(client: AsyncClient) -> None:
    receipt = await client.transfer(FRIEND, 7)
    recorded = await client.get_transaction(receipt)
    assert recorded.is_applied
    assert (recorded.id, recorded.height) == (receipt.id, receipt.height)
    assert (recorded.account, recorded.code) == (client.account, "ok")
    assert recorded.body == TransferFunds(bytes.fromhex(FRIEND), 7)  # type: ignore[arg-type]
    assert await client.get_transaction(receipt.id) == recorded
    assert await client.get_transaction(bytes.fromhex(receipt.id)) == recorded


async def test_a_refusal_is_proven_too(client: AsyncClient, market: LocalMarket) -> None:
    before = (await client.balance()).height
    with pytest.raises(InsufficientBalanceError, match="take less, or have money transferred"):
        await client.transfer(FRIEND, 10**15)
    shown = [
        transaction.hash.hex()
        for block in await fetch_blocks(market, before)
        for transaction in block.block.transactions
        if transaction.message.account.hex() == client.account
    ]
    recorded = await client.get_transaction(shown[-1])
    assert (recorded.code, recorded.is_applied) == ("insufficient_balance", False)
    assert recorded.detail


async def fetch_blocks(market: LocalMarket, after: int) -> list[Any]:
    return await _fetch_blocks(parse_address(market.bootstrap[0]), after + 1)


async def test_an_old_transaction_is_proven_backwards(
    client: AsyncClient, market: LocalMarket
) -> None:
    """Below the first block that a client trusts no signature counts, but hashes do."""
    receipt = await client.transfer(FRIEND, 3)
    await wait_for_height(client, receipt.height + 5)
    start = client.trusted_block
    async with AsyncClient(market.bootstrap, key=market.customer_key, trusted_block=start) as late:
        assert await late.get_transaction(receipt) == await client.get_transaction(receipt)


async def test_what_no_node_has_is_unknown(client: AsyncClient) -> None:
    with pytest.raises(UnknownTransactionError, match="has no transaction abab"):
        await client.get_transaction("ab" * 32)
    receipt = await client.transfer(FRIEND, 1)
    with pytest.raises(UnknownTransactionError, match=r"at height 1$"):
        await client.get_transaction(TransactionReceipt(receipt.id, 1))
    for wrong in ("", "xy", "ab" * 31, b"short"):
        with pytest.raises(BadRequestError, match="64 hex digits"):
            await client.get_transaction(wrong)


async def test_an_account_that_does_not_exist_is_named(market: LocalMarket) -> None:
    async with AsyncClient(market.bootstrap, key=Identity(b"n" * 32)) as nobody:
        with pytest.raises(UnknownAccountError, match=f"no account {nobody.account}"):
            await nobody.transfer(FRIEND, 1)


async def test_the_sync_client_does_all_of_it(market: LocalMarket) -> None:
    def use() -> None:
        with Client(market.bootstrap, key=market.customer_key) as client:
            assert client.get_transaction(client.transfer(FRIEND, 2)).is_applied
            assert len(client.ledger.validators()) == 4
            assert any(each.name == "bid_fee_micros" for each in client.ledger.parameters())

    await asyncio.to_thread(use)


# --- settlements of closed terms -----------------------------------------------------------------


async def buy_and_wait(client: AsyncClient) -> tuple[Any, Settlement]:
    """Buy an answer and wait until its term is closed."""
    completion = await client.chat.completions.create(
        messages=[{"role": "user", "content": "Name a prime."}], max_tokens=8
    )
    settlement = await client.get_settlement(completion.allocation)
    async with asyncio.timeout(30):
        while settlement.is_open:
            await asyncio.sleep(0.3)
            settlement = await client.get_settlement(completion.allocation)
    return completion, settlement


async def test_a_closed_terms_settlement_is_proven_by_its_transaction(
    client: AsyncClient, market: LocalMarket
) -> None:
    completion, settlement = await buy_and_wait(client)
    paid_micros = completion.receipt.amount_micros
    assert settlement.settled_micros == settlement.signed_micros == paid_micros > 0
    assert settlement.is_settled
    assert settlement.settled_by is not None
    recorded = await client.get_transaction(settlement.settled_by)
    assert isinstance(recorded.body, Settle)
    assert recorded.account == completion.market.winner
    other = await client.transfer(FRIEND, 1)

    def point_elsewhere(answer: Any) -> None:
        answer.settled_by.id = bytes.fromhex(other.id)
        answer.settled_by.height = other.height

    def make_up(answer: Any) -> None:
        answer.settled_by.id = b"?" * 32

    for lie in (point_elsewhere, make_up):
        async with (
            lying_node(market.bootstrap[0], GetSettlementProof=lie) as (address, _),
            AsyncClient(address, key=market.customer_key) as deceived,
        ):
            await isolate(deceived)
            with pytest.raises(UnverifiedSettlementError) as caught:
                await deceived.get_settlement(completion.allocation)
            assert caught.value.field == "settled_by"  # type: ignore[attr-defined]
    # A node can hide it, and then proves nothing; but not where another node shows it.
    hide: Lie = lambda answer: answer.ClearField("settled_by")  # noqa: E731
    async with lying_node(market.bootstrap[0], GetSettlementProof=hide) as (address, _):
        async with AsyncClient(address, key=market.customer_key) as deceived:
            await isolate(deceived)
            hidden = await deceived.get_settlement(completion.allocation)
            assert (hidden.settled_micros, hidden.settled_by) == (0, None)
        addresses = [address, *market.bootstrap]
        async with AsyncClient(addresses, key=market.customer_key) as warned:
            shown = await warned.get_settlement(completion.allocation)
            assert (shown.settled_micros, shown.settled_by) == (paid_micros, settlement.settled_by)


async def test_a_term_that_has_not_begun_is_not_taken_for_closed(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_light, "PATIENCE_SECONDS", 0.0)
    completion = await client.chat.completions.create(
        messages=[{"role": "user", "content": "Name a day."}], max_tokens=4
    )
    with pytest.raises(UnverifiedSettlementError, match=r"begins after|was asked for") as caught:
        await client.get_settlement(replace(completion.allocation, term=10**6))
    assert caught.value.field == "height"  # type: ignore[attr-defined]


# --- lies ----------------------------------------------------------------------------------------


def drop_votes(answer: Any) -> None:
    del answer.block.commit.precommits[1:]


def spoil(name: str) -> Lie:
    """Turn a bit of an envelope's payload."""

    def lie(answer: Any) -> None:
        envelope = getattr(answer.transaction, name)
        envelope.payload = envelope.payload[:-1] + bytes([envelope.payload[-1] ^ 1])

    return lie


def spoil_signature(answer: Any) -> None:
    answer.transaction.transaction.signature = bytes(64)


def make_up_result(answer: Any) -> None:
    answer.transaction.result.code = 3


def add_detail(answer: Any) -> None:
    answer.transaction.result.detail = "0:EXPIRED"


def add_hash(name: str) -> Lie:
    return lambda answer: getattr(answer.transaction, name).path.append(bytes(32))


def forget(answer: Any) -> None:
    answer.ClearField("transaction")


LIES: list[tuple[Lie, str]] = [
    (drop_votes, "block"),
    (forget, "transaction"),
    (spoil("header"), "header"),
    (spoil("transaction"), "transaction"),
    (spoil_signature, "transaction"),
    (add_hash("inclusion"), "transaction"),
    (make_up_result, "result"),
    (add_detail, "result"),
    (add_hash("result_inclusion"), "result"),
]


@pytest.mark.parametrize(("lie", "field"), LIES)
async def test_a_lie_about_a_transaction_convinces_nobody(
    market: LocalMarket, client: AsyncClient, lie: Lie, field: str
) -> None:
    receipt = await client.transfer(FRIEND, 1)
    await client.get_transaction(receipt)
    async with (
        lying_node(market.bootstrap[0], GetTransactionProof=lie) as (address, servicer),
        AsyncClient(address, key=market.customer_key) as deceived,
    ):
        await isolate(deceived)
        with pytest.raises(UnverifiedTransactionError) as caught:
            await deceived.get_transaction(receipt)
        assert caught.value.field == field  # type: ignore[attr-defined]
        assert "GetTransactionProof" in servicer.asked


async def test_another_transaction_is_not_the_one_asked_for(
    market: LocalMarket, client: AsyncClient
) -> None:
    receipts = [await client.transfer(FRIEND, 1) for _ in range(2)]
    shown: list[bytes] = []

    def repeat(answer: Any) -> None:
        shown.append(answer.transaction.SerializeToString())
        answer.transaction.ParseFromString(shown[0])

    async with (
        lying_node(market.bootstrap[0], GetTransactionProof=repeat) as (address, _),
        AsyncClient(address, key=market.customer_key) as deceived,
    ):
        await isolate(deceived)
        await deceived.get_transaction(receipts[0])
        with pytest.raises(UnverifiedTransactionError, match="another transaction"):
            await deceived.get_transaction(receipts[1])


def spoil_headers(answer: Any) -> None:
    answer.headers[0].payload += b"\x00"


def skip_header(answer: Any) -> None:
    del answer.headers[0]


def no_headers(answer: Any) -> None:
    del answer.headers[:]


@pytest.mark.parametrize("lie", [spoil_headers, skip_header, no_headers])
async def test_a_made_up_header_leads_nowhere(
    market: LocalMarket, client: AsyncClient, lie: Lie
) -> None:
    receipt = await client.transfer(FRIEND, 1)
    await wait_for_height(client, receipt.height + 3)
    async with (
        lying_node(market.bootstrap[0], ListHeaders=lie) as (address, _),
        AsyncClient(
            address, key=market.customer_key, trusted_block=client.trusted_block
        ) as deceived,
    ):
        await isolate(deceived)
        with pytest.raises(UnverifiedTransactionError) as caught:
            await deceived.get_transaction(receipt)
        assert caught.value.field == "block"  # type: ignore[attr-defined]


def drop_validator(answer: Any) -> None:
    del answer.tables[0].leaves[1]


def drop_table(answer: Any) -> None:
    del answer.tables[-1]


def swap_tables(answer: Any) -> None:
    answer.tables[0].CopyFrom(answer.tables[1])


@pytest.mark.parametrize(
    ("lie", "field"),
    [(drop_validator, "validators"), (swap_tables, "validators"), (drop_table, "tables")],
)
async def test_no_validator_can_be_hidden(market: LocalMarket, lie: Lie, field: str) -> None:
    async with (
        lying_node(market.bootstrap[0], GetTablesProof=lie) as (address, _),
        AsyncClient(address, key=market.customer_key) as deceived,
    ):
        await isolate(deceived)
        with pytest.raises(UnverifiedStateError) as caught:
            await deceived.ledger.validators()
        assert caught.value.field == field  # type: ignore[attr-defined]


# --- who governs ---------------------------------------------------------------------------------


async def test_validators_and_parameters_are_proven(
    client: AsyncClient, market: LocalMarket
) -> None:
    validators = await client.ledger.validators()
    known = {address.partition("@")[0] for address in market.bootstrap}
    assert {each.id for each in validators} == known
    assert all(each.power_micros > 0 and not each.is_jailed for each in validators)
    found = {each.name: each for each in await client.ledger.parameters()}
    assert (found["term_ms"].value, found["term_ms"].is_changeable) == (1000, False)
    assert found["bid_fee_micros"].is_changeable


# --- between runs --------------------------------------------------------------------------------


async def test_the_next_run_goes_on_from_the_last_header(
    market: LocalMarket, tmp_path: Path
) -> None:
    options: Any = {"key": market.customer_key, "state_dir": tmp_path}
    chain_id = load_genesis(market.home.genesis_file)[1]
    store = TrustStore(tmp_path)
    async with AsyncClient(market.bootstrap, **options) as first:
        await first.balance(verify=True)
        at_once = store.load(chain_id)
        await asyncio.sleep(0.5)
        await first.balance(verify=True)
        verified = first.trusted_block
    kept = store.load(chain_id)
    assert at_once is not None
    assert kept is not None
    assert (kept.height, kept.hash.hex()) == verified
    assert kept.height > at_once.height
    asked: list[int] = []
    async with (
        lying_node(market.bootstrap[0], ListLightBlocks=lambda a: asked.append(1)) as (address, _),
        AsyncClient(address, **options) as second,
    ):
        await isolate(second)
        assert (await second.balance(verify=True)).height >= kept.height - 1
        assert not asked  # Nobody was asked for anything older.


async def test_a_damaged_header_is_left_out_with_a_warning(
    market: LocalMarket, tmp_path: Path
) -> None:
    chain_id = load_genesis(market.home.genesis_file)[1]
    store = TrustStore(tmp_path)
    path = store.get_path(chain_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no header")
    with pytest.warns(TrustFileWarning, match="does not hold a verified header"):
        async with AsyncClient(
            market.bootstrap, key=market.customer_key, state_dir=tmp_path
        ) as client:
            assert (await client.balance(verify=True)).verified
    assert store.load(chain_id) is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with AsyncClient(
            market.bootstrap, key=market.customer_key, state_dir=tmp_path
        ) as again:
            await again.balance(verify=True)
