"""What validators that are a block ahead say, kept until this one is there too.

Source: docs/spec/engine.md E25.
"""

from __future__ import annotations

from iemas.consensus.messages import ProposalNotice, VoteNotice
from iemas.consensus.voting import Proposal, Vote
from iemas.core.envelope import Signed
from iemas.core.types import NodeId

MAX_EARLY_MESSAGES = 8
"""How many messages of the next height are kept of each validator."""


class EarlyMessages:
    """Proposals and votes of the height after the one being decided, by sender."""

    def __init__(self) -> None:
        self._kept: dict[NodeId, list[ProposalNotice | VoteNotice]] = {}

    def keep(self, sender: NodeId, message: ProposalNotice | VoteNotice) -> None:
        """Keep a message, but no second block of a sender, and not too many."""
        kept = self._kept.setdefault(sender, [])
        is_second_block = isinstance(message, ProposalNotice) and any(
            isinstance(other, ProposalNotice) for other in kept
        )
        if len(kept) < MAX_EARLY_MESSAGES and not is_second_block:
            kept.append(message)

    def list_of(self, sender: NodeId) -> tuple[ProposalNotice | VoteNotice, ...]:
        """List what is kept of a sender."""
        return tuple(self._kept.get(sender, ()))

    def list_statements(
        self, signer: NodeId
    ) -> tuple[tuple[Signed[Vote], ...], tuple[Signed[Proposal], ...]]:
        """List the votes and proposals that a validator sent of its own."""
        kept = self.list_of(signer)
        votes = [v for message in kept if isinstance(message, VoteNotice) for v in message.votes]
        proposals = [message.proposal for message in kept if isinstance(message, ProposalNotice)]
        return (
            tuple(vote for vote in votes if vote.signer_id == signer),
            tuple(proposal for proposal in proposals if proposal.signer_id == signer),
        )

    def take(self) -> list[tuple[NodeId, ProposalNotice | VoteNotice]]:
        """Give all that was kept, senders in id order."""
        taken, self._kept = self._kept, {}
        return [(sender, message) for sender in sorted(taken) for message in taken[sender]]
