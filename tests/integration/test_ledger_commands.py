"""Stake, deposits, votes and transfers with `iemas`, on a real market."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import Result
from typer.testing import CliRunner

from iemas import (
    AsyncClient,
    ConfigurationError,
    IemasError,
    UnconfirmedTransactionError,
    UnverifiedTransactionError,
)
from iemas.genesis import load_genesis, save_genesis
from iemas.keystore import generate_key, load_key
from node.cli.market import app
from node.local_market import Funds, LocalMarket, MarketPlan
from node.local_market.plan import CUSTOMER
from tests.command_line import run_cli

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CREDIT = 1_000_000
PARAMS = {"term_ms": "1000", "idle_block_interval_ms": "200"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMarket]:
    plan = MarketPlan(name="ledger", nodes=1, params=PARAMS, accounts={CUSTOMER: Funds()})
    async with LocalMarket(tmp_path_factory.mktemp("market")) as started:
        await started.start(plan, lambda _line: None)
        yield started


def get_account(market: LocalMarket, node: str) -> str:
    return load_key(market.home.get_node_key(node)).node_id.hex()


def get_home(market: LocalMarket) -> tuple[str, str]:
    return ("--home", str(market.home.path))


async def invoke(*arguments: str) -> Result:
    """Run a command in this process: starting one costs a second of processor time."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


async def show(market: LocalMarket, *arguments: str) -> str:
    """Run a command that must succeed on the local market; give what it printed."""
    result = await invoke(*arguments, *get_home(market))
    assert result.exit_code == 0, (arguments, result.exception, result.stderr)
    return result.stdout


async def run(market: LocalMarket, *arguments: str) -> Any:
    """Run a command that must succeed on the local market; give what it printed as JSON."""
    return json.loads(await show(market, *arguments, "--json"))


async def test_a_node_is_paid_stakes_votes_and_leaves(market: LocalMarket) -> None:
    node, account = ("--node", "node-1"), get_account(market, "node-1")
    paid = await run(market, "transfer", account, "7.5")
    assert paid["is_proven"]
    shown = await run(market, "transaction", paid["id"])
    assert shown["body"] == {"TransferFunds": {"to": account, "amount_micros": 7_500_000}}
    assert (shown["code"], shown["height"]) == ("ok", paid["height"])

    await run(market, "stake", "2.5", *node)
    await run(market, "deposit", "place", "3", *node)
    await run(market, "deposit", "withdraw", "1.000001", *node)
    await run(market, "escrow", "fund", "1", *node)
    await run(market, "unstake", "0.5", *node)
    held = await run(market, "balance", "--verify", *node)
    assert held["staked_micros"] == 102 * CREDIT
    assert held["unbonding_micros"] == CREDIT // 2
    assert held["deposit_micros"] == 1_999_999
    assert held["escrow_micros"] == CREDIT
    validators = await run(market, "validators")
    powers = {validator["id"]: validator["power_micros"] for validator in validators}
    assert powers[account] in {int(102.5 * CREDIT), 102 * CREDIT}
    assert len(powers) == 4


async def test_a_vote_is_shown_and_a_decision_holds_from_the_next_term_on(
    market: LocalMarket,
) -> None:
    vote = ("vote", "parameter", "bid_fee_micros", "3")
    await run(market, *vote, "--node", "validator-1")
    shown = {one["name"]: one for one in await run(market, "parameters")}
    assert shown["bid_fee_micros"]["votes"] == [[get_account(market, "validator-1"), 3]]
    assert "term_ms" not in shown
    out = await show(market, "parameters", "--all")
    assert "term_ms" in out
    assert "validator-1" in out
    for number in (2, 3):
        await run(market, *vote, "--node", f"validator-{number}")
    async with asyncio.timeout(20):
        fee = (await run(market, "parameters"))[4]
        while fee["value"] != 3:
            assert (fee["name"], fee["next_value"]) == ("bid_fee_micros", 3)
            fee = (await run(market, "parameters"))[4]
    assert fee["votes"] == []


async def test_tables_are_for_people(market: LocalMarket) -> None:
    listed = await show(market, "validators")
    assert "validator-3" in listed
    assert "100.000000" in listed
    account = get_account(market, "validator-1")
    paid = await show(market, "transfer", account, "0.25", "--no-wait")
    assert "paid 0.250000 credits to validator-1" in paid
    assert "as one node says" in paid
    withdrawn = await show(market, "escrow", "withdraw", "1")
    assert "proven by the validators' signatures" in withdrawn
    shown = await show(market, "transaction", withdrawn.split()[-1])
    assert "WithdrawEscrow" in shown
    assert "1.000000 credits" in shown


async def test_a_refusal_names_the_fix(market: LocalMarket, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    generate_key(stranger)
    friend = "ab" * 32
    key = ("--key", str(stranger))
    elsewhere = ("--market", market.bootstrap[0])
    cases: list[tuple[list[str], str]] = [
        (["stake", "5"], "no running node of the market has this key"),
        (["stake", "5", "--node", "validator-2"], "have money transferred to the account first"),
        (["stake", "5", "--anyway", *key], "the ledger holds no account"),
        (["stake", "1e3", "--node", "node-1"], "at most six decimals"),
        (["stake", "0", "--node", "node-1"], "above 0"),
        (["stake", "0.0000001", "--node", "node-1"], "at most six decimals"),
        (["stake", "5", "--node", "node-9"], "no node 'node-9'; it has node-1, validator-1"),
        (["stake", "5", "--node", "../keys/node-1"], "no node"),
        (["stake", "5", "--node", "node-1", *key], "--node names a node of a local market"),
        (["unstake"], "AMOUNT in credits, or --all"),
        (["unstake", "5", "--all"], "AMOUNT in credits, or --all"),
        (["unstake", "--all"], "nothing staked"),
        (["unstake", "5"], "only a validator may do this: stake first"),
        (["unstake", "99.5", "--node", "validator-3"], "leave all, or at least 1000000"),
        (["unstake", "900", "--node", "validator-3"], "take no more than is staked"),
        (["vote", "parameter", "term_ms", "5", "--node", "node-1"], "votes can change absence_"),
        (["vote", "parameter", "jail_ms", "0", "--node", "node-1"], "must be at least 1, got 0"),
        (["vote", "parameter", "jail_ms", "5"], "--node NAME in a local market, else --key FILE"),
        (["vote", "parameter", "jail_ms", "600000", "--node", "node-1"], "or holds, already"),
        (["deposit", "withdraw", "5"], "take no more than is deposited"),
        (["escrow", "withdraw", "500"], "what open terms may still settle stays in escrow"),
        (["transfer", friend, "5000"], "take less, or have money transferred"),
        (["transfer", "friend", "5"], "`iemas validators` lists those of the nodes"),
        (["balance", "--node", "node-1", "--account", "customer"], "--account names an account"),
        (["transaction", os.urandom(32).hex()], "may still wait to be recorded: look again"),
        (["transaction", "12"], "64 hex digits"),
        (["stake", "5", *elsewhere], "--market needs --key FILE"),
        (["validators", *elsewhere, "--genesis", str(tmp_path / "none.json")], "none.json"),
    ]
    for arguments, expected in cases:
        result = await invoke(*arguments, *(() if "--market" in arguments else get_home(market)))
        assert isinstance(result.exception, IemasError), (arguments, result)
        assert expected in str(result.exception), arguments


async def test_a_refusal_is_one_line_on_stderr(market: LocalMarket) -> None:
    code, out, err = await run_cli("stake", "5", "--node", "node-9", *get_home(market))
    assert (code, out) == (2, "")
    assert err.startswith("error: the market in")
    assert err.count("\n") == 1


async def test_a_payment_that_is_not_proven_is_named_before_it_is_repeated(
    market: LocalMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prove(_client: AsyncClient, _receipt: Any) -> None:
        raise UnverifiedTransactionError("its newest header is 40 s old")

    with monkeypatch.context() as patch:
        patch.setattr(AsyncClient, "get_transaction", prove)
        result = await invoke("transfer", "ab" * 32, "1", *get_home(market))
    assert isinstance(result.exception, UnconfirmedTransactionError)
    transaction = result.exception.operands["transaction"]
    assert f"`iemas transaction {transaction}` before you repeat it" in str(result.exception)
    assert (await run(market, "transaction", str(transaction)))["code"] == "ok"


async def test_a_market_elsewhere_is_proven_from_its_genesis_file(
    market: LocalMarket, tmp_path: Path
) -> None:
    key = str(market.customer_key)
    genesis = ("--genesis", str(market.home.genesis_file))
    result = await invoke("validators", "--market", market.bootstrap[0], *genesis)
    assert result.exit_code == 0
    assert "votes with" in result.stdout
    other = load_genesis(market.home.genesis_file)[0]
    save_genesis(replace(other, time_ms=other.time_ms + 1), tmp_path / "genesis.json")
    genesis = ("--genesis", str(tmp_path / "genesis.json"))
    for command in (["validators"], ["balance", "--verify", "--key", key], ["verify", "--all"]):
        result = await invoke(*command, "--market", market.bootstrap[0], *genesis)
        assert isinstance(result.exception, ConfigurationError), command
        assert "this genesis file is of chain ledger-" in str(result.exception)


async def test_a_history_is_checked_from_a_genesis_that_the_caller_has_or_is_told_of(
    market: LocalMarket,
) -> None:
    elsewhere = ("verify", "--all", "--market", market.bootstrap[0])
    _, chain_id, _ = load_genesis(market.home.genesis_file)
    result = await invoke(*elsewhere)
    assert result.exit_code == 0, result.stdout
    assert f"from the genesis of chain {chain_id}, which the node itself showed" in result.stdout
    assert "--genesis FILE" in result.stdout
    assert not json.loads((await invoke(*elsewhere, "--json")).stdout)["is_genesis_trusted"]
    genesis = ("--genesis", str(market.home.genesis_file))
    for given in ((*elsewhere, *genesis), ("verify", "--all", *get_home(market))):
        result = await invoke(*given)
        assert result.exit_code == 0, result.stdout
        assert "everything holds" in result.stdout
        assert "showed" not in result.stdout


async def test_what_was_verified_is_kept_in_the_markets_folder(market: LocalMarket) -> None:
    await show(market, "validators")
    (kept,) = (path for path in market.home.trusted_dir.iterdir())
    kept.write_bytes(b"damaged")
    code, _, err = await run_cli("validators", *get_home(market))
    assert code == 0
    assert err.startswith("warning: ")
    assert "does not hold a verified header" in err
    assert kept.read_bytes() != b"damaged"
