"""What the `iemas` command shows of markets: tables, and the same as plain values for JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iemas.client import AsyncClient
from iemas.core.errors import IemasError
from iemas.tls import parse_address
from node.cli.common import format_credits
from node.cli.history import Findings, History
from node.local_market.home import MarketState, ProcessRecord, is_alive
from node.local_market.probe import NodeStatus, get_status


def print_json(value: Any) -> None:
    """Print a value as JSON, bytes as hex."""
    sys.stdout.write(json.dumps(value, indent=2, default=_encode) + "\n")


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


# --- a local market's processes ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A process of a local market, and what it says of itself if it is a node that answers."""

    record: ProcessRecord
    alive: bool
    status: NodeStatus | None


async def look_at(state: MarketState) -> list[ProcessView]:
    """Ask every node of a local market how it is."""
    return list(await asyncio.gather(*(_look_at(record) for record in state.processes)))


async def _look_at(record: ProcessRecord) -> ProcessView:
    # A server that was given by its URL is not ours to watch.
    alive = is_alive(record) or not record.pid
    status = None
    if alive and record.address:
        try:
            status = await get_status(parse_address(record.address))
        except IemasError:
            status = None
    return ProcessView(record, alive, status)


def render_market(state: MarketState, views: Sequence[ProcessView]) -> RenderableType:
    """Draw a local market's processes."""
    minutes, seconds = divmod(int(time.time() - state.started_at_ms / 1000), 60)
    title = Text.assemble(
        ("market ", "bold"), (state.name, "bold"), f" · model {state.model} · ",
        (state.label, "yellow" if "tests only" in state.label else ""),
        f" · up {minutes}:{seconds:02d}",
    )  # fmt: skip
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for heading in ("process", "pid", "state", "term", "height", "state root", "rounds", "tasks"):
        left = heading in ("process", "state")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for view in views:
        table.add_row(*_describe_process(view))
    return Group(title, table)


def _describe_process(view: ProcessView) -> list[str]:
    record, status = view.record, view.status
    where = record.address.partition("@")[2] or record.url.partition("//")[2]
    pid = str(record.pid) if record.pid else "-"
    if status is None:
        silent = "not answering" if record.address else "up"
        state = silent if view.alive else "ended"
        return [record.name, pid, state, "", "", "", "", "", where]
    return [
        record.name,
        pid,
        "up",
        str(status.term),
        str(status.height),
        status.state_root.hex()[:10],
        f"{status.transcripts_verified}"
        + (f" ({status.transcripts_refused} refused)" if status.transcripts_refused else ""),
        str(status.active_tasks) if record.role == "node" else "",
        where,
    ]


def export_market(state: MarketState, views: Sequence[ProcessView]) -> dict[str, Any]:
    """Give the same as plain values."""
    return {
        "name": state.name,
        "model": state.model,
        "label": state.label,
        "bootstrap": list(state.bootstrap),
        "supervisor_pid": state.supervisor.pid,
        "processes": [
            {
                "name": view.record.name,
                "role": view.record.role,
                "pid": view.record.pid,
                "alive": view.alive,
                "address": view.record.address,
                "url": view.record.url,
                "height": view.status.height if view.status else None,
                "state_root": view.status.state_root if view.status else None,
                "term": view.status.term if view.status else None,
            }
            for view in views
        ],
    }


# --- a whole market's history --------------------------------------------------------------------


def render_findings(findings: Findings, names: dict[str, str]) -> RenderableType:
    """Draw what checking a market's history showed."""
    facts = Table(title=f"chain {findings.chain_id}", box=SIMPLE_HEAD, show_header=False)
    money = (
        f"{format_credits(findings.money_micros)} credits, "
        f"{format_credits(findings.supply_micros)} issued by genesis"
    )
    refused = ", ".join(f"{name} {count}" for name, count in sorted(findings.refused.items()))
    cleared = ", ".join(
        f"{names.get(node, node[:10])} {count}"
        for node, count in sorted(findings.rounds_by_auctioneer.items())
    )
    for name, value in (
        ("blocks replayed from genesis", str(findings.height)),
        ("state root", findings.state_root.hex()),
        ("transactions", f"{findings.transactions} ({refused or 'none'} refused)"),
        ("money", money),
        ("terms", str(findings.terms)),
        ("rounds re-checked", f"{findings.rounds} ({cleared or 'none'})"),
        ("bids, allocations", f"{findings.bids}, {findings.allocations}"),
    ):
        facts.add_row(name, value)
    nodes = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("node", "height", "state root", "rounds verified", "refused"):
        nodes.add_column(heading, justify="right" if heading != "node" else "left")
    for verdict in findings.nodes:
        status = verdict.status
        name = names.get(verdict.node_id.hex(), verdict.node_id.hex()[:10])
        if status is None:
            nodes.add_row(name, "", "does not answer", "", "")
            continue
        root = "equals the replay's" if verdict.agrees else "DIFFERS"
        verified, rejected = str(status.transcripts_verified), str(status.transcripts_refused)
        nodes.add_row(name, str(status.height), root, verified, rejected)
    return Group(facts, nodes)


def export_findings(findings: Findings) -> dict[str, Any]:
    """Give the same as plain values."""
    return {
        "holds": not findings.problems,
        "problems": findings.problems,
        "chain_id": findings.chain_id,
        "height": findings.height,
        "state_root": findings.state_root,
        "money_micros": findings.money_micros,
        "supply_micros": findings.supply_micros,
        "transactions": findings.transactions,
        "refused": dict(findings.refused),
        "terms": findings.terms,
        "rounds": findings.rounds,
        "bids": findings.bids,
        "allocations": findings.allocations,
        "rounds_by_auctioneer": dict(findings.rounds_by_auctioneer),
        "nodes": [
            {
                "address": verdict.address,
                "agrees": verdict.agrees,
                "height": verdict.status.height if verdict.status else None,
                "rounds_verified": verdict.status.transcripts_verified if verdict.status else None,
                "rounds_refused": verdict.status.transcripts_refused if verdict.status else None,
            }
            for verdict in findings.nodes
        ],
    }


def render_round(history: History, term: int, number: int, names: dict[str, str]) -> RenderableType:
    """Draw one re-checked round: who bid, who got what, and why. Raises: KeyError."""
    cleared = history.cleared[term, number]
    transcript = cleared.transcript.message
    title = (
        f"round {term}:{number}, cleared by {_name(transcript.auctioneer, names)}, "
        f"witness {_name(transcript.witness, names)}"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("task", "account", "prompt", "matched blocks", "winner", "cost", "price"):
        table.add_column(heading, justify="right")
    position = {task: n for n, task in enumerate(cleared.tasks)}
    for index, task in enumerate(transcript.tasks):
        account = task.sealed_bid.message.account.hex()[:10]
        blocks = " ".join(str(count) for count in task.matched_blocks)
        n = position.get(index)
        winner = int(cleared.clearing.assignment[n]) if n is not None else -1
        if n is None or winner < 0:
            table.add_row(str(index), account, "", blocks, "unmatched", "", "")
            continue
        cost = int(cleared.valuation.cost_micros[n, winner])
        table.add_row(
            str(index),
            account,
            str(cleared.bids[n].prompt_tokens),
            blocks,
            _name(transcript.providers[winner].capability.message.stamp.node_id, names),
            str(cost),
            str(cost + int(cleared.clearing.surcharges[n])),
        )
    return table


def _name(node_id: bytes, names: dict[str, str]) -> str:
    return names.get(node_id.hex(), node_id.hex()[:10])


# --- nodes, balance ------------------------------------------------------------------------------


async def fetch_nodes(client: AsyncClient, names: dict[str, str]) -> list[dict[str, Any]]:
    """Give the market's nodes as plain values."""
    return [
        {
            "name": names.get(node.id, node.id[:10]),
            "id": node.id,
            "address": node.address,
            "model": node.model,
            "slots": node.slots,
            "active_tasks": node.active_tasks,
            "digest_blocks": node.digest_blocks,
            "kv_events": node.kv_events,
            "hardware": node.hardware,
            "software": node.software,
            "suspected": node.suspected,
        }
        for node in await client.nodes()
    ]


def render_nodes(nodes: Sequence[dict[str, Any]]) -> RenderableType:
    """Draw the market's nodes."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("node", "model", "busy", "cached blocks", "digest", "hardware", "where"):
        table.add_column(heading)
    for node in nodes:
        sells = bool(node["model"])
        digest = "exact" if node["kv_events"] else "estimated"
        table.add_row(
            node["name"] + (" (suspected down)" if node["suspected"] else ""),
            node["model"] or "sells nothing",
            f"{node['active_tasks']} of {node['slots']}" if sells else "",
            str(node["digest_blocks"]) if sells else "",
            digest if sells else "",
            node["hardware"],
            node["address"].partition("@")[2],
        )
    return table
