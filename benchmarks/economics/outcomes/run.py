"""All of it: one mapping of tables."""

from __future__ import annotations

from typing import Any

from auctioneer.mechanism.arrays import IntArray
from benchmarks.economics.outcomes.cancelling import measure_early_cancelling
from benchmarks.economics.outcomes.declarations import measure_false_impatience
from benchmarks.economics.outcomes.digests import measure_digest_claims
from benchmarks.economics.outcomes.expectation import measure_expectation
from benchmarks.economics.outcomes.lengths import measure_hidden_length
from benchmarks.economics.outcomes.samples import Study, load_lengths
from benchmarks.economics.outcomes.stopping import measure_backdating, measure_stopping_early


def run(
    seed: int = 1, tasks: int = 36, markets: int = 12, lengths: IntArray | None = None
) -> dict[str, Any]:
    """Run the study.

    tasks: deals behind each row. markets: markets of each size. lengths: of answers, by default
    those of the trace.
    Raises: FileNotFoundError where the trace is not there.
    """
    study = Study.of(load_lengths() if lengths is None else lengths, seed)
    return {
        "expectation": measure_expectation(study, tasks),
        "early_cancelling": measure_early_cancelling(study, tasks),
        "false_impatience": measure_false_impatience(study, tasks),
        "stopping_early": measure_stopping_early(study, tasks),
        "backdating": measure_backdating(study, tasks),
        "hidden_length": measure_hidden_length(study, markets),
        "digest_claims": measure_digest_claims(study, markets),
    }


def run_if_there(seed: int) -> dict[str, Any]:
    """Run the study, or say that its trace is missing. A job of `python -m benchmarks.economics`.

    It is here as what `__main__` defines cannot be sent to other processes.
    """
    try:
        return run(seed)
    except FileNotFoundError as error:
        return {"skipped": f"no trace at {error.filename}"}
