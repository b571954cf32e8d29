"""When a node reports what of itself. Source: docs/spec/membership.md §2; design §8."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from iemas.core.params import MarketParams
from iemas.core.report import CacheDigest, CapabilityReport, LoadReport, Report
from iemas.core.types import HashAlgorithm
from iemas.testing.chain import HUB, LedgerChain
from node.reporting import CurrentLoad, NodeProfile, Reporter

START_MS = 1_800_000_000_000
SELLER = NodeProfile(
    public_address="node:1",
    peer_address="node:2",
    ca_certificate=b"",
    hpke_public_key=bytes(32),
    software="test",
    hub=HUB,
    model="model",
    tokenizer_hash=bytes(32),
    block_size=16,
    hash_algorithm=HashAlgorithm.SHA256_CBOR,
    context_tokens=4096,
    slots=4,
)


class Bench:
    def __init__(self, profile: NodeProfile = SELLER) -> None:
        self.load = CurrentLoad(4)
        self.now_ms = START_MS
        self.reporter = Reporter(
            profile=profile,
            incarnation=START_MS,
            params=MarketParams(),
            signer=LedgerChain().get_signer("node-1"),
            get_load=lambda: self.load,
        )

    def report(self, *, after_ms: int = 0) -> list[Report]:
        self.now_ms += after_ms
        signed = self.reporter.make_due_reports(now_ms=self.now_ms)
        return [report.message for report in signed]

    def get_kinds(self, *, after_ms: int = 0) -> set[type]:
        return {type(report) for report in self.report(after_ms=after_ms)}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_provider_says_at_once_what_it_is_and_how_busy(bench: Bench) -> None:
    assert bench.get_kinds() == {CapabilityReport, LoadReport}


def test_a_digest_is_due_as_soon_as_the_cache_is_known(bench: Bench) -> None:
    bench.report()
    bench.reporter.set_cache(bytes(8), estimated=False)
    (digest,) = bench.report()
    assert isinstance(digest, CacheDigest)
    assert digest.blocks == bytes(8)


def test_an_unchanged_cache_makes_no_digest_due(bench: Bench) -> None:
    bench.reporter.set_cache(bytes(8), estimated=False)
    bench.report()
    bench.reporter.set_cache(bytes(8), estimated=False)
    assert bench.report() == []


def test_a_change_of_load_is_reported_at_once(bench: Bench) -> None:
    bench.report()
    assert bench.report() == []
    bench.load = replace(bench.load, active=(bytes(32),))
    (load,) = bench.report()
    assert isinstance(load, LoadReport)
    assert load.active == (bytes(32),)


def test_a_node_that_sells_nothing_has_neither_load_nor_digest() -> None:
    bench = Bench(replace(SELLER, model="", slots=0))
    bench.reporter.set_cache(bytes(8), estimated=False)
    assert bench.get_kinds() == {CapabilityReport}


@pytest.mark.parametrize(
    ("kind", "lifetime_ms"),
    [
        (CapabilityReport, lambda report: report.stamp.ttl_ms),
        (CacheDigest, lambda report: report.stamp.ttl_ms),
        (LoadReport, lambda report: MarketParams().report_max_age_ms),
    ],
)
def test_reports_are_renewed_well_before_they_run_out(
    bench: Bench, kind: type[Report], lifetime_ms: Callable[[Report], int]
) -> None:
    bench.reporter.set_cache(b"", estimated=True)
    made = {}
    for _ in range(60):
        for report in bench.report(after_ms=1_000):
            if type(report) is kind:
                made[report.stamp.issued_at_ms] = report
    times = sorted(made)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) <= lifetime_ms(made[times[0]]) // 2


def test_sequence_numbers_rise_over_all_kinds(bench: Bench) -> None:
    bench.reporter.set_cache(b"", estimated=False)
    sequences = [r.stamp.sequence for _ in range(5) for r in bench.report(after_ms=30_000)]
    assert sequences == list(range(1, len(sequences) + 1))
