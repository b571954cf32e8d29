"""`AsyncClient`: the SDK on an event loop."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from iemas.client._core import ClientCore
from iemas.client._network import KnownNode
from iemas.client._settings import (
    Bootstrap,
    ClientOptions,
    ClientSettings,
    parse_account,
    parse_id,
)
from iemas.client._types import (
    Balance,
    NodeInfo,
    RecordedTransaction,
    Settlement,
    TransactionReceipt,
)
from iemas.client.resources.chat import AsyncChat
from iemas.client.resources.completions import AsyncCompletions
from iemas.client.resources.ledger import AsyncLedger
from iemas.client.resources.models import AsyncModels
from iemas.client.resources.sessions import AsyncSessions
from iemas.core.auction import Allocation
from iemas.core.report import BLOCK_KEY_BYTES
from iemas.ledger.transaction import FundEscrow, TransferFunds, WithdrawEscrow


class AsyncClient:
    """Buys inference from a market, for the account of one key.

    Args:
        bootstrap: ``nodeid@host:port`` of a node's public listener, or several; the client finds
            the others by itself.
        options: `key`, and what else a client may be told: see `ClientOptions`.

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

    def __init__(self, bootstrap: Bootstrap, **options: Unpack[ClientOptions]) -> None:
        settings = ClientSettings(**options)
        self._core = ClientCore(settings.parse_bootstrap(bootstrap), settings)
        self.chat = AsyncChat(self._core)
        self.completions = AsyncCompletions(self._core)
        self.models = AsyncModels(self._core)
        self.sessions = AsyncSessions(self.chat.completions)
        self.ledger = AsyncLedger(self._core)

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
        holder = None if account is None else parse_account(account)
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

    async def get_transaction(
        self, transaction: TransactionReceipt | str | bytes
    ) -> RecordedTransaction:
        """Prove a transaction of any age and what became of it, by its receipt or its id.

        An id alone gives where it was recorded first. A result is proven by the next block, so
        right after it was recorded this may take as long as an idle market waits for one (5 s).

        Raises: UnknownTransactionError if no node has it; UnverifiedTransactionError whose `field`
            names what did not hold; APIConnectionError, LedgerForkError, TrustExpiredError.

        Example:
            >>> async def check(client, friend):
            ...     receipt = await client.transfer(friend, 5_000_000)
            ...     recorded = await client.get_transaction(receipt)
            ...     print(recorded.height, recorded.code, recorded.body)

        """
        funds, _ = await self._core.open()
        if isinstance(transaction, TransactionReceipt):
            return await funds.light.get_transaction(parse_id(transaction.id), transaction.height)
        return await funds.light.get_transaction(parse_id(transaction))

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

        Where the market stands still it waits for a minute, and then raises
        UnconfirmedTransactionError: the transaction may still be recorded, so look its id up
        (`get_transaction`) before you transfer again.
        Raises: InsufficientBalanceError, BadRequestError, APIConnectionError,
            UnconfirmedTransactionError.

        Example:
            >>> async def pay(client, friend):
            ...     print((await client.transfer(friend, 5_000_000)).height)

        """
        account = parse_account(to)
        return await self._core.submit(lambda _: TransferFunds(account, amount_micros))

    async def fund_escrow(self, amount_micros: int) -> TransactionReceipt:
        """Move available money into the hub's escrow, from which tasks are paid.

        It counts from the next term on. Raises: as `transfer`.

        Example:
            >>> async def top_up(client):
            ...     await client.fund_escrow(10_000_000)

        """
        return await self._core.submit(lambda hub: FundEscrow(hub, amount_micros))

    async def withdraw_escrow(self, amount_micros: int) -> TransactionReceipt:
        """Move escrow that no open term may still settle back to available money.

        Raises: as `transfer`.

        Example:
            >>> async def cash_out(client):
            ...     await client.withdraw_escrow((await client.balance()).escrow_micros)

        """
        return await self._core.submit(lambda hub: WithdrawEscrow(hub, amount_micros))

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
