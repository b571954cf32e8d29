"""What a server streams is read, or refused by name, and never quoted."""

from typing import Any

import pytest

from iemas.core.errors import BackendError
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason
from node.backends.base import (
    BackendChunk,
    BackendProtocolError,
    BackendRequestError,
    BackendUsage,
    ModelMismatchError,
)
from node.backends.completions import choose_model, get_choice, make_request, parse_finish
from node.backends.vllm import _check_usage, _parse_chunk

PAYLOAD = TaskPayload((1, 2, 3), 5, "", 700_000, 900_000, 7, ("x",), ignore_eos=False)
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 2},
}


def test_a_request_carries_the_sampling_of_the_task() -> None:
    request = make_request(PAYLOAD, "m")
    assert (request["temperature"], request["top_p"], request["seed"]) == (0.7, 0.9, 7)
    assert request["stop"] == ["x"]
    unseeded = TaskPayload((1,), 5, "", 0, 1_000_000, -1, (), ignore_eos=False)
    assert not {"seed", "stop"} & make_request(unseeded, "m").keys()


def test_a_chunk_needs_its_token_ids() -> None:
    event = {"choices": [{"text": "a", "token_ids": [5, 6]}]}
    assert _parse_chunk(event) == BackendChunk("a", (5, 6))
    assert _parse_chunk({"choices": []}) is None
    with pytest.raises(BackendProtocolError, match=r"0\.11"):
        _parse_chunk({"choices": [{"text": "a"}]})
    with pytest.raises(BackendProtocolError, match="choices"):
        _parse_chunk({})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 400, "message": "token 12345"}, BackendRequestError),
        ({"code": 500, "message": "token 12345"}, BackendError),
        ("token 12345", BackendError),
    ],
)
def test_an_error_in_the_stream_is_named_and_not_quoted(
    error: object, expected: type[BackendError]
) -> None:
    with pytest.raises(expected) as caught:
        get_choice({"error": error})
    assert type(caught.value) is expected
    assert "12345" not in str(caught.value)


def test_finish_reasons() -> None:
    def finish(reason: str | None) -> FinishReason:
        return parse_finish({"choices": [{"finish_reason": reason}]})

    assert finish(None) is FinishReason.UNSPECIFIED
    assert finish("stop") is FinishReason.STOP
    assert finish("length") is FinishReason.LENGTH
    with pytest.raises(BackendError, match="gave the task up"):
        finish("abort")


def test_usage_is_held_against_what_was_sent_and_received() -> None:
    assert _check_usage(PAYLOAD, USAGE, 5, FinishReason.LENGTH) == BackendUsage(
        3, 2, 5, FinishReason.LENGTH
    )


@pytest.mark.parametrize(
    ("usage", "received", "finish"),
    [
        (None, 5, FinishReason.STOP),
        (USAGE, 5, FinishReason.UNSPECIFIED),
        (USAGE, 4, FinishReason.STOP),
        (USAGE | {"prompt_tokens": 4}, 5, FinishReason.STOP),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 4}}, 5, FinishReason.STOP),
    ],
)
def test_usage_that_does_not_agree_is_refused(
    usage: Any, received: int, finish: FinishReason
) -> None:
    with pytest.raises(BackendProtocolError):
        _check_usage(PAYLOAD, usage, received, finish)


def test_the_model_is_chosen_by_name_or_by_being_the_only_one() -> None:
    models = [{"id": "a"}, {"id": "b"}]
    assert choose_model(models, "b", "url") == {"id": "b"}
    assert choose_model(models[:1], None, "url") == {"id": "a"}
    with pytest.raises(ModelMismatchError, match="serves a, b"):
        choose_model(models, "c", "url")
    with pytest.raises(ModelMismatchError, match="2 models"):
        choose_model(models, None, "url")
