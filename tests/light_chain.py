"""Headers and commits of a chain whose validators a test decides, signed with real keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from iemas import wire
from iemas.consensus.light import LightRules, TrustedBlock, bisect, hash_members
from iemas.consensus.messages import Commit, LightBlock, LightValidator
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed
from iemas.core.identity import Identity
from iemas.core.types import Hash, NodeId
from iemas.core.vote import Vote, VoteKind
from iemas.ledger.header import GENESIS_HASH, BlockHeader

CHAIN_ID = "light-chain"
START_MS = 1_000_000
BLOCK_MS = 1_000
PERIOD_MS = 1_000_000
RULES = LightRules(CHAIN_ID, PERIOD_MS)

Powers = Mapping[int, int]
"""Power by the number of a validator."""


@cache
def get_signer(number: int, chain_id: str = CHAIN_ID) -> wire.WireSigner:
    return wire.WireSigner(Identity(compute_hash(b"light", str(number).encode())), chain_id)


def get_id(number: int) -> NodeId:
    return get_signer(number).node_id


def list_members(powers: Powers) -> tuple[LightValidator, ...]:
    members = [LightValidator(get_id(number), power) for number, power in powers.items()]
    return tuple(sorted(members, key=lambda member: member.node_id))


def pick_quorum(powers: Powers) -> list[int]:
    """Give as few of the strongest as decide."""
    signers: list[int] = []
    for number in sorted(powers, key=lambda n: (-powers[n], n)):
        signers.append(number)
        if 3 * sum(powers[n] for n in signers) > 2 * sum(powers.values()):
            break
    return signers


class LightChain:
    """`sets[h - 1]` votes on height h; one more than there are blocks."""

    def __init__(
        self, sets: Sequence[Powers], signers: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.sets = sets
        self.blocks: list[LightBlock] = []
        self.asked: list[int] = []
        for index in range(len(sets) - 1):
            chosen = pick_quorum(sets[index]) if signers is None else signers[index]
            self.blocks.append(self.make_block(index + 1, signers=chosen))

    @property
    def genesis(self) -> TrustedBlock:
        members = list_members(self.sets[0])
        return TrustedBlock(0, GENESIS_HASH, START_MS, None, members, hash_members(members))

    @property
    def now_ms(self) -> int:
        return START_MS + BLOCK_MS * len(self.sets)

    def __getitem__(self, height: int) -> LightBlock:
        return self.blocks[height - 1]

    def make_block(
        self,
        height: int,
        *,
        signers: Sequence[int] | None = None,
        powers: Powers | None = None,
        round_number: int = 0,
        proposer: int | None = None,
        **changes: Any,
    ) -> LightBlock:
        """Make a block of a height; `changes` are to its header, the rest to who signed it."""
        voters = self.sets[height - 1] if powers is None else powers
        header = BlockHeader(
            chain_id=CHAIN_ID,
            height=height,
            previous_hash=self[height - 1].hash if height > 1 else GENESIS_HASH,
            time_ms=START_MS + BLOCK_MS * height,
            state_root=compute_hash(b"state", str(height).encode()),
            transactions_root=Hash(bytes(32)),
            validators_hash=hash_members(list_members(voters)),
            next_validators_hash=hash_members(list_members(self.sets[height])),
            results_root=Hash(bytes(32)),
        )
        made = get_signer(min(voters) if proposer is None else proposer)
        signed = made.sign(replace(header, **changes))
        numbers = pick_quorum(voters) if signers is None else signers
        votes = tuple(
            get_signer(n).sign(Vote(height, round_number, VoteKind.PRECOMMIT, signed.hash))
            for n in numbers
        )
        commit = Commit(height, round_number, signed.hash, votes)
        return LightBlock(signed, commit, list_members(voters))

    def follow(
        self, trusted: TrustedBlock, target: LightBlock, rules: LightRules = RULES
    ) -> TrustedBlock:
        """Bisect to a target with this chain's blocks in between; `asked` notes their heights."""
        wanted = bisect(trusted, target, rules, now_ms=self.now_ms)
        try:
            height = next(wanted)
            while True:
                self.asked.append(height)
                height = wanted.send(self[height])
        except StopIteration as done:
            found: TrustedBlock = done.value
            return found


def drop_votes(block: LightBlock, keep: int) -> LightBlock:
    commit = replace(block.commit, precommits=block.commit.precommits[:keep])
    return replace(block, commit=commit)


def replace_votes(block: LightBlock, votes: Sequence[Signed[Vote]]) -> LightBlock:
    return replace(block, commit=replace(block.commit, precommits=tuple(votes)))
