"""Commits: how anyone who knows a height's validators checks that a block was decided there.

Source: docs/spec/engine.md E30 to E32.
"""

from __future__ import annotations

from iemas.consensus.messages import CommittedBlock
from iemas.consensus.validators import Validator, ValidatorSet
from iemas.consensus.voting import VoteKind
from iemas.core.envelope import verify_signed
from iemas.core.errors import InvalidBlockError, InvalidSignatureError
from iemas.core.types import NodeId, short_id
from iemas.ledger.header import Block
from iemas.ledger.state import LedgerState


def make_validators(state: LedgerState) -> ValidatorSet:
    """Make the validators of the height after a state's, with their turns: the state has both."""
    members = state.get_consensus_validators_at(state.height + 1)
    return ValidatorSet(Validator(*member, state.proposers[member.node_id]) for member in members)


def find_announcers(block: Block, validators: ValidatorSet) -> set[NodeId]:
    """Find who tells the nodes that do not vote: the block's maker and the next in id order.

    They hold more than a third of the power, so one of them is correct.
    """
    ids = [validator.node_id for validator in validators]
    start = ids.index(block.proposer) if block.proposer in validators else 0
    chosen: list[NodeId] = []
    for node_id in (*ids[start:], *ids[:start]):
        chosen.append(node_id)
        if validators.compute_power(chosen) >= validators.one_correct_power:
            break
    return set(chosen)


def verify_commit(committed: CommittedBlock, validators: ValidatorSet, chain_id: str) -> None:
    """Check that `validators` decided this block: header, its signature, and the precommits.

    What the block does to the ledger is the application's to check.

    Raises: InvalidBlockError with the height and what is wrong; InvalidSignatureError.
    """
    block, commit = committed.block, committed.commit
    header = block.header.message
    named = (commit.height, commit.block_hash) == (header.height, block.hash)
    if not named:
        raise _refuse(committed, "its commit is another block's")
    if header.validators_hash != validators.compute_hash():
        raise _refuse(committed, "it names other validators than this replica knows")
    if block.proposer not in validators:
        raise _refuse(committed, f"{short_id(block.proposer)} is no validator")
    verify_signed(block.header, chain_id)
    voters: set[NodeId] = set()
    for precommit in commit.precommits:
        vote, voter = precommit.message, precommit.signer_id
        place = (vote.height, vote.round, vote.kind, vote.block_hash)
        if place != (commit.height, commit.round, VoteKind.PRECOMMIT, commit.block_hash):
            raise _refuse(committed, "its commit holds a vote for something else")
        if voter not in validators or voter in voters:
            raise _refuse(committed, f"{short_id(voter)} is no validator or voted twice")
        try:
            verify_signed(precommit, chain_id)
        except InvalidSignatureError as error:
            raise _refuse(committed, f"its commit holds a false vote: {error}") from error
        voters.add(voter)
    power = validators.compute_power(voters)
    if power < validators.quorum_power:
        raise _refuse(
            committed,
            f"its commit has {power} of {validators.total_power} of the power, a quorum is "
            f"{validators.quorum_power}",
        )


def _refuse(committed: CommittedBlock, why: str) -> InvalidBlockError:
    return InvalidBlockError(f"block {committed.height}: {why}", height=committed.height)
