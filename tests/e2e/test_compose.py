"""The compose file with a real engine: up, a chat through the SDK, down, and up again.

Without a running Docker engine it is run inside a private one, if the machine has the tool for it.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iemas import AsyncClient, Identity
from iemas.client._types import ChatCompletion
from iemas.tls import parse_address
from node.cli.history import check_market

ROOT = Path(__file__).parents[2]
ENGINE = ROOT.parent / "shared" / "tools" / "compose_engine.sh"
INSIDE = "IEMAS_COMPOSE_ENGINE"
MESSAGES = [{"role": "user", "content": "How are tokens counted? " * 20}]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def has_engine() -> bool:
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "compose", "version"], ["docker", "info"])
    return all(
        subprocess.run(c, capture_output=True, check=False).returncode == 0 for c in commands
    )


class Compose:
    """`docker compose` on the project's file."""

    def __init__(self, folder: Path) -> None:
        self.files = ["-f", str(ROOT / "docker-compose.yml")]
        override = os.environ.get("COMPOSE_OVERRIDE")
        if override:
            self.files += ["-f", override]
        self.folder = folder
        self.env = {**os.environ, "COMPOSE_PROJECT_NAME": "iemas-e2e"}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["docker", "compose", *self.files, *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def complete_image(self) -> None:
        """Lend the image the C++ runtime where a stand-in for its base has none.

        The published base image has it, as its package manager is written in C++.
        """
        probe = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "python"]
        done = subprocess.run(
            [*probe, "iemas:local", "-c", "import zmq, cryptography.x509"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        assert "cannot open shared object file" in done.stderr, done.stderr
        lent = [
            f"{library.resolve()}:{library}:ro"
            for name in ("libstdc++.so.6", "libgcc_s.so.1")
            for library in Path("/usr/lib").glob(f"*-linux-gnu/{name}")
        ]
        assert lent, "this machine has no C++ runtime to lend"
        services = json.loads(self("config", "--format", "json"))["services"]
        override = self.folder / "runtime.json"
        override.write_text(json.dumps({"services": {s: {"volumes": lent} for s in services}}))
        self.files += ["-f", str(override)]


def test_compose_file_is_valid() -> None:
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command here")
    version = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if version.returncode != 0:
        pytest.skip("the docker command here has no compose plugin")
    subprocess.run(["docker", "compose", "config", "-q"], cwd=ROOT, check=True)


def test_compose_market_sells_and_restarts(tmp_path: Path) -> None:
    if not has_engine():
        if os.environ.get(INSIDE) or not ENGINE.exists():
            pytest.skip("no Docker engine answers, and there is no tool for a private one")
        run_inside_private_engine()
        return
    compose = Compose(tmp_path)
    compose("build")
    compose.complete_image()
    try:
        compose("up", "-d", "--wait", "--wait-timeout", "180")
        key, address = fetch_access(compose, tmp_path)
        first = asyncio.run(chat(address, key))
        assert first.usage.prompt_tokens == first.receipt.prompt_tokens > 0
        asyncio.run(check(address))
        # The ledger is in named volumes: a market that was taken down goes on.
        compose("down")
        compose("up", "-d", "--wait", "--wait-timeout", "180")
        second = asyncio.run(chat(address, key))
        assert second.market.term > first.market.term
        asyncio.run(check(address))
    finally:
        sys.stderr.write(compose("logs", "--tail", "40", check=False))
        compose("down", "--volumes", "--timeout", "5", check=False)


def run_inside_private_engine() -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        ["bash", str(ENGINE), *command, __file__],
        cwd=ROOT,
        env={**os.environ, INSIDE: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stderr.write(done.stdout[-8000:] + done.stderr[-4000:])
    assert done.returncode == 0
    assert "2 passed" in done.stdout


def fetch_access(compose: Compose, folder: Path) -> tuple[Path, str]:
    """Take the customer's key and a node's address out of the market's volume."""
    key = folder / "customer.pem"
    compose("cp", "node-1:/market/keys/account-customer.pem", str(key))
    key.chmod(0o600)
    return key, compose("exec", "-T", "node-1", "cat", "/market/node-1.public").strip()


async def chat(address: str, key: Path) -> ChatCompletion:
    async with AsyncClient(address, key=key, max_retries=12) as client:
        completion = await client.chat.completions.create(messages=MESSAGES, max_tokens=24)
        assert completion.choices[0].message.content
        assert len(await client.nodes()) == 4
        return completion


async def check(address: str) -> None:
    async with AsyncClient(address, key=Identity(os.urandom(32))) as client:
        addresses = [parse_address(node.address) for node in await client.nodes()]
    findings = (await check_market(addresses, None, print)).findings
    assert findings.problems == []
    assert findings.rounds > 0
    assert [verdict.agrees for verdict in findings.nodes] == [True] * 4
