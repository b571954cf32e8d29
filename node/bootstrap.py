"""Joining a market: genesis from a stranger, introduction to a member, staying connected.

The stranger's certificate is checked against the node id in its address and pinned
(`iemas.tls.connect`), so the address is all that a newcomer trusts. Source: design §8, §11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import structlog

from iemas import wire
from iemas.core.errors import (
    ConfigurationError,
    IemasError,
    InvalidSignatureError,
    StaleReportError,
)
from iemas.core.gossip import ReportPush, SignedReport
from iemas.genesis import describe_other_chain, load_genesis
from iemas.rpc_errors import from_rpc_error
from iemas.tls import Address, connect, parse_address
from iemas.v1 import market_service_pb2, market_service_pb2_grpc
from node.core import ReceivePeerMessage
from node.driver import Driver

_log = structlog.get_logger(__name__)
FETCH_TIMEOUT_S = 10.0
RETRY_S = 1.0
CHECK_S = 5.0
REPEAT_S = 60.0

NEWER_PROCESS = (
    "the market holds a later report of this node: another process runs with the same key, so stop "
    "one of them; or this machine's clock was set back, then it passes"
)


async def fetch_genesis(bootstrap: Sequence[str]) -> bytes:
    """Fetch the genesis file from the first bootstrap node that answers.

    Raises: ConfigurationError if none does.
    """
    reasons = []
    for text in bootstrap:
        try:
            async with await connect(parse_address(text), timeout=FETCH_TIMEOUT_S) as channel:
                stub = market_service_pb2_grpc.MarketServiceStub(channel)
                request = market_service_pb2.GetMarketRequest()
                answer = await stub.GetMarket(request, timeout=FETCH_TIMEOUT_S)
                return bytes(answer.genesis_json)
        except grpc.RpcError as error:
            reasons.append(f"{text}: {from_rpc_error(error)}")
        except IemasError as error:
            reasons.append(f"{text}: {error}")
    raise ConfigurationError("no bootstrap node answers: " + "; ".join(reasons))


async def keep_joined(driver: Driver, bootstrap: Sequence[Address]) -> None:
    """Introduce this node, and again whenever no peer answers any more."""
    core = driver.core
    others = [address for address in bootstrap if address.node_id != core.node_id]
    joined: set[bytes] = set()
    told: dict[Address, _Told] = {}
    while True:
        for address in others:
            alive = [p for p in core.membership.get_peers() if not core.membership.is_suspected(p)]
            if address.node_id in joined and alive:
                continue
            try:
                await _join(driver, address)
            except IemasError as error:
                await _tell_failure(core.chain_id, address, error, told)
            else:
                joined.add(address.node_id)
        waiting = any(address.node_id not in joined for address in others)
        await asyncio.sleep(RETRY_S if waiting else CHECK_S)


@dataclass(frozen=True, slots=True)
class _Told:
    """What was logged last of an address that could not be joined."""

    reason: str
    at: float


async def _tell_failure(
    chain_id: str, address: Address, error: IemasError, told: dict[Address, _Told]
) -> None:
    """Log why a node could not be joined: at once if the reason is new, else once a minute.

    A signature that does not hold may mean another genesis. What the other node says of its own
    is only told to the operator, never taken over.
    """
    now, last = asyncio.get_running_loop().time(), told.get(address)
    if last is not None and last.reason == str(error) and now < last.at + REPEAT_S:
        return
    told[address] = _Told(str(error), now)
    if isinstance(error, StaleReportError):
        _log.warning("newer_process_known", bootstrap=str(address), reason=NEWER_PROCESS)
        return
    other = await _ask_chain(address) if isinstance(error, InvalidSignatureError) else None
    if other in (None, chain_id):
        _log.info("join_failed", bootstrap=str(address), reason=str(error))
    else:
        reason = describe_other_chain(chain_id, other)
        _log.warning("bootstrap_of_other_chain", bootstrap=str(address), reason=reason)


async def _ask_chain(address: Address) -> str | None:
    """Ask a node which chain it runs; None if it does not say."""
    try:
        return load_genesis(await fetch_genesis([str(address)]))[1]
    except IemasError:
        return None


async def _join(driver: Driver, address: Address) -> None:
    core = driver.core
    record = core.membership.get_node(core.node_id)
    if record is None:
        return
    capability = wire.to_proto(record.capability.envelope)
    try:
        async with await connect(address, timeout=FETCH_TIMEOUT_S) as channel:
            stub = market_service_pb2_grpc.MarketServiceStub(channel)
            request = market_service_pb2.JoinRequest(capability=capability)
            answer = await stub.Join(request, timeout=FETCH_TIMEOUT_S)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    reports = tuple(wire.from_proto(SignedReport, report) for report in answer.reports)
    driver.step(ReceivePeerMessage(address.node_id, ReportPush(reports)))
    _log.info("joined", bootstrap=str(address), reports=len(reports))
