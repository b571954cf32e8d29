"""Sealed asks: what a provider commits to before an ask epoch, and opens at its start.

Source: design §6; docs/spec/ledger.md §9.
"""

from __future__ import annotations

from iemas.core.encoding import compute_hash, encode_canonical
from iemas.core.types import Hash, HubId, NodeId, Prices

DOMAIN = b"iemas.v1.AskCommitment"
SALT_BYTES = 32


def compute_ask_commitment(
    chain_id: str, hub: HubId, epoch: int, node: NodeId, prices: Prices, *, salt: bytes
) -> Hash:
    """Hash an ask so that it is fixed and hidden; bound to chain, hub, epoch and node.

    salt: 32 random bytes, without which prices could be guessed and tried.
    """
    components = (
        prices.prompt_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.output_micros_per_mtok,
    )
    return compute_hash(DOMAIN, encode_canonical((chain_id, hub, epoch, node, components)), salt)


def compute_ask_ratio(prices: Prices) -> int:
    """Give the ratio of the highest to the lowest component, rounded up."""
    components = (
        prices.prompt_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.output_micros_per_mtok,
    )
    return -(-max(components) // min(components))
