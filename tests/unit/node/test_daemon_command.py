"""The command `iemas-node`: one clear line for an error, and never a traceback."""

import errno
import io
import os
import socket
import stat
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from iemas.core.errors import BackendError, ConfigurationError
from iemas.files import naming_os_errors, write_atomically
from iemas.keystore import generate_key
from iemas.tls import parse_address
from iemas.v1 import market_service_pb2
from node.cli import common
from node.cli.daemon import _build_status_table, app
from node.config import NodeSettings, get_flag, get_variable
from node.daemon import _serve_metrics

NOBODY = "ab" * 32 + "@127.0.0.1:1"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli.daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_keygen_prints_the_node_id_and_refuses_to_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    first = run("keygen", str(path))
    assert first.returncode == 0
    assert len(bytes.fromhex(first.stdout.strip())) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = run("keygen", str(path))
    assert second.returncode == 2
    assert second.stdout == ""
    assert second.stderr.startswith("error: ")
    assert second.stderr.count("\n") == 1


def test_status_of_nobody_is_one_line() -> None:
    done = run("status", "ab" * 32 + "@127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot reach a node at 127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_run_with_a_wrong_key_file_names_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_text("junk")
    path.chmod(0o600)
    done = run("run", "--key-file", str(path), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert "iemas-node keygen" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["file", "file/data", "/proc/x"])
def test_run_names_a_data_directory_that_can_be_none(tmp_path: Path, place: str) -> None:
    key = tmp_path / "node.key"
    generate_key(key)
    (tmp_path / "file").touch()
    data_dir = str(tmp_path / place)
    done = run("run", "--key-file", str(key), "--data-dir", data_dir, "--bootstrap", NOBODY)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot use ")
    assert "choose another folder with --data-dir" in done.stderr
    assert done.stderr.count("\n") == 1


def test_run_names_the_flag_of_metrics_on_a_taken_port() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigurationError, match=r"Address already in use.*--metrics-listen"),
    ):
        _serve_metrics(f"127.0.0.1:{taken.getsockname()[1]}", AsyncExitStack())


def test_run_help_documents_every_setting() -> None:
    result = CliRunner().invoke(app, ["run", "--help"], terminal_width=200)
    text = " ".join(result.output.split())
    for name, field in NodeSettings.model_fields.items():
        assert f"{get_flag(name)} " in text
        assert get_variable(name) in text
        assert field.description is not None
        assert field.description.split(":")[0] in text


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigurationError("set\nthis"), 2),
        (BackendError("the backend\nis down"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        common.run_cli(fail)  # type: ignore[arg-type]
    assert caught.value.code == exit_code
    assert capsys.readouterr().err == (
        f"error: {' '.join(str(error).split())}\n" if str(error) else ""
    )


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space on its disk"),
        (errno.EACCES, "read and write it, or choose another place"),
        (errno.EROFS, "make its disk writable, or choose another place"),
        (errno.EISDIR, "a folder stands where a file is needed: move it away"),
    ],
)
def test_what_the_system_says_of_a_file_is_named_with_the_fix(
    number: int, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/data/x")

    with pytest.raises(SystemExit) as caught:
        common.run_cli(fail)  # type: ignore[arg-type]
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: cannot use /data/x ({os.strerror(number)}): ")
    assert text.endswith(f"{fix}\n")


def test_our_own_bugs_are_not_hidden() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        common.run_cli(fail)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0.000000"), (1, "0.000001"), (1_234_567_890, "1,234.567890"), (-1, "-0.000001")],
)
def test_money_is_written_exactly(micros: int, text: str) -> None:
    assert common.format_credits(micros) == text


def test_status_shows_what_the_node_answered() -> None:
    answer = market_service_pb2.GetStatusResponse(
        height=7, total_money_micros=5_000_000, refused={"StaleReportError": 2}
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(_build_status_table(parse_address("ab" * 32 + "@h:1"), answer))
    text = console.export_text()
    assert "5.000000 credits" in text
    assert "StaleReportError 2" in text


def test_a_full_disk_is_named_also_where_the_system_names_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "ready.json"
    with (
        pytest.raises(ConfigurationError, match=f"cannot use {path} .*: free space"),
        naming_os_errors(),
    ):
        write_atomically(path, b"x")
    with (
        pytest.raises(ConfigurationError, match=r"cannot use the disk .*: free space"),
        naming_os_errors(),
    ):
        fail(0)
    assert list(tmp_path.iterdir()) == []


STOP_WITH_CALLS = """
import asyncio, grpc, node.daemon

async def deliver(requests, context):
    await context.send_initial_metadata(())
    async for _ in requests:
        pass
    return b""

async def run():
    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(deliver)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("S", {"D": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    calls = [channel.stream_unary("/S/D")() for _ in range(20)]
    for call in calls:
        await call.initial_metadata()
    await server.stop(None)
    LET_END
    print("left", len(asyncio.all_tasks()) - 1)

asyncio.run(run())
"""


def test_calls_that_are_cut_off_end_before_the_loop_does() -> None:
    """gRPC says that it stopped before they do, and a cancelled one prints a traceback."""
    script = STOP_WITH_CALLS.replace("LET_END", "await node.daemon._let_calls_end()")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "left 0\n"
    assert "Traceback" not in done.stderr
