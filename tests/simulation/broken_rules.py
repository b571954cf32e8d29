"""Rules broken on purpose: the simulator must find each of them, or it tests nothing.

Each entry replaces a piece of the code for as long as a simulation runs; production code knows
nothing of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from iemas.consensus.messages import SignRecord
from iemas.consensus.tendermint import Tendermint
from iemas.consensus.validators import ValidatorSet
from iemas.consensus.voting import NO_ROUND
from iemas.core.ready import Ready, RecordKind
from iemas.core.types import NodeId
from iemas.ledger.records import TotalRecord
from iemas.ledger.rules import evidence as evidence_rules
from iemas.ledger.rules.results import refuse
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import ResultCode
from iemas.testing.disk import SimulatedDisk
from node.standing_ask import StandingAsk
from tests.simulation.host import Host

SYNC_MS = 15
"""How long a disk takes whose process does not wait for it."""


class NeverLocks(Tendermint):
    """Precommits a value and forgets that it did: lines 38 and 39 of the paper."""

    def _upon_prevotes_for_value(self) -> bool:
        fired = super()._upon_prevotes_for_value()
        self.locked_value, self.locked_round = None, NO_ROUND
        return fired


class HalfQuorum(ValidatorSet):
    """Half of the power is a quorum."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.quorum_power = (self.total_power + 1) // 2


def _send_first(self: Host, ready: Ready) -> None:
    """Carry out a step in the wrong order: send, then persist."""
    if not self.alive:
        return
    sends = Ready(send=ready.send, events=ready.events, wake_at_ms=ready.wake_at_ms)
    _FINISH(self, sends)
    if not ready.persist:
        return
    self.disk.append(ready.persist)
    if self.doom is not None and self.doom.strikes(ready):
        self.die(self.doom, Ready(persist=ready.persist))
        return
    process = self.process

    def sync() -> None:
        if self.process == process:
            self.disk.sync()
            _FINISH(self, Ready(persist=ready.persist))

    self.world.clock.call_later(SYNC_MS, sync)


_FINISH = Host.finish


def _say_yes(*_: object) -> bool:
    """Take any signature for a good one, or anything for allowed."""
    return True


def _ignore_evidence(*_: object) -> object:
    return refuse(ResultCode.INVALID_ENTRY, "evidence is ignored")


def _forget_settled(self: LedgerState, key: object) -> TotalRecord:
    """Know of no total that was settled before."""
    return TotalRecord(0, 0)


def _forget_signed(self: SimulatedDisk, kind: RecordKind, cls: type[Any]) -> list[Any]:
    """Come back without what was signed."""
    return [] if cls is SignRecord else _SCAN(self, kind, cls)


_SCAN = SimulatedDisk.scan


class ForgetfulAsk(StandingAsk):
    """Hides every ask by a secret that is forgotten with the process, and keeps none."""

    def __init__(self, **arguments: Any) -> None:
        node_id = arguments["node_id"]
        _PROCESSES[node_id] += 1
        arguments["secret"] = _PROCESSES[node_id].to_bytes(32, "big")
        super().__init__(**arguments)

    def restore(self, reveals: object) -> None:
        """Know of nothing that was committed to."""


_PROCESSES: Counter[NodeId] = Counter()


def _agree_with_all(*_: object) -> None:
    """Find nothing wrong with a model."""


@dataclass(frozen=True)
class BrokenRule:
    """What is replaced by what, and the promise that then breaks."""

    what: str
    patches: tuple[tuple[str, Any], ...]
    promises: tuple[str, ...]


BROKEN_RULES = {
    "forgotten-ask": BrokenRule(
        "a provider forgets with its process what ask it committed to",
        (("node.core.StandingAsk", ForgetfulAsk),),
        ("no honest bond burned",),
    ),
    "no-locking": BrokenRule(
        "a validator forgets what it locked on",
        (("iemas.consensus.participant.Tendermint", NeverLocks),),
        ("agreement", "validity"),
    ),
    "send-before-persist": BrokenRule(
        "votes leave before they are on disk, and who comes back asks nobody",
        (
            ("tests.simulation.host.Host.carry_out", _send_first),
            ("iemas.consensus.recall.Recall.may_sign", _say_yes),
        ),
        ("one signature", "agreement", "nothing lost"),
    ),
    "forgetful-restart": BrokenRule(
        "a validator comes back without what it signed, and asks nobody",
        (
            ("iemas.testing.disk.SimulatedDisk.scan", _forget_signed),
            ("iemas.consensus.recall.Recall.may_sign", _say_yes),
        ),
        ("one signature", "agreement"),
    ),
    "unverified-evidence": BrokenRule(
        "signatures on evidence are not checked",
        ((f"{evidence_rules.__name__}.is_signed_by", _say_yes),),
        ("no false conviction",),
    ),
    "ignored-evidence": BrokenRule(
        "evidence of a double vote is refused",
        ((f"{evidence_rules.__name__}.apply_double_vote_evidence", _ignore_evidence),),
        ("recovery",),
    ),
    "settle-twice": BrokenRule(
        "a channel's total is paid again",
        (("iemas.ledger.state.LedgerState.get_settled_total", _forget_settled),),
        ("no double payment",),
    ),
    "any-model": BrokenRule(
        "a validator votes for every model that is proposed",
        (("node.models.validate_model", _agree_with_all),),
        ("fair models",),
    ),
    "half-quorum": BrokenRule(
        "half of the power is a quorum",
        (
            ("iemas.consensus.commits.ValidatorSet", HalfQuorum),
            ("iemas.consensus.validators.ValidatorSet", HalfQuorum),
        ),
        ("agreement", "validity"),
    ),
}


@contextmanager
def break_rule(name: str) -> Iterator[None]:
    """Run with a rule broken; with none if the name is empty."""
    with ExitStack() as stack:
        for target, replacement in BROKEN_RULES[name].patches if name else ():
            stack.enter_context(patch(target, replacement))
        yield
