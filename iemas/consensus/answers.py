"""What an engine shows to a peer that asks. Whoever asks checks it, so this trusts nobody.

Source: docs/spec/engine.md E27, E42, E52.
"""

from __future__ import annotations

from iemas.consensus.chain import Chain
from iemas.consensus.early import EarlyMessages
from iemas.consensus.messages import (
    MAX_NOTICE_VOTES,
    BlocksRequest,
    BlocksResponse,
    ChunksRequest,
    ChunksResponse,
    LightBlockRequest,
    LightBlockResponse,
    RecallResponse,
    SnapshotOffer,
    SnapshotRequest,
)
from iemas.consensus.participant import Participant
from iemas.consensus.snapshots import SnapshotShelf
from iemas.core.types import NodeId

Request = BlocksRequest | SnapshotRequest | LightBlockRequest | ChunksRequest
Answer = BlocksResponse | SnapshotOffer | LightBlockResponse | ChunksResponse


def answer_request(request: Request, chain: Chain, shelf: SnapshotShelf) -> Answer:
    """Show blocks, headers or a snapshot; what is not here is left out."""
    match request:
        case BlocksRequest(from_height):
            return BlocksResponse(chain.load_batch(from_height), chain.height)
        case LightBlockRequest(height):
            return LightBlockResponse(chain.load_light_block(height))
        case SnapshotRequest():
            return shelf.answer(request)
        case ChunksRequest():
            return shelf.answer_chunks(request)


def show_statements(
    signer: NodeId, height: int, participant: Participant | None, early: EarlyMessages
) -> RecallResponse:
    """Show a validator that has just started what it signed and this node holds.

    `height` is this node's own. The last statements count: whoever signed them signed those before.
    """
    votes, proposals = early.list_statements(signer)
    if participant is not None:
        held = participant.list_statements(signer)
        votes, proposals = (*held[0], *votes), (*held[1], *proposals)
    most = MAX_NOTICE_VOTES // 2
    return RecallResponse(height, votes[-most:], proposals[-most:])
