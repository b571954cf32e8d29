"""The command `iemas-node`: create a key, run a node, ask a node how it is."""

from __future__ import annotations

import faulthandler
import inspect
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.table import Table

from iemas.core.types import short_id
from iemas.keystore import generate_key
from iemas.tls import Address, connect
from iemas.v1 import market_service_pb2, market_service_pb2_grpc
from node.cli.common import (
    add_version,
    console,
    create_app,
    format_credits,
    read_address,
    run_async,
    run_cli,
)
from node.config import CONFIG_VARIABLE, NodeSettings, get_flag, get_variable, load_settings

app = create_app("Run a node of an IEMAS market beside your own inference server.")

add_version(app)


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="The key file to create; never overwritten.")],
) -> None:
    """Create a node's private key (mode 0600) and print its node id."""
    identity = generate_key(path)
    typer.echo(identity.node_id.hex())


@app.command()
def status(
    address: Annotated[str, typer.Argument(help="The node's public address, nodeid@host:port.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
) -> None:
    """Ask a node how it is."""
    where = read_address(address)
    console.print(_build_status_table(where, run_async(_get_status(where, timeout))))


async def _get_status(
    address: Address,
    timeout: float,  # noqa: ASYNC109 - handed on to gRPC as the call's deadline
) -> market_service_pb2.GetStatusResponse:
    async with await connect(address, timeout) as channel:
        stub = market_service_pb2_grpc.MarketServiceStub(channel)
        return await stub.GetStatus(market_service_pb2.GetStatusRequest(), timeout=timeout)


def _build_status_table(address: Address, answer: market_service_pb2.GetStatusResponse) -> Table:
    table = Table("node", str(address), title="node status")
    refused = ", ".join(f"{name} {answer.refused[name]}" for name in sorted(answer.refused))
    for name, value in (
        ("ledger height", answer.height),
        ("state root", answer.state_root.hex()),
        ("money in the ledger", f"{format_credits(answer.total_money_micros)} credits"),
        ("term", answer.term),
        ("transcripts verified", answer.transcripts_verified),
        ("transcripts refused", answer.transcripts_refused),
        ("last transcript", short_id(answer.last_transcript_hash) or "none"),
        ("peers alive", answer.peers_alive),
        ("active tasks", answer.active_tasks),
        ("channels to settle", answer.unsettled_channels),
        ("ask", _describe_ask(answer)),
        ("refused inputs", refused or "none"),
        ("peers cut off", ", ".join(_describe_cut(peer) for peer in answer.peers if peer.cuts)),
    ):
        table.add_row(name, str(value) or "none")
    return table


def _describe_ask(answer: market_service_pb2.GetStatusResponse) -> str:
    missing = format_credits(answer.ask_missing_micros)
    return answer.ask + (f", {missing} credits are missing" if answer.ask_missing_micros else "")


def _describe_cut(peer: market_service_pb2.PeerRefusals) -> str:
    """Tell a peer that is or was cut off, and for what."""
    worst = sorted(peer.refused.items(), key=lambda item: (-item[1], item[0]))
    why = ", ".join(f"{name} {count}" for name, count in worst)
    now = " now" if peer.cut_until_ms else ""
    return f"{short_id(peer.node_id)}{now} (x{peer.cuts}: {why})"


def _run(config: Path | None = None, **flags: Any) -> None:
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(config, given)
    # The daemon loads every part of a node, which the other commands do not need.
    from node.daemon import run_node  # noqa: PLC0415

    faulthandler.enable()  # one that dies in C code still says where
    run_async(run_node(settings))


def _make_parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Make the option of a setting: text that `load_settings` checks, or a pair of flags."""
    flag = get_flag(name)
    kind: Any = str | None
    flags = flag
    if field.annotation is bool:
        kind = bool | None
        flags = f"{flag}/--no-{flag.removeprefix('--')}"
    elif get_origin(field.annotation) is tuple:
        kind = list[str] | None
    option = typer.Option(flags, help=_describe(name, field), show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _describe(name: str, field: FieldInfo) -> str:
    notes = [get_variable(name)]
    if field.is_required():
        notes.append("required")
    elif field.default is not None and field.default != ():
        notes.append(f"default: {field.default}")
    return f"{field.description} [{'; '.join(notes)}]"


def _add_run_command() -> None:
    """Give `run` one option a setting, so that no setting lacks its flag or its help."""
    config = inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None,
            typer.Option(
                "--config",
                help=f"TOML file with settings; flags and environment win. [{CONFIG_VARIABLE}]",
                show_default=False,
            ),
        ],
    )
    options = [_make_parameter(name, field) for name, field in NodeSettings.model_fields.items()]
    parameters = [config, *options]

    def run(**flags: Any) -> None:
        _run(**flags)

    run.__doc__ = "Run a node until it is told to stop (Ctrl-C or SIGTERM)."
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command("run")(run)


_add_run_command()


def main() -> None:
    """Run `iemas-node`."""
    run_cli(app)


if __name__ == "__main__":
    main()
