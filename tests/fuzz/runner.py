"""Feeds every decoder mutated encodings, and counts what comes out.

A decoder gives a value or raises an `IemasError` that is not `InternalError`; anything else is a
finding, and so is an input that takes longer than `MAX_SECONDS` of processor time. Decoder,
number and seed name an input for ever: ``python -m tests.fuzz --only NAME --seed S --inputs N``.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from iemas.core.errors import IemasError, InternalError
from tests.fuzz.decoders import Decoder
from tests.fuzz.mutate import mutate

MAX_SECONDS = 1.0


@dataclass(slots=True)
class Finding:
    """An input that a decoder did not handle."""

    decoder: str
    error: str
    where: str
    input_hex: str


@dataclass(slots=True)
class Counts:
    """What became of the inputs of one decoder."""

    inputs: int = 0
    accepted: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "accepted": self.accepted,
            "errors": dict(sorted(self.errors.items())),
            "slowest_ms": round(self.slowest_ms, 3),
        }


def run(decoder: Decoder, inputs: int, seed: int) -> tuple[Counts, list[Finding]]:
    """Feed one decoder so many inputs; its findings once per kind and place."""
    random = Random(f"{seed} {decoder.name}")
    counts = Counts()
    findings: dict[tuple[str, str], Finding] = {}
    for _ in range(inputs):
        data = mutate(decoder.seeds, random)
        finding = try_one(decoder, data, counts)
        if finding is not None:
            kind = finding.error.partition(":")[0]
            findings.setdefault((kind, finding.where), finding)
    return counts, list(findings.values())


def try_one(decoder: Decoder, data: bytes, counts: Counts) -> Finding | None:
    counts.inputs += 1
    began = time.process_time()
    finding = None
    try:
        decoder.decode(data)
    except InternalError as error:
        finding = _describe(decoder, data, error)
    except IemasError as error:
        counts.errors[type(error).__name__] += 1
    except Exception as error:  # noqa: BLE001 (to find what is not named is the point)
        finding = _describe(decoder, data, error)
    else:
        counts.accepted += 1
    seconds = time.process_time() - began
    counts.slowest_ms = max(counts.slowest_ms, seconds * 1000)
    if finding is None and seconds > MAX_SECONDS:
        finding = Finding(decoder.name, "slow", f"{seconds:.1f} s", data.hex())
    return finding


def _describe(decoder: Decoder, data: bytes, error: Exception) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/tests/" not in f.filename and ".venv" not in f.filename]
    last = (ours or frames)[-1]
    where = f"{last.filename.rsplit('/', 3)[-1]}:{last.lineno} {last.name}"
    return Finding(decoder.name, f"{type(error).__name__}: {str(error)[:120]}", where, data.hex())


def share(inputs: int, decoders: Sequence[Decoder]) -> list[int]:
    """Divide inputs by the decoders' weights, exactly."""
    total = sum(decoder.weight for decoder in decoders)
    parts = [inputs * decoder.weight // total for decoder in decoders]
    for index in range(inputs - sum(parts)):
        parts[index % len(parts)] += 1
    return parts
