"""Bids, sampling parameters, messages, keys: what users give, and what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import iemas
from iemas import client as client_package
from iemas.client._channel import KEEP_TERMS
from iemas.client._keys import load_identity
from iemas.client._messages import compute_memory_key, normalize_messages
from iemas.client._options import BidOptions, RequestSettings
from iemas.client._types import Balance, ChatMessage
from iemas.core.errors import BadRequestError, ConfigurationError, PromptTooLongError
from iemas.core.identity import Identity
from iemas.core.settlement import compute_worst_case_micros
from iemas.core.types import Lateness, Prices


def test_default_bid_reserves_its_worst_case() -> None:
    bid = BidOptions().make_bid("m", 1_000, 100)
    assert bid.prices == Prices(1_000_000, 1_000_000, 3_000_000)
    assert bid.lateness == Lateness(0, 0)
    assert bid.reservation_micros == 1_300


@pytest.mark.parametrize("value_micros", [1, 650, 1_300, 99_999])
def test_value_bounds_what_the_whole_task_costs(value_micros: int) -> None:
    bid = BidOptions(value_micros=value_micros).make_bid("m", 1_000, 100)
    worst = compute_worst_case_micros(bid.prices, 1_000, 100)
    assert bid.reservation_micros == worst <= value_micros


def test_worth_falls_over_as_long_as_the_deadline_unless_told() -> None:
    assert BidOptions(deadline_ms=500).make_bid("m", 1, 1).lateness == Lateness(500, 500)
    assert BidOptions(deadline_ms=500, decay_ms=0).make_bid("m", 1, 1).lateness == Lateness(500, 0)


@pytest.mark.parametrize("options", [{"deadline_ms": -1}, {"value_micros": 2**70}])
def test_bid_out_of_range_is_a_bad_request(options: dict[str, int]) -> None:
    with pytest.raises(BadRequestError):
        BidOptions(**options).make_bid("m", 1_000, 1_000)


def test_max_tokens_defaults_to_what_fits() -> None:
    assert RequestSettings().make_sampling(100, 4_096).max_tokens == 256
    assert RequestSettings().make_sampling(4_000, 4_096).max_tokens == 96
    assert RequestSettings(stop="a").make_sampling(1, 9).stop == ("a",)
    assert RequestSettings(stop=["a", "b"]).make_sampling(1, 9).stop == ("a", "b")


@pytest.mark.parametrize(("prompt", "max_tokens"), [(4_096, None), (5_000, None), (4_000, 97)])
def test_too_long_prompts_name_the_numbers(prompt: int, max_tokens: int | None) -> None:
    with pytest.raises(PromptTooLongError, match="4096") as caught:
        RequestSettings(max_tokens=max_tokens).make_sampling(prompt, 4_096)
    assert caught.value.operands["prompt_tokens"] == prompt


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 11},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"seed": -3},
    ],
)
def test_sampling_out_of_range_is_a_bad_request(settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        RequestSettings(**settings).make_sampling(1, 100).make_payload([1], "")


def test_messages_come_in_several_forms() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": None},
        {"role": "user", "content": parts, "name": "n"},
        ChatMessage("assistant", "c"),
    ]
    assert normalize_messages(messages) == [
        {"role": "system", "content": ""},
        {"role": "user", "content": "ab", "name": "n"},
        {"role": "assistant", "content": "c"},
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "text",
        {"role": "user", "content": "x"},
        [{"role": "user", "content": "\n"}],
        [{"content": "secret"}],
        [{"role": "", "content": "secret"}],
        [["user", "secret"]],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "secret"}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
    ],
)
def test_wrong_messages_are_named_without_quoting_them(messages: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        normalize_messages(messages)
    assert "secret" not in str(caught.value)


def test_memory_key_is_the_same_for_the_same_conversation() -> None:
    one = compute_memory_key("m", [{"role": "user", "content": "x"}])
    assert one == compute_memory_key("m", [{"content": "x", "role": "user"}])
    with pytest.raises(BadRequestError):
        compute_memory_key("m", [{"role": "user", "content": "x", "extra": object()}])


def test_key_file_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(ConfigurationError, match="keygen"):
        load_identity(path)
    identity = Identity(b"i" * 32)
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(identity.private_key.private_bytes(*form))
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_identity(path)
    path.chmod(0o600)
    assert load_identity(str(path)).node_id == identity.node_id
    assert load_identity(identity) is identity
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(*form))
    with pytest.raises(ConfigurationError, match="Ed25519"):
        load_identity(path)
    path.write_text("nonsense")
    with pytest.raises(ConfigurationError, match="PKCS#8"):
        load_identity(path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_identity(path / "below")


@pytest.mark.parametrize("bootstrap", ["localhost:1", [], "zz@h:1", ["ab" * 32 + "@h:0"]])
def test_wrong_bootstrap_addresses_are_configuration_errors(bootstrap: Any) -> None:
    with pytest.raises(ConfigurationError, match="bootstrap"):
        iemas.AsyncClient(bootstrap, key=Identity(b"i" * 32))


def test_channel_forgets_terms_that_can_no_longer_be_settled(world: Any) -> None:
    for term in range(KEEP_TERMS * 2):
        world.channel.take_nonce(world.term.hub, term)
    assert len(world.channel._nonces) == KEEP_TERMS + 1


def test_balance_in_credits() -> None:
    assert Balance("a", True, 1_500_000, 500_000, 0, 0, 0, 0, 0, 1).total_credits == 2.0


@pytest.mark.parametrize("module", ["iemas.core", "iemas.client._base", "iemas", "iemas.client"])
def test_pure_parts_load_no_grpc(module: str) -> None:
    code = f"import {module}, sys; sys.exit('grpc' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_package_offers_what_it_lists() -> None:
    for name in iemas.__all__:
        assert getattr(iemas, name).__name__ == name
    assert dir(iemas) == sorted(iemas.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        iemas.nonsense  # noqa: B018
    assert set(dir(client_package)) == {"AsyncClient", "BidOptions", "Client"}
    with pytest.raises(AttributeError):
        client_package.nonsense  # noqa: B018
