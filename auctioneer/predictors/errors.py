"""What a predictor refuses to learn from."""

from __future__ import annotations

from iemas.core.errors import InvalidReceiptError


class UnusableReceiptError(InvalidReceiptError):
    """A receipt's measurements contradict each other; `field` names what is wrong."""
