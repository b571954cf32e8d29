"""The genesis file."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from iemas.core.errors import ConfigurationError
from iemas.core.params import MarketParams
from iemas.genesis import encode_genesis, load_genesis, save_genesis
from iemas.testing.chain import make_genesis

GENESIS = make_genesis(params=MarketParams(term_ms=3_000))


def edit(change: Any) -> bytes:
    """Give the genesis' bytes with its JSON changed."""
    content = json.loads(encode_genesis(GENESIS))
    change(content)
    return json.dumps(content).encode()


def fail(data: bytes) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_genesis(data)
    return str(caught.value)


def test_a_genesis_round_trips(tmp_path: Path) -> None:
    data = save_genesis(GENESIS, tmp_path / "genesis.json")
    loaded, chain_id, loaded_data = load_genesis(tmp_path / "genesis.json")
    assert (loaded, loaded_data) == (GENESIS, data)
    assert chain_id == GENESIS.compute_chain_id(data)


def test_the_file_is_readable() -> None:
    content = json.loads(encode_genesis(GENESIS))
    ids = [validator["node_id"] for validator in content["validators"]]
    assert ids == [validator.node_id.hex() for validator in GENESIS.validators]
    assert content["params"]["term_ms"] == 3_000


def test_another_byte_is_another_chain() -> None:
    data = encode_genesis(GENESIS)
    first, second = load_genesis(data), load_genesis(data + b" ")
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_parameters_left_out_have_their_defaults() -> None:
    data = edit(lambda content: content.update(params={"mode": "provider"}))
    assert load_genesis(data)[0].params == MarketParams(mode="provider")


def test_an_unknown_mode_is_refused_by_name() -> None:
    message = fail(edit(lambda content: content.update(params={"mode": "vcg"})))
    assert "mode must be one of provider, client, threshold, got 'vcg'" in message


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    save_genesis(GENESIS, tmp_path / "genesis.json")
    with pytest.raises(ConfigurationError, match="exists"):
        save_genesis(GENESIS, tmp_path / "genesis.json")


def test_a_missing_file_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_genesis(tmp_path / "nowhere.json")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        save_genesis(GENESIS, tmp_path / "nowhere" / "genesis.json")


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(ConfigurationError, match="cannot be written"):
            save_genesis(GENESIS, tmp_path / "genesis.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    assert "is no JSON" in fail(data)


def test_a_list_is_no_genesis() -> None:
    assert "must be an object" in fail(b"[]")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.pop("hub"), "hub is missing"),
        (lambda c: c.update(hubb="x"), "hubb is no key of a genesis; did you mean hub?"),
        (lambda c: c["params"].update(zzz=1), "params.zzz is no key of a genesis; remove it"),
        (lambda c: c.update(hub="é" * 129), "hub is over 256 bytes"),
        (lambda c: c.update(time_ms="soon"), 'time_ms must be an integer, not "soon"'),
        (lambda c: c.update(time_ms=1.5), "time_ms must be an integer, not 1.5"),
        (lambda c: c["params"].update(term_ms=True), "params.term_ms must be an integer"),
        (lambda c: c["params"].update(cache_affinity=1), "params.cache_affinity must be true"),
        (lambda c: c["params"].update(term_ms=0), "params does not hold: term_ms must be"),
        (lambda c: c.update(validators={}), "validators must be a list"),
        (lambda c: c.update(validators=[]), "at least one validator"),
        (lambda c: c["validators"][1].update(node_id="ab"), "validators[1].node_id must be 64 hex"),
        (lambda c: c["validators"][1].update(node_id=7), "validators[1].node_id must be 64 hex"),
        (lambda c: c["accounts"][0].pop("account"), "accounts[0].account is missing"),
        (lambda c: c["accounts"][0].update(available_micros=-1), "accounts[0] does not hold"),
        (lambda c: c["accounts"].append(c["accounts"][0]), "an account is named twice"),
    ],
)
def test_a_wrong_key_is_named_with_its_fix(change: Any, text: str) -> None:
    assert text in fail(edit(change))


def test_a_key_that_stands_twice_is_refused() -> None:
    data = encode_genesis(GENESIS).replace(b'"name"', b'"time_ms": 1, "name"', 1)
    assert "time_ms stands there twice" in fail(data)


def test_a_huge_file_is_refused() -> None:
    assert "larger than" in fail(b" " * (4 * 1024 * 1024 + 1))
