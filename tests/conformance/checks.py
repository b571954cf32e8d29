"""What the application relies on, as checks that every engine must pass: a function a statement.

A check gets a rig (`tests/conformance/engines.py`), lets clients, time and crashes do something,
and reads the log of all verbs that the engine called. The numbers are those of
docs/spec/application.md §2. `CHECKS` lists them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from iemas.consensus.validators import compute_members_hash
from iemas.core.types import NodeId
from iemas.core.vote import VoteKind
from iemas.ledger.header import Block
from iemas.ledger.records import OffenceKey
from iemas.ledger.snapshot import Snapshot
from iemas.ledger.transaction import FundEscrow, ResultCode, Stake, TransferFunds
from tests.conformance.engines import TOLERANCE_MS, Rig
from tests.conformance.recording import Call, RecordingApplication


class NotConformingError(AssertionError):
    """An engine broke a statement that the application relies on."""


def require(holds: bool, broken: str) -> None:
    if not holds:
        raise NotConformingError(broken)


# --- reading the log -----------------------------------------------------------------------------

LETTERS = {
    "info": "i",
    "init_chain": "g",
    "prepare_proposal": "p",
    "process_proposal": "q",
    "finalize_block": "f",
    "commit": "c",
    "offer_snapshot": "o",
    "apply_snapshot_chunk": "a",
}
"""The verbs whose order counts; the others may come at any time."""

GRAMMAR = re.compile(r"(oa*)*ig?((p|q)*fc|(oa*)+i?)*(p|q)*f?")
"""ABCI 2.0's order of verbs within one life of a process; the last block may lack its commit."""


def list_calls(
    rig: Rig, *verbs: str, name: str | None = None, life: int | None = None
) -> list[Call]:
    return [
        call
        for call in rig.log
        if (not verbs or call.verb in verbs)
        and (name is None or call.replica == name)
        and (life is None or call.life == life)
    ]


def list_finalized(rig: Rig, name: str) -> list[Call]:
    """List the blocks that a replica finalized and committed, in every life."""
    calls = list_calls(rig, "finalize_block", "commit", name=name)
    return [
        call
        for call, following in pairwise(calls)
        if call.verb == "finalize_block" and following.verb == "commit" and not following.error
    ]


def get_height(rig: Rig) -> int:
    return max(app.state.height for app in rig.apps.values())


def make_busy(rig: Rig, blocks: int = 3) -> None:
    """Let some blocks with transactions of all kinds of fates be decided."""
    for number in range(blocks):
        name = rig.names[number % len(rig.names)]
        rig.submit(name, rig.chain.make_transaction("alice", FundEscrow(rig.chain.hub, 1 + number)))
        unpaid = TransferFunds(rig.chain.get_id("alice"), 10**9)
        rig.submit(name, rig.chain.make_transaction("bob", unpaid))
        rig.settle()
    require(get_height(rig) >= blocks, "transactions wait and no blocks are decided")


def find_places(rig: Rig, transaction_id: bytes) -> list[tuple[int, int]]:
    """Find in which blocks of the first replica a transaction stands, and where."""
    return [
        (block.height, index)
        for block in rig.get_blocks(rig.names[0])
        for index, signed in enumerate(block.transactions)
        if signed.hash == transaction_id
    ]


# --- B1 to B5: blocks ----------------------------------------------------------------------------


def check_order_of_verbs(rig: Rig) -> None:
    """B1: in every life of a replica the verbs come in ABCI's order, `init_chain` at height 0."""
    make_busy(rig)
    rig.kill(rig.names[-1])
    rig.settle()
    rig.restart(rig.names[-1])
    make_busy(rig)
    require_order_of_verbs(rig)


def require_order_of_verbs(rig: Rig) -> None:
    for life in sorted({call.life for call in rig.log}):
        calls = list_calls(rig, *LETTERS, life=life)
        verbs = "".join(LETTERS[call.verb] for call in calls)
        require(GRAMMAR.fullmatch(verbs) is not None, f"life {life} has the verbs {verbs}")
        infos = [call for call in calls if call.verb == "info"]
        begun = [call.height for call in calls if call.verb == "init_chain"]
        require(begun == [0] * (infos[0].height == 0), f"life {life}: init_chain at {begun}")


def check_one_chain(rig: Rig) -> None:
    """B2: every replica applies blocks 1, 2, 3 ..., each once; all the same, with one result."""
    make_busy(rig, 4)
    decided: dict[int, tuple[bytes, object]] = {}
    for name in rig.names:
        finalized = list_finalized(rig, name)
        heights = [call.subject.height for call in finalized]
        require(heights == list(range(1, len(heights) + 1)), f"{name} applied blocks {heights}")
        require(len(heights) == get_height(rig), f"{name} applied {len(heights)} blocks only")
        for call in finalized:
            found = (call.subject.hash, call.output)
            first = decided.setdefault(call.subject.height, found)
            require(first == found, f"{name} applied another block {call.subject.height}")
        stored = [block.hash for block in rig.get_blocks(name)]
        require(stored == [decided[h][0] for h in heights], f"{name} stores other blocks")


def check_exactly_once(rig: Rig) -> None:
    """B3: what `check_tx` lets in is in exactly one block, however often it is handed in."""
    funding = rig.chain.make_transaction("alice", FundEscrow(rig.chain.hub, 7))
    before = rig.apps[rig.names[0]].state.get_balance(rig.chain.get_id("alice"))[0]
    for name in (*rig.names, rig.names[0]):
        rig.submit(name, funding)
    rig.settle()
    for name in rig.names:
        rig.submit(name, funding)
    make_busy(rig, 2)
    places = find_places(rig, funding.hash)
    require(len(places) == 1, f"a transaction stands in {places}")
    after = rig.apps[rig.names[0]].state.get_balance(rig.chain.get_id("alice"))[0]
    require(after == before - 7 - 1 - 2, "applied not once")


def check_recorded_results(rig: Rig) -> None:
    """B4: every transaction of a block has its result, refusals too, the same at each replica."""
    refused = rig.chain.make_transaction("bob", TransferFunds(rig.chain.get_id("alice"), 10**9))
    rig.submit(rig.names[0], refused)
    rig.settle()
    places = find_places(rig, refused.hash)
    require(len(places) == 1, "a transaction whose body will be refused is not ordered")
    (height, index) = places[0]
    for name in rig.names:
        results = rig.get_results(name, height)
        code = results[index].code if index < len(results) else None
        require(code is ResultCode.INSUFFICIENT_BALANCE, f"{name} records {code} for a refusal")
        final = next(c for c in list_finalized(rig, name) if c.subject.height == height)
        require(results == final.output.results, f"{name} records other results than it got")


def check_block_time(rig: Rig) -> None:
    """B5: block time never goes back, and is not ahead of the clocks by more than tolerated."""
    rig.advance(3_000)
    now_ms: list[tuple[int, int]] = []
    for _ in range(3):
        make_busy(rig, 1)
        now_ms.append((get_height(rig), rig.now_ms))
    times = [block.time_ms for block in rig.get_blocks(rig.names[0])]
    genesis_ms = rig.chain.genesis.time_ms
    require(sorted(times) == times and times[0] >= genesis_ms, f"block times are {times}")
    for height, at_ms in now_ms:
        require(times[height - 1] <= at_ms + TOLERANCE_MS, f"block {height} is from the future")
    late = [rig.now_ms - at for at in times[-1:]]
    require(max(late) <= 2_000, "block times do not follow the clocks")


# --- B6 to B8: proposals -------------------------------------------------------------------------


def check_proposals_are_prepared(rig: Rig) -> None:
    """B6: a decided block holds exactly what `prepare_proposal` gave to its proposer before."""
    make_busy(rig)
    for block in rig.get_blocks(rig.names[0]):
        maker = rig.chain.get_name(block.proposer)
        prepared = [
            call.output
            for call in list_calls(rig, "prepare_proposal", name=maker)
            if call.height == block.height - 1
        ]
        require(block.transactions in prepared, f"{maker} did not prepare block {block.height}")


def check_prepared_is_accepted(rig: Rig) -> None:
    """B7: no replica at a proposal's height refuses what a correct one has prepared."""
    make_busy(rig)
    for call in list_calls(rig, "process_proposal"):
        require(
            call.error is None,
            f"{call.replica} at {call.height} refuses block {call.subject.height}: {call.error}",
        )


def check_only_decided_blocks(rig: Rig) -> None:
    """B8: a block is applied after validators with a quorum of the power have accepted it."""
    make_busy(rig)
    powers = {v.node_id: v.stake_micros for v in rig.chain.genesis.validators}
    accepted: dict[bytes, set[NodeId]] = {}
    for call in rig.log:
        if call.verb not in ("process_proposal", "finalize_block"):
            continue
        block: Block = call.subject
        voters = accepted.setdefault(block.hash, {block.proposer})
        if call.verb == "process_proposal" and call.error is None:
            voters.add(rig.chain.get_node(call.replica))
        elif call.verb == "finalize_block":
            power = sum(powers[voter] for voter in voters)
            require(
                3 * power > 2 * sum(powers.values()),
                f"{call.replica} applies block {block.height} that {power} of the power accepted",
            )


# --- B9 to B12: processes that die ---------------------------------------------------------------


def check_replay(rig: Rig) -> None:
    """B9: a started replica is asked where it stands and gets exactly the blocks it lacks."""
    make_busy(rig, 4)
    name = rig.names[-1]
    heights = (0, 1, get_height(rig) - 1, get_height(rig)) if rig.keeps_state else (0,)
    for height in heights:
        rig.kill(name)
        app = make_app_at(rig, name, height) if height else None
        rig.restart(name, app)
        rig.settle()
        calls = list_calls(rig, life=rig.apps[name].life)
        require(calls[0].verb == "info", f"the first verb of a life is {calls[0].verb}")
        offers = [c.subject.height for c in calls if c.verb == "offer_snapshot" and c.output]
        require_blocks_after(rig, max([height, *offers]), calls)
    require_same_state(rig)


def require_blocks_after(rig: Rig, height: int, calls: Sequence[Call]) -> None:
    blocks = [call.subject.height for call in calls if call.verb == "finalize_block"]
    require(
        blocks == list(range(height + 1, get_height(rig) + 1)),
        f"an application at height {height} was given blocks {blocks}",
    )


def make_app_at(rig: Rig, name: str, height: int) -> RecordingApplication:
    """Make an application that kept its state as of a height."""
    app = rig.make_app(name)
    app.stop_recording()
    for block in rig.get_blocks(rig.names[0])[:height]:
        app.finalize_block(block)
        app.commit()
    app.record_in(rig.log)
    return app


def require_same_state(rig: Rig) -> None:
    infos = {(app.state.height, app.state.compute_root()) for app in rig.apps.values()}
    require(len(infos) == 1, f"the replicas stand at {sorted(height for height, _ in infos)}")


def check_crash_before_commit(rig: Rig) -> None:
    """B10: a stored block whose `finalize_block` was not committed is finalized again, alike."""
    make_busy(rig, 2)
    name = rig.names[-1]
    first_life = rig.apps[name].life
    rig.apps[name].dies_in = "commit"
    rig.submit(rig.names[0], rig.chain.make_transaction("alice", FundEscrow(rig.chain.hub, 9)))
    rig.settle()
    lost = list_calls(rig, "finalize_block", life=first_life)[-1]
    require(rig.apps[name].dies_in == "", "the application was not told to commit")
    # A validator alone may die before it has stored what it decided: then nobody has it.
    is_stored = any(
        block.hash == lost.subject.hash for other in rig.names for block in rig.get_blocks(other)
    )
    rig.restart(name)
    rig.settle()
    again = [
        call
        for call in list_calls(rig, "finalize_block", life=rig.apps[name].life)
        if call.subject.height == lost.subject.height
    ]
    require(len(again) == is_stored, f"block {lost.subject.height} came {len(again)} times more")
    for call in again:
        require(call.subject.hash == lost.subject.hash, "another block came in its place")
        require(call.output == lost.output, "it had another result")
    require_same_state(rig)


def check_work_goes_on(rig: Rig) -> None:
    """B11: with one replica of four dead blocks are decided; back, it applies what it missed."""
    name = rig.names[-1]
    rig.kill(name)
    before = get_height(rig)
    funding = rig.chain.make_transaction("alice", FundEscrow(rig.chain.hub, 3))
    rig.submit(rig.names[0], funding)
    rig.advance(5_000)
    require(get_height(rig) > before, "one dead replica stops the others")
    require(len(find_places(rig, funding.hash)) == 1, "one dead replica stops a transaction")
    rig.restart(name)
    rig.advance(10_000)
    require_same_state(rig)


def check_diverged_replica_stops(rig: Rig) -> None:
    """B12: a replica whose application has another state applies nothing more."""
    name = rig.names[-1]
    make_busy(rig, 1)
    app = rig.apps[name]
    spoilt = app.state.copy()
    spoilt.set_nonce(rig.chain.get_id("bob"), 1_000)
    app._state = spoilt
    height = spoilt.height
    for _ in range(2):
        rig.submit(rig.names[0], rig.chain.make_transaction("alice", FundEscrow(rig.chain.hub, 1)))
        rig.settle()
    require(app.state.height == height, "a replica with another state went on")
    require(get_height(rig) > height, "a replica with another state stops the others")


# --- B13 to B17: what else the engine brings -----------------------------------------------------


def check_verbs_change_nothing(rig: Rig) -> None:
    """B13: only `commit` changes the state: a transaction handed in, a proposal does not."""
    make_busy(rig)
    changed = [call.verb for call in rig.log if call.changed_state]
    require(not changed, f"the state changed in {changed}")
    name = rig.names[0]
    before = len(list_finalized(rig, name))
    rig.submit(name, rig.chain.make_transaction("carol", FundEscrow(rig.chain.hub, 1)))
    rig.settle()
    require(len(list_finalized(rig, name)) == before, "what check_tx refuses makes a block")


def check_queries(rig: Rig) -> None:
    """B14: a query's answer is proven under the state root that the next block names."""
    for number in range(3):
        app = rig.apps[rig.names[0]]
        entry = app.query("/account", rig.chain.get_id("alice"))
        height = app.state.height
        rig.submit(
            rig.names[0], rig.chain.make_transaction("alice", FundEscrow(rig.chain.hub, 1 + number))
        )
        rig.settle()
        header = rig.get_blocks(rig.names[0])[height].header.message
        require(
            entry is not None and entry.root == header.state_root,
            f"block {header.height} names another state root than a query at {height} proved",
        )


def check_evidence(rig: Rig) -> None:
    """B15: two votes of one validator for one place, seen by the engine, cost it its stake."""
    make_busy(rig, 1)
    accused = rig.names[-1]
    rig.kill(accused)
    node = rig.chain.get_node(accused)
    stake = rig.apps[rig.names[0]].state.get_stake_micros(node)
    height = get_height(rig) + 1
    votes = [
        rig.chain.make_vote(accused, height, value, kind=VoteKind.PREVOTE)
        for value in (None, bytes(32))
    ]
    rig.show_double_vote(votes[0], votes[1])
    rig.advance(3_000)
    for name in rig.names[:-1]:
        state = rig.apps[name].state
        require(OffenceKey(node, height) in state.offences, f"{name} knows of no offence")
        require(state.get_stake_micros(node) < stake, "a double vote costs nothing")


def check_validator_updates(rig: Rig) -> None:
    """B16: who stakes in block h votes from h + 2 on; headers name both sets."""
    make_busy(rig, 1)
    stake = rig.chain.make_transaction("alice", Stake(100))
    rig.submit(rig.names[0], stake)
    rig.settle()
    make_busy(rig, 4)
    ((height, _),) = find_places(rig, stake.hash)
    alice = rig.chain.get_node("alice")
    old = {v.node_id: v.stake_micros for v in rig.chain.genesis.validators}
    hashes = [
        compute_members_hash(sorted(members.items())) for members in (old, {**old, alice: 100})
    ]
    for block in rig.get_blocks(rig.names[0]):
        header = block.header.message
        for named, at in (
            (header.validators_hash, header.height),
            (header.next_validators_hash, header.height + 1),
        ):
            require(
                named == hashes[at >= height + 2],
                f"block {header.height} names the wrong validators of height {at}",
            )


def check_snapshots(rig: Rig) -> None:
    """B17: a replica that lost everything starts from a snapshot with the root that was decided."""
    make_busy(rig, 3)
    name = rig.names[-1]
    rig.kill(name)
    rig.start_from_snapshot(name)
    rig.settle()
    life = rig.apps[name].life
    calls = list_calls(rig, "offer_snapshot", "finalize_block", life=life)
    offers = [i for i, call in enumerate(calls) if call.verb == "offer_snapshot" and call.output]
    require(bool(offers), "no snapshot was offered")
    snapshot: Snapshot = calls[offers[-1]].subject
    require_blocks_after(rig, snapshot.height, calls[offers[-1] :])
    require_order_of_verbs(rig)
    require_same_state(rig)


@dataclass(frozen=True, slots=True)
class Check:
    """A check, and how many replicas it takes at least."""

    run: Callable[[Rig], None]
    least: int = 1

    @property
    def name(self) -> str:
        return self.run.__name__


CHECKS: Sequence[Check] = (
    Check(check_order_of_verbs),
    Check(check_one_chain),
    Check(check_exactly_once),
    Check(check_recorded_results),
    Check(check_block_time),
    Check(check_proposals_are_prepared),
    Check(check_prepared_is_accepted),
    Check(check_only_decided_blocks),
    Check(check_replay),
    Check(check_crash_before_commit),
    Check(check_work_goes_on, 4),
    Check(check_diverged_replica_stops, 4),
    Check(check_verbs_change_nothing),
    Check(check_queries),
    Check(check_evidence, 4),
    Check(check_validator_updates),
    Check(check_snapshots, 4),
)
