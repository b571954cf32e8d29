"""Random transactions, valid and invalid, on two replicas: what must hold after every block.

Source: docs/spec/ledger.md §11.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from iemas.core.auction import Ask
from iemas.core.envelope import Signed
from iemas.core.errors import InvalidTranscriptError
from iemas.core.params import MarketParams
from iemas.core.types import ChannelId, Hash, HubId, Prices
from iemas.ledger.snapshot import decode_state, take_snapshot
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

VALIDATORS = ("node-1", "node-2", "node-3")
PEOPLE = (*VALIDATORS, "alice", "bob", "carol")
PARAMS = MarketParams(
    settle_terms=2,
    bid_fee_micros=3,
    min_stake_micros=300,
    max_validators=5,
    evidence_window_ms=15_000,
    unbonding_ms=25_000,
    double_vote_slash_ppm=333_333,
    transcript_slash_ppm=111_111,
    absence_limit=2,
    jail_ms=15_000,
    sealed_asks=True,
    ask_epoch_ms=12_000,
    ask_reveal_ms=60,
    ask_bond_micros=100,
    idempotency_window_ms=20_000,
    reservation_fee_ppm=50_000,
)

names = st.sampled_from(PEOPLE)
validators = st.sampled_from(VALIDATORS)
hubs = st.sampled_from((HubId("model"), HubId("model"), HubId("model"), HubId("nowhere")))
amounts = st.one_of(st.integers(1, 200), st.integers(200, 600), st.integers(1, 4_000))
terms_back = st.integers(-1, 4)
MAX_WAITING = 6
FALLEN_DUE = (
    TransferReason.UNBONDED,
    TransferReason.HOLD_EXPIRED,
    TransferReason.BOND_BURNED,
    TransferReason.RESERVATION_FEES,
)
"""What moves money in a block without a transaction."""
keys = st.sampled_from((b"1" * 16, b"2" * 32))
mostly = st.sampled_from((True, True, True, False))
channels = st.sampled_from((ChannelId(1), ChannelId(2)))


def judge(transcript: Signed[Any], state: LedgerState) -> None:
    """Find every other transcript wrong."""
    if transcript.message.term % 2:
        raise InvalidTranscriptError("wrong")


class LedgerMachine(RuleBasedStateMachine):
    """Two replicas that apply the same blocks."""

    @initialize()
    def start(self) -> None:
        genesis = make_genesis(available_micros=3_000, escrow_micros=1_000, params=PARAMS)
        self.chain = LedgerChain(genesis, verify_transcript=judge, replicas=2)
        self.waiting: list[Signed[Transaction]] = []
        self.supply = self.chain.state.get_total_money()
        for name in (*VALIDATORS, "carol"):
            self.add("alice", TransferFunds(self.chain.get_id(name), 400))
        for name in ("node-1", "bob"):
            self.add(name, PlaceDeposit(150))
        self.make_block(1, None)

    def add(self, name: str, body: TransactionBody) -> None:
        """Sign a transaction; when enough wait, they make a block."""
        self.waiting.append(self.chain.make_transaction(name, body))
        if len(self.waiting) > MAX_WAITING:
            self.make_block(1, None)

    def find_term(self, back: int) -> int:
        return max(0, self.chain.state.get_term(self.chain.hub).number - back)

    def find_auctioneer(self, term: int) -> str:
        found = self.chain.state.get_term_by_number(self.chain.hub, term)
        return self.chain.get_name(found.auctioneer) if found else "node-1"

    # --- transactions ----------------------------------------------------------------------------

    @rule(sender=names, receiver=names, amount=amounts)
    def transfer(self, sender: str, receiver: str, amount: int) -> None:
        self.add(sender, TransferFunds(self.chain.get_id(receiver), amount))

    @rule(sender=names, hub=hubs, amount=amounts)
    def fund(self, sender: str, hub: HubId, amount: int) -> None:
        self.add(sender, FundEscrow(hub, amount))

    @rule(sender=names, hub=hubs, amount=amounts)
    def withdraw(self, sender: str, hub: HubId, amount: int) -> None:
        self.add(sender, WithdrawEscrow(hub, amount))

    @rule(sender=names, to=names, amount=amounts, key=keys, timeout_ms=st.integers(1, 30_000))
    def hold(self, sender: str, to: str, amount: int, key: bytes, timeout_ms: int) -> None:
        self.add(sender, HoldFunds(key, self.chain.get_id(to), amount, timeout_ms))

    @rule(sender=names, payer=names, amount=amounts, key=keys)
    def post_hold(self, sender: str, payer: str, amount: int, key: bytes) -> None:
        self.add(sender, PostHold(self.chain.get_id(payer), key, amount))

    @rule(sender=names, payer=names, key=keys)
    def void_hold(self, sender: str, payer: str, key: bytes) -> None:
        self.add(sender, VoidHold(self.chain.get_id(payer), key))

    @rule(sender=names, amount=amounts)
    def place_deposit(self, sender: str, amount: int) -> None:
        self.add(sender, PlaceDeposit(amount))

    @rule(sender=names, amount=amounts)
    def withdraw_deposit(self, sender: str, amount: int) -> None:
        self.add(sender, WithdrawDeposit(amount))

    @rule(sender=names, ahead=st.integers(0, 2))
    def commit_ask(self, sender: str, ahead: int) -> None:
        epoch = self.chain.state.ask_epochs[self.chain.hub].number + ahead
        self.add(sender, self.chain.make_commitment(sender, epoch, Prices(1, 1, 5)))

    @rule(sender=names, price=st.sampled_from((5, 5, 5, 6)))
    def reveal_ask(self, sender: str, price: int) -> None:
        epoch = self.chain.state.ask_epochs[self.chain.hub].number
        self.add(sender, self.chain.make_reveal(sender, epoch, Prices(1, 1, price)))

    @rule(sender=names, ahead=st.integers(0, 1), model=st.sampled_from((b"1" * 32, b"2" * 32)))
    def vote_model(self, sender: str, ahead: int, model: bytes) -> None:
        epoch = self.chain.state.ask_epochs[self.chain.hub].number + ahead
        self.add(sender, VoteModel(self.chain.hub, epoch, Hash(model)))

    @rule(
        sender=names,
        name=st.sampled_from(("bid_fee_micros", "reporter_ppm", "min_stake_micros", "term_ms")),
        value=st.sampled_from((0, 7, 60_000)),
    )
    def vote_parameter(self, sender: str, name: str, value: int) -> None:
        self.add(sender, VoteParameter(name, value))

    @rule(sender=names, amount=amounts)
    def stake(self, sender: str, amount: int) -> None:
        self.add(sender, Stake(amount))

    @rule(sender=names, amount=st.one_of(amounts, st.just(1_000)))
    def unstake(self, sender: str, amount: int) -> None:
        self.add(sender, Unstake(amount))

    @rule(sender=names, hub=hubs, price=st.integers(1, 5))
    def ask(self, sender: str, hub: HubId, price: int) -> None:
        self.add(sender, PostAsk(Ask(hub, Prices(price, 1, price))))

    @rule(
        account=st.sampled_from(("alice", "alice", "bob", "bob", "carol")),
        provider=names,
        back=terms_back,
        totals=st.lists(
            st.tuples(
                channels,
                st.one_of(st.integers(1, 150), amounts),
                st.integers(1, 4),
                mostly,
            ),
            min_size=1,
            max_size=3,
        ),
        forged=mostly.map(lambda honest: not honest),
    )
    def settle(
        self,
        account: str,
        provider: str,
        back: int,
        totals: list[tuple[ChannelId, int, int, bool]],
        forged: bool,
    ) -> None:
        term = self.find_term(back)
        entries = [
            self.chain.make_entry(
                account,
                provider,
                term,
                total,
                sequence=sequence,
                channel=channel,
                reserved_micros=total if covered else total // 2,
                auctioneer=self.find_auctioneer(term),
                signed_by="bob" if forged else account,
            )
            for channel, total, sequence, covered in totals
        ]
        self.add(provider, Settle(tuple(entries)))

    @rule(
        back=terms_back,
        holds=st.dictionaries(names, st.integers(0, 500)),
        bids=st.lists(st.tuples(names, st.integers(1, 300)), max_size=3),
    )
    def close_books(self, back: int, holds: dict[str, int], bids: list[tuple[str, int]]) -> None:
        term = self.find_term(back)
        signed = tuple(
            self.chain.sign(name, self.chain.make_sealed_bid(name, term, nonce=nonce))
            for name, nonce in bids
        )
        listed = tuple(AccountHold(self.chain.get_id(n), m) for n, m in holds.items())
        body = RoundRoots(self.chain.hub, term, (), listed, signed)
        self.add(self.find_auctioneer(term), body)

    @rule(voter=names, accused=validators, back=st.integers(0, 1))
    def vote(self, voter: str, accused: str, back: int) -> None:
        term = self.find_term(back)
        self.add(voter, AbsenceVote(self.chain.hub, term, self.chain.get_node(accused)))

    @rule(sender=names)
    def come_back(self, sender: str) -> None:
        self.add(sender, ReturnToDuty(self.chain.hub))

    @rule(sender=names, back=terms_back)
    def accuse(self, sender: str, back: int) -> None:
        term = self.find_term(back)
        self.add(sender, self.chain.make_transcript_evidence(self.find_auctioneer(term), term))

    @rule(sender=names, accused=names, back=st.integers(-1, 6))
    def prove_double_vote(self, sender: str, accused: str, back: int) -> None:
        height = max(1, self.chain.state.height - back)
        self.add(sender, self.chain.make_double_vote(accused, height))

    @rule(sender=names, thief=names)
    def steal(self, sender: str, thief: str) -> None:
        body = TransferFunds(self.chain.get_id(thief), 1)
        nonce = self.chain.state.get_nonce(self.chain.get_id(sender)) + 1
        transaction = Transaction(self.chain.get_id(sender), nonce, body)
        self.waiting.append(self.chain.sign(thief, transaction))

    @rule()
    def repeat(self) -> None:
        self.waiting += self.waiting[-2:]

    # --- blocks ----------------------------------------------------------------------------------

    @rule(
        after_ms=st.sampled_from((1, 50, PARAMS.term_ms)),
        proposer=st.sampled_from((None, *VALIDATORS)),
    )
    def end_block(self, after_ms: int, proposer: str | None) -> None:
        self.make_block(after_ms, proposer)

    def make_block(self, after_ms: int, proposer: str | None) -> None:
        before = self.chain.state
        transactions, self.waiting = self.waiting, []
        finalized = self.chain.apply(transactions, after_ms=after_ms, proposer=proposer)
        assert len(finalized.results) == len(transactions)
        self.check_refusals_move_nothing(before, finalized)

    def check_refusals_move_nothing(self, before: LedgerState, finalized: Any) -> None:
        if all(result.code is not ResultCode.OK for result in finalized.results):
            due = [transfer for transfer in finalized.transfers if transfer.reason in FALLEN_DUE]
            assert list(finalized.transfers) == due
            for name in PEOPLE if not due else ():
                account = self.chain.get_id(name)
                assert self.chain.state.get_balance(account) == before.get_balance(account)

    # --- what must hold --------------------------------------------------------------------------

    @invariant()
    def money_is_conserved(self) -> None:
        assert self.chain.state.get_total_money() == self.supply

    @invariant()
    def nothing_is_negative(self) -> None:
        for record in self.chain.state.accounts.values():
            assert all(balance.micros > 0 for balance in record.balances)

    @invariant()
    def replicas_agree(self) -> None:
        first, twin = self.chain.engine.alive
        assert first.app.state.compute_root() == twin.app.state.compute_root()

    @invariant()
    def escrow_covers_open_terms(self) -> None:
        for name in PEOPLE:
            assert self.chain.state.get_free_escrow(self.chain.hub, self.chain.get_id(name)) >= 0

    @invariant()
    def settled_totals_stay_within_the_allowance(self) -> None:
        state = self.chain.state
        paid: dict[tuple[int, bytes], int] = {}
        for key, total in state.totals.items():
            place = (key.term, key.account)
            paid[place] = paid.get(place, 0) + total.total_micros
        for (term, account), micros in paid.items():
            assert micros <= state.get_allowance(self.chain.hub, account, term)  # type: ignore[arg-type]

    @invariant()
    def the_hub_has_an_auctioneer(self) -> None:
        state = self.chain.state
        term = state.get_term(self.chain.hub)
        assert state.is_live(self.chain.hub, term.auctioneer)
        assert term.witness != term.auctioneer
        assert term.witness is None or state.is_live(self.chain.hub, term.witness)

    @invariant()
    def somebody_votes_and_past_voters_are_known(self) -> None:
        state = self.chain.state
        members = state.get_consensus_validators()
        assert members
        assert all(power > 0 for _, power in members)
        assert state.get_consensus_validators_at(state.height + 2) == members

    @invariant()
    def a_snapshot_has_the_same_root(self) -> None:
        state = self.chain.state
        decoded = decode_state(self.chain.genesis, take_snapshot(state).leaves)
        assert decoded.compute_root() == state.compute_root()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
