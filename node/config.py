"""Settings of a node: flags over environment over a TOML file over defaults.

One field is one setting: ``data_dir`` is ``--data-dir``, ``IEMAS_NODE_DATA_DIR``, and ``data_dir``
in the file. The field's description is its documentation and the flag's help text. Whatever is
wrong is a `ConfigurationError` that gives all three names and the fix.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from iemas.core.errors import ConfigurationError, IemasError
from iemas.core.types import HubId, Prices
from iemas.tls import parse_address, split_host_port

T = TypeVar("T")

ENV_PREFIX = "IEMAS_NODE_"
CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
MAX_FILE_BYTES = 16 * 1024
"""Names the TOML file, as ``--config`` does. It is no setting itself."""


class BackendKind(StrEnum):
    """What serves the model behind a node."""

    NONE = "none"
    VLLM = "vllm"
    OPENAI_COMPATIBLE = "openai_compatible"
    SIMULATED = "simulated"


class LogLevel(StrEnum):
    """The least severe events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log events are written."""

    JSON = "json"
    CONSOLE = "console"


def _check_listen(value: str) -> str:
    _parse(split_host_port, value)
    return value


def _parse(parser: Callable[[str], T], value: str) -> T:
    """Parse with one of our functions, whose errors pydantic does not know."""
    try:
        return parser(value)
    except IemasError as error:
        raise PydanticCustomError("malformed", "{text}", {"text": str(error)}) from error


def _check_advertised(value: str) -> str:
    _, port = _parse(split_host_port, value)
    if port == 0:
        raise PydanticCustomError("port", "nobody can dial port 0: name the port to advertise")
    return value


def _check_bootstrap(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        _parse(parse_address, value)
    return values


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PydanticCustomError("url", "not a URL: it looks like http://127.0.0.1:8000")
    return value.rstrip("/")


def _check_endpoint(value: str) -> str:
    if not value.startswith(("tcp://", "ipc://")):
        raise PydanticCustomError(
            "endpoint", "not a ZMQ endpoint: it looks like tcp://127.0.0.1:5557 or ipc:///tmp/kv"
        )
    return value


def _check_file(value: Path) -> Path:
    if not value.is_file():
        raise PydanticCustomError(
            "file", "there is no file {path}: give the path of one", {"path": str(value)}
        )
    return value


def _check_directory(value: Path) -> Path:
    if not value.is_dir():
        raise PydanticCustomError(
            "directory", "there is no directory {path}: give the path of one", {"path": str(value)}
        )
    return value


def _split_commas(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _expand_home(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) else value


_Path = Annotated[Path, BeforeValidator(_expand_home)]
_Listen = Annotated[str, AfterValidator(_check_listen)]
_Advertised = Annotated[str, AfterValidator(_check_advertised)]
_Price = Annotated[int, Field(ge=1, le=10**12)]
_Endpoint = Annotated[str, AfterValidator(_check_endpoint)]


class NodeSettings(BaseSettings):
    """Everything that a node is told. Read it with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        validate_default=False,
        env_ignore_empty=True,  # a compose file can only empty a variable, not leave it out
    )

    key_file: Annotated[
        _Path,
        Field(description="The node's private key; create it with `iemas-node keygen PATH`."),
    ]
    data_dir: Annotated[
        _Path,
        Field(description="Where the ledger and everything that must survive a restart is kept."),
    ] = platformdirs.user_data_path("iemas") / "node"
    genesis: Annotated[
        Annotated[_Path, AfterValidator(_check_file)] | None,
        Field(description="The market's genesis file; by default fetched from --bootstrap."),
    ] = None
    bootstrap: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_split_commas),
        AfterValidator(_check_bootstrap),
        Field(
            description="Public addresses nodeid@host:port of nodes to join by; give it several "
            "times, in the environment separated by commas."
        ),
    ] = ()
    full_history: Annotated[
        bool,
        Field(
            description="When far behind, fetch every block, not a snapshot and the last blocks."
        ),
    ] = False

    public_listen: Annotated[
        _Listen, Field(description="host:port for joining nodes and requesters; port 0: any.")
    ] = "127.0.0.1:7470"
    peer_listen: Annotated[
        _Listen, Field(description="host:port for the other members; port 0: any.")
    ] = "127.0.0.1:7471"
    public_address: Annotated[
        _Advertised | None,
        Field(description="host:port where requesters reach --public-listen, if it differs."),
    ] = None
    peer_address: Annotated[
        _Advertised | None,
        Field(description="host:port where members reach --peer-listen, if it differs."),
    ] = None

    backend: Annotated[
        Annotated[str, AfterValidator(_check_url)] | None,
        Field(description="URL of the inference server that this node sells; none: sells nothing."),
    ] = None
    backend_kind: Annotated[
        BackendKind,
        Field(description="What it is: vllm (default), openai_compatible or simulated."),
    ] = BackendKind.NONE
    kv_events_endpoint: Annotated[
        _Endpoint | None,
        Field(description="ZMQ endpoint of the backend's KV events; none: estimated digest."),
    ] = None
    kv_replay_endpoint: Annotated[
        _Endpoint | None,
        Field(description="ZMQ endpoint where missed KV events are asked for again."),
    ] = None
    require_kv_events: Annotated[
        bool, Field(description="Refuse to run on an estimated cache digest.")
    ] = False
    tokenizer_dir: Annotated[
        Annotated[_Path, AfterValidator(_check_directory)] | None,
        Field(
            description="Directory with the model's tokenizer.json, tokenizer_config.json and chat "
            "template; by default where the backend says that its model is."
        ),
    ] = None
    model: Annotated[
        str | None, Field(description="Served model's name, if the backend serves several.")
    ] = None
    hub: Annotated[
        str | None, Field(description="Hub to sell in; by default the one that genesis names.")
    ] = None
    context_tokens: Annotated[
        int | None,
        Field(
            ge=2,
            description="The backend's context length; only an openai_compatible one needs it.",
        ),
    ] = None
    slots: Annotated[
        int, Field(ge=1, le=65_536, description="How many tasks the backend serves at once.")
    ] = 4

    ask_prompt_micros_per_mtok: Annotated[
        _Price, Field(description="Ask per million computed prompt tokens, in micro-credits.")
    ] = 100_000
    ask_cached_micros_per_mtok: Annotated[
        _Price, Field(description="Ask per million cached prompt tokens, in micro-credits.")
    ] = 10_000
    ask_output_micros_per_mtok: Annotated[
        _Price, Field(description="Ask per million output tokens, in micro-credits.")
    ] = 400_000

    metrics_listen: Annotated[
        _Listen | None, Field(description="host:port for Prometheus metrics; none: not served.")
    ] = None
    log_level: Annotated[
        LogLevel, Field(description="Least severity to log: debug, info, warning, error.")
    ] = LogLevel.INFO
    log_format: Annotated[
        LogFormat, Field(description="Log lines as json, or for reading on a console.")
    ] = LogFormat.JSON

    @property
    def sells(self) -> bool:
        """Whether the node has a backend to sell."""
        return self.backend is not None

    @property
    def ask(self) -> Prices:
        """The ask's three prices."""
        return Prices(
            self.ask_prompt_micros_per_mtok,
            self.ask_cached_micros_per_mtok,
            self.ask_output_micros_per_mtok,
        )

    @property
    def hub_id(self) -> HubId | None:
        """The hub override, if there is one."""
        return HubId(self.hub) if self.hub else None

    @model_validator(mode="before")
    @classmethod
    def _default_backend_kind(cls, values: dict[str, Any]) -> dict[str, Any]:
        kind = BackendKind.VLLM if values.get("backend") else BackendKind.NONE
        return {"backend_kind": kind, **values}

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.backend is None and self.backend_kind is not BackendKind.NONE:
            raise _conflict("backend", "--backend-kind is given, but no --backend: add its URL")
        if self.backend is not None and self.backend_kind is BackendKind.NONE:
            raise _conflict("backend_kind", "--backend is given: name its kind, or drop --backend")
        if self.require_kv_events and self.sells and self.kv_events_endpoint is None:
            raise _conflict(
                "kv_events_endpoint", "--require-kv-events is on: give the backend's endpoint"
            )
        if self.kv_replay_endpoint is not None and self.kv_events_endpoint is None:
            raise _conflict("kv_events_endpoint", "--kv-replay-endpoint needs it: give it too")
        for listen, address in (
            ("public_listen", "public_address"),
            ("peer_listen", "peer_address"),
        ):
            host, _ = split_host_port(getattr(self, listen))
            if host in {"0.0.0.0", "::", "*"} and getattr(self, address) is None:  # noqa: S104
                raise _conflict(
                    address,
                    f"{get_flag(listen)} is every interface: say which "
                    "host:port others should dial",
                )
        return self


def _conflict(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", "{text}", {"field": field, "text": text})


def get_flag(field: str) -> str:
    """Give a field's flag."""
    return "--" + field.replace("_", "-")


def get_variable(field: str) -> str:
    """Give a field's environment variable."""
    return ENV_PREFIX + field.upper()


def load_settings(
    config_file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> NodeSettings:
    """Read the settings: `flags` (those that were given), environment, `config_file`, defaults.

    Raises: ConfigurationError that names every wrong key by flag, variable and file key.
    """
    if config_file is None and os.environ.get(CONFIG_VARIABLE):
        config_file = Path(os.environ[CONFIG_VARIABLE]).expanduser()
    values = _read_file(config_file) if config_file is not None else {}
    _check_variables(os.environ)

    class Settings(NodeSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            return init_settings, env_settings, InitSettingsSource(settings_cls, values)

    try:
        return Settings(**dict(flags or {}))
    except ValidationError as error:
        raise ConfigurationError(_describe(error)) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:  # a key of many parts costs the parser their square
            raise ConfigurationError(f"{path} is larger than {MAX_FILE_BYTES} bytes", path=path)
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the configuration file {path} ({error.strerror}): check --config or "
            f"{CONFIG_VARIABLE}",
            path=path,
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, no TOML, a number without end
        raise ConfigurationError(f"{path} is not valid TOML: {error}", path=path) from error
    for name in values:
        if name not in NodeSettings.model_fields:
            raise ConfigurationError(
                f"{path} has an unknown key `{name}`{_suggest(name, NodeSettings.model_fields)}",
                path=path,
                key=name,
            )
    return values


def _check_variables(environment: Mapping[str, str]) -> None:
    known = {get_variable(field) for field in NodeSettings.model_fields} | {CONFIG_VARIABLE}
    for name in sorted(environment):
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            raise ConfigurationError(
                f"the environment has an unknown setting {name}{_suggest(name, known)}", key=name
            )


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ": remove it"


def _describe(error: ValidationError) -> str:
    """Write one clause a wrong key: its three names, and what is wrong with the value."""
    clauses = []
    for detail in error.errors():
        field = str(detail.get("ctx", {}).get("field") or (detail["loc"] or ("",))[0])
        names = f"{get_flag(field)} ({get_variable(field)}, `{field}` in the file)"
        if detail["type"] == "missing":
            hint = NodeSettings.model_fields[field].description or ""
            clauses.append(f"{names} is not set: {hint[:1].lower()}{hint[1:].rstrip('.')}")
        elif detail["type"] == "extra_forbidden":
            clauses.append(f"there is no setting {get_flag(field)}")
        else:
            text = detail["msg"].removeprefix("Value error, ")
            clauses.append(f"{names}: {text[:1].lower()}{text[1:]}")
    return "; ".join(clauses)
