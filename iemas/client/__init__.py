"""The requester's side: pure machines that bid and meter, and the SDK that drives them.

`AsyncClient` and `Client` are loaded on first use (PEP 562), so that a simulation can use the pure
machines of `iemas.client._base` without loading gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iemas.client._aio import AsyncClient
    from iemas.client._options import BidOptions
    from iemas.client._sync import Client

_EXPORTS = {
    "AsyncClient": "iemas.client._aio",
    "BidOptions": "iemas.client._options",
    "Client": "iemas.client._sync",
}

__all__ = ["AsyncClient", "BidOptions", "Client"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
