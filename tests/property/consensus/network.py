"""One height on a network whose schedule a seed decides: what is lost, late, twice; who crashes.

Every message that was ever sent stays in a pool. In chaotic phases one side of a partition gets
random ones of its own and of the Byzantine validators', timeouts fire at random, validators restart
from what they persisted. Then messages flow: everyone gets everything, and timeouts fire when due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from iemas.consensus.tendermint import (
    Decided,
    Output,
    Propose,
    SignState,
    Tendermint,
    Timeout,
    compute_timeout_ms,
)
from iemas.consensus.validators import ValidatorSet
from iemas.consensus.voting import MAX_ROUND, NO_ROUND, Proposal, Vote, VoteKind
from iemas.core.envelope import Signed
from iemas.core.errors import RemoteProtocolError
from iemas.core.types import Hash
from tests.committee import HEIGHT, Committee

BEHAVIOURS = ("silent", "two-faced", "arbitrary")
MAX_TIMEOUTS = 100
KINDS = (VoteKind.PREVOTE, VoteKind.PRECOMMIT)

Message = Signed[Vote] | Signed[Proposal]


class BrokenPromiseError(AssertionError):
    """Consensus broke one of its promises."""


def check(condition: bool, what: str) -> None:
    if not condition:
        raise BrokenPromiseError(what)


def is_valid(value: Hash) -> bool:
    return not value.startswith(b"X")


@dataclass
class Peer:
    """A correct validator: its machine, its clock's timeouts, its disk."""

    number: int
    machine: Tendermint
    timeouts: list[tuple[int, Timeout]] = field(default_factory=list)
    persisted: SignState | None = None
    signed: list[Message] = field(default_factory=list)
    decided: Decided | None = None


class Network:
    """One height of a committee of which the `byzantine` ones do what they like."""

    def __init__(
        self,
        seed: int,
        *,
        powers: list[int],
        byzantine: Sequence[int],
        machine_type: type[Tendermint] = Tendermint,
        set_type: type[ValidatorSet] = ValidatorSet,
        behaviours: tuple[str, ...] = BEHAVIOURS,
    ) -> None:
        self.random = Random(seed)
        self.committee = Committee(powers, set_type=set_type)
        self.machine_type = machine_type
        self.now_ms = 0
        self.pool: dict[Message, set[int]] = {}  # with those that may hear it
        self.values: list[Hash] = [Hash(b"X" * 32)]
        self.behaviours = {number: self.random.choice(behaviours) for number in byzantine}
        self.peers = [
            Peer(number, self.committee.make_machine(number, machine_type=machine_type))
            for number in range(len(powers))
            if number not in self.behaviours
        ]

    # --- correct validators, as their caller drives them -----------------------------------------

    def start(self) -> None:
        for peer in self.peers:
            self.carry_out(peer, peer.machine.start())

    def carry_out(self, peer: Peer, outputs: tuple[Output, ...]) -> None:
        """Persist, send, hand in again: the caller's duties."""
        own: list[Message] = []
        for output in outputs:
            match output:
                case Propose():
                    value = output.block_hash or self.make_value()
                    proposal = Proposal(HEIGHT, output.round, value, output.valid_round)
                    own.append(self.committee.sign(peer.number, proposal))
                case Vote():
                    own.append(self.committee.sign(peer.number, output))
                case Timeout():
                    due_ms = self.now_ms + compute_timeout_ms(output)
                    peer.timeouts.append((due_ms, output))
                case Decided():
                    self.decide(peer, output)
        if own:
            peer.persisted = peer.machine.sign_state
            for message in own:
                self.sign(peer, message)
        for message in own:
            self.deliver(peer, message)

    def sign(self, peer: Peer, message: Message) -> None:
        for earlier in peer.signed:
            check(not contradict(earlier.message, message.message), "no contradiction")
        peer.signed.append(message)
        self.pool[message] = {other.number for other in self.peers}

    def deliver(self, peer: Peer, message: Message) -> None:
        try:
            if isinstance(message.message, Vote):
                outputs = peer.machine.receive_vote(message)  # type: ignore[arg-type]
            else:
                outputs = peer.machine.receive_proposal(
                    message,  # type: ignore[arg-type]
                    is_valid=is_valid(message.message.block_hash),
                )
        except RemoteProtocolError:
            check(self.committee.get_number(message.signer_id) in self.behaviours, "refused")
        else:
            self.carry_out(peer, outputs)

    def restart(self, peer: Peer) -> None:
        """Make the machine anew from the disk; hand in own messages again."""
        peer.machine = self.committee.make_machine(
            peer.number, sign_state=peer.persisted, machine_type=self.machine_type
        )
        peer.timeouts = []
        self.carry_out(peer, peer.machine.start())
        for message in list(peer.signed):
            self.deliver(peer, message)

    def fire(self, peer: Peer, scheduled: tuple[int, Timeout]) -> None:
        peer.timeouts.remove(scheduled)
        self.carry_out(peer, peer.machine.receive_timeout(scheduled[1]))

    def decide(self, peer: Peer, decided: Decided) -> None:
        check(is_valid(decided.block_hash), "validity")
        for other in self.peers:
            if other.decided is not None:
                check(other.decided.block_hash == decided.block_hash, "agreement")
        signers = {signed.signer_id for signed in decided.precommits}
        expected = Vote(HEIGHT, decided.round, VoteKind.PRECOMMIT, decided.block_hash)
        check(all(signed.message == expected for signed in decided.precommits), "proof")
        power = self.committee.validators.compute_power(signers)
        check(power >= self.committee.validators.quorum_power, "proof")
        peer.decided = decided

    def make_value(self) -> Hash:
        value = Hash(len(self.values).to_bytes(32, "big"))
        self.values.append(value)
        return value

    # --- Byzantine validators --------------------------------------------------------------------

    def misbehave(self, peer: Peer) -> None:
        """Let Byzantine validators sign something about a correct one's round."""
        for number, behaviour in self.behaviours.items():
            if behaviour == "two-faced":
                self.agree_with_everyone(number, peer.machine.round)
            elif behaviour == "arbitrary":
                far = self.random.choice((self.random.randrange(4), self.random.randrange(2**31)))
                self.propose(number, far)
                value = self.random.choice([*self.values, None])
                self.whisper(self.committee.vote(number, self.random.choice(KINDS), value, at=far))

    def agree_with_everyone(self, number: int, at: int) -> None:
        """Propose two values, and vote for all that are proposed in a round."""
        if self.committee.get_proposer(at) == number:
            self.propose(number, at)
            self.propose(number, at)
        for value in [None, *self.list_proposed(at)]:
            for kind in KINDS:
                self.whisper(self.committee.vote(number, kind, value, at=at))

    def list_proposed(self, at: int) -> list[Hash]:
        proposals = [m.message for m in self.pool if isinstance(m.message, Proposal)]
        return [proposal.block_hash for proposal in proposals if proposal.round == at]

    def propose(self, number: int, at: int) -> None:
        value = self.random.choice([*self.values[-3:], self.make_value()])
        valid_round = self.random.randrange(NO_ROUND, min(at, 1_000))
        self.whisper(self.committee.sign(number, Proposal(HEIGHT, at, value, valid_round)))

    def whisper(self, message: Message) -> None:
        """Sign something that during the chaos only some hear."""
        hearers = {peer.number for peer in self.peers if self.random.random() < 0.5}
        self.pool.setdefault(message, hearers)

    # --- schedules -------------------------------------------------------------------------------

    def run_chaos(self, phases: int, *, crash: float = 0.01) -> None:
        """Cut the network again and again, each time so that everyone hears some of the others."""
        numbers = range(len(self.committee.ids))
        for _ in range(phases):
            active = self.random.sample(self.peers, self.random.randint(1, len(self.peers)))
            heard = {
                peer.number: {n for n in numbers if self.random.random() < 0.7} for peer in active
            }
            for _ in range(self.random.randrange(10 * len(active))):
                peer = self.random.choice(active)
                self.do_something(peer, heard[peer.number], crash)

    def do_something(self, peer: Peer, heard: set[int], crash: float) -> None:
        draw = self.random.random()
        if draw < crash:
            self.restart(peer)
        elif draw < 0.2 and peer.timeouts:
            self.fire(peer, self.random.choice(peer.timeouts))
        elif draw < 0.3:
            self.misbehave(peer)
        else:
            nearness = self.random.choice((0, 1, MAX_ROUND))
            hidden = self.find_hidden()
            audible = [
                message
                for message, hearers in self.pool.items()
                if peer.number in hearers
                and message not in hidden
                and self.committee.get_number(message.signer_id) in heard
                and abs(message.message.round - peer.machine.round) <= nearness
            ]
            # In any order, most of them not at all, many of them again.
            for message in self.random.sample(audible, min(len(audible), 8)):
                self.deliver(peer, message)

    def find_hidden(self) -> set[Message]:
        """Find the votes that would tell others what somebody decided."""
        decided = {p.decided.precommits[0].message for p in self.peers if p.decided}
        return {message for message in self.pool if message.message in decided}

    def run_without_decision(self, timeouts: int) -> None:
        """Let the undecided go on as if nobody had decided, with all help of the Byzantine ones."""
        for _ in range(timeouts):
            for peer in self.peers:
                if peer.decided is None:
                    self.misbehave(peer)
            self.deliver_all(self.find_hidden())
            if all(peer.decided for peer in self.peers) or not self.fire_next():
                return

    def run_until_decided(self) -> None:
        """Let every message reach everyone at once, and timeouts fire when they are due."""
        for _ in range(MAX_TIMEOUTS):
            self.deliver_all(set())
            if all(peer.decided for peer in self.peers):
                return
            check(self.fire_next(), "termination")
        check(condition=False, what="termination")

    def fire_next(self) -> bool:
        """Fire the timeout that is due first; tell whether there was one."""
        waiting = [peer for peer in self.peers if peer.decided is None and peer.timeouts]
        if not waiting:
            return False
        peer = min(waiting, key=lambda one: min(at_ms for at_ms, _ in one.timeouts))
        scheduled = min(peer.timeouts, key=lambda one: one[0])
        self.now_ms = max(self.now_ms, scheduled[0])
        self.fire(peer, scheduled)
        return True

    def deliver_all(self, hidden: set[Message]) -> None:
        """Hand everything to everyone until nothing new comes of it."""
        before = None
        while before != (before := self.summarise()):
            for peer in self.peers:
                for message in [m for m in self.pool if m not in hidden]:
                    if peer.decided is None:
                        self.deliver(peer, message)

    def summarise(self) -> list[object]:
        return [
            (peer.machine.sign_state, len(peer.signed), peer.decided, count_votes(peer.machine))
            for peer in self.peers
        ]


def contradict(one: Vote | Proposal, other: Vote | Proposal) -> bool:
    """Tell whether no correct validator signs both."""
    if isinstance(one, Vote) and isinstance(other, Vote):
        return (one.round, one.kind) == (other.round, other.kind) and one != other
    if isinstance(one, Proposal) and isinstance(other, Proposal):
        return one.round == other.round and one != other
    return False


def count_votes(machine: Tendermint) -> int:
    return sum(len(machine.votes.get_all_votes(at)) for at in range(machine.round + 2))
