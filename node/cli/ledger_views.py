"""What the ledger's commands show: tables, and the same as plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from iemas.client._types import Parameter, RecordedTransaction, Validator
from iemas.core.envelope import Signed
from iemas.core.types import ID_BYTES
from node.cli.common import format_credits

ID_WIDTH = 2 * ID_BYTES
"""Ids stay in one piece, to be copied: what shows them is printed with `print_wide`."""

GetName = Callable[[str], str]
"""Names a node by its id, as the local market does."""


def export(value: Any) -> Any:
    """Reduce an answer to what JSON has; a transaction's body is under the name of its kind."""
    if isinstance(value, RecordedTransaction):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        fields["body"] = {type(value.body).__name__: _reduce(value.body)}
        return {name: _reduce(field) for name, field in fields.items()}
    return _reduce(value)


def _reduce(value: Any) -> Any:
    if isinstance(value, Signed):
        return _reduce(value.message)
    if dataclasses.is_dataclass(value):
        return {f.name: _reduce(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_reduce(item) for item in value]
    if isinstance(value, dict):
        return {name: _reduce(item) for name, item in value.items()}
    if isinstance(value, Enum):
        return value.name.lower()
    return value.hex() if isinstance(value, bytes) else value


def render_validators(validators: Sequence[Validator], get_name: GetName) -> RenderableType:
    """Draw the validators with their share of the power."""
    total = sum(validator.power_micros for validator in validators) or 1
    height = validators[0].height if validators else 0
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"validators, proven after block {height}")
    for heading in ("node", "votes with", "share", "duty"):
        right = heading in ("votes with", "share")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    table.add_column("account", no_wrap=True)
    for validator in validators:
        table.add_row(
            get_name(validator.id),
            format_credits(validator.power_micros),
            f"{validator.power_micros / total:.1%}",
            _describe_duty(validator),
            validator.id,
        )
    return table


def _describe_duty(validator: Validator) -> str:
    if validator.is_tombstoned:
        return "jailed until it stakes anew"
    if validator.jailed_until_ms is not None:
        return f"jailed until {_format_time(validator.jailed_until_ms)}"
    return validator.duty


def render_parameters(
    parameters: Sequence[Parameter], voters: Sequence[Validator], get_name: GetName
) -> RenderableType:
    """Draw parameters, and for each value that is voted for by whom and with what share."""
    height = parameters[0].height if parameters else 0
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"parameters, proven after block {height}")
    for heading in ("parameter", "value", "from the next term on", "votes"):
        table.add_column(heading, overflow="fold")
    powers = {voter.id: voter.power_micros for voter in voters}
    for parameter in parameters:
        coming = "" if parameter.next_value is None else str(parameter.next_value)
        table.add_row(
            parameter.name, str(parameter.value), coming, _tally(parameter, powers, get_name)
        )
    return table


def _tally(parameter: Parameter, powers: dict[str, int], get_name: GetName) -> str:
    total = sum(powers.values()) or 1
    by_value: dict[int, list[str]] = {}
    for voter, value in parameter.votes:
        by_value.setdefault(value, []).append(voter)
    lines = []
    for value, voters in sorted(by_value.items()):
        share = sum(powers.get(voter, 0) for voter in voters) / total
        names = ", ".join(get_name(voter) for voter in voters)
        lines.append(f"{value}: {share:.1%} ({names})")
    return "\n".join(lines)


def render_recorded(recorded: RecordedTransaction, get_name: GetName) -> RenderableType:
    """Draw a transaction and what became of it."""
    table = Table(title="transaction, proven", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=ID_WIDTH)
    rows = [
        ("id", recorded.id),
        ("block", f"{recorded.height}, {_format_time(recorded.time_ms)}"),
        ("account", recorded.account),
        ("by", get_name(recorded.account)),
        ("what", type(recorded.body).__name__),
        *_list_fields(recorded.body),
        ("result", recorded.code.replace("_", " ")),
        ("detail", recorded.detail),
    ]
    for name, text in rows:
        if text:
            table.add_row(name, text)
    return table


def _list_fields(body: Any) -> list[tuple[str, str]]:
    """List a body's plain fields; of what has parts, how many."""
    rows = []
    for field in dataclasses.fields(body):
        value = _reduce(getattr(body, field.name))
        name = field.name.replace("_", " ")
        if field.name.endswith("_micros"):
            rows.append((name.removesuffix(" micros"), f"{format_credits(value)} credits"))
        elif isinstance(value, list):
            rows.append((name, str(len(value))))
        elif not isinstance(value, dict):
            rows.append((name, str(value)))
    return rows


def _format_time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
