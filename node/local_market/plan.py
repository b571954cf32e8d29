"""What a local market is made of: how many nodes, on which backends, by which parameters.

The plan is kept in the market's folder, so that a market that was taken down comes up as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from iemas.core.errors import ConfigurationError, MalformedMessageError
from iemas.core.params import MarketParams
from iemas.core.types import MICROS_PER_CREDIT
from iemas.files import write_atomically

SIMULATED: Final = "simulated"
VLLM_CPU: Final = "vllm-cpu"
SIMULATED_LABEL: Final = "simulated backend, for tests only"
CUSTOMER: Final = "customer"
MAX_NODES: Final = 16
MIN_VALIDATORS: Final = 4
"""The least number of validators of which one may fail: n = 3f + 1 with f = 1."""


class Funds(msgspec.Struct, frozen=True):
    """What an account starts with, in micro-credits."""

    available_micros: int = 50 * MICROS_PER_CREDIT
    escrow_micros: int = 50 * MICROS_PER_CREDIT


class BackendAddress(msgspec.Struct, frozen=True):
    """An inference server that runs already, and where it publishes its KV events, if it does."""

    url: str
    kv_events: str | None = None
    kv_replay: str | None = None


class MarketPlan(msgspec.Struct, frozen=True):
    """A local market: `nodes` providers, all of them validators.

    Where they are fewer than `validators`, further ones that sell nothing bring them up to it: with
    4, any one may fail and the ledger goes on. 1 is enough for development.

    `backend` is "simulated", "vllm-cpu" or "url"; with "url", node n sells what `addresses[n]`
    serves. `accounts` are customers by name; each has its key file in the market's folder.
    `base_port` 0 takes free ports; else the first process listens there and each next one two
    ports further. `simulated_arguments` go to the simulated servers, `torch_index` to vLLM's
    installation.
    """

    name: str = "local"
    nodes: int = 3
    validators: int = MIN_VALIDATORS
    backend: str = SIMULATED
    addresses: tuple[BackendAddress, ...] = ()
    params: dict[str, str] = {}
    accounts: dict[str, Funds] = msgspec.field(default_factory=lambda: {CUSTOMER: Funds()})
    base_port: int = 0
    model: str | None = None
    simulated_arguments: tuple[str, ...] = ()
    torch_index: str | None = None
    cache_dir: str | None = None

    def validate(self) -> None:
        """Refuse a plan that cannot work. Raises: ConfigurationError naming what to change."""
        if not 1 <= self.nodes <= MAX_NODES:
            raise ConfigurationError(f"--nodes must be in 1..{MAX_NODES}, got {self.nodes}")
        if self.backend == "url" and len(self.addresses) != self.nodes:
            raise ConfigurationError(
                f"{self.nodes} nodes need {self.nodes} backends, {len(self.addresses)} URLs were "
                "given: repeat --backend URL once a node, or set --nodes"
            )
        if not 1 <= self.validators <= MAX_NODES:
            raise ConfigurationError(
                f"--validators must be in 1..{MAX_NODES}, got {self.validators}"
            )
        if self.ports and not 1024 <= self.ports[0] <= self.ports[-1] < 65_536:
            raise ConfigurationError(
                f"--base-port {self.base_port} leaves no room for the nodes: choose one in "
                f"1024..{65_536 - len(self.ports)}, or 0 for free ones"
            )
        parse_params(self.params)

    @property
    def seller_names(self) -> list[str]:
        """The names of the nodes that sell."""
        return [f"node-{number}" for number in range(1, self.nodes + 1)]

    @property
    def names(self) -> list[str]:
        """The names of all nodes: those that sell, then those that only vote."""
        extra = max(0, self.validators - self.nodes)
        return self.seller_names + [f"validator-{number}" for number in range(1, extra + 1)]

    @property
    def ports(self) -> range:
        """The ports that the nodes take, two each; none if they take free ones."""
        first = self.base_port
        return range(first, first + 2 * len(self.names)) if first else range(0)

    @property
    def label(self) -> str:
        """How the market's backends are called wherever they are shown."""
        if self.backend == SIMULATED:
            return SIMULATED_LABEL
        return "vLLM on this CPU" if self.backend == VLLM_CPU else "inference servers by URL"


def parse_params(given: Mapping[str, str]) -> MarketParams:
    """Read market parameters from text. Raises: ConfigurationError naming the wrong one."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(MarketParams)}
    values: dict[str, object] = {}
    for name, text in given.items():
        if name not in kinds:
            known = ", ".join(sorted(kinds))
            raise ConfigurationError(f"there is no market parameter {name!r}; there are {known}")
        values[name] = _parse_value(name, text, kinds[name])
    try:
        return MarketParams(**values)  # type: ignore[arg-type]
    except MalformedMessageError as error:
        raise ConfigurationError(f"--param: {error}") from error


def _parse_value(name: str, text: str, kind: type) -> object:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigurationError(f"--param {name} is true or false, got {text!r}")
        return text.lower() == "true"
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigurationError(f"--param {name} is a whole number, got {text!r}") from None
    return text


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """Read ``key=value`` texts. Raises: ConfigurationError for one without "="."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--param takes key=value, got {text!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def load_plan(path: Path) -> MarketPlan:
    """Read a kept plan. Raises: ConfigurationError if the file is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=MarketPlan)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is no market plan ({error}): delete that file, and give `iemas market up` "
            "--backend, --nodes and --validators again as when the market was created"
        ) from error


def save_plan(path: Path, plan: MarketPlan) -> None:
    """Keep a plan, readable by its owner only."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(plan), indent=2))
