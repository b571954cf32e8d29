"""The chain of the golden vectors: a market's life, drawn from one seed, every rule in it.

It need not make sense as a market. What matters is that everything happens in it, so seeds are
tried until it does.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, get_args

from iemas.core.auction import Ask
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidTranscriptError
from iemas.core.params import MarketParams
from iemas.core.types import ChannelId, Hash, HubId, Prices
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import (
    AbsenceVote,
    AccountHold,
    FundEscrow,
    HoldFunds,
    PlaceDeposit,
    PostAsk,
    PostHold,
    ResultCode,
    ReturnToDuty,
    RoundRoots,
    Settle,
    Stake,
    Transaction,
    TransactionBody,
    TransferFunds,
    Unstake,
    VoidHold,
    VoteModel,
    VoteParameter,
    WithdrawDeposit,
    WithdrawEscrow,
)
from iemas.ledger.transfer import TransferReason
from iemas.testing.chain import LedgerChain, make_genesis

SEEDS = 100
BLOCKS = 240
MOST_TRANSACTIONS = 5
VALIDATORS = ("node-1", "node-2", "node-3", "node-4")
PEOPLE = (*VALIDATORS, "alice", "bob", "carol")
NOBODY = "dave"
PARAMS = MarketParams(
    settle_terms=2,
    bid_fee_micros=3,
    min_stake_micros=300,
    max_validators=5,
    evidence_window_ms=30_000,
    unbonding_ms=40_000,
    double_vote_slash_ppm=33_333,
    transcript_slash_ppm=11_111,
    absence_limit=2,
    jail_ms=20_000,
    max_pending_transfers=3,
    idempotency_window_ms=20_000,
    reservation_fee_ppm=50_000,
    sealed_asks=True,
    ask_epoch_ms=12_000,
    ask_reveal_ms=60,
    ask_bond_micros=100,
)
PAUSES_MS = (1, 50, 50, 200, 1_000, 4_000, 12_000)

Step = tuple[str, TransactionBody]

OUTSIDE_OF_BLOCKS = ("GENESIS", "SNAPSHOT")
"""Why money moves in a store's journal and in no block."""

EVERYTHING = frozenset(
    {body.__name__ for body in get_args(TransactionBody)}
    | {code.name for code in ResultCode if code is not ResultCode.UNSPECIFIED}
    | {reason.name for reason in TransferReason if reason.name not in OUTSIDE_OF_BLOCKS}
)
"""Every kind of transaction, every result, and every reason for which money moves in a block."""


def tell_everything() -> LedgerChain:
    """Tell the first story in which everything happens.

    Raises: LookupError naming what no seed reaches: `Story` must learn to do that.
    """
    never = set(EVERYTHING)
    for seed in range(SEEDS):
        story = Story(seed)
        chain = story.tell()
        if story.reached >= EVERYTHING:
            return chain
        never -= story.reached
    raise LookupError(f"no seed reaches everything; never: {', '.join(sorted(never)) or 'none'}")


def judge(transcript: Signed[Any], state: LedgerState) -> None:
    """Find every other term's transcript wrong. Raises: InvalidTranscriptError."""
    if transcript.message.term % 2:
        raise InvalidTranscriptError("wrong, for the vectors' sake")


class Story:
    """Draws what everybody does, and lets it happen."""

    def __init__(self, seed: int) -> None:
        genesis = make_genesis(
            validators=VALIDATORS,
            stake_micros=20_000,
            available_micros=60_000,
            escrow_micros=20_000,
            params=PARAMS,
        )
        self.chain = LedgerChain(genesis, verify_transcript=judge)
        self.reached: set[str] = set()
        self._random = Random(seed)
        self._sequence = 0
        self._waiting: list[Signed[Transaction]] = []
        self._steps: tuple[Callable[[], Step], ...] = (
            *[self._move_money] * 3,
            *[self._settle] * 5,
            *[self._hold] * 3,
            *[self._bond] * 4,
            *[self._govern] * 3,
            self._close_books,
            self._stake,
            *[self._watch] * 2,
            self._accuse,
        )

    def tell(self) -> LedgerChain:
        """Make all blocks; give the chain. `reached` then says what happened in them."""
        for name in (*VALIDATORS, "carol"):
            self._sign("alice", TransferFunds(self.chain.get_id(name), 4_000))
        for name in ("node-1", "node-2", "bob"):
            self._sign(name, PlaceDeposit(1_000))
        for _ in range(BLOCKS):
            for _ in range(self._random.randint(0, MOST_TRANSACTIONS)):
                self._sign(*self._random.choice(self._steps)())
            if self._waiting and self._random.random() < 0.2:
                self._spoil(self._random.choice(self._waiting))
            self._make_block()
        return self.chain

    def _make_block(self) -> None:
        transactions, self._waiting = self._waiting, []
        pause_ms = self._random.choice(PAUSES_MS)
        finalized = self.chain.apply(
            transactions, after_ms=pause_ms, proposer=self._draw_proposer()
        )
        for signed, result in zip(transactions, finalized.results, strict=True):
            self.reached |= {type(signed.message.body).__name__, result.code.name}
        self.reached |= {transfer.reason.name for transfer in finalized.transfers}

    def _draw_proposer(self) -> str:
        members = self.chain.state.get_consensus_validators_at(self.chain.state.height + 1)
        return self.chain.get_name(self._random.choice(members)[0])

    # --- who and how much ------------------------------------------------------------------------

    def _sign(self, name: str, body: TransactionBody) -> None:
        self._waiting.append(self.chain.make_transaction(name, body))

    def _spoil(self, signed: Signed[Transaction]) -> None:
        """Add the same once more, another under its nonce, or one that somebody else signed."""
        message, name = signed.message, self.chain.get_name(signed.message.account)
        kind = self._random.randrange(3)
        if kind == 0:
            self._waiting.append(signed)
        elif kind == 1:
            body = TransferFunds(self.chain.get_id("bob"), 1)
            self._waiting.append(self.chain.make_transaction(name, body, nonce=message.nonce))
        else:
            self._waiting.append(self.chain.sign("carol" if name != "carol" else "bob", message))

    def _anyone(self) -> str:
        return self._random.choice(PEOPLE)

    def _amount(self) -> int:
        return self._random.choice((1, 7, 250, 900, 5_000, 10**8))

    def _hub(self) -> HubId:
        return self._random.choice((self.chain.hub,) * 7 + (HubId("nowhere"),))

    def _term(self) -> int:
        number = self.chain.state.get_term(self.chain.hub).number
        return max(0, number - self._random.choice((0, 0, 0, 1, 1, 2, 5)))

    def _auctioneer(self, term: int) -> str:
        found = self.chain.state.get_term_by_number(self.chain.hub, term)
        return self.chain.get_name(found.auctioneer) if found else "node-1"

    def _epoch(self) -> int:
        return self.chain.state.ask_epochs[self.chain.hub].number

    # --- steps -----------------------------------------------------------------------------------

    def _move_money(self) -> Step:
        to = self.chain.get_id(self._anyone())
        name = self._random.choice((*PEOPLE, *PEOPLE, NOBODY))
        bodies: tuple[TransactionBody, ...] = (
            TransferFunds(to, self._amount()),
            FundEscrow(self._hub(), self._amount()),
            WithdrawEscrow(self._hub(), self._amount()),
        )
        return name, self._random.choice(bodies)

    def _hold(self) -> Step:
        payer, other = "alice", self._random.choice(("bob", "bob", "carol"))
        key = bytes([self._random.randrange(5)]) * 16
        payer_id = self.chain.get_id(payer)
        timeout_ms = self._random.choice((100, 30_000, 60_000))
        steps: tuple[Step, ...] = (
            (payer, HoldFunds(key, self.chain.get_id(other), 250, timeout_ms)),
            (payer, HoldFunds(key, self.chain.get_id(other), self._amount(), timeout_ms)),
            (other, PostHold(payer_id, key, self._random.choice((1, 7, 250)))),
            (other, VoidHold(payer_id, key)),
        )
        return self._random.choice(steps)

    def _bond(self) -> Step:
        name = self._random.choice(("node-1", "node-2", "bob", "carol"))
        ahead = self._random.choice((1, 1, 1, 0))
        price = self._random.choice((5, 5, 5, 6))
        prices = Prices(1, 1, self._random.choice((5, 5, 9_999)))
        bodies: tuple[TransactionBody, ...] = (
            PostAsk(Ask(self._hub(), prices)),
            PlaceDeposit(self._amount()),
            WithdrawDeposit(self._random.choice((1, 1, 250, 10**8))),
            self.chain.make_commitment(name, self._epoch() + ahead, Prices(1, 1, 5)),
            self.chain.make_commitment(name, self._epoch() + 1, Prices(1, 1, 5)),
            self.chain.make_reveal(name, self._epoch(), Prices(1, 1, price)),
            self.chain.make_reveal(name, self._epoch(), Prices(1, 1, 5)),
        )
        return name, self._random.choice(bodies)

    def _settle(self) -> Step:
        account, provider = self._random.choice(("alice", "bob")), self._anyone()
        term = self._term()
        entries = []
        for _ in range(self._random.choice((1, 1, 2))):
            self._sequence += 1
            total = self._random.choice((1, 40, 700, 2_000, 9_000))
            entries.append(
                self.chain.make_entry(
                    account,
                    provider,
                    term,
                    total,
                    sequence=self._random.choice((self._sequence, self._sequence, 1)),
                    channel=ChannelId(self._random.choice((1, 2))),
                    reserved_micros=total if self._random.random() < 0.9 else total // 2,
                    auctioneer=self._auctioneer(term) if self._random.random() < 0.9 else "node-1",
                    signed_by=account if self._random.random() < 0.9 else "carol",
                )
            )
        return provider, Settle(tuple(entries))

    def _close_books(self) -> Step:
        term = max(0, self.chain.state.get_term(self.chain.hub).number - 1)
        nonce = self._random.choice((1, 50))
        bid = self.chain.sign("alice", self.chain.make_sealed_bid("alice", term, nonce=nonce))
        holds = tuple(
            AccountHold(self.chain.get_id(name), self._random.choice((0, 300, 3_000)))
            for name in ("alice", "bob")
        )
        body = RoundRoots(self.chain.hub, term, (bytes(32),), holds, (bid,))
        return self._auctioneer(term), body

    def _stake(self) -> Step:
        amount = self._random.choice((50, 300, 900, 2_000, 20_000))
        body = Stake(amount) if self._random.random() < 0.5 else Unstake(amount)
        return self._anyone(), body

    def _watch(self) -> Step:
        if self._random.random() < 0.4:
            return self._anyone(), ReturnToDuty(self.chain.hub)
        accused = self.chain.get_node(self._random.choice(("node-3", "node-3", "node-4", "node-2")))
        term = self.chain.state.get_term(self.chain.hub).number
        return self._anyone(), AbsenceVote(self._hub(), term, accused)

    def _accuse(self) -> Step:
        if self._random.random() < 0.6:
            term = self._term()
            accused = self._auctioneer(term)
            return self._anyone(), self.chain.make_transcript_evidence(accused, term)
        height = max(1, self.chain.state.height - self._random.choice((0, 1, 3, 40)))
        return self._anyone(), self.chain.make_double_vote(self._random.choice(VALIDATORS), height)

    def _govern(self) -> Step:
        model = Hash(bytes([self._random.choice((1, 1, 1, 2))]) * 32)
        name, value = self._random.choice(
            (("bid_fee_micros", 5), ("bid_fee_micros", 5), ("reporter_ppm", 7), ("term_ms", 1))
        )
        bodies: tuple[TransactionBody, ...] = (
            VoteModel(self.chain.hub, self._epoch() + 1, model),
            VoteParameter(name, value),
        )
        return self._random.choice((*VALIDATORS, "carol")), self._random.choice(bodies)
