"""Byzantine nodes: what a faulty validator makes of what an honest one would send.

A villain runs the honest code and lies on its wires: everything that it says is rightly signed with
its own key. *Twins* go further: the same key runs two processes, each of which speaks to a part of
the others, so that all that a validator must not say twice is said twice.
Source of the twins: Bano et al. 2020, "Twins: BFT Systems Made Robust" (arXiv 2004.10617).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from iemas import wire
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import (
    BlockAnnouncement,
    BlocksResponse,
    ChunksResponse,
    Commit,
    CommittedBlock,
    ConsensusStatus,
    LightBlockResponse,
    ProposalNotice,
    SnapshotOffer,
    SubmitTransaction,
    VoteNotice,
)
from iemas.consensus.tendermint import Tendermint
from iemas.consensus.voting import NO_ROUND, Proposal, Vote, VoteKind
from iemas.core.auction import (
    ModelNotice,
    QosModel,
    ReleaseNotice,
    Transcript,
    TranscriptNotice,
)
from iemas.core.envelope import Envelope, Signed
from iemas.core.ready import Ready
from iemas.core.types import AccountId, Hash, NodeId
from iemas.ledger.header import Block, compute_transactions_root
from iemas.ledger.snapshot import encode_chunk
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    DoubleVoteEvidence,
    Evidence,
    RevealAsk,
    Transaction,
    TransactionBody,
    TransferFunds,
)
from node.standing_ask import StandingAsk

if TYPE_CHECKING:
    from tests.simulation.host import Host

REMEMBERED = 64
FIRST_NONCE = 10_000
"""Above those of what the villain's own process submits."""

FALSE_SNAPSHOT = "false snapshot"
PLOT = "plot"
"""The trick that is played together with the network, see `Villain.plot`."""

WITHHELD_REVEAL = "withheld reveal"
"""The trick of committing to asks and revealing none."""

Messages = tuple[Any, ...]
Trick = Callable[["Villain", "Host | None", NodeId, Any], Messages | None]


class TraitorousTendermint(Tendermint):
    """Forgets what it locked on, and does not notice what is decided."""

    def _start_round(self, round_number: int) -> None:
        self.locked_value, self.locked_round = None, NO_ROUND
        self.valid_value, self.valid_round = None, NO_ROUND
        super()._start_round(round_number)

    def _upon_precommits_for_value(self) -> bool:
        return False


class WithholdingAsk(StandingAsk):
    """Commits to its asks, and reveals none."""

    def follow(self, state: LedgerState) -> tuple[TransactionBody | None, Ready]:
        due, ready = super().follow(state)
        return None if isinstance(due, RevealAsk) else due, ready


@dataclass(frozen=True)
class Plot:
    """Make one decide alone, and the others something else: what only their locks prevent."""

    victim: NodeId
    height: int
    round: int


class Villain:
    """The lies of one key. `tricks` names those that it plays, `eagerness` how often."""

    def __init__(
        self,
        signer: wire.WireSigner,
        random: Random,
        *,
        tricks: tuple[str, ...],
        eagerness: float,
        count: Callable[[str], None],
    ) -> None:
        self.signer = signer
        self.random = random
        self.tricks = tricks
        self.eagerness = eagerness
        self.heard: deque[Any] = deque(maxlen=REMEMBERED)
        self.blocks: deque[Block] = deque(maxlen=8)
        self.votes: deque[Signed[Vote]] = deque(maxlen=REMEMBERED)
        self.fooled: set[NodeId] = set()
        self.plotting: Plot | None = None
        self.nonce = FIRST_NONCE
        self.bent: set[Hash] = set()
        """Models that it proposed and nobody may agree with."""
        self._count = count

    def hear(self, message: Any) -> None:
        """Remember what others say, to say it at a wrong time."""
        self.heard.append(message)
        if isinstance(message, ProposalNotice):
            self.blocks.append(message.block)
        if isinstance(message, VoteNotice):
            self.votes.extend(message.votes)

    def tamper(self, host: Host, to: NodeId, message: Any) -> Messages:
        """Give what is sent instead of a message."""
        if isinstance(message, ProposalNotice):
            self.blocks.append(message.block)
        if self.plotting is not None:
            return conspire(self, self.plotting, to, message)
        for name in self.tricks:
            if name in TRICKS and self.random.random() < self.eagerness:
                messages = TRICKS[name](self, host, to, message)
                if messages is not None:
                    self._count(f"villain {name}")
                    return messages
        return (message,)

    def plot(self, plot: Plot | None, engine: TendermintEngine) -> None:
        """Begin or end a plot, for which the villain's own process has to break the rules too."""
        self.plotting = plot if PLOT in self.tricks else None
        participant = engine._participant
        if participant is not None:
            faulty = self.plotting is not None and participant.height == self.plotting.height
            participant._machine.__class__ = TraitorousTendermint if faulty else Tendermint

    def corrupt_ask(self, ask: StandingAsk) -> None:
        """Make the process that starts withhold its reveals, if that is one of its tricks."""
        if WITHHELD_REVEAL in self.tricks:
            ask.__class__ = WithholdingAsk

    def is_fooled(self, to: NodeId) -> bool:
        """Tell whether a peer is one of those that are told something else, lately."""
        if self.random.random() < 0.02:
            self.fooled ^= {to}
        return to in self.fooled

    def choose_value(self) -> Hash | None:
        """Choose something to vote for."""
        values = [None, *(block.hash for block in self.blocks), Hash(self.random.randbytes(32))]
        return self.random.choice(values)


# --- tricks: None where they do not apply ---------------------------------------------------------


def be_silent(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Say nothing."""
    return ()


def be_deaf_to_some(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Say nothing to some."""
    return () if villain.is_fooled(to) else None


def vote_twice(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Tell some another vote, or all of them both."""
    if not isinstance(message, VoteNotice):
        return None
    votes = []
    for signed in message.votes:
        if signed.signer_id == host.node_id:
            other = replace(signed.message, block_hash=villain.choose_value())
            votes.append(villain.signer.sign(other))
    if not votes:
        return None
    double = VoteNotice(tuple(votes))
    return (double,) if villain.is_fooled(to) else (message, double)


def propose_twice(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Propose other, also valid, blocks to some."""
    if not isinstance(message, ProposalNotice) or message.proposal.signer_id != host.node_id:
        return None
    if not villain.is_fooled(to):
        return None
    header = message.block.header.message
    other = Block(
        villain.signer.sign(replace(header, time_ms=header.time_ms + 1)), message.block.transactions
    )
    return (_propose(villain, message.proposal.message, other),)


def propose_invalid(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Propose a block that breaks a rule."""
    if not isinstance(message, ProposalNotice) or message.proposal.signer_id != host.node_id:
        return None
    block, random = message.block, villain.random
    header, transactions = block.header.message, block.transactions
    match random.randrange(7):
        case 0:
            header = replace(header, state_root=Hash(random.randbytes(32)))
        case 1:
            header = replace(header, time_ms=header.time_ms + random.choice((-60_000, 60_000)))
        case 2:
            header = replace(header, previous_hash=Hash(random.randbytes(32)))
        case 3:
            header = replace(header, validators_hash=Hash(random.randbytes(32)))
        case 4:
            transactions = (*transactions, _forge_transaction(villain, to))
            header = replace(header, transactions_root=compute_transactions_root(transactions))
        case 5:
            transactions = (*transactions, _forge_transaction(villain, to))
        case _:
            header = replace(header, height=header.height + 1)
    return (
        _propose(villain, message.proposal.message, _make_block(villain, header, transactions)),
    )


def agree_with_everyone(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Vote for everything that was proposed, and for nil."""
    if not isinstance(message, VoteNotice) or not message.votes:
        return None
    vote = message.votes[0].message
    values = {block.hash for block in villain.blocks if block.height == vote.height}
    votes = [
        villain.signer.sign(replace(vote, kind=kind, block_hash=value))
        for value in (*sorted(values), None)
        for kind in (VoteKind.PREVOTE, VoteKind.PRECOMMIT)
    ]
    return (message, VoteNotice(tuple(votes)))


def forget_locks(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Propose a new block where a valid value should be proposed again."""
    if not isinstance(message, ProposalNotice) or message.proposal.signer_id != host.node_id:
        return None
    proposal, header = message.proposal.message, message.block.header.message
    if proposal.round == 0:
        return None
    root = compute_transactions_root(())
    other = _make_block(
        villain, replace(header, time_ms=header.time_ms + 1, transactions_root=root), ()
    )
    villain.blocks.append(other)
    return (_propose(villain, replace(proposal, valid_round=NO_ROUND), other),)


def vote_out_of_place(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Vote in stale and far rounds and heights, too."""
    if not isinstance(message, VoteNotice) or not message.votes:
        return None
    vote, random = message.votes[0].message, villain.random
    strange = Vote(
        max(vote.height + random.choice((-1, 0, 0, 0, 1)), 1),
        max(vote.round + random.choice((-2, -1, 1, 2, 50)), 0),
        random.choice((VoteKind.PREVOTE, VoteKind.PRECOMMIT)),
        villain.choose_value(),
    )
    return (message, VoteNotice((villain.signer.sign(strange),)))


def claim_a_lock(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Propose a block as one that a quorum prevoted, where none did."""
    if not isinstance(message, ProposalNotice) or message.proposal.signer_id != host.node_id:
        return None
    proposal = message.proposal.message
    if proposal.round == 0:
        return None
    claimed = villain.random.randrange(NO_ROUND, proposal.round)
    return (_propose(villain, replace(proposal, valid_round=claimed), message.block),)


def send_garbage(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Send bytes that are spoilt, or nothing but noise."""
    random = villain.random
    data = bytearray(wire.to_deliver_request(message).SerializeToString())
    for _ in range(random.randint(1, 4)):
        if data:
            data[random.randrange(len(data))] = random.randrange(256)
    noise = random.randbytes(random.randrange(64))
    return (message, random.choice((bytes(data), bytes(data)[: len(data) // 2], noise)))


def repeat_others(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Send what others said earlier once more."""
    if not villain.heard:
        return None
    return (message, villain.random.choice(villain.heard))


def forge_votes(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Send votes in the names of others, whose signatures do not hold."""
    if not isinstance(message, VoteNotice) or not villain.votes:
        return None
    return (VoteNotice((_forge(villain, villain.random.choice(villain.votes)),)),)


def forge_commits(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Send blocks as decided that are not: with too few votes, or one vote many times."""
    if not isinstance(message, ConsensusStatus) or not villain.blocks:
        return None
    block = villain.random.choice(villain.blocks)
    vote = villain.signer.sign(Vote(block.height, 0, VoteKind.PRECOMMIT, block.hash))
    copies = villain.random.choice((0, 1, 20))
    commit = Commit(block.height, 0, block.hash, (vote,) * copies)
    committed = CommittedBlock(block, commit)
    forged = villain.random.choice(
        (BlockAnnouncement(committed), BlocksResponse((committed,), block.height + 100))
    )
    return (message, forged)


def serve_false_snapshots(
    villain: Villain, host: Host, to: NodeId, message: Any
) -> Messages | None:
    """Offer a snapshot, headers or chunks that are not what the validators signed; or none."""
    random = villain.random
    match message:
        case SnapshotOffer(snapshot, CommittedBlock(block, _)) if snapshot is not None:
            root = Hash(random.randbytes(32))
            rich = replace(block.header.message, state_root=root)
            forged = _make_block(villain, rich, block.transactions)
            votes = tuple(
                villain.signer.sign(Vote(rich.height, 0, VoteKind.PRECOMMIT, forged.hash))
                for _ in range(random.choice((1, 4)))
            )
            made_up = Commit(rich.height, 0, forged.hash, votes)
            own = tuple(v for v in message.validators if v.node_id == host.node_id)
            return (
                random.choice(
                    (
                        replace(message, snapshot=replace(snapshot, chunk_roots=(root,))),
                        replace(message, snapshot=replace(snapshot, height=snapshot.height + 1)),
                        replace(message, block=CommittedBlock(block, made_up)),
                        SnapshotOffer(
                            replace(snapshot, chunk_roots=(root,)),
                            CommittedBlock(forged, made_up),
                            random.choice((own, message.validators)),
                        ),
                    )
                ),
            )
        case ChunksResponse(chunks=chunks) if chunks:
            false = random.choice((encode_chunk([random.randbytes(40)]), b"\xff", chunks[0][:-1]))
            return (replace(message, chunks=random.choice(((), (false,), (*chunks, false)))),)
        case LightBlockResponse():
            return (LightBlockResponse(None),)
    return None


def lie_about_status(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Say to be elsewhere and to hold what it does not."""
    if not isinstance(message, ConsensusStatus):
        return None
    random = villain.random
    return (
        ConsensusStatus(
            max(message.height + random.choice((-1, 0, 1, 1_000)), 1),
            random.choice((0, message.round, message.round + 1, 10_000)),
            tuple(random.randrange(8) for _ in range(random.randrange(4))),
            random.randbytes(8 * random.randrange(5)),
            random.random() < 0.5,
        ),
    )


def accuse_falsely(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Hand in evidence against someone honest that proves nothing."""
    if not villain.votes or not isinstance(message, VoteNotice | ConsensusStatus):
        return None
    random = villain.random
    vote = random.choice(villain.votes)
    other = random.choice((_forge(villain, vote), random.choice(villain.votes), vote))
    return (message, SubmitTransaction(_sign_evidence(villain, host, vote, other)))


def withhold_shares(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Close a round as its witness, and keep the shares."""
    return () if isinstance(message, ReleaseNotice) else None


def release_false_shares(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Release as a round's witness what its bids did not commit to."""
    if not isinstance(message, ReleaseNotice) or message.release.signer_id != host.node_id:
        return None
    release = message.release.message
    false = replace(release, shares=tuple(bytes(len(share)) for share in release.shares))
    return (ReleaseNotice(villain.signer.sign(false)),)


def clear_wrongly(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Sign a transcript with another welfare than its round had."""
    if not isinstance(message, TranscriptNotice):
        return None
    transcript: Transcript = message.transcript.message
    if transcript.auctioneer != host.node_id:
        return None
    clearing = transcript.clearing
    wrong = replace(clearing, welfare_micros=clearing.welfare_micros + 1)
    return (TranscriptNotice(villain.signer.sign(replace(transcript, clearing=wrong))),)


def predict_otherwise(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Sign a transcript under a model in which it is faster itself than was decided."""
    if not isinstance(message, TranscriptNotice):
        return None
    transcript: Transcript = message.transcript.message
    if transcript.auctioneer != host.node_id:
        return None
    bent = hurry(transcript.model, host.node_id)
    return (TranscriptNotice(villain.signer.sign(replace(transcript, model=bent))),)


def propose_bent_model(villain: Villain, host: Host, to: NodeId, message: Any) -> Messages | None:
    """Propose a model in which all others are slower than anything is."""
    if not isinstance(message, ModelNotice) or message.proposal.signer_id != host.node_id:
        return None
    proposal = message.proposal.message
    bent = slow_down_others(proposal.model, host.node_id)
    villain.bent.add(bent.hash)
    return (ModelNotice(villain.signer.sign(replace(proposal, model=bent))),)


def hurry(model: QosModel, node: NodeId) -> QosModel:
    """Let a node be twice as fast, which has to have a row if others are not to be, too."""
    rows = {row.provider: row for row in model.rows}
    own = model.get_row(node)
    rows[node] = replace(
        own,
        samples=max(own.samples, 1),
        ttft_base_us=own.ttft_base_us // 2,
        ttft_per_uncached_token_us=own.ttft_per_uncached_token_us // 2,
        token_us=own.token_us // 2,
    )
    return replace(model, rows=tuple(sorted(rows.values(), key=lambda row: row.provider)))


def slow_down_others(model: QosModel, node: NodeId) -> QosModel:
    """Let everyone but a node take a quarter of an hour to answer: what nobody believes."""
    late_us = 900_000_000
    rows = [
        row if row.provider == node else replace(row, ttft_base_us=late_us) for row in model.rows
    ]
    return replace(model, prior=replace(model.prior, ttft_base_us=late_us), rows=tuple(rows))


def conspire(villain: Villain, plot: Plot, to: NodeId, message: Any) -> Messages:
    """Help the victim to decide, and the others to give the round up."""
    if not isinstance(message, VoteNotice) or not message.votes:
        return (message,) if isinstance(message, ProposalNotice | SubmitTransaction) else ()
    vote = message.votes[-1].message
    if (vote.height, vote.round) != (plot.height, plot.round):
        return (message,)
    villain._count(f"villain {PLOT}")
    if to == plot.victim:
        return agree_with_everyone(villain, None, to, message) or ()
    nil = Vote(vote.height, vote.round, VoteKind.PRECOMMIT, None)
    prevotes = [v for v in message.votes if v.message.kind is VoteKind.PREVOTE]
    return (VoteNotice((*prevotes, villain.signer.sign(nil))),)


TRICKS: dict[str, Trick] = {
    "silent": be_silent,
    "silent to some": be_deaf_to_some,
    "double vote": vote_twice,
    "double proposal": propose_twice,
    "invalid proposal": propose_invalid,
    "votes for everything": agree_with_everyone,
    "forgotten lock": forget_locks,
    "vote out of place": vote_out_of_place,
    "claimed lock": claim_a_lock,
    "garbage": send_garbage,
    "replay": repeat_others,
    "forged vote": forge_votes,
    "forged commit": forge_commits,
    FALSE_SNAPSHOT: serve_false_snapshots,
    "false status": lie_about_status,
    "false accusation": accuse_falsely,
    "withheld shares": withhold_shares,
    "false shares": release_false_shares,
    "wrong clearing": clear_wrongly,
    "another model": predict_otherwise,
    "bent model": propose_bent_model,
}

ROUND_TRICKS = (
    "withheld shares",
    "false shares",
    "wrong clearing",
    "another model",
    "bent model",
)
CONSENSUS_TRICKS = tuple(name for name in TRICKS if name not in ROUND_TRICKS)


def _make_block(villain: Villain, header: Any, transactions: tuple[Any, ...]) -> Block:
    return Block(villain.signer.sign(header), transactions)


def _propose(villain: Villain, proposal: Proposal, block: Block) -> ProposalNotice:
    signed = villain.signer.sign(replace(proposal, block_hash=block.hash))
    return ProposalNotice(signed, block)


def _forge(villain: Villain, signed: Signed[Vote]) -> Signed[Vote]:
    """Change a vote and keep its signer; the signature cannot hold."""
    vote = replace(signed.message, block_hash=villain.choose_value())
    envelope = Envelope(wire.encode(vote), signed.envelope.signer, signed.envelope.signature)
    return Signed(vote, envelope)


def _forge_transaction(villain: Villain, victim: NodeId) -> Signed[Transaction]:
    """Move someone's money without its signature."""
    body = TransferFunds(AccountId(villain.signer.node_id), 1)
    return villain.signer.sign(Transaction(AccountId(victim), 2**40, body))


def _sign_evidence(
    villain: Villain, host: Host, vote: Signed[Vote], other: Signed[Vote]
) -> Signed[Transaction]:
    villain.nonce += villain.random.randint(1, 3)
    body = Evidence(DoubleVoteEvidence(vote, other))
    return villain.signer.sign(Transaction(AccountId(host.node_id), villain.nonce, body))
