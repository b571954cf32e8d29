"""A peer is read as fast as it may send, and waits beyond that."""

from node.transport.pace import BYTES_PER_UNIT, MOST_UNITS, UNITS_PER_S, Pace, compute_units


def test_a_burst_passes_and_then_a_second_fills_the_bucket_again() -> None:
    pace = Pace(0.0)
    assert pace.take(MOST_UNITS, now_s=0.0)
    assert not pace.take(1, now_s=0.0)
    assert pace.take(UNITS_PER_S - 1, now_s=1.0)
    assert not pace.take(1, now_s=1.0)


def test_the_bucket_holds_no_more_than_its_bound() -> None:
    pace = Pace(0.0)
    assert pace.take(1, now_s=1000.0)
    assert not pace.take(MOST_UNITS, now_s=1000.0)


def test_large_messages_cost_more() -> None:
    assert compute_units(0) == 1
    assert compute_units(100 * BYTES_PER_UNIT) == 101
