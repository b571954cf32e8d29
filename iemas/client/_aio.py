"""`AsyncClient`: the SDK on an event loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from iemas.client._core import ClientCore
from iemas.client._keys import Key, load_identity
from iemas.client._network import KnownNode, Market, parse_bootstrap
from iemas.client._options import BidOptions
from iemas.client._types import Balance, NodeInfo, Settlement, TransactionReceipt
from iemas.client.resources.chat import AsyncChat
from iemas.client.resources.completions import AsyncCompletions
from iemas.client.resources.models import AsyncModels
from iemas.client.resources.sessions import AsyncSessions
from iemas.core.auction import Allocation
from iemas.core.errors import BadRequestError, ConfigurationError, MalformedMessageError
from iemas.core.report import BLOCK_KEY_BYTES
from iemas.core.types import ID_BYTES, AccountId, Hash
from iemas.genesis import load_genesis
from iemas.ledger.transaction import FundEscrow, TransactionBody, TransferFunds, WithdrawEscrow
from iemas.tls import Address

DEFAULT_TIMEOUT = 600.0
DEFAULT_MAX_RETRIES = 6
Bootstrap = str | Address | Sequence[str | Address]


class AsyncClient:
    """Buys inference from a market, for the account of one key.

    Args:
        bootstrap: ``nodeid@host:port`` of a node's public listener, or several; the client finds
            the others by itself.
        key: the account's key: an `Identity`, or the path of a file that `iemas-node keygen` wrote.
        model: what to ask for where a request names no model; by default the market's.
        bid: what tasks are worth where a request does not say; see `BidOptions`.
        timeout: seconds that a whole request may take where it does not say.
        max_retries: how often to bid again after a round without a winner, a busy winner, or one
            that failed before its first token.
        cache_dir: where fetched tokenizers are kept; by default the user's cache folder.
        genesis: the market's genesis file (path or bytes): what verified answers are proven from.
            Without it the first node's is believed.
        trusted_block: height and hash (hex) of a block that you trust, to prove answers from where
            genesis is older than trust lasts; see `trusted_block` of a client that verified one.

    Raises: ConfigurationError if an address or the key file is wrong. Nothing is sent yet.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async with AsyncClient("…@127.0.0.1:7470", key="~/.iemas/key.pem") as client:
        ...         completion = await client.chat.completions.create(
        ...             messages=[{"role": "user", "content": "Hello!"}]
        ...         )
        ...         print(completion.choices[0].message.content)

    """

    def __init__(
        self,
        bootstrap: Bootstrap,
        *,
        key: Key,
        model: str | None = None,
        bid: BidOptions | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
        cache_dir: str | os.PathLike[str] | None = None,
        genesis: str | os.PathLike[str] | bytes | None = None,
        trusted_block: tuple[int, str] | None = None,
    ) -> None:
        try:
            addresses = parse_bootstrap(bootstrap)
        except MalformedMessageError as error:
            raise ConfigurationError(f"bootstrap: {error}") from error
        self._core = ClientCore(
            addresses,
            load_identity(key),
            model=model,
            bid=bid or BidOptions(),
            timeout=timeout,
            max_retries=max_retries,
            cache_dir=Path(cache_dir) if cache_dir is not None else None,
            market=_load_market(genesis),
            trusted_block=_parse_block(trusted_block),
        )
        self.chat = AsyncChat(self._core)
        self.completions = AsyncCompletions(self._core)
        self.models = AsyncModels(self._core)
        self.sessions = AsyncSessions(self.chat.completions)

    @property
    def account(self) -> str:
        """The account's id, 64 hex digits: where to have money transferred to."""
        return self._core.identity.node_id.hex()

    # --- reads -------------------------------------------------------------------------------

    async def balance(self, account: str | bytes | None = None, *, verify: bool = False) -> Balance:
        """Read an account's balance, the client's own unless given.

        Without `verify` it is one node's word, as of its last block. With it the balance is proven
        by the signatures of those who hold the stake, whatever any node says, and includes the
        transactions that this client had recorded: a proof comes with the next block, so it may
        take as long as an idle market waits for one (5 s).

        Raises: APIConnectionError; with `verify` UnverifiedBalanceError whose `field` names what
            did not hold, LedgerForkError with both headers, TrustExpiredError.

        Example:
            >>> async def show(client):
            ...     balance = await client.balance(verify=True)
            ...     print(balance.available_micros, balance.escrow_micros, balance.height)

        """
        holder = None if account is None else _parse_account(account)
        funds, _ = await self._core.open()
        return await funds.get_balance(holder, verify=verify)

    async def get_settlement(self, allocation: Allocation) -> Settlement:
        """Prove what its provider has settled of an allocation's channel in its term.

        Raises: APIConnectionError, UnverifiedSettlementError, LedgerForkError, TrustExpiredError.

        Example:
            >>> async def check(client, completion):
            ...     settlement = await client.get_settlement(completion.allocation)
            ...     print(settlement.settled_micros, "of", settlement.signed_micros)

        """
        funds, _ = await self._core.open()
        return await funds.get_settlement(allocation)

    @property
    def trusted_block(self) -> tuple[int, str] | None:
        """Height and hash of the last block that this client verified; None before the first."""
        latest = self._core.latest_block
        return None if latest is None else (latest.height, latest.hash.hex())

    async def nodes(self) -> tuple[NodeInfo, ...]:
        """List the market's nodes by their own signed reports, in the order of their ids.

        Raises: APIConnectionError.

        Example:
            >>> async def show(client):
            ...     for node in await client.nodes():
            ...         print(node.id[:10], node.model, node.active_tasks, "of", node.slots)

        """
        await self._core.open()
        await self._core.network.refresh_reports()
        known = sorted(self._core.network.nodes.items())
        return tuple(_describe_node(node_id, node) for node_id, node in known)

    # --- transactions ------------------------------------------------------------------------

    async def transfer(self, to: str | bytes, amount_micros: int) -> TransactionReceipt:
        """Transfer available money to another account, and wait until it is recorded.

        Raises: InsufficientBalanceError, BadRequestError, APIConnectionError, APITimeoutError.

        Example:
            >>> async def pay(client, friend):
            ...     print((await client.transfer(friend, 5_000_000)).height)

        """
        account = _parse_account(to)
        return await self._submit(lambda: TransferFunds(account, amount_micros))

    async def fund_escrow(self, amount_micros: int) -> TransactionReceipt:
        """Move available money into the hub's escrow, from which tasks are paid.

        It counts from the next term on. Raises: as `transfer`.

        Example:
            >>> async def top_up(client):
            ...     await client.fund_escrow(10_000_000)

        """
        await self._core.open()
        hub = self._core.network.market.hub
        return await self._submit(lambda: FundEscrow(hub, amount_micros))

    async def withdraw_escrow(self, amount_micros: int) -> TransactionReceipt:
        """Move escrow that no open term may still settle back to available money.

        Raises: as `transfer`.

        Example:
            >>> async def cash_out(client):
            ...     await client.withdraw_escrow((await client.balance()).escrow_micros)

        """
        await self._core.open()
        hub = self._core.network.market.hub
        return await self._submit(lambda: WithdrawEscrow(hub, amount_micros))

    async def _submit(self, make_body: Callable[[], TransactionBody]) -> TransactionReceipt:
        try:
            body = make_body()
        except MalformedMessageError as error:
            raise BadRequestError(str(error), code="bad_request") from error
        funds, _ = await self._core.open()
        return await funds.submit(body)

    # --- life --------------------------------------------------------------------------------

    async def connect(self) -> Self:
        """Join the market now rather than with the first request.

        Raises: APIConnectionError if no bootstrap address answers.

        Example:
            >>> async def begin(client):
            ...     await client.connect()

        """
        await self._core.open()
        return self

    async def close(self) -> None:
        """Stop running tasks and close every connection.

        Example:
            >>> async def end(client):
            ...     await client.close()

        """
        await self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _parse_account(account: str | bytes) -> AccountId:
    try:
        raw = bytes.fromhex(account) if isinstance(account, str) else account
    except ValueError:
        raw = b""
    if len(raw) != ID_BYTES:
        raise BadRequestError(
            "an account is named by 64 hex digits (`client.account` is your own)",
            code="bad_account",
        )
    return AccountId(raw)


def _load_market(genesis: str | os.PathLike[str] | bytes | None) -> Market | None:
    if genesis is None:
        return None
    loaded, chain_id, _ = load_genesis(genesis if isinstance(genesis, bytes) else Path(genesis))
    return Market(loaded, chain_id)


def _parse_block(block: tuple[int, str] | None) -> tuple[int, Hash] | None:
    if block is None:
        return None
    height, text = block
    try:
        block_hash = bytes.fromhex(text)
    except ValueError:
        block_hash = b""
    if height < 1 or len(block_hash) != ID_BYTES:
        raise ConfigurationError(
            "trusted_block is (height, hash): a height from 1 on and 64 hex digits",
            key="trusted_block",
        )
    return height, Hash(block_hash)


def _describe_node(node_id: bytes, node: KnownNode) -> NodeInfo:
    capability = node.capability
    return NodeInfo(
        id=node_id.hex(),
        address=str(node.address),
        model=capability.model if capability is not None else "",
        slots=capability.slots if capability is not None else 0,
        active_tasks=len(node.load.active) if node.load is not None else 0,
        digest_blocks=len(node.digest.blocks) // BLOCK_KEY_BYTES if node.digest is not None else 0,
        context_tokens=capability.context_tokens if capability is not None else 0,
        hardware=capability.hardware if capability is not None else "",
        software=capability.software if capability is not None else "",
        kv_events=capability.kv_events if capability is not None else False,
        suspected=node.suspected,
    )
