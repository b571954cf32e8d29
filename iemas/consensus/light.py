"""The light client: from genesis to a block far ahead, without replaying what lies between.

It trusts who voted at some height, because they hold stake that they can lose, and takes a later
header over from them in one of two ways. *Sequentially*: a header names the validators of the next
height, so the next header holds if more than two thirds of them signed it. *Skipping*: a header far
ahead holds if more than a third of the trusted validators' power signed it (so at least one correct
one did) and more than two thirds of its own; where too many have changed, a header in between is
checked first. Trust lasts for a period in which who signed can still lose its stake for it.

Pure: headers and the time come in as arguments. `verify_light_block` checks one step;
`bisect` asks for the headers that it needs, as a generator:

    wanted = bisect(trusted, target, chain_id=…, now_ms=…)
    height = next(wanted)                # a height whose light block it needs
    height = wanted.send(light_block)    # StopIteration.value: the target, trusted

Source: docs/spec/light_client.md; Buchman et al., "A Tendermint Light Client", arXiv 2010.07031;
cometbft `spec/light-client/verification`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from iemas.consensus.commits import verify_commit
from iemas.consensus.messages import Commit, CommittedBlock, LightBlock, LightValidator
from iemas.consensus.validators import Validator, ValidatorSet, compute_members_hash
from iemas.core.envelope import Signed
from iemas.core.errors import (
    ConfigurationError,
    InvalidBlockError,
    LedgerForkError,
    TrustExpiredError,
    UntrustedBlockError,
)
from iemas.core.params import Genesis, MarketParams
from iemas.core.types import Hash, short_id
from iemas.core.vote import Vote
from iemas.ledger.header import GENESIS_HASH, Block

MAX_VALIDATORS = 10_000
"""The most validators that a light block may list."""

MAX_CLOCK_DRIFT_MS = 10_000
"""How far ahead of the reader's clock a header may be dated."""

MAX_PIVOTS = 1_000
"""After so many headers in between, a target is given up."""


@dataclass(frozen=True, slots=True)
class TrustedBlock:
    """A block that is taken to be decided: what a light client goes on from; genesis is height 0.

    `state_root` is the root after the previous block, None for genesis.
    """

    height: int
    hash: Hash
    time_ms: int
    state_root: Hash | None
    validators: tuple[LightValidator, ...]
    next_validators_hash: Hash


@dataclass(frozen=True, slots=True)
class LightRules:
    """Of which chain, how long trust lasts, and how much power has to vouch for a skip.

    A header is trusted for `trusting_period_ms` after its time. `drift_ms` is how far its time may
    be ahead of the reader's.
    """

    chain_id: str
    trusting_period_ms: int
    drift_ms: int = MAX_CLOCK_DRIFT_MS


def make_rules(
    chain_id: str, params: MarketParams, *, trusting_period_ms: int | None = None
) -> LightRules:
    """Make the rules of a market; by default trust lasts two thirds of the evidence window.

    So whoever signs a false header still has its stake locked, and a third of the window is left to
    bring the evidence.

    Raises: ConfigurationError if trust would last as long as the evidence window, or not at all.
    """
    period_ms = (
        params.evidence_window_ms * 2 // 3 if trusting_period_ms is None else trusting_period_ms
    )
    if not 0 < period_ms < params.evidence_window_ms:
        raise ConfigurationError(
            f"the trusting period must be above 0 and below the market's evidence window "
            f"({params.evidence_window_ms} ms), got {period_ms} ms: who cannot lose its stake any "
            "more could sign anything",
            key="trusting_period_ms",
        )
    return LightRules(chain_id, period_ms)


def trust_genesis(genesis: Genesis) -> TrustedBlock:
    """Begin with genesis: its validators vote on heights 1 and 2."""
    members = tuple(
        LightValidator(validator.node_id, validator.stake_micros)
        for validator in sorted(genesis.validators, key=lambda v: v.node_id)
    )
    return TrustedBlock(0, GENESIS_HASH, genesis.time_ms, None, members, hash_members(members))


def trust_block(block: LightBlock, expected_hash: bytes, *, chain_id: str) -> TrustedBlock:
    """Begin with a block whose hash is known from elsewhere, where genesis is too old.

    Raises: InvalidBlockError if it has another hash, or its commit does not hold.
    """
    if block.hash != expected_hash:
        raise InvalidBlockError(
            f"block {block.height} is {short_id(block.hash)}, not {short_id(expected_hash)}",
            height=block.height,
        )
    check_light_block(block, chain_id)
    return _trust(block)


def hash_members(members: tuple[LightValidator, ...]) -> Hash:
    """Name a set as headers do; the order in which it is listed does not matter."""
    ordered = sorted((member.node_id, member.power) for member in members)
    return compute_members_hash(ordered)


# --- one step ------------------------------------------------------------------------------------


def check_light_block(block: LightBlock, chain_id: str) -> ValidatorSet:
    """Check that the validators that it lists are those of its header and decided it.

    That alone proves nothing: anyone can make up validators. Give the set.

    Raises: InvalidBlockError, InvalidSignatureError, MalformedMessageError.
    """
    header = block.header.message
    if header.chain_id != chain_id:
        raise InvalidBlockError(
            f"block {block.height} is of chain {header.chain_id!r}, not {chain_id!r}",
            height=block.height,
        )
    if len(block.validators) > MAX_VALIDATORS:
        raise _refuse(block, f"it lists {len(block.validators)} validators")
    validators = ValidatorSet(Validator(m.node_id, m.power) for m in block.validators)
    verify_commit(CommittedBlock(Block(block.header, ()), block.commit), validators, chain_id)
    return validators


def verify_light_block(
    trusted: TrustedBlock, block: LightBlock, rules: LightRules, *, now_ms: int
) -> TrustedBlock:
    """Take a later block over from a trusted one, in one step.

    Raises: TrustExpiredError; UntrustedBlockError if too little of the trusted power signed it,
        so a block in between is needed; InvalidBlockError, InvalidSignatureError,
        MalformedMessageError if it does not hold at all.
    """
    check_trust(trusted, rules, now_ms=now_ms)
    header = block.header.message
    if block.height <= trusted.height:
        raise _refuse(block, f"it is not above the trusted height {trusted.height}")
    if header.time_ms < trusted.time_ms:
        raise _refuse(block, "its time is before the trusted block's")
    if header.time_ms > now_ms + rules.drift_ms:
        raise _refuse(block, f"it is dated {header.time_ms - now_ms} ms ahead of this clock")
    if block.height == trusted.height + 1:
        if header.validators_hash != trusted.next_validators_hash:
            raise _refuse(block, "its validators are not those that the block before it names")
        if header.previous_hash != trusted.hash:
            raise _refuse(block, "it does not follow the trusted block")
        check_light_block(block, rules.chain_id)
        return _trust(block)
    check_light_block(block, rules.chain_id)
    powers = {member.node_id: member.power for member in trusted.validators}
    signed = sum(powers.get(vote.signer_id, 0) for vote in block.commit.precommits)
    total = sum(powers.values())
    if 3 * signed <= total:
        raise UntrustedBlockError(
            f"block {block.height}: {signed} of the {total} power trusted at height "
            f"{trusted.height} signed it, more than a third must",
            height=block.height,
        )
    return _trust(block)


def check_trust(trusted: TrustedBlock, rules: LightRules, *, now_ms: int) -> None:
    """Check that a trusted block is still fresh enough to go on from.

    Raises: TrustExpiredError with the height and the fix.
    """
    if now_ms >= trusted.time_ms + rules.trusting_period_ms:
        days = (now_ms - trusted.time_ms) / 86_400_000
        raise TrustExpiredError(
            f"the trusted block {trusted.height} is {days:.1f} days old, longer than the trusting "
            f"period of {rules.trusting_period_ms / 86_400_000:.1f} days: its validators may have "
            "left with their stake. Get height and hash of a recent block from someone you trust "
            "and give it as `trusted_block`",
            height=trusted.height,
            trusting_period_ms=rules.trusting_period_ms,
        )


def _trust(block: LightBlock) -> TrustedBlock:
    header = block.header.message
    return TrustedBlock(
        height=block.height,
        hash=block.hash,
        time_ms=header.time_ms,
        state_root=header.state_root,
        validators=block.validators,
        next_validators_hash=header.next_validators_hash,
    )


def _refuse(block: LightBlock, why: str) -> InvalidBlockError:
    return InvalidBlockError(f"block {block.height}: {why}", height=block.height)


# --- many steps ----------------------------------------------------------------------------------


def bisect(
    trusted: TrustedBlock, target: LightBlock, rules: LightRules, *, now_ms: int
) -> Generator[int, LightBlock, TrustedBlock]:
    """Take a target over from a trusted block in as few steps as the changes of validators allow.

    Yields the heights in between whose light blocks it needs; returns the target, trusted.

    Raises: as `verify_light_block`, but UntrustedBlockError only after `MAX_PIVOTS` blocks.
    """
    waiting = [target]
    asked = 0
    while waiting:
        try:
            trusted = verify_light_block(trusted, waiting[-1], rules, now_ms=now_ms)
        except UntrustedBlockError:
            if asked >= MAX_PIVOTS:
                raise
            asked += 1
            pivot = (trusted.height + waiting[-1].height) // 2
            block = yield pivot
            if block.height != pivot:
                raise _refuse(block, f"block {pivot} was asked for") from None
            check_light_block(block, rules.chain_id)
            waiting.append(block)
        else:
            waiting.pop()
    return trusted


# --- forks ---------------------------------------------------------------------------------------


def compare(first: LightBlock, second: LightBlock) -> None:
    """Compare two verified blocks of one height.

    Raises: LedgerForkError with both as evidence if they differ.
    """
    if first.hash != second.hash:
        pairs = find_double_votes(first.commit, second.commit)
        raise LedgerForkError(
            f"the ledger has forked: two blocks of height {first.height} are decided, "
            f"{short_id(first.hash)} and {short_id(second.hash)}; stop trading and report both",
            height=first.height,
            first=first,
            second=second,
            double_votes=pairs,
        )


def find_double_votes(
    first: Commit, second: Commit
) -> tuple[tuple[Signed[Vote], Signed[Vote]], ...]:
    """Pair the votes of those who signed both commits in one round: evidence to be slashed for."""
    others = {vote.signer_id: vote for vote in second.precommits}
    pairs = []
    for vote in first.precommits:
        other = others.get(vote.signer_id)
        if other is not None and vote.message.round == other.message.round:
            pairs.append((vote, other))
    return tuple(pairs)
