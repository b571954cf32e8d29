"""A whole market as real processes over real sockets, on simulated backends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from iemas import AsyncClient, BidOptions
from iemas.core.errors import (
    InsufficientFundsError,
    ProviderFailedError,
    UnmatchedError,
)
from iemas.keystore import generate_key
from iemas.tls import parse_address
from node.cli.history import check_market
from node.local_market import Funds, LocalMarket, MarketHome, MarketPlan
from node.local_market.plan import CUSTOMER
from node.local_market.probe import get_term
from node.local_market.supervise import keep_running
from tests.command_line import run_cli
from tests.market_checks import (
    check_history,
    compute_spent,
    converse,
    encode_forms,
    find_traces,
    list_later,
    read_counters,
    wait_settled,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

MARKER = "zebra-quagga-7919"
OPENINGS = [f"Story {n} of the {MARKER}. " + f"It is about number {n}. " * 30 for n in range(4)]
LATER = ["And then? Tell me more of it.", "What happened in the end, after all of that?"]
TERM_MS = 1000
ONE_NODE = ("--nodes", "1", "--validators", "1", "--backend", "simulated")


def quiet(_line: str) -> None:
    pass


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMarket]:
    plan = MarketPlan(
        name="test",
        params={"term_ms": str(TERM_MS)},
        accounts={CUSTOMER: Funds(), "poor": Funds(0, 100), "second": Funds()},
        simulated_arguments=("--decode-ms", "4", "--prefill-us-per-token", "50"),
    )
    async with LocalMarket(tmp_path_factory.mktemp("market")) as started:
        await started.start(plan, quiet)
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def client(market: LocalMarket) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(market.bootstrap, key=market.customer_key) as made:
        yield made


# --- what a market must do -----------------------------------------------------------------------


async def test_later_turns_find_their_cache_and_receipts_equal_the_backends_figures(
    market: LocalMarket, client: AsyncClient
) -> None:
    urls = [backend.address.url for backend in market.backends]
    before = read_counters(urls)
    turns = await converse(client, OPENINGS, LATER, max_tokens=24)
    after = read_counters(urls)
    assert min(turn.reuse for turn in list_later(turns)) >= 0.8
    usages = [turn.completion.usage for turn in turns]
    assert sum(u.prompt_tokens for u in usages) == after["queries"] - before["queries"]
    cached = sum(u.prompt_tokens_details.cached_tokens for u in usages)
    assert cached == after["hits"] - before["hits"]
    for turn in turns:
        receipt, usage = turn.completion.receipt, turn.completion.usage
        assert (receipt.prompt_tokens, receipt.output_tokens, receipt.cached_tokens) == (
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens_details.cached_tokens,
        )
    await wait_settled(market)
    findings = await check_history(market)
    assert findings.allocations >= len(turns)
    spent = sum(turn.completion.receipt.amount_micros for turn in turns)
    # A bid that no round took in, as its term ended, owes its fee too.
    assert findings.fees_micros >= market.require_genesis().params.bid_fee_micros * findings.bids
    assert await compute_spent(market, client) == spent + findings.fees_micros


async def test_without_affinity_the_same_conversations_find_less(
    market: LocalMarket, client: AsyncClient, tmp_path: Path
) -> None:
    turns = await converse(client, OPENINGS, LATER, max_tokens=24)
    addresses = tuple(backend.address for backend in market.backends)
    plan = MarketPlan(
        name="blind", backend="url", addresses=addresses, params={"cache_affinity": "false"}
    )
    async with LocalMarket(tmp_path) as blind:
        await blind.start(plan, quiet)
        async with AsyncClient(blind.bootstrap, key=blind.customer_key) as other:
            without = await converse(other, OPENINGS, LATER, max_tokens=24)
    mean = sum(turn.reuse for turn in list_later(turns)) / len(list_later(turns))
    mean_without = sum(turn.reuse for turn in list_later(without)) / len(list_later(without))
    assert mean_without < mean - 0.1


async def test_tasks_succeed_across_rotations(market: LocalMarket, client: AsyncClient) -> None:
    seen: dict[int, str] = {}
    give_up = time.monotonic() + 10 * TERM_MS / 1000
    question = [{"role": "user", "content": "Who is the auctioneer?"}]
    while len(seen) < 4 and time.monotonic() < give_up:
        completion = await client.chat.completions.create(messages=question, max_tokens=4)
        seen[completion.market.term] = completion.market.auctioneer
        await asyncio.sleep(0.05)
    assert len(seen) == 4
    assert len(set(seen.values())) == 4


async def test_no_prompt_and_no_answer_is_written_anywhere(
    market: LocalMarket, client: AsyncClient
) -> None:
    tokenizer = await client.models.get_tokenizer()
    question = [{"role": "user", "content": f"What is a {MARKER}?"}]
    completion = await client.chat.completions.create(messages=question, max_tokens=24)
    answer = completion.choices[0].message.content
    needles = [MARKER.encode(), *encode_forms(tokenizer.encode(MARKER))]
    needles += [answer.encode(), *encode_forms(tokenizer.encode(answer))]
    assert find_traces(market.home.path, needles) == []


# --- bad input, in the SDK and on the command line -----------------------------------------------


async def test_a_bid_above_the_balance_names_the_amounts(market: LocalMarket) -> None:
    key = market.home.get_account_key("poor")
    async with AsyncClient(market.bootstrap, key=key) as poor:
        with pytest.raises(InsufficientFundsError, match=r"may spend \d+ in this term"):
            await poor.chat.completions.create(
                messages=[{"role": "user", "content": OPENINGS[0]}], max_tokens=200
            )
        assert (await poor.balance()).escrow_micros == 100


async def test_a_bid_below_every_ask_is_unmatched(client: AsyncClient) -> None:
    with pytest.raises(UnmatchedError, match="raise the bid"):
        await client.chat.completions.create(
            messages=[{"role": "user", "content": "hello"}], bid=BidOptions(value_micros=1)
        )


async def test_every_command_works(market: LocalMarket) -> None:
    home = ("--home", str(market.home.path))
    results = await asyncio.gather(
        run_cli("chat", *home, "--max-tokens", "6", "--json", "hello"),
        run_cli("chat", *home, "--max-tokens", "6", stdin="one\ntwo\n\n"),
        run_cli("balance", *home, "--json"),
        run_cli("nodes", *home, "--json"),
        run_cli("market", "status", *home, "--json"),
        run_cli("verify", "--all", *home, "--json"),
    )
    for code, _, err in results:
        assert code == 0, err
    answer, talk, balance, nodes, status, verified = results
    assert json.loads(answer[1])["market"]["price_micros"] > 0
    assert talk[2].count("won round") == 2
    assert "tests only" in talk[2]
    assert json.loads(balance[1])["escrow_micros"] > 0
    assert {node["name"] for node in json.loads(nodes[1])} == set(market.nodes)
    assert all(process["alive"] for process in json.loads(status[1])["processes"])
    assert json.loads(verified[1])["holds"] is True


async def test_bad_input_is_a_named_error(market: LocalMarket, tmp_path: Path) -> None:
    home = ("--home", str(market.home.path))
    wrong_key = tmp_path / "wrong.pem"
    wrong_key.write_text("no key at all")
    wrong_key.chmod(0o600)
    stranger = tmp_path / "stranger.pem"
    generate_key(stranger)
    nobody = ("--market", f"{os.urandom(32).hex()}@{market.bootstrap[0].partition('@')[2]}")
    url = market.backends[0].address.url
    cases: list[tuple[Sequence[str], str]] = [
        (["chat", *home, "  "], "the prompt is empty"),
        (["chat", *home, "x" * 20_000], "context"),
        (["chat", *home, "--account", "poor", "x" * 500], "add at least"),
        (["chat", *home, "--account", "nobody", "hi"], "has no account 'nobody'"),
        (["chat", *home, "--key", str(wrong_key), "hi"], "iemas-node keygen"),
        (["chat", *home, "--key", str(stranger), "hi"], "the ledger holds no account"),
        (["chat", *nobody, "--key", str(stranger), "hi"], "no node of the market answers"),
        (["chat", "--home", str(tmp_path), "hi"], "iemas market up"),
        (["market", "status", "--home", str(tmp_path)], "no market runs"),
        (["market", "down", "--home", str(tmp_path)], "no market runs"),
        (["market", "up", *home, "--backend", "simulated"], "runs already"),
        (["verify", *home], "--all"),
        (["verify", *home, "999:0"], "no verified round"),
        (_up(tmp_path / "a", "--backend", "http://127.0.0.1:9"), "nothing answers at"),
        (_up(tmp_path / "b", "--backend", url, "--model", "gpt"), "serves simulated, not 'gpt'"),
        (_up(tmp_path / "c"), "--backend vllm-cpu"),
        (_up(tmp_path / "d", "--backend", "simulated", "--param", "x=1"), "no market parameter"),
        (_up(tmp_path / "e", "--backend", url, "--nodes", "2"), "once a node"),
    ]
    for start in range(0, len(cases), 6):
        some = cases[start : start + 6]
        results = await asyncio.gather(*(run_cli(*arguments) for arguments, _ in some))
        for (arguments, expected), (code, _, err) in zip(some, results, strict=True):
            assert code != 0, arguments
            assert expected in err, arguments
            assert err.startswith("error: ") or "\nerror: " in err, arguments
            assert "Traceback" not in err


def _up(home: Path, *arguments: str) -> list[str]:
    return ["market", "up", "--home", str(home), *arguments]


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home = tmp_path / "market"
        code, _, err = await run_cli(*_up(home, *ONE_NODE, "--base-port", str(port)))
    assert code != 0
    assert str(port) in err
    assert "choose another --base-port" in err
    assert find_processes(home) == []


# --- faults --------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def fragile(tmp_path: Path) -> AsyncIterator[LocalMarket]:
    slow = ("--decode-ms", "40")
    async with LocalMarket(tmp_path / "fragile") as started:
        params = {"term_ms": "3000"}
        plan = MarketPlan(name="fragile", params=params, simulated_arguments=slow)
        await started.start(plan, quiet)
        yield started


async def test_killed_nodes_do_not_end_the_market(fragile: LocalMarket) -> None:
    question = [{"role": "user", "content": "Tell me a long story. " * 8}]
    async with AsyncClient(fragile.bootstrap, key=fragile.customer_key) as client:
        await client.chat.completions.create(messages=question, max_tokens=4)
        await kill_provider(fragile, client, question)
        await kill_auctioneer(fragile, client, question)
    await wait_revived(fragile)
    await wait_settled(fragile, same_rounds=False)  # who was dead may have missed one
    await check_history(fragile)


async def kill_provider(
    market: LocalMarket, client: AsyncClient, question: list[dict[str, str]]
) -> None:
    """Kill the winner mid-stream: a named error with what was streamed; then bring it back."""
    stream = await client.chat.completions.create(messages=question, max_tokens=200, stream=True)
    text = ""
    winner = market.find_node(stream.allocation.provider)
    while len(text) <= 8:
        text += (await anext(stream)).choices[0].delta.content or ""
    await market.kill_node(winner.name)
    with pytest.raises(ProviderFailedError, match="what was streamed") as caught:
        await stream.collect()
    assert caught.value.operands["text"].startswith(text)
    await market.start_node(winner.name)
    await market._wait_open()


async def kill_auctioneer(
    market: LocalMarket, client: AsyncClient, question: list[dict[str, str]]
) -> None:
    """Kill the auctioneer: the next request succeeds within seconds."""
    term = await get_term(parse_address(market.bootstrap[0]))
    await market.kill_node(market.find_node(term.auctioneer).name)
    started = time.monotonic()
    completion = await client.chat.completions.create(messages=question, max_tokens=4)
    assert time.monotonic() - started < 8
    assert completion.market.auctioneer != term.auctioneer.hex()


async def wait_revived(market: LocalMarket) -> None:
    """A node that crashes, and those that ended before, are started again; why is told."""
    crashed = next(node for node in market.nodes.values() if node.running)
    os.kill(crashed.pid, signal.SIGSEGV)
    notices: list[str] = []
    keeper = asyncio.create_task(keep_running(market, notices.append))
    try:
        await wait_until(lambda: len(notices) == 2, 10)
        await wait_until(lambda: all(n.running and n.address for n in market.nodes.values()), 30)
    finally:
        keeper.cancel()
    told = next(line for line in notices if line.startswith(f"{crashed.name} "))
    assert "was killed by SIGSEGV: Fatal Python error: Segmentation fault" in told
    assert told.endswith("; started again in 1 s")
    await market._wait_open()


# --- nothing stays behind ------------------------------------------------------------------------


def find_processes(home: Path) -> list[str]:
    """List processes that name a folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(home) in command and path.parent.name != str(os.getpid()):
            found.append(command)
    return found


def find_socket_folders(home: Path) -> set[Path]:
    commands = " ".join(find_processes(home))
    return {Path(folder) for folder in re.findall(r"ipc://(\S*/iemas-[^/\s]+)/", commands)}


async def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if holds():
                return
            await asyncio.sleep(0.05)


async def test_a_market_goes_on_where_it_was_taken_down_and_ctrl_c_leaves_nothing(
    tmp_path: Path,
) -> None:
    home = tmp_path / "market"
    code, out, err = await run_cli(*_up(home, *ONE_NODE, "--detach"))
    assert code == 0, err
    assert "tests only" in out
    state = MarketHome(home).require_state()
    async with AsyncClient(state.bootstrap, key=MarketHome(home).get_account_key(CUSTOMER)) as one:
        question = [{"role": "user", "content": "hello"}]
        completion = await one.chat.completions.create(messages=question, max_tokens=4)
    code, _, err = await run_cli("market", "down", "--home", str(home))
    assert code == 0, err
    assert find_processes(home) == []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli.market", *_up(home), stdout=subprocess.DEVNULL
    )
    try:
        await wait_until((home / "market.json").exists, 40)
        assert len(find_processes(home)) == 5  # the command; backend, node; guards
        sockets = find_socket_folders(home)
        assert sockets
        addresses = [parse_address(text) for text in MarketHome(home).require_state().bootstrap]
        history = await check_market(addresses, None, quiet)
        assert history.findings.problems == []
        assert list(history.cleared) == [(completion.market.term, completion.market.round)]
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
    await wait_until(lambda: not find_processes(home), 15)
    assert [folder for folder in sockets if folder.exists()] == []
    assert not (home / "market.json").exists()
    assert (await run_cli("market", "down", "--home", str(home), "--delete"))[0] == 0
    assert not home.exists()
