"""How a command of `iemas` reaches a market, and with which key it pays.

Either the market is named (``--market nodeid@host:port --key FILE``), or it is a local one, whose
folder knows both.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from iemas.client import AsyncClient, BidOptions
from iemas.core.errors import ConfigurationError
from iemas.core.identity import Identity
from iemas.keystore import load_key
from node.local_market import MarketHome
from node.local_market.home import get_default_home
from node.local_market.plan import CUSTOMER

DEFAULT_NAME = "local"

NameOption = Annotated[str, typer.Option("--name", help="Which local market.")]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The local market's folder, instead of --name.", show_default=False
    ),
]
MarketOption = Annotated[
    list[str] | None,
    typer.Option(
        "--market",
        metavar="NODEID@HOST:PORT",
        help="A node of a market elsewhere; can be repeated. Needs --key to pay.",
        show_default=False,
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key", help="Key file of the account that pays (`iemas-node keygen FILE`).",
        show_default=False,
    ),
]  # fmt: skip
AccountOption = Annotated[
    str | None,
    typer.Option(
        "--account",
        help=f"Which account of the local market pays. [default: {CUSTOMER}]",
        show_default=False,
    ),
]
NodeOption = Annotated[
    str | None,
    typer.Option(
        "--node",
        help="Act as this node of the local market, with its key (`iemas market status`).",
        show_default=False,
    ),
]
GenesisOption = Annotated[
    Path | None,
    typer.Option(
        "--genesis",
        help="The genesis file of a market elsewhere, to prove answers from; else the first "
        "node's is believed.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Access:
    """A market's addresses, the paying key, and the names that a local market gives its nodes."""

    bootstrap: tuple[str, ...]
    identity: Identity
    home: MarketHome | None
    names: dict[str, str]
    label: str = ""
    genesis: Path | None = None

    def connect(self, bid: BidOptions | None = None) -> AsyncClient:
        """Make a client of this market; a local one's folder has its genesis."""
        return AsyncClient(
            self.bootstrap,
            key=self.identity,
            bid=bid,
            genesis=self.genesis,
            state_dir=None if self.home is None else self.home.trusted_dir,
        )

    def get_name(self, node_id: str) -> str:
        """Name a node: as the local market calls it, else by the first digits of its id."""
        return self.names.get(node_id, node_id[:10])


def find_home(name: str, home: Path | None) -> MarketHome:
    """Give a local market's folder. Raises: ConfigurationError for a name that is a path."""
    if home is None and (not name or Path(name).name != name):
        raise ConfigurationError(f"--name {name!r} is no name; use --home for a folder")
    return MarketHome(home if home is not None else get_default_home(name))


def find_access(
    *,
    name: str = DEFAULT_NAME,
    home: Path | None = None,
    market: list[str] | None = None,
    key: Path | None = None,
    account: str | None = None,
    node: str | None = None,
    genesis: Path | None = None,
    pays: bool = True,
) -> Access:
    """Find the market that a command means, and its key.

    With `pays` false a market elsewhere needs no key: only questions are asked.
    Raises: ConfigurationError that says what is missing.
    """
    if node is not None and (market or key is not None):
        raise ConfigurationError(
            "--node names a node of a local market, whose folder has its key: leave out --market "
            "and --key, or give the node's key file as --key"
        )
    if account is not None and (market or key is not None or node is not None):
        raise ConfigurationError(
            "--account names an account of a local market, whose folder has its key: leave it out, "
            "or leave out --node, --market and --key"
        )
    if market:
        if key is None and pays:
            raise ConfigurationError(
                "--market needs --key FILE, the key of the account that pays; create one with "
                "`iemas-node keygen FILE`"
            )
        identity = load_key(key) if key is not None else Identity(secrets.token_bytes(32))
        return Access(tuple(market), identity, None, {}, genesis=genesis)
    folder = find_home(name, home)
    state = folder.require_state()
    names = {p.address.partition("@")[0]: p.name for p in state.processes if p.address}
    if node is not None:
        identity = _load_node(folder, node)
    else:
        identity = load_key(key) if key is not None else _load_account(folder, account or CUSTOMER)
    file = genesis or folder.genesis_file
    return Access(state.bootstrap, identity, folder, names, state.label, file)


def _load_node(folder: MarketHome, node: str) -> Identity:
    path = folder.get_node_key(node)
    data_dir = folder.get_data_dir(node)
    ran = data_dir.parent == folder.path and (data_dir / "node.db").exists()
    if ran and not path.exists():
        raise folder.describe_lost_key(path)
    if path.parent != folder.get_node_key("").parent or not path.exists():
        known = [p.stem for p in sorted(path.parent.glob("*.pem")) if "account-" not in p.stem]
        raise ConfigurationError(
            f"the market in {folder.path} has no node {node!r}; it has {', '.join(known)}"
        )
    return load_key(path)


def _load_account(folder: MarketHome, account: str) -> Identity:
    path = folder.get_account_key(account)
    if account == CUSTOMER and not path.exists():  # every market begins with this one
        raise folder.describe_lost_key(path)
    if not path.exists():
        known = sorted(p.stem.removeprefix("account-") for p in path.parent.glob("account-*.pem"))
        raise ConfigurationError(
            f"the market in {folder.path} has no account {account!r}; it has {', '.join(known)}"
        )
    return load_key(path)
