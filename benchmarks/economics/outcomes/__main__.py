"""Run the study of what can be gained once a price stands, and write the report."""

from __future__ import annotations

import argparse

from benchmarks._report import add_json_option, write_report
from benchmarks.economics import outcomes
from benchmarks.economics.outcomes.run import run


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=(outcomes.__doc__ or "").split("\n", maxsplit=1)[0]
    )
    add_json_option(parser)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=36, help="deals behind each row")
    parser.add_argument("--markets", type=int, default=12, help="markets of each size")
    arguments = parser.parse_args()
    try:
        tables = run(arguments.seed, arguments.tasks, arguments.markets)
    except FileNotFoundError as error:
        parser.exit(2, f"{error}\n")
    write_report(
        arguments.json,
        name="outcomes",
        parameters={key: getattr(arguments, key) for key in ("seed", "tasks", "markets")},
        figures=tables,
    )


if __name__ == "__main__":
    main()
