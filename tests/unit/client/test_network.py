"""How a client asks nodes about the market, none of which it need trust."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iemas.client._bidding import TermInfo
from iemas.client._network import Market, Network
from iemas.core.errors import APIConnectionError, ConfigurationError
from iemas.core.types import HubId, NodeId
from iemas.genesis import encode_genesis
from iemas.testing.chain import make_genesis, make_identity
from iemas.tls import Address
from iemas.v1 import market_service_pb2 as pb

NODES = [make_identity(f"node-{number}").node_id for number in range(1, 5)]
AUCTIONEER = NODES[3]
HUB = HubId("hub")


def make_term(number: int) -> TermInfo:
    return TermInfo(HUB, number, AUCTIONEER, b"", None, b"", ())


class ToldNetwork(Network):
    """A network whose nodes say of the term what they are told to."""

    def __init__(self, numbers: dict[NodeId, int]) -> None:
        addresses = [Address(node_id, "localhost", 1) for node_id in numbers]
        super().__init__(addresses, Market(make_genesis(), "chain"))
        self.numbers = numbers
        self.asked: list[NodeId] = []

    async def ask_node(self, node_id: NodeId, call: Any) -> Any:
        self.asked.append(node_id)
        if self.numbers[node_id] < 0:
            raise APIConnectionError("dead")
        return self.numbers[node_id]

    def _read_term(self, response: Any) -> TermInfo:
        return make_term(response)


def refresh_until(network: ToldNetwork, number: int) -> int:
    """Lose the auctioneer until the term is the true one; give how often."""

    async def lose() -> int:
        term = await network.refresh_term(None)
        for losses in range(10):
            if term.number == number:
                return losses
            term = await network.refresh_term(term)
        raise AssertionError(network.asked)

    return asyncio.run(lose())


@pytest.mark.parametrize("told", [3, 99], ids=["lags behind", "lies about a later term"])
def test_a_node_that_tells_a_wrong_term_is_believed_once(told: int) -> None:
    network = ToldNetwork({NODES[0]: told, NODES[1]: 7, NODES[2]: 7})
    assert refresh_until(network, 7) == 1
    assert network.asked == NODES[:2]


def test_every_node_is_asked_in_turn() -> None:
    network = ToldNetwork({NODES[0]: 3, NODES[1]: 4, NODES[2]: 7})
    assert refresh_until(network, 7) == 2
    assert network.asked == NODES[:3]


def test_the_auctioneer_that_was_lost_is_asked_last() -> None:
    network = ToldNetwork({NODES[0]: 3, AUCTIONEER: 3, NODES[1]: 7})
    assert refresh_until(network, 7) == 1
    assert network.asked == [NODES[0], NODES[1]]


def test_whoever_told_the_right_term_is_asked_first_from_then_on() -> None:
    network = ToldNetwork({NODES[0]: 3, NODES[1]: 7, NODES[2]: 7})
    refresh_until(network, 7)
    assert network.list_preferred()[0] == NODES[1]


def test_a_node_that_does_not_answer_is_asked_last_from_then_on() -> None:
    network = ToldNetwork({NODES[0]: 1, NODES[1]: -1, NODES[2]: 1, AUCTIONEER: 1})

    async def refresh() -> None:
        term = await network.refresh_term(None)
        for _ in range(4):
            term = await network.refresh_term(term)

    asyncio.run(refresh())
    assert network.asked.count(NODES[1]) == 1


# --- joining -------------------------------------------------------------------------------------

GENESIS = encode_genesis(make_genesis())
OTHER_GENESIS = encode_genesis(make_genesis(stake_micros=7))


def get_chain(genesis: bytes) -> str:
    return make_genesis().compute_chain_id(genesis)


class JoinedNetwork(Network):
    """A network whose nodes run the genesis that they are told to, and tell of a term."""

    def __init__(self, genesis: dict[NodeId, bytes | None], own: bytes | None) -> None:
        market = Market(make_genesis(), get_chain(own)) if own is not None else None
        super().__init__([Address(node_id, "localhost", 1) for node_id in genesis], market)
        self._genesis = genesis
        self._asked: NodeId | None = None

    async def ask_node(self, node_id: NodeId, call: Any) -> Any:
        if self._genesis[node_id] is None:
            raise APIConnectionError("dead")
        self._asked = node_id
        return call(self)

    def GetMarket(self, _request: Any, timeout: float) -> Any:  # noqa: N802
        genesis = self._genesis[self._asked] if self._asked is not None else None
        return pb.GetMarketResponse(genesis_json=genesis or b"")

    def ListReports(self, _request: Any, timeout: float) -> Any:  # noqa: N802
        return pb.ListReportsResponse()

    def GetTerm(self, _request: Any, timeout: float) -> Any:  # noqa: N802
        return pb.GetTermResponse(term=7, auctioneer=AUCTIONEER)

    async def _warm(self) -> None:
        """Open no connection."""


def test_a_genesis_of_another_chain_is_called_that() -> None:
    network = JoinedNetwork({NODES[0]: None, NODES[1]: OTHER_GENESIS}, GENESIS)
    own, other = get_chain(GENESIS), get_chain(OTHER_GENESIS)
    with pytest.raises(ConfigurationError, match=f"is of chain {own}, the nodes run chain {other}"):
        asyncio.run(network.join())


def test_a_node_that_shows_another_genesis_is_passed_over_for_one_of_the_own_chain() -> None:
    network = JoinedNetwork({NODES[0]: OTHER_GENESIS, NODES[1]: b"?", NODES[2]: GENESIS}, GENESIS)
    asyncio.run(network.join())
    assert network.list_ranked()[0] == NODES[2]
    assert network.market.chain_id == get_chain(GENESIS)


def test_nodes_that_are_all_dead_run_no_other_chain() -> None:
    network = JoinedNetwork({NODES[0]: None}, GENESIS)
    with pytest.raises(APIConnectionError, match="no node of the market answers"):
        asyncio.run(network.join())


def test_an_auctioneer_that_is_not_heard_of_is_missed_by_who_bids_alone() -> None:
    network = JoinedNetwork({NODES[0]: GENESIS}, None)

    async def use() -> None:
        await network.join()
        assert network.term is None
        with pytest.raises(APIConnectionError) as caught:
            await network.refresh_term(None)
        assert "the auctioneer of term 7; the market may stand still" in str(caught.value)

    asyncio.run(use())
