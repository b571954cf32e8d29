"""Votes of the validators, by stake: the QoS model of an ask epoch, the market's parameters.

More than two thirds of the consensus power decide. The first vote for something is its proposal.
Source: docs/spec/ledger.md §10; design §5 and §7.
"""

from __future__ import annotations

from collections.abc import Collection

from iemas.core.errors import MalformedMessageError
from iemas.core.types import AccountId, NodeId
from iemas.ledger.records import ModelKey, ModelRecord, ModelVoteKey, ParameterVoteKey
from iemas.ledger.rules.results import OK, refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import ResultCode, TransactionResult, VoteModel, VoteParameter

CHANGEABLE_PARAMETERS = frozenset(
    {
        "absence_limit",
        "absence_window_terms",
        "ask_bond_micros",
        "ask_ratio_max",
        "bid_fee_micros",
        "double_vote_slash_ppm",
        "idempotency_window_ms",
        "jail_ms",
        "max_consecutive_terms",
        "max_pending_transfers",
        "max_validators",
        "min_stake_micros",
        "min_total_stake_micros",
        "reporter_ppm",
        "reservation_fee_ppm",
        "transcript_slash_ppm",
        "unpaid_ppm",
    }
)
"""What the ledger alone reads, block by block, and what no open record depends on."""


def apply_vote_model(state: LedgerState, account: AccountId, body: VoteModel) -> TransactionResult:
    """Count a validator's vote for the QoS model of an ask epoch, usually the next."""
    voter = NodeId(account)
    if body.hub not in state.current_terms:
        return refuse(ResultCode.UNKNOWN_HUB)
    if not _is_consensus_validator(state, voter):
        return refuse(ResultCode.NOT_VALIDATOR)
    decided = state.models.get(ModelKey(body.hub, body.epoch))
    if body.epoch not in state.list_votable_epochs(body.hub):
        code = ResultCode.UNKNOWN_EPOCH if decided is None else ResultCode.ALREADY_DONE
        return refuse(code, "the model of that epoch is decided, or not to be decided yet")
    key = ModelVoteKey(body.hub, body.epoch, voter)
    is_known = state.model_votes.get(key) == body.model_hash
    if is_known or (decided is not None and decided.model_hash == body.model_hash):
        return refuse(ResultCode.ALREADY_DONE)
    state.model_votes[key] = body.model_hash
    votes = {
        known: model_hash
        for known, model_hash in state.model_votes.items()
        if (known.hub, known.epoch) == (body.hub, body.epoch)
    }
    voters = {known.voter for known, choice in votes.items() if choice == body.model_hash}
    if _has_two_thirds(state, voters):
        record = ModelRecord(body.model_hash, state.time_ms)
        state.models[ModelKey(body.hub, body.epoch)] = record
        for known in votes:
            del state.model_votes[known]
    return OK


def apply_vote_parameter(
    state: LedgerState, account: AccountId, body: VoteParameter
) -> TransactionResult:
    """Count a validator's vote for a parameter's value; decided, it counts from the next term."""
    voter = NodeId(account)
    if not _is_consensus_validator(state, voter):
        return refuse(ResultCode.NOT_VALIDATOR)
    if body.name not in CHANGEABLE_PARAMETERS:
        return refuse(ResultCode.INVALID_ENTRY, "the parameter cannot be changed")
    try:
        state.make_params({**state.parameter_changes, body.name: body.value})
    except MalformedMessageError:
        return refuse(ResultCode.INVALID_ENTRY, "the value is out of its bounds")
    key = ParameterVoteKey(body.name, voter)
    planned = state.parameter_changes.get(body.name, getattr(state.params, body.name))
    known = state.parameter_votes.get(key, planned)
    if body.value == known:
        return refuse(ResultCode.ALREADY_DONE)
    if body.value == planned:
        del state.parameter_votes[key]  # for what holds anyway: the vote is taken back
        return OK
    state.parameter_votes[key] = body.value
    voters = {
        vote.voter
        for vote, value in state.parameter_votes.items()
        if (vote.name, value) == (body.name, body.value)
    }
    if _has_two_thirds(state, voters):
        state.parameter_changes[body.name] = body.value
        for vote in [key for key in state.parameter_votes if key.name == body.name]:
            del state.parameter_votes[vote]
    return OK


def _is_consensus_validator(state: LedgerState, node: NodeId) -> bool:
    return any(member == node for member, _ in state.get_consensus_validators())


def _has_two_thirds(state: LedgerState, voters: Collection[NodeId]) -> bool:
    """Tell whether the voters hold more than two thirds of the consensus power."""
    members = state.get_consensus_validators()
    voted = sum(power for member, power in members if member in voters)
    return 3 * voted > 2 * sum(power for _, power in members)
