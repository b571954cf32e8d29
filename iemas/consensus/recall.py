"""Recall: before a validator that has just started signs, it asks the others what it signed.

Its own record of that may be older than what it did: its data may be a copy from before, or new
after a loss. Nobody can tell from the data alone. The others hold what it said at the height that
they are deciding, under its own signature, so they can show it and cannot make it up. Whoever has
decided a height shows nothing of it any more, so such answers do not count for it. It asks until
a quorum, itself included, has answered that the height is not decided: with less it is not.

Source: docs/spec/engine.md E27 to E29.
"""

from __future__ import annotations

from collections.abc import Iterable

from iemas.consensus.messages import RecallRequest, RecallResponse, SignRecord
from iemas.consensus.tendermint import Step
from iemas.consensus.validators import ValidatorSet
from iemas.consensus.voting import Proposal, Vote, VoteKind
from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import RemoteProtocolError
from iemas.core.ready import Event, Ready, Send
from iemas.core.types import NodeId, short_id

ASK_MS = 200
"""How often those that have not answered are asked again."""


class Recall:
    """What a validator has to learn of itself before it signs anything, after a start."""

    def __init__(self, own_id: NodeId, chain_id: str) -> None:
        self._own_id = own_id
        self._chain_id = chain_id
        self._record: SignRecord | None = None
        self._is_asking = False
        self._heights: dict[NodeId, int] = {}  # of those that have answered
        self._forgotten: set[int] = set()
        self._signed: set[Vote | Proposal] = set()  # since the start, at the last height
        self._ask_at_ms = 0

    def begin(self, record: SignRecord | None) -> None:
        """Begin to ask; `record` is what this validator knows to have signed last."""
        self._record = record
        self._is_asking = True
        self._heights.clear()

    def may_sign(self, height: int, validators: ValidatorSet) -> bool:
        """Tell whether this validator may sign at a height that is not decided here.

        Not before a quorum, itself included, has answered and has not decided the height either;
        and never at a height where it has signed what it does not remember.
        """
        if self._is_asking:
            undecided = {node for node, decided in self._heights.items() if decided < height}
            level = {node for node in (*undecided, self._own_id) if node in validators}
            if validators.compute_power(level) < validators.quorum_power:
                return False
            self._is_asking = False
        return height not in self._forgotten

    def tick(self, height: int, validators: ValidatorSet, *, now_ms: int) -> Ready:
        """Ask those validators that have not answered."""
        if not self._is_asking:
            return Ready()
        if now_ms < self._ask_at_ms <= now_ms + ASK_MS:
            return Ready(wake_at_ms=self._ask_at_ms)
        self._ask_at_ms = now_ms + ASK_MS
        unheard = [v.node_id for v in validators if v.node_id not in {*self._heights, self._own_id}]
        request = RecallRequest(height)
        sends = tuple(Send(to, request) for to in unheard)
        return Ready(send=sends, wake_at_ms=self._ask_at_ms)

    def note_signed(self, statements: Iterable[Vote | Proposal]) -> None:
        """Note what this validator has signed since the start: that it remembers."""
        for statement in statements:
            self._signed = {other for other in self._signed if other.height == statement.height}
            self._signed.add(statement)

    def receive(self, answer: RecallResponse, sender: NodeId, *, own_height: int) -> Ready:
        """Take an answer in: once asking has ended, the first of a peer, for what it shows.

        `own_height` is the last one decided here: what was signed up to it no longer matters.
        Raises: RemoteProtocolError, InvalidSignatureError if it shows what is not this validator's:
            it then counts as none.
        """
        if not self._is_asking and sender in self._heights:
            return Ready()
        statements: tuple[Signed[Vote] | Signed[Proposal], ...] = (
            *answer.votes,
            *answer.proposals,
        )
        for signed in statements:
            if signed.signer_id != self._own_id:
                raise RemoteProtocolError(
                    f"{short_id(sender)} shows a statement of {short_id(signed.signer_id)}, not of "
                    "this validator",
                    signer_id=signed.signer_id,
                )
            verify_signed(signed, self._chain_id)
        self._heights[sender] = answer.height
        self._forgotten = {height for height in self._forgotten if height > own_height}
        messages = (signed.message for signed in statements)
        return self._note(message for message in messages if message.height > own_height)

    def _note(self, statements: Iterable[Vote | Proposal]) -> Ready:
        """Note the heights at which this validator signed what it does not remember."""
        ready = Ready()
        for message in statements:
            if message.height in self._forgotten or self._remembers(message):
                continue
            self._forgotten.add(message.height)
            fields = {"height": message.height, "round": message.round}
            ready += Ready(events=(Event("own_statement_unknown", fields),))
        return ready

    def _remembers(self, message: Vote | Proposal) -> bool:
        if message in self._signed:
            return True
        record = self._record
        if record is None or record.height != message.height:
            return record is not None and record.height > message.height
        step = Step.PROPOSE
        if isinstance(message, Vote):
            step = Step.PREVOTE if message.kind is VoteKind.PREVOTE else Step.PRECOMMIT
        return (message.round, step) <= (record.round, record.step)
