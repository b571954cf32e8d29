"""What a stakeholder does on the ledger: stake, deposit, vote, move money, and see what is proven.

A command that changes something waits until its result is proven by the validators' signatures,
which the next block does. A validator acts with its node's own key.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Annotated, Any

import typer

from iemas.client import AsyncClient
from iemas.client._types import RecordedTransaction, TransactionReceipt
from iemas.core.errors import (
    APIConnectionError,
    APIStatusError,
    ConfigurationError,
    MalformedMessageError,
    UnconfirmedTransactionError,
    UnknownTransactionError,
    UnverifiedAnswerError,
)
from iemas.core.params import MarketParams
from iemas.ledger.rules.governance import CHANGEABLE_PARAMETERS
from node.cli.access import (
    DEFAULT_NAME,
    Access,
    AccountOption,
    GenesisOption,
    HomeOption,
    JsonOption,
    KeyOption,
    MarketOption,
    NameOption,
    NodeOption,
    find_access,
)
from node.cli.common import (
    console,
    create_app,
    format_credits,
    parse_credits,
    print_wide,
    run_async,
)
from node.cli.ledger_views import (
    export,
    render_parameters,
    render_recorded,
    render_validators,
)
from node.cli.views import print_json

ledger_app = create_app("")
"""Its commands stand beside the others of `iemas`."""

deposit_app = create_app(
    "The deposit that bonds a provider's sealed asks, where a market seals them."
)
escrow_app = create_app("The escrow that an account's tasks are paid from.")
vote_app = create_app("Votes of the validators, by stake; more than two thirds decide.")
ledger_app.add_typer(deposit_app, name="deposit")
ledger_app.add_typer(escrow_app, name="escrow")
ledger_app.add_typer(vote_app, name="vote")

AmountArgument = Annotated[str, typer.Argument(metavar="AMOUNT", help="In credits, such as 12.5.")]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for the next block, which proves the result.")
]
Act = Callable[[AsyncClient], Awaitable[TransactionReceipt]]

_ACCESS_OPTIONS: dict[str, tuple[Any, Any]] = {
    "name": (NameOption, DEFAULT_NAME),
    "home": (HomeOption, None),
    "market": (MarketOption, None),
    "key": (KeyOption, None),
    "account": (AccountOption, None),
    "node": (NodeOption, None),
    "genesis": (GenesisOption, None),
}
_READ_OPTIONS = ("name", "home", "market", "genesis")


def _with_access(*, pays: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, whose first parameter is `access`, the options that say which it is."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = tuple(_ACCESS_OPTIONS) if pays else _READ_OPTIONS
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, (kind, default) in _ACCESS_OPTIONS.items()
            if name in names
        ]
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(**given: Any) -> None:
            access = find_access(**{name: given.pop(name) for name in names}, pays=pays)
            command(access, **given)

        parameters = [*own, *shared]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


# --- stake ---------------------------------------------------------------------------------------


@ledger_app.command("stake")
@_with_access()
def stake(
    access: Access,
    amount: AmountArgument,
    *,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also if no running node has this key.")
    ] = False,
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Stake available money: the node becomes a validator, or a weightier one.

    Stake votes on blocks and is drawn to clear rounds. It can be slashed for proven
    misbehaviour. Act with the node's own key: --node in a local market, else --key.
    """
    micros = parse_credits(amount)

    async def act(client: AsyncClient) -> TransactionReceipt:
        if not anyway and client.account not in {node.id for node in await client.nodes()}:
            raise ConfigurationError(
                f"no running node of the market has this key (account {client.account}), and a "
                "validator that does not vote is voted absent and jailed: act with a node's key "
                "(--node NAME in a local market, else --key FILE), start the node first, or say "
                "--anyway"
            )
        return await client.ledger.stake(micros)

    _record(access, act, f"staked {format_credits(micros)} credits", wait=wait, as_json=as_json)


@ledger_app.command("unstake")
@_with_access()
def unstake(
    access: Access,
    amount: Annotated[
        str | None, typer.Argument(metavar="AMOUNT", help="In credits, such as 12.5; or --all.")
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="All of it: be no validator any more.")
    ] = False,
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Take stake back: it votes no more two blocks later, and unbonds.

    It can be slashed until it is available, `unbonding_ms` later (`iemas parameters --all`).
    """
    if (amount is None) is not everything:
        raise ConfigurationError("say how much: AMOUNT in credits, or --all")
    micros = None if amount is None else parse_credits(amount)

    async def act(client: AsyncClient) -> TransactionReceipt:
        staked = (await client.balance()).staked_micros if micros is None else micros
        if not staked:
            raise ConfigurationError(
                f"account {client.account} has nothing staked: act with the validator's node key "
                "(--node NAME in a local market, else --key FILE)"
            )
        return await client.ledger.unstake(staked)

    what = "all stake" if micros is None else f"{format_credits(micros)} credits"
    _record(access, act, f"unstaked {what}", wait=wait, as_json=as_json)


@ledger_app.command("validators")
@_with_access(pays=False)
def validators(access: Access, *, as_json: JsonOption = False) -> None:
    """List who votes on blocks and with what stake, proven by their signatures."""

    async def run() -> None:
        async with access.connect() as client:
            found = await client.ledger.validators()
        if as_json:
            print_json([export(validator) for validator in found])
        else:
            print_wide(render_validators(found, access.get_name))

    run_async(run())


# --- deposit, escrow, transfers ------------------------------------------------------------------


@deposit_app.command("place")
@_with_access()
def place_deposit(
    access: Access, amount: AmountArgument, *, wait: WaitOption = True, as_json: JsonOption = False
) -> None:
    """Place available money as a deposit: each committed ask bonds a part of it."""
    micros = parse_credits(amount)
    says = f"placed a deposit of {format_credits(micros)} credits"
    _record(access, lambda c: c.ledger.place_deposit(micros), says, wait=wait, as_json=as_json)


@deposit_app.command("withdraw")
@_with_access()
def withdraw_deposit(
    access: Access, amount: AmountArgument, *, wait: WaitOption = True, as_json: JsonOption = False
) -> None:
    """Take deposit back, while no ask is committed."""
    micros = parse_credits(amount)
    says = f"withdrew {format_credits(micros)} credits of the deposit"
    _record(access, lambda c: c.ledger.withdraw_deposit(micros), says, wait=wait, as_json=as_json)


@escrow_app.command("fund")
@_with_access()
def fund_escrow(
    access: Access, amount: AmountArgument, *, wait: WaitOption = True, as_json: JsonOption = False
) -> None:
    """Move available money into escrow; it can be spent from the next term on."""
    micros = parse_credits(amount)
    says = f"moved {format_credits(micros)} credits into escrow"
    _record(access, lambda c: c.fund_escrow(micros), says, wait=wait, as_json=as_json)


@escrow_app.command("withdraw")
@_with_access()
def withdraw_escrow(
    access: Access, amount: AmountArgument, *, wait: WaitOption = True, as_json: JsonOption = False
) -> None:
    """Move escrow back that no open term may still settle."""
    micros = parse_credits(amount)
    says = f"moved {format_credits(micros)} credits out of escrow"
    _record(access, lambda c: c.withdraw_escrow(micros), says, wait=wait, as_json=as_json)


@ledger_app.command("transfer")
@_with_access()
def transfer(
    access: Access,
    to: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Whom to pay: 64 hex digits.")],
    amount: AmountArgument,
    *,
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Pay available money to another account; a new one begins with its first payment."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", to):
        raise ConfigurationError(
            f"ACCOUNT is 64 hex digits, got {to!r}: `iemas validators` lists those of the nodes, "
            "`iemas balance` of an account with its key shows its own"
        )
    micros = parse_credits(amount)
    says = f"paid {format_credits(micros)} credits to {access.get_name(to)}"
    _record(access, lambda c: c.transfer(to, micros), says, wait=wait, as_json=as_json)


# --- governance ----------------------------------------------------------------------------------


@vote_app.command("parameter")
@_with_access()
def vote_parameter(
    access: Access,
    parameter: Annotated[str, typer.Argument(metavar="NAME", help="See `iemas parameters`.")],
    value: Annotated[int, typer.Argument(metavar="VALUE", help="In the unit that NAME ends with.")],
    *,
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Vote for the value of a market parameter; decided, it holds from the next term on.

    A vote for the value that holds takes the last one back. Act with the validator's node key.
    """
    _check_vote(parameter, value)
    says = f"voted for {parameter} = {value}"
    _record(
        access,
        lambda c: c.ledger.vote_parameter(parameter, value),
        says,
        wait=wait,
        as_json=as_json,
    )


def _check_vote(name: str, value: int) -> None:
    """Refuse at once what no ledger takes. Raises: ConfigurationError with what there is."""
    if name not in CHANGEABLE_PARAMETERS:
        known = ", ".join(sorted(CHANGEABLE_PARAMETERS))
        raise ConfigurationError(f"no vote changes {name!r}; votes can change {known}")
    try:
        MarketParams(**{name: value})  # type: ignore[arg-type]
    except MalformedMessageError as error:
        raise ConfigurationError(str(error)) from error


@ledger_app.command("parameters")
@_with_access(pays=False)
def parameters(
    access: Access,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that no vote can change.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the market's parameters and the votes to change them, proven."""

    async def run() -> None:
        async with access.connect() as client:
            found = await client.ledger.parameters()
            voters = await client.ledger.validators()
        shown = [one for one in found if everything or one.is_changeable]
        if as_json:
            print_json([export(parameter) for parameter in shown])
        else:
            console.print(render_parameters(shown, voters, access.get_name))

    run_async(run())


# --- transactions --------------------------------------------------------------------------------


@ledger_app.command("transaction")
@_with_access(pays=False)
def transaction(
    access: Access,
    transaction_id: Annotated[str, typer.Argument(metavar="ID", help="64 hex digits.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show a transaction of any age and what became of it, proven."""

    async def run() -> RecordedTransaction:
        async with access.connect() as client:
            return await client.get_transaction(transaction_id)

    try:
        recorded = run_async(run())
    except UnknownTransactionError as error:
        hint = "one that was sent in the last minutes may still wait to be recorded: look again"
        raise UnknownTransactionError(f"{error}; {hint}", **error.operands) from error
    if as_json:
        print_json(export(recorded))
    else:
        print_wide(render_recorded(recorded, access.get_name))


def _record(access: Access, act: Act, says: str, *, wait: bool, as_json: bool) -> None:
    """Have a transaction recorded; show it as final once it is proven."""

    async def run() -> tuple[TransactionReceipt, bool]:
        async with access.connect() as client:
            receipt = await act(client)
            if wait:
                await _prove(client, receipt)
            return receipt, wait

    try:
        receipt, is_proven = run_async(run())
    except APIStatusError as error:
        if error.operands.get("code") != "not_validator":
            raise
        hint = "act with the validator's node key: --node NAME in a local market, else --key FILE"
        raise APIStatusError(f"{error}; {hint}", **error.operands) from error
    if as_json:
        print_json({"id": receipt.id, "height": receipt.height, "is_proven": is_proven})
        return
    how = "proven by the validators' signatures" if is_proven else "as one node says"
    console.print(f"{says}: in block {receipt.height}, {how}", highlight=False, soft_wrap=True)
    console.print(f"[dim]transaction {receipt.id}[/dim]", highlight=False, soft_wrap=True)


async def _prove(client: AsyncClient, receipt: TransactionReceipt) -> None:
    """Wait for the proof. Raises: UnconfirmedTransactionError if no node gives one."""
    try:
        await client.get_transaction(receipt)
    except (APIConnectionError, UnknownTransactionError, UnverifiedAnswerError) as error:
        raise UnconfirmedTransactionError(
            f"transaction {receipt.id} is in block {receipt.height}, as one node says, and no node "
            f"proves it ({error}). Look with `iemas transaction {receipt.id}` before you repeat "
            "it, as that makes another transaction and both may be applied",
            code="unconfirmed",
            transaction=receipt.id,
        ) from error
