"""The sync SDK: the same over a background loop."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iemas
from iemas import Client, Identity

HELLO = [{"role": "user", "content": "Hi there"}]


@pytest.fixture
def client(market_in_thread: Any, buyer: Identity, cache_dir: Path) -> Iterator[Client]:
    with Client(market_in_thread.bootstrap, key=buyer, cache_dir=cache_dir) as opened:
        yield opened


def test_answers_and_streams(client: Client) -> None:
    completion = client.chat.completions.create(messages=HELLO)
    assert completion.choices[0].message.content == "Hello, buyer!"
    with client.chat.completions.create(messages=HELLO, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == stream.text == "Hello, buyer!"
    assert stream.receipt is not None
    assert client.completions.create(prompt="abc", max_tokens=5).choices[0].text == "Hello"
    pieces = list(client.completions.create(prompt="abc", max_tokens=5, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == "Hello"


def test_sessions_reads_and_transactions(client: Client, market_in_thread: Any) -> None:
    session = client.sessions.create(system="Be brief.", max_tokens=40)
    session.send("One")
    with session.send("Two", stream=True) as stream:
        assert stream.collect().choices[0].message.content == "Hello, buyer!"
    client.chat.completions.create(messages=HELLO, session=session)
    assert len(session.messages) == 7
    assert client.balance().escrow_micros == 4_000_000
    assert [model.id for model in client.models.list()] == ["byte-model"]
    assert len(client.nodes()) == 3
    client.fund_escrow(5)
    client.withdraw_escrow(5)
    client.transfer(client.account, 5)
    assert len(market_in_thread.transactions) == 3
    assert client.connect() is client


def test_a_transaction_without_an_answer_is_sent_again_as_it_was_signed(
    client: Client, market_in_thread: Any
) -> None:
    market_in_thread.script.swallowed = 4
    client.transfer(client.account, 5)
    assert len(market_in_thread.submitted) == 5
    assert len(set(market_in_thread.submitted)) == 1


def test_errors_keep_their_names(client: Client) -> None:
    with pytest.raises(iemas.BadRequestError):
        client.chat.completions.create(messages=[])
    with pytest.raises(TypeError, match="tools"):
        client.chat.completions.create(messages=HELLO, tools=[])  # type: ignore[call-overload]


def test_threads_share_a_client(client: Client) -> None:
    answers: list[str] = []

    def ask() -> None:
        completion = client.chat.completions.create(messages=HELLO)
        answers.append(completion.choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == ["Hello, buyer!"] * 8


def test_closed_client_says_so(market_in_thread: Any, buyer: Identity, cache_dir: Path) -> None:
    client = Client(market_in_thread.bootstrap, key=buyer, cache_dir=cache_dir)
    client.close()
    client.close()
    with pytest.raises(iemas.IemasError, match="closed"):
        client.balance()


def test_last_client_stops_the_thread(market_in_thread: Any, buyer: Identity) -> None:
    with Client(market_in_thread.bootstrap, key=buyer) as client:
        client.balance()
        assert "iemas-client" in {thread.name for thread in threading.enumerate()}
    assert "iemas-client" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def _default_sigint() -> Iterator[None]:
    """Let Ctrl-C interrupt, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_sigint")
def test_ctrl_c_cancels_the_task(client: Client, market_in_thread: Any) -> None:
    market_in_thread.script.reply = "x" * 400
    market_in_thread.script.token_seconds = 0.02

    def interrupt() -> None:
        while not market_in_thread.executions:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        client.chat.completions.create(messages=HELLO)
    interrupter.join()
    client.close()
    assert market_in_thread.cancels == 1
    assert market_in_thread.executions[0].done


def test_sync_client_in_a_coroutine_of_another_loop(client: Client) -> None:
    async def main() -> str:
        completion = await asyncio.to_thread(client.chat.completions.create, messages=HELLO)
        return completion.choices[0].message.content  # type: ignore[union-attr]

    assert asyncio.run(main()) == "Hello, buyer!"


def test_script_that_forgets_to_close_ends(
    market_in_thread: Any, tmp_path: Path, cache_dir: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import iemas, sys\n"
        "client = iemas.Client(sys.argv[1], key=iemas.Identity(b'b' * 32), cache_dir=sys.argv[2])\n"
        "messages = [{'role': 'user', 'content': 'Hi there'}]\n"
        "print(client.chat.completions.create(messages=messages).choices[0].message.content)\n"
    )
    command = [sys.executable, str(script), market_in_thread.bootstrap[0], str(cache_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, buyer!\n", "")
    gc.collect()
    final = market_in_thread.executions[0]
    assert final.done  # the last receipt was signed before the process ended
