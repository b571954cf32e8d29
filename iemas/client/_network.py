"""What a client knows of the market's nodes, and how it reaches them.

Any node answers questions about the market, so every question goes to the node that answered last
and, if that one fails, to the next. Connections are opened once a node and kept; the term is asked
for once and then only when something hints that it changed. All that a node says about another one
is a signed report, checked here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from iemas import tls, wire
from iemas.client._bidding import TermInfo
from iemas.core.envelope import Envelope, Signed, verify_signed
from iemas.core.errors import (
    APIConnectionError,
    APIStatusError,
    ConfigurationError,
    IemasError,
    InvalidInputError,
    MalformedMessageError,
    QuorumUnavailableError,
)
from iemas.core.gossip import SignedReport
from iemas.core.params import Genesis
from iemas.core.report import CacheDigest, CapabilityReport, LoadReport
from iemas.core.types import HubId, NodeId, short_id
from iemas.genesis import describe_other_chain, load_genesis
from iemas.rpc_errors import from_rpc_error
from iemas.tls import Address, parse_address
from iemas.v1 import market_service_pb2 as pb
from iemas.v1.market_service_pb2_grpc import MarketServiceStub

T = TypeVar("T")
Call = Callable[[Any], Awaitable[T]]
"""Calls one method of a `MarketServiceStub`, whose typing does not know the async one."""

ASK_SECONDS = 5.0
JOIN_SECONDS = 10.0
WARM_CHANNELS = 16
NODE_AT_FAULT = frozenset({"INTERNAL", "UNKNOWN", "UNIMPLEMENTED"})


@dataclass(frozen=True, slots=True)
class Market:
    """Which market this is: its genesis, and the chain id that all signatures are bound to."""

    genesis: Genesis
    chain_id: str

    @property
    def hub(self) -> HubId:
        """The market's hub."""
        return self.genesis.hub


@dataclass(slots=True)
class KnownNode:
    """A node and its latest signed reports."""

    address: Address
    capability: CapabilityReport | None = None
    load: LoadReport | None = None
    digest: CacheDigest | None = None
    ca_certificate: bytes | None = None
    suspected: bool = False


class Network:
    """The nodes of one market.

    Args:
        bootstrap: addresses to start from; one that answers is enough.
        market: the market, where the caller knows its genesis; else the first node tells it.

    """

    def __init__(self, bootstrap: Sequence[Address], market: Market | None = None) -> None:
        self.nodes: dict[NodeId, KnownNode] = {
            address.node_id: KnownNode(address) for address in bootstrap
        }
        self.reports_at = 0.0
        """When the reports were last fetched (monotonic seconds)."""
        self.term_at = 0.0
        """When the term was last fetched (monotonic seconds)."""
        self._market = market
        self._term: TermInfo | None = None
        self._preferred: list[NodeId] = list(self.nodes)
        self._failed: set[NodeId] = set()  # who did not answer when last asked
        self._channels: dict[NodeId, grpc.aio.Channel] = {}
        self._channel_locks: dict[NodeId, asyncio.Lock] = {}
        self._lock = asyncio.Lock()
        self._term_lock = asyncio.Lock()

    @property
    def market(self) -> Market:
        """The market. Raises: APIConnectionError before `join`."""
        if self._market is None:
            raise APIConnectionError("no node of the market was reached yet")
        return self._market

    @property
    def term(self) -> TermInfo | None:
        """The last known term."""
        return self._term

    # --- asking any node ---------------------------------------------------------------------

    async def join(self) -> None:
        """Learn the market's genesis, nodes and term from the first node that answers.

        Where the caller gave the genesis, nodes that run another one are passed over. The term is
        left for later if it cannot be told now: whoever only asks does not need it.
        Raises: APIConnectionError; ConfigurationError if the nodes run another genesis.
        """
        if self._market is not None and self._term is not None:
            return
        async with self._lock:
            if self._market is None:
                response: pb.GetMarketResponse = await self.ask(
                    lambda stub: stub.GetMarket(pb.GetMarketRequest(), timeout=JOIN_SECONDS)
                )
                genesis, chain_id, _ = load_genesis(response.genesis_json)
                self._market = Market(genesis, chain_id)
            else:
                await self._find_own_chain(self._market.chain_id)
            if self._term is None:
                await asyncio.gather(self.refresh_reports(), self._try_refresh_term())
        await self._warm()

    async def _find_own_chain(self, chain_id: str) -> None:
        """Prefer a node that says it runs this chain.

        Raises: ConfigurationError if all that answer say another, as then no signature of theirs
            would hold; APIConnectionError if none answers.
        """
        order = self.list_ranked()
        failure: IemasError | None = None
        other = ""
        for node_id in order:
            try:
                response: pb.GetMarketResponse = await self.ask_node(
                    node_id, lambda stub: stub.GetMarket(pb.GetMarketRequest(), timeout=ASK_SECONDS)
                )
                _, told, _ = load_genesis(response.genesis_json)
            except IemasError as error:
                self._failed.add(node_id)
                failure = error
                continue
            if told == chain_id:
                self._prefer(node_id, 0)
                return
            self._failed.add(node_id)
            other = told
        if other:
            raise ConfigurationError(describe_other_chain(chain_id, other), key="genesis")
        raise _explain_silence(order, failure) from failure

    async def _try_refresh_term(self) -> None:
        with contextlib.suppress(APIConnectionError):
            await self.refresh_term(None)

    async def ask(self, call: Call[T], *, avoid: NodeId | None = None) -> T:
        """Ask any node, the one that answered last first, those that failed last, then `avoid`.

        Raises: the last node's error if none answers; APIConnectionError if none is known.
        """
        order = self.list_ranked(avoid=avoid)
        failure: IemasError | None = None
        for node_id in order:
            try:
                result = await self.ask_node(node_id, call)
            except (APIConnectionError, QuorumUnavailableError) as error:
                failure = error
            except APIStatusError as error:
                if getattr(error, "status_code", "") not in NODE_AT_FAULT:
                    raise
                failure = error
            else:
                self._failed.discard(node_id)
                if node_id != avoid:
                    self._prefer(node_id, 0)
                return result
            self._failed.add(node_id)
        raise _explain_silence(order, failure) from failure

    def _prefer(self, node_id: NodeId, place: int) -> None:
        """Move a node to a place in the order in which nodes are asked."""
        self._preferred.remove(node_id)
        self._preferred.insert(place, node_id)

    async def ask_node(self, node_id: NodeId, call: Call[T]) -> T:
        """Ask one node. Raises: what it answers, by its own name; APIConnectionError."""
        channel = await self.get_channel(node_id)
        try:
            return await call(MarketServiceStub(channel))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def list_preferred(self) -> tuple[NodeId, ...]:
        """List the known nodes, the one that answered last first."""
        return tuple(self._preferred)

    def list_ranked(self, *, avoid: NodeId | None = None) -> list[NodeId]:
        """List the known nodes as they should be asked: those that failed last, then `avoid`."""
        return sorted(self._preferred, key=lambda node: (node == avoid, node in self._failed))

    # --- connections -------------------------------------------------------------------------

    async def get_channel(self, node_id: NodeId) -> grpc.aio.Channel:
        """Give the channel to a node, opened and pinned to its key on first use.

        Raises: APIConnectionError if the node is unknown or another one answers there.
        """
        channel = self._channels.get(node_id)
        if channel is not None:
            return channel
        async with self._channel_locks.setdefault(node_id, asyncio.Lock()):
            channel = self._channels.get(node_id)
            if channel is None:
                channel = self._channels[node_id] = await self._open_channel(node_id)
            return channel

    async def _open_channel(self, node_id: NodeId) -> grpc.aio.Channel:
        node = self.nodes.get(node_id)
        if node is None:
            raise APIConnectionError(f"the address of node {short_id(node_id)} is not known")
        try:
            if node.ca_certificate is None:
                node.ca_certificate = await tls.fetch_ca_certificate(node.address)
            return tls.open_channel(node.address, node.ca_certificate)
        except tls.InvalidCertificateError as error:
            raise APIConnectionError(
                f"{node.address.target} does not prove to be node {short_id(node_id)}: {error}"
            ) from error

    async def _warm(self) -> None:
        """Start connecting to the nodes that a request may need, without waiting."""
        for node_id in list(self.nodes)[:WARM_CHANNELS]:
            if self.nodes[node_id].ca_certificate is not None:
                (await self.get_channel(node_id)).get_state(try_to_connect=True)

    async def close(self) -> None:
        """Close every connection."""
        channels = list(self._channels.values())
        self._channels.clear()
        await asyncio.gather(*(channel.close(None) for channel in channels))

    # --- reports -----------------------------------------------------------------------------

    async def refresh_reports(self) -> None:
        """Fetch every node's reports. Raises: APIConnectionError."""
        response: pb.ListReportsResponse = await self.ask(
            lambda stub: stub.ListReports(pb.ListReportsRequest(), timeout=ASK_SECONDS)
        )
        for report in response.reports:
            self._take_report(report)
        suspected = set(response.suspected)
        for node_id, node in self.nodes.items():
            node.suspected = node_id in suspected
        self.reports_at = time.monotonic()

    def _take_report(self, proto: object) -> None:
        """Keep a report if it is what its node signed; one bad report spoils no other."""
        try:
            signed = wire.from_proto(SignedReport, proto).unwrap()
            if signed is None:
                return
            report = signed.message
            known = self.nodes.get(report.stamp.node_id)
            if isinstance(report, CapabilityReport):
                self.take_capability(signed)  # type: ignore[arg-type]
            elif known is not None:
                verify_signed(signed, self.market.chain_id, expected_signer=report.stamp.node_id)
                if isinstance(report, LoadReport):
                    known.load = report
                else:
                    known.digest = report
        except InvalidInputError:
            return

    def take_capability(self, signed: Signed[CapabilityReport]) -> KnownNode:
        """Learn a node, or its new capability and address.

        Raises: InvalidSignatureError, MalformedMessageError, InvalidCertificateError.
        """
        report = signed.message
        node_id = report.stamp.node_id
        node = self.nodes.get(node_id)
        if node is not None and node.capability == report:
            return node
        verify_signed(signed, self.market.chain_id, expected_signer=node_id)
        tls.verify_ca_certificate(report.ca_certificate, node_id)
        address = _parse_public_address(report)
        if node is None:
            node = self.nodes[node_id] = KnownNode(address)
            self._preferred.append(node_id)
        elif node.address != address and node.capability is not None:
            node.address = address
            self._channels.pop(node_id, None)
        node.capability = report
        node.ca_certificate = report.ca_certificate
        return node

    def list_providers(self, model: str) -> list[CapabilityReport]:
        """Give the capabilities of the nodes that sell a model, suspected ones left out."""
        return [
            node.capability
            for node in self.nodes.values()
            if node.capability is not None
            and node.capability.sells
            and node.capability.model == model
            and not node.suspected
        ]

    # --- term --------------------------------------------------------------------------------

    async def refresh_term(self, stale: TermInfo | None) -> TermInfo:
        """Give the current term, asking a node unless somebody did since `stale` was read.

        Not the node that answered last: it may lag behind, or lie. What it told is given up for
        whatever the next one says, whose bids then show whether that holds.
        Raises: APIConnectionError.
        """
        seen_at = self.term_at
        async with self._term_lock:
            if self._term is not None and (self._term != stale or self.term_at != seen_at):
                return self._term
            avoid = stale.auctioneer if stale is not None else None
            if stale is not None:
                self._prefer(self._preferred[0], len(self._preferred))
            hub = self.market.hub
            response: pb.GetTermResponse = await self.ask(
                lambda stub: stub.GetTerm(pb.GetTermRequest(hub=hub), timeout=ASK_SECONDS),
                avoid=avoid,
            )
            try:
                term = self._read_term(response)
            except InvalidInputError as error:
                self._prefer(self._preferred[0], len(self._preferred))
                raise APIConnectionError(f"a node's answer about the term: {error}") from error
            self.term_at = time.monotonic()
            self._term = term
            return term

    def _read_term(self, response: pb.GetTermResponse) -> TermInfo:
        """Read a term. Raises: InvalidInputError if a capability is missing or another node's."""
        auctioneer = self._read_capability(response, "auctioneer")
        witness: CapabilityReport | None = None
        if response.witness and response.witness != response.auctioneer:
            witness = self._read_capability(response, "witness")
        return TermInfo(
            hub=self.market.hub,
            number=response.term,
            auctioneer=auctioneer.stamp.node_id,
            auctioneer_hpke_key=auctioneer.hpke_public_key,
            witness=witness.stamp.node_id if witness is not None else None,
            witness_hpke_key=witness.hpke_public_key if witness is not None else b"",
            validators=tuple(NodeId(node) for node in response.validators),
        )

    def _read_capability(self, response: pb.GetTermResponse, role: str) -> CapabilityReport:
        """Give the report of the node in a role, from the answer or from what is known."""
        node_id = NodeId(getattr(response, role))
        field = f"{role}_capability"
        if not response.HasField(field):  # type: ignore[arg-type]
            known = self.nodes.get(node_id)
            if known is None or known.capability is None:
                raise MalformedMessageError(
                    f"it hears nothing of {short_id(node_id)}, the {role} of term {response.term}; "
                    "the market may stand still, as it does while more than a third of the "
                    "validators' stake is down"
                )
            return known.capability
        envelope = wire.from_proto(Envelope, getattr(response, field))
        signed = wire.open_envelope(CapabilityReport, envelope)
        if signed.message.stamp.node_id != node_id:
            raise MalformedMessageError(f"the {role}'s capability is another node's")
        self.take_capability(signed)
        return signed.message


def _explain_silence(order: Sequence[NodeId], failure: IemasError | None) -> APIConnectionError:
    known = ", ".join(short_id(node_id) for node_id in order)
    return APIConnectionError(f"no node of the market answers (tried {known}): {failure}")


def _parse_public_address(report: CapabilityReport) -> Address:
    """Read a node's own address; the node id in it may be left out."""
    text = report.public_address
    return parse_address(text if "@" in text else f"{report.stamp.node_id.hex()}@{text}")


def parse_bootstrap(bootstrap: str | Address | Iterable[str | Address]) -> list[Address]:
    """Read one address or several.

    Raises: MalformedMessageError that says what is wrong.
    """
    given = [bootstrap] if isinstance(bootstrap, str | Address) else list(bootstrap)
    if not given:
        raise MalformedMessageError("give at least one bootstrap address: nodeid@host:port")
    return [item if isinstance(item, Address) else parse_address(item) for item in given]
