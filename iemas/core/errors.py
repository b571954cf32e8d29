"""The error tree of the project: what went wrong, by the rule that was broken.

Errors carry their operands as attributes, so that a caller can act on them without parsing text,
and the text names what to do. In the replicated ledger a refusal is a recorded result
(`iemas.ledger.transaction.ResultCode`), never an exception. ``grpc.RpcError`` never reaches a
user: it is kept as ``__cause__``.
"""

from __future__ import annotations


class IemasError(Exception):
    """Base of every error that IEMAS raises on purpose."""

    def __init__(self, message: str = "", **operands: object) -> None:
        super().__init__(message or type(self).__doc__ or type(self).__name__)
        self.operands = operands
        for name, value in operands.items():
            setattr(self, name, value)


class ConfigurationError(IemasError):
    """A setting, key file or genesis file is wrong; the message names the key and the fix."""


class InternalError(IemasError):
    """An invariant broke: our bug. The node stops rather than continue."""


class LocalProtocolError(IemasError):
    """Our caller used a component in a way its state does not allow."""


class RemoteProtocolError(IemasError):
    """A peer sent something that no correct peer sends; the peer is scored."""


# --- a rule refused an input -------------------------------------------------------------------


class InvalidInputError(IemasError):
    """A rule refused the input."""


class MalformedMessageError(InvalidInputError):
    """The bytes do not decode to a message within its documented ranges."""


class OversizedMessageError(MalformedMessageError):
    """The message has more bytes than its sender may send at once."""


class FloodError(InvalidInputError):
    """The peer sends more messages than anyone needs; they wait until its next second."""


class OutOfHeightError(InvalidInputError):
    """The message is of a height that is decided, or too far ahead to be kept."""


class PeerDisconnectedError(InvalidInputError):
    """A peer of which too much was refused is not listened to for a while."""


class InvalidSignatureError(InvalidInputError):
    """The signature does not cover these bytes under this signer, domain and chain."""


class InvalidReportError(InvalidInputError):
    """A signed report was refused."""


class StaleReportError(InvalidReportError):
    """The report is older than one already held, or past its time to live."""


class ReplayedReportError(InvalidReportError):
    """The very same report is already held."""


class FutureReportError(InvalidReportError):
    """The report is dated later than clock tolerance allows."""


class UnknownSignerError(InvalidReportError):
    """No capability report of the signer is held, so its other reports mean nothing yet."""


class WrongSignerError(InvalidReportError):
    """The report speaks of a node other than its signer."""


class NoRoomForReportError(InvalidReportError):
    """The large reports held here leave no room for this one; smaller ones are taken."""


class ContradictoryReportError(InvalidReportError):
    """Two different reports carry the same incarnation and sequence."""


class InvalidTransactionError(InvalidInputError):
    """A ledger transaction was refused before it could be ordered."""


class InsufficientBalanceError(InvalidTransactionError):
    """The account does not hold what the operation needs; fund it and retry."""


class NonceMismatchError(InvalidTransactionError):
    """The nonce is not above the account's last one."""


class InvalidBidError(InvalidInputError):
    """A bid was refused before it entered a round."""


class UnfundedBidError(InvalidBidError):
    """The bid's reservation exceeds what is left of the account's allowance in this term."""


class DuplicateBidError(InvalidBidError):
    """The (account, channel, nonce) of the bid was used before in this term."""


class UnknownAccountError(InvalidInputError):
    """The ledger holds no such account; fund it by a transfer first."""


class UnknownTransactionError(InvalidInputError):
    """No node that was asked has the transaction: it was never recorded, or too long ago."""


class InvalidAllocationError(InvalidInputError):
    """An allocation does not hold: wrong signer, term, provider, expiry or bid."""


class InvalidReceiptError(InvalidInputError):
    """A receipt or its acknowledgement does not match what was delivered or agreed."""


class InvalidTranscriptError(InvalidInputError):
    """A round's transcript does not re-check."""


class InvalidBlockError(InvalidInputError):
    """A block does not extend the ledger by its rules."""


class UntrustedBlockError(InvalidBlockError):
    """Too little of the trusted validators' power signed the block; check one in between first."""


class InvalidSnapshotError(InvalidInputError):
    """A snapshot, or a part of it, is not the state that the validators signed."""


class InvalidProofError(InvalidInputError):
    """A proof does not lead from what it claims to the trusted state root."""


class NotAuctioneerError(InvalidInputError):
    """Another node is the auctioneer of the term; `hint` names it if it is known."""


class LeaseExpiredError(NotAuctioneerError):
    """The auctioneer hears no quorum and signs nothing until it does: bid elsewhere."""


class ProviderBusyError(InvalidInputError):
    """The provider is over capacity and said so under its signature."""


class QuorumUnavailableError(IemasError):
    """Not enough validators answer to go on."""


class BackendError(IemasError):
    """The inference server behind a node failed or answered nonsense."""


class TrustExpiredError(IemasError):
    """What a light client trusts is too old: its validators may have left with their stake."""


class LedgerForkError(IemasError):
    """Two different blocks of one height are decided: `first` and `second` prove it.

    `double_votes` are pairs of votes that their signers can be slashed for.
    """


# --- SDK ---------------------------------------------------------------------------------------


class APIError(IemasError):
    """Base of what the SDK raises for a failed call."""

    retryable = False


class APIConnectionError(APIError):
    """No node of the market could be reached."""

    retryable = True


class APITimeoutError(APIConnectionError):
    """The market did not answer within the deadline."""


class UnconfirmedTransactionError(APITimeoutError):
    """A transaction was sent and its fate is unknown; look `transaction` up before repeating it."""

    retryable = False


class UnverifiedAnswerError(APIError):
    """No node proved what was asked; `field` names what did not hold."""


class UnverifiedBalanceError(UnverifiedAnswerError):
    """No node proved the balance; `field` names what did not hold."""


class UnverifiedSettlementError(UnverifiedAnswerError):
    """No node proved the settlement; `field` names what did not hold."""


class UnverifiedTransactionError(UnverifiedAnswerError):
    """No node proved the transaction; `field` names what did not hold."""


class UnverifiedStateError(UnverifiedAnswerError):
    """No node proved the tables of the ledger's state; `field` names what did not hold."""


class TrustFileError(InvalidInputError):
    """The file of a client's last verified header is damaged, or another chain's."""


class APIStatusError(APIError):
    """The market answered with a refusal; `code` is its name."""


class BadRequestError(APIStatusError):
    """The request itself is wrong; sending it again will not help."""


class ModelNotFoundError(BadRequestError):
    """No node of the market serves this model."""


class PromptTooLongError(BadRequestError):
    """Prompt and `max_tokens` exceed every node's context length."""


class InsufficientFundsError(APIStatusError):
    """The account's allowance cannot cover the request; add escrow or lower the bid."""


class UnmatchedError(APIStatusError):
    """No provider was matched; `price_to_beat_micros` tells what it would have taken."""

    retryable = True


class ProviderFailedError(APIStatusError):
    """The winning provider failed; `text` and `receipt` hold what was streamed until then."""

    retryable = True
