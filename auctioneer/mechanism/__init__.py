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
from auctioneer.mechanism.gains import CandidateWelfare
from auctioneer.mechanism.valuation import (
    Offer,
    Prediction,
    Valuation,
    compute_rates,
    compute_valuation,
    predict,
)

__all__ = [
    "CandidateWelfare",
    "Certificate",
    "Clearing",
    "Offer",
    "Prediction",
    "Valuation",
    "clear",
    "compute_rates",
    "compute_valuation",
    "decode_clearing",
    "encode_clearing",
    "predict",
    "verify",
]
