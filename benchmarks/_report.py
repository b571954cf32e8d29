"""What every benchmark prints: one JSON object with figures, units, machine and parameters."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE``, where ``-`` is standard output."""
    parser.add_argument("--json", default="-", metavar="FILE", help="where to write; - is stdout")


def write_report(
    target: str, *, name: str, parameters: Mapping[str, Any], figures: Mapping[str, Any]
) -> None:
    """Write the report as one JSON object."""
    report = {
        "benchmark": name,
        "machine": describe_machine(),
        "parameters": dict(parameters),
        **figures,
    }
    text = json.dumps(report, indent=2)
    if target == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")
