"""What a block does besides its transactions: what falls due before them, what is noted after.

Source: docs/spec/ledger.md §3; cometbft `spec/abci`: BeginBlock and EndBlock of ABCI 1.0.
"""

from __future__ import annotations

from itertools import pairwise

from iemas.core.election import Candidate, compute_newcomer_priority, compute_turn
from iemas.core.types import NodeId
from iemas.ledger.epochs import advance_epochs, count_proposer
from iemas.ledger.jail import forget_served_jails
from iemas.ledger.rules.pending import expire_holds
from iemas.ledger.rules.staking import release_unbonded
from iemas.ledger.state import LedgerState
from iemas.ledger.terms import apply_due_terms

CHECKPOINTS = 64
"""Into how many parts checkpoints divide the evidence window."""


def begin_block(state: LedgerState, *, elapsed_ms: int) -> None:
    """Do what has fallen due by the time of the block being applied.

    elapsed_ms: ledger time since the block before.
    """
    _set_checkpoint(state)
    release_unbonded(state, state.time_ms)
    expire_holds(state, state.time_ms)
    forget_served_jails(state)
    advance_epochs(state, elapsed_ms=elapsed_ms)
    apply_due_terms(state, state.time_ms)


def end_block(state: LedgerState, proposer: NodeId) -> None:
    """Note who proposed, and who votes on the height after the next."""
    count_proposer(state, proposer)
    note_voters(state)
    rotate_proposers(state)


def note_voters(state: LedgerState) -> None:
    """Note who votes on the height after the next, if that has changed.

    One height lies between, so that the next block's header can name who votes after it: what
    light clients follow, and when CometBFT lets updates of validators count.
    """
    members = state.get_consensus_validators()
    start = state.height + 2 if state.validator_sets else 1  # genesis' vote on the first two
    if members != state.get_consensus_validators_at(start):
        state.validator_sets[start] = members


def rotate_proposers(state: LedgerState) -> None:
    """Take one turn of the proposers' round-robin; who votes on the next height goes on with it.

    One turn a height, however many rounds it took. Who stays keeps its place, newcomers start
    behind; at genesis all start equal. Source: docs/spec/consensus.md T3 to T5.
    """
    members = state.get_consensus_validators_at(state.height + 1)
    places = {node: 0 for node, _ in members}
    if state.proposers:
        voters = state.get_consensus_validators_at(state.height)
        _, after = compute_turn([Candidate(*one, state.proposers[one.node_id]) for one in voters])
        places = {candidate.node_id: candidate.priority for candidate in after}
    behind = compute_newcomer_priority(sum(power for _, power in members))
    state.proposers = {node: places.get(node, behind) for node, _ in members}


def _set_checkpoint(state: LedgerState) -> None:
    """Note height and time now and then; forget what is out of the evidence window."""
    window_ms = state.params.evidence_window_ms
    for height in [h for h, t in state.checkpoints.items() if t + window_ms < state.time_ms]:
        del state.checkpoints[height]
    last_ms = max(state.checkpoints.values(), default=None)
    if last_ms is None or state.time_ms >= last_ms + window_ms // CHECKPOINTS:
        state.checkpoints[state.height] = state.time_ms
    oldest = min(state.checkpoints)
    starts = sorted(state.validator_sets)
    for start, following in pairwise(starts):
        if following <= oldest:
            del state.validator_sets[start]
    for offence in [key for key in state.offences if key.height < oldest]:
        del state.offences[offence]
