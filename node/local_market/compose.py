"""Preparing a market whose processes run elsewhere: one container a node, for example.

``python -m node.local_market.compose FOLDER`` creates, once, what `LocalMarket` would: keys and
genesis; and for each process a TOML file with its settings, so that a container needs nothing but
the folder and its own name. What is there already stays as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from iemas.core.errors import IemasError
from node.local_market.home import MarketHome
from node.local_market.plan import MIN_VALIDATORS, MarketPlan, parse_assignments

PUBLIC_PORT: Final = 7470
PEER_PORT: Final = 7480


def prepare(
    home: MarketHome, plan: MarketPlan, model: str, public_host: str, data_dir: Path
) -> list[str]:
    """Create keys, genesis and settings; give the processes' names.

    Process n is called as in the plan and reaches the others by these names; requesters reach it
    at `public_host`, port 7470 + n. Its settings are in ``NAME.toml``, its address for its own
    health check in ``NAME.address``, the address for requesters in ``NAME.public``.
    Raises: ConfigurationError if the folder holds another market.
    """
    genesis = home.create(plan, model)
    names = plan.names
    ids = [validator.node_id for validator in genesis.validators]
    addresses = {
        name: f"{node_id.hex()}@{name}:{PUBLIC_PORT + index}"
        for index, (name, node_id) in enumerate(zip(names, ids, strict=True))
    }
    for index, (name, node_id) in enumerate(zip(names, ids, strict=True)):
        port = PUBLIC_PORT + index
        settings = {
            "key_file": str(home.get_node_key(name)),
            "data_dir": str(data_dir),
            "genesis": str(home.genesis_file),
            "public_listen": f"0.0.0.0:{port}",
            "peer_listen": f"0.0.0.0:{PEER_PORT}",
            "public_address": f"{public_host}:{port}",
            "peer_address": f"{name}:{PEER_PORT}",
        }
        lines = [f'{key} = "{value}"' for key, value in settings.items()]
        others = [f'"{address}"' for other, address in addresses.items() if other != name]
        lines.append(f"bootstrap = [{', '.join(others)}]")
        (home.path / f"{name}.toml").write_text("\n".join(lines) + "\n")
        (home.path / f"{name}.address").write_text(f"{node_id.hex()}@127.0.0.1:{port}\n")
        (home.path / f"{name}.public").write_text(f"{node_id.hex()}@{public_host}:{port}\n")
    return names


def main() -> None:
    """Prepare a folder."""
    parser = argparse.ArgumentParser(prog="python -m node.local_market.compose")
    parser.add_argument("home", type=Path)
    parser.add_argument("--name", default="compose")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--validators", type=int, default=MIN_VALIDATORS)
    parser.add_argument("--model", default="simulated", help="the model that the nodes sell")
    parser.add_argument("--public-host", default="127.0.0.1", help="where requesters reach nodes")
    parser.add_argument("--data-dir", type=Path, default=Path("/data"))
    parser.add_argument("--param", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    home = MarketHome(chosen.home)
    try:
        params = parse_assignments(chosen.param)
        plan = MarketPlan(
            name=chosen.name, nodes=chosen.nodes, validators=chosen.validators, params=params
        )
        names = prepare(home, plan, chosen.model, chosen.public_host, chosen.data_dir)
    except IemasError as error:
        sys.exit(f"error: {error}")
    for name in names:
        address = (home.path / f"{name}.public").read_text().strip()
        sys.stdout.write(f"{name}: --market {address}\n")


if __name__ == "__main__":
    main()
