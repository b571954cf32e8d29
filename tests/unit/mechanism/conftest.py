"""Builders of bids and providers: valid by default, every field that matters by keyword."""

from collections.abc import Callable
from typing import Any

import pytest

from auctioneer.mechanism import Offer
from iemas.core.auction import Bid, ProviderQos
from iemas.core.envelope import Envelope
from iemas.core.report import CapabilityReport, LoadReport, ReportStamp
from iemas.core.types import HashAlgorithm, HubId, Lateness, NodeId, Prices

UNSIGNED = Envelope(b"", b"", b"")
NODE = NodeId(bytes(32))
ASK = Prices(500_000, 100_000, 2_000_000)


def build_bid(**changes: Any) -> Bid:
    fields: dict[str, Any] = {
        "model": "m",
        "prompt_tokens": 1000,
        "max_tokens": 100,
        "prices": Prices(1_000_000, 200_000, 4_000_000),
        "lateness": Lateness(),
        "reservation_micros": 2000,
    }
    return Bid(**(fields | changes))


def build_qos(**changes: Any) -> ProviderQos:
    fields: dict[str, Any] = {
        "provider": NODE,
        "samples": 0,
        "ttft_base_us": 100_000,
        "ttft_per_uncached_token_us": 500,
        "ttft_per_active_task_us": 20_000,
        "ttft_per_pending_token_us": 0,
        "ttft_sd_us": 0,
        "token_us": 10_000,
        "token_sd_us": 0,
    }
    return ProviderQos(**(fields | changes))


def build_load(*, active: int = 2, pending_prompt_tokens: int = 0) -> LoadReport:
    stamp = ReportStamp(NODE, 1, 0, 1, 1000)
    return LoadReport(stamp, 4, (bytes(32),) * active, (), pending_prompt_tokens)


def build_provider(
    *,
    ask: Prices = ASK,
    qos: ProviderQos | None = None,
    load: LoadReport | None = None,
    **capability: Any,
) -> Offer:
    fields: dict[str, Any] = {
        "stamp": ReportStamp(NODE, 1, 0, 1, 1000),
        "public_address": "",
        "peer_address": "",
        "ca_certificate": b"",
        "hpke_public_key": bytes(32),
        "software": "",
        "hub": HubId("m"),
        "model": "m",
        "model_revision": "",
        "tokenizer_hash": bytes(32),
        "block_size": 16,
        "hash_algorithm": HashAlgorithm.SHA256_CBOR,
        "context_tokens": 8192,
        "slots": 4,
        "kv_events": True,
        "hardware": "",
    }
    return Offer(
        capability=CapabilityReport(**(fields | capability)),
        load=load or build_load(),
        ask=ask,
        qos=qos or build_qos(),
    )


@pytest.fixture
def make_bid() -> Callable[..., Bid]:
    return build_bid


@pytest.fixture
def make_qos() -> Callable[..., ProviderQos]:
    return build_qos


@pytest.fixture
def make_load() -> Callable[..., LoadReport]:
    return build_load


@pytest.fixture
def make_provider() -> Callable[..., Offer]:
    return build_provider
