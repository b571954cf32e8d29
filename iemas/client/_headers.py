"""The chain of headers that a client trusts: followed forwards by commits, backwards by hashes.

It begins with genesis, with a block that the caller named, or with the last one that an earlier
run verified. After each new height other nodes are asked for the same one: a different header that
verifies too is a fork, and both are kept as evidence.

`iemas.consensus.light` decides; this module asks. Source: docs/spec/light_client.md §2 and §6.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from iemas import wire
from iemas.client._network import ASK_SECONDS, Network
from iemas.client._trust_store import TrustFileWarning, TrustStore
from iemas.consensus.light import (
    LightRules,
    TrustedBlock,
    bisect,
    check_trust,
    compare,
    make_rules,
    trust_block,
    trust_genesis,
)
from iemas.consensus.messages import LightBlock
from iemas.core.envelope import Envelope, Signed
from iemas.core.errors import (
    APIConnectionError,
    IemasError,
    InvalidProofError,
    LedgerForkError,
    MalformedMessageError,
    TrustExpiredError,
    TrustFileError,
)
from iemas.core.types import Hash, NodeId, short_id
from iemas.ledger.header import BlockHeader
from iemas.v1 import market_service_pb2 as pb

WITNESSES: Final = 2
WITNESS_SECONDS: Final = 2.0
"""So many other nodes are asked whether they know the same header, and for so long."""

MAX_AGE_INTERVALS: Final = 6
LEAST_MAX_AGE_MS: Final = 30_000
"""A header is too old after so many idle block intervals, or this if that is less."""

MAX_HEADERS_BACK: Final = 100_000
"""So far back hashes are followed: some 40 MB."""

SAVE_INTERVAL_MS: Final = 60_000
"""In ledger time: a later header replaces the kept one no sooner, but when the client closes."""


class BehindError(IemasError):
    """The node's newest header is older than what was asked for."""


@dataclass(frozen=True, slots=True)
class _Anchor:
    """A trusted block, and what it was read from; genesis has none."""

    trusted: TrustedBlock
    block: LightBlock | None

    @property
    def height(self) -> int:
        return self.trusted.height


class HeaderChain:
    """One chain's headers, as far as they are verified. One caller at a time.

    Args:
        network: the nodes to ask.
        store: where the last verified block is kept between runs.
        start: height and hash of a block that the caller trusts, instead of the kept one.

    """

    def __init__(
        self, network: Network, store: TrustStore, start: tuple[int, Hash] | None = None
    ) -> None:
        self._network = network
        self._store = store
        self._start = start
        self._first: _Anchor | None = None
        self._latest: _Anchor | None = None
        self._base: TrustedBlock | None = None
        """What the latest was verified from: a fork is judged from here."""
        self._witnessed_height = 0
        self._saved: TrustedBlock | None = None

    @property
    def latest(self) -> TrustedBlock | None:
        """The highest block that is trusted; None before the first proof, or if it is genesis."""
        return self._latest.trusted if self._latest is not None and self._latest.height else None

    async def follow(self, node_id: NodeId, block: LightBlock, after_height: int) -> TrustedBlock:
        """Trust the header that an answer came with, if it holds and is new enough.

        Raises: BehindError if it is not; what does not hold of it; TrustExpiredError.
        """
        with naming("block"):
            rules = self._make_rules()
            latest = await self._get_latest(rules)
            if block.height > latest.height:
                trusted = await self._bisect(node_id, latest.trusted, block, rules)
                self._base, self._latest = latest.trusted, _Anchor(trusted, block)
            elif block.height == latest.height and block.hash != latest.trusted.hash:
                await self._judge(node_id, block, rules)
                raise InvalidProofError(f"it shows another block {block.height} than is trusted")
        trusted = (self._latest or latest).trusted
        age_ms = _get_now_ms() - block.time_ms
        with naming("height"):
            if block.height < trusted.height or block.height - 1 < after_height:
                raise BehindError(
                    f"its newest proven height is {block.height - 1}, "
                    f"{max(trusted.height - 1, after_height)} was asked for"
                )
            if age_ms > self._get_max_age_ms():
                raise BehindError(f"its newest header is {age_ms / 1000:.0f} s old")
        return trusted

    async def get_header(self, node_id: NodeId, height: int) -> BlockHeader:
        """Give the verified header of any height up to the latest; after the first `follow`.

        Above what this client began with it is verified by signatures, below it by hashes.
        Raises: BehindError above the latest; what does not hold of what the node shows.
        """
        first, latest = self._first, self._latest
        if first is None or latest is None or latest.block is None or height > latest.height:
            raise BehindError(f"block {height} is not decided yet", part="height")
        if height == latest.height:
            return latest.block.header.message
        with naming("block"):
            rules = self._make_rules()
            if height > first.height and not _is_expired(first.trusted, rules):
                block = await self._fetch(node_id, height)
                await self._bisect(node_id, first.trusted, block, rules)
                return block.header.message
            is_below_first = first.block is not None and height <= first.height
            above = first.block if first.block is not None and is_below_first else latest.block
            return await self._walk_back(node_id, above.header.message, height)

    def _make_rules(self) -> LightRules:
        market = self._network.market
        return make_rules(market.chain_id, market.genesis.params)

    def _get_max_age_ms(self) -> int:
        params = self._network.market.genesis.params
        return max(LEAST_MAX_AGE_MS, MAX_AGE_INTERVALS * params.idle_block_interval_ms)

    # --- where it begins ---------------------------------------------------------------------

    async def _get_latest(self, rules: LightRules) -> _Anchor:
        """Give what is trusted so far; at first what the caller named, was kept, or genesis."""
        if self._latest is None:
            if self._start is not None:
                anchor = await self._fetch_start(*self._start, rules)
            else:
                anchor = await asyncio.to_thread(self._load, rules)
            self._first = self._latest = anchor
        return self._latest

    def _load(self, rules: LightRules) -> _Anchor:
        """Go on from the kept block; from genesis if there is none or it cannot be read."""
        try:
            block = self._store.load(rules.chain_id)
        except TrustFileError as error:
            warnings.warn(str(error), TrustFileWarning, stacklevel=2)
            block = None
        if block is None:
            return _Anchor(trust_genesis(self._network.market.genesis), None)
        trusted = self._saved = trust_block(block, block.hash, chain_id=rules.chain_id)
        return _Anchor(trusted, block)

    async def _fetch_start(self, height: int, block_hash: Hash, rules: LightRules) -> _Anchor:
        failure: IemasError | None = None
        for node_id in self._network.list_preferred():
            try:
                block = await self._fetch(node_id, height)
                return _Anchor(trust_block(block, block_hash, chain_id=rules.chain_id), block)
            except IemasError as error:
                failure = error
        raise APIConnectionError(
            f"no node has the trusted block {height} {short_id(block_hash)}: {failure}"
        ) from failure

    async def save(self, *, at_once: bool = False) -> None:
        """Keep the latest block for the next run, once other nodes were asked for it.

        Not more often than `SAVE_INTERVAL_MS` unless `at_once`.
        """
        latest, saved = self._latest, self._saved
        if latest is None or latest.block is None or latest.height > self._witnessed_height:
            return
        since_ms = None if saved is None else latest.trusted.time_ms - saved.time_ms
        is_newer = saved is None or latest.height > saved.height
        if is_newer and (at_once or since_ms is None or since_ms >= SAVE_INTERVAL_MS):
            chain_id = self._network.market.chain_id
            self._saved = latest.trusted
            try:
                await asyncio.to_thread(self._store.save, chain_id, latest.block)
            except TrustFileError as error:
                warnings.warn(str(error), TrustFileWarning, stacklevel=2)

    # --- asking ------------------------------------------------------------------------------

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

    async def _walk_back(self, node_id: NodeId, header: BlockHeader, height: int) -> BlockHeader:
        """Go back from a trusted header, each of which names the one before it by its hash."""
        if header.height - height > MAX_HEADERS_BACK:
            raise InvalidProofError(
                f"block {height} is more than {MAX_HEADERS_BACK} before what is trusted: give "
                "height and hash of a block near it as `trusted_block`"
            )
        while header.height > height:
            for found in await self._fetch_headers(node_id, header.height, height):
                if found.hash != header.previous_hash:
                    raise InvalidProofError(
                        f"it shows another block {header.height - 1} than the one after it names"
                    )
                header = found.message
        return header

    async def _fetch_headers(
        self, node_id: NodeId, before: int, down_to: int
    ) -> list[Signed[BlockHeader]]:
        request = pb.ListHeadersRequest(before_height=before, limit=before - down_to)
        response: pb.ListHeadersResponse = await self._network.ask_node(
            node_id, lambda stub: stub.ListHeaders(request, timeout=ASK_SECONDS)
        )
        if not 0 < len(response.headers) <= before - down_to:
            raise MalformedMessageError(f"it does not have block {before - 1}")
        envelopes = [wire.from_proto(Envelope, envelope) for envelope in response.headers]
        return [wire.open_envelope(BlockHeader, envelope) for envelope in envelopes]

    # --- forks -------------------------------------------------------------------------------

    async def ask_witnesses(self, node_id: NodeId) -> None:
        """Ask other nodes than this one for the latest height, once a height.

        Raises: LedgerForkError if one of them has another header that verifies.
        """
        height = self._latest.height if self._latest is not None else 0
        if height <= self._witnessed_height:
            return
        others = [other for other in self._network.list_preferred() if other != node_id]
        rules = self._make_rules()
        await asyncio.gather(
            *(self._ask_witness(other, height, rules) for other in others[:WITNESSES])
        )
        self._witnessed_height = height

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
        ours = self._latest.block if self._latest is not None else None
        if ours is None or self._base is None or block.hash == ours.hash:
            return
        await self._bisect(node_id, self._base, block, rules)
        compare(ours, block)


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Note on an error which part of an answer it is about."""
    try:
        yield
    except IemasError as error:
        error.operands.setdefault("part", part)
        raise


def _is_expired(trusted: TrustedBlock, rules: LightRules) -> bool:
    try:
        check_trust(trusted, rules, now_ms=_get_now_ms())
    except TrustExpiredError:
        return True
    return False


def _get_now_ms() -> int:
    return time.time_ns() // 1_000_000
