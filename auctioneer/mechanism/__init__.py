"""The mechanism: matching, prices and certificate of one round. Pure and exact.

`clear(welfare, slots, mode=…)` computes a round's `Clearing`, `verify` checks one without a
solver; `compute_valuation` makes the welfare matrix from bids, asks, reports and the QoS model,
and `compute_rates` turns a price into the rates that are settled on outcome.
What must hold is in docs/spec/auction.md.
"""

from auctioneer.mechanism.certificate import verify
from auctioneer.mechanism.clearing import (
    Certificate,
    Clearing,
    clear,
    decode_clearing,
    encode_clearing,
)

__all__ = [
    "Certificate",
    "Clearing",
    "clear",
    "decode_clearing",
    "encode_clearing",
    "verify",
]
