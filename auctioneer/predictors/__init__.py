"""QoS predictors: how fast and how long each provider answers, learnt from receipts. Pure."""

from auctioneer.predictors.base import Predictor
from auctioneer.predictors.errors import UnusableReceiptError
from auctioneer.predictors.linear import LinearPredictor

__all__ = ["LinearPredictor", "Predictor", "UnusableReceiptError"]
