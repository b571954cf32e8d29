"""A market's whole history, fetched from its nodes and checked by whoever asks.

Nothing that a node says is believed: blocks are replayed from genesis with the ledger's own
rules, each block's commit is checked against the validators that the replay gives, every round is
re-checked from its transcript against the ledger as of then, and every node's state root is
compared with the one that comes out. Source: design §4 step 5, §7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from auctioneer.books import TermBooks
from auctioneer.outcomes import ClearedRound, derive_outcomes
from auctioneer.verify import verify_transcript
from iemas import tls, wire
from iemas.consensus.chain import Chain
from iemas.consensus.messages import CommittedBlock
from iemas.core.auction import Allocation, Bid, Transcript
from iemas.core.envelope import Envelope, Signed
from iemas.core.errors import APIConnectionError, IemasError, InvalidTranscriptError
from iemas.core.params import Genesis
from iemas.core.types import ID_BYTES, short_id
from iemas.genesis import describe_other_chain, load_genesis
from iemas.ledger.application import LedgerApplication
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import ResultCode, RoundRoots
from iemas.ledger.transfer import TREASURY
from iemas.rpc_errors import from_rpc_error
from iemas.tls import Address
from iemas.v1 import market_service_pb2 as pb
from iemas.v1.market_service_pb2_grpc import MarketServiceStub
from node.local_market.probe import NodeStatus, get_status

FETCH_S = 600.0
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """What one node says, held against the replay. `agrees` is None if it does not answer."""

    address: str
    node_id: bytes
    status: NodeStatus | None
    agrees: bool | None
    error: str = ""


@dataclass(slots=True)
class Findings:
    """What checking a market's history showed; it holds if there are no `problems`."""

    chain_id: str
    is_genesis_trusted: bool = True
    """Whether the caller had the genesis file, or a node showed it."""
    height: int = 0
    state_root: bytes = b""
    money_micros: int = 0
    supply_micros: int = 0
    transactions: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    terms: int = 0
    rounds: int = 0
    bids: int = 0
    fees_micros: int = 0
    allocations: int = 0
    mode: str = ""
    welfare_micros: int = 0
    """What all rounds' matches were expected to be worth above their cost."""
    provider_gains_micros: int = 0
    """What of it the clearing mode gave to providers, by the expected prices."""
    vcg_deficit_micros: int = 0
    """What full two-sided VCG would have lost on the same rounds."""
    rounds_by_auctioneer: Counter[str] = field(default_factory=Counter)
    nodes: list[NodeVerdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class History:
    """Replays a chain and re-checks its rounds. Pure but for the progress that it tells."""

    def __init__(self, genesis: Genesis, chain_id: str) -> None:
        self._genesis = genesis
        self._chain_id = chain_id
        self._app = LedgerApplication(genesis, chain_id, verify_transcript=self._judge_evidence)
        self._chain = Chain(self._app, chain_id=chain_id)
        self._books: dict[int, tuple[TermBooks, bytes]] = {}
        self._waiting: dict[int, list[Signed[Transcript]]] = {}
        self._known: set[bytes] = set()
        self._places: dict[tuple[int, int], bytes] = {}
        self.cleared: dict[tuple[int, int], ClearedRound] = {}
        self.roots: dict[int, bytes] = {0: self._app.info().state_root}
        self.findings = Findings(
            chain_id, supply_micros=self._app.state.get_total_money(), mode=genesis.params.mode
        )

    @property
    def height(self) -> int:
        """Height of the last replayed block."""
        return self._app.state.height

    @property
    def state(self) -> LedgerState:
        """The ledger after the last replayed block."""
        return self._app.state

    def add_transcripts(self, transcripts: Sequence[Signed[Transcript]]) -> None:
        """Take transcripts; each is checked when the replay reaches the height that it names."""
        for signed in sorted(transcripts, key=lambda t: (t.message.term, t.message.round)):
            if signed.hash in self._known:
                continue
            self._known.add(signed.hash)
            place = (signed.message.term, signed.message.round)
            if self._places.setdefault(place, signed.hash) != signed.hash:
                self._blame(f"term {place[0]} round {place[1]} has two transcripts")
            self._waiting.setdefault(signed.message.ledger_height, []).append(signed)

    def add_block(self, committed: CommittedBlock) -> None:
        """Replay one block, its commit included, and check the rounds that name its height.

        Raises: IemasError if the block does not hold: nothing after it can be checked.
        """
        if committed.height == 1:
            self.check_rounds()
        applied = self._chain.apply(committed)
        self._chain.take_applied()
        block = applied.block
        self.roots[block.height] = applied.state_root
        for transaction, result in zip(block.transactions, applied.results, strict=True):
            self.findings.transactions += 1
            if result.code is not ResultCode.OK:
                self.findings.refused[result.code.name.lower()] += 1
            elif isinstance(transaction.message.body, RoundRoots):
                self._check_roots(transaction.message.body)
        if self._app.state.get_total_money() != self.findings.supply_micros:
            self._blame(f"block {block.height}: money was not conserved")
        self.check_rounds()

    def check_rounds(self) -> None:
        """Re-check the rounds that were cleared on the current height."""
        # A round that only some nodes have came after the later ones of the others.
        waiting = self._waiting.pop(self.height, [])
        for signed in sorted(waiting, key=lambda t: (t.message.term, t.message.round)):
            place = (signed.message.term, signed.message.round)
            try:
                self._follow(signed)
            except InvalidTranscriptError as error:
                self._blame(f"term {place[0]} round {place[1]}: {error}")

    def finish(self) -> Findings:
        """Sum up."""
        self.check_rounds()
        for height in sorted(self._waiting):
            self._blame(f"a round names height {height}, which no block has reached")
        findings = self.findings
        findings.height = self.height
        findings.state_root = self.roots[self.height]
        findings.money_micros = self.state.get_total_money()
        findings.fees_micros = self.state.get_funds(TREASURY)
        findings.terms = self.state.get_term(self._genesis.hub).number + 1
        return findings

    def _blame(self, problem: str) -> None:
        self.findings.problems.append(problem)

    def _check_roots(self, body: RoundRoots) -> None:
        for transcript_hash in body.transcript_hashes:
            if transcript_hash not in self._known:
                self._blame(
                    f"term {body.term}: the ledger names the round {short_id(transcript_hash)}, "
                    "whose transcript no node shows"
                )

    def _follow(self, signed: Signed[Transcript]) -> None:
        """Re-check a round with the books of its term, as every node does."""
        transcript = signed.message
        books, last_hash = self._books.get(transcript.term, (TermBooks(), bytes(ID_BYTES)))
        complete = transcript.previous_hash == last_hash
        cleared = self._verify(signed, self.state, books if complete else None)
        outcomes = derive_outcomes(cleared, books, self._genesis.params)
        allocations = [outcome for outcome in outcomes if isinstance(outcome, Allocation)]
        if complete:
            books.record_allocations(allocations)
            self._books[transcript.term] = (books, signed.hash)
        else:
            self._blame(f"term {transcript.term}: the round before {transcript.round} is missing")
        self.cleared[transcript.term, transcript.round] = cleared
        self.findings.rounds += 1
        self.findings.bids += len(transcript.tasks)
        self.findings.allocations += len(allocations)
        self.findings.welfare_micros += cleared.clearing.welfare_micros
        self.findings.provider_gains_micros += int(cleared.clearing.surcharges.sum())
        self.findings.vcg_deficit_micros += cleared.clearing.vcg_deficit_micros
        self.findings.rounds_by_auctioneer[transcript.auctioneer.hex()] += 1

    def _judge_evidence(self, signed: Signed[Transcript], ledger: LedgerState) -> None:
        self._verify(signed, ledger)

    def _verify(
        self, signed: Signed[Transcript], ledger: LedgerState, books: TermBooks | None = None
    ) -> ClearedRound:
        return verify_transcript(
            signed,
            ledger=ledger,
            chain_id=self._chain_id,
            params=self._genesis.params,
            decode_bid=lambda data: wire.decode(Bid, data),
            get_reserved=books.get_reserved if books is not None else None,
        )


async def check_market(
    addresses: Sequence[Address], expected_genesis: bytes | None, tell: Tell
) -> History:
    """Fetch and check the whole history of a market, and compare all its nodes.

    `expected_genesis`: the genesis file that the caller trusts; without it what the first node
    shows is replayed, which is then all that is known of which market this is.
    Raises: APIConnectionError if no node answers.
    """
    source, shown = await _fetch_genesis(addresses)
    trusted = shown if expected_genesis is None else expected_genesis
    history = History(*load_genesis(trusted)[:2])
    history.findings.is_genesis_trusted = expected_genesis is not None
    if shown != trusted:
        other = load_genesis(shown)[1]
        problem = describe_other_chain(history.findings.chain_id, other)
        history.findings.problems.append(problem)
    source, blocks = await _fetch_whole_chain([source, *addresses])
    for address in addresses:
        tell(f"fetching rounds from {address.target}")
        try:
            history.add_transcripts(await _fetch_transcripts(address))
        except IemasError:
            continue  # `_judge` reports a node that does not answer.
    # Rounds that came meanwhile stand on blocks that came meanwhile.
    blocks += await _fetch_blocks(source, len(blocks) + 1)
    _replay(history, blocks, tell)
    for address in addresses:
        tell(f"comparing {address.target}")
        history.findings.nodes.append(await _judge(history, address, tell))
    history.finish()
    return history


def _replay(history: History, blocks: Sequence[CommittedBlock], tell: Tell) -> None:
    for committed in blocks:
        if committed.height % 20 == 0:
            tell(f"replaying block {committed.height}")
        try:
            history.add_block(committed)
        except IemasError as error:
            history.findings.problems.append(f"block {committed.height}: {error}")
            return


async def _judge(history: History, address: Address, tell: Tell) -> NodeVerdict:
    """Compare one node's state root with the replay's at the node's own height."""
    try:
        status = await get_status(address)
        if status.height > history.height:
            _replay(history, await _fetch_blocks(address, history.height + 1), tell)
    except IemasError as error:
        history.findings.problems.append(f"node {short_id(address.node_id)} does not answer")
        return NodeVerdict(str(address), address.node_id, None, None, str(error))
    agrees = history.roots.get(status.height) == status.state_root
    name = short_id(address.node_id)
    if not agrees:
        history.findings.problems.append(
            f"node {name} has another state root at height {status.height}"
        )
    if status.transcripts_refused:
        history.findings.problems.append(f"node {name} refused {status.transcripts_refused} rounds")
    return NodeVerdict(str(address), address.node_id, status, agrees)


# --- fetching ------------------------------------------------------------------------------------


async def _fetch_genesis(addresses: Sequence[Address]) -> tuple[Address, bytes]:
    failure: Exception | None = None
    for address in addresses:
        try:
            async with await tls.connect(address) as channel:
                stub: Any = MarketServiceStub(channel)
                answer = await stub.GetMarket(pb.GetMarketRequest(), timeout=10)
                return address, answer.genesis_json
        except (grpc.RpcError, IemasError) as error:
            failure = error
    raise APIConnectionError("no node of the market answers: is it running?") from failure


async def _fetch_whole_chain(
    addresses: Sequence[Address],
) -> tuple[Address, list[CommittedBlock]]:
    """Fetch all blocks from the first node that has them: one that took a snapshot has not.

    Where none has, the longest beginning: the replay then says what is missing.
    """
    longest: tuple[Address, list[CommittedBlock]] = (addresses[0], [])
    for address in addresses:
        try:
            blocks = await _fetch_blocks(address, 1)
        except IemasError:
            continue
        gap = next((n for n, block in enumerate(blocks) if block.height != n + 1), None)
        if gap is None and blocks:
            return address, blocks
        if len(blocks[:gap]) > len(longest[1]):
            longest = (address, blocks[:gap])
    return longest


async def _fetch_blocks(address: Address, from_height: int) -> list[CommittedBlock]:
    request = pb.ListBlocksRequest(from_height=from_height)
    answers = await _stream(address, lambda stub: stub.ListBlocks(request, timeout=FETCH_S))
    return [wire.from_proto(CommittedBlock, answer.block) for answer in answers]


async def _fetch_transcripts(address: Address) -> list[Signed[Transcript]]:
    request = pb.ListTranscriptsRequest()
    answers = await _stream(address, lambda stub: stub.ListTranscripts(request, timeout=FETCH_S))
    return [_open(Transcript, answer.transcript) for answer in answers]


async def _stream(address: Address, call: Callable[[Any], Any]) -> list[Any]:
    try:
        async with await tls.connect(address) as channel:
            return [answer async for answer in call(MarketServiceStub(channel))]
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _open(cls: type[Any], proto: Any) -> Signed[Any]:
    return wire.open_envelope(cls, wire.from_proto(Envelope, proto))
