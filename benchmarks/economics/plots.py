"""Plots of the tables. Colours are Okabe and Ito's, which most people can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.economics.report import Table
from iemas.core.params import CLEARING_MODES

mpl.use("Agg")
mpl.rcParams.update(
    {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)

COLOURS: Final = {
    "provider": "#D55E00",
    "client": "#0072B2",
    "threshold": "#009E73",
    "vcg": "#CC79A7",
}
MARKERS: Final = {"provider": "o", "client": "s", "threshold": "^"}
GREY: Final = "#999999"
DPI: Final = 110


def draw_all(tables: Mapping[str, Any], folder: Path) -> None:
    """Draw every plot that there are tables for."""
    plots: dict[str, tuple[str, Callable[[Table], Figure]]] = {
        "split.png": ("baseline", draw_split),
        "deficit.png": ("baseline", draw_deficit),
        "lies.png": ("lies", draw_lies),
        "lies_by_market.png": ("lies", draw_lies_by_market),
        "collusion.png": ("collusion", draw_collusion),
        "sharing.png": ("sharing", draw_sharing),
        "equilibrium.png": ("equilibrium", draw_equilibrium),
    }
    for name, (table, draw) in plots.items():
        if tables.get(table):
            save(draw(tables[table]), folder / name)
    stopping = tables.get("outcomes", {}).get("stopping_early")
    if stopping:
        save(draw_stopping(stopping), folder / "stopping_early.png")


def save(figure: Figure, path: Path) -> None:
    """Save a plot with as few colours as it needs, so that it stays small."""
    memory = BytesIO()
    figure.savefig(memory, format="png", dpi=DPI, bbox_inches="tight")
    with Image.open(memory) as image:
        few = image.convert("RGB").quantize(colors=64, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def select(table: Table, **wanted: object) -> Table:
    """Select rows by what stands in some columns."""
    return [row for row in table if all(row[key] == value for key, value in wanted.items())]


def percent(row: Mapping[str, object], key: str) -> float:
    """Read a share as a percentage; what is not defined is not drawn."""
    value = row[key]
    return float("nan") if value is None else 100.0 * float(str(value))


def list_values(table: Table, key: str) -> list[str]:
    """List what a column holds, in order of appearance."""
    return list(dict.fromkeys(str(row[key]) for row in table))


def place_bars(axes: Axes, groups: list[str], n_bars: int) -> tuple[np.ndarray, float]:
    """Label groups of bars; give the left-most bars' places and a bar's width."""
    places = np.arange(len(groups), dtype=float)
    axes.set_xticks(places, groups)
    axes.grid(visible=False, axis="x")
    width = 0.8 / n_bars
    return places - 0.4 + width / 2, width


def draw_split(table: Table) -> Figure:
    """Draw who gets the gains if everybody is truthful, and what prediction errors cost in all."""
    markets = list_values(table, "market")
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, gridspec_kw={"height_ratios": [3, 2]})
    left, width = place_bars(upper, markets, len(CLEARING_MODES))
    for n, mode in enumerate(CLEARING_MODES):
        rows = [select(table, market=m, mode=mode, noise=0.0, bias=0.0)[0] for m in markets]
        sold = np.array([percent(row, "providers_share") for row in rows])
        rest = np.array([percent(row, "requesters_share") for row in rows])
        upper.bar(left + n * width, sold, width * 0.92, color=COLOURS[mode], label=mode)
        upper.bar(
            left + n * width,
            rest,
            width * 0.92,
            bottom=sold,
            color=COLOURS[mode],
            alpha=0.25,
        )
    upper.set_ylabel("share of the gains from trade (%)")
    upper.set_title(
        "Everybody truthful: gains of providers (full) and requesters (pale)", fontsize=12
    )
    upper.legend(title="mode", loc="center left", bbox_to_anchor=(1.0, 0.5))
    errors = [("noise", 0.3, 0.0), ("noise", 0.5, 0.0), ("bias", 0.0, -0.5), ("bias", 0.0, 0.5)]
    shades = ["#56B4E9", "#0072B2", "#E69F00", "#D55E00"]
    left, width = place_bars(lower, markets, len(errors))
    for n, ((name, noise, bias), shade) in enumerate(zip(errors, shades, strict=True)):
        rows = [
            select(table, market=m, mode=CLEARING_MODES[0], noise=noise, bias=bias)[0]
            for m in markets
        ]
        lost = [100.0 - percent(row, "efficiency_share") for row in rows]
        label = f"noise {noise:.0%}" if name == "noise" else f"bias {bias:+.0%}"
        lower.bar(left + n * width, lost, width * 0.92, color=shade, label=label)
    lower.set_ylabel("welfare lost (%)")
    lower.set_title("Lost to errors of predicted times and lengths, in every mode", fontsize=12)
    lower.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_deficit(table: Table) -> Figure:
    """Draw what full two-sided VCG would lose."""
    markets = list_values(table, "market")
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    left, width = place_bars(axes, markets, 1)
    rows = [select(table, market=m, mode="client", noise=0.0, bias=0.0)[0] for m in markets]
    values = [percent(row, "vcg_deficit_share") for row in rows]
    bars = axes.bar(left, values, width * 0.8, color=COLOURS["vcg"])
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.margins(y=0.1)
    axes.set_ylabel("deficit (% of welfare)")
    axes.set_title("What full two-sided VCG would lose; no mode loses anything", fontsize=12)
    return figure


def draw_lies(table: Table) -> Figure:
    """Draw best lies against noise and against bias, the mean over kinds of markets.

    `random` is left out: there lies gain without any error, see `draw_lies_by_market`.
    """
    table = [row for row in table if row["market"] != "random"]
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    grid = figure.subplots(2, 2, sharey="row")
    for line, side in enumerate(("requester", "provider")):
        for column, name in enumerate(("noise", "bias")):
            axes = grid[line][column]
            other = "bias" if name == "noise" else "noise"
            rows = select(table, side=side, **{other: 0.0})
            levels = sorted({float(str(row[name])) for row in rows})
            for mode in CLEARING_MODES:
                for key, style in (("best", "-"), ("fixed", "--")):
                    values = [
                        np.nanmean(
                            [
                                percent(row, f"{key}_gain_of_vcg_share")
                                for row in select(rows, mode=mode, **{name: level})
                            ]
                        )
                        for level in levels
                    ]
                    axes.plot(
                        [100 * level for level in levels],
                        values,
                        style,
                        color=COLOURS[mode],
                        marker=MARKERS[mode],
                        markersize=5,
                        fillstyle="full" if key == "best" else "none",
                        label=f"{mode}, {'full knowledge' if key == 'best' else 'fixed lie'}",
                    )
            axes.set_title(f"{side}s", fontsize=12)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xlabel(f"{name} of predicted times and lengths (%)")
            if column == 0:
                axes.set_ylabel("gain (% of VCG payoff)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(
        "What the best lie of one agent gains, everybody else truthful\n"
        "(mean over markets in which every bid covers every cost)",
        fontsize=13,
    )
    return figure


def draw_lies_by_market(table: Table) -> Figure:
    """Draw best lies under perfect predictions by kind of market."""
    markets = list_values(table, "market")
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for axes, side in zip(figure.subplots(2, 1), ("requester", "provider"), strict=True):
        left, width = place_bars(axes, markets, len(CLEARING_MODES))
        for n, mode in enumerate(CLEARING_MODES):
            rows = [
                select(table, market=m, mode=mode, side=side, noise=0.0, bias=0.0)[0]
                for m in markets
            ]
            best = [percent(row, "best_gain_of_vcg_share") for row in rows]
            fixed = [percent(row, "fixed_gain_of_vcg_share") for row in rows]
            axes.bar(left + n * width, best, width * 0.92, color=COLOURS[mode], label=mode)
            axes.plot(
                left + n * width,
                fixed,
                "D",
                color="black",
                markerfacecolor="white",
                markersize=5,
                label="best fixed lie" if n == len(CLEARING_MODES) - 1 else None,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel("gain (% of VCG payoff)")
        axes.set_title(f"{side}s", fontsize=12)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(
        "Best lies under perfect predictions: full knowledge (bars), fixed (diamonds)", fontsize=13
    )
    return figure


SCHEMES: Final = (
    ("shill", "", "shills,\nfree if\nunused"),
    ("accomplice", "10", "accom-\nplice"),
    ("crowd", "4", "crowd of\naccom-\nplices"),
    ("account", "1", "account\nof 1 task"),
    ("account", "4", "account\nof 4 tasks"),
    ("split", "same ask", "provider\nas two,\nsame ask"),
    ("split", "second dearer", "provider\nas two,\none dearer"),
)


def draw_collusion(table: Table) -> Figure:
    """Draw gains of groups, the mean over kinds of markets; `random` is left out."""
    table = [row for row in table if row["market"] != "random"]
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, gridspec_kw={"height_ratios": [3, 2]})
    left, width = place_bars(upper, [label for *_, label in SCHEMES], len(CLEARING_MODES))
    for n, mode in enumerate(CLEARING_MODES):
        values = [_average_gain(table, scheme, variant, mode) for scheme, variant, _ in SCHEMES]
        bars = upper.bar(left + n * width, values, width * 0.92, color=COLOURS[mode], label=mode)
        upper.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    upper.axhline(0, color="black", linewidth=0.8)
    upper.margins(y=0.1)
    upper.set_ylabel("a group's gain\n(% of the market's welfare)")
    upper.legend(title="mode", loc="center left", bbox_to_anchor=(1.0, 0.5))
    found = select(table, scheme="accomplice", rule="vcg")
    sizes = list_values(found, "variant")
    for rule in ("threshold", "vcg"):
        gains = [_average_gain(table, "accomplice", size, rule) for size in sizes]
        lower.plot(
            [float(size) for size in sizes],
            gains,
            marker=MARKERS.get(rule, "D"),
            color=COLOURS[rule],
            label=rule if rule != "vcg" else "full VCG\n(never settled)",
        )
    lower.set_xscale("log")
    lower.set_yscale("log")
    lower.set_xlabel(
        "bid of one accomplice (multiple of the dearest ask); in other modes it gains 0"
    )
    lower.set_ylabel("gain\n(% of welfare)")
    lower.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("What groups gain, before fees, with the best of their tries", fontsize=13)
    return figure


def _average_gain(table: Table, scheme: str, variant: str, rule: str) -> float:
    rows = select(table, scheme=scheme, variant=variant, rule=rule)
    return float(np.nanmean([percent(row, "gain_of_welfare_share") for row in rows]))


def draw_sharing(table: Table) -> Figure:
    """Draw what the rule that shared bonuses by welfare let gain, and what is left of it."""
    table = select(table, variant="best")
    markets = list_values(table, "market")
    figure = Figure(figsize=(10, 10), layout="constrained")
    titles = {
        "accomplice": "a provider and an accomplice that only it can serve",
        "crowd": "a provider and a crowd of accomplices that all could serve",
        "false slots": "a provider that declares more slots than it has",
        "shading": "a requester's best lie about its prices",
    }
    rules = {"provider": "by fallbacks\n(as it is)", "by_welfare": "by welfare\n(before)"}
    for axes, (scheme, title) in zip(figure.subplots(4, 1), titles.items(), strict=True):
        left, width = place_bars(axes, markets, 2)
        for n, (rule, label) in enumerate(rules.items()):
            gains = [
                float(str(select(table, market=m, scheme=scheme, rule=rule)[0]["gain_micros"]))
                for m in markets
            ]
            colour = COLOURS[rule] if n == 0 else GREY
            bars = axes.bar(left + n * width, gains, width * 0.92, color=colour, label=label)
            axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
        axes.margins(y=0.15)
        axes.set_ylabel("gain (micro-credits)")
        axes.set_title(title, fontsize=12)
        axes.legend(title="bonus shared", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("provider mode: what its rule for sharing bonuses changes", fontsize=13)
    return figure


def draw_equilibrium(table: Table) -> Figure:
    """Draw efficiency, the split and the factors where both sides scale as is best."""
    markets = list_values(table, "market")
    figure = Figure(figsize=(10, 8), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1)
    for axes in (upper, middle, lower):
        left, width = place_bars(axes, markets, len(CLEARING_MODES))
    for n, mode in enumerate(CLEARING_MODES):
        rows = [select(table, market=m, mode=mode)[0] for m in markets]
        places = left + n * width
        sold = [percent(row, "providers_share") for row in rows]
        bought = [percent(row, "requesters_share") for row in rows]
        lost = [100.0 - percent(row, "efficiency_share") for row in rows]
        upper.bar(places, sold, width * 0.92, color=COLOURS[mode], label=mode)
        upper.bar(places, bought, width * 0.92, bottom=sold, color=COLOURS[mode], alpha=0.25)
        middle.bar(places, lost, width * 0.92, color=COLOURS[mode], label=mode)
        lower.bar(
            places,
            [percent(row, "ask_factor") - 100 for row in rows],
            width * 0.92,
            color=COLOURS[mode],
            label=mode,
        )
        lower.bar(
            places,
            [percent(row, "bid_factor") - 100 for row in rows],
            width * 0.92,
            color=COLOURS[mode],
            alpha=0.45,
        )
    upper.set_ylabel("share of the\noptimum (%)")
    upper.set_title("Gains of providers (full) and requesters (pale)", fontsize=12)
    middle.set_ylabel("welfare lost (%)")
    middle.set_title("Lost to lies", fontsize=12)
    lower.axhline(0, color="black", linewidth=0.8)
    lower.set_ylabel("off the truth (%)")
    lower.set_title("Asks above the truth, bids below it", fontsize=12)
    middle.legend(title="mode", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Both sides scale their prices as is best for each", fontsize=13)
    return figure


def draw_stopping(table: Table) -> Figure:
    """Draw what a provider gains that stops when the rest of an answer is not worth its cost."""
    table = select(table, world="real", surcharge=0.3)
    kinds = [kind for kind in list_values(table, "lateness") if kind != "none"]
    rules = {
        "one_factor": ("one factor on the total\n(first version)", COLOURS["provider"]),
        "settled": ("a factor a token\n(as it is)", COLOURS["client"]),
    }
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    left, width = place_bars(axes, kinds, len(rules))
    for n, (rule, (label, colour)) in enumerate(rules.items()):
        rows = [select(table, lateness=kind, rule=rule)[0] for kind in kinds]
        values = [percent(row, "best") for row in rows]
        bars = axes.bar(left + n * width, values, width * 0.92, color=colour, label=label)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    axes.margins(y=0.1)
    axes.set_xlabel("deadline and decay")
    axes.set_ylabel("gain (% of honest prices)")
    axes.set_title("What a provider gains by stopping when it pays best", fontsize=12)
    axes.legend(title="lateness counts as", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
