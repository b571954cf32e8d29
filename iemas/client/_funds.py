"""The account's money as the SDK sees it: balance, allowance, transactions.

Sources: design §7 (escrow, allowances), §10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from iemas.client._channel import Channel
from iemas.client._delivery import Delivery
from iemas.client._light import LightClient, ProvenTables
from iemas.client._network import ASK_SECONDS, Network
from iemas.client._refusals import describe_refusal
from iemas.client._retry import Retry
from iemas.client._types import Balance, Settlement, TransactionReceipt
from iemas.core.auction import Allocation
from iemas.core.errors import (
    InsufficientFundsError,
    InternalError,
    NonceMismatchError,
    UnknownAccountError,
)
from iemas.core.types import AccountId
from iemas.ledger.transaction import ResultCode, Transaction, TransactionBody
from iemas.v1 import market_service_pb2 as pb

POLL_SECONDS: Final = 0.25
NONCE_ATTEMPTS: Final = 3


class Funds:
    """One account's money in one market."""

    def __init__(self, network: Network, channel: Channel, light: LightClient) -> None:
        self.light = light
        self._network = network
        self._channel = channel
        self._submitting = asyncio.Lock()
        self._recorded_height = 0

    async def get_balance(
        self, account: AccountId | None = None, *, verify: bool = False
    ) -> Balance:
        """Read an account's balance, this one's unless given; with a proof if `verify`."""
        holder = self._channel.account if account is None else account
        if verify:
            return await self.light.get_balance(holder, after_height=self._recorded_height)
        response = await self._get_account(holder)
        return Balance(
            account=holder.hex(),
            exists=response.exists,
            available_micros=response.available_micros,
            escrow_micros=response.escrow_micros,
            allowance_micros=response.allowance_micros,
            staked_micros=response.staked_micros,
            unbonding_micros=response.unbonding_micros,
            pending_micros=response.pending_micros,
            deposit_micros=response.deposit_micros,
            height=response.height,
        )

    async def get_settlement(self, allocation: Allocation) -> Settlement:
        """Prove what is settled of an allocation's channel."""
        own = (allocation.account, allocation.channel)
        signed_micros = None
        if own == (self._channel.account, self._channel.channel_id):
            signed_micros = self._channel.get_total_micros(
                allocation.hub, allocation.term, allocation.provider
            )
        return await self.light.get_settlement(allocation, signed_micros)

    async def _get_account(self, account: AccountId) -> pb.GetAccountResponse:
        request = pb.GetAccountRequest(account=account, hub=self._network.market.hub)
        response: pb.GetAccountResponse = await self._network.ask(
            lambda stub: stub.GetAccount(request, timeout=ASK_SECONDS)
        )
        return response

    async def wait_for_allowance(self, reservation_micros: int, retry: Retry) -> None:
        """Wait for a term whose allowance can cover a reservation.

        Raises: InsufficientFundsError that names the amounts and what to do, at once if no term's
            allowance will do.
        """
        balance = await self.get_balance()
        params = self._network.market.genesis.params
        coming_micros = balance.escrow_micros // params.allowance_divisor
        if max(balance.allowance_micros, coming_micros) < reservation_micros:
            raise self._explain(balance, reservation_micros)
        loop = asyncio.get_running_loop()
        # A term ends with the first block after its time; one more for good measure.
        give_up_at = loop.time() + 2 * params.term_ms / 1000
        last = self._network.term.number if self._network.term is not None else -1
        while (await self._network.refresh_term(self._network.term)).number <= last:
            if loop.time() > give_up_at or retry.remaining_seconds < POLL_SECONDS:
                raise self._explain(balance, reservation_micros)
            await asyncio.sleep(POLL_SECONDS)
        retry.count_refusal(self._explain(balance, reservation_micros))

    def _explain(self, balance: Balance, reservation_micros: int) -> InsufficientFundsError:
        divisor = self._network.market.genesis.params.allowance_divisor
        if not balance.exists:
            text = f"the ledger holds no account {balance.account}; have money transferred to it"
        else:
            missing_micros = max(0, reservation_micros * divisor - balance.escrow_micros)
            advice = (
                f"add at least {missing_micros} to escrow (client.fund_escrow)"
                if missing_micros
                else "wait for the next term"
            )
            text = (
                f"the task may cost {reservation_micros} micro-credits, and the account may spend "
                f"{balance.allowance_micros} in this term (its escrow of {balance.escrow_micros} "
                f"gives 1/{divisor} a term, less what is reserved): {advice}, or lower max_tokens "
                "or the bid"
            )
        return InsufficientFundsError(
            text,
            code="insufficient_funds",
            reservation_micros=reservation_micros,
            allowance_micros=balance.allowance_micros,
            escrow_micros=balance.escrow_micros,
            available_micros=balance.available_micros,
        )

    async def get_tables(self, tables: Sequence[str]) -> ProvenTables:
        """Prove whole tables of the state, with what this client had recorded in it."""
        return await self.light.get_tables(tables, after_height=self._recorded_height)

    async def submit(self, body: TransactionBody) -> TransactionReceipt:
        """Sign a transaction under the account's next nonce and have it recorded.

        Where another transaction of the key took the nonce (a node uses its own key too), this one
        can never be applied, so it is signed anew, a few times; never if a node failed to say what
        became of it.

        Raises: InsufficientBalanceError, NonceMismatchError, APIStatusError with the ledger's
            `code`; UnknownAccountError if the ledger does not know the account;
            APIConnectionError if nothing was sent; UnconfirmedTransactionError if its fate is
            unknown.
        """
        async with self._submitting:
            for attempt in range(1, NONCE_ATTEMPTS + 1):
                delivery = await self._sign(body)
                try:
                    return await self._record(delivery)
                except NonceMismatchError:
                    if attempt == NONCE_ATTEMPTS or delivery.attempts > 1:
                        raise
        raise InternalError("a transaction was neither recorded nor refused")

    async def _sign(self, body: TransactionBody) -> Delivery:
        account = self._channel.account
        known = await self._get_account(account)
        if not known.exists:
            raise UnknownAccountError(
                f"the ledger holds no account {account.hex()}: have money transferred to it first, "
                "or use the key of one that has",
                account=account,
            )
        signed = self._channel.signer.sign(Transaction(account, known.nonce + 1, body))
        return Delivery(self._network, self.light, signed)

    async def _record(self, delivery: Delivery) -> TransactionReceipt:
        recorded = await delivery.run()
        signed = delivery.signed
        if recorded.code is not ResultCode.OK:
            raise describe_refusal(signed.message.body, recorded.code, recorded.detail)
        self._recorded_height = max(self._recorded_height, recorded.height)
        return TransactionReceipt(signed.hash.hex(), recorded.height)
