"""Settings: which source wins, and what is said when one is wrong."""

import os
from pathlib import Path
from typing import Any

import pytest

from iemas.core.errors import ConfigurationError
from iemas.core.types import Prices
from node.config import (
    BackendKind,
    LogFormat,
    LogLevel,
    NodeSettings,
    get_flag,
    get_variable,
    load_settings,
)

NODE = "ab" * 32 + "@127.0.0.1:7470"
GIVEN: dict[str, Any] = {"key_file": "node.key"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("IEMAS_NODE_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    settings = load_settings(None, GIVEN)
    assert settings.key_file == Path("node.key")
    assert settings.public_listen == "127.0.0.1:7470"
    assert settings.backend_kind is BackendKind.NONE
    assert not settings.sells
    assert settings.bootstrap == ()
    assert settings.ask == Prices(100_000, 10_000, 400_000)
    assert (settings.log_level, settings.log_format) == (LogLevel.INFO, LogFormat.JSON)


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 'slots = 5\nmodel = "of-file"\nhub = "of-file"\nkey_file = "k"\n')
    monkeypatch.setenv("IEMAS_NODE_MODEL", "of-environment")
    monkeypatch.setenv("IEMAS_NODE_HUB", "of-environment")
    settings = load_settings(path, {"hub": "of-flag"})
    assert (settings.slots, settings.model, settings.hub) == (5, "of-environment", "of-flag")
    assert settings.log_level is LogLevel.INFO


def test_the_file_can_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IEMAS_NODE_CONFIG", str(write(tmp_path, 'key_file = "k"\nslots = 7')))
    assert load_settings().slots == 7


def test_bootstrap_is_a_list_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, f'key_file = "k"\nbootstrap = ["{NODE}", "{NODE}"]')
    assert load_settings(path).bootstrap == (NODE, NODE)
    monkeypatch.setenv("IEMAS_NODE_BOOTSTRAP", f"{NODE},{NODE},{NODE}")
    assert load_settings(path).bootstrap == (NODE,) * 3
    assert load_settings(path, {"bootstrap": [NODE]}).bootstrap == (NODE,)


def test_a_backend_is_vllm_unless_named() -> None:
    settings = load_settings(None, {**GIVEN, "backend": "http://127.0.0.1:8000/"})
    assert settings.sells
    assert settings.backend == "http://127.0.0.1:8000"
    assert settings.backend_kind is BackendKind.VLLM
    settings = load_settings(None, {**GIVEN, "backend": "http://h:1", "backend_kind": "simulated"})
    assert settings.backend_kind is BackendKind.SIMULATED


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_settings(None, {"key_file": "~/k"}).key_file == Path("/home/someone/k")


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("slots", "many", "integer"),
        ("slots", "0", "greater than"),
        ("public_listen", "7470", "host:port"),
        ("peer_listen", "::1:7471", "brackets"),
        ("public_address", "example.org:0", "name the port"),
        ("backend", "127.0.0.1:8000", "looks like http://"),
        ("backend_kind", "llama", "'vllm'"),
        ("kv_events_endpoint", "127.0.0.1:5557", "looks like tcp://"),
        ("genesis", "/nonexistent/genesis.json", "there is no file"),
        ("tokenizer_dir", "/nonexistent", "there is no directory"),
        ("bootstrap", "127.0.0.1:7470", "node id is missing"),
        ("ask_prompt_micros_per_mtok", "0", "greater than"),
        ("ask_output_micros_per_mtok", "1.5", "integer"),
        ("require_kv_events", "perhaps", "boolean"),
        ("log_level", "loud", "'debug'"),
        ("metrics_listen", "x", "host:port"),
    ],
)
def test_a_wrong_value_names_its_key_three_times_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, field: str, value: str, fix: str
) -> None:
    monkeypatch.setenv(get_variable(field), value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, GIVEN)
    text = str(caught.value)
    assert get_flag(field) in text
    assert get_variable(field) in text
    assert f"`{field}`" in text
    assert fix in text


def test_a_missing_key_says_what_it_is_and_how_to_get_it() -> None:
    with pytest.raises(ConfigurationError, match=r"--key-file .* is not set.*iemas-node keygen"):
        load_settings()


def test_all_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"--slots.*--log-level"):
        load_settings(None, {**GIVEN, "slots": "x", "log_level": "x"})


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"backend_kind": "vllm"}, r"--backend .*add its URL"),
        ({"backend": "http://h:1", "backend_kind": "none"}, "--backend-kind"),
        ({"backend": "http://h:1", "require_kv_events": True}, "--kv-events-endpoint"),
        ({"kv_replay_endpoint": "tcp://h:1"}, "--kv-events-endpoint"),
        ({"public_listen": "0.0.0.0:7470"}, "--public-address"),
        ({"peer_listen": "[::]:7471"}, "--peer-address"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(flags: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load_settings(None, {**GIVEN, **flags})


def test_every_interface_is_fine_with_an_address() -> None:
    settings = load_settings(
        None, {**GIVEN, "public_listen": "0.0.0.0:7470", "public_address": "node.example.org:7470"}
    )
    assert settings.public_address == "node.example.org:7470"


def test_an_unknown_key_in_the_file_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path, 'slot = 4\nkey_file = "k"')
    with pytest.raises(ConfigurationError, match=r"unknown key `slot`: did you mean slots\?"):
        load_settings(path)


def test_an_unknown_variable_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IEMAS_NODE_SLOT", "4")
    with pytest.raises(ConfigurationError, match="did you mean IEMAS_NODE_SLOTS"):
        load_settings(None, GIVEN)


def test_a_file_that_is_missing_or_malformed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--config"):
        load_settings(tmp_path / "missing.toml")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        load_settings(write(tmp_path, "slots = = 4"))


@pytest.mark.parametrize("field", NodeSettings.model_fields)
def test_every_setting_is_documented(field: str) -> None:
    description = NodeSettings.model_fields[field].description
    assert description
    assert description.endswith(".")
