"""Running `iemas` as its users do: a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys


async def run_cli(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Give exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "node.cli.market",
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
