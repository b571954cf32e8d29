"""Replay the golden vectors under other versions of Python: `make test-determinism`.

    python -m tests.determinism.pythons 3.12 3.13 /path/to/python

Each interpreter that is found here gets a virtual environment with only what the pure packages and
their codec need. One that is not found, or that those packages cannot be installed for, is named
and left out: nothing is downloaded but packages. Exit 1 if any replay differs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENVS = ROOT / ".venv" / "determinism"
NEEDED = ("cbor2", "cryptography", "numpy", "protobuf", "scipy")


def list_requirements() -> list[str]:
    """Give what the pure packages need, in the versions that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [r for r in project["dependencies"] if r.startswith(NEEDED)]


def find_python(name: str) -> Path | None:
    """Find an interpreter by version or path; one that does not run is none."""
    for candidate in list_candidates(name):
        asked = [str(candidate), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        if "/" in name or done.stdout.strip() == name:
            return candidate
    return None


def list_candidates(name: str) -> Iterator[Path]:
    """Give where an interpreter may be: at its path, on PATH, among pyenv's."""
    if "/" in name:
        yield Path(name)
        return
    on_path = shutil.which(f"python{name}")
    if on_path is not None:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{name}.*/bin/python"), reverse=True)


def make_environment(python: Path, name: str) -> Path | None:
    """Make the environment, or take the one made before; None if that is not possible here."""
    home = VENVS / name.strip("/").replace("/", "-")
    inside = home / "bin" / "python"
    done = home / ".done"
    wanted = "\n".join([str(python), *list_requirements()])
    if done.exists() and done.read_text() == wanted:
        return inside
    make = [str(python), "-m", "venv", "--clear", "--without-pip", str(home)]
    install = [sys.executable, "-m", "pip", "--python", str(inside), "install", "--quiet"]
    for command in (make, [*install, *list_requirements()]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            print(*result.stderr.strip().splitlines()[-3:], sep="\n", file=sys.stderr)
            return None
    done.write_text(wanted)
    return inside


def main(names: list[str]) -> int:
    """Replay under each; say which were replayed and which are not here."""
    missing, broken = [], []
    for name in names:
        python = find_python(name)
        inside = make_environment(python, name) if python is not None else None
        if inside is None:
            missing.append(name if python is None else f"{name} (packages)")
            continue
        replay = [str(inside), "-m", "tests.determinism"]
        if subprocess.run(replay, cwd=ROOT, check=False).returncode != 0:
            broken.append(name)
    if missing:
        print(f"Not here, so not replayed: Python {', '.join(missing)}.")
    if broken:
        print(f"error: the golden chain replays otherwise on Python {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
