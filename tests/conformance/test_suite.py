"""The suite itself: every broken engine and application is found, by the check that is for it."""

from __future__ import annotations

import pytest

from iemas.core.errors import IemasError
from tests.conformance.broken_engines import BROKEN, BrokenEngine
from tests.conformance.checks import CHECKS, NotConformingError
from tests.conformance.engines import InProcessRig

REFUSED = (NotConformingError, IemasError)
"""A check says what is broken, or the application itself refuses to be driven like that."""


def make_rig(engine_type: type[BrokenEngine]) -> InProcessRig:
    rig_type = type("BrokenRig", (InProcessRig,), {"engine_type": engine_type})
    rig: InProcessRig = rig_type(4)
    return rig


@pytest.mark.parametrize("engine_type", BROKEN, ids=lambda engine_type: engine_type.__name__)
def test_a_broken_engine_is_found(engine_type: type[BrokenEngine]) -> None:
    rig = make_rig(engine_type)
    with pytest.raises(REFUSED):
        BROKEN[engine_type](rig)


def test_every_check_finds_a_broken_engine() -> None:
    assert set(BROKEN.values()) == {check.run for check in CHECKS}
