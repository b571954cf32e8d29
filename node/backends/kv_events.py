"""Following a vLLM server's KV events over ZMQ: which prefix blocks it holds, exactly.

Batches are numbered. A missing number, or a number that starts again, means that the picture is
wrong: what is missing is asked for again (the replay socket), and where that does not fill the gap
the picture is dropped and drawn anew from what the server still has, which can only show too few
blocks, never too many. A lost connection means that the server is gone, and its cache with it.

The socket carries token ids and salts in clear: keep it local and private. Nothing of them is kept
or logged here. Source: docs/guides/vllm.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
import structlog
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from iemas.core.digest import InvalidBlockEventError, ResidentBlocks, compute_block_keys, split_keys
from iemas.core.errors import InvalidInputError

POLL_S: Final = 2.0
"""An idle follower asks for what it may have missed this often."""

REPLAY_TIMEOUT_S: Final = 5.0

_FULL_ATTENTION: Final = frozenset({None, "full_attention", "mla_attention"})
_END: Final = (-1).to_bytes(8, "big", signed=True)
_log = structlog.get_logger(__name__)


class BlockStored(msgspec.Struct, tag="BlockStored", gc=False):
    """Blocks became reusable. `extra_keys` has one entry a block; a salt is in the first one's."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[object] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag="BlockRemoved", gc=False):
    """Blocks were overwritten."""

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    """The whole cache was reset."""


class EventBatch(msgspec.Struct, array_like=True, gc=False):
    """What happened in one step of the server, at `ts` (Unix seconds of its clock)."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class FollowerState(StrEnum):
    """How the follower stands to its server."""

    CONNECTING = "connecting"
    FOLLOWING = "following"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class _Batch:
    sequence: int
    payload: bytes


class CacheBook:
    """Applies batches to the picture of the cache. Pure.

    block_size: of the chain that the market uses; events of another size are refused.
    """

    def __init__(self, block_size: int) -> None:
        self.resident = ResidentBlocks()
        self.next_sequence = 0
        self._block_size = block_size
        self._last_ts = 0.0
        self._verified = False
        self._other_groups: set[int | None] = set()
        self._decoder = msgspec.msgpack.Decoder(EventBatch)

    def apply(self, sequence: int, payload: bytes) -> bool:
        """Apply the next batch; False if there is a gap before it, and then nothing is changed.

        A batch that was applied already is skipped; one with an old number and a new time comes
        from a server that started again, and everything before it is forgotten.
        Raises: InvalidBlockEventError if the batch is malformed or its hashes are not ours.
        """
        try:
            batch = self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidBlockEventError("a KV event batch does not decode") from error
        if sequence < self.next_sequence:
            if batch.ts <= self._last_ts:
                return True
            self.forget()
        if sequence > self.next_sequence:
            return False
        for event in batch.events:
            self._apply_event(event)
        self._last_ts = max(self._last_ts, batch.ts)
        self.next_sequence = sequence + 1
        return True

    def forget(self, next_sequence: int = 0) -> None:
        """Forget all blocks and expect the given number next."""
        self.resident.apply_cleared()
        self.next_sequence = next_sequence
        self._verified = False

    def _apply_event(self, event: BlockStored | BlockRemoved | AllBlocksCleared) -> None:
        if isinstance(event, AllBlocksCleared):
            self.resident.apply_cleared()
        elif isinstance(event, BlockRemoved):
            if event.group_idx not in self._other_groups:
                self.resident.apply_removed([_to_key(value) for value in event.block_hashes])
        elif event.kv_cache_spec_kind not in _FULL_ATTENTION:
            # Models with several kinds of attention store each block once a kind.
            self._other_groups.add(event.group_idx)
        else:
            self._verify(event)
            self.resident.apply_stored([_to_key(value) for value in event.block_hashes])

    def _verify(self, event: BlockStored) -> None:
        """Recompute the first whole chain published, to see that it is hashed as we hash."""
        if event.block_size != self._block_size:
            raise InvalidBlockEventError(
                f"KV events have blocks of {event.block_size} tokens, expected {self._block_size}"
            )
        first = event.extra_keys[0] if event.extra_keys else None
        salt = first[0] if first else ""
        if (
            self._verified
            or event.parent_block_hash is not None
            or event.lora_name is not None
            or not isinstance(salt, str)
        ):
            return
        ours = compute_block_keys(event.token_ids, event.block_size, cache_salt=salt)
        if [int.from_bytes(key, "big") for key in split_keys(ours)] != [
            _to_key(value) for value in event.block_hashes
        ]:
            raise InvalidBlockEventError(
                "the server's block hashes are not the market's; start vLLM with "
                "--prefix-caching-hash-algo sha256_cbor and without PYTHONHASHSEED"
            )
        self._verified = True


def _to_key(value: int | bytes) -> int:
    """Give the low 64 bits of a hash that is published as a number or in full."""
    return int.from_bytes(value[-8:], "big") if isinstance(value, bytes) else value


class KvEventFollower:
    """Keeps a `CacheBook` in step with a server. `start`, then read `resident` at any time."""

    def __init__(self, endpoint: str, replay_endpoint: str | None, *, block_size: int) -> None:
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._book = CacheBook(block_size)
        self._context = zmq.asyncio.Context()
        self._tasks: list[asyncio.Task[None]] = []
        self._connected = asyncio.Event()
        self._gone = asyncio.Event()
        self._settled = asyncio.Event()
        self._changed = asyncio.Event()
        self._told_version = 0
        self.state = FollowerState.CONNECTING
        self.problem = ""

    @property
    def resident(self) -> ResidentBlocks:
        """The blocks that the server holds."""
        return self._book.resident

    async def start(self, *, timeout_s: float = REPLAY_TIMEOUT_S) -> bool:
        """Connect and draw the first picture; False if that did not succeed in time.

        It goes on trying in the background either way; `state` and `problem` tell how it stands.
        """
        subscriber = self._context.socket(zmq.SUB)
        subscriber.set_hwm(0)
        subscriber.subscribe(b"")
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        monitor = subscriber.get_monitor_socket(events)
        subscriber.connect(self._endpoint)
        self._tasks = [
            asyncio.create_task(self._watch_connection(monitor)),
            asyncio.create_task(self._follow(subscriber)),
        ]
        for task in self._tasks:
            task.add_done_callback(self._on_ended)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        return self.state is FollowerState.FOLLOWING

    async def wait_change(self, version: int) -> int:
        """Wait until the version of `resident` differs from the given one, and give it."""
        while self.resident.version == version:
            await self._changed.wait()
        return self.resident.version

    async def close(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._context.destroy(linger=0)

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        """Claim nothing once nobody follows: both tasks run until they are cancelled."""
        if not task.cancelled():
            self._book.forget()
            self._tell()
            kind = type(task.exception()).__name__
            self._set_state(FollowerState.UNUSABLE, f"following ended: {kind}")

    async def _watch_connection(self, monitor: zmq.asyncio.Socket) -> None:
        """Note when the server comes and goes."""
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected.set()
            else:
                self._connected.clear()
                self._gone.set()
                self._set_state(FollowerState.CONNECTING, "the connection was lost")
                self._book.forget()
                self._tell()

    async def _follow(self, subscriber: zmq.asyncio.Socket) -> None:
        while True:
            await self._connected.wait()
            self._gone.clear()
            try:
                await self._follow_connection(subscriber)
            except InvalidInputError as error:
                self._book.forget()
                self._tell()
                self._set_state(FollowerState.UNUSABLE, str(error))
                await self._gone.wait()

    async def _follow_connection(self, subscriber: zmq.asyncio.Socket) -> None:
        """Follow one server until it is gone."""
        # What is queued came from the server before; what came from this one is replayed.
        while await subscriber.poll(0):
            await subscriber.recv_multipart()
        while not self._gone.is_set():
            caught_up = await self._catch_up()
            if caught_up:
                self._set_state(FollowerState.FOLLOWING, "")
            while await subscriber.poll(int(POLL_S * 1000)):
                batch = _parse_frames(await subscriber.recv_multipart())
                if self._gone.is_set():
                    return
                if not self._book.apply(batch.sequence, batch.payload):
                    await self._fill_gap(batch)
                self._tell()

    async def _fill_gap(self, batch: _Batch) -> None:
        """Batches before this one were missed: have them replayed, or begin anew with this one."""
        await self._catch_up()
        if not self._book.apply(batch.sequence, batch.payload):
            _log.warning("kv_events_lost", expected=self._book.next_sequence, got=batch.sequence)
            self._book.forget(batch.sequence)
            self._book.apply(batch.sequence, batch.payload)

    async def _catch_up(self) -> bool:
        """Apply everything the server has from the next number on; False if it did not answer."""
        if self._replay_endpoint is None:
            return True
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                batches = [batch async for batch in self._replay(self._book.next_sequence)]
        except TimeoutError:
            _log.warning("kv_replay_timeout", endpoint=self._replay_endpoint)
            return False
        for batch in batches:
            if not self._book.apply(batch.sequence, batch.payload):
                # Older ones are no longer kept: these are all there are.
                _log.warning(
                    "kv_events_lost", expected=self._book.next_sequence, got=batch.sequence
                )
                self._book.forget(batch.sequence)
                self._book.apply(batch.sequence, batch.payload)
        self._tell()
        return True

    async def _replay(self, first: int) -> AsyncIterator[_Batch]:
        """Ask for the kept batches from a number on. A socket a question: no answer is mixed up."""
        dealer = self._context.socket(zmq.DEALER)
        dealer.set_hwm(0)
        dealer.connect(self._replay_endpoint or "")
        try:
            await dealer.send_multipart((b"", first.to_bytes(8, "big")))
            while True:
                frames = await dealer.recv_multipart()
                if len(frames) == 4 and frames[2] == _END:
                    return
                yield _parse_frames(frames[1:])
        finally:
            dealer.close(linger=0)

    def _set_state(self, state: FollowerState, problem: str) -> None:
        if state is not self.state:
            log = _log.warning if problem else _log.info
            log("kv_events", state=state.value, endpoint=self._endpoint, problem=problem)
        self.state, self.problem = state, problem
        if state is not FollowerState.CONNECTING:
            self._settled.set()

    def _tell(self) -> None:
        """Wake who waits for a change, if there is one."""
        if self.resident.version != self._told_version:
            self._told_version = self.resident.version
            self._changed.set()
            self._changed = asyncio.Event()


def _parse_frames(frames: list[bytes]) -> _Batch:
    if len(frames) != 3 or len(frames[1]) != 8:
        raise InvalidBlockEventError("a KV event message has not the three frames of vLLM's")
    return _Batch(int.from_bytes(frames[1], "big"), frames[2])
