"""Answers that are proven: the SDK's light client, over whatever nodes it can reach.

No node is trusted. An answer comes with the last decided header that its node knows; the header is
followed from what is trusted already (`iemas.client._headers`), and the answer must lead to it. A
node whose answer does not hold, or is old, is passed over for the next.
Source: docs/spec/light_client.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from iemas import wire
from iemas.client._headers import WITNESSES, BehindError, HeaderChain, naming
from iemas.client._network import ASK_SECONDS, Network
from iemas.client._trust_store import TrustStore
from iemas.client._types import Balance, RecordedTransaction, Settlement
from iemas.consensus.light import TrustedBlock
from iemas.consensus.messages import LightBlock
from iemas.core.auction import Allocation
from iemas.core.errors import (
    APIConnectionError,
    IemasError,
    InvalidProofError,
    LedgerForkError,
    TrustExpiredError,
    UnknownTransactionError,
    UnverifiedAnswerError,
    UnverifiedBalanceError,
    UnverifiedSettlementError,
    UnverifiedStateError,
    UnverifiedTransactionError,
)
from iemas.core.types import AccountId, Hash, HubId, NodeId
from iemas.ledger.history import (
    TransactionPlace,
    TransactionProof,
    find_settled,
    verify_transaction,
)
from iemas.ledger.proofs import StateProof, TableProof, verify_record, verify_table
from iemas.ledger.records import (
    AccountRecord,
    HoldKey,
    HoldRecord,
    TermKey,
    TermRecord,
    TotalKey,
    TotalRecord,
)
from iemas.ledger.transaction import Settle
from iemas.ledger.transfer import AccountKind
from iemas.v1 import market_service_pb2 as pb

T = TypeVar("T")

POLL_SECONDS: Final = 0.25
PATIENCE_SECONDS: Final = 5.0
"""Nodes that are behind are asked again for so long, and two idle block intervals."""


@dataclass(frozen=True, slots=True)
class _Proven:
    """An answer whose header is trusted now, and the node that gave it."""

    node_id: NodeId
    response: Any
    trusted: TrustedBlock
    root: Hash

    @property
    def height(self) -> int:
        """Up to which block the proven state goes: the one before the header's."""
        return self.trusted.height - 1


@dataclass(frozen=True, slots=True)
class ProvenTables:
    """Whole tables of the state after `height`, by name, and who voted on the block after it."""

    height: int
    tables: dict[str, dict[Any, Any]]
    powers: dict[NodeId, int]


class LightClient:
    """Proves answers under the headers of one chain.

    Args:
        network: the nodes to ask.
        store: where the last verified header is kept between runs.
        start: height and hash of a block that the caller trusts.

    """

    def __init__(
        self, network: Network, store: TrustStore, start: tuple[int, Hash] | None = None
    ) -> None:
        self._network = network
        self._headers = HeaderChain(network, store, start)
        self._fork: LedgerForkError | None = None
        self._lock = asyncio.Lock()

    @property
    def latest(self) -> TrustedBlock | None:
        """The highest block that is trusted; None before the first proof, or if it is genesis."""
        return self._headers.latest

    async def close(self) -> None:
        """Keep the last verified header for the next run."""
        if self._fork is None:
            await self._headers.save(at_once=True)

    # --- answers -----------------------------------------------------------------------------

    async def get_balance(self, account: AccountId, *, after_height: int = 0) -> Balance:
        """Prove an account's balance, in a state that has the block of `after_height`.

        Raises: UnverifiedBalanceError, LedgerForkError, TrustExpiredError, APIConnectionError.
        """
        hub = self._network.market.hub
        request = pb.GetAccountProofRequest(account=account, hub=hub)

        async def read(proven: _Proven) -> Balance:
            record = _verify(proven, "account", "accounts", account, AccountRecord)
            key = HoldKey(hub, self._read_current_term(proven, hub), account)
            hold = _verify(proven, "hold", "holds", key, HoldRecord)
            held = {(b.kind, b.hub): b.micros for b in record.balances} if record else {}
            everywhere = HubId("")
            return Balance(
                account=account.hex(),
                exists=record is not None,
                available_micros=held.get((AccountKind.AVAILABLE, everywhere), 0),
                escrow_micros=held.get((AccountKind.ESCROW, hub), 0),
                allowance_micros=hold.allowance_micros if hold is not None else 0,
                staked_micros=held.get((AccountKind.STAKE, everywhere), 0),
                unbonding_micros=held.get((AccountKind.UNBONDING, everywhere), 0),
                pending_micros=held.get((AccountKind.PENDING, everywhere), 0),
                deposit_micros=held.get((AccountKind.DEPOSIT, everywhere), 0),
                height=proven.height,
                verified=True,
            )

        return await self._prove(
            lambda stub: stub.GetAccountProof(request, timeout=ASK_SECONDS),
            read,
            UnverifiedBalanceError,
            after_height=after_height,
        )

    async def get_settlement(self, allocation: Allocation, signed_micros: int | None) -> Settlement:
        """Prove what is settled of the channel that an allocation belongs to.

        Of a closed term it is what the last `Settle` that a node shows has settled; if that is
        not all, other nodes are asked for a later one.
        Raises: UnverifiedSettlementError, and as `get_balance`.
        """
        key = TotalKey(
            allocation.hub,
            allocation.term,
            allocation.account,
            allocation.channel,
            allocation.provider,
        )
        request = pb.GetSettlementProofRequest(**key._asdict())

        async def read(proven: _Proven) -> Settlement:
            if key.term > self._read_current_term(proven, key.hub):
                raise BehindError(f"term {key.term} begins after its proven height", part="height")
            term_key = TermKey(key.hub, key.term)
            term = _verify(proven, "term", "terms", term_key, TermRecord)
            total = _verify(proven, "total", "totals", key, TotalRecord)
            settlement = Settlement(
                provider=key.provider.hex(),
                term=key.term,
                is_open=term is not None,
                sequence=total.sequence if total is not None else 0,
                settled_micros=total.total_micros if total is not None else 0,
                signed_micros=signed_micros,
                height=proven.height,
            )
            if term is None and proven.response.HasField("settled_by"):
                return await self._read_settled(proven, key, settlement)
            return settlement

        return await self._prove(
            lambda stub: stub.GetSettlementProof(request, timeout=ASK_SECONDS),
            read,
            UnverifiedSettlementError,
            is_enough=lambda settlement: settlement.is_open or settlement.is_settled,
            compare=lambda settlement: settlement.sequence,
        )

    @staticmethod
    def _read_current_term(proven: _Proven, hub: HubId) -> int:
        term = _verify(proven, "current_term", "current_terms", hub, int)
        with naming("current_term"):
            if term is None:
                raise InvalidProofError(f"the ledger has no hub {hub!r}")
            return term

    async def _read_settled(
        self, proven: _Proven, key: TotalKey, settlement: Settlement
    ) -> Settlement:
        """Take what a closed term's channel was settled by from the transaction that did it."""
        with naming("settled_by"):
            place = wire.from_proto(TransactionPlace, proven.response.settled_by)
            request = pb.GetTransactionProofRequest(id=place.id, height=place.height)
            answer: pb.GetTransactionProofResponse = await self._network.ask_node(
                proven.node_id,
                lambda stub: stub.GetTransactionProof(request, timeout=ASK_SECONDS),
            )
            recorded, proof = await self._read_transaction(
                proven.node_id, answer, place.id, place.height
            )
            settled = (
                find_settled(recorded.body, proof.result)
                if isinstance(recorded.body, Settle)
                else {}
            )
            if key not in settled:
                raise InvalidProofError("the transaction settles nothing of this channel")
        sequence, total_micros = settled[key]
        return replace(
            settlement, sequence=sequence, settled_micros=total_micros, settled_by=recorded.id
        )

    async def get_transaction(self, transaction_id: Hash, height: int = 0) -> RecordedTransaction:
        """Prove a transaction and its result; without a height, where it was recorded first.

        Raises: UnknownTransactionError, UnverifiedTransactionError, and as `get_balance`.
        """
        request = pb.GetTransactionProofRequest(id=transaction_id, height=height)

        async def read(proven: _Proven) -> RecordedTransaction:
            recorded, _ = await self._read_transaction(
                proven.node_id, proven.response, transaction_id, height
            )
            return recorded

        return await self._prove(
            lambda stub: stub.GetTransactionProof(request, timeout=ASK_SECONDS),
            read,
            UnverifiedTransactionError,
        )

    async def _read_transaction(
        self, node_id: NodeId, response: Any, transaction_id: Hash, height: int
    ) -> tuple[RecordedTransaction, TransactionProof]:
        with naming("transaction"):
            proof = wire.from_proto(TransactionProof, response.transaction)
            header, signed = proof.header.message, proof.transaction
            if signed.hash != transaction_id:
                raise InvalidProofError("it shows another transaction than was asked for")
            if height not in (0, header.height):
                raise InvalidProofError(f"it shows block {header.height}, not {height}")
        following = await self._headers.get_header(node_id, header.height + 1)
        verify_transaction(proof, following)
        recorded = RecordedTransaction(
            id=transaction_id.hex(),
            height=header.height,
            time_ms=header.time_ms,
            account=signed.message.account.hex(),
            nonce=signed.message.nonce,
            body=signed.message.body,
            code=proof.result.code.name.lower(),
            detail=proof.result.detail,
        )
        return recorded, proof

    async def get_tables(self, tables: Sequence[str], *, after_height: int = 0) -> ProvenTables:
        """Prove whole tables of the state. Raises: UnverifiedStateError, and as `get_balance`."""
        request = pb.GetTablesProofRequest(tables=tables)

        async def read(proven: _Proven) -> ProvenTables:
            shown = list(proven.response.tables)
            with naming("tables"):
                if len(shown) != len(tables):
                    raise InvalidProofError(f"it shows {len(shown)} tables, not {len(tables)}")
            found: dict[str, dict[Any, Any]] = {}
            for table, proto in zip(tables, shown, strict=True):
                with naming(table):
                    proof = wire.from_proto(TableProof, proto)
                    found[table] = verify_table(proof, proven.root, table)
            powers = {member.node_id: member.power for member in proven.trusted.validators}
            return ProvenTables(proven.height, found, powers)

        return await self._prove(
            lambda stub: stub.GetTablesProof(request, timeout=ASK_SECONDS),
            read,
            UnverifiedStateError,
            after_height=after_height,
        )

    # --- asking ------------------------------------------------------------------------------

    async def _prove(
        self,
        call: Callable[[Any], Awaitable[Any]],
        read: Callable[[_Proven], Awaitable[T]],
        error_type: type[UnverifiedAnswerError],
        *,
        after_height: int = 0,
        is_enough: Callable[[T], bool] = lambda _: True,
        compare: Callable[[T], int] = lambda _: 0,
    ) -> T:
        """Ask one node after the other until one proves its answer.

        Nodes that are only behind are asked again, as the next block is a matter of seconds. Of
        answers that hold and are not enough the greatest by `compare` is given, after a few nodes.
        """
        params = self._network.market.genesis.params
        give_up_at = time.monotonic() + 2 * params.idle_block_interval_ms / 1000 + PATIENCE_SECONDS
        while True:
            held, failures = await self._ask_all(call, read, after_height, is_enough)
            if held:
                return max(held, key=compare)
            is_waiting = any(isinstance(error, BehindError) for error in failures)
            if not is_waiting or time.monotonic() > give_up_at:
                raise _explain(failures, error_type)
            await asyncio.sleep(POLL_SECONDS)

    async def _ask_all(
        self,
        call: Callable[[Any], Awaitable[Any]],
        read: Callable[[_Proven], Awaitable[T]],
        after_height: int,
        is_enough: Callable[[T], bool],
    ) -> tuple[list[T], list[IemasError]]:
        """Ask nodes until one's answer is enough; give what held, and why others did not."""
        held: list[T] = []
        failures: list[IemasError] = []
        for node_id in self._network.list_preferred():
            if self._fork is not None:
                raise self._fork  # Neither side can be trusted any more.
            try:
                held.append(await self._ask(node_id, call, read, after_height))
            except LedgerForkError as error:
                self._fork = error
                raise
            except TrustExpiredError:
                raise
            except IemasError as error:
                failures.append(error)
            else:
                if is_enough(held[-1]) or len(held) > WITNESSES:
                    break
        return held, failures

    async def _ask(
        self,
        node_id: NodeId,
        call: Callable[[Any], Awaitable[Any]],
        read: Callable[[_Proven], Awaitable[T]],
        after_height: int,
    ) -> T:
        """Ask one node and prove its answer, then ask others about the header that proves it."""
        response = await self._network.ask_node(node_id, call)
        async with self._lock:
            with naming("block"):
                block = wire.from_proto(LightBlock, response.block)
            trusted = await self._headers.follow(node_id, block, after_height)
            if trusted.state_root is None:
                raise BehindError("no block is decided yet")
            value = await read(_Proven(node_id, response, trusted, trusted.state_root))
            await self._headers.ask_witnesses(node_id)
            await self._headers.save()
        return value


def _verify(proven: _Proven, field: str, table: str, key: Any, record_type: type[T]) -> T | None:
    with naming(field):
        proof = wire.from_proto(StateProof, getattr(proven.response, field))
        return verify_record(proof, proven.root, table, key, record_type)


def _rank(error: IemasError) -> int:
    """Rank what to tell of: that a node is away, or behind, says less than what it made up."""
    if isinstance(error, BehindError):
        return 1
    if "part" in error.operands:
        return 2
    if isinstance(error, APIConnectionError):
        return 0
    return 1 if isinstance(error, UnknownTransactionError) else 2


def _explain(failures: Sequence[IemasError], error_type: type[UnverifiedAnswerError]) -> IemasError:
    """Make the error of a question that no node answered with a proof."""
    failure = max(reversed(failures), key=_rank, default=None)
    if failure is None or _rank(failure) == 0:
        error = APIConnectionError(f"no node of the market answers: {failure}")
        error.__cause__ = failure
        return error
    if isinstance(failure, UnknownTransactionError) and "part" not in failure.operands:
        return failure
    part = str(failure.operands.get("part", "answer"))
    unverified = error_type(
        f"no node proved the answer; of the last one, {part} does not hold: {failure}",
        code="unverified",
        field=part,
    )
    unverified.__cause__ = failure
    return unverified
