"""Standing asks where they are posted in the open. Source: docs/spec/ledger.md §5."""

from __future__ import annotations

import pytest

from iemas.core.auction import Ask
from iemas.core.params import MarketParams
from iemas.core.types import HubId, Prices
from iemas.ledger.records import MAX_PAST_ASKS
from iemas.ledger.transaction import PostAsk, ResultCode
from iemas.testing.chain import LedgerChain, make_genesis

OLD, NEW, NEWEST = Prices(1, 1, 1), Prices(2, 2, 2), Prices(3, 3, 3)


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(make_genesis(params=MarketParams(sealed_asks=False)))


def test_an_ask_stands_until_it_is_replaced(chain: LedgerChain) -> None:
    node = chain.get_node("node-1")
    assert chain.state.get_ask(chain.hub, node) is None
    chain.submit("node-1", PostAsk(Ask(chain.hub, OLD)))
    chain.end_term()
    assert chain.state.get_ask(chain.hub, node) == OLD
    chain.submit("node-1", PostAsk(Ask(chain.hub, NEW)))
    assert chain.state.get_ask(chain.hub, node) == NEW


def test_an_ask_in_an_unknown_hub_is_refused(chain: LedgerChain) -> None:
    result = chain.submit("node-1", PostAsk(Ask(HubId("nowhere"), OLD)))
    assert result.code is ResultCode.UNKNOWN_HUB


def test_asks_are_listed_by_node(chain: LedgerChain) -> None:
    for name in ("node-2", "node-1"):
        chain.submit(name, PostAsk(Ask(chain.hub, OLD)))
    nodes = sorted(chain.get_node(name) for name in ("node-1", "node-2"))
    assert list(chain.state.get_asks(chain.hub)) == nodes


def test_the_asks_that_stood_in_a_term_are_remembered(chain: LedgerChain) -> None:
    node = chain.get_node("node-1")
    chain.submit("node-1", PostAsk(Ask(chain.hub, OLD)))
    chain.end_term()
    chain.submit("node-1", PostAsk(Ask(chain.hub, NEW)))
    chain.submit("node-1", PostAsk(Ask(chain.hub, NEWEST)))
    chain.end_term()
    assert chain.state.get_asks_of_term(chain.hub, node, 0) == (OLD,)
    assert chain.state.get_asks_of_term(chain.hub, node, 1) == (NEWEST, NEW, OLD)
    assert chain.state.get_asks_of_term(chain.hub, node, 2) == (NEWEST,)


def test_asks_of_closed_terms_are_forgotten(chain: LedgerChain) -> None:
    node = chain.get_node("node-1")
    chain.submit("node-1", PostAsk(Ask(chain.hub, OLD)))
    chain.submit("node-1", PostAsk(Ask(chain.hub, NEW)))
    for _ in range(chain.genesis.params.settle_terms + 1):
        chain.end_term()
    assert chain.state.get_asks_of_term(chain.hub, node, 0) == (NEW,)


def test_an_ask_is_replaced_only_so_often_within_the_open_terms(chain: LedgerChain) -> None:
    """Rounds cleared at an ask are re-checked while its term is open: none may be forgotten."""
    node = chain.get_node("node-1")
    asks = [PostAsk(Ask(chain.hub, Prices(price, 1, 1))) for price in range(1, MAX_PAST_ASKS + 3)]
    codes = [chain.submit("node-1", ask).code for ask in asks]
    assert codes == [ResultCode.OK] * (MAX_PAST_ASKS + 1) + [ResultCode.INVALID_ENTRY]
    assert chain.state.get_ask(chain.hub, node) == asks[-2].ask.prices
    assert len(chain.state.get_asks_of_term(chain.hub, node, 0)) == MAX_PAST_ASKS + 1
