"""Continuing a conversation on the very tokens that the backend holds.

What a model generated is cached under the token ids that it generated. Tokenizing the rendered
text anew may cut it differently, and from the first different token on nothing is cached any more.
So the next prompt is spliced: the previous prompt's ids, the generated ids, and only the text after
them is tokenized. Where the rendered text does not continue the previous text and answer exactly
(a template that rewrites history, a truncated stop string), it is tokenized plainly.
Source: design §8 (the session's last receipt gives the chain of what was generated).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_TURNS = 256
MAX_TURN_TOKENS = 4_000_000


class TextCodec(Protocol):
    """Text to token ids and back, special tokens written out."""

    def encode(self, text: str) -> list[int]:
        """Tokenize text, adding no special tokens of its own."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Give the text of token ids, special tokens included."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A finished turn: what was rendered and sent, and what was generated on top of it."""

    rendered: str
    prompt_token_ids: tuple[int, ...]
    answer: str
    output_token_ids: tuple[int, ...]


def splice_prompt(turn: Turn, rendered: str, codec: TextCodec) -> list[int] | None:
    """Give the token ids of `rendered` as a continuation of `turn`, or None if it is none.

    The generated ids may go beyond the answer by what ends it (an end-of-turn token, which the
    template writes out too); it is then not repeated.
    """
    before = turn.rendered + turn.answer
    if not turn.output_token_ids or not rendered.startswith(before):
        return None
    generated = codec.decode(turn.output_token_ids)
    if not generated.startswith(turn.answer):
        return None
    ending = generated[len(turn.answer) :]
    rest = rendered[len(before) :]
    if not rest.startswith(ending):
        return None
    rest_ids = codec.encode(rest[len(ending) :]) if len(rest) > len(ending) else []
    return [*turn.prompt_token_ids, *turn.output_token_ids, *rest_ids]


class TurnMemory:
    """The last turns of many conversations, found by the messages that led to them.

    Bounded by number of turns and of token ids; the least recently used goes first.
    """

    def __init__(self, *, max_turns: int = MAX_TURNS, max_token_ids: int = MAX_TURN_TOKENS) -> None:
        self._max_turns = max_turns
        self._max_token_ids = max_token_ids
        self._turns: OrderedDict[tuple[object, ...], Turn] = OrderedDict()
        self._token_ids = 0

    def __len__(self) -> int:
        return len(self._turns)

    def remember(self, key: tuple[object, ...], turn: Turn) -> None:
        """Keep a turn under its messages, the answer among them."""
        self._drop(key)
        self._turns[key] = turn
        self._token_ids += _count(turn)
        while len(self._turns) > self._max_turns or self._token_ids > self._max_token_ids:
            self._drop(next(iter(self._turns)))

    def find(self, key: tuple[object, ...]) -> Turn | None:
        """Find the longest remembered beginning of a conversation."""
        for length in range(len(key), 0, -1):
            turn = self._turns.get(key[:length])
            if turn is not None:
                self._turns.move_to_end(key[:length])
                return turn
        return None

    def _drop(self, key: tuple[object, ...]) -> None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self._token_ids -= _count(turn)


def _count(turn: Turn) -> int:
    return len(turn.prompt_token_ids) + len(turn.output_token_ids)
