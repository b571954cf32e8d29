"""The demo, small and on simulated backends: it must exit 0 only if everything held."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_holds_on_simulated_backends(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    # fmt: off
    command = [
        sys.executable, "-m", "examples.demo", "--backend", "simulated",
        "--conversations", "2", "--turns", "2", "--max-tokens", "8",
        "--param", "term_ms=700", "--json", str(figures),
    ]
    # fmt: on
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(figures.read_text())
    assert report["passed"]
    assert all(report["checks"].values())
    assert report["rotations"] >= 3
    assert report["label"] == "simulated backend, for tests only"
    turns = [row for row in report["rows"] if row["turn"]]
    assert len(turns) == 4
    assert min(row["reuse"] for row in turns if row["turn"] == 2) >= 0.8
    before = sum(account["before_micros"] for account in report["balances"])
    assert before == sum(account["after_micros"] for account in report["balances"])
