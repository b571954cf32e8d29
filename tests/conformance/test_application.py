"""The ledger passes every check of an application. Source: docs/spec/application.md §3."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iemas.ledger.application import LedgerApplication
from iemas.testing.chain import LedgerChain, accept_transcript
from tests.conformance.application_checks import APPLICATION_CHECKS, AppMaker
from tests.conformance.broken_applications import BROKEN_APPLICATIONS
from tests.conformance.test_suite import REFUSED


def make_maker(chain: LedgerChain, app_type: type[LedgerApplication]) -> AppMaker:
    return lambda: app_type(chain.genesis, chain.chain_id, verify_transcript=accept_transcript)


@pytest.mark.parametrize("check", APPLICATION_CHECKS, ids=lambda check: check.__name__)
def test_the_ledger_conforms(check: Callable[[AppMaker, LedgerChain], None]) -> None:
    chain = LedgerChain()
    check(make_maker(chain, LedgerApplication), chain)


@pytest.mark.parametrize("app_type", BROKEN_APPLICATIONS, ids=lambda app: app.__name__)
def test_a_broken_application_is_found(app_type: type[LedgerApplication]) -> None:
    chain = LedgerChain()
    with pytest.raises(REFUSED):
        BROKEN_APPLICATIONS[app_type](make_maker(chain, app_type), chain)


def test_every_check_finds_a_broken_application() -> None:
    assert set(BROKEN_APPLICATIONS.values()) == set(APPLICATION_CHECKS)
