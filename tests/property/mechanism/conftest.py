"""Counts: what a test tried is printed after the run, also when workers ran it.

A worker of pytest-xdist has no terminal, but what `record_property` is told travels with the
test's report, so the lines are written where the reports arrive.
"""

from collections import Counter
from collections.abc import Callable

import pytest

_PREFIX = "mechanism: "


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Add a number to one of the counts that are printed at the end of the run."""

    def add(what: str, number: int) -> None:
        record_property(_PREFIX + what, int(number))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for what, number in report.user_properties:
            if what.startswith(_PREFIX):
                counts[what.removeprefix(_PREFIX)] += int(str(number))
    for what, number in counts.items():
        terminalreporter.write_line(f"{what}: {number:,}")
