"""Random schedules: whatever the network and less than a third do, consensus keeps its promises.

Source: Buchman, Kwon, Milosevic 2018 (arXiv 1807.04938) §II (agreement, validity, termination);
docs/spec/consensus.md §6.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iemas.consensus.tendermint import Tendermint
from iemas.consensus.validators import ValidatorSet
from iemas.consensus.votes import HeightVotes
from tests.broken_machines import (
    NeverLocks,
    UnlocksOnAnyQuorum,
    VotesAgainAfterRestart,
    halve_quorum,
)
from tests.property.consensus.network import BrokenPromiseError, Network

EQUAL_4, UNEQUAL_4, EQUAL_7 = [1] * 4, [30, 31, 32, 33], [1] * 7


@st.composite
def draw_network(draw: st.DrawFn, powers: list[int], byzantine: int) -> Network:
    numbers = st.permutations(range(len(powers)))
    return Network(draw(st.integers(0, 2**32)), powers=powers, byzantine=draw(numbers)[:byzantine])


@pytest.mark.parametrize(
    ("powers", "byzantine", "examples"),
    [([1], 0, 5), (EQUAL_4, 0, 40), (EQUAL_4, 1, 120), (UNEQUAL_4, 1, 60), (EQUAL_7, 2, 30)],
    ids=["alone", "4 correct", "4 equal", "4 unequal", "7 equal"],
)
def test_consensus_keeps_its_promises(powers: list[int], byzantine: int, examples: int) -> None:
    """Agreement, validity, no contradiction throughout; termination once messages flow."""

    @settings(max_examples=examples)
    @given(draw_network(powers, byzantine), st.integers(0, 30))
    def keep_promises(network: Network, phases: int) -> None:
        network.start()
        network.run_chaos(phases)
        network.run_without_decision(20)
        network.run_until_decided()
        assert len({peer.decided.block_hash for peer in network.peers if peer.decided}) == 1

    keep_promises()


def test_without_faults_the_first_proposal_is_decided_in_its_round() -> None:
    network = Network(1, powers=EQUAL_4, byzantine=())
    network.start()
    network.run_until_decided()
    assert {(peer.decided and peer.decided.round) for peer in network.peers} == {0}
    assert network.now_ms == 0


def test_more_than_a_third_cannot_be_tolerated() -> None:
    """So the Byzantine validators of these tests do what they can."""
    assert find_broken(Tendermint, ValidatorSet, byzantine=(0, 1)) == "agreement"


@pytest.mark.parametrize(
    ("machine_type", "set_type", "promise"),
    [
        (NeverLocks, ValidatorSet, "agreement"),
        (UnlocksOnAnyQuorum, ValidatorSet, "agreement"),
        (Tendermint, halve_quorum(ValidatorSet), "agreement"),
        (VotesAgainAfterRestart, ValidatorSet, "no contradiction"),
    ],
    ids=lambda broken: getattr(broken, "__name__", broken),
)
def test_broken_variants_are_caught(
    machine_type: type[Tendermint], set_type: type[ValidatorSet], promise: str
) -> None:
    assert find_broken(machine_type, set_type, byzantine=(1,)) == promise


def find_broken(
    machine_type: type[Tendermint], set_type: type[ValidatorSet], *, byzantine: tuple[int, ...]
) -> str | None:
    """Try seeds until a promise is broken, and tell which."""
    for seed in range(100):
        network = Network(
            seed,
            powers=EQUAL_4,
            byzantine=byzantine,
            machine_type=machine_type,
            set_type=set_type,
            behaviours=("two-faced",),
        )
        try:
            network.start()
            network.run_chaos(20)
            network.run_without_decision(40)
        except BrokenPromiseError as error:
            return str(error)
    return None


def test_the_unbroken_algorithm_passes_the_same_hunt() -> None:
    assert find_broken(Tendermint, ValidatorSet, byzantine=(1,)) is None


def test_counting_first_votes_alone_would_not_terminate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a double vote counts for each value: a quorum could be hidden from some for good."""
    network = Network(0, powers=EQUAL_4, byzantine=(3,), behaviours=("two-faced",))
    network.start()
    network.run_chaos(20)
    monkeypatch.setattr(HeightVotes, "_is_backed", lambda *arguments: False)
    with pytest.raises(BrokenPromiseError, match="termination"):
        network.run_until_decided()
