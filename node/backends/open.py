"""From settings to a backend, and to the tokenizer that goes with its model."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from iemas.core.errors import ConfigurationError
from iemas.core.tokenizer_bundle import BUNDLE_FILES
from iemas.testing.tokenizer import build_byte_tokenizer
from node.backends.base import Backend, BackendInfo
from node.backends.openai_compatible import OpenAICompatibleBackend
from node.backends.vllm import VllmBackend
from node.config import BackendKind, NodeSettings


def open_backend(settings: NodeSettings, model: str) -> Backend | None:
    """Make the backend that the settings name; None for a node that sells nothing."""
    if settings.backend is None:
        return None
    model = settings.model or model
    if settings.backend_kind is BackendKind.OPENAI_COMPATIBLE:
        return _open_openai_compatible(settings, settings.backend, model)
    # The simulated backend speaks vLLM's protocol, KV events included.
    return VllmBackend(
        settings.backend,
        model=model,
        kv_events_endpoint=settings.kv_events_endpoint,
        kv_replay_endpoint=settings.kv_replay_endpoint,
        slots=settings.slots,
        tokenizer_path=settings.tokenizer_dir,
        require_kv_events=settings.require_kv_events,
    )


def _open_openai_compatible(settings: NodeSettings, url: str, model: str) -> Backend:
    """Make a backend that takes text: the node's own tokenizer turns prompts back into it."""
    if settings.tokenizer_dir is None or settings.context_tokens is None:
        raise ConfigurationError(
            "an openai_compatible backend tells neither its tokenizer nor its context length: give "
            "--tokenizer-dir DIR and --context-tokens N"
        )
    files = read_tokenizer_files(settings.tokenizer_dir)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    return OpenAICompatibleBackend(
        url,
        detokenize=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)),
        tokenize=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        context_tokens=settings.context_tokens,
        model=model,
        slots=settings.slots,
        tokenizer_path=settings.tokenizer_dir,
        require_kv_events=settings.require_kv_events,
    )


def load_tokenizer_files(settings: NodeSettings, info: BackendInfo) -> dict[str, bytes]:
    """Load the tokenizer bundle of the backend's model.

    Raises: ConfigurationError if there is none.
    """
    if settings.tokenizer_dir is None and info.kind == "simulated":
        return build_byte_tokenizer()
    folder = settings.tokenizer_dir or info.tokenizer_path
    if folder is None:
        raise ConfigurationError(
            "the model's tokenizer was not found; name its folder with --tokenizer-dir DIR "
            "(the folder with tokenizer.json and tokenizer_config.json)"
        )
    return read_tokenizer_files(folder)


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Read the files of a tokenizer bundle from a model's folder.

    Raises: ConfigurationError if tokenizer.json is not there.
    """
    files = {
        name: (folder / name).read_bytes() for name in BUNDLE_FILES if (folder / name).is_file()
    }
    if "tokenizer.json" not in files:
        raise ConfigurationError(f"{folder} holds no tokenizer.json; correct --tokenizer-dir")
    return files
