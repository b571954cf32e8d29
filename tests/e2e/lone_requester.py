"""A requester in a process of its own, to be killed: tells what it signs before that leaves it.

    python -m tests.e2e.lone_requester ADDRESS KEY_FILE QUESTION

One JSON object a line: `{"provider", "term", "channel", "total"}` for a signed running total,
`{"text"}` for a piece of the answer.
"""

import asyncio
import json
import sys
from typing import Any

from iemas import AsyncClient
from iemas.client._channel import Channel


def tell(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def tell_totals(channel: Channel) -> None:
    sign = channel._sign_total

    def sign_total(allocation: Any, book: Any) -> Any:
        total = sign(allocation, book)
        message = total.message
        tell(
            account=message.account.hex(),
            provider=message.provider.hex(),
            term=message.term,
            channel=message.channel,
            total=message.total_micros,
        )
        return total

    channel._sign_total = sign_total  # type: ignore[method-assign]


async def main(address: str, key: str, question: str) -> None:
    async with AsyncClient(address, key=key) as client:
        _, buyer = await client._core.open()
        tell_totals(buyer._channel)
        messages = [{"role": "user", "content": question}]
        stream = await client.chat.completions.create(
            messages=messages, max_tokens=400, ignore_eos=True, stream=True
        )
        async for chunk in stream:
            tell(text=chunk.choices[0].delta.content or "")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
