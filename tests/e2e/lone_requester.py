"""A requester in a process of its own, to be killed: tells what it signs before that leaves it.

    python -m tests.e2e.lone_requester ADDRESS KEY_FILE QUESTION

One JSON object a line: `{"provider", "term", "channel", "total"}` for a signed running total,
`{"text"}` for a piece of the answer.
"""

import asyncio
import json
import sys

from iemas import AsyncClient
from iemas.core.execution import ChannelTotal
from tests.totals import watch_totals


def tell(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def tell_total(total: ChannelTotal) -> None:
    tell(
        account=total.account.hex(),
        provider=total.provider.hex(),
        term=total.term,
        channel=total.channel,
        total=total.total_micros,
    )


async def main(address: str, key: str, question: str) -> None:
    async with AsyncClient(address, key=key) as client:
        _, buyer = await client._core.open()
        watch_totals(buyer._channel, tell_total)
        messages = [{"role": "user", "content": question}]
        stream = await client.chat.completions.create(
            messages=messages, max_tokens=400, ignore_eos=True, stream=True
        )
        async for chunk in stream:
            tell(text=chunk.choices[0].delta.content or "")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
