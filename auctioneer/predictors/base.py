"""What every QoS predictor can do: learn from receipts, and say what it learnt in integers.

A predictor is pure: no clock, no randomness, no I/O. Every node feeds its own with the receipts
that it sees, so the next auctioneer is warm when its term begins. A round uses only the quantised
coefficients, which travel in its transcript.
"""

from __future__ import annotations

from typing import Protocol

from iemas.core.auction import ProviderQos, Scenario
from iemas.core.execution import Receipt
from iemas.core.types import NodeId


class Predictor(Protocol):
    """Learns one hub's providers."""

    def learn_one(self, receipt: Receipt, *, max_tokens: int) -> None:
        """Learn from a task's last receipt.

        max_tokens: the bound on its output that the task was allocated with.
        Raises: UnusableReceiptError; nothing is learnt then.
        """

    def quantise(self, provider: NodeId) -> ProviderQos:
        """Give the model of a provider, known or not, in the integers that a round uses."""

    def quantise_scenarios(self) -> tuple[Scenario, ...]:
        """Give the joint distribution of lengths and times of the hub's tasks."""
