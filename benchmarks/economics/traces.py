"""Markets cut out of replayed traces: real lengths, arrivals and, in one, real prefixes.

A trace is cut into rounds of a few seconds. Each is cleared with everybody truthful; what a
provider serves it then has in its cache (least recently used blocks go first), and the slot is
taken until the task is done. After a warm-up every few rounds are kept as markets. Prices and
deadlines are drawn, as no trace has them. Source: Mooncake's conversation trace, Azure's LLM
inference trace of 2023 (conversation).
"""

from __future__ import annotations

import csv
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.economics.markets import draw_providers, draw_task
from benchmarks.economics.rounds import appraise_truth, clear_all
from benchmarks.economics.world import Provider, World, foresee, make_scenarios
from iemas.core.auction import Scenario

DATA: Final = Path("..") / "shared" / "data"
SLOTS: Final = (8, 8, 8, 8, 8)
MOST_TASKS: Final = 16
REPLAYS: Final = 4
WARM_UP_ROUNDS: Final = 80
STEP_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One row of a trace; `blocks` names its prompt's prefix blocks, in order."""

    at_ms: int
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace and how to cut it: the length of a round, of a block, blocks in a cache."""

    requests: tuple[Request, ...]
    window_ms: int
    block_size: int
    cache_blocks: int


def load_mooncake(folder: Path) -> Trace:
    """Read Mooncake's conversation trace, with blocks of 512 tokens."""
    path = folder / "mooncake" / "conversation_trace.jsonl"
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    requests = tuple(
        Request(row["timestamp"], row["input_length"], row["output_length"], tuple(row["hash_ids"]))
        for row in rows
    )
    return Trace(requests, window_ms=3000, block_size=512, cache_blocks=1000)


def load_azure(folder: Path) -> Trace:
    """Read Azure's conversation trace, which knows nothing of prefixes."""
    path = folder / "azure" / "AzureLLMInferenceTrace_conv.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26] + "+00:00") for row in rows]
    requests = tuple(
        Request(
            round((time - times[0]).total_seconds() * 1000),
            max(1, int(row["ContextTokens"])),
            max(1, int(row["GeneratedTokens"])),
        )
        for time, row in zip(times, rows, strict=True)
    )
    return Trace(requests, window_ms=2000, block_size=16, cache_blocks=0)


LOADERS: Final = {"mooncake": load_mooncake, "azure": load_azure}


def cut_markets(trace: Trace, count: int, seed: int) -> list[World]:
    """Cut markets out of replays that begin at different places, each with its own providers."""
    markets: list[World] = []
    for number in range(REPLAYS):
        wanted = count * (number + 1) // REPLAYS - count * number // REPLAYS
        rng = np.random.default_rng([seed, number])
        start = len(trace.requests) * number // REPLAYS
        replay = Replay(trace, trace.requests[start:], rng)
        kept = 0
        for n, world in enumerate(replay.run()):
            if kept == wanted:
                break
            if n >= WARM_UP_ROUNDS and (n - WARM_UP_ROUNDS) % STEP_ROUNDS == 0:
                markets.append(world)
                kept += 1
    return markets


class Replay:
    """One pass through a trace: who has what in its cache, and whose slots are taken."""

    def __init__(self, trace: Trace, requests: Sequence[Request], rng: np.random.Generator) -> None:
        self._trace = trace
        self._requests = requests
        self._rng = rng
        self._providers = draw_providers(rng, list(SLOTS), spread=0.25, block_size=trace.block_size)
        self._caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in SLOTS]
        self._busy_until_ms: list[list[float]] = [[] for _ in SLOTS]
        self._scenarios = self._learn_scenarios()

    def run(self) -> Iterator[World]:
        """Give every round's truth, in order."""
        window = self._trace.window_ms
        for number, group in groupby(self._requests, lambda request: request.at_ms // window):
            requests = list(group)[:MOST_TASKS]
            world = self._make_world(requests, (number + 1) * window)
            if world.slots.sum() > 0:
                yield world
                self._serve(world, requests, (number + 1) * window)

    def _learn_scenarios(self) -> tuple[Scenario, ...]:
        """Let the market's model learn this part of the trace; times are drawn."""
        lengths = [request.output_tokens for request in self._requests[:256]]
        deviations = self._rng.standard_normal((len(lengths), 2)).tolist()
        return make_scenarios(lengths, [(first, token) for first, token in deviations])

    def _make_world(self, requests: list[Request], now_ms: int) -> World:
        free: list[Provider] = []
        for n, provider in enumerate(self._providers):
            self._busy_until_ms[n] = [end for end in self._busy_until_ms[n] if end > now_ms]
            slots = max(0, provider.slots - len(self._busy_until_ms[n]))
            free.append(replace(provider, slots=slots))
        held = [[self._count_held(n, request) for n in range(len(free))] for request in requests]
        return World(
            tuple(draw_task(self._rng, request.prompt_tokens) for request in requests),
            tuple(free),
            np.array(held, dtype=np.int64),
            self._scenarios,
        )

    def _count_held(self, provider: int, request: Request) -> int:
        cache = self._caches[provider]
        for n, block in enumerate(request.blocks):
            if block not in cache:
                return n
        return len(request.blocks)

    def _serve(self, world: World, requests: list[Request], now_ms: int) -> None:
        pairs = appraise_truth(world, foresee(world, noise=0.0, bias=0.0, seed=0))
        cleared = clear_all(pairs.welfare, world.slots)
        for task in cleared.matched:
            n, request = int(cleared.assignment[task]), requests[task]
            self._remember(n, request.blocks)
            qos = self._providers[n].qos
            uncached = request.prompt_tokens - int(
                world.held_blocks[task, n] * self._trace.block_size
            )
            length = min(request.output_tokens, world.tasks[task].max_tokens)
            time_us = (
                qos.ttft_base_us
                + qos.ttft_per_uncached_token_us * max(0, uncached)
                + qos.token_us * length
            )
            self._busy_until_ms[n].append(now_ms + time_us / 1000)

    def _remember(self, provider: int, blocks: tuple[int, ...]) -> None:
        cache = self._caches[provider]
        for block in blocks:
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > self._trace.cache_blocks:
            cache.popitem(last=False)
