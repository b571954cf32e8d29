"""Added latency of the market over calling the backend directly.

A local market of real processes on simulated backends that answer at once; the same requests go
directly to a backend and through the market at a fixed rate, in one run on one machine. The
figure is the difference of the times to the first token. The market's processes, the load and the
backends share the machine. The aim is p50 / p99 added ≤ 8 / 30 ms at 50 requests a second.

    python -m benchmarks.overhead --rate 50 --seconds 10 --json -
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np

import iemas
from benchmarks._report import add_json_option, write_report
from iemas.keystore import load_key
from node.local_market.market import LocalMarket
from node.local_market.plan import CUSTOMER, Funds, MarketPlan

FAST = ("--prefill-us-per-token", "0", "--decode-ms", "1", "--slots", "64")
PROMPT_CHARACTERS = 2_000
MAX_TOKENS = 4


def make_prompt(source: random.Random) -> str:
    """Make a prompt of random letters, different every time."""
    return "".join(source.choices("abcdefghij klmnop", k=PROMPT_CHARACTERS))


async def run_at_rate(rate: float, seconds: float, call) -> list[float]:  # noqa: ANN001
    """Start calls at a fixed rate, whatever the earlier ones do; give their times in ms."""
    tasks, begin = [], time.perf_counter()
    for n in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + n / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(call()))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    for error in failed[:3]:
        print(f"a request failed: {error!r}", file=sys.stderr)
    return [result for result in results if not isinstance(result, BaseException)]


async def measure_direct(url: str, rate: float, seconds: float, seed: int) -> list[float]:
    """Measure times to the first token at the backend itself, over streamed HTTP."""
    source = random.Random(seed)
    async with aiohttp.ClientSession() as session:

        async def call() -> float:
            body = {
                "model": "simulated",
                "prompt": make_prompt(source),
                "max_tokens": MAX_TOKENS,
                "stream": True,
            }
            begin = time.perf_counter()
            async with session.post(f"{url}/v1/completions", json=body) as response:
                first = None
                async for line in response.content:
                    if first is None and line.startswith(b"data: "):
                        first = (time.perf_counter() - begin) * 1000
                return first or float("nan")

        return await run_at_rate(rate, seconds, call)


async def measure_market(market: LocalMarket, rate: float, seconds: float, seed: int):  # noqa: ANN201
    """Measure times to the first token, and to the allocation, through the market."""
    source = random.Random(seed)
    matching: list[float] = []
    async with iemas.AsyncClient(
        list(market.bootstrap), key=load_key(market.customer_key)
    ) as client:

        async def call() -> float:
            begin = time.perf_counter()
            stream = await client.chat.completions.create(
                messages=[{"role": "user", "content": make_prompt(source)}],
                max_tokens=MAX_TOKENS,
                stream=True,
            )
            first = None
            async for chunk in stream:
                first = first or (time.perf_counter() - begin) * 1000
                if chunk.market is not None:
                    matching.append(chunk.market.matching_ms)
            return first or float("nan")

        await call()  # fetches the tokenizer, opens the channels
        matching.clear()
        times = await run_at_rate(rate, seconds, call)
    return times, matching


def summarise(times: list[float]) -> dict[str, float]:
    """Give the quantiles of times in milliseconds."""
    if not times:
        return {}
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    return {"p50_ms": round(p50, 2), "p90_ms": round(p90, 2), "p99_ms": round(p99, 2)}


async def run(rate: float, seconds: float, nodes: int) -> dict[str, object]:
    """Bring a market up, measure both ways, take it down."""
    with tempfile.TemporaryDirectory(prefix="iemas-overhead-") as folder:
        async with LocalMarket(Path(folder)) as market:
            funds = Funds(available_micros=10**9, escrow_micros=10**10)
            plan = MarketPlan(nodes=nodes, simulated_arguments=FAST, accounts={CUSTOMER: funds})
            await market.start(plan, lambda text: print(text, file=sys.stderr))
            url = market.backends[0].address.url
            direct = await measure_direct(url, rate, seconds, seed=1)
            through, matching = await measure_market(market, rate, seconds, seed=2)
    base, total = summarise(direct), summarise(through)
    return {
        "direct": base,
        "market": total,
        "matching": summarise(matching),
        "added": {key: round(total[key] - base[key], 2) for key in base if key in total},
        "requests": len(through),
        "failed": int(rate * seconds) - len(through),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, default=3)
    add_json_option(parser)
    arguments = parser.parse_args()
    figures = asyncio.run(run(arguments.rate, arguments.seconds, arguments.nodes))
    parameters = json.loads(json.dumps(vars(arguments)))
    write_report(arguments.json, name="overhead", parameters=parameters, figures=figures)


if __name__ == "__main__":
    main()
