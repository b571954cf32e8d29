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
