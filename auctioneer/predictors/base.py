"""What every QoS predictor can do: learn from receipts, and say what it learnt in integers.

A predictor is pure: no clock, no randomness, no I/O. Every node feeds its own with the receipts
that it sees, proposes a model from it when it is its turn, and judges by it what others propose
(`agreement`). Rounds use the quantised model that the validators decided, and nothing else.
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

    def quantise_prior(self) -> ProviderQos:
        """Give what is predicted of a provider never met; `samples` counts the hub's receipts."""

    def list_known(self) -> tuple[NodeId, ...]:
        """List the providers that it has receipts of, in the order of their ids."""

    def quantise_scenarios(self) -> tuple[Scenario, ...]:
        """Give the joint distribution of lengths and times of the hub's tasks."""
