"""One signed transaction on its way into the ledger: the same bytes, until their fate is known.

A node that did not answer in time may still have the transaction ordered, so nothing is signed
anew: the very same bytes go to one node after the other. The ledger applies them once, and any node
tells what became of them. Source: docs/spec/engine.md E10 to E13.
"""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from typing import Final

from iemas import wire
from iemas.client._light import LightClient
from iemas.client._network import NODE_AT_FAULT, Network
from iemas.core.envelope import Signed
from iemas.core.errors import (
    APIConnectionError,
    APIStatusError,
    IemasError,
    InvalidInputError,
    QuorumUnavailableError,
    UnconfirmedTransactionError,
)
from iemas.core.types import NodeId
from iemas.ledger.transaction import ResultCode, Transaction
from iemas.v1 import market_service_pb2 as pb

PATIENCE_SECONDS: Final = 60.0
NODE_SECONDS: Final = 10.0
"""How long one node may take before the next is given the same transaction."""
PAUSE_SECONDS: Final = 1.0


class UnconfirmedTransactionWarning(UserWarning):
    """The wait for a transaction was cancelled, and it may still be recorded."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a transaction."""

    code: ResultCode
    detail: str
    height: int


class Delivery:
    """Has one signed transaction recorded."""

    def __init__(self, network: Network, light: LightClient, signed: Signed[Transaction]) -> None:
        self.attempts = 0
        """How often a node may have taken it: with more than one, a refusal proves nothing."""
        self._network = network
        self._light = light
        self.signed = signed
        self._request = pb.SubmitTransactionRequest(transaction=wire.to_proto(signed.envelope))
        self._given_to: set[NodeId] = set()
        self._failure: IemasError | None = None

    async def run(self) -> Recorded:
        """Give the transaction to nodes until one tells what became of it.

        Raises: what the first node refuses it for; APIConnectionError if no node could be given it;
            UnconfirmedTransactionError if its fate is unknown after a minute.
        """
        try:
            return await self._run()
        except asyncio.CancelledError:
            if self._given_to:
                text = f"{self._name()} was not waited for. {self._advise()}"
                warnings.warn(text, UnconfirmedTransactionWarning, stacklevel=2)
            raise

    async def _run(self) -> Recorded:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PATIENCE_SECONDS
        while True:
            for node_id in self._network.list_ranked():
                seconds = min(NODE_SECONDS, give_up_at - loop.time())
                if seconds <= 0:
                    raise self._explain() from self._failure
                recorded = await self._try(node_id, seconds)
                if recorded is not None:
                    return recorded
            if not self._given_to:
                raise APIConnectionError(
                    f"no node of the market answers; {self._name()} was sent to none: "
                    f"{self._failure}"
                ) from self._failure
            await asyncio.sleep(PAUSE_SECONDS)

    async def _try(self, node_id: NodeId, seconds: float) -> Recorded | None:
        """Give it to one node; None if that does not settle what becomes of it."""
        try:
            await self._network.get_channel(node_id)
        except APIConnectionError as error:
            self._failure = error
            return None
        self.attempts += 1
        self._given_to.add(node_id)
        try:
            response: pb.SubmitTransactionResponse = await self._network.ask_node(
                node_id, lambda stub: stub.SubmitTransaction(self._request, timeout=seconds)
            )
        except IemasError as error:
            if not _is_refusal(error):
                self._failure = error
                return None
            if self.attempts == 1:
                raise
            return await self._look_up(error)
        code = ResultCode(response.code)
        if code is not ResultCode.OK and self.attempts > 1:
            refusal = InvalidInputError(f"{code.name.lower()}: {response.detail}")
            return await self._look_up(refusal)
        return Recorded(code, response.detail, response.height)

    async def _look_up(self, refusal: IemasError) -> Recorded | None:
        """Have it proven what became of it: it may be refused because it was applied already."""
        try:
            found = await self._light.get_transaction(self.signed.hash)
        except IemasError:
            self._failure = refusal
            return None
        return Recorded(ResultCode[found.code.upper()], found.detail, found.height)

    def _explain(self) -> UnconfirmedTransactionError:
        count = len(self._given_to)
        nodes = "1 node" if count == 1 else f"{count} nodes"
        return UnconfirmedTransactionError(
            f"{self._name()} was given to {nodes} of the market, and none told within "
            f"{PATIENCE_SECONDS:.0f} s what became of it ({self._failure}); the market may stand "
            f"still. {self._advise()}",
            code="unconfirmed",
            transaction=self.signed.hash.hex(),
            nonce=self.signed.message.nonce,
        )

    def _name(self) -> str:
        return f"transaction {self.signed.hash.hex()}"

    def _advise(self) -> str:
        return (
            "It may still be recorded within a minute or two: look with "
            f"`iemas transaction {self.signed.hash.hex()}` before you repeat it, as that makes "
            "another transaction and both may be applied"
        )


def _is_refusal(error: IemasError) -> bool:
    """Tell whether a node refused a transaction, rather than failed to say what became of it."""
    if isinstance(error, APIStatusError):
        return getattr(error, "status_code", "") not in NODE_AT_FAULT
    return not isinstance(error, APIConnectionError | QuorumUnavailableError)
