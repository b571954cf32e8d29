"""What must hold, one function a promise. Each raises `BrokenPromiseError` where it does not.

*Safety* is checked whenever something happens; *liveness* once the time of faults is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import TYPE_CHECKING

from iemas.consensus.chain import AppliedBlock
from iemas.consensus.messages import CommittedBlock
from iemas.core.errors import IemasError
from iemas.core.peer_scores import CROSSING_POINTS, get_points
from iemas.core.ready import Fault, RecordKind
from iemas.core.types import NodeId, short_id
from iemas.ledger.records import TotalKey
from iemas.ledger.rules.results import parse_failures
from iemas.ledger.transaction import DoubleVoteEvidence, Evidence, ResultCode, Settle
from iemas.ledger.transfer import AccountKind, LedgerAccount, TransferReason
from tests.simulation.history import History, Place

if TYPE_CHECKING:
    from tests.simulation.host import Host


class BrokenPromiseError(Exception):
    """A simulation broke a promise; `promise` names it."""

    exit_code = 129

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


class NoProgressError(BrokenPromiseError):
    """A promise of liveness was broken."""

    exit_code = 128


def _require(holds: bool, promise: str, what: str) -> None:
    if not holds:
        raise BrokenPromiseError(promise, what)


# --- consensus -----------------------------------------------------------------------------------


def check_agreement(history: History, host: Host, committed: CommittedBlock) -> None:
    """No two honest nodes commit different blocks at a height."""
    known = history.blocks.get(committed.height)
    if known is not None:
        what = f"{host.name} has another block {committed.height} than those before it"
        _require(known.block.hash == committed.block.hash, "agreement", what)


def check_same_state(history: History, host: Host) -> None:
    """No two honest nodes make different states of the same blocks."""
    what = f"{host.name} has another state root at height {host.height}"
    _require(host.state_root == history.roots[host.height], "agreement", what)


def check_validity(history: History, committed: CommittedBlock) -> AppliedBlock:
    """Every committed block has a quorum, passes the application, and is a validator's."""
    height, validators = committed.height, history.chain.validators
    what = f"block {height} follows no block {height - 1}"
    _require(height == history.height + 1, "validity", what)
    try:
        history.chain.check_proposal(committed.block)
        applied = history.apply(committed)
    except IemasError as error:
        raise BrokenPromiseError("validity", f"block {height}: {error}") from error
    what = f"block {height} was not proposed by a validator of its height"
    _require(committed.block.proposer in validators, "validity", what)
    return applied


def check_signed_once(history: History, signer: NodeId, place: Place, value: bytes) -> None:
    """No honest key ever signs two statements for one place, crashes or not."""
    if signer not in history.villains:
        known = history.signed.setdefault((signer, place), value)
        name = " ".join(str(part) for part in place)
        what = f"{signer.hex()[:8]} signed {name} for {_name(known)} and for {_name(value)}"
        _require(known == value, "one signature", what)


def check_nothing_lost(history: History, host: Host) -> None:
    """What a node committed and announced is there when it comes back."""
    heights = history.committed[host.name]
    height = max(heights, default=0)
    stored = {c.height: c.block.hash for c in host.disk.scan(RecordKind.BLOCK, CommittedBlock)}
    for number in sorted(heights):
        kept = stored.get(number) == history.blocks[number].block.hash
        _require(kept, "nothing lost", f"{host.name} came back without block {number} of {height}")
    _require(host.height >= height, "nothing lost", f"{host.name} came back at {host.height}")


# --- peers ---------------------------------------------------------------------------------------


def check_fault(history: History, host: Host, fault: Fault) -> None:
    """Nobody honest ever sends what no correct node sends, whatever it is made to pass on."""
    is_crossing = get_points(fault.error) == CROSSING_POINTS
    what = f"{host.name} refused a {fault.message} of honest {short_id(fault.peer)}: "
    what += f"{fault.name}: {fault.error}"
    _require(is_crossing or fault.peer in history.villains, "no false blame", what)


def check_cut_off(history: History, host: Host, peer: str) -> None:
    """No honest node ever cuts another off."""
    is_villain = any(short_id(villain) == peer for villain in history.villains)
    _require(is_villain, "no false blame", f"{host.name} cut off {peer}, which is honest")


# --- money ---------------------------------------------------------------------------------------


def check_conservation(history: History, applied: AppliedBlock) -> None:
    """Money is conserved, and every balance is what the double entry adds up to."""
    state, height = history.state, applied.block.height
    history.post(applied.transfers)
    issued = state.facts.supply_micros
    _require(
        state.get_total_money() == issued,
        "conservation",
        f"height {height} holds {state.get_total_money()} micro-credits, issued were {issued}",
    )
    held = {
        LedgerAccount(balance.kind, owner, balance.hub): balance.micros
        for owner, record in state.accounts.items()
        for balance in record.balances
    }
    posted = {
        account: micros
        for account, micros in history.balances.items()
        if micros and account.kind is not AccountKind.ISSUANCE
    }
    held = {a: m for a, m in held.items() if a.kind is not AccountKind.ISSUANCE}
    wrong = sorted({a.name for a, _ in held.items() ^ posted.items()})
    _require(not wrong, "conservation", f"height {height}: {wrong[:3]} are not what was posted")
    overdrawn = sorted(account.name for account, micros in held.items() if micros < 0)
    _require(not overdrawn, "conservation", f"height {height}: {overdrawn[:3]} are overdrawn")


def check_payments(history: History, applied: AppliedBlock) -> None:
    """Nothing is paid twice, and nobody pays, nor gets, more than was signed."""
    for transaction, result in zip(applied.block.transactions, applied.results, strict=True):
        body = transaction.message.body
        if isinstance(body, Settle) and result.code is ResultCode.OK:
            _note_settled(history, body, parse_failures(result.detail))
    for transfer in applied.transfers:
        if transfer.reason is TransferReason.SETTLEMENT:
            pair = (transfer.debit.owner, transfer.credit.owner)
            history.paid[pair] += transfer.amount_micros
        elif transfer.reason is TransferReason.UNPAID_SETTLEMENT:
            history.paid_by_slash[transfer.credit.owner] += transfer.amount_micros
    owed: Counter[tuple[bytes, bytes]] = Counter()
    signed: Counter[bytes] = Counter()
    for key, micros in history.settled.items():
        owed[key.account, key.provider] += micros
    for key, micros in history.cosigned.items():
        signed[key.provider] += micros
    _check_sums(history, owed, signed, f"height {applied.block.height}: ")


def _note_settled(history: History, body: Settle, failures: Container[int]) -> None:
    for index, entry in enumerate(body.entries):
        if index in failures:
            continue
        total = entry.total.message
        key = TotalKey(total.hub, total.term, total.account, total.channel, total.provider)
        history.settled[key] = max(history.settled[key], total.total_micros)
        _require(
            total.total_micros <= history.cosigned[key],
            "no double payment",
            f"{total.total_micros} were settled where {history.cosigned[key]} were signed",
        )


def _check_sums(
    history: History, owed: Counter[tuple[bytes, bytes]], signed: Counter[bytes], where: str
) -> None:
    """A channel's payments add up to its highest settled total; slashes may pay a part of it."""
    by_escrow: Counter[bytes] = Counter()
    missing: Counter[bytes] = Counter()
    for (account, provider), paid in history.paid.items():
        total = owed[account, provider]
        what = f"{where}{account.hex()[:8]} paid {paid} to {provider.hex()[:8]}, "
        _require(paid <= total, "no double payment", f"{what}the settled totals are {total}")
        by_escrow[provider] += paid
        missing[provider] += total - paid
    for provider, micros in missing.items():
        by_slash = history.paid_by_slash[provider]
        what = f"{where}{provider.hex()[:8]} settled {micros} that nobody paid, {by_slash} came by "
        _require(micros <= by_slash, "what is settled is paid", f"{what}slashes")
    for provider, by_slash in history.paid_by_slash.items():
        got, most = by_escrow[provider] + by_slash, signed[provider]
        what = f"{where}{provider.hex()[:8]} got {got}, where {most} were signed"
        _require(got <= most, "no double payment", what)


def check_convictions(history: History, applied: AppliedBlock) -> None:
    """Nobody honest is ever punished for a double vote."""
    for transaction, result in zip(applied.block.transactions, applied.results, strict=True):
        body = transaction.message.body
        if not isinstance(body, Evidence) or result.code is not ResultCode.OK:
            continue
        if isinstance(body.evidence, DoubleVoteEvidence):
            accused = body.evidence.first.signer_id
        else:
            accused = body.evidence.transcript.signer_id
        what = f"{accused.hex()[:8]} was punished for {result.detail} and is honest"
        _require(accused in history.villains, "no false conviction", what)


def check_models(history: History) -> None:
    """No model stands that nobody honest agrees with."""
    for key, record in history.state.models.items():
        what = f"a bent model stands for epoch {key.epoch}"
        _require(record.model_hash not in history.bent, "fair models", what)


def _name(value: bytes) -> str:
    return value.hex()[:8] if value else "nil"
