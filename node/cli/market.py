"""The command `iemas`: run a market on this machine, buy from one, check one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from iemas.client import BidOptions
from iemas.core.errors import BadRequestError, ConfigurationError
from iemas.genesis import load_genesis
from iemas.tls import parse_address
from node.cli.access import (
    DEFAULT_NAME,
    AccountOption,
    GenesisOption,
    HomeOption,
    JsonOption,
    KeyOption,
    MarketOption,
    NameOption,
    NodeOption,
    find_access,
)
from node.cli.common import add_version, console, create_app, format_credits, run_async, run_cli
from node.cli.conversation import ChatSettings, chat_on, chat_once, require_prompt
from node.cli.ledger import ledger_app
from node.cli.local import market_app
from node.cli.progress import show_progress
from node.cli.views import fetch_nodes, print_json, render_nodes

if TYPE_CHECKING:
    from node.cli.history import Findings

EXAMPLES = """

Examples:

\b
  iemas market up --backend simulated --detach    a market of 3 nodes, made-up answers
  iemas market up --backend vllm-cpu              real vLLM servers on this CPU
  iemas chat "What is a KV cache?"                one question
  iemas chat                                      a conversation
  iemas balance                                   what is left
  iemas verify --all                              re-check everything that happened
  iemas validators                                who votes, with what stake
  iemas stake 5 --node node-1                     more of it
  iemas vote parameter bid_fee_micros 2 --node node-1
  iemas market down
"""

_notes = Console(stderr=True)
app = create_app("Buy and sell LLM inference in a market that nobody owns." + EXAMPLES)
add_version(app)
app.add_typer(market_app, name="market")
app.add_typer(ledger_app)


# --- buying --------------------------------------------------------------------------------------


@app.command("chat")
def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The question; `-` reads it from standard input; none: converse."),
    ] = None,
    *,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 256,
    temperature: Annotated[float | None, typer.Option("--temperature")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    model: Annotated[str | None, typer.Option("--model")] = None,
    value_micros: Annotated[
        int | None,
        typer.Option("--value", help="The most that an answer may cost, in micro-credits."),
    ] = None,
    deadline_ms: Annotated[
        int, typer.Option("--deadline-ms", help="Later tokens are worth less; 0: no matter.")
    ] = 0,
    name: NameOption = DEFAULT_NAME,
    home: HomeOption = None,
    market: MarketOption = None,
    key: KeyOption = None,
    account: AccountOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question, or converse, and see who won it, what was cached, what it cost."""
    if max_tokens < 1:
        raise BadRequestError(f"--max-tokens must be at least 1, got {max_tokens}", code="range")
    if prompt == "-":
        prompt = sys.stdin.read()
    if prompt is not None:
        require_prompt(prompt)
    access = find_access(name=name, home=home, market=market, key=key, account=account)
    settings = ChatSettings(max_tokens, temperature, model, system, as_json)
    bid = BidOptions(value_micros=value_micros, deadline_ms=deadline_ms)

    async def run() -> None:
        async with access.connect(bid) as client:
            if prompt is None:
                await chat_on(access, client, settings)
            else:
                await chat_once(access, client, prompt, settings)

    run_async(run())


@app.command("balance")
def balance(
    *,
    name: NameOption = DEFAULT_NAME,
    home: HomeOption = None,
    market: MarketOption = None,
    key: KeyOption = None,
    account: AccountOption = None,
    node: NodeOption = None,
    genesis: GenesisOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove it by the validators' signatures.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show an account's money: available, in escrow, staked, and what it may spend this term."""
    access = find_access(
        name=name,
        home=home,
        market=market,
        key=key,
        account=account,
        node=node,
        genesis=genesis,
    )

    async def run() -> None:
        async with access.connect() as client:
            held = await client.balance(verify=verify)
        if as_json:
            print_json({field: getattr(held, field) for field in held.__dataclass_fields__})
            return
        table = Table(show_header=False)
        if not held.exists:
            raise ConfigurationError(
                f"the ledger holds no account {held.account}: have money transferred to it, or "
                "use the key of one that has"
            )
        for label, micros in (
            ("available", held.available_micros),
            ("in escrow", held.escrow_micros),
            ("to spend this term", held.allowance_micros),
        ):
            table.add_row(label, f"{format_credits(micros)} credits")
        for label, micros in (
            ("staked", held.staked_micros),
            ("unbonding", held.unbonding_micros),
            ("held for others", held.pending_micros),
            ("deposited", held.deposit_micros),
        ):
            if micros:
                table.add_row(label, f"{format_credits(micros)} credits")
        if held.verified:
            table.add_row("proven", f"after block {held.height}")
        console.print(f"account {held.account}", highlight=False, soft_wrap=True)
        console.print(table)

    run_async(run())


# --- looking -------------------------------------------------------------------------------------


@app.command("nodes")
def nodes(
    *,
    name: NameOption = DEFAULT_NAME,
    home: HomeOption = None,
    market: MarketOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the market's nodes by their own signed reports."""
    access = find_access(name=name, home=home, market=market, pays=False)

    async def run() -> None:
        async with access.connect() as client:
            found = await fetch_nodes(client, access.names)
        if as_json:
            print_json(found)
        else:
            console.print(render_nodes(found))

    run_async(run())


@app.command("verify")
def verify(
    which: Annotated[
        str | None, typer.Argument(metavar="TERM:ROUND", help="Show this round in full.")
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Replay the ledger, re-check all rounds and nodes.")
    ] = False,
    name: NameOption = DEFAULT_NAME,
    home: HomeOption = None,
    market: MarketOption = None,
    genesis: GenesisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a market's whole history yourself, believing no node.

    Replays every block from genesis, re-checks every round from its transcript, and compares
    every node's state root. Which market it is, its genesis file says: give it with --market. The
    exit code is 1 if anything is wrong.
    """
    if which is None and not everything:
        raise ConfigurationError("say what to verify: --all, or a round as TERM:ROUND")
    # Re-checking loads the mechanism's solver, which the other commands do not need.
    from node.cli.findings import export_findings, render_findings, render_round  # noqa: PLC0415
    from node.cli.history import History, check_market  # noqa: PLC0415

    access = find_access(name=name, home=home, market=market, genesis=genesis, pays=False)
    expected = load_genesis(access.genesis)[2] if access.genesis is not None else None

    async def run() -> History:
        async with access.connect() as client:
            addresses = [parse_address(node.address) for node in await client.nodes()]
        with show_progress(_notes, "fetching the ledger") as tell:
            return await check_market(addresses, expected, tell)

    history = run_async(run())
    if as_json:
        print_json(export_findings(history.findings))
    elif which is not None:
        console.print(render_round(history, which, access.names))
    else:
        console.print(render_findings(history.findings, access.names))
    _conclude(history.findings, quiet=as_json)


def _conclude(findings: Findings, *, quiet: bool) -> None:
    if not quiet:
        for problem in findings.problems:
            console.print(f"[red]wrong:[/red] {problem}", highlight=False)
        if not findings.problems:
            console.print("[green]everything holds[/green]")
        if not findings.is_genesis_trusted:
            console.print(
                f"[yellow]from the genesis of chain {findings.chain_id}, which the node itself "
                "showed:[/yellow] compare the chain's name with someone you trust, or give the "
                "genesis file (--genesis FILE)",
                highlight=False,
                soft_wrap=True,
            )
    if findings.problems:
        raise typer.Exit(1)


def main() -> None:
    """Run `iemas`."""
    run_cli(app)


if __name__ == "__main__":
    main()
