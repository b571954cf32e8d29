"""Markets drawn at random, and markets with a structure.

Prices are around the defaults of node and SDK: an ask of 0.1, 0.01 and 0.4 micro-credits a token
(prompt, cached, output), worth some times that to requesters, who as a rule do not care whether a
prompt was cached. Half of the tasks have a deadline of about the time that they take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.economics.world import (
    LARGEST_CONTEXT,
    Provider,
    World,
    make_prices,
    make_qos,
    make_scenarios,
    make_task,
)
from iemas.core.auction import Bid, Scenario
from iemas.core.types import Lateness

BLOCK: Final = 16
COST: Final = np.array([0.1, 0.01, 0.4])
"""A typical provider's cost a token by kind, in micro-credits."""

WORTH: Final = np.array([0.1, 0.1, 0.4])
"""What a requester's prices are a multiple of."""

MAX_TOKENS: Final = (128, 256, 512, 1024)
MEAN_TOKENS: Final = 200.0


def draw_providers(
    rng: np.random.Generator, slots: list[int], *, spread: float, block_size: int = BLOCK
) -> tuple[Provider, ...]:
    """Draw providers whose overall price level differs by `spread`, kinds by a third of it."""
    providers = []
    for count in slots:
        level = np.exp(np.clip(rng.normal(0.0, spread), -2 * spread, 2 * spread))
        kinds = np.exp(np.clip(rng.normal(0.0, spread / 3, 3), -spread / 2, spread / 2))
        qos = make_qos(
            int(rng.integers(40_000, 200_000)),
            int(rng.integers(50, 300)),
            int(rng.integers(10_000, 40_000)),
            float(rng.uniform(0.1, 0.4)),
        )
        providers.append(Provider(make_prices(COST * level * kinds), count, qos, block_size))
    return tuple(providers)


def draw_scenarios(rng: np.random.Generator) -> tuple[Scenario, ...]:
    """Draw finished tasks, longer ones somewhat slower, and let the market's model learn them."""
    common = rng.standard_normal(256)
    lengths = np.exp(np.log(MEAN_TOKENS) - 0.32 + 0.8 * common)
    ttft = 0.3 * common + np.sqrt(1 - 0.09) * rng.standard_normal(256)
    token = 0.4 * ttft + np.sqrt(1 - 0.16) * rng.standard_normal(256)
    counts = np.maximum(1, lengths.round()).astype(int).tolist()
    return make_scenarios(counts, list(zip(ttft.tolist(), token.tolist(), strict=True)))


def draw_lateness(rng: np.random.Generator, prompt_tokens: int, max_tokens: int) -> Lateness:
    """Draw no deadline, or one of about the time that a task of this size takes, and its decay."""
    if rng.random() < 0.5:
        return Lateness()
    typical_ms = 120 + 0.17 * prompt_tokens + 25.0 * min(max_tokens, MEAN_TOKENS)
    deadline_ms = round(typical_ms * float(rng.uniform(0.5, 2.5)))
    return Lateness(deadline_ms, round(deadline_ms * float(rng.uniform(0.2, 1.0))))


def draw_task(
    rng: np.random.Generator, prompt_tokens: int, *, low: float = 2.0, high: float = 6.0
) -> Bid:
    """Draw a task of a known prompt, worth `low` to `high` times what it typically costs.

    By default every bid covers every cost by kind, so that a round's rule that it must (docs/spec/
    auction.md §6, V6) keeps no two apart; only `random` is different.
    """
    max_tokens = int(rng.choice(MAX_TOKENS))
    multiple = np.exp(rng.uniform(np.log(low), np.log(high)))
    lateness = draw_lateness(rng, prompt_tokens, max_tokens)
    return make_task(prompt_tokens, max_tokens, make_prices(WORTH * multiple), lateness)


def draw_random(rng: np.random.Generator) -> World:
    """Every price of every kind is drawn by itself; cached tokens are worth less to requesters."""
    tasks = []
    for _ in range(12):
        prompt, most = int(rng.integers(100, 6000)), int(rng.choice(MAX_TOKENS))
        worth = WORTH * np.exp(rng.uniform(np.log(0.5), np.log(6.0), 3))
        worth[1] = worth[0] * rng.uniform(0.1, 1.0)
        prices = make_prices(worth)
        tasks.append(make_task(prompt, most, prices, draw_lateness(rng, prompt, most)))
    providers = []
    for count in rng.integers(1, 5, 5).tolist():
        own = draw_providers(rng, [count], spread=0.0)[0]
        cost = make_prices(COST * np.exp(rng.normal(0.0, 0.5, 3)))
        providers.append(Provider(cost, count, own.qos))
    prompts = np.array([task.prompt_tokens for task in tasks])[:, None]
    share = rng.random((12, 5)) * (rng.random((12, 5)) < 0.3)
    held = (share * prompts / BLOCK).astype(np.int64)
    return World(tuple(tasks), tuple(providers), held, draw_scenarios(rng))


def draw_sessions(
    rng: np.random.Generator, n_tasks: int, slots: list[int], *, spread: float = 0.25
) -> World:
    """Tasks of sessions: one or two providers hold most of each prompt, and prices differ."""
    prompts = rng.integers(400, 8_000, n_tasks)
    tasks = tuple(draw_task(rng, int(prompt)) for prompt in prompts)
    held = np.zeros((n_tasks, len(slots)), dtype=np.int64)
    for task in range(n_tasks):
        homes = rng.choice(len(slots), size=int(rng.integers(1, 3)), replace=False)
        held[task, homes] = (prompts[task] * rng.uniform(0.5, 0.95, len(homes)) / BLOCK).astype(int)
    return World(tasks, draw_providers(rng, slots, spread=spread), held, draw_scenarios(rng))


def draw_affine(rng: np.random.Generator) -> World:
    """Twelve tasks of sessions, fifteen slots: about enough, the best ones contested."""
    return draw_sessions(rng, 12, [3] * 5)


def draw_congested(rng: np.random.Generator) -> World:
    """Twice as many tasks as slots."""
    return draw_sessions(rng, 16, [2] * 4)


def draw_idle(rng: np.random.Generator) -> World:
    """Five times as many slots as tasks."""
    return draw_sessions(rng, 8, [8] * 5)


def draw_monopoly(rng: np.random.Generator) -> World:
    """One provider has ten of thirteen slots, and alone the context for a third of the tasks."""
    world = draw_sessions(rng, 12, [10, 1, 1, 1])
    short = LARGEST_CONTEXT // 8
    long = rng.random(12) < 1 / 3
    tasks = tuple(
        draw_task(rng, int(rng.integers(short, 2 * short))) if is_long else task
        for task, is_long in zip(world.tasks, long, strict=True)
    )
    providers = tuple(
        Provider(
            person.cost,
            person.slots,
            person.qos,
            context_tokens=LARGEST_CONTEXT if n == 0 else short,
        )
        for n, person in enumerate(world.providers)
    )
    return World(tasks, providers, world.held_blocks, world.scenarios)


def draw_urgent(rng: np.random.Generator) -> World:
    """Long prompts, short answers, and deadlines that the time to the first token decides."""
    prompts = rng.integers(4_000, 24_000, 12)
    tasks = []
    for prompt in prompts.tolist():
        typical_ms = 120 + 0.17 * prompt
        deadline_ms = round(typical_ms * float(rng.uniform(0.4, 2.0)))
        lateness = Lateness(deadline_ms, round(deadline_ms * float(rng.uniform(0.1, 1.0))))
        multiple = float(np.exp(rng.uniform(np.log(2.0), np.log(6.0))))
        tasks.append(make_task(prompt, 64, make_prices(WORTH * multiple), lateness))
    held = np.zeros((12, 5), dtype=np.int64)
    for task in range(12):
        homes = rng.choice(5, size=int(rng.integers(1, 3)), replace=False)
        held[task, homes] = (prompts[task] * rng.uniform(0.2, 0.9, len(homes)) / BLOCK).astype(int)
    return World(tuple(tasks), draw_providers(rng, [3] * 5, spread=0.25), held, draw_scenarios(rng))


DRAWN: Final[dict[str, Callable[[np.random.Generator], World]]] = {
    "random": draw_random,
    "affine": draw_affine,
    "congested": draw_congested,
    "idle": draw_idle,
    "monopoly": draw_monopoly,
    "urgent": draw_urgent,
}
