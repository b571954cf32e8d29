"""Skipping over headers trusts what going through all of them trusts, whoever comes and goes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from iemas.consensus.light import TrustedBlock, verify_light_block
from iemas.core.errors import IemasError
from tests.light_chain import RULES, LightChain, Powers, pick_quorum

NUMBERS = st.integers(1, 7)


@st.composite
def draw_sets(draw: st.DrawFn) -> list[Powers]:
    """Draw who votes on each height: most of the time as before, sometimes all others."""
    current: dict[int, int] = draw(
        st.dictionaries(NUMBERS, st.integers(1, 9), min_size=1, max_size=5)
    )
    sets: list[Powers] = [current, current]
    for _ in range(draw(st.integers(1, 14))):
        changes = draw(st.one_of(st.just({}), st.dictionaries(NUMBERS, st.integers(0, 20))))
        changed = {n: p for n, p in {**current, **changes}.items() if p}
        current = changed or current
        sets.append(current)
    return sets


@st.composite
def draw_chain(draw: st.DrawFn) -> LightChain:
    """Draw a chain where any quorum of each height signed."""
    sets = draw(draw_sets())
    signers = []
    for powers in sets[:-1]:
        order = draw(st.permutations(sorted(powers)))
        chosen: list[int] = []
        for number in order:
            chosen.append(number)
            if 3 * sum(powers[n] for n in chosen) > 2 * sum(powers.values()):
                break
        signers.append(chosen)
    return LightChain(sets, signers)


def go_through_all(chain: LightChain, until: int) -> TrustedBlock:
    trusted = chain.genesis
    for height in range(1, until + 1):
        trusted = verify_light_block(trusted, chain[height], RULES, now_ms=chain.now_ms)
    return trusted


@settings(max_examples=60, deadline=None)
@given(draw_chain(), st.data())
def test_skipping_trusts_the_same_block_as_going_through_all(
    chain: LightChain, data: st.DataObject
) -> None:
    target = data.draw(st.integers(1, len(chain.blocks)))
    assert chain.follow(chain.genesis, chain[target]) == go_through_all(chain, target)
    assert len(chain.asked) <= target


@settings(max_examples=40, deadline=None)
@given(draw_chain(), st.data())
def test_whoever_decides_no_height_forges_no_header(chain: LightChain, data: st.DataObject) -> None:
    """Forgers hold at most a third of every set: no header of theirs is taken over."""
    heights = range(1, len(chain.blocks) + 1)
    height = data.draw(st.sampled_from(heights))
    forgers = set(data.draw(st.sets(NUMBERS, max_size=3)))
    for powers in chain.sets:
        while 3 * sum(powers.get(n, 0) for n in forgers) > sum(powers.values()):
            forgers.discard(max(forgers))
    if not forgers:
        return
    powers = data.draw(st.sampled_from([chain.sets[height - 1], dict.fromkeys(forgers, 1)]))
    signers = sorted(forgers & set(powers))
    forged = chain.make_block(
        height,
        powers=powers,
        signers=signers,
        proposer=min(forgers),
        state_root=bytes(32),
    )
    try:
        chain.follow(chain.genesis, forged)
    except IemasError:
        return
    raise AssertionError("a forged header was trusted")


@settings(max_examples=30, deadline=None)
@given(draw_chain(), st.data())
def test_a_commit_without_its_last_vote_decides_nothing(
    chain: LightChain, data: st.DataObject
) -> None:
    height = data.draw(st.integers(1, len(chain.blocks)))
    block = chain.make_block(height, signers=pick_quorum(chain.sets[height - 1]))
    short = replace(block.commit, precommits=block.commit.precommits[:-1])
    try:
        chain.follow(chain.genesis, replace(block, commit=short))
    except IemasError:
        return
    raise AssertionError("a commit without a quorum was trusted")
