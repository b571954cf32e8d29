"""IEMAS: a peer-to-peer market for LLM inference.

What users need is here: clients, bids, errors. Names are loaded on first use (PEP 562), so that
``import iemas.core`` loads no gRPC.

>>> import iemas
>>> iemas.BidOptions(deadline_ms=2_000).deadline_ms
2000
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iemas.client._aio import AsyncClient
    from iemas.client._delivery import UnconfirmedTransactionWarning
    from iemas.client._options import BidOptions
    from iemas.client._sync import Client
    from iemas.client._trust_store import TrustFileWarning
    from iemas.core.errors import (
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        BadRequestError,
        ConfigurationError,
        IemasError,
        InsufficientBalanceError,
        InsufficientFundsError,
        LedgerForkError,
        ModelNotFoundError,
        PromptTooLongError,
        ProviderBusyError,
        ProviderFailedError,
        TrustExpiredError,
        UnconfirmedTransactionError,
        UnknownAccountError,
        UnknownTransactionError,
        UnmatchedError,
        UnverifiedAnswerError,
        UnverifiedBalanceError,
        UnverifiedSettlementError,
        UnverifiedStateError,
        UnverifiedTransactionError,
    )
    from iemas.core.identity import Identity
    from iemas.core.types import Prices

_ERRORS = (
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "BadRequestError",
    "ConfigurationError",
    "IemasError",
    "InsufficientBalanceError",
    "InsufficientFundsError",
    "LedgerForkError",
    "ModelNotFoundError",
    "PromptTooLongError",
    "ProviderBusyError",
    "ProviderFailedError",
    "TrustExpiredError",
    "UnconfirmedTransactionError",
    "UnknownAccountError",
    "UnknownTransactionError",
    "UnmatchedError",
    "UnverifiedAnswerError",
    "UnverifiedBalanceError",
    "UnverifiedSettlementError",
    "UnverifiedStateError",
    "UnverifiedTransactionError",
)
_EXPORTS = {
    "AsyncClient": "iemas.client._aio",
    "BidOptions": "iemas.client._options",
    "Client": "iemas.client._sync",
    "Identity": "iemas.core.identity",
    "Prices": "iemas.core.types",
    "TrustFileWarning": "iemas.client._trust_store",
    "UnconfirmedTransactionWarning": "iemas.client._delivery",
    **dict.fromkeys(_ERRORS, "iemas.core.errors"),
}

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "BadRequestError",
    "BidOptions",
    "Client",
    "ConfigurationError",
    "Identity",
    "IemasError",
    "InsufficientBalanceError",
    "InsufficientFundsError",
    "LedgerForkError",
    "ModelNotFoundError",
    "Prices",
    "PromptTooLongError",
    "ProviderBusyError",
    "ProviderFailedError",
    "TrustExpiredError",
    "TrustFileWarning",
    "UnconfirmedTransactionError",
    "UnconfirmedTransactionWarning",
    "UnknownAccountError",
    "UnknownTransactionError",
    "UnmatchedError",
    "UnverifiedAnswerError",
    "UnverifiedBalanceError",
    "UnverifiedSettlementError",
    "UnverifiedStateError",
    "UnverifiedTransactionError",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
