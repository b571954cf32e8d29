"""``client.ledger``: what a stakeholder does and sees: stake, deposit, votes, who governs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from iemas.client._core import ClientCore
from iemas.client._light import ProvenTables
from iemas.client._types import Parameter, TransactionReceipt, Validator
from iemas.core.params import Genesis, MarketParams
from iemas.ledger.rules.governance import CHANGEABLE_PARAMETERS
from iemas.ledger.transaction import (
    PlaceDeposit,
    Stake,
    Unstake,
    VoteParameter,
    WithdrawDeposit,
)

_VALIDATOR_TABLES = ("validators", "jails")
_PARAMETER_TABLES = ("parameters", "parameter_changes", "parameter_votes")


class AsyncLedger:
    """Acts for a validator, whose key is its node's own, and shows who governs the market.

    What it shows is proven as `client.balance(verify=True)` is, and includes the transactions that
    this client had recorded.
    """

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    # --- reads -------------------------------------------------------------------------------

    async def validators(self) -> tuple[Validator, ...]:
        """List the validators of the market's hub, in the order of their ids.

        Raises: UnverifiedStateError whose `field` names what did not hold, APIConnectionError,
            LedgerForkError, TrustExpiredError.

        Example:
            >>> async def show(client):
            ...     for validator in await client.ledger.validators():
            ...         print(validator.id[:10], validator.power_micros, validator.duty)

        """
        funds, _ = await self._core.open()
        proven = await funds.get_tables(_VALIDATOR_TABLES)
        return _list_validators(proven, self._core.network.market.hub)

    async def parameters(self) -> tuple[Parameter, ...]:
        """List the market's parameters by name: their values, and the votes to change them.

        Raises: as `validators`.

        Example:
            >>> async def show(client):
            ...     for parameter in await client.ledger.parameters():
            ...         print(parameter.name, parameter.value, parameter.votes)

        """
        funds, _ = await self._core.open()
        proven = await funds.get_tables(_PARAMETER_TABLES)
        return _list_parameters(proven, self._core.network.market.genesis)

    # --- transactions ------------------------------------------------------------------------

    async def stake(self, amount_micros: int) -> TransactionReceipt:
        """Stake available money: the client's account becomes a validator, or a weightier one.

        Its node must run with this key: a validator that does not vote is voted absent and jailed.
        Raises: as `client.transfer`; the text of a refusal says what to do.

        Example:
            >>> async def join(client):
            ...     await client.ledger.stake(10_000_000)

        """
        return await self._core.submit(lambda _: Stake(amount_micros))

    async def unstake(self, amount_micros: int) -> TransactionReceipt:
        """Take stake back: it is available after the market's `unbonding_ms`.

        Raises: as `stake`.

        Example:
            >>> async def leave(client):
            ...     await client.ledger.unstake((await client.balance()).staked_micros)

        """
        return await self._core.submit(lambda _: Unstake(amount_micros))

    async def place_deposit(self, amount_micros: int) -> TransactionReceipt:
        """Place available money as the deposit that bonds this provider's sealed asks.

        Raises: as `stake`.

        Example:
            >>> async def prepare(client):
            ...     await client.ledger.place_deposit(5_000_000)

        """
        return await self._core.submit(lambda _: PlaceDeposit(amount_micros))

    async def withdraw_deposit(self, amount_micros: int) -> TransactionReceipt:
        """Take deposit back, while no ask is committed. Raises: as `stake`.

        Example:
            >>> async def stop_selling(client):
            ...     await client.ledger.withdraw_deposit(5_000_000)

        """
        return await self._core.submit(lambda _: WithdrawDeposit(amount_micros))

    async def vote_parameter(self, name: str, value: int) -> TransactionReceipt:
        """Vote for a parameter's value; a vote for the value that holds takes the last one back.

        More than two thirds of the stake decide; the value holds from the next term on.
        Raises: as `stake`.

        Example:
            >>> async def vote(client):
            ...     await client.ledger.vote_parameter("bid_fee_micros", 2)

        """
        return await self._core.submit(lambda _: VoteParameter(name, value))


def _list_validators(proven: ProvenTables, hub: str) -> tuple[Validator, ...]:
    jails = proven.tables["jails"]
    found = []
    for key, record in sorted(proven.tables["validators"].items()):
        if key.hub == hub:
            jail = jails.get(key.node)
            validator = Validator(
                id=key.node.hex(),
                power_micros=proven.powers.get(key.node, 0),
                duty=record.duty.name.lower(),
                is_jailed=jail is not None,
                jailed_until_ms=jail.until_ms if jail is not None else None,
                height=proven.height,
            )
            found.append(validator)
    return tuple(found)


def _list_parameters(proven: ProvenTables, genesis: Genesis) -> tuple[Parameter, ...]:
    changed, coming = proven.tables["parameters"], proven.tables["parameter_changes"]
    votes: dict[str, list[tuple[str, int]]] = {}
    for key, value in sorted(proven.tables["parameter_votes"].items()):
        votes.setdefault(key.name, []).append((key.voter.hex(), value))

    def describe(name: str) -> Parameter:
        original: Any = getattr(genesis.params, name)
        return Parameter(
            name=name,
            value=changed.get(name, original),
            is_changeable=name in CHANGEABLE_PARAMETERS,
            next_value=coming.get(name),
            votes=tuple(votes.get(name, ())),
            height=proven.height,
        )

    return tuple(describe(name) for name in sorted(f.name for f in fields(MarketParams)))
