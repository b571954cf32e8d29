"""A whole market on this machine: what `iemas market up`, the demo and the tests run.

| module | what |
|---|---|
| `plan` | what the market is made of |
| `home` | its folder: keys, genesis, and who runs it now |
| `backends` | the inference servers: simulated, real vLLM on the CPU, or given URLs |
| `market` | the supervisor of all its processes |
| `probe` | short questions to a node |
"""

from __future__ import annotations

from node.local_market.home import MarketHome, MarketState
from node.local_market.market import LocalMarket
from node.local_market.plan import BackendAddress, Funds, MarketPlan

__all__ = ["BackendAddress", "Funds", "LocalMarket", "MarketHome", "MarketPlan", "MarketState"]
