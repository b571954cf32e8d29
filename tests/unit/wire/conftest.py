"""Every message class of the core, and a strategy that builds any of them."""

import dataclasses
import pathlib
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import strategies as st

from iemas import wire
from iemas.consensus.messages import ConsensusStatus
from iemas.consensus.voting import NO_ROUND, DoubleVote, Proposal
from iemas.core.auction import (
    N_SCENARIOS,
    Allocation,
    ProviderQos,
    QosModel,
    Scenario,
    Transcript,
)
from iemas.core.envelope import Envelope, Signed
from iemas.core.errors import MalformedMessageError
from iemas.core.execution import Receipt
from iemas.core.merkle import InclusionProof
from iemas.core.params import CLEARING_MODES, Genesis, MarketParams
from iemas.core.report import CacheDigest
from iemas.core.types import ID_BYTES, NodeId
from iemas.core.vote import Vote, VoteKind


def list_message_classes() -> list[type]:
    """List the dataclasses of the modules that the codec maps, but `Signed`, which is generic."""
    found = {
        cls
        for module in wire._CORE_MODULES
        for cls in vars(module).values()
        if isinstance(cls, type)
        and dataclasses.is_dataclass(cls)
        and cls.__module__ == module.__name__
    }
    return sorted(found - {Signed}, key=lambda cls: cls.__name__)


MESSAGE_CLASSES = list_message_classes()
IDS = st.binary(min_size=32, max_size=32)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)

# Fields that must agree with another one; everything else is drawn by its annotation alone.
OVERRIDES: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (Allocation, "cached_tokens"): st.integers(0, 1),
    (Receipt, "cached_tokens"): st.integers(0, 1),
    (Receipt, "billed_cached_tokens"): st.integers(0, 1),
    (CacheDigest, "blocks"): st.integers(0, 4).map(lambda count: bytes(8 * count)),
    (InclusionProof, "index"): st.integers(0, 99),
    (InclusionProof, "size"): st.integers(100, 2**63 - 1),
    (MarketParams, "mode"): st.sampled_from(CLEARING_MODES),
    (MarketParams, "evidence_window_ms"): st.integers(1, 100),
    (MarketParams, "ask_reveal_ms"): st.integers(1, 100),
    (MarketParams, "ask_epoch_ms"): st.integers(101, 10**6),
    (MarketParams, "unbonding_ms"): st.integers(101, 10**6),
    **{
        (MarketParams, name): st.integers(1, 50_000)
        for name in MarketParams.__dataclass_fields__
        if name.endswith("_ppm")
    },
    (QosModel, "prior"): st.builds(
        lambda values: ProviderQos(NodeId(bytes(ID_BYTES)), *values),
        st.tuples(*[st.integers(0, 10**10)] * 8),
    ),
    (QosModel, "rows"): st.lists(
        st.tuples(IDS, *[st.integers(1, 10**10)] * 8), max_size=3, unique_by=lambda row: row[0]
    ).map(lambda rows: tuple(ProviderQos(*row) for row in sorted(rows))),
    (QosModel, "scenarios"): st.tuples(
        *[st.builds(Scenario, st.integers(1, 10**7), *[st.integers(-(10**8), 10**8)] * 2)]
        * N_SCENARIOS
    ),
    (Genesis, "accounts"): st.just(()),
    (Proposal, "valid_round"): st.just(NO_ROUND),
    (Vote, "kind"): st.sampled_from((VoteKind.PREVOTE, VoteKind.PRECOMMIT)),
    (ConsensusStatus, "held"): st.integers(0, 4).map(lambda count: bytes(8 * count)),
}


@st.composite
def draw_message(draw: st.DrawFn, cls: type, *, wide: bool = True) -> Any:
    """Draw a message of a class; with wide values if its ranges allow what was drawn."""
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        override = OVERRIDES.get((cls, field.name))
        if override is None:
            override = _get_strategy(hints[field.name], wide=wide)
        values[field.name] = draw(override)
    if cls is Transcript:
        counts = tuple(range(len(values["providers"])))
        values["tasks"] = tuple(
            dataclasses.replace(task, matched_blocks=counts) for task in values["tasks"]
        )
    if cls is DoubleVote:
        values = _contradict(values["first"])
    try:
        return cls(**values)
    except MalformedMessageError:
        if not wide:
            raise
        return draw(draw_message(cls, wide=False))


def _contradict(vote: Signed[Vote]) -> dict[str, Signed[Vote]]:
    """Make of one vote two that contradict each other."""
    values = {"first": None, "second": b"b" * 32}
    messages = {n: dataclasses.replace(vote.message, block_hash=v) for n, v in values.items()}
    return {
        name: Signed(message, dataclasses.replace(vote.envelope, payload=wire.encode(message)))
        for name, message in messages.items()
    }


def _get_strategy(annotation: Any, *, wide: bool) -> st.SearchStrategy[Any]:
    annotation = wire._strip_newtype(annotation)
    origin = typing.get_origin(annotation)
    if origin is Signed:
        (inner,) = typing.get_args(annotation)
        return st.builds(
            lambda message, signer, signature: Signed(
                message, Envelope(wire.encode(message), signer, signature)
            ),
            draw_message(inner, wide=wide),
            IDS,
            st.binary(min_size=64, max_size=64),
        )
    if origin is tuple:
        element = _get_strategy(typing.get_args(annotation)[0], wide=wide)
        return st.lists(element, min_size=1, max_size=2, unique_by=repr).map(tuple)
    if origin in {types.UnionType, typing.Union}:
        return st.one_of(
            *(
                st.none() if member is types.NoneType else _get_strategy(member, wide=wide)
                for member in typing.get_args(annotation)
            )
        )
    return _get_leaf_strategy(annotation, wide=wide)


def _get_leaf_strategy(annotation: Any, *, wide: bool) -> st.SearchStrategy[Any]:
    annotation = wire._strip_newtype(annotation)
    if isinstance(annotation, type) and issubclass(annotation, IntEnum):
        return st.sampled_from(annotation)
    simple: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 2**32 - 1) if wide else st.integers(1, 100),
        bytes: st.one_of(IDS, st.binary(max_size=40)) if wide else IDS,
        str: TEXTS,
    }
    return simple[annotation] if annotation in simple else draw_message(annotation, wide=wide)


@pytest.fixture(params=MESSAGE_CLASSES, ids=lambda cls: cls.__name__)
def message_class(request: pytest.FixtureRequest) -> type:
    """Each message class in turn."""
    cls: type = request.param
    return cls


@pytest.fixture
def messages() -> Callable[[type], st.SearchStrategy[Any]]:
    """The strategy of a class's messages."""
    return draw_message


@pytest.fixture
def message_classes() -> list[type]:
    """All message classes."""
    return MESSAGE_CLASSES


@pytest.fixture(scope="session")
def proto_sources() -> str:
    """The text of all proto files."""
    folder = pathlib.Path(__file__).parents[3] / "protos/iemas/v1"
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.proto")))
