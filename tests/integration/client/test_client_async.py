# ruff: noqa: ASYNC110, ASYNC240 (polls a fake market in the same process; tiny files)
"""The async SDK against a scripted market over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import iemas
from iemas import AsyncClient, BidOptions, Identity
from iemas.client import _bid_stream, _buying, _delivery
from iemas.core.errors import InvalidReceiptError
from iemas.core.types import FinishReason, Prices, UnmatchedReason
from iemas.ledger.transaction import FundEscrow, TransferFunds

HELLO = [{"role": "user", "content": "Hi there"}]


@pytest_asyncio.fixture
async def client(market: Any, buyer: Identity, cache_dir: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(market.bootstrap, key=buyer, cache_dir=cache_dir) as opened:
        yield opened


async def test_answers_with_usage_receipt_and_price(client: AsyncClient, market: Any) -> None:
    market.script.cached_tokens = 16
    market.script.backend_cached = 20
    completion = await client.chat.completions.create(messages=HELLO, max_tokens=50)
    assert completion.choices[0].message.content == "Hello, buyer!"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens == len("Hello, buyer!") + 1
    assert completion.usage.prompt_tokens_details.cached_tokens == 20
    assert completion.market.predicted_cached_tokens == 16
    assert completion.market.winner == market.nodes[2].node_id.hex()
    assert completion.market.auctioneer == market.nodes[0].node_id.hex()
    assert completion.market.price_micros == completion.receipt.amount_micros > 0
    assert completion.allocation.price_micros == completion.market.expected_price_micros
    # The prompt's own tokens went to the winner, the bid's prices to the round.
    assert bytes(t for t in market.payloads[0].token_ids if t < 256).decode().count("Hi there")
    assert market.bids[0].prices == Prices(1_000_000, 1_000_000, 3_000_000)
    await client.close()
    assert market.totals[-1].total_micros == completion.receipt.amount_micros


async def test_streams_chunks_and_ends_with_the_receipt(client: AsyncClient, market: Any) -> None:
    stream = await client.chat.completions.create(messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == stream.text == "Hello, buyer!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[1].choices[0].delta.role is None
    assert [chunk.usage is None for chunk in chunks].count(False) == 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].receipt is not None
    assert chunks[-1].market is not None


async def test_second_request_costs_no_further_round_trips(
    client: AsyncClient, market: Any
) -> None:
    await client.chat.completions.create(messages=HELLO)
    before = market.calls.copy()
    await client.chat.completions.create(messages=HELLO)
    spent = market.calls - before
    spent.pop("GetTerm", None)
    assert not spent


async def test_many_requests_share_one_bid_stream(client: AsyncClient, market: Any) -> None:
    answers = await asyncio.gather(
        *(client.chat.completions.create(messages=HELLO) for _ in range(20))
    )
    assert len({answer.id for answer in answers}) == 20
    assert market.calls["Bid"] == 1
    await client.close()
    final = max(market.totals, key=lambda total: total.sequence)
    assert final.total_micros == sum(answer.receipt.amount_micros for answer in answers)
    assert sorted(sealed.nonce for sealed in market.sealed) == list(range(1, 21))


async def test_session_continues_on_the_generated_tokens(client: AsyncClient, market: Any) -> None:
    session = client.sessions.create(system="Be brief.")
    await session.send("One")
    await session.send("Two")
    first, second = market.payloads
    generated = (*b"Hello, buyer!", 257)
    assert second.token_ids[: len(first.token_ids) + len(generated)] == (
        *first.token_ids,
        *generated,
    )
    assert [message["role"] for message in session.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]


async def test_session_can_be_passed_to_create(client: AsyncClient) -> None:
    session = client.sessions.create()
    await client.chat.completions.create(messages=HELLO, session=session)
    assert len(session.messages) == 2


async def test_cache_salt_is_the_accounts_own_unless_shared(
    client: AsyncClient, market: Any, buyer: Identity
) -> None:
    await client.chat.completions.create(messages=HELLO)
    await client.chat.completions.create(messages=HELLO, share_prefix=True)
    assert [payload.cache_salt for payload in market.payloads] == [
        buyer.derive_secret("cache salt").hex(),
        "",
    ]


async def test_completions_continue_text_and_token_ids(client: AsyncClient, market: Any) -> None:
    completion = await client.completions.create(prompt="abc", max_tokens=5)
    assert completion.choices[0].text == "Hello"
    assert completion.choices[0].finish_reason == "length"
    await client.completions.create(prompt=[97, 98], max_tokens=5)
    assert [payload.token_ids for payload in market.payloads] == [(97, 98, 99), (97, 98)]


async def test_sampling_parameters_travel(client: AsyncClient, market: Any) -> None:
    await client.chat.completions.create(
        messages=HELLO, temperature=0.5, top_p=0.9, seed=7, stop="x", max_tokens=3
    )
    payload = market.payloads[0]
    assert (payload.temperature_ppm, payload.top_p_ppm, payload.seed) == (500_000, 900_000, 7)
    assert payload.stop == ("x",)


async def test_rotation_is_followed(client: AsyncClient, market: Any) -> None:
    first = await client.chat.completions.create(messages=HELLO)
    market.rotate()
    second = await client.chat.completions.create(messages=HELLO)
    assert first.market.auctioneer != second.market.auctioneer
    assert second.market.term == first.market.term + 1


async def test_dead_auctioneer_is_replaced(client: AsyncClient, market: Any) -> None:
    await client.chat.completions.create(messages=HELLO)
    await market.nodes[0].stop()

    async def elect_another() -> None:
        await asyncio.sleep(0.3)
        market.term, market.auctioneer, market.witness = 8, 1, 2

    election = asyncio.create_task(elect_another())
    completion = await client.chat.completions.create(messages=HELLO)
    await election
    assert completion.market.auctioneer == market.nodes[1].node_id.hex()


async def test_silent_auctioneer_is_asked_again(
    client: AsyncClient, market: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_buying, "ACCEPT_SECONDS", 0.2)
    market.script.silent_bids = 1
    completion = await client.chat.completions.create(messages=HELLO)
    assert completion.market.attempts == 2


async def test_lying_auctioneer_is_not_believed(
    client: AsyncClient, market: Any, tamper: Callable[..., Any]
) -> None:
    market.script.tamper_allocation = tamper(rates=Prices(1, 1, 9_000_000))
    with pytest.raises(iemas.APIError):
        await client.chat.completions.create(messages=HELLO, timeout=1)
    assert not market.payloads  # the prompt never left


async def test_unmatched_is_tried_again_then_named(client: AsyncClient, market: Any) -> None:
    market.script.unmatched.extend([UnmatchedReason.OUTBID] * 2)
    completion = await client.chat.completions.create(messages=HELLO)
    assert completion.market.attempts == 3
    market.script.unmatched.append(UnmatchedReason.INFEASIBLE)
    with pytest.raises(iemas.UnmatchedError) as caught:
        await client.chat.completions.create(messages=HELLO)
    assert caught.value.operands["price_to_beat_micros"] == 42


async def test_unfunded_names_the_amounts(client: AsyncClient, market: Any) -> None:
    market.allowance_micros, market.escrow_micros = 10, 40
    market.script.unmatched.append(UnmatchedReason.UNFUNDED)
    with pytest.raises(iemas.InsufficientFundsError, match="fund_escrow") as caught:
        await client.chat.completions.create(messages=HELLO)
    assert caught.value.operands["allowance_micros"] == 10
    assert caught.value.operands["reservation_micros"] == market.bids[0].reservation_micros


async def test_drained_allowance_is_waited_for(client: AsyncClient, market: Any) -> None:
    market.script.refuse.append(("UnfundedBidError", "reserved already"))

    async def next_term() -> None:
        await asyncio.sleep(0.3)
        market.rotate()

    rotation = asyncio.create_task(next_term())
    completion = await client.chat.completions.create(messages=HELLO)
    await rotation
    assert completion.market.term == 8


async def test_busy_provider_is_not_paid_and_another_bid_follows(
    client: AsyncClient, market: Any
) -> None:
    market.script.busy = 1
    completion = await client.chat.completions.create(messages=HELLO)
    await client.close()
    assert completion.market.attempts == 2
    assert market.totals[-1].total_micros == completion.receipt.amount_micros


async def test_provider_that_dies_before_its_first_token_is_replaced(
    client: AsyncClient, market: Any
) -> None:
    market.script.fail_at.append(0)
    completion = await client.chat.completions.create(messages=HELLO)
    await client.close()
    assert completion.market.attempts == 2
    assert market.totals[-1].total_micros == completion.receipt.amount_micros


async def test_provider_that_dies_later_leaves_what_was_streamed(
    client: AsyncClient, market: Any
) -> None:
    market.script.fail_at.append(9)
    stream = await client.chat.completions.create(messages=HELLO, stream=True)
    with pytest.raises(iemas.ProviderFailedError) as caught:
        async for _ in stream:
            pass
    assert caught.value.operands["text"] == "Hello, bu"
    assert caught.value.operands["output_tokens"] == 9
    receipt = caught.value.operands["receipt"]
    assert receipt.output_tokens == 8  # type: ignore[attr-defined]
    assert len(market.payloads) == 1  # no silent retry


async def test_failed_backend_is_a_named_error(client: AsyncClient, market: Any) -> None:
    market.script.backend_fails_at = 5
    with pytest.raises(iemas.ProviderFailedError) as caught:
        await client.chat.completions.create(messages=HELLO)
    assert caught.value.operands["text"] == "Hello"
    assert caught.value.operands["receipt"].finish is FinishReason.FAILED  # type: ignore[attr-defined]


async def test_padded_receipt_is_not_signed(
    client: AsyncClient, market: Any, tamper: Callable[..., Any]
) -> None:
    market.script.tamper_receipt = tamper(output_tokens=40)
    with pytest.raises(iemas.ProviderFailedError) as caught:
        await client.chat.completions.create(messages=HELLO)
    assert isinstance(caught.value.__cause__, InvalidReceiptError)


async def test_closing_a_stream_cancels_and_signs_what_arrived(
    client: AsyncClient, market: Any
) -> None:
    market.script.token_seconds = 0.02
    market.script.reply = "x" * 200
    async with await client.chat.completions.create(messages=HELLO, stream=True) as stream:
        async for _ in stream:
            break
    assert market.cancels == 1
    assert stream.receipt is not None
    assert stream.receipt.finish is FinishReason.CANCELLED
    assert stream.receipt.output_tokens < 200
    async with asyncio.timeout(2):
        while not market.executions[0].done:
            await asyncio.sleep(0.01)


async def test_cancelling_the_request_cancels_the_task(client: AsyncClient, market: Any) -> None:
    market.script.token_seconds = 0.02
    market.script.reply = "x" * 200
    request = asyncio.create_task(client.chat.completions.create(messages=HELLO))
    while not market.executions:
        await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert market.cancels == 1
    assert market.executions[0].done


async def test_slow_answer_runs_into_the_timeout_with_its_text(
    client: AsyncClient, market: Any
) -> None:
    market.script.token_seconds = 0.05
    market.script.reply = "y" * 200
    with pytest.raises(iemas.APITimeoutError) as caught:
        await client.chat.completions.create(messages=HELLO, timeout=0.5)
    assert set(str(caught.value.operands["text"])) == {"y"}
    assert market.cancels == 1


async def test_slow_reader_does_not_stop_the_provider(client: AsyncClient, market: Any) -> None:
    market.script.reply = "z" * 60
    stream = await client.chat.completions.create(
        messages=HELLO, stream=True, bid=BidOptions(deadline_ms=5_000)
    )
    async with asyncio.timeout(2):
        while not market.executions[0].done:
            await asyncio.sleep(0.01)
    assert (await stream.collect()).choices[0].message.content == "z" * 60


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"messages": []}, iemas.BadRequestError),
        ({"messages": [{"role": "user", "content": " "}]}, iemas.BadRequestError),
        ({"messages": "hello"}, iemas.BadRequestError),
        ({"messages": HELLO, "max_tokens": 0}, iemas.BadRequestError),
        ({"messages": HELLO, "temperature": -1}, iemas.BadRequestError),
        ({"messages": HELLO, "max_tokens": 5000}, iemas.PromptTooLongError),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, iemas.PromptTooLongError),
        ({"messages": HELLO, "model": "other"}, iemas.ModelNotFoundError),
    ],
)
async def test_wrong_requests_are_refused_before_bidding(
    client: AsyncClient, market: Any, options: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await client.chat.completions.create(**options)
    assert not market.sealed


async def test_unreachable_market_is_named(buyer: Identity) -> None:
    async with AsyncClient("ab" * 32 + "@127.0.0.1:9", key=buyer) as client:
        with pytest.raises(iemas.APIConnectionError, match="no node of the market answers"):
            await client.balance()


async def test_another_node_at_the_address_is_not_trusted(market: Any, buyer: Identity) -> None:
    wrong = f"{'ab' * 32}@127.0.0.1:{market.nodes[0].port}"
    async with AsyncClient(wrong, key=buyer) as client:
        with pytest.raises(iemas.APIConnectionError, match="does not prove"):
            await client.balance()


async def test_one_live_bootstrap_address_is_enough(market: Any, buyer: Identity) -> None:
    addresses = ["ab" * 32 + "@127.0.0.1:9", market.bootstrap[1]]
    async with AsyncClient(addresses, key=buyer) as client:
        assert len(await client.nodes()) == 4


async def test_reads_of_the_market(client: AsyncClient, market: Any, buyer: Identity) -> None:
    balance = await client.balance()
    assert (balance.available_micros, balance.escrow_micros) == (123, 4_000_000)
    assert balance.account == client.account == buyer.node_id.hex()
    (model,) = await client.models.list()
    assert (model.id, model.providers, model.slots) == ("byte-model", 3, 12)
    assert {node.id for node in await client.nodes()} == {n.node_id.hex() for n in market.nodes}


async def test_transactions_take_the_next_nonce(client: AsyncClient, market: Any) -> None:
    friend = market.nodes[0].node_id.hex()
    assert (await client.transfer(friend, 5)).height == 10
    await client.fund_escrow(7)
    assert [transaction.nonce for transaction in market.transactions] == [1, 2]
    assert market.transactions[0].body == TransferFunds(market.nodes[0].node_id, 5)
    assert market.transactions[1].body == FundEscrow("byte-model", 7)
    market.script.submit_code = 3
    with pytest.raises(iemas.InsufficientBalanceError):
        await client.transfer(friend, 5)
    with pytest.raises(iemas.BadRequestError):
        await client.transfer("nobody", 5)
    with pytest.raises(iemas.BadRequestError):
        await client.transfer(friend, 0)


async def test_a_transaction_is_sent_again_as_it_was_signed(
    client: AsyncClient, market: Any
) -> None:
    market.script.swallowed = 4
    receipt = await client.transfer(market.nodes[0].node_id.hex(), 5)
    assert receipt.height == 10
    assert len(market.submitted) == 5
    assert len(set(market.submitted)) == 1


async def test_a_transaction_without_an_answer_is_named(
    client: AsyncClient, market: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_delivery, "PATIENCE_SECONDS", 1.5)
    market.script.swallowed = 1000
    with pytest.raises(iemas.UnconfirmedTransactionError, match="may still be recorded") as caught:
        await client.fund_escrow(5)
    assert len(set(market.submitted)) == 1
    assert caught.value.transaction == market.submitted[0].hash.hex()
    assert (caught.value.code, caught.value.retryable) == ("unconfirmed", False)
    assert f"`iemas transaction {caught.value.transaction}`" in str(caught.value)
    assert "no node" not in str(caught.value)


async def test_tokenizer_is_fetched_once_for_all_clients(
    client: AsyncClient, market: Any, buyer: Identity, cache_dir: Path
) -> None:
    await client.chat.completions.create(messages=HELLO)
    async with AsyncClient(market.bootstrap, key=buyer, cache_dir=cache_dir) as second:
        await second.chat.completions.create(messages=HELLO)
    assert market.calls["GetTokenizer"] == 1
    (path,) = cache_dir.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    async with AsyncClient(market.bootstrap, key=buyer, cache_dir=cache_dir) as third:
        await third.chat.completions.create(messages=HELLO)
    assert market.calls["GetTokenizer"] == 2


async def test_refusals_of_other_kinds_run_out(
    market: Any, buyer: Identity, cache_dir: Path
) -> None:
    market.script.refuse.extend([("InvalidBidError", "too many")] * 3)
    async with AsyncClient(
        market.bootstrap, key=buyer, cache_dir=cache_dir, max_retries=1
    ) as client:
        with pytest.raises(iemas.IemasError, match="too many"):
            await client.chat.completions.create(messages=HELLO)


async def test_broken_bid_stream_fails_only_for_a_moment(client: AsyncClient, market: Any) -> None:
    await client.chat.completions.create(messages=HELLO)
    (stream,) = client._core._buyer._streams.values()  # type: ignore[union-attr]
    assert isinstance(stream, _bid_stream.BidStream)
    stream._call.cancel()
    completion = await client.chat.completions.create(messages=HELLO)
    assert completion.choices[0].message.content == "Hello, buyer!"
