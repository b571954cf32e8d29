"""Whom to ask for blocks, and when. Source: docs/spec/engine.md E40 to E44."""

from __future__ import annotations

import pytest

from iemas.consensus.catch_up import GRACE_MS, RETRY_MS, STALL_GRACE_MS, CatchUp
from iemas.core.types import NodeId

A, B, V, W = (NodeId(letter * 32) for letter in (b"a", b"b", b"v", b"w"))
IDLE_MS = 5_000
START_MS = 1_000_000


@pytest.fixture
def catch_up() -> CatchUp:
    """A node at height 3 that has just heard of its last block."""
    catch_up = CatchUp(idle_ms=IDLE_MS)
    catch_up.note_block(3, now_ms=START_MS)
    return catch_up


def choose(catch_up: CatchUp, after_ms: int) -> NodeId | None:
    return catch_up.choose_peer(3, [A, B], now_ms=START_MS + after_ms)[0]


def test_a_node_that_starts_asks_at_once() -> None:
    assert choose(CatchUp(idle_ms=IDLE_MS), 0) == A


def test_a_node_that_is_up_to_date_asks_nobody(catch_up: CatchUp) -> None:
    assert choose(catch_up, IDLE_MS) is None


def test_a_node_that_hears_nothing_asks_everyone_in_turn(catch_up: CatchUp) -> None:
    stalled_ms = IDLE_MS + STALL_GRACE_MS
    assert choose(catch_up, stalled_ms - 1) is None
    assert choose(catch_up, stalled_ms) == A
    assert choose(catch_up, stalled_ms + RETRY_MS - 1) is None
    assert choose(catch_up, stalled_ms + RETRY_MS) == B


def test_an_answer_that_nothing_is_new_ends_the_asking(catch_up: CatchUp) -> None:
    late_ms = START_MS + 60_000
    catch_up.note_answer(A, 3, own_height=3, advanced=False, now_ms=late_ms)
    assert choose(catch_up, 60_000 + 1) is None


def test_who_claims_more_is_asked_after_a_moments_grace(catch_up: CatchUp) -> None:
    catch_up.note_claim(B, 4, own_height=3, now_ms=START_MS)
    assert choose(catch_up, GRACE_MS - 1) is None
    assert choose(catch_up, GRACE_MS) == B


def test_a_block_that_comes_in_time_spares_the_request(catch_up: CatchUp) -> None:
    catch_up.note_claim(B, 4, own_height=3, now_ms=START_MS)
    catch_up.note_block(4, now_ms=START_MS + 1)
    assert catch_up.choose_peer(4, [A, B], now_ms=START_MS + GRACE_MS)[0] is None


def test_who_has_more_is_asked_again_at_once(catch_up: CatchUp) -> None:
    answer = {"own_height": 67, "advanced": True, "now_ms": START_MS}
    assert catch_up.note_answer(B, 1_000, **answer)
    assert not catch_up.note_answer(B, 67, **answer)


def test_a_claim_that_leads_nowhere_is_forgotten(catch_up: CatchUp) -> None:
    catch_up.note_claim(B, 10**9, own_height=3, now_ms=START_MS)
    assert not catch_up.note_answer(B, 10**9, own_height=3, advanced=False, now_ms=START_MS)
    assert not catch_up.list_claimants(4, [B])


def test_a_claim_is_forgotten_when_its_peer_is_asked(catch_up: CatchUp) -> None:
    catch_up.note_claim(B, 10**9, own_height=3, now_ms=START_MS)
    assert choose(catch_up, GRACE_MS) == B
    assert not catch_up.list_claimants(4, [B])
    assert catch_up.note_answer(B, 10**9, own_height=3, advanced=True, now_ms=START_MS)
    assert catch_up.list_claimants(4, [B])


def test_who_does_not_answer_has_others_asked_until_one_does(catch_up: CatchUp) -> None:
    catch_up.note_claim(B, 4, own_height=3, now_ms=START_MS)
    asked = [choose(catch_up, GRACE_MS + n * RETRY_MS) for n in range(4)]
    assert asked == [B, A, B, A]
    catch_up.note_answer(A, 3, own_height=3, advanced=False, now_ms=START_MS)
    assert choose(catch_up, GRACE_MS + 4 * RETRY_MS) is None


def ask_often(catch_up: CatchUp, claimants: list[NodeId], after_ms: int) -> list[NodeId | None]:
    """List who is asked when the same peers claim ever more, and nobody answers."""
    asked = []
    for n in range(6):
        now_ms = START_MS + after_ms + n * RETRY_MS
        for peer in claimants:
            catch_up.note_claim(peer, 10**9, own_height=3, now_ms=now_ms)
        asked.append(catch_up.choose_peer(3, [V, W], [A, B], now_ms=now_ms)[0])
    return asked


def test_validators_that_claim_more_have_every_other_request(catch_up: CatchUp) -> None:
    catch_up.note_claim(W, 4, own_height=3, now_ms=START_MS)
    assert ask_often(catch_up, [A, B, V, W], GRACE_MS) == [V, A, W, B, V, A]


def test_strangers_that_claim_more_do_not_keep_validators_from_being_asked(
    catch_up: CatchUp,
) -> None:
    stalled_ms = IDLE_MS + STALL_GRACE_MS
    catch_up.note_claim(A, 4, own_height=3, now_ms=START_MS)
    assert ask_often(catch_up, [A, B], stalled_ms) == [V, A, W, B, V, A]


def test_it_says_when_to_look_again(catch_up: CatchUp) -> None:
    _, wake_at_ms = catch_up.choose_peer(3, [A, B], now_ms=START_MS)
    assert wake_at_ms == START_MS + IDLE_MS + STALL_GRACE_MS


def test_a_clock_that_goes_back_ends_no_asking(catch_up: CatchUp) -> None:
    back_ms = -600_000
    catch_up.note_claim(B, 4, own_height=3, now_ms=START_MS)
    assert choose(catch_up, GRACE_MS) == B
    assert choose(catch_up, back_ms) is None
    assert choose(catch_up, back_ms + RETRY_MS) == A  # the claim of B is forgotten


def test_a_clock_that_goes_back_prolongs_no_silence(catch_up: CatchUp) -> None:
    back_ms = -600_000
    assert choose(catch_up, back_ms) is None
    assert choose(catch_up, back_ms + IDLE_MS + STALL_GRACE_MS) == A
