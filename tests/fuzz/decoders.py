"""Everything that turns bytes of others into values: wire, files, configuration, HTTP, ZMQ.

A decoder is called with bytes and gives a value or raises. Its seeds are valid encodings, which
the mutations start from; that they are valid is a test of its own. What a decoder does behind
decoding (opening an index, checking a signature) is fuzzed with it.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Self, TypeVar

import cbor2
import msgspec
import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from auctioneer.mechanism.clearing import decode_clearing
from auctioneer.opening import get_bid_context, open_bid, open_chain
from iemas import tls, wire
from iemas.client._network import parse_bootstrap
from iemas.client._tokenizer import ChatTokenizer
from iemas.consensus.light import LightRules, TrustedBlock, verify_light_block
from iemas.consensus.messages import CommittedBlock, LightBlock
from iemas.core.auction import Bid, ClearingResult, SealedBid
from iemas.core.digest import DigestIndex, compute_block_keys, count_matched_blocks, split_keys
from iemas.core.encoding import compute_hash
from iemas.core.envelope import Signed, verify_signed
from iemas.core.execution import OutputChunk, TaskPayload, extend_output_hash
from iemas.core.merkle import InclusionProof, compute_leaf_hash
from iemas.core.sealing import (
    combine_shares,
    compute_share_hash,
    encrypt_bid,
    encrypt_chain,
    open_share,
    seal_share,
)
from iemas.core.tokenizer_bundle import decode_bundle, encode_bundle
from iemas.core.types import HashAlgorithm
from iemas.genesis import encode_genesis, load_genesis
from iemas.keystore import load_key
from iemas.ledger.history import TransactionProof, prove_transaction, verify_transaction
from iemas.ledger.proofs import (
    ProvenLeaf,
    StateProof,
    StateProver,
    TableProof,
    verify_record,
    verify_table,
)
from iemas.ledger.records import AccountRecord
from iemas.ledger.snapshot import decode_chunk, decode_state, encode_chunk
from iemas.ledger.state import LedgerState
from iemas.ledger.transaction import TransferFunds
from iemas.rpc_errors import build_error
from iemas.testing.chain import LedgerChain, make_genesis
from iemas.testing.tokenizer import build_byte_tokenizer
from iemas.v1 import auction_service_pb2, execution_service_pb2, market_service_pb2
from iemas.v1.peer_service_pb2 import DeliverRequest
from node.backends import completions, vllm
from node.backends.base import BackendChunk, BackendInfo, BackendUsage
from node.backends.kv_events import CacheBook
from node.backends.openai_compatible import OpenAICompatibleBackend
from node.config import load_settings
from node.local_market.plan import MarketPlan, load_plan, parse_assignments, parse_params
from node.rpc_errors import _name_parse_errors
from tests.fuzz.samples import (
    SIGNER,
    list_message_classes,
    list_signed_classes,
    make_message,
)
from tests.light_chain import LightChain

SAMPLES = 4
CHAIN_ID = "fuzz"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder by name, with valid encodings; `weight` is its share of a run's inputs."""

    name: str
    decode: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    weight: int = 10


def list_decoders() -> list[Decoder]:
    """Make all of them."""
    random = Random(1)
    return [
        *_list_messages(random),
        *_list_envelopes(random),
        *_list_streams(random),
        *_list_ledger(random),
        *_list_sealing(),
        *_list_digests(),
        *_list_tls(),
        *_list_files(),
        *_list_http(),
    ]


# --- the wire ------------------------------------------------------------------------------------


def _list_messages(random: Random) -> list[Decoder]:
    decoders = []
    for cls in list_message_classes():
        seeds = tuple(wire.encode(make_message(cls, random)) for _ in range(SAMPLES))
        decoders.append(Decoder(f"wire {cls.__name__}", _make_decode(cls), seeds))
    return decoders


def _make_decode(cls: type) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        message = wire.decode(cls, data)
        # What was taken must be able to travel on.
        return wire.encode(message)

    return decode


def _list_envelopes(random: Random) -> list[Decoder]:
    """Mutated payloads rightly signed by nobody, in an envelope that holds."""
    decoders = []
    for cls in list_signed_classes(list_message_classes()):
        signed = [
            wire.WireSigner(SIGNER, CHAIN_ID).sign(make_message(cls, random))
            for _ in range(SAMPLES)
        ]
        seeds = tuple(wire.encode_signed(message) for message in signed)
        decoders.append(Decoder(f"envelope {cls.__name__}", _make_open(cls), seeds))
    return decoders


def _make_open(cls: type) -> Callable[[bytes], object]:
    def open_and_verify(data: bytes) -> object:
        signed: Signed[Any] = wire.decode_signed(cls, data)
        verify_signed(signed, CHAIN_ID)
        return signed

    return open_and_verify


def _parse_rpc(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Parse as the interceptor of every node's listeners does."""
    named = _name_parse_errors(parse)
    if named is None:
        raise LookupError("there is nothing to parse with")
    return named


def _list_streams(random: Random) -> list[Decoder]:
    """Requests as gRPC hands them over, with what servicers do to them first."""
    peer_seeds = []
    for cls in wire._PEER_FIELD_OF:
        request = wire.to_deliver_request(make_message(cls, random))
        peer_seeds.append(request.SerializeToString())
    parse_deliver = _parse_rpc(DeliverRequest.FromString)
    decoders = [
        Decoder(
            "stream PeerMessage",
            lambda data: wire.from_deliver_request(parse_deliver(data)),
            tuple(peer_seeds),
            weight=100,
        )
    ]
    for module in (market_service_pb2, auction_service_pb2, execution_service_pb2):
        for name, descriptor in module.DESCRIPTOR.message_types_by_name.items():
            cls = getattr(module, name)
            parse = _parse_rpc(cls.FromString)
            seeds = tuple(_fill(cls, descriptor, random) for _ in range(SAMPLES))
            decoders.append(Decoder(f"rpc {name}", parse, seeds, weight=3))
    decoders.append(
        Decoder(
            "rpc error operands",
            lambda data: build_error("UnmatchedError", "text", data.decode("utf-8", "replace")),
            (b'{"price_to_beat_micros":5,"account":{"hex":"00ff"},"name":"x"}', b"{}"),
        )
    )
    return decoders


def _fill(cls: type, descriptor: Any, random: Random) -> bytes:
    """Set every plain field of a protobuf message."""
    proto: Any = cls()
    for field in descriptor.fields:
        if field.is_repeated or field.message_type is not None or field.enum_type is not None:
            continue
        kind = type(field.default_value)
        value = {int: random.randint(1, 99), str: "model", bytes: random.randbytes(32)}
        setattr(proto, field.name, value.get(kind, True))
    data: bytes = proto.SerializeToString()
    return data or b"\x0a\x00"


# --- ledger and consensus ------------------------------------------------------------------------


def _list_ledger(random: Random) -> list[Decoder]:
    chain = LedgerChain()
    chain.apply()
    prover = StateProver(chain.state)
    alice = chain.get_id("alice")
    proof = prover.prove("accounts", alice)
    light = LightChain([{1: 1, 2: 1, 3: 1, 4: 1}] * 3)
    rules = LightRules("light-chain", 10**9)
    clearing = ClearingResult("provider", (0, -1), 5, (0, 0), (-1, -1), (1, 1), (0, 0))
    welfare, slots = np.array([[5, 1], [2, 0]], dtype=np.int64), np.array([1, 1], dtype=np.int64)

    def prove_leaf(data: bytes) -> object:
        """A leaf that its own root holds: what is read after the proof."""
        alone = StateProof((ProvenLeaf(data, InclusionProof(0, 1, ())),))
        return verify_record(alone, compute_leaf_hash(data), "a", b"k", AccountRecord)

    def follow(data: bytes) -> TrustedBlock:
        block = wire.decode(LightBlock, data)
        return verify_light_block(light.genesis, block, rules, now_ms=light.now_ms)

    return [
        Decoder("genesis JSON", load_genesis, (encode_genesis(make_genesis()),), weight=40),
        Decoder(
            "ledger snapshot",
            lambda data: decode_state(chain.genesis, decode_chunk(data)[0]),
            (_make_chunk(chain.state), _make_chunk(LedgerChain().state)),
            weight=40,
        ),
        Decoder(
            "state proof",
            lambda data: verify_record(
                wire.decode(StateProof, data), prover.root, "accounts", alice, AccountRecord
            ),
            (wire.encode(proof),),
            weight=20,
        ),
        Decoder(
            "table proof",
            lambda data: verify_table(wire.decode(TableProof, data), prover.root, "validators"),
            (wire.encode(prover.prove_table("validators")),),
            weight=20,
        ),
        Decoder("transaction proof", *_make_history(), weight=20),
        Decoder("state leaf", prove_leaf, tuple(_list_leaves()), weight=20),
        Decoder("light block", follow, tuple(wire.encode(b) for b in light.blocks), weight=30),
        Decoder(
            "stored block",
            lambda data: wire.decode(CommittedBlock, data).block.hash,
            tuple(wire.encode(make_message(CommittedBlock, random)) for _ in range(SAMPLES)),
            weight=20,
        ),
        Decoder(
            "clearing",
            lambda data: decode_clearing(wire.decode(ClearingResult, data), welfare, slots),
            (wire.encode(clearing),),
        ),
    ]


def _make_history() -> tuple[Callable[[bytes], object], tuple[bytes, ...]]:
    """A proof of a transaction as a light client checks it, and a valid one."""
    chain = LedgerChain()
    carol = chain.get_id("carol")
    transfers = [chain.make_transaction("alice", TransferFunds(carol, n)) for n in (5, 6, 7)]
    results = chain.apply(transfers).results
    block = chain.blocks[-1]
    following = replace(chain.make_block().header.message, previous_hash=block.hash)

    def verify(data: bytes) -> object:
        return verify_transaction(wire.decode(TransactionProof, data), following)

    seeds = tuple(wire.encode(prove_transaction(block, results, index)) for index in range(3))
    return verify, seeds


def _make_chunk(state: LedgerState) -> bytes:
    """Make a chunk that is a state by itself: the facts, and a leaf of every table."""
    first = {cbor2.loads(leaf)[0]: leaf for leaf, _ in reversed(state.list_leaves())}
    return encode_chunk(first.values())


def _list_leaves() -> list[bytes]:
    chain = LedgerChain()
    record = chain.state.accounts[chain.get_id("alice")]
    plain = (record.nonce, tuple((int(b.kind), b.hub, b.micros) for b in record.balances))
    return [cbor2.dumps(("a", b"k", plain), canonical=True)]


# --- sealed bids ---------------------------------------------------------------------------------


def _list_sealing() -> list[Decoder]:
    random = Random(2)
    share, hpke_key = b"x" * 32, SIGNER.derive_hpke_key()
    sealed: SealedBid = make_message(SealedBid, random)
    context = get_bid_context(CHAIN_ID, sealed)
    key = combine_shares(share, bytes(32))
    bid = wire.encode(make_message(Bid, random))
    chain = compute_block_keys(range(32), 16)
    hpke_public_key = hpke_key.public_key().public_bytes_raw()

    def open_own(data: bytes) -> object:
        return open_share(data, hpke_key, context, compute_share_hash(share))

    def open_both(data: bytes) -> object:
        spoilt = replace(sealed, ciphertext=data)
        chain = open_chain(CHAIN_ID, spoilt, share, bytes(32), data)
        opened = open_bid(CHAIN_ID, spoilt, share, bytes(32), lambda b: wire.decode(Bid, b))
        return chain, opened

    return [
        Decoder("sealed share", open_own, (seal_share(share, hpke_public_key, context),), weight=3),
        Decoder(
            "sealed bid",
            open_both,
            (encrypt_bid(key, bid, context), encrypt_chain(key, chain, context)),
        ),
    ]


# --- digests and KV events -----------------------------------------------------------------------


def _list_digests() -> list[Decoder]:
    chain = compute_block_keys(range(64), 16)
    blocks = b"".join(sorted(split_keys(chain)))
    index = DigestIndex(blocks)
    keys = [int.from_bytes(key, "big") for key in split_keys(chain)]
    stored = {
        "type": "BlockStored",
        "block_hashes": keys,
        "parent_block_hash": None,
        "token_ids": list(range(64)),
        "block_size": 16,
        "medium": "GPU",
        "extra_keys": [["salt"], None, None, None],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    plain = stored | {"extra_keys": None}
    removed = {"type": "BlockRemoved", "block_hashes": keys[2:], "medium": "GPU", "group_idx": 0}
    batches = [(1.0, [plain, removed], 0), (2.0, [{"type": "AllBlocksCleared"}], None)]
    batches.append((1.0, [stored | {"parent_block_hash": b"p" * 32}], 0))

    def follow(data: bytes) -> object:
        book = CacheBook(16)
        book.apply(0, msgspec.msgpack.encode(batches[0]))
        book.apply(1, data)
        return book.resident.snapshot()

    return [
        Decoder("digest blocks", DigestIndex, (blocks, b"")),
        Decoder("digest chain", index.count_matched, (chain, blocks)),
        Decoder("digest chain in a set", lambda d: count_matched_blocks(d, {blocks[:8]}), (chain,)),
        Decoder("KV events", follow, tuple(msgspec.msgpack.encode(batch) for batch in batches), 60),
    ]


# --- certificates and addresses ------------------------------------------------------------------


def _list_tls() -> list[Decoder]:
    ca = tls.create_ca_certificate(SIGNER)
    now = datetime(2030, 1, 1, tzinfo=UTC)
    leaf_key = ec.derive_private_key(5, ec.SECP256R1()).public_key()
    signed = tls._build_leaf(leaf_key, SIGNER.node_id, ca, now).sign(
        SIGNER.private_key, algorithm=None
    )
    leaf = signed.public_bytes(serialization.Encoding.DER)
    leaf_pem = signed.public_bytes(serialization.Encoding.PEM)
    address = f"{SIGNER.node_id.hex()}@127.0.0.1:7470".encode()
    name = tls.server_name(SIGNER.node_id).encode()

    def as_text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
        return lambda data: parse(data.decode("utf-8", "surrogateescape"))

    addresses = (address, address.replace(b"127.0.0.1", b"[::1]"))
    return [
        Decoder("CA certificate", lambda d: tls.verify_ca_certificate(d, SIGNER.node_id), (ca,)),
        Decoder("leaf", lambda d: tls.verify_leaf(d, SIGNER.node_id, now), (leaf, leaf_pem)),
        Decoder("leaf's name", tls.extract_server_name, (leaf, leaf_pem)),
        Decoder("fingerprint", tls.compute_fingerprint, (leaf, ca), weight=5),
        Decoder("address", as_text(tls.parse_address), addresses),
        Decoder("bootstrap", as_text(parse_bootstrap), addresses, weight=3),
        Decoder("server name", as_text(tls.parse_server_name), (name,), weight=5),
    ]


# --- files ---------------------------------------------------------------------------------------


def _list_files() -> list[Decoder]:
    folder = Path(tempfile.mkdtemp(prefix="iemas-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def from_file(load: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = folder / f"input-{len(list(folder.iterdir()))}"
        path.touch(mode=0o600)

        def write_and_load(data: bytes) -> object:
            path.write_bytes(data)
            return load(path)

        return write_and_load

    key = generate_key_pem()
    settings = (
        b'key_file = "/nowhere/key.pem"\npublic_listen = "127.0.0.1:7470"\n'
        b'bootstrap = ["' + f"{SIGNER.node_id.hex()}@127.0.0.1:7470".encode() + b'"]\nslots = 4\n'
    )
    files = build_byte_tokenizer()
    bundle = encode_bundle(files)

    def load_bundle(data: bytes) -> object:
        return decode_bundle(data, compute_hash(data))

    def make_part(name: str) -> Decoder:
        def load(data: bytes) -> object:
            return ChatTokenizer({**files, name: data})

        return Decoder(f"bundle {name}", load, (files.get(name, b"{}"),), weight=2)

    return [
        Decoder("key file", from_file(load_key), (key,), weight=3),
        Decoder("settings file", from_file(load_settings), (settings,), weight=2),
        Decoder(
            "market plan", from_file(load_plan), (msgspec.json.encode(MarketPlan()),), weight=5
        ),
        Decoder(
            "market parameters",
            lambda data: parse_params(
                parse_assignments(data.decode("utf-8", "surrogateescape").split())
            ),
            (b"term_ms=1000 sealed_asks=true mode=client", b"bid_fee_micros=0"),
        ),
        Decoder("tokenizer bundle", load_bundle, (bundle, encode_bundle({"tokenizer.json": b""}))),
        *(make_part(name) for name in ("tokenizer_config.json", "chat_template.jinja")),
        *(make_part(name) for name in ("special_tokens_map.json", "tokenizer.json")),
    ]


def generate_key_pem() -> bytes:
    """Give a key file's bytes."""
    return SIGNER.private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


# --- HTTP ----------------------------------------------------------------------------------------


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what never really waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    coroutine.close()
    raise LookupError("it waits for something")


class _Content:
    """The body of an answer, in two pieces."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._data[: len(self._data) // 2]
        yield self._data[len(self._data) // 2 :]


class _Answer:
    """A 200 with a body, in the place of aiohttp's answer."""

    status = 200

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.content = _Content(data)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def text(self) -> str:
        return self._data.decode("utf-8", "replace")


class _Session:
    """Answers everything with one body, in the place of aiohttp's session."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def get(self, *_: object, **__: object) -> _Answer:
        return _Answer(self._data)

    post = get


_INFO = BackendInfo(
    kind="vllm",
    model="model",
    revision="",
    context_tokens=4096,
    block_size=16,
    hash_algorithm=HashAlgorithm.SHA256_CBOR,
    kv_events=False,
    hardware="",
    slots=1,
    tokenizer_path=None,
)


def _pass_on(part: BackendChunk | BackendUsage) -> object:
    """Do with what a backend says what its node does with it."""
    if isinstance(part, BackendUsage):
        return part
    extend_output_hash(bytes(32), part.token_ids)
    return wire.encode(OutputChunk(part.text, part.token_ids))


def _make_compatible_backend(data: bytes) -> OpenAICompatibleBackend:
    backend = OpenAICompatibleBackend(
        "http://127.0.0.1:1",
        detokenize=lambda _: "prompt",
        tokenize=lambda text: list(text.encode("utf-8", "replace")),
        context_tokens=4096,
    )
    backend._api._session = _Session(data)  # type: ignore[assignment]
    backend._info = _INFO
    return backend


def _make_backend(data: bytes) -> vllm.VllmBackend:
    backend = vllm.VllmBackend("http://127.0.0.1:1")
    backend._api._session = _Session(data)  # type: ignore[assignment]
    backend._info = _INFO
    return backend


def _list_http() -> list[Decoder]:
    def make_event(**fields: object) -> bytes:
        return b"data: " + json.dumps(fields).encode() + b"\n\n"

    choice = {"index": 0, "text": "Hi", "token_ids": [5, 6], "finish_reason": None}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    body = (
        make_event(choices=[choice])
        + make_event(choices=[choice | {"finish_reason": "stop"}])
        + make_event(choices=[], usage=usage)
        + b"data: [DONE]\n\n"
    )
    error = make_event(error={"code": 400, "message": "no"})
    models = json.dumps({"data": [{"id": "model", "root": "/nowhere", "max_model_len": 4096}]})
    metrics = b'# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="16"} 1.0\n'
    payload = TaskPayload((1, 2, 3), 8, "", 0, 1_000_000, -1, (), ignore_eos=False)

    async def run_task(data: bytes) -> list[object]:
        backend = _make_backend(data)
        return [_pass_on(part) async for part in backend.stream(payload)]

    async def run_compatible_task(data: bytes) -> list[object]:
        backend = _make_compatible_backend(data)
        return [_pass_on(part) async for part in backend.stream(payload)]

    async def list_models(data: bytes) -> object:
        found = await _make_backend(data)._api.get_models()
        model = completions.choose_model(found, "model", "http://127.0.0.1:1")
        return vllm._get_context_tokens(model)

    async def read_metrics(data: bytes) -> object:
        with capture_logs():
            return vllm._get_block_size(await _make_backend(data)._get_cache_config())

    return [
        Decoder("completion stream", lambda d: drive(run_task(d)), (body, body + error), 40),
        Decoder(
            "compatible stream", lambda d: drive(run_compatible_task(d)), (body, body + error), 20
        ),
        Decoder("model list", lambda d: drive(list_models(d)), (models.encode(),)),
        Decoder("metrics", lambda d: drive(read_metrics(d)), (metrics,), weight=5),
    ]
