"""What stopping, false declarations and hidden knowledge gain once a price stands.

The exact statements are checked on arbitrary outcomes, the figures on a small run of the study
that publishes them (`benchmarks.economics.outcomes`), with lengths drawn here; what the rule of
the first version lets providers gain shows that the measure finds gains where there are some.
Source: docs/spec/auction.md §8 (T5 to T9); design §5.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.economics.outcomes.deals import LATENESS
from benchmarks.economics.outcomes.run import run
from benchmarks.economics.outcomes.samples import TRACE, load_lengths
from iemas.core.types import PPM

Rows = list[dict[str, Any]]

# --- exactly, for any outcome --------------------------------------------------------------------

prices = st.integers(1, 10**6)
lateness = st.lists(st.integers(0, PPM), min_size=1, max_size=30).map(
    lambda values: sorted(values, reverse=True)
)


def sum_first(tokens: list[Fraction]) -> list[Fraction]:
    """What the first n tokens bring, n = 0, 1, …"""
    sums = [Fraction(0)]
    for token in tokens:
        sums.append(sums[-1] + token)
    return sums


@given(prices, prices, prices, lateness)
def test_a_provider_gains_by_stopping_only_where_late_is_below_ask_over_rate(
    ask: int, above: int, prompt: int, late: list[int]
) -> None:
    """T6: at best it stops there, whatever it knows, and saves what those tokens cost it net."""
    rate = ask + above
    tokens = [Fraction(rate * worth, PPM) - ask for worth in late]
    profit = sum_first([tokens[0] + prompt * late[0], *tokens[1:]])
    lost = [max(-token, Fraction(0)) for token in tokens]
    on_time = sum(rate * worth >= ask * PPM for worth in late)
    assert max(profit[1:]) == profit[max(on_time, 1)]
    for stop in range(1, len(late) + 1):
        assert profit[stop] - profit[-1] <= sum(lost[stop:], Fraction(0))
    if on_time == len(late):
        assert max(profit) == profit[-1]


@given(st.lists(st.tuples(prices, prices, st.integers(0, PPM)), min_size=1, max_size=20))
def test_an_honest_requester_gains_nothing_by_cancelling_whatever_it_knows(
    tokens: list[tuple[int, int, int]],
) -> None:
    """T5: each further token is worth at least what it owes."""
    net = sum_first([Fraction(above * late, PPM) for _, above, late in tokens])
    assert max(net) == net[-1]


@given(prices, prices, st.lists(st.tuples(*[st.integers(0, PPM)] * 2), min_size=1, max_size=20))
def test_cancelling_gains_at_most_what_was_overstated(
    rate: int, above: int, late: list[tuple[int, int]]
) -> None:
    """T7: with declared lateness never above the true one it gains nothing, else the excess."""
    worth = rate + above
    tokens = [Fraction(worth * true - rate * declared, PPM) for true, declared in late]
    net = sum_first(tokens)
    excess = sum((max(-token, Fraction(0)) for token in tokens), Fraction(0))
    assert max(net) - net[-1] <= excess
    if all(declared <= true for true, declared in late):
        assert max(net) == net[-1]


# --- in expectation, on the study ----------------------------------------------------------------


def draw_lengths() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Answers as they come from a chat service: many short ones, a second hump, few long ones."""
    rng = np.random.default_rng(4)
    short, long = rng.lognormal(4.3, 0.7, 1200), rng.normal(400.0, 60.0, 800)
    return np.clip(np.concatenate((short, long)).round(), 1, 1000).astype(np.int64)


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    return run(seed=3, tasks=4, markets=5, lengths=draw_lengths())


def select(rows: Rows, **where: object) -> Rows:
    found = [row for row in rows if all(row[key] == value for key, value in where.items())]
    assert found, where
    return found


def test_the_price_is_expected_and_reality_is_near(tables: dict[str, Any]) -> None:
    for row in tables["expectation"]:
        assert row["predicted_worst_off"] < 0.001
        assert abs(row["real"]) < 0.03 + 4 * row["real_se"]


def test_one_factor_on_the_whole_total_pays_less_than_the_price(tables: dict[str, Any]) -> None:
    for kind in ("steep", "hard", "tight"):
        (row,) = select(tables["expectation"], lateness=kind)
        assert row["one_factor"] < -0.05


def test_early_cancelling_gains_an_honest_requester_nothing(tables: dict[str, Any]) -> None:
    for row in tables["early_cancelling"]["honest"]:
        assert row["blind"] <= 1e-9
        assert abs(row["knowing_all"]) <= 1e-9


def test_false_impatience_gains_nothing_in_client_mode(tables: dict[str, Any]) -> None:
    """The worst of all lies in all menus; whole milliseconds are worth up to a thousandth."""
    for ending in ("full", "cancel"):
        for row in select(
            tables["false_impatience"], direction="impatient", world="predicted", ending=ending
        ):
            assert row["worst"] < 0.002
            assert row["fixed"] < 0.0005
    for row in select(tables["false_impatience"], direction="impatient", world="real"):
        assert row["fixed"] < 0.01 + 4 * row["fixed_se"]


def test_false_patience_gains_nothing_unless_the_requester_cancels(tables: dict[str, Any]) -> None:
    rows = select(tables["false_impatience"], direction="patient", world="predicted")
    assert max(row["worst"] for row in select(rows, ending="full")) < 0.002
    # Not claimed, and published: what is declared and then not taken is paid by nobody.
    cancelled = {row["lateness"]: row["fixed"] for row in select(rows, ending="cancel")}
    assert cancelled["tight"] > 0.02
    assert cancelled["steep"] > 0.02


def test_stopping_early_gains_a_provider_nothing_without_lateness(tables: dict[str, Any]) -> None:
    for row in select(tables["stopping_early"], lateness="none"):
        assert row["best"] <= 1e-6
        assert row["first"] <= 1e-6
        assert row["fixed"] <= 1e-6


def test_what_stopping_early_gains_is_what_the_rules_leave_to_it(tables: dict[str, Any]) -> None:
    """The first version's rule leaves most, rates for what is worth its cost leave next to none."""
    for kind in LATENESS:
        for surcharge in (0.0, 0.3):
            rules = {
                str(row["rule"]): row
                for row in select(
                    tables["stopping_early"], lateness=kind, surcharge=surcharge, world="predicted"
                )
            }
            best = {rule: row["best"] for rule, row in rules.items()}
            assert abs(best["counted"]) < 1e-6
            assert -1e-6 < best["ended"] < 0.05
            assert -1e-6 < best["shifted"] < 0.05
            assert best["capped"] <= best["settled"] + 1e-6
            assert abs(rules["capped"]["lost"]) < 1e-6
            if kind != "none":
                assert best["one_factor"] > 1.5 * best["settled"]
                assert best["one_factor"] > 0.05
    (mild,) = select(
        tables["stopping_early"], lateness="mild", surcharge=0.3, world="real", rule="settled"
    )
    assert mild["best"] < 0.05


def test_hidden_length_is_worth_something_to_requesters_but_not_without_it(
    tables: dict[str, Any],
) -> None:
    rows = select(tables["hidden_length"]["requester"], mode="client", truth="predicted")
    for row in rows:
        assert abs(row["blind"]) < 0.001
        assert row["knowing"] >= 0.0
    assert max(row["knowing"] for row in rows) > 0.01


def test_shaping_its_ask_gains_a_provider_nothing_if_lengths_are_as_predicted(
    tables: dict[str, Any],
) -> None:
    rows = tables["hidden_length"]["provider"]
    for row in select(rows, mode="provider", truth="predicted"):
        assert row["best"] < 0.001
    client = select(rows, mode="client", truth="predicted")
    assert max(row["best"] for row in client) > 0.02
    wrong = select(rows, mode="provider", truth="real x 0.8")
    assert max(row["best"] for row in wrong) > 0.002


def test_claiming_cached_blocks_gains_a_provider_nothing(tables: dict[str, Any]) -> None:
    """T9, with bids that value cached tokens like others; nothing by hiding them either."""
    rows = select(tables["digest_claims"], cached_worth=1.0)
    for row in select(rows, lateness="none"):
        assert row["best_more"] < 0.001
        assert row["best_fewer"] < 0.001
    for row in select(rows, model="learnt"):
        assert row["best_more"] < 0.005
    assert min(row["fixed_1.0"] for row in rows) < -0.05
    # Not claimed: bids that value cached tokens less make it pay to hide them.
    cheap = select(tables["digest_claims"], cached_worth=0.1)
    assert max(row["best_fewer"] for row in cheap) > 0.05


def test_backdating_gains_at_most_what_the_tolerance_lets_pass(tables: dict[str, Any]) -> None:
    wide = {row["lateness"]: row for row in tables["backdating"] if row["tolerance_ms"] == 2000}
    narrow = {row["lateness"]: row for row in tables["backdating"] if row["tolerance_ms"] == 200}
    assert wide["none"]["gain"] == narrow["none"]["gain"] == 0.0
    for kind in ("mild", "steep", "hard", "tight"):
        assert 0.0 <= narrow[kind]["gain"] < wide[kind]["gain"] < 0.5


@pytest.mark.skipif(not TRACE.is_file(), reason=f"no trace at {TRACE}")
def test_the_trace_of_real_lengths_is_read() -> None:
    lengths = load_lengths()
    assert len(lengths) == 19_366
    assert lengths.min() == 7
    assert lengths.max() == 1000
