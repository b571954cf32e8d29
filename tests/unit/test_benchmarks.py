"""Benchmarks print what their readers expect."""

import numpy as np

from benchmarks import ledger_apply
from benchmarks.clearing import draw_affine, make_dense, make_sparse, measure

KEYS = [
    "market",
    "tasks",
    "providers",
    "slots",
    "lsa_ms",
    "client_ms",
    "both_ms",
    "naive_ms",
    "verify_ms",
    "verify_both_ms",
    "client_ratio",
    "both_ratio",
    "memory_mb",
    "repeats",
]


def test_clearing_measures_dense_and_sparse_markets() -> None:
    welfare = draw_affine(30, 20, np.random.default_rng(1))
    slots = np.full(20, 2, dtype=np.int64)
    for market in (make_dense("affine", welfare, slots), make_sparse(welfare, slots)):
        figures = measure(market, repeats=1, patience_s=1)
        assert set(KEYS) <= set(figures)
        assert (figures["tasks"], figures["providers"], figures["slots"]) == (30, 20, 2)
        assert min(float(str(figures[key])) for key in KEYS if key.endswith("_ms")) > 0


def test_ledger_apply_splits_what_a_block_takes() -> None:
    figures = ledger_apply.measure(totals=6, providers=2, others=3, repeats=1)
    assert (figures["totals"], figures["accounts"]) == (6, 6 + 2 + 3 + 3)
    parts = ("check_tx", "cold", "apply", "copy", "rules", "invariants", "root", "empty")
    assert all(float(str(figures[f"{part}_ms"])) >= 0 for part in parts)
