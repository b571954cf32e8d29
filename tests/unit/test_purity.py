"""What decides loads no I/O: each pure module is imported in a fresh interpreter."""

import pkgutil
import subprocess
import sys

import pytest

import auctioneer
import iemas.consensus
import iemas.core
import iemas.ledger

FORBIDDEN = ("grpc", "iemas.v1", "iemas.wire", "iemas.tls", "google.protobuf", "aiohttp", "zmq")
# numpy, scipy and cryptography load some of the standard library for themselves; asyncio is theirs
# in no module that our core loads.
NO_ASYNCIO = ("iemas.core", "iemas.ledger", "iemas.consensus")

PACKAGES = (iemas.core, iemas.ledger, iemas.consensus, auctioneer)
MODULES = sorted(
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


def find_loaded(modules: list[str], forbidden: tuple[str, ...]) -> list[str]:
    code = (
        f"import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {forbidden!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("package", ["iemas", *(package.__name__ for package in PACKAGES)])
def test_pure_packages_load_no_grpc(package: str) -> None:
    modules = [name for name in MODULES if name.startswith(f"{package}.")]
    assert find_loaded(modules if package != "iemas" else ["iemas"], FORBIDDEN) == []


@pytest.mark.parametrize("package", NO_ASYNCIO)
def test_the_core_loads_no_event_loop(package: str) -> None:
    modules = [name for name in MODULES if name.startswith(f"{package}.")]
    assert find_loaded(modules, ("asyncio", "socket", "ssl", "sqlite3", "logging")) == []


def test_the_check_can_fail() -> None:
    assert find_loaded(["iemas.wire"], FORBIDDEN) == ["iemas.v1", "iemas.wire", "google.protobuf"]
