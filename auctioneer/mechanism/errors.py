"""What the mechanism refuses: inputs that break its contract, and clearings that do not hold.

Every leaf names one rule. Input errors name the argument in `argument`; a refused clearing is
evidence against whoever signed it, so its errors are `InvalidTranscriptError`.
"""

from __future__ import annotations

from iemas.core.errors import InvalidInputError, InvalidTranscriptError


class MechanismInputError(InvalidInputError):
    """An argument of the mechanism breaks its contract; `argument` names it."""


class InvalidWelfareError(MechanismInputError):
    """`welfare` must be an int64 array of shape (n_tasks, n_providers)."""


class WelfareOverflowError(MechanismInputError):
    """`welfare` is too large to be matched exactly: the tasks' best pairs sum to over 2^50."""


class InvalidCandidatesError(MechanismInputError):
    """Candidate lists must name providers in 0..n_providers − 1, none twice for a task; −1 pads."""


class InvalidSlotsError(MechanismInputError):
    """`slots` must be an int64 array of shape (n_providers,), no entry negative."""


class InvalidValuationInputError(MechanismInputError):
    """`matched_blocks` must be int64 of shape (n_tasks, n_providers), no entry negative."""


class InvalidPriceError(MechanismInputError):
    """A price must lie between 0 and the expected value of the pair."""


class UnknownModeError(MechanismInputError):
    """No clearing mode has this name."""


class InvalidClearingError(InvalidTranscriptError):
    """A clearing does not follow from its welfare matrix and slots."""


class MalformedClearingError(InvalidClearingError):
    """An array of the clearing has the wrong type, shape or range."""


class InfeasiblePairError(InvalidClearingError):
    """A task is matched to a provider at which its welfare is not positive."""


class CapacityExceededError(InvalidClearingError):
    """A provider got more tasks than it has free slots."""


class WrongWelfareError(InvalidClearingError):
    """`welfare_micros` is not the sum over the matched pairs."""


class ComplementarySlacknessError(InvalidClearingError):
    """Matching and slot prices do not prove each other optimal."""


class PriceNotLeastError(InvalidClearingError):
    """A positive slot price has no predecessor that forces it, or a price of 0 has one."""


class CyclicPredecessorsError(InvalidClearingError):
    """The predecessors run in a circle, so they force no price."""


class WrongBonusError(InvalidClearingError):
    """A bonus is not W − W_{−i}, what its provider adds to the market."""


class WrongSurchargeError(InvalidClearingError):
    """A surcharge is not what the clearing mode's rule gives."""
