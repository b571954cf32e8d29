"""Some nodes of one market in one thread, with a network that loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auctioneer.predictors.linear import LinearPredictor
from iemas import wire
from iemas.consensus.engine import TendermintEngine
from iemas.consensus.messages import CommittedBlock, SignRecord, ValidRecord
from iemas.core.auction import Bid, QosModel, RoundClose, ShareRelease, Transcript
from iemas.core.execution import UnsettledChannel
from iemas.core.params import MarketParams
from iemas.core.ready import Ready, RecordKind
from iemas.core.types import HashAlgorithm, Prices
from iemas.ledger.application import LedgerApplication
from iemas.ledger.transaction import RevealAsk
from iemas.testing.builders import ASK, BLOCK_SIZE
from iemas.testing.chain import HUB, START_MS, LedgerChain, make_genesis, make_identity
from iemas.testing.disk import SimulatedDisk
from node.core import NodeCore, ReceivePeerMessage, TimePassed
from node.reporting import NodeProfile

OBSERVER = "observer"
NODES = (OBSERVER, "node-1", "node-2")


class Nodes:
    """By default two validators that sell and an observer, with a network that loses nothing."""

    def __init__(
        self,
        names: Sequence[str] = NODES,
        *,
        params: MarketParams | None = None,
        accounts: Sequence[str] = ("alice", "bob"),
    ) -> None:
        self.names = names
        validators = [name for name in names if name != OBSERVER]
        self.genesis = make_genesis(validators=validators, accounts=accounts, params=params)
        self.chain = LedgerChain(self.genesis)
        self.now_ms = START_MS
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.transcripts: list[object] = []
        self.sent: list[tuple[str, Any]] = []
        self.disks = {name: SimulatedDisk() for name in names}
        self.cores = {name: self.make_core(name) for name in names}

    def make_core(self, name: str, ask: Prices = ASK) -> NodeCore:
        signer = self.chain.get_signer(name)
        sells = name != OBSERVER
        app = LedgerApplication(
            self.genesis, self.chain.chain_id, verify_transcript=lambda transcript, state: None
        )
        hpke_key = make_identity(name).derive_hpke_key()
        return NodeCore(
            genesis=self.genesis,
            chain_id=self.chain.chain_id,
            signer=signer,
            hpke_key=hpke_key,
            profile=NodeProfile(
                public_address=f"{name}:1",
                peer_address=f"{name}:2",
                ca_certificate=b"",
                hpke_public_key=hpke_key.public_key().public_bytes_raw(),
                software="test",
                hub=HUB,
                model=HUB if sells else "",
                tokenizer_hash=bytes(32) if sells else b"",
                block_size=BLOCK_SIZE if sells else 0,
                hash_algorithm=HashAlgorithm.SHA256_CBOR,
                context_tokens=4096 if sells else 0,
                slots=4 if sells else 0,
            ),
            ask=ask if sells else None,
            ask_secret=make_identity(name).derive_secret("asks"),
            engine=TendermintEngine(
                app, genesis=self.genesis, chain_id=self.chain.chain_id, signer=signer
            ),
            predictor=LinearPredictor(),
            decode_bid=lambda data: wire.decode(Bid, data),
            incarnation=self.now_ms,
        )

    def restart(self, name: str, ask: Prices) -> None:
        """Kill a node, and start it anew from its disk with this ask configured."""
        disk, core = self.disks[name], self.make_core(name, ask)
        core.restore(
            blocks=disk.scan(RecordKind.BLOCK, CommittedBlock),
            signed=disk.scan(RecordKind.SIGNED, SignRecord),
            valid=disk.scan(RecordKind.VALID, ValidRecord),
            snapshot=disk.load_snapshot(),
            transcripts=disk.scan_signed(RecordKind.TRANSCRIPT, Transcript),
            closes=disk.scan_signed(RecordKind.CLOSED_ROUND, RoundClose),
            releases=disk.scan_signed(RecordKind.RELEASED_CLOSE, ShareRelease),
            unsettled=disk.scan(RecordKind.UNSETTLED, UnsettledChannel),
            sealed_asks=disk.scan(RecordKind.SEALED_ASK, RevealAsk),
            models=disk.scan(RecordKind.MODEL, QosModel),
        )
        self.cores[name] = core
        self.join()

    def carry(self, name: str, ready: Ready) -> Ready:
        """Deliver what a step sent, and all that follows; give the step's own effects."""
        queue = [(name, send) for send in ready.send]
        self.log(name, ready)
        names = {core.node_id: other for other, core in self.cores.items()}
        while queue:
            sender, send = queue.pop(0)
            self.sent.append((sender, send.message))
            to = names.get(send.to)
            if to is None:
                continue
            inp = ReceivePeerMessage(self.cores[sender].node_id, send.message)
            answer = self.cores[to].step(inp, now_ms=self.now_ms)
            self.log(to, answer)
            queue += [(to, follow) for follow in answer.send]
        return ready

    def log(self, name: str, ready: Ready) -> None:
        self.events += [(name, event.name, dict(event.fields)) for event in ready.events]
        self.disks[name].write(ready.persist)
        for record in ready.persist:
            if record.kind is RecordKind.TRANSCRIPT and record.value not in self.transcripts:
                self.transcripts.append(record.value)

    def step(self, name: str, inp: object) -> Ready:
        return self.carry(name, self.cores[name].step(inp, now_ms=self.now_ms))

    def join(self) -> None:
        """Let everyone know everyone."""
        for name in self.names:
            self.step(name, TimePassed())
        for name in self.names:
            for other in self.names:
                record = self.cores[name].membership.get_node(self.cores[name].node_id)
                if other != name and record is not None:
                    ready = self.cores[other].introduce(record.capability, now_ms=self.now_ms)
                    self.carry(other, ready)

    def pass_time(self, total_ms: int, *, step_ms: int = 250) -> None:
        for _ in range(total_ms // step_ms):
            self.now_ms += step_ms
            for name in self.cores:
                self.step(name, TimePassed())

    def send(self, sender: str, to: str, message: object) -> Ready:
        inp = ReceivePeerMessage(self.chain.get_node(sender), message)
        return self.carry(to, self.cores[to].step(inp, now_ms=self.now_ms))
