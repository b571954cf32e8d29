"""Continuing on the generated tokens, and when not to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from iemas.client._base import Turn, TurnMemory, splice_prompt

END = 257


class ByteCodec:
    """A token a byte, and ``<end>`` for the end of a turn."""

    def encode(self, text: str) -> list[int]:
        parts = text.split("<end>")
        ids = list(parts[0].encode())
        for part in parts[1:]:
            ids += [END, *part.encode()]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("<end>" if i == END else chr(i) for i in token_ids)


CODEC = ByteCodec()
# The model spelled "ok" with a token that plain tokenization would not choose.
TURN = Turn("u:hi a:", (1, 2, 3), "ok", (111, 107, END))


def test_generated_end_of_turn_is_not_repeated() -> None:
    spliced = splice_prompt(TURN, "u:hi a:ok<end>u:more a:", CODEC)
    assert spliced == [1, 2, 3, 111, 107, END, *b"u:more a:"]


def test_answer_cut_by_length_gets_its_end_from_the_template() -> None:
    turn = Turn("u:hi a:", (1, 2, 3), "ok", (111, 107))
    assert splice_prompt(turn, "u:hi a:ok<end>u", CODEC) == [1, 2, 3, 111, 107, END, ord("u")]


def test_nothing_after_the_answer_is_nothing_more_to_tokenize() -> None:
    assert splice_prompt(TURN, "u:hi a:ok<end>", CODEC) == [1, 2, 3, 111, 107, END]


@pytest.mark.parametrize(
    ("turn", "rendered"),
    [
        (TURN, "u:hi a: ok<end>u"),  # the template changed the answer
        (TURN, "u:ho a:ok<end>u"),  # another history
        (TURN, "u:hi a:ok|u"),  # another end of turn than was generated
        (Turn("u:hi a:", (1,), "o", (111, 107)), "u:hi a:o<end>"),  # cut at a stop string
        (Turn("u:hi a:", (1,), "xy", (111, 107)), "u:hi a:xy<end>"),  # text of other tokens
        (Turn("u:hi a:", (1,), "", ()), "u:hi a:u"),  # nothing was generated
    ],
)
def test_what_is_no_continuation_is_tokenized_plainly(turn: Turn, rendered: str) -> None:
    assert splice_prompt(turn, rendered, CODEC) is None


def test_memory_finds_the_longest_beginning() -> None:
    memory = TurnMemory()
    memory.remember(("m", "a", "b"), TURN)
    longer = Turn("r", (1,), "x", (2,))
    memory.remember(("m", "a", "b", "c", "d"), longer)
    assert memory.find(("m", "a", "b", "c", "d", "e")) is longer
    assert memory.find(("m", "a", "b", "x")) is TURN
    assert memory.find(("n", "a", "b")) is None


def test_memory_is_bounded_by_turns_and_tokens() -> None:
    memory = TurnMemory(max_turns=2, max_token_ids=1_000)
    for name in "abc":
        memory.remember((name,), TURN)
    assert len(memory) == 2
    assert memory.find(("a",)) is None
    memory.find(("b",))  # now the most recently used
    memory.remember(("d",), TURN)
    assert memory.find(("b",)) is TURN
    memory.remember(("big",), Turn("", tuple(range(999)), "x", (1,)))
    assert len(memory) == 1
    memory.remember(("big",), TURN)
    assert len(memory) == 1
