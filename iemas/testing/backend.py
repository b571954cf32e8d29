"""A simulated inference server: a real prefix cache, a timing model, made-up tokens. Tests only.

Pure: time comes in as `now_ms`, so one engine serves a whole market in one thread as well as the
process `node.backends.simulated`. What it keeps of a real server is what a market sees:

- up to `slots` tasks run at once, the rest wait in order of arrival;
- one prompt is computed at a time, `prefill_us_per_token` for each token that is not cached;
  every running task then gets a token each `decode_us_per_token`;
- prefix blocks are reused, evicted and named as vLLM does it (`iemas.testing.prefix_cache`), the
  last prompt token is always computed, and blocks filled by output are kept too.

The output is made of bytes (`iemas.testing.tokenizer`) and follows from the prompt, seed and
temperature alone, so that every engine gives the same answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256

from iemas.core.digest import BlockChain, ResidentBlocks, split_keys
from iemas.core.errors import InvalidInputError
from iemas.core.execution import TaskPayload
from iemas.core.types import FinishReason, require
from iemas.testing.prefix_cache import BlocksStored, CacheEvent, PrefixCache
from iemas.testing.tokenizer import IM_END_ID, decode_tokens

_LETTERS = b"eeeeetttaaaooiinnsshhrrddllucmwfgypbvk      "


class RequestTooLargeError(InvalidInputError):
    """Prompt and `max_tokens` exceed the server's context or its whole cache."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the simulated server is: its size and its speed.

    Answers end by themselves after `min_answer_tokens` to `max_answer_tokens` tokens, unless the
    task ignores the end of sequence.
    """

    slots: int = 4
    blocks: int = 700
    block_size: int = 32
    context_tokens: int = 8192
    prefill_us_per_token: int = 200
    decode_us_per_token: int = 10_000
    min_answer_tokens: int = 16
    max_answer_tokens: int = 96

    def __post_init__(self) -> None:
        require(self.slots > 0, f"slots must be positive, got {self.slots}")
        require(self.blocks > 0, f"blocks must be positive, got {self.blocks}")
        require(self.block_size > 0, f"block_size must be positive, got {self.block_size}")
        require(self.context_tokens > 1, "context_tokens must be at least 2")
        require(
            self.prefill_us_per_token >= 0 and self.decode_us_per_token >= 0,
            "times must not be negative",
        )
        require(
            1 <= self.min_answer_tokens <= self.max_answer_tokens,
            "min_answer_tokens must be in 1..max_answer_tokens",
        )


@dataclass(frozen=True, slots=True)
class SimulatedToken:
    """One output token, when it came out, and the text that became certain with it."""

    at_ms: int
    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class SimulatedUsage:
    """What the server reports at the end of a task."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish: FinishReason


class _Phase(Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


@dataclass(slots=True, eq=False)
class SimulatedRun:
    """One task on the engine: its output so far, and its usage once it has ended."""

    payload: TaskPayload
    tokens: list[SimulatedToken] = field(default_factory=list)
    usage: SimulatedUsage | None = None
    finished_at_ms: int = 0
    _taken: int = 0

    @property
    def done(self) -> bool:
        """Whether the task has ended."""
        return self.usage is not None

    @property
    def has_new(self) -> bool:
        """Whether tokens came since the last `take_new`."""
        return self._taken < len(self.tokens)

    def take_new(self) -> list[SimulatedToken]:
        """Give the tokens that came since the last call."""
        new = self.tokens[self._taken :]
        self._taken = len(self.tokens)
        return new


@dataclass(slots=True, eq=False)
class _Task:
    """The engine's own book on a run.

    `keys` are the block keys of all tokens so far, of which `stored` are in the cache under their
    names; `blocks` are the physical blocks held, `reserved` how many more are set aside.
    """

    run: SimulatedRun
    chain: BlockChain
    keys: list[int]
    answer: Iterator[int]
    next_us: int
    phase: _Phase = _Phase.WAITING
    blocks: list[int] = field(default_factory=list)
    stored: int = 0
    cached_tokens: int = 0
    reserved: int = 0
    text: str = ""
    shown: int = 0


class SimulatedEngine:
    """The server. Call `advance` at `next_at_ms` at the latest; runs fill up as time passes."""

    def __init__(self, config: EngineConfig, *, record_events: bool = False) -> None:
        self.config = config
        self._cache = PrefixCache(config.blocks, record_events=record_events)
        self._tasks: dict[SimulatedRun, _Task] = {}
        self._waiting: deque[_Task] = deque()
        self._prefill: deque[_Task] = deque()
        self._decoding: list[_Task] = []
        self._reserved = 0
        self.queried_tokens = 0
        self.hit_tokens = 0

    # --- what can be seen -----------------------------------------------------------------------

    @property
    def resident(self) -> ResidentBlocks:
        """The prefix blocks that the cache holds now."""
        return self._cache.resident

    @property
    def running_count(self) -> int:
        """How many tasks hold a slot."""
        return len(self._prefill) + len(self._decoding)

    @property
    def waiting_count(self) -> int:
        """How many tasks wait for a slot."""
        return len(self._waiting)

    @property
    def used_share(self) -> float:
        """The share of the blocks that running tasks use."""
        return 1.0 - self._cache.free_count / self.config.blocks

    @property
    def next_at_ms(self) -> int | None:
        """When something happens next; None while idle."""
        task = self._get_next()
        return None if task is None else -(-task.next_us // 1000)

    def take_events(self) -> list[CacheEvent]:
        """Give the cache's events since the last call; empty unless recording was asked for."""
        return self._cache.take_events()

    # --- what can be done -----------------------------------------------------------------------

    def submit(self, payload: TaskPayload, now_ms: int) -> SimulatedRun:
        """Take a task in. Its run fills up as `advance` is called.

        Raises: RequestTooLargeError if it can never run here.
        """
        self.advance(now_ms)
        tokens = len(payload.token_ids) + payload.max_tokens
        room = min(self.config.context_tokens, self.config.blocks * self.config.block_size)
        if tokens > room:
            raise RequestTooLargeError(
                f"prompt and max_tokens are {tokens} tokens together, the server holds {room}; "
                "shorten the prompt or lower max_tokens",
                tokens=tokens,
                limit=room,
            )
        run = SimulatedRun(payload)
        chain = BlockChain(self.config.block_size, cache_salt=payload.cache_salt)
        keys = _to_ints(chain.extend(payload.token_ids))
        answer = _generate(payload, self.config)
        task = self._tasks[run] = _Task(run, chain, keys, answer, now_ms * 1000)
        self._waiting.append(task)
        self._admit(now_ms * 1000)
        return run

    def cancel(self, run: SimulatedRun, now_ms: int) -> None:
        """Abort a task; what it computed stays cached. A run that has ended is left as it is."""
        self.advance(now_ms)
        task = self._tasks.get(run)
        if task is not None:
            self._finish(task, FinishReason.CANCELLED, now_ms * 1000)

    def advance(self, now_ms: int) -> None:
        """Let everything happen that is due until `now_ms`, in order."""
        task = self._get_next()
        while task is not None and task.next_us <= now_ms * 1000:
            self._step(task)
            task = self._get_next()

    def complete(self, payload: TaskPayload, now_ms: int) -> SimulatedRun:
        """Run a task to its end, letting time pass as needed; `finished_at_ms` tells the end."""
        run = self.submit(payload, now_ms)
        while not run.done and (due := self.next_at_ms) is not None:
            self.advance(due)
        return run

    def reset_cache(self) -> bool:
        """Forget all blocks, as a restart does; refused (False) while tasks run."""
        if self.running_count:
            return False
        self._cache.clear()
        return True

    # --- how it goes ----------------------------------------------------------------------------

    def _get_next(self) -> _Task | None:
        due = [*self._decoding]
        if self._prefill:
            due.append(self._prefill[0])
        return min(due, key=lambda task: task.next_us, default=None)

    def _admit(self, now_us: int) -> None:
        """Start waiting tasks while there are slots and blocks, in order of arrival."""
        while self._waiting and self.running_count < self.config.slots:
            task = self._waiting[0]
            if not self._reserve(task):
                return
            self._waiting.popleft()
            task.phase = _Phase.PREFILL
            self._prefill.append(task)
            if len(self._prefill) == 1:
                self._start_prefill(now_us)

    def _reserve(self, task: _Task) -> bool:
        """Take the cached prefix, blocks for the rest of the prompt, and set the output's aside.

        False, and nothing taken, if there is no room.
        """
        size = self.config.block_size
        prompt = len(task.run.payload.token_ids)
        prefix = self._cache.find_prefix(task.keys, (prompt - 1) // size)
        wanted = -(-(prompt + task.run.payload.max_tokens) // size) - len(prefix)
        if wanted > self._cache.free_count - self._cache.count_free(prefix) - self._reserved:
            return False
        self._cache.take(prefix)
        fresh = self._cache.allocate(-(-prompt // size) - len(prefix))
        task.blocks = prefix + fresh
        task.reserved = wanted - len(fresh)
        self._reserved += task.reserved
        task.stored = len(prefix)
        task.cached_tokens = len(prefix) * size
        self.queried_tokens += prompt
        self.hit_tokens += task.cached_tokens
        return True

    def _start_prefill(self, now_us: int) -> None:
        task = self._prefill[0]
        uncached = len(task.run.payload.token_ids) - task.cached_tokens
        task.next_us = now_us + uncached * self.config.prefill_us_per_token

    def _step(self, task: _Task) -> None:
        """Keep what was computed, put the next token out, then go on or end."""
        now_us = task.next_us
        if task.phase is _Phase.PREFILL:
            self._prefill.popleft()
            task.phase = _Phase.DECODE
            self._decoding.append(task)
            if self._prefill:
                self._start_prefill(now_us)
        self._store_full_blocks(task)
        token_id = next(task.answer)
        finish = _append_token(task, token_id, now_us)
        if finish is not None:
            self._finish(task, finish, now_us)
            return
        task.keys += _to_ints(task.chain.extend((token_id,)))
        if task.chain.token_count > len(task.blocks) * self.config.block_size:
            task.blocks += self._cache.allocate(1)
            task.reserved -= 1
            self._reserved -= 1
        task.next_us = now_us + self.config.decode_us_per_token

    def _store_full_blocks(self, task: _Task) -> None:
        """Every token of the chain is computed now: name the blocks that are full."""
        keys, first, size = task.keys, task.stored, self.config.block_size
        if first == len(keys):
            return
        output = tuple(token.token_id for token in task.run.tokens)
        stored = BlocksStored(
            keys=tuple(keys[first:]),
            parent=keys[first - 1] if first else None,
            token_ids=(task.run.payload.token_ids + output)[first * size : len(keys) * size],
            cache_salt="" if first else task.run.payload.cache_salt,
        )
        self._cache.store(task.blocks[first : len(keys)], stored)
        task.stored = len(keys)

    def _finish(self, task: _Task, finish: FinishReason, now_us: int) -> None:
        if task.phase is _Phase.WAITING:
            self._waiting.remove(task)
        elif task.phase is _Phase.PREFILL:
            first = self._prefill[0] is task
            self._prefill.remove(task)
            if first and self._prefill:
                self._start_prefill(now_us)
        else:
            self._decoding.remove(task)
        self._reserved -= task.reserved
        self._cache.release(task.blocks)
        task.phase = _Phase.DONE
        run = task.run
        del self._tasks[run]
        run.finished_at_ms = -(-now_us // 1000)
        run.usage = SimulatedUsage(
            prompt_tokens=len(task.run.payload.token_ids),
            cached_tokens=task.cached_tokens,
            output_tokens=len(task.run.tokens),
            finish=finish,
        )
        self._admit(now_us)


def _append_token(task: _Task, token_id: int, now_us: int) -> FinishReason | None:
    """Add a token to a run's output and tell whether, and why, the output ends with it."""
    task.text += decode_tokens((token_id,))
    finish = None
    if token_id == IM_END_ID:
        finish = FinishReason.STOP
    elif len(task.run.tokens) + 1 == task.run.payload.max_tokens:
        finish = FinishReason.LENGTH
    stops = [at for stop in task.run.payload.stop if stop and (at := task.text.find(stop)) >= 0]
    if stops:
        task.text, finish = task.text[: min(stops)], FinishReason.STOP
    # What may be the beginning of a stop string is held back until it is not.
    held_back = max((len(stop) - 1 for stop in task.run.payload.stop if stop), default=0)
    end = len(task.text) if finish is not None else max(task.shown, len(task.text) - held_back)
    text = task.text[task.shown : end]
    task.shown = end
    task.run.tokens.append(SimulatedToken(-(-now_us // 1000), token_id, text))
    return finish


def _generate(payload: TaskPayload, config: EngineConfig) -> Iterator[int]:
    """Give output tokens that follow from the prompt: letters and spaces, then the end marker."""
    digest = sha256()
    for token_id in payload.token_ids:
        digest.update(token_id.to_bytes(8, "big"))
    if payload.temperature_ppm:
        digest.update(f"{payload.temperature_ppm}/{payload.seed}".encode())
    start = digest.digest()
    spread = config.max_answer_tokens - config.min_answer_tokens + 1
    length = config.min_answer_tokens + int.from_bytes(start[:4], "big") % spread
    position = 0
    while True:
        for byte in sha256(start + position.to_bytes(8, "big")).digest():
            if position == length - 1 and not payload.ignore_eos:
                yield IM_END_ID
            yield _LETTERS[byte % len(_LETTERS)]
            position += 1


def _to_ints(packed: bytes) -> list[int]:
    return [int.from_bytes(key, "big") for key in split_keys(packed)]
