"""`Client`: the SDK without an event loop of your own, over `AsyncClient` in the background."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

from iemas.client._aio import AsyncClient
from iemas.client._answers import AsyncStream
from iemas.client._messages import Messages
from iemas.client._options import RequestOptions
from iemas.client._portal import Portal
from iemas.client._settings import Bootstrap, ClientOptions
from iemas.client._types import (
    Balance,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Model,
    NodeInfo,
    Parameter,
    RecordedTransaction,
    Settlement,
    TransactionReceipt,
    Validator,
)
from iemas.client.resources.sessions import AsyncSession
from iemas.core.auction import Allocation
from iemas.core.execution import Receipt

T = TypeVar("T")
ChunkT = TypeVar("ChunkT")
FullT = TypeVar("FullT")


class Stream(Generic[ChunkT, FullT]):
    """A streamed answer: iterate over its chunks, or `collect` it whole.

    Closing it early cancels the task; leaving its ``with`` block closes it.

    Example:
        >>> def show(client):
        ...     messages = [{"role": "user", "content": "Hello!"}]
        ...     with client.chat.completions.create(messages=messages, stream=True) as stream:
        ...         for chunk in stream:
        ...             print(chunk.choices[0].delta.content or "", end="")

    """

    def __init__(self, portal: Portal, stream: AsyncStream[ChunkT, FullT]) -> None:
        self._portal = portal
        self._stream = stream

    @property
    def text(self) -> str:
        """The text so far."""
        return self._stream.text

    @property
    def allocation(self) -> Allocation:
        """The auctioneer's terms."""
        return self._stream.allocation

    @property
    def receipt(self) -> Receipt | None:
        """The last receipt that was countersigned."""
        return self._stream.receipt

    def __iter__(self) -> Iterator[ChunkT]:
        return self

    def __next__(self) -> ChunkT:
        chunk = self._portal.run(self._next)
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next(self) -> ChunkT | None:
        async for chunk in self._stream:
            return chunk
        return None

    def collect(self) -> FullT:
        """Read the rest and give the whole answer. Raises: as `AsyncStream.collect`."""
        return self._portal.run(self._stream.collect)

    def close(self) -> None:
        """Stop the task if it still runs."""
        self._portal.run(self._stream.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


ChatStream = Stream[ChatCompletionChunk, ChatCompletion]
CompletionStream = Stream[Completion, Completion]


class Session:
    """One conversation; see `AsyncSession`."""

    def __init__(self, portal: Portal, session: AsyncSession) -> None:
        self._portal = portal
        self.unwrapped = session

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far; a turn is in it once its answer is complete."""
        return self.unwrapped.messages

    @overload
    def send(
        self, text: str, *, stream: Literal[False] = False, **options: Unpack[RequestOptions]
    ) -> ChatCompletion: ...

    @overload
    def send(
        self, text: str, *, stream: Literal[True], **options: Unpack[RequestOptions]
    ) -> ChatStream: ...

    def send(
        self, text: str, *, stream: bool = False, **options: Unpack[RequestOptions]
    ) -> ChatCompletion | ChatStream:
        """Say something and buy the answer. Raises: as `client.chat.completions.create`.

        Example:
            >>> def talk(client):
            ...     session = client.sessions.create(system="Answer in one word.")
            ...     session.send("Name a colour.")
            ...     print(session.send("Another one.").choices[0].message.content)

        """
        send = self.unwrapped.send
        if stream:
            chunks = self._portal.run(lambda: send(text, stream=True, **options))
            return Stream(self._portal, chunks)
        return self._portal.run(lambda: send(text, **options))


class ChatCompletions:
    """Buys answers to chats; see `AsyncChatCompletions`."""

    def __init__(self, portal: Portal, client: AsyncClient) -> None:
        self._portal = portal
        self._client = client

    @overload
    def create(
        self,
        *,
        messages: Messages,
        stream: Literal[False] = False,
        session: Session | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        *,
        messages: Messages,
        stream: Literal[True],
        session: Session | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatStream: ...

    def create(
        self,
        *,
        messages: Messages,
        stream: bool = False,
        session: Session | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatCompletion | ChatStream:
        """Buy an answer; arguments and errors as `AsyncChatCompletions.create`.

        Example:
            >>> def ask(client):
            ...     completion = client.chat.completions.create(
            ...         messages=[{"role": "user", "content": "Name a prime."}], max_tokens=16
            ...     )
            ...     print(completion.choices[0].message.content, completion.market.price_micros)

        """
        create = self._client.chat.completions.create
        inner = session.unwrapped if session is not None else None
        if stream:
            chunks = self._portal.run(
                lambda: create(messages=messages, stream=True, session=inner, **options)
            )
            return Stream(self._portal, chunks)
        return self._portal.run(lambda: create(messages=messages, session=inner, **options))


class Chat:
    """Holds `completions`, as in the `openai` package."""

    def __init__(self, portal: Portal, client: AsyncClient) -> None:
        self.completions = ChatCompletions(portal, client)


class Completions:
    """Buys continuations; see `AsyncCompletions`."""

    def __init__(self, portal: Portal, client: AsyncClient) -> None:
        self._portal = portal
        self._client = client

    @overload
    def create(
        self,
        *,
        prompt: str | Sequence[int],
        stream: Literal[False] = False,
        **options: Unpack[RequestOptions],
    ) -> Completion: ...

    @overload
    def create(
        self,
        *,
        prompt: str | Sequence[int],
        stream: Literal[True],
        **options: Unpack[RequestOptions],
    ) -> CompletionStream: ...

    def create(
        self,
        *,
        prompt: str | Sequence[int],
        stream: bool = False,
        **options: Unpack[RequestOptions],
    ) -> Completion | CompletionStream:
        """Buy a continuation of `prompt`; errors as `client.chat.completions.create`.

        Example:
            >>> def continue_text(client):
            ...     print(client.completions.create(prompt="Once upon").choices[0].text)

        """
        create = self._client.completions.create
        if stream:
            chunks = self._portal.run(lambda: create(prompt=prompt, stream=True, **options))
            return Stream(self._portal, chunks)
        return self._portal.run(lambda: create(prompt=prompt, **options))


class Models:
    """Lists models."""

    def __init__(self, portal: Portal, client: AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def list(self) -> tuple[Model, ...]:
        """List the models that live nodes serve. Raises: APIConnectionError.

        Example:
            >>> def show(client):
            ...     print([model.id for model in client.models.list()])

        """
        return self._portal.run(self._client.models.list)


class Sessions:
    """Makes sessions."""

    def __init__(self, portal: Portal, client: AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def create(
        self,
        *,
        system: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        **options: Unpack[RequestOptions],
    ) -> Session:
        """Begin a session; `options` are the defaults of its turns. Costs nothing yet.

        Example:
            >>> def begin(client):
            ...     return client.sessions.create(system="Be brief.", max_tokens=48)

        """
        session = self._client.sessions.create(system=system, messages=messages, **options)
        return Session(self._portal, session)


class Ledger:
    """Acts for a validator and shows who governs the market; see `AsyncLedger`."""

    def __init__(self, portal: Portal, client: AsyncClient) -> None:
        self._portal = portal
        self._ledger = client.ledger

    def validators(self) -> tuple[Validator, ...]:
        """List the validators, proven. Raises: as `AsyncLedger.validators`.

        Example:
            >>> def show(client):
            ...     print([validator.power_micros for validator in client.ledger.validators()])

        """
        return self._portal.run(self._ledger.validators)

    def parameters(self) -> tuple[Parameter, ...]:
        """List the market's parameters, proven. Raises: as `AsyncLedger.parameters`.

        Example:
            >>> def show(client):
            ...     print({each.name: each.value for each in client.ledger.parameters()})

        """
        return self._portal.run(self._ledger.parameters)

    def stake(self, amount_micros: int) -> TransactionReceipt:
        """Stake available money. Raises: as `AsyncLedger.stake`.

        Example:
            >>> def join(client):
            ...     client.ledger.stake(10_000_000)

        """
        return self._portal.run(lambda: self._ledger.stake(amount_micros))

    def unstake(self, amount_micros: int) -> TransactionReceipt:
        """Take stake back. Raises: as `AsyncLedger.unstake`.

        Example:
            >>> def leave(client):
            ...     client.ledger.unstake(client.balance().staked_micros)

        """
        return self._portal.run(lambda: self._ledger.unstake(amount_micros))

    def place_deposit(self, amount_micros: int) -> TransactionReceipt:
        """Place the deposit that bonds sealed asks. Raises: as `AsyncLedger.place_deposit`.

        Example:
            >>> def prepare(client):
            ...     client.ledger.place_deposit(5_000_000)

        """
        return self._portal.run(lambda: self._ledger.place_deposit(amount_micros))

    def withdraw_deposit(self, amount_micros: int) -> TransactionReceipt:
        """Take deposit back. Raises: as `AsyncLedger.withdraw_deposit`.

        Example:
            >>> def stop_selling(client):
            ...     client.ledger.withdraw_deposit(5_000_000)

        """
        return self._portal.run(lambda: self._ledger.withdraw_deposit(amount_micros))

    def vote_parameter(self, name: str, value: int) -> TransactionReceipt:
        """Vote for a parameter's value. Raises: as `AsyncLedger.vote_parameter`.

        Example:
            >>> def vote(client):
            ...     client.ledger.vote_parameter("bid_fee_micros", 2)

        """
        return self._portal.run(lambda: self._ledger.vote_parameter(name, value))


class Client:
    """Buys inference from a market, for the account of one key, from ordinary code.

    Takes what `AsyncClient` takes and offers the same, with streams as plain iterators. All sync
    clients of a process share one background thread. Ctrl-C while it waits cancels the task.

    Raises: ConfigurationError if an address or the key file is wrong. Nothing is sent yet.

    Example:
        >>> def main():
        ...     with Client("…@127.0.0.1:7470", key="~/.iemas/key.pem") as client:
        ...         completion = client.chat.completions.create(
        ...             messages=[{"role": "user", "content": "Hello!"}]
        ...         )
        ...         print(completion.choices[0].message.content)

    """

    def __init__(self, bootstrap: Bootstrap, **options: Unpack[ClientOptions]) -> None:
        client = self._client = AsyncClient(bootstrap, **options)
        portal = self._portal = Portal(client.close)
        self.chat = Chat(portal, client)
        self.completions = Completions(portal, client)
        self.models = Models(portal, client)
        self.sessions = Sessions(portal, client)
        self.ledger = Ledger(portal, client)

    @property
    def account(self) -> str:
        """The account's id, 64 hex digits: where to have money transferred to."""
        return self._client.account

    @property
    def trusted_block(self) -> tuple[int, str] | None:
        """Height and hash of the last block that this client verified; None before the first."""
        return self._client.trusted_block

    def balance(self, account: str | bytes | None = None, *, verify: bool = False) -> Balance:
        """Read an account's balance, the client's own unless given; proven if `verify`.

        Raises: as `AsyncClient.balance`.

        Example:
            >>> def show(client):
            ...     print(client.balance(verify=True).escrow_micros)

        """
        return self._portal.run(lambda: self._client.balance(account, verify=verify))

    def get_settlement(self, allocation: Allocation) -> Settlement:
        """Prove what is settled of an allocation's channel.

        Raises: as `AsyncClient.get_settlement`.

        Example:
            >>> def check(client, completion):
            ...     print(client.get_settlement(completion.allocation).is_settled)

        """
        return self._portal.run(lambda: self._client.get_settlement(allocation))

    def get_transaction(self, transaction: TransactionReceipt | str | bytes) -> RecordedTransaction:
        """Prove a transaction of any age and what became of it.

        Raises: as `AsyncClient.get_transaction`.

        Example:
            >>> def check(client, friend):
            ...     print(client.get_transaction(client.transfer(friend, 5_000_000)).code)

        """
        return self._portal.run(lambda: self._client.get_transaction(transaction))

    def nodes(self) -> tuple[NodeInfo, ...]:
        """List the market's nodes by their own signed reports.

        Raises: APIConnectionError.

        Example:
            >>> def show(client):
            ...     for node in client.nodes():
            ...         print(node.id[:10], node.active_tasks, "of", node.slots)

        """
        return self._portal.run(self._client.nodes)

    def transfer(self, to: str | bytes, amount_micros: int) -> TransactionReceipt:
        """Transfer available money to another account. Raises: as `AsyncClient.transfer`.

        Example:
            >>> def pay(client, friend):
            ...     client.transfer(friend, 5_000_000)

        """
        return self._portal.run(lambda: self._client.transfer(to, amount_micros))

    def fund_escrow(self, amount_micros: int) -> TransactionReceipt:
        """Move available money into escrow. Raises: as `AsyncClient.transfer`.

        Example:
            >>> def top_up(client):
            ...     client.fund_escrow(10_000_000)

        """
        return self._portal.run(lambda: self._client.fund_escrow(amount_micros))

    def withdraw_escrow(self, amount_micros: int) -> TransactionReceipt:
        """Move free escrow back to available money. Raises: as `AsyncClient.transfer`.

        Example:
            >>> def cash_out(client):
            ...     client.withdraw_escrow(1_000_000)

        """
        return self._portal.run(lambda: self._client.withdraw_escrow(amount_micros))

    def connect(self) -> Self:
        """Join the market now rather than with the first request. Raises: APIConnectionError.

        Example:
            >>> def begin(client):
            ...     client.connect()

        """
        self._portal.run(self._client.connect)
        return self

    def close(self) -> None:
        """Stop running tasks and close every connection; closing twice does nothing.

        Example:
            >>> def end(client):
            ...     client.close()

        """
        self._portal.exit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
