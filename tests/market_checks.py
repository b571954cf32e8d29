"""What integration and end-to-end tests ask of a local market, simulated or on real vLLM."""

import asyncio
import contextlib
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iemas import AsyncClient
from iemas.client._types import ChatCompletion
from iemas.core.errors import APIConnectionError
from iemas.tls import Address, parse_address
from node.cli.history import Findings, History, check_market
from node.local_market import LocalMarket
from node.local_market.probe import get_status

BLOCK_TOKENS = 32
SETTLE_S = 60.0


@dataclass(frozen=True)
class Turn:
    """An answered turn, and how many tokens the prompt of the turn before it had."""

    conversation: int
    number: int
    completion: ChatCompletion
    previous_prompt_tokens: int

    @property
    def reuse(self) -> float:
        """Cached tokens, as the backend reported, over the previous prompt's full blocks."""
        blocks = self.previous_prompt_tokens // BLOCK_TOKENS
        return self.completion.usage.prompt_tokens_details.cached_tokens / (blocks * BLOCK_TOKENS)


async def converse(
    client: AsyncClient, first: Sequence[str], later: Sequence[str], *, max_tokens: int
) -> list[Turn]:
    """Hold conversations in parallel, statelessly: one a first message, then all `later` ones."""

    async def hold(number: int, opening: str) -> list[Turn]:
        messages: list[dict[str, str]] = []
        turns: list[Turn] = []
        for text in (opening, *later):
            messages.append({"role": "user", "content": text})
            completion = await client.chat.completions.create(
                messages=messages, max_tokens=max_tokens, temperature=0
            )
            answer = completion.choices[0].message.content
            messages.append({"role": "assistant", "content": answer})
            before = turns[-1].completion.usage.prompt_tokens if turns else 0
            turns.append(Turn(number, len(turns) + 1, completion, before))
        return turns

    held = await asyncio.gather(*(hold(number, text) for number, text in enumerate(first)))
    return [turn for turns in held for turn in turns]


def list_later(turns: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.number > 1]


def list_running(market: LocalMarket) -> list[Address]:
    """Give the addresses of the nodes that run."""
    return [parse_address(node.address) for node in market.nodes.values() if node.running]


async def wait_settled(market: LocalMarket, *, same_rounds: bool = True) -> None:
    """Wait until nobody has anything to settle; and all have verified the same rounds, if asked."""
    addresses = list_running(market)
    async with asyncio.timeout(SETTLE_S):
        while True:
            statuses = await asyncio.gather(*(get_status(address) for address in addresses))
            rounds = {status.transcripts_verified for status in statuses if same_rounds}
            if not any(s.unsettled_channels or s.open_books for s in statuses) and len(rounds) <= 1:
                return
            await asyncio.sleep(0.1)


async def wait_in_step(market: LocalMarket, least_height: int = 1) -> int:
    """Wait until all nodes answer with one height and one state root; give the height."""
    addresses = [parse_address(node.address) for node in market.nodes.values()]
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(APIConnectionError):
                statuses = await asyncio.gather(*(get_status(address) for address in addresses))
                heights = {status.height for status in statuses}
                if len({status.state_root for status in statuses}) == 1 == len(heights):
                    (height,) = heights
                    if height >= least_height:
                        return height
            await asyncio.sleep(0.05)


async def check_history(market: LocalMarket) -> Findings:
    """Replay and re-check everything; all running nodes must agree and money be conserved."""
    return (await replay_history(market)).findings


async def replay_history(market: LocalMarket) -> History:
    """Do what `check_history` does; give the replay, with the ledger that comes out."""
    addresses = list_running(market)
    history = await check_market(addresses, market.home.genesis_file.read_bytes(), lambda _: None)
    findings = history.findings
    assert findings.problems == []
    assert [verdict.agrees for verdict in findings.nodes] == [True] * len(addresses)
    assert findings.money_micros == findings.supply_micros
    return history


async def compute_spent(market: LocalMarket, client: AsyncClient, account: int = 0) -> int:
    """Compute what an account of genesis has spent since."""
    granted = market.require_genesis().accounts[account]
    balance = await client.balance(granted.account)
    before = granted.available_micros + granted.escrow_micros
    return before - balance.available_micros - balance.escrow_micros


def read_counters(urls: Sequence[str]) -> dict[str, int]:
    """Add up the backends' own prefix-cache counters, in tokens."""
    sums = {"queries": 0, "hits": 0}
    for url in urls:
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            text = answer.read().decode()
        for name in sums:
            pattern = rf"^vllm:prefix_cache_{name}_total\{{[^}}]*\}} (\S+)$"
            sums[name] += sum(
                int(float(value)) for value in re.findall(pattern, text, re.MULTILINE)
            )
    return sums


def find_traces(folder: Path, needles: Sequence[bytes]) -> list[str]:
    """List files under a folder that hold any of the byte strings."""
    return [
        f"{path} holds {needle[:40]!r}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for needle in needles
        if needle in path.read_bytes()
    ]


def encode_forms(token_ids: Sequence[int]) -> list[bytes]:
    """Give the ways in which token ids could stand in a file: as varints, 4 or 8 bytes, text."""
    return [
        b"".join(_encode_varint(token_id) for token_id in token_ids),
        b"".join(token_id.to_bytes(4, "little") for token_id in token_ids),
        b"".join(token_id.to_bytes(4, "big") for token_id in token_ids),
        ", ".join(str(token_id) for token_id in token_ids).encode(),
        ",".join(str(token_id) for token_id in token_ids).encode(),
    ]


def _encode_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))
