"""What all resources of a client share: connection, tokenizers, memory of turns, the buyer.

A request costs no round trip beyond the bid and the task itself: market, term, reports and
tokenizer are learnt once and refreshed when something hints that they changed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from iemas import wire
from iemas.client._answers import Answer
from iemas.client._buying import Buyer, Order
from iemas.client._channel import Channel
from iemas.client._funds import Funds
from iemas.client._keys import load_identity
from iemas.client._light import LightClient
from iemas.client._messages import compute_memory_key
from iemas.client._network import Network
from iemas.client._options import BidOptions, RequestSettings
from iemas.client._settings import ClientSettings
from iemas.client._splicing import Turn, TurnMemory, splice_prompt
from iemas.client._tokenizer import ChatTokenizer, TokenizerCache
from iemas.client._trust_store import TrustStore
from iemas.client._types import TransactionReceipt
from iemas.consensus.light import TrustedBlock
from iemas.core.digest import compute_block_keys
from iemas.core.errors import (
    APIConnectionError,
    APIStatusError,
    BadRequestError,
    IemasError,
    InvalidInputError,
    LocalProtocolError,
    MalformedMessageError,
    ModelNotFoundError,
)
from iemas.core.report import CapabilityReport
from iemas.core.tokenizer_bundle import MAX_BUNDLE_BYTES, decode_bundle
from iemas.core.types import ChannelId, HubId
from iemas.ledger.transaction import TransactionBody
from iemas.tls import Address
from iemas.v1 import market_service_pb2 as pb

REPORTS_SECONDS = 15.0
LONG_TEXT = 20_000
TOKENIZER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Offer:
    """How a model is served: what prompts must be tokenized and hashed with."""

    model: str
    tokenizer_hash: bytes
    block_size: int
    context_tokens: int
    providers: tuple[CapabilityReport, ...]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt ready to be bid for."""

    rendered: str
    token_ids: tuple[int, ...]


class ClientCore:
    """One account's connection to one market. All methods run on one event loop."""

    def __init__(
        self,
        bootstrap: Sequence[Address],
        settings: ClientSettings,
    ) -> None:
        self.identity = load_identity(settings.key)
        self.network = Network(bootstrap, settings.load_market())
        self._settings = settings
        self._trusted_block = settings.parse_trusted_block()
        self._bid = settings.bid or BidOptions()
        self._cache = TokenizerCache(_as_path(settings.cache_dir))
        self._trust_store = TrustStore(_as_path(settings.state_dir))
        self._cache_salt = self.identity.derive_secret("cache salt").hex()
        self._tokenizers: dict[bytes, ChatTokenizer] = {}
        self._tokenizer_lock = asyncio.Lock()
        self._memory = TurnMemory()
        self._opening = asyncio.Lock()
        self._funds: Funds | None = None
        self._buyer: Buyer | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._closed = False

    # --- life --------------------------------------------------------------------------------

    async def open(self) -> tuple[Funds, Buyer]:
        """Join the market, once. Raises: APIConnectionError, ConfigurationError."""
        if self._closed:
            raise LocalProtocolError("the client is closed")
        if self._funds is None or self._buyer is None:
            async with self._opening:
                await self.network.join()
                if self._funds is None or self._buyer is None:
                    signer = wire.WireSigner(self.identity, self.network.market.chain_id)
                    channel = Channel(signer, ChannelId(secrets.randbits(64)))
                    light = LightClient(self.network, self._trust_store, self._trusted_block)
                    self._funds = Funds(self.network, channel, light)
                    retries = self._settings.max_retries
                    self._buyer = Buyer(self.network, channel, self._funds, max_refusals=retries)
        self._refresh_reports_if_old()
        return self._funds, self._buyer

    @property
    def latest_block(self) -> TrustedBlock | None:
        """The last block that was verified; None before the first."""
        return self._funds.light.latest if self._funds is not None else None

    def _refresh_reports_if_old(self) -> None:
        """Fetch reports again beside the request, if it was a while ago."""
        busy = self._refreshing is not None and not self._refreshing.done()
        if not busy and time.monotonic() - self.network.reports_at > REPORTS_SECONDS:
            self._refreshing = asyncio.create_task(self._refresh_reports())

    async def _refresh_reports(self) -> None:
        try:
            await self.network.refresh_reports()
        except IemasError:
            return  # The request itself will tell if the market is gone.

    async def close(self) -> None:
        """Stop running tasks and close every connection."""
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._buyer is not None:
            await self._buyer.close()
        if self._funds is not None:
            await self._funds.light.close()
        await self.network.close()

    async def submit(self, make_body: Callable[[HubId], TransactionBody]) -> TransactionReceipt:
        """Have a transaction of this account recorded; its body is made for the market's hub.

        Raises: BadRequestError if the body is out of range, and as `Funds.submit`.
        """
        funds, _ = await self.open()
        try:
            body = make_body(self.network.market.hub)
        except MalformedMessageError as error:
            raise BadRequestError(str(error), code="bad_request") from error
        return await funds.submit(body)

    # --- answering ---------------------------------------------------------------------------

    async def answer_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        settings: RequestSettings,
        on_answer: Callable[[Answer], None],
    ) -> Answer:
        """Buy an answer to normalized messages; `on_answer` is called when it is complete."""
        started_at = asyncio.get_running_loop().time()
        await self.open()
        offer, tokenizer = await self._get_offer(settings.model)
        key = compute_memory_key(offer.model, messages)

        def prepare() -> _Prompt:
            rendered = tokenizer.render(messages)
            turn = self._memory.find(key)
            spliced = splice_prompt(turn, rendered, tokenizer) if turn is not None else None
            token_ids = tokenizer.encode(rendered) if spliced is None else spliced
            return _Prompt(rendered, tuple(token_ids))

        length = sum(len(message["content"]) for message in messages)
        prompt = prepare() if length < LONG_TEXT else await asyncio.to_thread(prepare)

        def remember(answer: Answer) -> None:
            said = {"role": "assistant", "content": answer.text}
            turn = Turn(prompt.rendered, prompt.token_ids, answer.text, answer.output_token_ids)
            self._memory.remember((*key, *compute_memory_key(offer.model, [said])[1:]), turn)
            on_answer(answer)

        return await self._buy(offer, prompt, settings, started_at, remember)

    async def answer_prompt(self, prompt: str | Sequence[int], settings: RequestSettings) -> Answer:
        """Buy a continuation of plain text or of token ids."""
        started_at = asyncio.get_running_loop().time()
        await self.open()
        offer, tokenizer = await self._get_offer(settings.model)
        if isinstance(prompt, str):
            token_ids = await asyncio.to_thread(tokenizer.encode, prompt, add_special_tokens=True)
        else:
            token_ids = list(prompt)
        ready = _Prompt("", tuple(token_ids))
        return await self._buy(offer, ready, settings, started_at, lambda _: None)

    async def _buy(
        self,
        offer: _Offer,
        prompt: _Prompt,
        settings: RequestSettings,
        started_at: float,
        on_answer: Callable[[Answer], None],
    ) -> Answer:
        if not prompt.token_ids:
            raise BadRequestError("the prompt is empty", code="empty")
        sampling = settings.make_sampling(len(prompt.token_ids), offer.context_tokens)
        cache_salt = "" if settings.share_prefix else self._cache_salt
        order = Order(
            bid=(settings.bid or self._bid).make_bid(
                offer.model, len(prompt.token_ids), sampling.max_tokens
            ),
            chain=compute_block_keys(prompt.token_ids, offer.block_size, cache_salt=cache_salt),
            block_size=offer.block_size,
            payload=sampling.make_payload(prompt.token_ids, cache_salt),
        )
        deadline = started_at + (
            self._settings.timeout if settings.timeout is None else settings.timeout
        )
        _, buyer = await self.open()
        purchase = await buyer.buy(order, deadline=deadline)

        return Answer(
            purchase,
            model=offer.model,
            started_at=started_at,
            deadline=deadline,
            on_finish=on_answer,
        )

    # --- models and tokenizers ---------------------------------------------------------------

    async def get_tokenizer(self, model: str | None) -> ChatTokenizer:
        """Give the tokenizer of a model that is for sale. Raises: ModelNotFoundError."""
        _, tokenizer = await self._get_offer(model)
        return tokenizer

    async def _get_offer(self, model: str | None) -> tuple[_Offer, ChatTokenizer]:
        """Find who sells a model, and its tokenizer. Raises: ModelNotFoundError."""
        name = model or self._settings.model or self.network.market.genesis.model
        offer = self._read_offer(name)
        if offer is None:
            await self.network.refresh_reports()
            offer = self._read_offer(name)
        if offer is None:
            on_offer = sorted(
                {
                    node.capability.model
                    for node in self.network.nodes.values()
                    if node.capability is not None and node.capability.sells
                }
            )
            raise ModelNotFoundError(
                f"no live node of the market serves {name!r}; on offer: "
                f"{', '.join(on_offer) or 'nothing'}",
                code="model_not_found",
                model=name,
                models=on_offer,
            )
        return offer, await self._get_tokenizer(offer)

    def _read_offer(self, model: str) -> _Offer | None:
        """Give how most slots of a model are served, or None if nobody sells it."""
        slots: Counter[tuple[bytes, int]] = Counter()
        providers = self.network.list_providers(model)
        for report in providers:
            slots[report.tokenizer_hash, report.block_size] += report.slots
        if not slots:
            return None
        kind = max(slots, key=lambda pair: (slots[pair], pair))
        alike = tuple(r for r in providers if (r.tokenizer_hash, r.block_size) == kind)
        return _Offer(model, *kind, max(report.context_tokens for report in alike), alike)

    async def _get_tokenizer(self, offer: _Offer) -> ChatTokenizer:
        tokenizer = self._tokenizers.get(offer.tokenizer_hash)
        if tokenizer is not None:
            return tokenizer
        async with self._tokenizer_lock:
            tokenizer = self._tokenizers.get(offer.tokenizer_hash)
            if tokenizer is None:
                files = await asyncio.to_thread(self._cache.load, offer.tokenizer_hash)
                if files is None:
                    files = await self._fetch_bundle(offer)
                    await asyncio.to_thread(self._cache.save, offer.tokenizer_hash, files)
                tokenizer = await asyncio.to_thread(ChatTokenizer, files)
                self._tokenizers[offer.tokenizer_hash] = tokenizer
        return tokenizer

    async def _fetch_bundle(self, offer: _Offer) -> dict[str, bytes]:
        """Fetch a tokenizer from one of the nodes that serve with it, checked by its hash."""
        request = pb.GetTokenizerRequest(hash=offer.tokenizer_hash)

        async def collect(stub: Any) -> bytes:
            data = bytearray()
            async for response in stub.GetTokenizer(request, timeout=TOKENIZER_SECONDS):
                data += response.piece
                if len(data) > MAX_BUNDLE_BYTES:
                    raise MalformedMessageError("the tokenizer bundle is over 64 MiB")
            return bytes(data)

        failure: IemasError | None = None
        for report in offer.providers:
            try:
                data = await self.network.ask_node(report.stamp.node_id, collect)
                return decode_bundle(data, offer.tokenizer_hash)
            except (APIConnectionError, APIStatusError, InvalidInputError) as error:
                failure = error
        raise APIConnectionError(f"no provider gave the tokenizer: {failure}") from failure


def _as_path(folder: str | PathLike[str] | None) -> Path | None:
    return None if folder is None else Path(folder)
