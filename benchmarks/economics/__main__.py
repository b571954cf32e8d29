"""Who is truthful in which clearing mode, when, and what breaks it.

    python -m benchmarks.economics --json results.json --out figures

Writes one JSON object with all tables, and into the folder the same tables in Markdown and plots.
`--only` runs some parts: baseline, lies, collusion, equilibrium, outcomes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._report import add_json_option, write_report
from benchmarks.economics import report
from benchmarks.economics.equilibrium import find_equilibrium
from benchmarks.economics.outcomes.run import run_if_there
from benchmarks.economics.plots import draw_all
from benchmarks.economics.study import (
    MARKET_PARTS,
    PARTS,
    MarketResult,
    MarketTask,
    end_on_interrupt,
    list_markets,
    study_market,
)
from benchmarks.economics.traces import DATA
from iemas.core.params import CLEARING_MODES

Job = Callable[[], Any]


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def run_jobs(jobs: Sequence[Job], processes: int) -> list[Any]:
    """Run jobs in parallel; give their results in the order of the jobs."""
    started, results = time.perf_counter(), []
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=end_on_interrupt)
    try:
        futures = {pool.submit(job): n for n, job in enumerate(jobs)}
        for future in as_completed(futures):
            results.append((futures[future], future.result()))
            if len(results) % max(1, len(jobs) // 20) == 0 or len(results) == len(jobs):
                passed = time.perf_counter() - started
                say(f"{len(results)} of {len(jobs)} jobs, {passed:.0f} s")
    finally:
        pool.shutdown(cancel_futures=True)
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


def list_equilibria(tasks: Sequence[MarketTask]) -> list[Job]:
    """List a job for every kind of market and mode."""
    kinds = dict.fromkeys(task.kind for task in tasks)
    return [
        partial(find_equilibrium, kind, [task.world for task in tasks if task.kind == kind], mode)
        for kind in kinds
        for mode in CLEARING_MODES
    ]


def make_tables(results: list[MarketResult], parts: list[str]) -> dict[str, Any]:
    """Make the tables of the parts that were run."""
    tables: dict[str, Any] = {}
    if results:
        tables["baseline"] = report.make_baseline(results)
    makers: dict[str, dict[str, Callable[[list[MarketResult]], report.Table]]] = {
        "lies": {
            "lies": report.make_lies,
            "lie_classes": report.make_lie_classes,
            "bounds": report.make_bounds,
            "cover_rule": report.make_cover_rule,
        },
        "collusion": {
            "collusion": report.make_collusion,
            "sharing": report.make_sharing,
        },
    }
    for part, named in makers.items():
        if part in parts:
            tables |= {name: make(results) for name, make in named.items()}
    return tables


def write_markdown(path: Path, tables: Mapping[str, Any]) -> None:
    """Write every table that is a list of rows, one after another."""
    sections = [f"## {name}\n\n{report.format_table(table)}" for name, table in flatten(tables)]
    path.write_text("# Tables\n\n" + "\n".join(sections), encoding="utf-8")


def flatten(tables: Mapping[str, Any], prefix: str = "") -> list[tuple[str, report.Table]]:
    """List the tables of nested mappings with their names."""
    found: list[tuple[str, report.Table]] = []
    for name, value in tables.items():
        if isinstance(value, Mapping):
            found += flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            found.append((prefix + name, [dict(row) for row in value]))
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.economics",
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
    )
    add_json_option(parser)
    parser.add_argument("--out", type=Path, help="folder for plots and tables.md; none: not made")
    parser.add_argument("--markets", type=int, default=16, help="markets of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the traces")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="a part to run; can be given again"
    )
    return parser.parse_args()


def run_parts(
    arguments: argparse.Namespace, parts: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run parts of the study; give their tables, and why kinds of markets were left out."""
    markets, skipped = list_markets(arguments.markets, arguments.seed, parts, arguments.data)
    for kind, reason in skipped.items():
        say(f"no {kind} markets: {reason}")
    jobs: list[Job] = []
    if MARKET_PARTS & set(parts):
        jobs += [partial(study_market, market) for market in markets]
    if "equilibrium" in parts:
        jobs += list_equilibria(markets)
    if "outcomes" in parts:
        jobs.append(partial(run_if_there, arguments.seed))
    done = run_jobs(jobs, arguments.jobs)
    results = [result for result in done if isinstance(result, MarketResult)]
    rest = done[len(results) :]
    tables = make_tables(results, parts)
    if "outcomes" in parts:
        tables["outcomes"] = rest.pop()
    if "equilibrium" in parts:
        tables["equilibrium"] = rest
    return tables, skipped


def main() -> int:
    """Run the study and write the report."""
    arguments = parse_arguments()
    parts = [part for part in PARTS if part in (arguments.only or PARTS)]
    started = time.perf_counter()
    try:
        tables, skipped = run_parts(arguments, parts)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_markdown(arguments.out / "tables.md", tables)
        draw_all(tables, arguments.out)
    write_report(
        arguments.json,
        name="economics",
        parameters={
            "markets_per_kind": arguments.markets,
            "seed": arguments.seed,
            "jobs": arguments.jobs,
            "parts": parts,
        },
        figures={
            "seconds": round(time.perf_counter() - started, 1),
            "units": report.UNITS,
            "skipped": skipped,
            "results": tables,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
