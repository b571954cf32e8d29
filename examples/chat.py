"""Chat with a market: a streamed conversation that shows what each turn cost.

Usage:
    python examples/chat.py NODEID@HOST:PORT --key KEY_FILE [TEXT ...]

Each TEXT is a turn; without any, turns are read from the terminal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import iemas


def read_turns(given: list[str]) -> Iterator[str]:
    """Give the turns of the command line, or those that are typed."""
    if given:
        yield from given
        return
    while True:
        try:
            yield input("you> ")
        except EOFError:
            return


def main() -> int:
    """Run the conversation and give the exit code."""
    parser = argparse.ArgumentParser(description="Chat with a market.")
    parser.add_argument("bootstrap", help="address of any node: nodeid@host:port")
    parser.add_argument("--key", required=True, help="key file of the account that pays")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("turns", nargs="*")
    arguments = parser.parse_args()
    try:
        with iemas.Client(arguments.bootstrap, key=arguments.key) as client:
            session = client.sessions.create(max_tokens=arguments.max_tokens)
            for turn in read_turns(arguments.turns):
                with session.send(turn, stream=True) as stream:
                    for chunk in stream:
                        print(chunk.choices[0].delta.content or "", end="", flush=True)
                        if chunk.market is not None and chunk.usage is not None:
                            cached = chunk.usage.prompt_tokens_details.cached_tokens
                            print(
                                f"\n[{chunk.market.winner[:10]} served it: "
                                f"{chunk.usage.prompt_tokens} prompt tokens, {cached} of them "
                                f"cached, first token after {chunk.market.ttft_ms} ms, "
                                f"{chunk.market.price_micros} micro-credits]"
                            )
            print(f"escrow left: {client.balance().escrow_micros} micro-credits")
    except iemas.IemasError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
