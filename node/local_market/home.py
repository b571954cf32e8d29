"""The folder of a local market: keys, genesis, a data folder a node, and who runs it now.

``plan.json``, ``genesis.json`` and the keys last as long as the folder; ``market.json`` exists
while the market runs. A lock on ``market.lock`` says whether it does: the kernel frees it however
the supervisor ends, so no stale file can keep a market from starting.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from iemas.core.errors import ConfigurationError
from iemas.core.identity import Identity
from iemas.core.params import Genesis, GenesisAccount, GenesisValidator
from iemas.core.types import MICROS_PER_CREDIT, AccountId, HubId
from iemas.files import naming_os_errors
from iemas.genesis import load_genesis, save_genesis
from iemas.keystore import generate_key, load_key
from node.local_market.plan import MarketPlan, load_plan, parse_params

LOCK_FILE: Final = "market.lock"
SUPERVISOR_LOG: Final = "supervisor.log"
ANOTHER_HOME: Final = "choose another folder with --home"
_NODE = r"(node|validator)-\d+"
_FOLDERS = re.compile(rf"keys|trusted|tokenizer|{_NODE}")
_FILES = re.compile(
    r"(genesis|plan|market)\.json|market\.(lock|tmp)|supervisor\.log|(backend|vllm)-\d+\.log"
    r"|\.plan\.json-\w+"
    rf"|keys/({_NODE}|account-[^/]+)\.pem"
    r"|trusted/([0-9a-f]{64}|\.[0-9a-f]{32}-\w+)"
    r"|tokenizer/(tokenizer|tokenizer_config)\.json|tokenizer/chat_template\.jinja"
    rf"|{_NODE}/(node\.(log|db(-wal|-shm|-journal|\.lock)?)|ready\.(json|tmp))"
    rf"|{_NODE}/(genesis\.json|\.(genesis|ready)\.json-\w+)"
    rf"|{_NODE}\.(toml|address|public)"
)
"""All that a market, or what `node.local_market.compose` prepares, writes into its folder."""

STAKE_MICROS: Final = 100 * MICROS_PER_CREDIT


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process of a running market. `start_ticks` tells it from a later one with its pid."""

    name: str
    role: str
    pid: int
    start_ticks: int
    address: str = ""
    url: str = ""


class MarketState(msgspec.Struct, frozen=True):
    """A market that runs: its supervisor, its processes, and how to reach it."""

    name: str
    label: str
    model: str
    backend: str
    started_at_ms: int
    supervisor: ProcessRecord
    processes: tuple[ProcessRecord, ...] = ()
    bootstrap: tuple[str, ...] = ()


def get_default_home(name: str) -> Path:
    """Give the folder of the market of this name in the user's data folder."""
    return platformdirs.user_data_path("iemas") / "markets" / name


def get_start_ticks(pid: int) -> int:
    """Give when a process started, in the kernel's ticks since boot; 0 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the program's name in brackets and may hold anything.
    return int(stat.rpartition(")")[2].split()[19])


def make_record(
    name: str, role: str, pid: int, *, address: str = "", url: str = ""
) -> ProcessRecord:
    """Describe a process that runs now."""
    return ProcessRecord(name, role, pid, get_start_ticks(pid), address, url)


def is_alive(process: ProcessRecord) -> bool:
    """Tell whether this very process still runs."""
    ticks = get_start_ticks(process.pid)
    return ticks != 0 and ticks == process.start_ticks


class MarketHome:
    """One market's folder and what lies where in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    @property
    def genesis_file(self) -> Path:
        """The chain's first facts, the same on every node."""
        return self.path / "genesis.json"

    @property
    def plan_file(self) -> Path:
        """What the market is made of."""
        return self.path / "plan.json"

    @property
    def state_file(self) -> Path:
        """Who runs it now."""
        return self.path / "market.json"

    @property
    def trusted_dir(self) -> Path:
        """Where `iemas` keeps the last header that it verified."""
        return self.path / "trusted"

    @property
    def _lock_file(self) -> Path:
        return self.path / LOCK_FILE

    @property
    def exists(self) -> bool:
        """Whether a market was created here."""
        return self.genesis_file.exists()

    def get_data_dir(self, node: str) -> Path:
        """Give a node's data folder."""
        return self.path / node

    def get_node_key(self, node: str) -> Path:
        """Give a node's key file."""
        return self.path / "keys" / f"{node}.pem"

    def get_account_key(self, account: str) -> Path:
        """Give a customer's key file."""
        return self.path / "keys" / f"account-{account}.pem"

    # --- whose folder it is ----------------------------------------------------------------------

    def check_folder(self) -> None:
        """Refuse a folder that holds something else, or a market that lost its genesis.

        Raises: ConfigurationError that names the fix.
        """
        with naming_os_errors(ANOTHER_HOME):
            self._check_whose()
            self._check_genesis_is_there()

    def _check_whose(self) -> None:
        names = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        foreign = [name for name in names if not _FILES.fullmatch(name)]
        foreign = [name for name in foreign if not _FOLDERS.fullmatch(name)]
        # A detached start that failed at once leaves its log alone.
        is_market = not foreign and self.genesis_file.name in names
        if not (LOCK_FILE in names or is_market or names in ([], [SUPERVISOR_LOG])):
            raise ConfigurationError(
                f"{self.path} holds other files ({', '.join((foreign or names)[:3])}) and no "
                "market: name a new or empty folder with --home",
                home=self.path,
            )

    def _check_genesis_is_there(self) -> None:
        """Refuse to begin another chain beside the ledgers of one."""
        ledgers = sorted(self.path.glob("*/node.db"))
        if self.exists or not ledgers:
            return
        copies = [path for ledger in ledgers if (path := ledger.with_name("genesis.json")).exists()]
        fix = f"run `cp {copies[0]} {self.genesis_file}`" if copies else "restore it from a copy"
        raise ConfigurationError(
            f"{self.genesis_file} is missing, but {ledgers[0]} is a ledger of this market, and "
            f"with another genesis it would be another chain: {fix}",
            home=self.path,
        )

    def delete(self) -> list[Path]:
        """Delete what a market makes, and the folders that are empty then; give what stays.

        Raises: OSError.
        """
        folders = [one for one in sorted(self.path.iterdir()) if _FOLDERS.fullmatch(one.name)]
        folders = [one for one in folders if one.is_dir() and not one.is_symlink()]
        files = [path for folder in (*folders, self.path) for path in sorted(folder.iterdir())]
        # The lock goes last: what was cut short is still a market's folder.
        for path in sorted(files, key=lambda path: path == self._lock_file):
            if _FILES.fullmatch(path.relative_to(self.path).as_posix()) and not path.is_dir():
                path.unlink()
        for folder in (*folders, self.path):
            if not any(folder.iterdir()):
                folder.rmdir()
        return sorted(self.path.iterdir()) if self.path.exists() else []

    # --- creation ------------------------------------------------------------------------------

    def create(self, plan: MarketPlan, model: str) -> Genesis:
        """Create keys and genesis; of a market that exists already, check that it fits the plan.

        Raises: ConfigurationError naming what differs and what to do.
        """
        plan.validate()
        if self.exists:
            genesis = self.check_plan(plan)
            self._check_model(genesis, plan, model)
            return genesis
        self._check_genesis_is_there()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        genesis = self._make_genesis(plan, model)
        save_genesis(genesis, self.genesis_file)
        return genesis

    def _make_genesis(self, plan: MarketPlan, model: str) -> Genesis:
        nodes = [_get_or_generate(self.get_node_key(name)) for name in plan.names]
        params = parse_params(plan.params)
        customers = [
            GenesisAccount(
                AccountId(_get_or_generate(self.get_account_key(name)).node_id),
                funds.available_micros,
                funds.escrow_micros,
            )
            for name, funds in plan.accounts.items()
        ]
        # Who sells can change its ask before it has earned anything.
        sellers = [
            GenesisAccount(AccountId(node.node_id), params.ask_bond_micros)
            for node in nodes[: plan.nodes]
        ]
        return Genesis(
            name=plan.name,
            time_ms=time.time_ns() // 1_000_000,
            hub=HubId(model),
            model=model,
            validators=tuple(GenesisValidator(node.node_id, STAKE_MICROS) for node in nodes),
            accounts=(*customers, *sellers),
            params=params,
        )

    def check_plan(self, plan: MarketPlan) -> Genesis:
        """Refuse to run a market with other nodes than it was created with, or without their keys.

        Raises: ConfigurationError naming what differs and what to do.
        """
        genesis, _, _ = load_genesis(self.genesis_file)
        missing = [name for name in plan.names if not self.get_node_key(name).exists()]
        keys = [path.stem for path in self.get_node_key("").parent.glob("*.pem")]
        others = [name for name in keys if re.fullmatch(_NODE, name) and name not in plan.names]
        if len(genesis.validators) != len(plan.names) or (missing and others):
            accounts = {account.account for account in genesis.accounts}
            sellers = sum(AccountId(one.node_id) in accounts for one in genesis.validators)
            raise ConfigurationError(
                f"the market in {self.path} was created with other nodes than "
                f"{', '.join(plan.names)}: say --nodes {sellers} --validators "
                f"{len(genesis.validators)}, or take another --name or --home"
            )
        for name in missing:
            raise self.describe_lost_key(self.get_node_key(name))
        for name, validator in zip(plan.names, genesis.validators, strict=True):
            if load_key(self.get_node_key(name)).node_id != validator.node_id:
                raise ConfigurationError(
                    f"{self.get_node_key(name)} is not the key that {self.genesis_file} names for "
                    f"{name}: restore that key from a copy"
                )
        for name in plan.accounts:
            if not self.get_account_key(name).exists():
                raise self.describe_lost_key(self.get_account_key(name))
        return genesis

    def _check_model(self, genesis: Genesis, plan: MarketPlan, model: str) -> None:
        """Refuse to run a market as another one than it was created as."""
        fix = "take another --name or --home, or delete it with `iemas market down --delete`"
        if genesis.model != model:
            raise ConfigurationError(
                f"the market in {self.path} sells {genesis.model!r}, the backends serve {model!r}: "
                f"{fix}",
                model=model,
            )
        if plan.params and genesis.params != parse_params(plan.params):
            raise ConfigurationError(
                f"the parameters of the market in {self.path} were fixed when it was created: {fix}"
            )

    @staticmethod
    def describe_lost_key(path: Path) -> ConfigurationError:
        """Say that a key of this market is gone: no new one can stand in for it."""
        return ConfigurationError(
            f"the key file {path} is missing: restore it from a copy, as no other key can act for "
            "its node or account; without a copy, take another --name or --home for a new market",
            path=path,
        )

    # --- who runs it ---------------------------------------------------------------------------

    def acquire(self) -> None:
        """Become the supervisor.

        Raises: ConfigurationError if the market runs already, or as `check_folder`.
        """
        self.check_folder()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise self.describe_running() from None
        self._lock = lock
        self.state_file.unlink(missing_ok=True)
        os.truncate(lock, 0)
        os.write(lock, msgspec.json.encode(make_record("supervisor", "supervisor", os.getpid())))

    def describe_running(self) -> ConfigurationError:
        """Say that the market runs already, and how to bring back what of it does not."""
        state = self.read_state()
        processes = () if state is None else state.processes
        ended = [one.name for one in processes if one.pid and not is_alive(one)]
        if ended:
            return ConfigurationError(
                f"the market in {self.path} runs already, but {', '.join(ended)} ended (the logs "
                "there say why): `iemas market down`, then `iemas market up`, brings it back",
                home=self.path,
            )
        return ConfigurationError(
            f"the market in {self.path} runs already: see `iemas market status`, stop it with "
            "`iemas market down`, or take another --name",
            home=self.path,
        )

    def release(self) -> None:
        """Be the supervisor no more."""
        self.state_file.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_held(self) -> bool:
        """Tell whether a supervisor runs this market now."""
        try:
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def read_supervisor(self) -> ProcessRecord | None:
        """Give the process that runs this market now, also while it is only starting."""
        if not self.is_held():
            return None
        try:
            return msgspec.json.decode(self._lock_file.read_bytes(), type=ProcessRecord)
        except (OSError, msgspec.DecodeError):
            return None

    def write_state(self, state: MarketState) -> None:
        """Publish how to reach the running market, at once and whole."""
        partial = self.state_file.with_suffix(".tmp")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
        partial.rename(self.state_file)

    def read_state(self) -> MarketState | None:
        """Give the running market, or None if none runs or it is only starting."""
        try:
            data = self.state_file.read_bytes()
        except OSError:
            return None
        if not self.is_held():
            return None
        try:
            return msgspec.json.decode(data, type=MarketState)
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"{self.state_file} is damaged ({error}): `iemas market down`, then `iemas market "
                "up`, writes it anew"
            ) from error

    def require_state(self) -> MarketState:
        """Give the running market. Raises: ConfigurationError if none runs."""
        state = self.read_state()
        if state is not None:
            return state
        if self.is_held():
            raise ConfigurationError(f"the market in {self.path} is still starting; try again soon")
        raise ConfigurationError(
            f"no market runs in {self.path}: start one with `iemas market up`, or say which one "
            "you mean with --name, --home or --market nodeid@host:port --key FILE",
            home=self.path,
        )

    def load_kept_plan(self) -> MarketPlan | None:
        """Give the plan that this market was last started with, or None."""
        return load_plan(self.plan_file) if self.plan_file.exists() else None


def _get_or_generate(path: Path) -> Identity:
    return load_key(path) if path.exists() else generate_key(path)
