"""Every engine passes every check. Source: docs/spec/application.md §2."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.checks import CHECKS, Check
from tests.conformance.engines import EmbeddedRig, InProcessRig, Rig

ENGINES: dict[str, Callable[[], Rig]] = {
    "in-process-1": lambda: InProcessRig(1),
    "in-process-4": lambda: InProcessRig(4),
    "embedded-1": lambda: EmbeddedRig(1),
    "embedded-4": lambda: EmbeddedRig(4),
}

CASES = [
    pytest.param(make_rig, check, id=f"{check.name}-{engine}")
    for check in CHECKS
    for engine, make_rig in ENGINES.items()
    if int(engine.rpartition("-")[2]) >= check.least
]


@pytest.mark.parametrize(("make_rig", "check"), CASES)
def test_an_engine_conforms(make_rig: Callable[[], Rig], check: Check) -> None:
    check.run(make_rig())
