"""What the demo shows: a live table of turns, then money, verdicts and terms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from iemas.core.types import AccountId
from iemas.ledger.state import LedgerState
from iemas.ledger.transfer import TREASURY_ID, AccountKind

MICROS = "{:,}"


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One bought turn of a conversation. Tokens and micro-credits as on its receipt."""

    conversation: str
    turn: int
    term: int
    round: int
    auctioneer: str
    winner: str
    prompt_tokens: int
    predicted_cached_tokens: int
    cached_tokens: int
    output_tokens: int
    previous_prompt_tokens: int
    ttft_ms: int
    expected_price_micros: int
    price_micros: int
    attempts: int

    @property
    def reuse(self) -> float | None:
        """Share of the previous prompt that was found cached; None for a first turn."""
        if not self.previous_prompt_tokens:
            return None
        return min(1.0, self.cached_tokens / self.previous_prompt_tokens)


@dataclass(slots=True)
class Report:
    """Everything that a run of the demo found; it passed if nothing in `checks` is false."""

    label: str
    model: str
    rows: list[TurnRow] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    terms: list[tuple[int, str]] = field(default_factory=list)
    balances: list[tuple[str, int, int]] = field(default_factory=list)
    verified: dict[str, int] = field(default_factory=dict)
    mode: str = ""
    problems: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def rotations(self) -> int:
        """How often another term with its own auctioneer began."""
        return max(0, len(self.terms) - 1)

    @property
    def passed(self) -> bool:
        """Whether everything that must hold did."""
        return bool(self.checks) and all(self.checks.values()) and not self.problems

    def export(self) -> dict[str, Any]:
        """Give everything as plain values."""
        return {
            "label": self.label,
            "model": self.model,
            "mode": self.mode,
            "passed": self.passed,
            "checks": self.checks,
            "problems": self.problems,
            "figures": self.figures,
            "rotations": self.rotations,
            "terms": [{"term": term, "auctioneer": name} for term, name in self.terms],
            "verified_rounds": self.verified,
            "balances": [
                {"account": name, "before_micros": before, "after_micros": after}
                for name, before, after in self.balances
            ],
            "rows": [
                {name: getattr(row, name) for name in (*row.__dataclass_fields__, "reuse")}
                for row in self.rows
            ],
        }


def render_turns(report: Report) -> RenderableType:
    """Draw the turns so far, and what every conversation waits for."""
    title = f"{report.model} · {report.label}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("conversation", no_wrap=True, max_width=14)
    for heading in ("turn", "auctioneer", "winner"):
        table.add_column(heading, no_wrap=True)
    for heading in ("prompt", "cached:\npredicted", "reported", "of last\nprompt"):
        table.add_column(heading, justify="right")
    table.add_column("first\ntoken", justify="right")
    table.add_column("price:\nexpected", justify="right")
    table.add_column("paid", justify="right")
    for row in report.rows:
        table.add_row(*_describe(row))
    waiting = "\n".join(f"  {name}: {what}" for name, what in sorted(report.waiting.items()))
    return Group(table, waiting) if waiting else table


def describe_turn(row: TurnRow) -> str:
    """Write a turn as one plain line."""
    return (
        f"{row.conversation} turn {row.turn}: {row.auctioneer} gave it to {row.winner}, "
        f"{row.prompt_tokens} tokens, {row.cached_tokens} cached ({row.predicted_cached_tokens} "
        f"predicted), first token {row.ttft_ms / 1000:.2f} s, paid {row.price_micros}"
    )


def _describe(row: TurnRow) -> list[str]:
    return [
        row.conversation,
        str(row.turn),
        row.auctioneer,
        row.winner,
        str(row.prompt_tokens),
        str(row.predicted_cached_tokens),
        str(row.cached_tokens),
        "" if row.reuse is None else f"{row.reuse:.0%}",
        f"{row.ttft_ms / 1000:.2f} s",
        MICROS.format(row.expected_price_micros),
        MICROS.format(row.price_micros),
    ]


def render_outcome(report: Report) -> RenderableType:
    """Draw money, verdicts, terms and figures after the run."""
    money = Table(title="money in micro-credits", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("account", "before", "after", "change"):
        money.add_column(heading, justify="left" if heading == "account" else "right")
    for name, before, after in report.balances:
        money.add_row(name, f"{before:,}", f"{after:,}", f"{after - before:+,}")
    before_all = sum(before for _, before, _ in report.balances)
    after_all = sum(after for _, _, after in report.balances)
    money.add_section()
    money.add_row("sum", f"{before_all:,}", f"{after_all:,}", f"{after_all - before_all:+,}")
    checks = Table(title="what must hold", box=SIMPLE_HEAD, show_header=False, padding=(0, 1))
    for name, holds in report.checks.items():
        checks.add_row("[green]yes[/green]" if holds else "[red]NO[/red]", name)
    figures = Table(
        title=f"figures (clearing mode {report.mode})",
        box=SIMPLE_HEAD,
        show_header=False,
        padding=(0, 1),
    )
    for name, value in report.figures.items():
        figures.add_row(name, f"{value:,.3f}".rstrip("0").rstrip("."))
    verified = ", ".join(f"{name} {count}" for name, count in sorted(report.verified.items()))
    terms = " → ".join(f"{name} ({term})" for term, name in report.terms)
    notes = f"rounds verified: {verified}\nauctioneers by term: {terms}"
    return Group(money, checks, figures, notes)


def compute_figures(rows: Sequence[TurnRow], seconds: float) -> dict[str, float]:
    """Sum the turns up."""
    first = [row for row in rows if row.turn == 1]
    later = [row for row in rows if row.reuse is not None]
    figures: dict[str, float] = {"turns": len(rows), "seconds for all turns": round(seconds, 1)}
    if first:
        figures["median first token of a first turn, s"] = _median_s(first)
    if later:
        reuses = [row.reuse or 0.0 for row in later]
        figures["median first token of a later turn, s"] = _median_s(later)
        figures["least share of the last prompt cached"] = round(min(reuses), 3)
        figures["mean share of the last prompt cached"] = round(statistics.mean(reuses), 3)
        figures["cached tokens predicted / reported"] = round(
            sum(row.predicted_cached_tokens for row in later)
            / max(1, sum(row.cached_tokens for row in later)),
            3,
        )
    figures["paid, micro-credits"] = sum(row.price_micros for row in rows)
    figures["expected, micro-credits"] = sum(row.expected_price_micros for row in rows)
    return figures


def _median_s(rows: Sequence[TurnRow]) -> float:
    return round(statistics.median(row.ttft_ms for row in rows) / 1000, 3)


def list_balances(
    before: LedgerState, after: LedgerState, names: dict[AccountId, str]
) -> list[tuple[str, int, int]]:
    """List what every account held before and after, stakes and escrow apart."""
    rows: list[tuple[str, int, int]] = []
    for owner in sorted({*before.accounts, *after.accounts}, key=lambda o: names.get(o, o.hex())):
        name = "treasury" if owner == TREASURY_ID else names.get(owner, owner.hex()[:10])
        for kind in AccountKind:
            if kind is AccountKind.ISSUANCE:
                continue
            held = _sum(before, owner, kind), _sum(after, owner, kind)
            if any(held):
                suffix = "" if kind is AccountKind.TREASURY else f", {kind.name.lower()}"
                rows.append((name + suffix, *held))
    return rows


def _sum(state: LedgerState, owner: AccountId, kind: AccountKind) -> int:
    record = state.accounts.get(owner)
    return sum(b.micros for b in record.balances if b.kind is kind) if record else 0
