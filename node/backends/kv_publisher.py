"""The publishing side of vLLM's KV events, for the simulated backend.

Frames as vLLM sends them: PUB ``[topic, sequence (8 bytes big-endian), msgpack batch]``; a ROUTER
answers ``[b"", first sequence]`` with the kept batches from there on and a marker of sequence −1.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from iemas.testing.prefix_cache import BlocksRemoved, BlocksStored, CacheEvent

TOPIC = b"kv-events"
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
KEPT_BATCHES = 10_000


class KvEventPublisher:
    """Publishes cache events, and again on request."""

    def __init__(self, block_size: int, *, kept_batches: int = KEPT_BATCHES) -> None:
        self._block_size = block_size
        self._context = zmq.asyncio.Context()
        self._publisher: zmq.asyncio.Socket | None = None
        self._replayer: zmq.asyncio.Socket | None = None
        self._replays: asyncio.Task[None] | None = None
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=kept_batches)
        self._sequence = 0

    def bind(self, endpoint: str, replay_endpoint: str | None) -> tuple[str, str | None]:
        """Open the sockets and give their endpoints, as bound.

        Raises: zmq.ZMQError if an endpoint is taken or malformed.
        """
        self._publisher = self._context.socket(zmq.PUB)
        self._publisher.set_hwm(100_000)
        self._publisher.bind(endpoint)
        bound_replay = None
        if replay_endpoint is not None:
            self._replayer = self._context.socket(zmq.ROUTER)
            self._replayer.bind(replay_endpoint)
            bound_replay = _get_endpoint(self._replayer)
            self._replays = asyncio.create_task(self._answer_replays(self._replayer))
        return _get_endpoint(self._publisher), bound_replay

    async def publish(self, events: Sequence[CacheEvent]) -> None:
        """Send one batch."""
        if self._publisher is None or not events:
            return
        payload = self.encode_batch(events)
        self._kept.append((self._sequence, payload))
        sequence = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        await self._publisher.send_multipart((TOPIC, sequence, payload))

    def encode_batch(self, events: Sequence[CacheEvent]) -> bytes:
        """Encode events as one batch of now."""
        return msgspec.msgpack.encode((time.time(), [self._encode(e) for e in events], 0))

    async def close(self) -> None:
        """Close the sockets; what was sent and not yet received is dropped."""
        if self._replays is not None:
            self._replays.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._replays
        endpoints = [_get_endpoint(s) for s in (self._publisher, self._replayer) if s is not None]
        self._context.destroy(linger=0)
        for endpoint in endpoints:
            _remove_socket_file(endpoint)

    async def _answer_replays(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            if len(frames) != 3:
                continue
            client, _, first = frames
            start = int.from_bytes(first, "big")
            for sequence, payload in tuple(self._kept):
                if sequence >= start:
                    number = sequence.to_bytes(8, "big")
                    await socket.send_multipart((client, b"", TOPIC, number, payload))
            await socket.send_multipart((client, b"", b"", END_OF_REPLAY, b""))

    def _encode(self, event: CacheEvent) -> dict[str, object]:
        if isinstance(event, BlocksStored):
            salts = [(event.cache_salt,)] if event.cache_salt else [None]
            return {
                "type": "BlockStored",
                "block_hashes": event.keys,
                "parent_block_hash": event.parent,
                "token_ids": event.token_ids,
                "block_size": self._block_size,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": salts + [None] * (len(event.keys) - 1),
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            }
        if isinstance(event, BlocksRemoved):
            return {
                "type": "BlockRemoved",
                "block_hashes": event.keys,
                "medium": "GPU",
                "group_idx": 0,
            }
        return {"type": "AllBlocksCleared"}


def _get_endpoint(socket: zmq.asyncio.Socket) -> str:
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _remove_socket_file(endpoint: str) -> None:
    if endpoint.startswith("ipc:///"):
        Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
