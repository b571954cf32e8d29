"""A ledger with known keys: what tests need to sign transactions and apply blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from iemas import wire
from iemas.core.asks import compute_ask_commitment
from iemas.core.auction import (
    N_SCENARIOS,
    Allocation,
    ClearingResult,
    ProviderQos,
    QosModel,
    RoundClose,
    Scenario,
    SealedBid,
    ShareRelease,
    Transcript,
)
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed
from iemas.core.errors import InternalError
from iemas.core.execution import ChannelTotal
from iemas.core.identity import Identity
from iemas.core.params import Genesis, GenesisAccount, GenesisValidator, MarketParams
from iemas.core.types import AccountId, ChannelId, Hash, HubId, Lateness, NodeId, Prices
from iemas.core.vote import Vote, VoteKind
from iemas.ledger.application import FinalizedBlock, LedgerApplication
from iemas.ledger.header import Block
from iemas.ledger.rules.evidence import TranscriptVerifier
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    CommitAsk,
    DoubleVoteEvidence,
    Evidence,
    RevealAsk,
    SettlementEntry,
    Transaction,
    TransactionBody,
    TransactionResult,
    TranscriptEvidence,
)
from iemas.testing.engine import InProcessEngine

HUB = HubId("model")
START_MS = 1_800_000_000_000
CHANNEL = ChannelId(7)
PRICES = Prices(100, 10, 200)
SOME_HASH = bytes(32)
SOME_MODEL = QosModel(
    (Scenario(1, 0, 0),) * N_SCENARIOS, ProviderQos(NodeId(SOME_HASH), 0, 0, 0, 0, 0, 0, 0, 0), ()
)
KNOWN_NAMES = ("node-1", "node-2", "node-3", "node-4", "alice", "bob", "carol")


def make_identity(name: str) -> Identity:
    """Derive a key from a name."""
    return Identity(compute_hash(b"ledger chain", name.encode()))


def make_genesis(
    *,
    validators: Sequence[str] = ("node-1", "node-2", "node-3"),
    stake_micros: int = 1_000,
    accounts: Sequence[str] = ("alice", "bob"),
    available_micros: int = 1_000_000,
    escrow_micros: int = 400_000,
    params: MarketParams | None = None,
) -> Genesis:
    """Make a genesis in which everybody is equal."""
    return Genesis(
        name="chain",
        time_ms=START_MS,
        hub=HUB,
        model="model",
        validators=tuple(
            GenesisValidator(make_identity(name).node_id, stake_micros) for name in validators
        ),
        accounts=tuple(
            GenesisAccount(AccountId(make_identity(name).node_id), available_micros, escrow_micros)
            for name in accounts
        ),
        params=params if params is not None else MarketParams(),
    )


def accept_transcript(transcript: object, state: LedgerState) -> None:
    """Find nothing wrong with any transcript."""


class LedgerChain:
    """A ledger application, the keys of everyone on it, and a clock that blocks move.

    With more `replicas` every block is applied at each, and their results are compared.
    """

    def __init__(
        self,
        genesis: Genesis | None = None,
        *,
        verify_transcript: TranscriptVerifier = accept_transcript,
        replicas: int = 1,
    ) -> None:
        self.genesis = genesis if genesis is not None else make_genesis()
        self.chain_id = self.genesis.compute_chain_id(b"test genesis")
        self.hub = self.genesis.hub
        self._verify_transcript = verify_transcript
        self._names: dict[bytes, str] = {}
        self.engine = InProcessEngine(
            lambda _: self.make_app(),
            [validator.node_id for validator in self.genesis.validators[:replicas]],
            get_signer=lambda node_id: self.get_signer(self.get_name(node_id)),
            now_ms=self.genesis.time_ms,
        )
        self._nonces: dict[str, int] = {}

    def make_app(self) -> LedgerApplication:
        """Make another replica's application, at genesis."""
        return LedgerApplication(
            self.genesis, self.chain_id, verify_transcript=self._verify_transcript
        )

    @property
    def app(self) -> LedgerApplication:
        """The application; the first replica's."""
        return self.engine.app

    @property
    def state(self) -> LedgerState:
        """The committed state."""
        return self.engine.state

    @property
    def blocks(self) -> list[Block]:
        """The blocks applied so far."""
        return self.engine.blocks

    @property
    def now_ms(self) -> int:
        """The clock: the last block's time, unless somebody moved it on."""
        return self.engine.now_ms

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self.engine.now_ms = now_ms

    def get_id(self, name: str) -> AccountId:
        """Give the account id behind a name; it is the node id as well."""
        identity = make_identity(name)
        self._names[identity.node_id] = name
        return AccountId(identity.node_id)

    def get_node(self, name: str) -> NodeId:
        """Give the node id behind a name."""
        return NodeId(self.get_id(name))

    def get_name(self, identifier: bytes | None) -> str:
        """Give the name behind an id that `get_id` or the genesis made."""
        for name in KNOWN_NAMES:
            self._names.setdefault(make_identity(name).node_id, name)
        return self._names[identifier] if identifier is not None else "nobody"

    def get_signer(self, name: str) -> wire.WireSigner:
        """Give the signer of a name's key on this chain."""
        return wire.WireSigner(make_identity(name), self.chain_id)

    def sign(self, name: str, message: Any) -> Signed[Any]:
        """Sign any message with a name's key."""
        return self.get_signer(name).sign(message)

    def make_transaction(
        self, name: str, body: TransactionBody, *, nonce: int | None = None
    ) -> Signed[Transaction]:
        """Sign a transaction under the name's next nonce, or under the given one."""
        if nonce is None:
            nonce = max(self._nonces.get(name, 0), self.state.get_nonce(self.get_id(name))) + 1
        self._nonces[name] = max(nonce, self._nonces.get(name, 0))
        signed: Signed[Transaction] = self.sign(name, Transaction(self.get_id(name), nonce, body))
        return signed

    def make_block(
        self,
        transactions: Sequence[Signed[Transaction]] = (),
        *,
        after_ms: int = 0,
        proposer: str | None = None,
        **changes: Any,
    ) -> Block:
        """Make the next block, `after_ms` after the last one; `changes` are to its header.

        Without a `proposer` the validators take turns.
        """
        validators = self.genesis.validators
        in_turn = validators[(self.state.height + 1) % len(validators)].node_id
        name = proposer or self.get_name(in_turn)
        block = self.engine.make_block(
            transactions, proposer=self.get_node(name), time_ms=self.now_ms + after_ms
        )
        if not changes:
            return block
        return replace(block, header=self.sign(name, replace(block.header.message, **changes)))

    def apply(
        self,
        transactions: Sequence[Signed[Transaction]] = (),
        *,
        after_ms: int = 0,
        proposer: str | None = None,
    ) -> FinalizedBlock:
        """Apply and commit the next block. Raises: InternalError if replicas differ on it."""
        block = self.make_block(transactions, after_ms=after_ms, proposer=proposer)
        finalized = self.engine.execute(block)
        self.now_ms = block.time_ms
        if any(replica.finalized[block.height] != finalized for replica in self.engine.alive):
            raise InternalError(f"the replicas differ on block {block.height}", height=block.height)
        return finalized

    def submit(self, name: str, body: TransactionBody) -> TransactionResult:
        """Apply one transaction in a block of its own and give its result."""
        return self.apply([self.make_transaction(name, body)]).results[0]

    def end_term(self) -> int:
        """Let the current term run out; give its number."""
        number = self.state.get_term(self.hub).number
        self.apply(after_ms=self.genesis.params.term_ms)
        return number

    def get_auctioneer(self, term: int | None = None) -> str:
        """Name the auctioneer of an open term, by default of the current one."""
        number = self.state.get_term(self.hub).number if term is None else term
        found = self.state.get_term_by_number(self.hub, number)
        if found is None:
            raise LookupError(f"term {number} is not open")
        return self.get_name(found.auctioneer)

    # --- consensus messages ----------------------------------------------------------------------

    def make_vote(
        self,
        name: str,
        height: int,
        block_hash: bytes | None,
        *,
        round_number: int = 0,
        kind: VoteKind = VoteKind.PREVOTE,
    ) -> Signed[Vote]:
        """Sign a vote of a validator."""
        value = None if block_hash is None else Hash(block_hash)
        signed: Signed[Vote] = self.sign(name, Vote(height, round_number, kind, value))
        return signed

    def make_double_vote(self, name: str, height: int) -> Evidence:
        """Make the evidence that a validator voted for a block and for none at a height."""
        votes = (self.make_vote(name, height, None), self.make_vote(name, height, SOME_HASH))
        return Evidence(DoubleVoteEvidence(*votes))

    def make_transcript_evidence(self, name: str, term: int) -> Evidence:
        """Make evidence of a transcript that a name signed; the verifier says if it is wrong."""
        signed: Signed[Transcript] = self.sign(name, self.make_transcript(term))
        return Evidence(TranscriptEvidence(signed))

    # --- sealed asks -----------------------------------------------------------------------------

    def make_commitment(self, name: str, epoch: int, prices: Prices) -> CommitAsk:
        """Commit a name to an ask for an epoch, with a salt that follows from them."""
        node, salt = self.get_node(name), self.make_salt(name, epoch)
        commitment = compute_ask_commitment(self.chain_id, self.hub, epoch, node, prices, salt=salt)
        return CommitAsk(self.hub, epoch, commitment)

    def make_reveal(self, name: str, epoch: int, prices: Prices) -> RevealAsk:
        """Open what `make_commitment` committed to."""
        return RevealAsk(self.hub, epoch, prices, self.make_salt(name, epoch))

    def make_salt(self, name: str, epoch: int) -> Hash:
        """Derive the salt of a name's ask for an epoch."""
        return compute_hash(b"salt", name.encode(), str(epoch).encode())

    # --- market messages -------------------------------------------------------------------------

    def make_sealed_bid(
        self, account: str, term: int, *, nonce: int = 1, channel: ChannelId = CHANNEL
    ) -> SealedBid:
        """Make a sealed bid that nobody could open."""
        return SealedBid(
            hub=self.hub,
            term=term,
            account=self.get_id(account),
            channel=channel,
            nonce=nonce,
            ciphertext=b"sealed",
            chain_hash=SOME_HASH,
            auctioneer_seal=b"",
            witness_seal=b"",
            auctioneer_share_hash=SOME_HASH,
            witness_share_hash=SOME_HASH,
        )

    def make_allocation(
        self,
        account: str,
        provider: str,
        term: int,
        reserved_micros: int,
        *,
        channel: ChannelId = CHANNEL,
    ) -> Allocation:
        """Make an allocation whose channel may settle `reserved_micros` in the term."""
        return Allocation(
            hub=self.hub,
            term=term,
            round=0,
            bid_hash=SOME_HASH,
            account=self.get_id(account),
            channel=channel,
            provider=self.get_node(provider),
            prompt_tokens=10,
            cached_tokens=0,
            max_tokens=10,
            rates=PRICES,
            lateness=Lateness(),
            price_micros=reserved_micros,
            reserved_micros=reserved_micros,
            channel_reserved_micros=reserved_micros,
            expected_ttft_ms=1,
            expires_at_ms=START_MS,
            transcript_hash=SOME_HASH,
        )

    def make_transcript(self, term: int) -> Transcript:
        """Make the transcript of an empty round; whether it is right is up to the verifier."""
        close = RoundClose(self.hub, term, 0, SOME_HASH, 1, START_MS, sealed=True)
        release = ShareRelease(self.hub, term, 0, SOME_HASH, ())
        return Transcript(
            hub=self.hub,
            term=term,
            round=0,
            auctioneer=self.get_node("node-1"),
            witness=self.get_node("node-2"),
            previous_hash=SOME_HASH,
            cleared_at_ms=START_MS,
            ledger_height=0,
            close=self.sign("node-1", close),
            release=self.sign("node-2", release),
            model=SOME_MODEL,
            providers=(),
            tasks=(),
            clearing=ClearingResult("provider", (), 0, (), (), (), ()),
        )

    def make_entry(
        self,
        account: str,
        provider: str,
        term: int,
        total_micros: int,
        *,
        sequence: int = 1,
        reserved_micros: int | None = None,
        channel: ChannelId = CHANNEL,
        auctioneer: str | None = None,
        signed_by: str | None = None,
    ) -> SettlementEntry:
        """Make a settlement entry, signed by the term's auctioneer and by the account."""
        reserved = total_micros if reserved_micros is None else reserved_micros
        allocation = self.make_allocation(account, provider, term, reserved, channel=channel)
        total = ChannelTotal(
            self.hub,
            term,
            self.get_id(account),
            channel,
            self.get_node(provider),
            sequence,
            total_micros,
        )
        signer = auctioneer if auctioneer is not None else self.get_auctioneer(term)
        return SettlementEntry(
            self.sign(signer, allocation),
            self.sign(signed_by if signed_by is not None else account, total),
        )
