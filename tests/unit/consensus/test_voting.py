"""What validators sign is well formed or refused. Source: docs/spec/consensus.md §2."""

from __future__ import annotations

from typing import Any

import pytest

from iemas.consensus.voting import MAX_ROUND, NO_ROUND, Proposal, Vote, VoteKind
from iemas.core.errors import MalformedMessageError
from iemas.core.types import Hash

BLOCK = Hash(b"b" * 32)


def test_the_widest_messages_are_accepted() -> None:
    Proposal(1, 0, BLOCK)
    Proposal(2**63 - 1, MAX_ROUND, BLOCK, MAX_ROUND - 1)
    Vote(1, 0, VoteKind.PREVOTE, None)
    Vote(2**63 - 1, MAX_ROUND, VoteKind.PRECOMMIT, BLOCK)
    assert Proposal(1, 0, BLOCK).valid_round == NO_ROUND


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (Proposal, (0, 0, BLOCK)),
        (Proposal, (2**63, 0, BLOCK)),
        (Proposal, (1, -1, BLOCK, -2)),
        (Proposal, (1, MAX_ROUND + 1, BLOCK)),
        (Proposal, (1, 0, b"short")),
        (Proposal, (1, 0, BLOCK, 0)),
        (Proposal, (1, 5, BLOCK, 5)),
        (Proposal, (1, 5, BLOCK, -2)),
        (Vote, (0, 0, VoteKind.PREVOTE, None)),
        (Vote, (1, -1, VoteKind.PREVOTE, None)),
        (Vote, (1, MAX_ROUND + 1, VoteKind.PREVOTE, None)),
        (Vote, (1, 0, VoteKind.UNSPECIFIED, None)),
        (Vote, (1, 0, VoteKind.PREVOTE, b"")),
    ],
)
def test_malformed_messages_are_refused(cls: type, fields: tuple[Any, ...]) -> None:
    with pytest.raises(MalformedMessageError):
        cls(*fields)
