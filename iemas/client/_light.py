"""Answers that are proven: the SDK's light client, over whatever nodes it can reach.

No node is trusted. An answer comes with the last decided header that its node knows; the header is
followed from what is trusted already (genesis, or a block that the caller named) by the signatures
of those who held the stake, and the answer must lead to the header's state root. Then other nodes
are asked for the same height: a different header that verifies too is a fork, and both are kept as
evidence. A node whose answer does not hold, or is old, is passed over for the next.

`iemas.consensus.light` decides; this module asks. Source: docs/spec/light_client.md §5.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from iemas import wire
from iemas.client._network import ASK_SECONDS, Network
from iemas.client._types import Balance, Settlement
from iemas.consensus.light import (
    LightRules,
    TrustedBlock,
    bisect,
    compare,
    make_rules,
    trust_block,
    trust_genesis,
)
from iemas.consensus.messages import LightBlock
from iemas.core.auction import Allocation
from iemas.core.errors import (
    APIConnectionError,
    IemasError,
    InvalidProofError,
    LedgerForkError,
    MalformedMessageError,
    TrustExpiredError,
    UnverifiedAnswerError,
    UnverifiedBalanceError,
    UnverifiedSettlementError,
)
from iemas.core.types import AccountId, Hash, HubId, NodeId, short_id
from iemas.ledger.proofs import StateProof, verify_record
from iemas.ledger.records import (
    AccountRecord,
    HoldKey,
    HoldRecord,
    TermKey,
    TermRecord,
    TotalKey,
    TotalRecord,
)
from iemas.ledger.transfer import AccountKind
from iemas.v1 import market_service_pb2 as pb

T = TypeVar("T")

WITNESSES: Final = 2
WITNESS_SECONDS: Final = 2.0
"""So many other nodes are asked whether they know the same header, and for so long."""

MAX_AGE_INTERVALS: Final = 6
LEAST_MAX_AGE_MS: Final = 30_000
"""A header is too old after so many idle block intervals, or this if that is less."""

POLL_SECONDS: Final = 0.25


class _BehindError(IemasError):
    """The node's newest header is older than what was asked for."""


@dataclass(frozen=True, slots=True)
class _Proven:
    """An answer whose header is trusted now."""

    response: Any
    block: LightBlock
    root: Hash

    @property
    def height(self) -> int:
        """Up to which block the proven state goes: the one before the header's."""
        return self.block.height - 1


class LightClient:
    """Follows one chain's headers, and proves answers under them.

    Args:
        network: the nodes to ask.
        start: height and hash of a block that the caller trusts; genesis where there is none.

    """

    def __init__(self, network: Network, start: tuple[int, Hash] | None = None) -> None:
        self._network = network
        self._start = start
        self._latest: TrustedBlock | None = None
        self._base: TrustedBlock | None = None
        """What the latest was verified from: a fork is judged from here."""
        self._latest_block: LightBlock | None = None
        self._witnessed_height = 0
        self._fork: LedgerForkError | None = None
        self._lock = asyncio.Lock()

    @property
    def latest(self) -> TrustedBlock | None:
        """The highest block that is trusted; None before the first proof, or if it is genesis."""
        return self._latest if self._latest is not None and self._latest.height else None

    # --- answers -----------------------------------------------------------------------------

    async def get_balance(self, account: AccountId, *, after_height: int = 0) -> Balance:
        """Prove an account's balance, in a state that has the block of `after_height`.

        Raises: UnverifiedBalanceError, LedgerForkError, TrustExpiredError, APIConnectionError.
        """
        hub = self._network.market.hub
        request = pb.GetAccountProofRequest(account=account, hub=hub)

        def read(proven: _Proven) -> Balance:
            record = _verify(proven, "account", "accounts", account, AccountRecord)
            term = _verify(proven, "current_term", "current_terms", hub, int)
            with _naming("current_term"):
                if term is None:
                    raise InvalidProofError(f"the ledger has no hub {hub!r}")
            key = HoldKey(hub, term or 0, account)
            hold = _verify(proven, "hold", "holds", key, HoldRecord)
            held = {(b.kind, b.hub): b.micros for b in record.balances} if record else {}
            return Balance(
                account=account.hex(),
                exists=record is not None,
                available_micros=held.get((AccountKind.AVAILABLE, HubId("")), 0),
                escrow_micros=held.get((AccountKind.ESCROW, hub), 0),
                allowance_micros=hold.allowance_micros if hold is not None else 0,
                height=proven.height,
                verified=True,
            )

        return await self._prove(
            lambda stub: stub.GetAccountProof(request, timeout=ASK_SECONDS),
            read,
            UnverifiedBalanceError,
            after_height,
        )

    async def get_settlement(self, allocation: Allocation, signed_micros: int | None) -> Settlement:
        """Prove what is settled of the channel that an allocation belongs to.

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

        def read(proven: _Proven) -> Settlement:
            term_key = TermKey(key.hub, key.term)
            term = _verify(proven, "term", "terms", term_key, TermRecord)
            total = _verify(proven, "total", "totals", key, TotalRecord)
            return Settlement(
                provider=key.provider.hex(),
                term=key.term,
                is_open=term is not None,
                sequence=total.sequence if total is not None else 0,
                settled_micros=total.total_micros if total is not None else 0,
                signed_micros=signed_micros,
                height=proven.height,
            )

        return await self._prove(
            lambda stub: stub.GetSettlementProof(request, timeout=ASK_SECONDS),
            read,
            UnverifiedSettlementError,
            0,
        )

    async def _prove(
        self,
        call: Callable[[Any], Awaitable[Any]],
        read: Callable[[_Proven], T],
        error_type: type[UnverifiedAnswerError],
        after_height: int,
    ) -> T:
        """Ask one node after the other until one proves its answer.

        Nodes that are only behind are asked again, as the next block is a matter of seconds.
        """
        params = self._network.market.genesis.params
        give_up_at = time.monotonic() + 2 * params.idle_block_interval_ms / 1000 + ASK_SECONDS
        while True:
            if self._fork is not None:
                raise self._fork  # Neither side can be trusted any more.
            failure: IemasError | None = None
            is_waiting = False
            for node_id in self._network.list_preferred():
                try:
                    response = await self._network.ask_node(node_id, call)
                    async with self._lock:
                        proven = await self._follow(node_id, response, after_height)
                        value = read(proven)
                        await self._ask_witnesses(node_id, proven.block)
                except LedgerForkError as error:
                    self._fork = error
                    raise
                except TrustExpiredError:
                    raise
                except _BehindError as error:
                    is_waiting, failure = True, failure or error
                except IemasError as error:
                    # What one node made up says more than that another one is away.
                    is_away = isinstance(error, APIConnectionError)
                    failure = (failure or error) if is_away else error
                else:
                    return value
            if not is_waiting or time.monotonic() > give_up_at:
                raise _explain(failure, error_type)
            await asyncio.sleep(POLL_SECONDS)

    # --- headers -----------------------------------------------------------------------------

    async def _follow(self, node_id: NodeId, response: Any, after_height: int) -> _Proven:
        """Trust the header that an answer came with, if it holds and is new enough."""
        with _naming("block"):
            block = wire.from_proto(LightBlock, response.block)
            rules = self._make_rules()
            latest = await self._get_latest(rules)
            if block.height > latest.height:
                trusted = await self._bisect(node_id, latest, block, rules)
                self._latest, self._base, self._latest_block = trusted, latest, block
            elif block.height == latest.height and block.hash != latest.hash:
                await self._judge(node_id, block, rules)
                raise InvalidProofError(f"it shows another block {block.height} than is trusted")
        latest = self._latest or latest
        age_ms = _get_now_ms() - block.time_ms
        with _naming("height"):
            if block.height < latest.height or block.height - 1 < after_height:
                raise _BehindError(
                    f"its newest proven height is {block.height - 1}, "
                    f"{max(latest.height - 1, after_height)} was asked for"
                )
            if age_ms > self._get_max_age_ms():
                raise _BehindError(f"its newest header is {age_ms / 1000:.0f} s old")
        if latest.state_root is None:
            raise _BehindError("no block is decided yet")
        return _Proven(response, block, latest.state_root)

    def _make_rules(self) -> LightRules:
        market = self._network.market
        return make_rules(market.chain_id, market.genesis.params)

    def _get_max_age_ms(self) -> int:
        params = self._network.market.genesis.params
        return max(LEAST_MAX_AGE_MS, MAX_AGE_INTERVALS * params.idle_block_interval_ms)

    async def _get_latest(self, rules: LightRules) -> TrustedBlock:
        """Give what is trusted so far, at first genesis or the block that the caller named."""
        if self._latest is None:
            if self._start is None:
                self._latest = trust_genesis(self._network.market.genesis)
            else:
                self._latest = await self._fetch_start(*self._start, rules)
        return self._latest

    async def _fetch_start(self, height: int, block_hash: Hash, rules: LightRules) -> TrustedBlock:
        failure: IemasError | None = None
        for node_id in self._network.list_preferred():
            try:
                block = await self._fetch(node_id, height)
                return trust_block(block, block_hash, chain_id=rules.chain_id)
            except IemasError as error:
                failure = error
        raise APIConnectionError(
            f"no node has the trusted block {height} {short_id(block_hash)}: {failure}"
        ) from failure

    async def _fetch(
        self, node_id: NodeId, height: int, *, seconds: float = ASK_SECONDS
    ) -> LightBlock:
        request = pb.ListLightBlocksRequest(from_height=height, limit=1)
        response: pb.ListLightBlocksResponse = await self._network.ask_node(
            node_id, lambda stub: stub.ListLightBlocks(request, timeout=seconds)
        )
        if len(response.blocks) != 1:
            raise MalformedMessageError(f"it does not have block {height}")
        block = wire.from_proto(LightBlock, response.blocks[0])
        if block.height != height:
            raise MalformedMessageError(f"it gave block {block.height}, not {height}")
        return block

    async def _bisect(
        self, node_id: NodeId, base: TrustedBlock, target: LightBlock, rules: LightRules
    ) -> TrustedBlock:
        """Verify a target with the headers in between of the node that it came from."""
        wanted = bisect(base, target, rules, now_ms=_get_now_ms())
        try:
            height = next(wanted)
            while True:
                height = wanted.send(await self._fetch(node_id, height))
        except StopIteration as done:
            trusted: TrustedBlock = done.value
            return trusted

    # --- forks -------------------------------------------------------------------------------

    async def _ask_witnesses(self, node_id: NodeId, block: LightBlock) -> None:
        """Ask other nodes for the same height, once a height.

        Raises: LedgerForkError if one of them has another header that verifies.
        """
        if block.height <= self._witnessed_height:
            return
        others = [other for other in self._network.list_preferred() if other != node_id]
        rules = self._make_rules()
        await asyncio.gather(
            *(self._ask_witness(other, block.height, rules) for other in others[:WITNESSES])
        )
        self._witnessed_height = block.height

    async def _ask_witness(self, node_id: NodeId, height: int, rules: LightRules) -> None:
        try:
            block = await self._fetch(node_id, height, seconds=WITNESS_SECONDS)
            await self._judge(node_id, block, rules)
        except (LedgerForkError, TrustExpiredError):
            raise
        except IemasError:
            return  # It is away, behind, or makes up what it shows: no evidence against the other.

    async def _judge(self, node_id: NodeId, block: LightBlock, rules: LightRules) -> None:
        """Compare a header of the latest height with the one that is trusted.

        Raises: LedgerForkError if it is another one and holds as well; what does not hold of it.
        """
        ours, base = self._latest_block, self._base
        if ours is None or base is None or block.hash == ours.hash:
            return
        await self._bisect(node_id, base, block, rules)
        compare(ours, block)


def _verify(proven: _Proven, field: str, table: str, key: Any, record_type: type[T]) -> T | None:
    with _naming(field):
        proof = wire.from_proto(StateProof, getattr(proven.response, field))
        return verify_record(proof, proven.root, table, key, record_type)


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Note on an error which part of an answer it is about."""
    try:
        yield
    except IemasError as error:
        error.operands.setdefault("part", field)
        raise


def _explain(
    failure: IemasError | None, error_type: type[UnverifiedAnswerError]
) -> UnverifiedAnswerError | APIConnectionError:
    if failure is None or (
        isinstance(failure, APIConnectionError) and "part" not in failure.operands
    ):
        error = APIConnectionError(f"no node of the market answers: {failure}")
        error.__cause__ = failure
        return error
    part = str(failure.operands.get("part", "answer"))
    unverified = error_type(
        f"no node proved the answer; of the last one, {part} does not hold: {failure}",
        code="unverified",
        field=part,
    )
    unverified.__cause__ = failure
    return unverified


def _get_now_ms() -> int:
    return time.time_ns() // 1_000_000
