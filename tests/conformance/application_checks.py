"""What an engine relies on, as checks of the application: the other side of the boundary.

A check gets a maker of applications at genesis, and a chain with the keys and the right blocks. The
numbers are those of docs/spec/application.md §3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from iemas.core.envelope import Signed
from iemas.core.errors import InvalidBlockError
from iemas.core.types import Hash
from iemas.ledger.application import MAX_BLOCK_TRANSACTIONS, LedgerApplication
from iemas.ledger.header import Block
from iemas.ledger.transaction import FundEscrow, Stake, Transaction, TransferFunds
from iemas.testing.chain import LedgerChain
from tests.conformance.checks import require

AppMaker = Callable[[], LedgerApplication]


def make_blocks(chain: LedgerChain) -> Sequence[Block]:
    """Make blocks with money moved, refusals, a new validator and a term's end."""
    alice, bob = chain.get_id("alice"), chain.get_id("bob")
    bodies = (
        ("alice", TransferFunds(bob, 5)),
        ("bob", TransferFunds(alice, 10**9)),
        ("alice", FundEscrow(chain.hub, 7)),
        ("carol", FundEscrow(chain.hub, 7)),
        ("bob", Stake(1)),
    )
    for name, body in bodies:
        chain.submit(name, body)
    chain.end_term()
    return chain.blocks


def replay(app: LedgerApplication, blocks: Sequence[Block]) -> list[Any]:
    results = []
    for block in blocks:
        results.append(app.finalize_block(block))
        app.commit()
    return results


def make_funding(chain: LedgerChain, nonce: int, *, name: str = "alice") -> Signed[Transaction]:
    return chain.make_transaction(name, FundEscrow(chain.hub, 1), nonce=nonce)


def is_refused(verb: Callable[[Block], object], block: Block) -> bool:
    try:
        verb(block)
    except InvalidBlockError:
        return True
    return False


def check_determinism(make_app: AppMaker, chain: LedgerChain) -> None:
    """A1: the same blocks give the same results and roots in every instance."""
    blocks = make_blocks(chain)
    first, second = replay(make_app(), blocks), replay(make_app(), blocks)
    require(first == second, "two instances have different results")


def check_commit(make_app: AppMaker, chain: LedgerChain) -> None:
    """A2: until `commit` a finalized block changes nothing, and may be finalized again, alike."""
    app, block = make_app(), chain.make_block([make_funding(chain, 1)])
    root = app.info().state_root
    finalized = app.finalize_block(block)
    require(app.info().state_root == root, "finalize_block changed the committed state")
    require(app.finalize_block(block) == finalized, "the second time it had another result")
    require(app.commit() == 1, "commit gave another height")
    require(app.info().state_root == finalized.state_root, "commit gave another root")


def check_other_verbs(make_app: AppMaker, chain: LedgerChain) -> None:
    """A3: `check_tx`, the proposal's verbs and queries change nothing."""
    app, funding = make_app(), make_funding(chain, 1)
    root = app.info().state_root
    app.check_tx(funding)
    app.prepare_proposal([funding])
    app.process_proposal(chain.make_block([funding]))
    app.query("/account", chain.get_id("alice"))
    app.list_snapshots()
    require(app.info().state_root == root, "a verb that asks changed the state")


def check_prepared_proposals(make_app: AppMaker, chain: LedgerChain) -> None:
    """A4: what one replica prepares of whatever waits, another one at its height accepts."""
    late, early = make_funding(chain, 3), make_funding(chain, 2)
    many = [make_funding(chain, 1, name="bob")] * MAX_BLOCK_TRANSACTIONS
    chosen = make_app().prepare_proposal([late, early, *many])
    block = chain.make_block(chosen)
    require(not is_refused(make_app().process_proposal, block), "a prepared block is refused")
    require(chosen.index(early) < chosen.index(late), "an account's order is not kept")


def check_wrong_blocks(make_app: AppMaker, chain: LedgerChain) -> None:
    """A5: a block that does not follow or breaks a rule is neither accepted nor applied."""
    app, wrong = make_app(), Hash(bytes(32))
    for changes in (
        {"height": 2},
        {"chain_id": "other"},
        {"time_ms": 1},
        {"transactions_root": wrong},
    ):
        block = chain.make_block([make_funding(chain, 1)], **changes)
        require(is_refused(app.process_proposal, block), f"{changes} was accepted")
        require(is_refused(app.finalize_block, block), f"{changes} was applied")
    block = chain.make_block(state_root=wrong)
    require(is_refused(app.process_proposal, block), "another state root was accepted")
    forged = make_funding(chain, 1)
    forged = Signed(forged.message, replace(forged.envelope, signature=bytes(64)))
    require(is_refused(app.process_proposal, chain.make_block([forged])), "nobody signed this")


def check_results(make_app: AppMaker, chain: LedgerChain) -> None:
    """A6: every transaction has a result, in order, and the state root covers it."""
    refused = chain.make_transaction("carol", FundEscrow(chain.hub, 1))
    app, other = make_app(), make_app()
    finalized = app.finalize_block(chain.make_block([refused]))
    require(len(finalized.results) == 1, "a refusal has no result")
    require(not finalized.transfers, "a refusal moved money")
    empty = other.finalize_block(chain.make_block([]))
    require(finalized.state_root != empty.state_root, "the root does not cover a refusal")


def check_snapshot(make_app: AppMaker, chain: LedgerChain) -> None:
    """A7: a snapshot has the root of its height, and what starts from it goes on alike."""
    blocks = make_blocks(chain)
    source, target = make_app(), make_app()
    replay(source, blocks[:-1])
    offer = source.list_snapshots()[0]
    root = blocks[-1].header.message.state_root
    require(target.offer_snapshot(offer, root), "a good snapshot is not taken")
    for index in range(offer.chunks):
        chunk = source.load_snapshot_chunk(offer.height, index)
        require(chunk is not None, "a chunk of an offered snapshot is not at hand")
        target.apply_snapshot_chunk(chunk or b"")
    require(target.info() == source.info(), "after a snapshot the application stands elsewhere")
    require(replay(source, blocks[-1:]) == replay(target, blocks[-1:]), "they go on differently")


APPLICATION_CHECKS: Sequence[Callable[[AppMaker, LedgerChain], None]] = (
    check_determinism,
    check_commit,
    check_other_verbs,
    check_prepared_proposals,
    check_wrong_blocks,
    check_results,
    check_snapshot,
)
