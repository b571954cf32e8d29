"""Votes have a place and a kind."""

from __future__ import annotations

from typing import Any

import pytest

from iemas import wire
from iemas.core.errors import MalformedMessageError
from iemas.core.types import Hash
from iemas.core.vote import MAX_ROUND, Vote, VoteKind

BLOCK = Hash(b"\x01" * 32)


@pytest.mark.parametrize(
    "fields",
    [
        (0, 0, VoteKind.PREVOTE, BLOCK),
        (1, -1, VoteKind.PREVOTE, BLOCK),
        (1, MAX_ROUND + 1, VoteKind.PREVOTE, BLOCK),
        (1, 0, VoteKind.UNSPECIFIED, BLOCK),
        (1, 0, VoteKind.PREVOTE, b"short"),
    ],
)
def test_a_vote_outside_its_ranges_is_refused(fields: Any) -> None:
    with pytest.raises(MalformedMessageError):
        Vote(*fields)


def test_a_vote_for_none_travels_as_such() -> None:
    nil = Vote(5, 1, VoteKind.PRECOMMIT, None)
    assert wire.decode(Vote, wire.encode(nil)) == nil
    assert wire.encode(nil) != wire.encode(Vote(5, 1, VoteKind.PRECOMMIT, BLOCK))
