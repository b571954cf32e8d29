"""`iemas chat`: a question and its answer, or a conversation, bought from the market."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from iemas.client import AsyncClient
from iemas.client._types import ChatCompletionChunk, MarketDetails, Usage
from iemas.core.errors import BadRequestError, IemasError, ProviderFailedError
from node.cli.access import Access
from node.cli.common import console, format_credits

Message = dict[str, str]
_notes = Console(stderr=True)


@dataclasses.dataclass(frozen=True, slots=True)
class ChatSettings:
    """What one `iemas chat` asks for."""

    max_tokens: int
    temperature: float | None = None
    model: str | None = None
    system: str | None = None
    as_json: bool = False


def require_prompt(text: str) -> str:
    """Refuse an empty prompt. Raises: BadRequestError."""
    if not text.strip():
        raise BadRequestError(
            'the prompt is empty: say something, as in `iemas chat "hello"`', code="empty"
        )
    return text


async def chat_once(access: Access, client: AsyncClient, prompt: str, chat: ChatSettings) -> None:
    """Ask one question; print the answer as it comes and what it cost."""
    messages = [*_begin(chat), {"role": "user", "content": require_prompt(prompt)}]
    await _answer(access, client, messages, chat)


async def chat_on(access: Access, client: AsyncClient, chat: ChatSettings) -> None:
    """Converse until the end of input or an empty line; an error ends a turn, not the chat."""
    console.print("[dim]An empty line or Ctrl-D ends the conversation.[/dim]")
    messages = _begin(chat)
    while True:
        try:
            prompt = console.input("[bold]you>[/bold] ")
        except EOFError:
            return
        if not prompt.strip():
            return
        messages.append({"role": "user", "content": prompt})
        try:
            text = await _answer(access, client, messages, chat)
        except ProviderFailedError as error:
            _notes.print(f"[red]{escape(str(error))}[/red]", highlight=False)
            messages.pop()
            continue
        except IemasError as error:
            _notes.print(f"[red]{escape(str(error))}[/red]", highlight=False)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": text})


def _begin(chat: ChatSettings) -> list[Message]:
    return [{"role": "system", "content": chat.system}] if chat.system else []


async def _answer(
    access: Access, client: AsyncClient, messages: list[Message], chat: ChatSettings
) -> str:
    """Buy one answer; give its text. Raises: what the SDK raises."""
    options: dict[str, Any] = {"max_tokens": chat.max_tokens}
    if chat.temperature is not None:
        options["temperature"] = chat.temperature
    if chat.model is not None:
        options["model"] = chat.model
    with _notes.status("bidding; then the winner reads the prompt"):
        stream = await client.chat.completions.create(messages=messages, stream=True, **options)
    last: ChatCompletionChunk | None = None
    async with stream:
        async for chunk in stream:
            last = chunk
            if not chat.as_json:
                sys.stdout.write(chunk.choices[0].delta.content or "")
                sys.stdout.flush()
        text = stream.text
    if last is not None and last.market is not None and last.usage is not None:
        _report(access, text, last.usage, last.market, chat)
    return text


def _report(
    access: Access, text: str, usage: Usage, market: MarketDetails, chat: ChatSettings
) -> None:
    if chat.as_json:
        answer = {
            "answer": text,
            "winner_name": access.get_name(market.winner),
            "usage": dataclasses.asdict(usage),
            "market": dataclasses.asdict(market),
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    label = f" ({access.label})" if "tests only" in access.label else ""
    _notes.print(
        f"[dim]{access.get_name(market.winner)}{label} won round {market.term}:{market.round} of "
        f"{access.get_name(market.auctioneer)} · {usage.prompt_tokens} prompt tokens, "
        f"{market.cached_tokens} cached ({market.predicted_cached_tokens} predicted) · "
        f"{usage.completion_tokens} tokens out · first after {market.ttft_ms / 1000:.2f} s · "
        f"paid {format_credits(market.price_micros)} credits, "
        f"{format_credits(market.expected_price_micros)} expected[/dim]",
        highlight=False,
    )
