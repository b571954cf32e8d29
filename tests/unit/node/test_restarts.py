"""A node that ended is started again, less and less soon, and not for ever."""

from node.local_market.restarts import DELAYS_S, STEADY_S, Restarts


def end(restarts: Restarts, now_s: float) -> float | None:
    delay_s = restarts.note_end("node1", now_s=now_s)
    if delay_s is not None:
        restarts.note_start("node1", now_s=now_s + delay_s)
    return delay_s


def test_delays_grow_and_then_it_stays_down() -> None:
    restarts = Restarts()
    delays = [end(restarts, 1000 + 30.0 * n) for n in range(5)]
    assert delays == [*DELAYS_S, None, None]


def test_a_node_that_ran_for_long_has_all_its_restarts_again() -> None:
    restarts = Restarts()
    assert end(restarts, 1000) == DELAYS_S[0]
    assert end(restarts, 1010) == DELAYS_S[1]
    assert end(restarts, 1015 + STEADY_S) == DELAYS_S[0]


def test_nodes_are_counted_apart() -> None:
    restarts = Restarts()
    end(restarts, 1000)
    assert restarts.note_end("node2", now_s=1000) == DELAYS_S[0]
