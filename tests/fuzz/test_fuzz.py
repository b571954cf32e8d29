"""A little of the fuzzing with every test run; `python -m tests.fuzz` does much of it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iemas.core.errors import IemasError, InternalError
from tests.fuzz.__main__ import summarize
from tests.fuzz.decoders import Decoder, list_decoders
from tests.fuzz.mutate import MAX_BYTES, mutate
from tests.fuzz.runner import Counts, run, share, try_one

DECODERS = list_decoders()
BY_NAME = {decoder.name: decoder for decoder in DECODERS}
INPUTS = 20_000


def test_every_seed_is_valid() -> None:
    for decoder in DECODERS:
        for seed in decoder.seeds:
            decoder.decode(seed)


def test_nothing_but_named_errors_comes_out() -> None:
    findings = []
    for decoder, inputs in zip(DECODERS, share(INPUTS, DECODERS), strict=True):
        counts, found = run(decoder, inputs, seed=7)
        assert counts.inputs == inputs
        findings += found
    assert findings == []


@pytest.mark.parametrize(
    "name",
    ["stream PeerMessage", "genesis JSON", "ledger snapshot", "KV events", "CA certificate"],
)
@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_at_all_are_decoded_or_refused(name: str, data: bytes) -> None:
    try:
        BY_NAME[name].decode(data)
    except InternalError:
        raise
    except IemasError:
        return


def fail(error: Exception) -> object:
    raise error


@pytest.mark.parametrize("error", [ValueError("x"), InternalError("x"), RecursionError("x")])
def test_what_is_not_named_is_found(error: Exception) -> None:
    finding = try_one(Decoder("broken", lambda _: fail(error), (b"",)), b"in", Counts())
    assert finding is not None
    assert finding.error.startswith(type(error).__name__)
    assert finding.input_hex == b"in".hex()


def test_what_is_named_is_counted() -> None:
    counts = Counts()
    assert try_one(Decoder("d", lambda _: fail(IemasError("x")), (b"",)), b"", counts) is None
    assert try_one(Decoder("d", lambda _: None, (b"",)), b"", counts) is None
    assert (counts.inputs, counts.accepted, dict(counts.errors)) == (2, 1, {"IemasError": 1})
    assert summarize({"d": counts}, [])["inputs"] == 2


def test_a_seed_names_its_inputs() -> None:
    decoder = BY_NAME["wire Prices"]
    assert (
        run(decoder, 200, seed=1)[0].to_json()["errors"]
        == (run(decoder, 200, seed=1)[0].to_json()["errors"])
    )
    seen: list[bytes] = []
    spy = Decoder("spy", seen.append, decoder.seeds)
    run(spy, 50, seed=1)
    first, seen[:] = list(seen), []
    run(spy, 50, seed=1)
    assert seen == first
    assert len(set(first)) > 25


def test_inputs_stay_small() -> None:
    random = Random(3)
    assert max(len(mutate([b"[" * 1000], random)) for _ in range(2_000)) <= MAX_BYTES


def test_every_decoder_gets_its_share() -> None:
    parts = share(1_000_000, DECODERS)
    assert sum(parts) == 1_000_000
    assert min(parts) > 500
