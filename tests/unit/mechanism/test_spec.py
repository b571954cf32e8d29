"""The examples of docs/spec/auction.md, run as they stand."""

import doctest
from pathlib import Path

SPEC = Path(__file__).parents[3] / "docs" / "spec" / "auction.md"


def test_examples_of_the_spec_hold() -> None:
    results = doctest.testfile(str(SPEC), module_relative=False, encoding="utf-8")
    assert results.attempted > 20
    assert results.failed == 0
