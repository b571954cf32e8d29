"""Membership: which nodes there are, what they last reported, and who answers.

Reports are pushed when they change and pulled by anti-entropy, on join and periodically, so that a
late joiner knows everything after one exchange. Who is silent is probed; who stays silent for
`probe_misses` intervals and one more is suspected until anything arrives from it. Those that the
market waits for when they die (`watch`) are probed twice as often as others. A pure state machine:
docs/spec/membership.md numbers its rules. Source: design §8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from iemas.core.digest import DigestIndex
from iemas.core.envelope import Signed, verify_signed
from iemas.core.errors import (
    ContradictoryReportError,
    FutureReportError,
    InvalidInputError,
    InvalidReportError,
    NoRoomForReportError,
    ReplayedReportError,
    StaleReportError,
    UnknownSignerError,
    WrongSignerError,
)
from iemas.core.gossip import (
    ExchangeRequest,
    ExchangeResponse,
    Probe,
    ProbeAcknowledgement,
    ReportPush,
    ReportVersion,
    SignedReport,
)
from iemas.core.params import MarketParams
from iemas.core.ready import Event, Fault, Ready, Send
from iemas.core.report import CacheDigest, CapabilityReport, LoadReport, Report
from iemas.core.types import NodeId, short_id

EXCHANGE_INTERVAL_MS = 5_000
SLOWNESS = 2
"""Who is not watched is probed every so many intervals, and has so many times the patience."""
MAX_NODES = 10_000
MAX_MESSAGE_REPORT_BYTES = 48 * 1024 * 1024
"""Reports in one message; a single digest of four million blocks (32 MB) still fits."""

SMALL_REPORT_BYTES = 16 * 1024
"""A report up to here is always held: a load report of 440 tasks, a digest of 2,000 blocks."""

MAX_HELD_BYTES = 256 * 1024 * 1024
"""Larger load reports and digests of other nodes, all together."""

MAX_HEARSAY_BYTES = 128 * 1024 * 1024
MAX_HEARSAY_REPORT_BYTES = 2 * 1024 * 1024
"""Of nodes from which nothing came yet but through others: whoever makes up keys makes up those."""

GossipMessage = ReportPush | ExchangeRequest | ExchangeResponse | Probe | ProbeAcknowledgement


@dataclass(frozen=True, slots=True)
class ReceiveGossip:
    """A membership message arrived from a peer."""

    sender: NodeId
    message: GossipMessage


@dataclass(frozen=True, slots=True)
class PublishReport:
    """A new report of this node's own."""

    report: Signed[Report]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


MembershipInput = ReceiveGossip | PublishReport | Tick


@dataclass(slots=True)
class NodeRecord:
    """The last accepted report of each kind of one node, and when it was last heard of.

    A node that others told of counts as heard when they did.
    """

    capability: Signed[CapabilityReport]
    load: Signed[LoadReport] | None = None
    digest: Signed[CacheDigest] | None = None
    heard_at_ms: int = 0
    probed_at_ms: int = 0
    suspected: bool = False
    exchanged: bool = False
    met: bool = False
    """Whether anything ever came from the node itself."""
    declined: dict[type[Report], tuple[int, int]] = field(default_factory=dict)
    """The last of its reports for which there was no room, so as not to ask for them again."""

    def count_large_bytes(self) -> int:
        """Count the bytes of those reports that need room."""
        return sum(_count_large_bytes(report) for report in (self.load, self.digest) if report)

    def get_order(self, kind: type[Report]) -> tuple[int, int]:
        """Give the order of the last report of a kind that is held or was declined."""
        held = self.get_held(kind)
        return max(held.message.stamp.order if held else (0, 0), self.declined.get(kind, (0, 0)))

    def get_reports(self) -> Iterator[Signed[Report]]:
        """Give the reports held, the capability report first."""
        yield self.capability
        if self.load is not None:
            yield self.load
        if self.digest is not None:
            yield self.digest

    def drop_before(self, incarnation: int) -> None:
        """Forget the load report and the digest of earlier incarnations."""
        if self.load is not None and self.load.message.stamp.incarnation < incarnation:
            self.load = None
        if self.digest is not None and self.digest.message.stamp.incarnation < incarnation:
            self.digest = None

    def get_held(self, kind: type[Report]) -> Signed[Report] | None:
        """Give the report held of one kind."""
        if kind is CapabilityReport:
            return self.capability
        return self.load if kind is LoadReport else self.digest


class Membership:
    """The table of nodes and the three protocols that keep it: push, exchange, probe."""

    def __init__(self, *, own_id: NodeId, chain_id: str, params: MarketParams) -> None:
        self._own_id = own_id
        self._chain_id = chain_id
        self._params = params
        self._nodes: dict[NodeId, NodeRecord] = {}
        self._probe_sequence = 0
        self._next_probe_ms = 0
        self._suspect_at_ms = 0
        self._watched: dict[NodeId, int] = {}  # who is watched, since when
        self._next_exchange_ms = 0
        self._exchange_turn = 0
        self._large_bytes = {True: 0, False: 0}  # held of other nodes, by whether they were met
        self.version = 0
        """Counts changes of the set of nodes and of their capability reports."""

    # --- reads -------------------------------------------------------------------------------

    def get_node(self, node_id: NodeId) -> NodeRecord | None:
        """Give what is known of a node, this one included."""
        return self._nodes.get(node_id)

    def get_nodes(self) -> list[tuple[NodeId, NodeRecord]]:
        """Give all known nodes in order of their ids."""
        return sorted(self._nodes.items())

    def get_peers(self) -> list[NodeId]:
        """Give the ids of all known nodes but this one."""
        return [node_id for node_id in sorted(self._nodes) if node_id != self._own_id]

    def is_suspected(self, node_id: NodeId) -> bool:
        """Tell whether a known peer has been silent for too long."""
        record = self._nodes.get(node_id)
        return record is not None and record.suspected

    def has_heard(self, node_id: NodeId, *, since_ms: int) -> bool:
        """Tell whether anything came from a peer since then."""
        record = self._nodes.get(node_id)
        return record is not None and record.heard_at_ms >= since_ms

    def get_reports(self) -> tuple[SignedReport, ...]:
        """Give the reports held, for a newcomer: as many as fit, what nodes are before the rest."""
        reports = [report for _, record in self.get_nodes() for report in record.get_reports()]
        reports.sort(key=lambda report: not isinstance(report.message, CapabilityReport))
        return _take_fitting(reports)

    # --- the step ----------------------------------------------------------------------------

    def step(self, inp: MembershipInput, *, now_ms: int) -> Ready:
        """Advance by one input.

        Raises: InvalidInputError when a peer's exchange message is itself wrong; a bad report
            inside a message is a fault, and the others of that message still hold.
        """
        match inp:
            case PublishReport(report):
                # The rules are for others' reports: a clock set back must not silence this node.
                self._store(report, self._nodes.get(self._own_id), now_ms)
                return self._push((SignedReport.wrap(report),), to=self.get_peers())
            case ReceiveGossip(sender, message):
                return self._receive(sender, message, now_ms) + self.hear(sender, now_ms=now_ms)
            case Tick():
                return self._tick(now_ms)

    def hear(self, sender: NodeId, *, now_ms: int) -> Ready:
        """Take note that something came from a peer, whatever it was."""
        record = self._nodes.get(sender)
        if record is None:
            return Ready()
        record.heard_at_ms = now_ms
        if not record.met:
            with self._count_change(sender, record):
                record.met = True
            record.declined.clear()  # there may be room now
        if not record.suspected:
            return Ready()
        record.suspected = False
        return Ready(events=(Event("peer_alive", {"peer": short_id(sender)}),))

    def watch(self, nodes: Iterable[NodeId], *, now_ms: int) -> Ready:
        """Watch these nodes and no others from now on; probe those not watched before at once.

        A node that finds itself among them probes all others as often, so that they hear of it.
        """
        watched = set(nodes)
        new = sorted(watched - self._watched.keys())
        self._watched = {node: self._watched.get(node, now_ms) for node in sorted(watched)}
        self._suspect_at_ms = now_ms  # they have less time to be heard than before
        ready = Ready(wake_at_ms=now_ms)
        for peer in new:
            if peer in self._nodes and peer != self._own_id:
                ready += self._probe(peer, now_ms)
        return ready

    def suspect(self, node_id: NodeId, *, now_ms: int) -> Ready:
        """Suspect a peer that others hold to be absent, unless it was heard within an interval."""
        record = self._nodes.get(node_id)
        heard_after_ms = now_ms - self._params.probe_interval_ms
        if record is None or record.suspected or record.heard_at_ms > heard_after_ms:
            return Ready()
        record.suspected = True
        return Ready(events=(Event("peer_suspected", {"peer": short_id(node_id)}),))

    def _receive(self, sender: NodeId, message: GossipMessage, now_ms: int) -> Ready:
        match message:
            case ReportPush(reports):
                return self._absorb(sender, reports, now_ms)
            case ExchangeRequest(versions):
                missing = self._select_missing(versions, now_ms)
                response = ExchangeResponse(missing, self._get_versions())
                return Ready(send=(Send(sender, response),))
            case ExchangeResponse(reports, versions):
                ready = self._absorb(sender, reports, now_ms)
                if sender in self._nodes:
                    self._nodes[sender].exchanged = True
                return ready + self._push(self._select_missing(versions, now_ms), to=[sender])
            case Probe(sequence):
                return Ready(send=(Send(sender, ProbeAcknowledgement(sequence)),))
            case ProbeAcknowledgement():
                return Ready()  # that it arrived is all there is to know

    def _absorb(self, sender: NodeId, reports: tuple[SignedReport, ...], now_ms: int) -> Ready:
        """Accept what is valid and new; tell the others of nodes seen for the first time."""
        ready = Ready()
        for wrapped in reports:
            report = wrapped.unwrap()
            if report is None or report.message.stamp.node_id == self._own_id:
                continue  # what an earlier process of this node said is no news to it
            known = report.message.stamp.node_id in self._nodes
            try:
                self._accept(report, now_ms)
            except ContradictoryReportError as error:
                # Its signature holds: whoever signed both answers for it, not who passed it on.
                ready += Ready(faults=(Fault(report.message.stamp.node_id, error),))
                continue
            except InvalidInputError as error:
                ready += Ready(faults=(Fault(sender, error),))
                continue
            if not known:
                ready += self._welcome(report.message.stamp.node_id, wrapped, sender)
        return ready

    def _welcome(self, newcomer: NodeId, wrapped: SignedReport, sender: NodeId) -> Ready:
        """Tell the others of a node seen for the first time, and exchange with it at once."""
        others = [peer for peer in self.get_peers() if peer not in (sender, newcomer)]
        ready = self._push((wrapped,), to=others)
        if newcomer != self._own_id:
            ready += Ready(send=(Send(newcomer, ExchangeRequest(self._get_versions())),))
        return ready

    def receive_report(self, report: Signed[Report], *, now_ms: int) -> Ready:
        """Accept one report outside an exchange (a newcomer that joins through this node).

        Raises: InvalidReportError, InvalidSignatureError, MalformedMessageError.
        """
        known = report.message.stamp.node_id in self._nodes
        self._accept(report, now_ms)
        newcomer = report.message.stamp.node_id
        return Ready() if known else self._welcome(newcomer, SignedReport.wrap(report), newcomer)

    def _accept(self, report: Signed[Report], now_ms: int) -> None:
        """Check a report by the rules and take it in.

        Raises: InvalidReportError, InvalidSignatureError, MalformedMessageError.
        """
        stamp = report.message.stamp
        record = self._nodes.get(stamp.node_id)
        held = record.get_held(type(report.message)) if record is not None else None
        if held is not None and held.hash == report.hash:
            raise ReplayedReportError(node_id=stamp.node_id)
        verify_signed(report, self._chain_id)
        if report.signer_id != stamp.node_id:
            raise WrongSignerError(node_id=stamp.node_id, signer_id=report.signer_id)
        if stamp.issued_at_ms > now_ms + self._params.clock_tolerance_ms:
            raise FutureReportError(node_id=stamp.node_id, issued_at_ms=stamp.issued_at_ms)
        if stamp.expires_at_ms + self._params.clock_tolerance_ms <= now_ms:
            raise StaleReportError(node_id=stamp.node_id, expires_at_ms=stamp.expires_at_ms)
        if record is not None and stamp.incarnation < record.capability.message.stamp.incarnation:
            raise StaleReportError(node_id=stamp.node_id, order=stamp.order)
        if held is not None:
            held_order = held.message.stamp.order
            if stamp.order == held_order:
                raise ContradictoryReportError(node_id=stamp.node_id, order=stamp.order)
            if stamp.order < held_order:
                raise StaleReportError(node_id=stamp.node_id, order=stamp.order)
        self._require_room(report, record)
        if isinstance(report.message, CacheDigest):
            # A round looks blocks up in it: one that cannot be searched must not get so far.
            DigestIndex(report.message.blocks)
        self._store(report, record, now_ms)

    def _require_room(self, report: Signed[Report], record: NodeRecord | None) -> None:
        """Refuse a report that makes this node hold more than it may of the others' (R13).

        Raises: NoRoomForReportError.
        """
        kind, stamp = type(report.message), report.message.stamp
        if record is None or kind is CapabilityReport:
            return  # how many there are is bounded, and how large one is
        held = record.get_held(kind)
        size = _count_large_bytes(report)
        growth = size - (_count_large_bytes(held) if held is not None else 0)
        hearsay, met = self._large_bytes[False], self._large_bytes[True]
        fits = growth <= 0 or hearsay + met + growth <= MAX_HELD_BYTES
        if not record.met:
            fits &= size <= MAX_HEARSAY_REPORT_BYTES
            fits &= growth <= 0 or hearsay + growth <= MAX_HEARSAY_BYTES
        if not fits:
            record.declined[kind] = max(stamp.order, record.get_order(kind))
            raise NoRoomForReportError(node_id=stamp.node_id, size=size)

    @contextmanager
    def _count_change(self, node_id: NodeId, record: NodeRecord) -> Iterator[None]:
        """Keep the count of bytes held while a record changes."""
        if node_id == self._own_id:
            yield
            return
        self._large_bytes[record.met] -= record.count_large_bytes()
        try:
            yield
        finally:
            self._large_bytes[record.met] += record.count_large_bytes()

    def _store(self, report: Signed[Report], record: NodeRecord | None, now_ms: int) -> None:
        node_id = report.message.stamp.node_id
        match report:
            case Signed(CapabilityReport(), _):
                if record is None and len(self._nodes) >= MAX_NODES:
                    raise InvalidReportError("the table of nodes is full", node_id=node_id)
                self.version += 1
                if record is None:
                    self._nodes[node_id] = NodeRecord(report, heard_at_ms=now_ms)  # type: ignore[arg-type]
                    return
                if record.capability.message.stamp.incarnation < report.message.stamp.incarnation:
                    # A restarted node: what its earlier process reported no longer holds.
                    with self._count_change(node_id, record):
                        record.drop_before(report.message.stamp.incarnation)
                    record.exchanged = False
                record.capability = report  # type: ignore[assignment]
            case _ if record is None:
                raise UnknownSignerError(node_id=node_id)
            case Signed(LoadReport(), _):
                with self._count_change(node_id, record):
                    record.load = report  # type: ignore[assignment]
            case Signed(CacheDigest(), _):
                with self._count_change(node_id, record):
                    record.digest = report  # type: ignore[assignment]

    # --- anti-entropy and probes -------------------------------------------------------------

    def _get_versions(self) -> tuple[ReportVersion, ...]:
        versions = []
        for node_id, record in self.get_nodes():
            load, digest = record.get_order(LoadReport), record.get_order(CacheDigest)
            capability = record.capability.message.stamp.order
            versions.append(ReportVersion(node_id, *capability, *load, *digest))
        return tuple(versions)

    def _select_missing(
        self, versions: tuple[ReportVersion, ...], now_ms: int
    ) -> tuple[SignedReport, ...]:
        """Give the reports held here that are newer than the versions named and still stand.

        What does not fit into one message goes with the next exchange.
        """
        theirs = {version.node_id: version for version in versions}
        missing: list[Signed[Report]] = []
        for node_id, record in self.get_nodes():
            version = theirs.get(node_id)
            for report in record.get_reports():
                stamp = report.message.stamp
                newer = version is None or stamp.order > _get_order(version, type(report.message))
                if newer and now_ms < stamp.expires_at_ms:
                    missing.append(report)
        return _take_fitting(missing)

    def _push(self, reports: tuple[SignedReport, ...], *, to: list[NodeId]) -> Ready:
        if not reports:
            return Ready()
        return Ready(send=tuple(Send(peer, ReportPush(reports)) for peer in to))

    def _tick(self, now_ms: int) -> Ready:
        ready = Ready()
        if self._next_probe_ms > now_ms + self._params.probe_interval_ms:
            self._next_probe_ms = self._suspect_at_ms = now_ms  # the clock went back
        if now_ms >= self._next_probe_ms:
            self._next_probe_ms = now_ms + self._params.probe_interval_ms
            self._probe_sequence += 1
            ready += self._expire(now_ms)
            peers = self.get_peers()
            for peer in peers:
                if self._is_probe_due(peer, now_ms):
                    ready += self._probe(peer, now_ms)
            for peer in self._choose_exchange_peers(peers, now_ms):
                ready += Ready(send=(Send(peer, ExchangeRequest(self._get_versions())),))
        if now_ms >= self._suspect_at_ms:
            ready += self._suspect(now_ms)
        return ready + Ready(wake_at_ms=min(self._next_probe_ms, self._suspect_at_ms))

    def _choose_exchange_peers(self, peers: list[NodeId], now_ms: int) -> list[NodeId]:
        """Choose every peer not exchanged with yet, and from time to time the next one in turn."""
        chosen = [peer for peer in peers if not self._nodes[peer].exchanged]
        if peers and now_ms >= self._next_exchange_ms:
            self._next_exchange_ms = now_ms + EXCHANGE_INTERVAL_MS
            self._exchange_turn += 1
            chosen.append(peers[self._exchange_turn % len(peers)])
        return sorted(set(chosen))

    def _is_probe_due(self, peer: NodeId, now_ms: int) -> bool:
        """Tell whether a peer was neither heard nor probed for half of its interval.

        Half of it, because probes leave together: so every peer is heard once an interval, and of
        two that probe each other the second mostly finds that it need not.
        """
        record = self._nodes[peer]
        last_ms = max(record.heard_at_ms, record.probed_at_ms)
        is_watched = self._own_id in self._watched
        interval_ms = self._params.probe_interval_ms if is_watched else self._get_interval_ms(peer)
        return not 0 <= now_ms - last_ms < interval_ms // 2  # below 0 if the clock went back

    def _get_interval_ms(self, peer: NodeId) -> int:
        return self._params.probe_interval_ms * (1 if peer in self._watched else SLOWNESS)

    def _probe(self, peer: NodeId, now_ms: int) -> Ready:
        self._nodes[peer].probed_at_ms = now_ms
        return Ready(send=(Send(peer, Probe(self._probe_sequence)),))

    def _suspect(self, now_ms: int) -> Ready:
        """Suspect who has been silent for too long, and find when the next one has."""
        ready = Ready()
        tries = self._params.probe_misses + 1
        # What is later than now is of a clock that went back since.
        self._watched = {node: min(since, now_ms) for node, since in self._watched.items()}
        self._suspect_at_ms = now_ms + self._params.probe_interval_ms * SLOWNESS * tries
        for peer in self.get_peers():
            record = self._nodes[peer]
            record.heard_at_ms = min(record.heard_at_ms, now_ms)
            if record.suspected:
                continue
            since_ms = max(record.heard_at_ms, self._watched.get(peer, 0))
            at_ms = since_ms + self._get_interval_ms(peer) * tries
            if at_ms <= now_ms:
                record.suspected = True
                ready += Ready(events=(Event("peer_suspected", {"peer": short_id(peer)}),))
            else:
                self._suspect_at_ms = min(self._suspect_at_ms, at_ms)
        return ready

    def _expire(self, now_ms: int) -> Ready:
        """Forget nodes that are silent and whose capability report has run out."""
        events = []
        for node_id in self.get_peers():
            record = self._nodes[node_id]
            expires_at_ms = record.capability.message.stamp.expires_at_ms
            if now_ms > expires_at_ms + self._params.clock_tolerance_ms and self.is_suspected(
                node_id
            ):
                del self._nodes[node_id]
                self._large_bytes[record.met] -= record.count_large_bytes()
                self.version += 1
                events.append(Event("peer_forgotten", {"peer": short_id(node_id)}))
        return Ready(events=tuple(events))


def _take_fitting(reports: Iterable[Signed[Report]]) -> tuple[SignedReport, ...]:
    """Take reports in order, leaving out those with which one message would get too large."""
    taken, size = [], 0
    for report in reports:
        report_bytes = len(report.envelope.payload)
        if size + report_bytes <= MAX_MESSAGE_REPORT_BYTES:
            size += report_bytes
            taken.append(SignedReport.wrap(report))
    return tuple(taken)


def _count_large_bytes(report: Signed[Report]) -> int:
    size = len(report.envelope.payload)
    return size if size > SMALL_REPORT_BYTES else 0


def _get_order(version: ReportVersion, kind: type[Report]) -> tuple[int, int]:
    if kind is CapabilityReport:
        return (version.capability_incarnation, version.capability_sequence)
    if kind is LoadReport:
        return (version.load_incarnation, version.load_sequence)
    return (version.digest_incarnation, version.digest_sequence)
