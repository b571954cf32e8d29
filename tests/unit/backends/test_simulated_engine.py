"""The simulated engine keeps its cache and its time as a server does."""

import pytest

from iemas.core.digest import DigestIndex, compute_block_keys, count_matched_blocks
from iemas.core.errors import MalformedMessageError
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason
from iemas.testing.backend import EngineConfig, RequestTooLargeError, SimulatedEngine, SimulatedRun
from iemas.testing.prefix_cache import BlocksCleared, BlocksRemoved, BlocksStored

CONFIG = EngineConfig(
    slots=2,
    blocks=20,
    block_size=4,
    context_tokens=64,
    prefill_us_per_token=1000,
    decode_us_per_token=5000,
)


def make_payload(
    token_ids: tuple[int, ...] = tuple(range(10)),
    max_tokens: int = 6,
    *,
    salt: str = "",
    stop: tuple[str, ...] = (),
    ignore_eos: bool = True,
) -> TaskPayload:
    return TaskPayload(token_ids, max_tokens, salt, 0, 1_000_000, -1, stop, ignore_eos)


def get_ids(run: SimulatedRun) -> tuple[int, ...]:
    return tuple(token.token_id for token in run.tokens)


def test_time_to_first_token_is_the_prefill_and_then_one_token_a_step() -> None:
    run = SimulatedEngine(CONFIG).complete(make_payload(), 100)
    assert [token.at_ms for token in run.tokens] == [110, 115, 120, 125, 130, 135]
    assert run.finished_at_ms == 135
    assert run.usage is not None
    assert run.usage.finish is FinishReason.LENGTH
    assert (run.usage.prompt_tokens, run.usage.cached_tokens, run.usage.output_tokens) == (10, 0, 6)


def test_nothing_happens_before_its_time() -> None:
    engine = SimulatedEngine(CONFIG)
    run = engine.submit(make_payload(), 100)
    assert engine.next_at_ms == 110
    engine.advance(109)
    assert not run.has_new
    engine.advance(115)
    assert len(run.take_new()) == 2
    assert run.take_new() == []
    assert not run.done


def test_a_repeated_prompt_is_cached_but_for_its_last_token() -> None:
    engine = SimulatedEngine(CONFIG)
    prompt = tuple(range(12))
    engine.complete(make_payload(prompt), 0)
    run = engine.complete(make_payload(prompt), 1000)
    assert run.usage is not None
    # All three blocks are resident, but the last token must be computed, and with it its block.
    assert run.usage.cached_tokens == 8
    assert run.tokens[0].at_ms == 1004


def test_output_is_cached_up_to_its_last_computed_token() -> None:
    engine = SimulatedEngine(CONFIG)
    first = engine.complete(make_payload(tuple(range(10)), 7), 0)
    everything = (*range(10), *get_ids(first))
    chain = compute_block_keys(everything[:-1], 4)
    assert len(chain) == 4 * 8
    assert count_matched_blocks(chain, DigestIndex(engine.resident.snapshot())) == 4
    second = engine.complete(make_payload((*everything, 1, 2, 3)), 1000)
    assert second.usage is not None
    assert second.usage.cached_tokens == 16


def test_salts_keep_tenants_apart() -> None:
    engine = SimulatedEngine(CONFIG)
    engine.complete(make_payload(salt="a"), 0)
    run = engine.complete(make_payload(salt="b"), 1000)
    assert run.usage is not None
    assert run.usage.cached_tokens == 0
    # Same prompt, same answer: the salt is no part of the text.
    assert get_ids(run) == get_ids(engine.complete(make_payload(salt="a"), 2000))


def test_more_tasks_than_slots_wait_in_order() -> None:
    engine = SimulatedEngine(CONFIG)
    runs = [engine.submit(make_payload(tuple(range(i, i + 4)), 2), 0) for i in (0, 20, 40)]
    assert (engine.running_count, engine.waiting_count) == (2, 1)
    while (due := engine.next_at_ms) is not None:
        engine.advance(due)
    # Prefills of 4 ms one after the other; the third starts when the first leaves at 4 + 5 ms.
    assert [run.tokens[0].at_ms for run in runs] == [4, 8, 13]


def test_a_task_waits_until_there_are_blocks_for_all_of_it() -> None:
    engine = SimulatedEngine(CONFIG)
    engine.submit(make_payload(tuple(range(50)), 10), 0)
    engine.submit(make_payload(tuple(range(50, 70)), 10), 0)
    assert (engine.running_count, engine.waiting_count) == (1, 1)
    while (due := engine.next_at_ms) is not None:
        engine.advance(due)
    assert engine.running_count == engine.waiting_count == 0
    assert engine.used_share == 0


def test_the_least_recently_used_prefix_is_evicted_tail_first() -> None:
    engine = SimulatedEngine(CONFIG, record_events=True)
    old, new = tuple(range(40)), tuple(range(100, 140))
    engine.complete(make_payload(old, 1), 0)
    engine.complete(make_payload(new, 1), 1000)
    engine.take_events()
    engine.complete(make_payload(tuple(range(200, 208)), 1), 2000)
    index = DigestIndex(engine.resident.snapshot())
    assert count_matched_blocks(compute_block_keys(new, 4), index) == 10
    assert count_matched_blocks(compute_block_keys(old, 4), index) == 8
    removed = [event for event in engine.take_events() if isinstance(event, BlocksRemoved)]
    assert sum(len(event.keys) for event in removed) == 2


def test_a_prefix_computed_twice_at_once_is_stored_twice() -> None:
    engine = SimulatedEngine(CONFIG, record_events=True)
    runs = [engine.submit(make_payload(tuple(range(8)), 1), 0) for _ in range(2)]
    engine.advance(1000)
    assert all(run.done for run in runs)
    stored = [event for event in engine.take_events() if isinstance(event, BlocksStored)]
    assert [len(event.keys) for event in stored] == [2, 2]
    assert len(engine.resident) == 2


def test_events_tell_what_the_resident_blocks_are() -> None:
    engine = SimulatedEngine(CONFIG, record_events=True)
    payload = make_payload(tuple(range(10)), 7, salt="s")
    run = engine.complete(payload, 0)
    first, *rest = [e for e in engine.take_events() if isinstance(e, BlocksStored)]
    assert first.cache_salt == "s"
    assert first.parent is None
    assert first.token_ids == tuple(range(8))
    assert [event.parent for event in rest] == [first.keys[-1], rest[0].keys[-1]]
    assert all(not event.cache_salt for event in rest)
    assert rest[0].token_ids == (8, 9, *get_ids(run)[:2])


def test_a_cancelled_task_frees_its_slot_and_keeps_what_was_computed() -> None:
    engine = SimulatedEngine(CONFIG)
    run = engine.submit(make_payload(), 0)
    other = engine.submit(make_payload(tuple(range(50, 60))), 0)
    waiting = engine.submit(make_payload(tuple(range(70, 80))), 0)
    engine.cancel(run, 12)
    engine.cancel(waiting, 12)
    assert run.usage is not None
    assert run.usage.finish is FinishReason.CANCELLED
    assert run.usage.output_tokens == 1
    assert waiting.done
    assert len(engine.resident) == 2
    engine.cancel(other, 13)
    assert engine.used_share == 0
    assert engine.next_at_ms is None
    engine.cancel(run, 14)


def test_cancelling_a_prefill_lets_the_next_one_start() -> None:
    engine = SimulatedEngine(CONFIG)
    run = engine.submit(make_payload(), 0)
    other = engine.submit(make_payload(tuple(range(50, 60))), 0)
    engine.cancel(run, 3)
    assert len(engine.resident) == 0
    engine.advance(13)
    assert len(other.tokens) == 1


def test_an_answer_ends_by_itself_unless_told_to_go_on() -> None:
    run = SimulatedEngine(EngineConfig()).complete(
        make_payload(max_tokens=500, ignore_eos=False), 0
    )
    assert run.usage is not None
    assert run.usage.finish is FinishReason.STOP
    assert 16 <= run.usage.output_tokens <= 96
    assert run.tokens[-1].text == ""


def test_a_stop_string_ends_the_text_before_it() -> None:
    engine = SimulatedEngine(CONFIG)
    text = "".join(token.text for token in engine.complete(make_payload(max_tokens=20), 0).tokens)
    stop = text[6:9]
    run = engine.complete(make_payload(max_tokens=20, stop=(stop,)), 1000)
    assert "".join(token.text for token in run.tokens) == text[: text.find(stop)]
    assert run.usage is not None
    assert run.usage.finish is FinishReason.STOP


def test_what_never_fits_is_refused() -> None:
    engine = SimulatedEngine(CONFIG)
    with pytest.raises(RequestTooLargeError, match="65 tokens"):
        engine.submit(make_payload(tuple(range(60)), 5), 0)
    with pytest.raises(MalformedMessageError, match="slots"):
        EngineConfig(slots=0)


def test_the_cache_is_reset_only_when_idle() -> None:
    engine = SimulatedEngine(CONFIG, record_events=True)
    run = engine.submit(make_payload(), 0)
    assert not engine.reset_cache()
    engine.cancel(run, 20)
    assert engine.reset_cache()
    assert len(engine.resident) == 0
    assert engine.take_events()[-1] == BlocksCleared()


def test_two_engines_give_the_same_run() -> None:
    payload = make_payload(max_tokens=30, ignore_eos=False)
    runs = [SimulatedEngine(CONFIG).complete(payload, 0) for _ in range(2)]
    assert runs[0].tokens == runs[1].tokens
    assert runs[0].usage == runs[1].usage
