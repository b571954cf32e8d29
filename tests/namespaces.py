"""A market whose nodes live in network namespaces of their own, so that the network can be cut.

Every node has an address of its own on one bridge, and drops what comes from those that it is cut
off from: silently, as a broken network does. Whoever starts the market is on the bridge too, at
`GATEWAY`, and is never cut off. Needs root and Linux; nothing outside the namespaces is changed but
for the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from node.local_market import BackendAddress, LocalMarket
from node.local_market.backends import StartedBackend

SUBNET = f"10.203.{os.getpid() % 250}"
GATEWAY = f"{SUBNET}.254"
PORT = 7470
_TAG = f"im{os.getpid() % 100_000}"


class Namespaces:
    """One network namespace a name, all on one bridge."""

    def __init__(self, names: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(names, start=1)}

    def get_address(self, name: str) -> str:
        """Give a namespace's IP address."""
        return f"{SUBNET}.{self._numbers[name]}"

    def get_prefix(self, name: str) -> list[str]:
        """Give what runs a command in a namespace."""
        return ["ip", "netns", "exec", f"{_TAG}-{self._numbers[name]}"]

    def create(self) -> None:
        """Make them. Raises: CalledProcessError where this is not permitted."""
        _run("ip", "link", "add", _TAG, "type", "bridge")
        _run("ip", "address", "add", f"{GATEWAY}/24", "dev", _TAG)
        _run("ip", "link", "set", _TAG, "up")
        for name, number in self._numbers.items():
            space, wire = f"{_TAG}-{number}", f"{_TAG}w{number}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", wire, "master", _TAG, "up")
            inside = self.get_prefix(name)
            _run(*inside, "ip", "address", "add", f"{self.get_address(name)}/24", "dev", "eth0")
            _run(*inside, "ip", "link", "set", "eth0", "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            _run(*inside, "iptables", "-F", "INPUT")

    def delete(self) -> None:
        """Leave nothing behind."""
        for number in self._numbers.values():
            _run("ip", "netns", "delete", f"{_TAG}-{number}", check=False)
        _run("ip", "link", "delete", _TAG, check=False)

    def cut(self, one: Sequence[str], other: Sequence[str]) -> None:
        """Let nothing through between two sides any more, in neither direction."""
        for here, there in ((one, other), (other, one)):
            for name in here:
                for cut_off in there:
                    drop = (
                        "iptables",
                        "-A",
                        "INPUT",
                        "-s",
                        self.get_address(cut_off),
                        "-j",
                        "DROP",
                    )
                    _run(*self.get_prefix(name), *drop)

    def heal(self) -> None:
        """Let everything through again."""
        for name in self._numbers:
            _run(*self.get_prefix(name), "iptables", "-F", "INPUT")


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, text=True)


@contextlib.contextmanager
def make_namespaces(names: Sequence[str]) -> Iterator[Namespaces]:
    """Make namespaces for a test; where that cannot be, skip it and say why."""
    for program in ("ip", "iptables"):
        if shutil.which(program) is None:
            pytest.skip(f"network namespaces need the program {program}")
    spaces = Namespaces(names)
    try:
        try:
            spaces.create()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield spaces
    finally:
        spaces.delete()


class SeparatedMarket(LocalMarket):
    """A local market, each node of which runs in its namespace."""

    def __init__(self, home: Path, spaces: Namespaces) -> None:
        super().__init__(home)
        self._spaces = spaces

    def _make_command(self, name: str, backend: StartedBackend | None) -> list[str]:
        command = super()._make_command(name, backend)
        address = self._spaces.get_address(name)
        for flag, port in (("--public-listen", PORT), ("--peer-listen", PORT + 1)):
            command[command.index(flag) + 1] = f"{address}:{port}"
        return [*self._spaces.get_prefix(name), *command]


@contextlib.asynccontextmanager
async def relay_backends(
    addresses: Sequence[BackendAddress],
) -> AsyncIterator[tuple[BackendAddress, ...]]:
    """Offer inference servers that listen on loopback to the namespaces, at the gateway."""
    async with contextlib.AsyncExitStack() as stack:
        offered = []
        for address in addresses:
            port = urlsplit(address.url).port
            assert port is not None
            server = await asyncio.start_server(_make_relay(port), GATEWAY, 0)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            url = f"http://{GATEWAY}:{server.sockets[0].getsockname()[1]}"
            offered.append(BackendAddress(url, address.kv_events, address.kv_replay))
        yield tuple(offered)


def _make_relay(port: int):  # noqa: ANN202
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    return relay
