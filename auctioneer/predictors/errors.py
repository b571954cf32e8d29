"""What a predictor refuses to learn from, and rounds that are predicted from something else."""

from __future__ import annotations

from iemas.core.errors import InvalidInputError, InvalidReceiptError, InvalidTranscriptError


class UnusableReceiptError(InvalidReceiptError):
    """A receipt's measurements contradict each other; `field` names what is wrong."""


class WrongModelError(InvalidTranscriptError):
    """A round was cleared under another QoS model than the ledger names for its term."""


class ModelRefusedError(InvalidInputError):
    """A proposed QoS model is not what this node would have said, nor near to it."""
