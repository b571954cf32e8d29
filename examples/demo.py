"""The demo: a whole market on this machine, and real conversations bought in it.

``make demo`` (or ``python -m examples.demo``) starts three nodes beside three real vLLM servers
and a fourth validator, has six conversations of four turns in parallel, and then checks everything:
money, rounds, state roots. The client keeps no session: each turn sends the whole chat, and only
prices and cache digests bring it back to the node that already holds it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from examples.demo_report import (
    Report,
    TurnRow,
    compute_figures,
    describe_turn,
    list_balances,
    render_outcome,
    render_turns,
)
from iemas import AsyncClient, BidOptions
from iemas.core.errors import IemasError
from iemas.core.types import AccountId, NodeId
from iemas.tls import parse_address
from node.cli.history import History, check_market
from node.cli.progress import show_progress
from node.local_market import LocalMarket, MarketPlan
from node.local_market.plan import SIMULATED, VLLM_CPU, parse_assignments
from node.local_market.probe import get_status, get_term

HERE = Path(__file__).resolve().parent
REAL_CONVERSATIONS = HERE.parent.parent / "shared" / "data" / "mtrag" / "conversations.jsonl"
OWN_CONVERSATIONS = HERE / "conversations.jsonl"
ROTATIONS = 3
SETTLE_S = 120.0
PLAIN_WIDTH = 120
STAGGER_S = 0.5
"""Users do not come in the same instant; each finds the market as the others have left it."""
# A late token is worth a little less: enough to prefer an idle node to a busy one, and too little
# to leave a node that holds the prompt.
BID = BidOptions(deadline_ms=2_000, decay_ms=600_000)
EXTRA_QUESTION = "In one sentence: what is an auction?"
console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one user brings: passages to read, and questions in their own words."""

    name: str
    passages: str
    questions: Sequence[str]


def load_conversations(count: int, turns: int) -> list[Conversation]:
    """Load conversations of at least `turns` turns, the real ones where they are present."""
    path = REAL_CONVERSATIONS if REAL_CONVERSATIONS.exists() else OWN_CONVERSATIONS
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        questions = [m["content"] for m in row["messages"] if m["role"] == "user"][:turns]
        texts = [f"{passage['title']}\n{passage['text']}" for passage in row["passages"]]
        # Longer ones first: prompts near the limit show best what a cache is worth.
        found.append(Conversation(str(row["id"])[:12], "\n\n".join(texts), questions))
    full = [one for one in found if len(one.questions) == turns]
    full.sort(key=lambda one: -len(one.passages))
    return [full[n % len(full)] for n in range(count)] if full else []


class Demo:
    """One run against one market."""

    def __init__(self, market: LocalMarket, options: argparse.Namespace, report: Report) -> None:
        self.market = market
        self.report = report
        self._options = options
        self._names = {node.node_id.hex(): node.name for node in market.nodes.values()}

    async def run(self) -> None:
        """Hold all conversations, wait for rotations and settlement, check everything."""
        watcher = asyncio.create_task(self._watch_terms())
        try:
            with Live(console=console, get_renderable=lambda: render_turns(self.report)):
                await self._converse()
        finally:
            watcher.cancel()
        with show_progress(console, "waiting until all that was bought is settled") as tell:
            settled = await self._wait_settled()
            tell("replaying the ledger and re-checking every round")
            await self._check(settled, tell)

    async def _converse(self) -> None:
        conversations = load_conversations(self._options.conversations, self._options.turns)
        started = time.monotonic()
        async with AsyncClient(self.market.bootstrap, key=self.market.customer_key) as client:
            talks = [self._hold(client, one, n) for n, one in enumerate(conversations, start=1)]
            await asyncio.gather(*talks)
            seconds = time.monotonic() - started
            await self._see_rotations(client)
        self.report.figures = compute_figures(self.report.rows, seconds)
        wanted = len(conversations) * self._options.turns
        bought = sum(row.turn > 0 for row in self.report.rows)
        self.report.checks[f"all {wanted} turns were answered"] = bought == wanted > 0

    # --- conversations ---------------------------------------------------------------------------

    async def _hold(self, client: AsyncClient, talk: Conversation, number: int) -> None:
        name = f"{number} {talk.name}"
        tokenizer = await client.models.get_tokenizer()
        token_ids = tokenizer.encode(talk.passages)[: self._options.passage_tokens]
        passages = tokenizer.decode(token_ids)
        await asyncio.sleep((number - 1) * STAGGER_S)
        messages: list[dict[str, str]] = []
        previous = 0
        for turn, question in enumerate(talk.questions, start=1):
            text = f"{passages}\n\n{question}" if turn == 1 else question
            messages.append({"role": "user", "content": text})
            row, answer = await self._buy(client, name, turn, messages, previous)
            if row is None:
                return
            messages.append({"role": "assistant", "content": answer})
            previous = row.prompt_tokens

    async def _buy(
        self,
        client: AsyncClient,
        name: str,
        turn: int,
        messages: list[dict[str, str]],
        previous: int,
    ) -> tuple[TurnRow | None, str]:
        """Buy one answer to the whole chat so far; the request names no session."""
        self.report.waiting[name] = f"turn {turn}: bidding, reading the prompt"
        try:
            async with await client.chat.completions.create(
                messages=messages,
                max_tokens=self._options.max_tokens,
                temperature=0,
                bid=BID,
                stream=True,
            ) as stream:
                self.report.waiting[name] = f"turn {turn}: answering"
                completion = await stream.collect()
        except IemasError as error:
            self.report.problems.append(f"{name}, turn {turn}: {type(error).__name__}: {error}")
            return None, ""
        finally:
            self.report.waiting.pop(name, None)
        market, usage = completion.market, completion.usage
        row = TurnRow(
            conversation=name,
            turn=turn,
            term=market.term,
            round=market.round,
            auctioneer=self._names[market.auctioneer],
            winner=self._names[market.winner],
            prompt_tokens=usage.prompt_tokens,
            predicted_cached_tokens=market.predicted_cached_tokens,
            cached_tokens=market.cached_tokens,
            output_tokens=usage.completion_tokens,
            previous_prompt_tokens=previous,
            ttft_ms=market.ttft_ms,
            expected_price_micros=market.expected_price_micros,
            price_micros=market.price_micros,
            attempts=market.attempts,
        )
        self.report.rows.append(row)
        if not console.is_terminal:
            console.print(describe_turn(row), highlight=False)
        return row, completion.choices[0].message.content

    # --- terms -----------------------------------------------------------------------------------

    async def _watch_terms(self) -> None:
        """Note every term that begins, and who is its auctioneer."""
        address = parse_address(self.market.bootstrap[-1])
        while True:
            try:
                term = await get_term(address)
            except IemasError:
                await asyncio.sleep(0.25)
                continue
            name = self._names[term.auctioneer.hex()]
            if not self.report.terms or self.report.terms[-1][0] != term.term:
                self.report.terms.append((term.term, name))
            await asyncio.sleep(0.25)

    async def _see_rotations(self, client: AsyncClient) -> None:
        """Go on with a short question a term until the auctioneer has changed often enough."""
        term_s = self.market.require_genesis().params.term_ms / 1000
        give_up = time.monotonic() + (ROTATIONS + 2) * term_s + 10
        asked = -1
        while self.report.rotations < ROTATIONS and time.monotonic() < give_up:
            if self.report.rotations > asked:
                asked = self.report.rotations
                question = [{"role": "user", "content": EXTRA_QUESTION}]
                await self._buy(client, "(across a rotation)", 0, question, 0)
            self.report.waiting["rotations"] = f"{self.report.rotations} of {ROTATIONS} seen"
            await asyncio.sleep(0.1)
        self.report.waiting.clear()
        self.report.checks[f"the auctioneer rotated at least {ROTATIONS} times"] = (
            self.report.rotations >= ROTATIONS
        )

    # --- afterwards ------------------------------------------------------------------------------

    async def _wait_settled(self) -> bool:
        """Wait until no node has anything left to settle and all stand at the same round."""
        give_up = time.monotonic() + SETTLE_S
        addresses = [parse_address(node.address) for node in self.market.nodes.values()]
        while time.monotonic() < give_up:
            statuses = await asyncio.gather(*(get_status(address) for address in addresses))
            counts = {status.transcripts_verified for status in statuses}
            owed = any(status.unsettled_channels or status.open_books for status in statuses)
            if not owed and len(counts) == 1:
                return True
            await asyncio.sleep(0.25)
        return False

    async def _check(self, settled: bool, tell: Callable[[str], None]) -> None:  # noqa: FBT001
        report, genesis = self.report, self.market.require_genesis()
        addresses = [parse_address(node.address) for node in self.market.nodes.values()]
        data = self.market.home.genesis_file.read_bytes()
        history = await check_market(addresses, data, tell)
        findings = history.findings
        report.problems += findings.problems
        before = History(genesis, findings.chain_id).state
        names = {AccountId(node.node_id): node.name for node in self.market.nodes.values()}
        names[genesis.accounts[0].account] = "customer"
        report.figures["welfare expected, micro-credits"] = findings.welfare_micros
        report.figures["of it to providers"] = findings.provider_gains_micros
        report.figures["deficit of two-sided VCG, not run"] = findings.vcg_deficit_micros
        report.mode = findings.mode
        report.balances = list_balances(before, history.state, names)
        for verdict in findings.nodes:
            if verdict.status is not None:
                name = self._names[NodeId(verdict.node_id).hex()]
                report.verified[name] = verdict.status.transcripts_verified
        everyone = len(self.market.nodes)
        report.checks |= {
            "all that was bought is settled": settled,
            "the sum of all money is unchanged": findings.money_micros == findings.supply_micros,
            f"every one of {findings.rounds} rounds was verified by every node": (
                len(report.verified) == everyone
                and set(report.verified.values()) == {findings.rounds}
                and findings.rounds > 0
            ),
            "the replayed ledger and every node have one state root": (
                sum(verdict.agrees is True for verdict in findings.nodes) == everyone
            ),
            "the ledger paid what the receipts say": self._is_paid(history),
        }

    def _is_paid(self, history: History) -> bool:
        """Tell whether the customer lost exactly the receipts' amounts and the bid fees."""
        genesis = self.market.require_genesis()
        account = genesis.accounts[0]
        available, escrow = history.state.get_balance(account.account, genesis.hub)
        spent = account.available_micros + account.escrow_micros - available - escrow
        # A bid that no round took in, as its term ended, owes its fee too.
        fees = history.findings.fees_micros
        least = genesis.params.bid_fee_micros * history.findings.bids
        return fees >= least and spent == sum(row.price_micros for row in self.report.rows) + fees


async def run(options: argparse.Namespace, home: Path) -> Report:
    """Start the market, run the demo on it, stop everything."""
    plan = MarketPlan(
        name="demo",
        nodes=options.nodes,
        backend=options.backend,
        params=parse_assignments(options.param),
        torch_index=options.torch_index,
    )
    report = Report(plan.label, "")
    started = time.monotonic()
    async with LocalMarket(home) as market:
        with show_progress(console, "starting") as tell:
            await market.start(plan, tell)
        up_s = time.monotonic() - started
        report.model = market.require_genesis().model
        console.print(f"the market is open after {up_s:.1f} s: {', '.join(market.nodes)}")
        await Demo(market, options, report).run()
        report.figures["seconds until the market was open"] = round(up_s, 1)
        console.print("stopping everything")
    report.figures["seconds in all"] = round(time.monotonic() - started, 1)
    return report


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--backend", choices=(VLLM_CPU, SIMULATED), default=VLLM_CPU)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=6)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--passage-tokens", type=int, default=1500)
    parser.add_argument("--param", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--torch-index",
        default=os.environ.get("IEMAS_TORCH_INDEX"),
        help="package index of the CPU build of torch [IEMAS_TORCH_INDEX]",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows and figures")
    return parser.parse_args()


def main() -> None:
    """Run the demo; exit 0 only if everything held."""
    options = parse_options()
    home = Path(tempfile.mkdtemp(prefix="iemas-demo-"))
    try:
        report = asyncio.run(run(options, home))
    except IemasError as error:
        console.print(f"[red]the demo failed:[/red] {error}", highlight=False)
        console.print(f"logs: {home}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        shutil.rmtree(home, ignore_errors=True)
        sys.exit(130)
    console.print(render_outcome(report))
    for problem in report.problems:
        console.print(f"[red]failed:[/red] {problem}", highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(report.export(), indent=2))
    if not report.passed:
        failed = [name for name, holds in report.checks.items() if not holds]
        console.print(f"[red]the demo failed:[/red] {'; '.join(failed) or 'see above'}")
        console.print(f"logs: {home}", highlight=False)
        sys.exit(1)
    shutil.rmtree(home, ignore_errors=True)
    console.print("[green]everything held, and everything is stopped[/green]")


if __name__ == "__main__":
    main()
