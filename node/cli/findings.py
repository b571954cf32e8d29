"""What `iemas verify` shows: a market's history as this process re-checked it."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from auctioneer.outcomes import ClearedRound
from iemas.core.errors import ConfigurationError
from node.cli.common import format_credits
from node.cli.history import Findings, History


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
        (f"welfare, split by mode {findings.mode}", describe_split(findings)),
        ("deficit of two-sided VCG", f"{findings.vcg_deficit_micros:,} micro-credits, not run"),
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


def describe_split(findings: Findings) -> str:
    """Say who was expected to gain how much from all rounds."""
    providers = findings.provider_gains_micros
    return (
        f"{findings.welfare_micros:,} micro-credits: {providers:,} to providers, "
        f"{findings.welfare_micros - providers:,} to requesters"
    )


def export_findings(findings: Findings) -> dict[str, Any]:
    """Give the same as plain values."""
    return {
        "holds": not findings.problems,
        "problems": findings.problems,
        "chain_id": findings.chain_id,
        "is_genesis_trusted": findings.is_genesis_trusted,
        "height": findings.height,
        "state_root": findings.state_root,
        "money_micros": findings.money_micros,
        "supply_micros": findings.supply_micros,
        "transactions": findings.transactions,
        "refused": dict(findings.refused),
        "terms": findings.terms,
        "rounds": findings.rounds,
        "bids": findings.bids,
        "fees_micros": findings.fees_micros,
        "allocations": findings.allocations,
        "mode": findings.mode,
        "welfare_micros": findings.welfare_micros,
        "provider_gains_micros": findings.provider_gains_micros,
        "vcg_deficit_micros": findings.vcg_deficit_micros,
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


def render_round(history: History, which: str, names: dict[str, str]) -> RenderableType:
    """Draw one re-checked round, TERM:ROUND: who bid, who got what, and why.

    Raises: ConfigurationError if there is no such round.
    """
    term, colon, number = which.partition(":")
    if not (colon and term.isdigit() and number.isdigit()):
        raise ConfigurationError(f"a round is named TERM:ROUND, such as 12:0, not {which!r}")
    cleared = history.cleared.get((int(term), int(number)))
    if cleared is None:
        raise ConfigurationError(f"there is no verified round {which} in this market")
    transcript = cleared.transcript.message
    title = (
        f"round {term}:{number}, cleared by {_name(transcript.auctioneer, names)}, "
        f"witness {_name(transcript.witness, names)}, mode {transcript.clearing.mode}"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in (
        "task",
        "account",
        "prompt",
        "matched blocks",
        "winner",
        "cost",
        "surcharge",
        "price",
    ):
        table.add_column(heading, justify="right")
    position = {task: n for n, task in enumerate(cleared.tasks)}
    for index, task in enumerate(transcript.tasks):
        account = task.sealed_bid.message.account.hex()[:10]
        blocks = " ".join(str(count) for count in task.matched_blocks)
        n = position.get(index)
        winner = int(cleared.clearing.assignment[n]) if n is not None else -1
        if n is None or winner < 0:
            table.add_row(str(index), account, "", blocks, "unmatched", "", "", "")
            continue
        cost = int(cleared.valuation.cost_micros[n, winner])
        surcharge = int(cleared.clearing.surcharges[n])
        table.add_row(
            str(index),
            account,
            str(cleared.bids[n].prompt_tokens),
            blocks,
            _name(transcript.providers[winner].capability.message.stamp.node_id, names),
            str(cost),
            str(surcharge),
            str(cost + surcharge),
        )
    return Group(table, _render_sellers(cleared, names))


def _render_sellers(cleared: ClearedRound, names: dict[str, str]) -> Table:
    """Draw what a slot cost at each provider, what it added to the market, and what it gained."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("provider", "free slots", "tasks", "slot price", "adds to market", "gains"):
        table.add_column(heading, justify="left" if heading == "provider" else "right")
    clearing = cleared.clearing
    for i, provider in enumerate(cleared.transcript.message.providers):
        own = clearing.assignment == i
        figures = (
            provider.free_slots,
            int(own.sum()),
            int(clearing.slot_prices[i]),
            int(clearing.vcg_bonuses[i]),
            int(clearing.surcharges[own].sum()),
        )
        name = _name(provider.capability.message.stamp.node_id, names)
        table.add_row(name, *(str(figure) for figure in figures))
    return table


def _name(node_id: bytes, names: dict[str, str]) -> str:
    return names.get(node_id.hex(), node_id.hex()[:10])
