"""The Tendermint consensus algorithm for one height, as a pure state machine.

Validators agree on one block. In each round a proposer proposes a block; everyone *prevotes* it, or
nil if it is bad or late; whoever sees a quorum of prevotes for it *locks* on it and *precommits*;
a quorum of precommits decides. If a round fails, the next one has another proposer. Safety comes
from the lock: a validator that precommitted a block prevotes no other, until it is proposed one
that a quorum prevoted in a later round. Liveness comes from the *valid value*: a proposer proposes
again the latest block that it saw a quorum of prevotes for.

Each `_upon_…` method is one rule of the paper's Algorithm 1 and names its lines; it tells whether
it fired. After every input the rules fire until none can. A value is a block's hash; nil is None.

The caller's duties, in `docs/spec/consensus.md` T18 to T25 in full:

1. It checks signatures, and the block behind a proposal, before it hands them in.
2. It signs each `Vote` and makes and signs the proposal for each `Propose`; persists them with
   `sign_state`; then sends them, and hands them in here too: own votes count once they are durable.
3. It hands in each `Timeout` once `compute_timeout_ms` have passed since it came out.
4. It spreads what others signed, too: what one correct validator has got, all get in the end.
5. After a restart it makes the machine from the last `sign_state` and hands in own messages again.

Source: Buchman, Kwon, Milosevic, "The latest gossip on BFT consensus", arXiv 1807.04938.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from iemas.consensus.validators import ValidatorSet
from iemas.consensus.votes import HeightVotes
from iemas.consensus.voting import NO_ROUND, Proposal, Vote, VoteKind
from iemas.core.envelope import Signed
from iemas.core.errors import LocalProtocolError, RemoteProtocolError
from iemas.core.types import Hash, NodeId, short_id

MAX_PROPOSALS_PER_ROUND = 2
"""A correct proposer makes one. Further ones are kept only if correct validators vote for them."""


class Step(IntEnum):
    """The steps of a round, in their order."""

    PROPOSE = 1
    PREVOTE = 2
    PRECOMMIT = 3


# --- outputs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Propose:
    """Wanted: this node's proposal for the round, of a new block or again of the valid value.

    `block_hash` is None for a new block.
    """

    round: int
    block_hash: Hash | None
    valid_round: int


@dataclass(frozen=True, slots=True)
class Timeout:
    """As an output: wait, then give this back as an input. `step` says which of the timeouts."""

    step: Step
    round: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The height is decided; the precommits prove it to anyone who knows the validators."""

    block_hash: Hash
    round: int
    precommits: tuple[Signed[Vote], ...]


Output = Propose | Vote | Timeout | Decided

_TIMEOUT_MS = {Step.PROPOSE: 300, Step.PREVOTE: 100, Step.PRECOMMIT: 100}
_TIMEOUT_GROWTH_MS = 100


def compute_timeout_ms(timeout: Timeout) -> int:
    """Give how long to wait: longer each round, so that in the end it is long enough."""
    return _TIMEOUT_MS[timeout.step] + timeout.round * _TIMEOUT_GROWTH_MS


# --- what survives a restart ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignState:
    """How far a validator has come in signing: a machine made from it never contradicts that.

    In `round` it has signed the messages of all steps up to `step` that it will ever sign; of
    earlier rounds it signs nothing any more.
    """

    height: int
    round: int
    step: Step
    locked_value: Hash | None = None
    locked_round: int = NO_ROUND
    valid_value: Hash | None = None
    valid_round: int = NO_ROUND


# --- the algorithm -------------------------------------------------------------------------------


class Tendermint:
    """One validator's state at one height (lines 1 to 9); an observer's, if it is no validator.

    Messages that arrive before `start` are kept. After the decision nothing happens any more.
    """

    def __init__(
        self,
        *,
        height: int,
        validators: ValidatorSet,
        own_id: NodeId,
        sign_state: SignState | None = None,
    ) -> None:
        if sign_state is not None and sign_state.height != height:
            raise LocalProtocolError(
                f"the sign state is of height {sign_state.height}, not {height}", height=height
            )
        state = sign_state or SignState(height, 0, Step.PROPOSE)
        self.height = height
        self.round = state.round
        self.step = state.step
        self.locked_value = state.locked_value
        self.locked_round = state.locked_round
        self.valid_value = state.valid_value
        self.valid_round = state.valid_round
        self.decision: Decided | None = None
        self.votes = HeightVotes(height, validators)
        self._validators = validators
        self._own_id = own_id
        self._is_restored = sign_state is not None
        self._is_started = False
        self._proposals: dict[int, dict[Proposal, bool]] = {}  # by round, with valid(v)
        self._scheduled: set[Timeout] = set()
        self._outputs: list[Output] = []

    @property
    def sign_state(self) -> SignState:
        """What to persist before any message of this step leaves."""
        return SignState(
            self.height,
            self.round,
            self.step,
            self.locked_value,
            self.locked_round,
            self.valid_value,
            self.valid_round,
        )

    def find_missing_proposals(self) -> tuple[tuple[int, Hash], ...]:
        """Find blocks, with rounds, that a quorum voted for and no proposal is here of: ask for it.

        It happens when a message was lost, or a faulty proposer proposed several blocks.
        """
        return tuple(
            (round_number, value)
            for round_number, value in self.votes.find_quorum_values()
            if all(proposal.block_hash != value for proposal in self._get_proposals(round_number))
        )

    def forget_proposals(self, before: int, *, kept: Collection[Hash]) -> None:
        """Forget proposals of rounds before one, except of the blocks `kept`.

        The caller drops the other blocks, and what is decided must be there: such a proposal has
        to come again. Source: consensus.md T13, T20.
        """
        for number in [number for number in self._proposals if number < before]:
            held = self._proposals.pop(number)
            left = {proposal: ok for proposal, ok in held.items() if proposal.block_hash in kept}
            if left:
                self._proposals[number] = left

    # --- inputs ----------------------------------------------------------------------------------

    def start(self) -> tuple[Output, ...]:
        """Enter round 0, or go on in the round of the sign state (line 10).

        A restored validator never proposes in that round: it may have done so before.
        Raises: LocalProtocolError if it was started before.
        """
        if self._is_started:
            raise LocalProtocolError(f"height {self.height} was started before")
        self._is_started = True
        if not self._is_restored:
            self._start_round(0)
        elif self.step is Step.PROPOSE:
            self._schedule(Timeout(Step.PROPOSE, self.round))
        return self._fire_rules()

    def receive_proposal(self, signed: Signed[Proposal], *, is_valid: bool) -> tuple[Output, ...]:
        """Take in a proposal whose signature holds, once its block is here: valid(v) or not.

        A proposal of a round beyond the next one is dropped; it has to come again.
        Raises: LocalProtocolError for another height; RemoteProtocolError if another validator
        is the proposer of the round.
        """
        proposal = signed.message
        if proposal.height != self.height:
            raise LocalProtocolError(
                f"a proposal of height {proposal.height} was given to height {self.height}",
                height=proposal.height,
            )
        if proposal.round > self.round + 1:
            return ()
        if signed.signer_id != self._validators.get_proposer(proposal.round):
            raise RemoteProtocolError(
                f"{short_id(signed.signer_id)} is not the proposer of round {proposal.round}",
                signer_id=signed.signer_id,
            )
        self._keep_proposal(proposal, is_valid=is_valid)
        return self._fire_rules()

    def receive_vote(self, signed: Signed[Vote]) -> tuple[Output, ...]:
        """Take in a vote whose signature holds.

        Raises: LocalProtocolError for another height; RemoteProtocolError if the signer is no
        validator.
        """
        if not self.votes.add(signed, current_round=self.round):
            return ()
        return self._fire_rules()

    def receive_timeout(self, timeout: Timeout) -> tuple[Output, ...]:
        """Take in a timeout that came out earlier and whose time has passed."""
        is_running = self._is_started and self.decision is None
        if is_running and timeout.round == self.round:
            match timeout.step:
                case Step.PROPOSE:
                    self._on_timeout_propose()
                case Step.PREVOTE:
                    self._on_timeout_prevote()
                case Step.PRECOMMIT:
                    self._on_timeout_precommit()
        return self._fire_rules()

    def is_vain(self, timeout: Timeout, *, silent: Collection[NodeId] = ()) -> bool:
        """Tell whether what a timeout waits for will not come, so that it may be handed in early.

        `silent` are validators from which nothing has come for long. Source: consensus.md T16.
        """
        match timeout.step:
            case Step.PROPOSE:
                return self._validators.get_proposer(timeout.round) in silent
            case Step.PRECOMMIT:
                return self.votes.has_quorum(timeout.round, VoteKind.PREVOTE, None)
        return False

    # --- rules -----------------------------------------------------------------------------------

    def _fire_rules(self) -> tuple[Output, ...]:
        """Fire rules until none can fire; give what came out since the last input."""
        while self._is_started and self.decision is None and self._fire_one_rule():
            pass
        outputs, self._outputs = tuple(self._outputs), []
        return outputs

    def _fire_one_rule(self) -> bool:
        return (
            self._upon_precommits_for_value()
            or self._upon_votes_of_later_round()
            or self._upon_prevotes_for_value()
            or self._upon_prevotes_for_nil()
            or self._upon_new_value_proposed()
            or self._upon_earlier_value_proposed()
            or self._upon_any_prevotes()
            or self._upon_any_precommits()
        )

    def _start_round(self, round_number: int) -> None:
        """Propose, or wait for the proposer (lines 11 to 21)."""
        self.round = round_number
        self.step = Step.PROPOSE
        if self._validators.get_proposer(round_number) == self._own_id:
            self._outputs.append(Propose(round_number, self.valid_value, self.valid_round))
        else:
            self._schedule(Timeout(Step.PROPOSE, round_number))

    def _upon_new_value_proposed(self) -> bool:
        """Prevote a value proposed as new, unless locked on another one (lines 22 to 27)."""
        if self.step is not Step.PROPOSE:
            return False
        for proposal, is_valid in self._get_proposals(self.round).items():
            if proposal.valid_round == NO_ROUND:
                value = proposal.block_hash
                may_accept = self.locked_round == NO_ROUND or self.locked_value == value
                self._prevote(value if is_valid and may_accept else None)
                return True
        return False

    def _upon_earlier_value_proposed(self) -> bool:
        """Prevote a value that a quorum prevoted earlier, if that outdates the lock (28 to 33)."""
        if self.step is not Step.PROPOSE:
            return False
        for proposal, is_valid in self._get_proposals(self.round).items():
            value, valid_round = proposal.block_hash, proposal.valid_round
            if valid_round >= 0 and self.votes.has_quorum(valid_round, VoteKind.PREVOTE, value):
                may_accept = self.locked_round <= valid_round or self.locked_value == value
                self._prevote(value if is_valid and may_accept else None)
                return True
        return False

    def _upon_any_prevotes(self) -> bool:
        """Once a quorum prevoted without agreeing, give the rest some time (lines 34 and 35)."""
        return (
            self.step is Step.PREVOTE
            and self.votes.has_quorum_of_any(self.round, VoteKind.PREVOTE)
            and self._schedule(Timeout(Step.PREVOTE, self.round))
        )

    def _upon_prevotes_for_value(self) -> bool:
        """Lock on a value that a quorum prevoted and precommit it (lines 36 to 43).

        Where it comes too late for that, propose it again if this node proposes later. "For the
        first time" in a round: the rule alone sets `valid_round`, to this round.
        """
        if self.step < Step.PREVOTE or self.valid_round == self.round:
            return False
        for proposal, is_valid in self._get_proposals(self.round).items():
            value = proposal.block_hash
            if is_valid and self.votes.has_quorum(self.round, VoteKind.PREVOTE, value):
                if self.step is Step.PREVOTE:
                    self.locked_value = value
                    self.locked_round = self.round
                    self._precommit(value)
                self.valid_value = value
                self.valid_round = self.round
                return True
        return False

    def _upon_prevotes_for_nil(self) -> bool:
        """Precommit nil when a quorum prevoted nil (lines 44 to 46)."""
        if self.step is not Step.PREVOTE:
            return False
        if not self.votes.has_quorum(self.round, VoteKind.PREVOTE, None):
            return False
        self._precommit(None)
        return True

    def _upon_any_precommits(self) -> bool:
        """Once a quorum precommitted without deciding, give the rest some time (47 and 48)."""
        return self.votes.has_quorum_of_any(self.round, VoteKind.PRECOMMIT) and self._schedule(
            Timeout(Step.PRECOMMIT, self.round)
        )

    def _upon_precommits_for_value(self) -> bool:
        """Decide a value that a quorum precommitted, in whichever round (lines 49 to 54)."""
        for round_number in sorted(self._proposals):
            for proposal, is_valid in self._get_proposals(round_number).items():
                value = proposal.block_hash
                if is_valid and self.votes.has_quorum(round_number, VoteKind.PRECOMMIT, value):
                    precommits = self.votes.get_votes(round_number, VoteKind.PRECOMMIT, value)
                    self.decision = Decided(value, round_number, precommits)
                    self._outputs.append(self.decision)
                    return True
        return False

    def _upon_votes_of_later_round(self) -> bool:
        """Follow to a round that a correct validator is in already (lines 55 and 56)."""
        later_round = self.votes.find_round_ahead(self.round)
        if later_round is None:
            return False
        self._start_round(later_round)
        return True

    def _on_timeout_propose(self) -> None:
        """Prevote nil if there is still no acceptable proposal (lines 57 to 60)."""
        if self.step is Step.PROPOSE:
            self._prevote(None)

    def _on_timeout_prevote(self) -> None:
        """Precommit nil if there is still no quorum for one value (lines 61 to 64)."""
        if self.step is Step.PREVOTE:
            self._precommit(None)

    def _on_timeout_precommit(self) -> None:
        """Give up the round (lines 65 to 67)."""
        self._start_round(self.round + 1)

    # --- effects and the log of proposals --------------------------------------------------------

    def _prevote(self, value: Hash | None) -> None:
        self._broadcast(VoteKind.PREVOTE, value)
        self.step = Step.PREVOTE

    def _precommit(self, value: Hash | None) -> None:
        self._broadcast(VoteKind.PRECOMMIT, value)
        self.step = Step.PRECOMMIT

    def _broadcast(self, kind: VoteKind, value: Hash | None) -> None:
        if self._own_id in self._validators:
            self._outputs.append(Vote(self.height, self.round, kind, value))

    def _schedule(self, timeout: Timeout) -> bool:
        """Schedule a timeout if it is for the first time; tell whether it was."""
        if timeout in self._scheduled:
            return False
        self._scheduled.add(timeout)
        self._outputs.append(timeout)
        return True

    def _get_proposals(self, round_number: int) -> dict[Proposal, bool]:
        return self._proposals.get(round_number, {})

    def _keep_proposal(self, proposal: Proposal, *, is_valid: bool) -> None:
        kept = self._proposals.setdefault(proposal.round, {})
        is_needed = all(
            proposal.block_hash != other.block_hash for other in kept
        ) and self.votes.has_correct_vote(proposal.round, proposal.block_hash)
        if len(kept) < MAX_PROPOSALS_PER_ROUND or is_needed:
            kept.setdefault(proposal, is_valid)
