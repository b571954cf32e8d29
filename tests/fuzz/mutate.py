"""Mutations of valid encodings: what a hostile or broken peer could send instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

MAX_BYTES = 64 * 1024
"""An input grows no larger, so that bounded time means something."""

TOKENS = (
    b"\xff" * 9 + b"\x01",  # the largest varint
    b"\xff" * 10,  # one that does not end
    b"\x80" * 10 + b"\x00",
    b"\x7f",
    b"\x00",
    b"\xff\xff\xff\xff\x0f",
    b"\xc3\x28",  # no UTF-8
    b"\xed\xa0\x80",  # a surrogate
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # CBOR: an array of 2^64 - 1
    b"\xbb\x00\x00\x00\xff\xff\xff\xff\xff",  # CBOR: a large map
    b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",  # CBOR: a long byte string
    b"\xc2\x58\xff",  # CBOR: a bignum
    b"\x1c",  # CBOR: reserved
    b"\xd8\x1d\x00",  # CBOR: a shared reference
    b"\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # CBOR: not a number
    b"\xdd\xff\xff\xff\xff",  # msgpack: an array of 2^32 - 1
    b"\xc7\x00\x05",
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b"\\ud800",
    b"\\u0000",
    b"-----BEGIN CERTIFICATE-----\n",
    b"@",
    b":",
    b"[::1]",
    b"\n",
)

VALUE = re.compile(rb'"[^"]*"|-?[0-9]+|true|false|null')
VALUES = (
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1.5",
    b"1e999",
    b"9223372036854775808",
    b"9" * 5_000,
    b'""',
    b'"x"',
    b'"\\ud800"',
    b"[]",
    b"{}",
    b"[[1]]",
    b'{"a":1}',
    b"[null]",
    b"[" * 5_000,
)
"""Values of a text format in the place of others."""

Mutation = Callable[[bytearray, Random, Sequence[bytes]], None]


def flip_bits(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def set_byte(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20))


def truncate(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    del data[random.randint(0, len(data)) :]


def remove(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    start, end = pick_slice(data, random)
    del data[start:end]


def duplicate(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Repeat a part in place: a field twice, where a slice happens to be one."""
    start, end = pick_slice(data, random)
    data[end:end] = data[start:end]


def duplicate_all(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    data += bytes(data)


def move(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    start, end = pick_slice(data, random)
    part = data[start:end]
    del data[start:end]
    at = random.randint(0, len(data))
    data[at:at] = part


def change_length(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Add or subtract a little anywhere: lengths and tags are single bytes mostly."""
    if data:
        at = random.randrange(len(data))
        data[at] = (data[at] + random.choice((-2, -1, 1, 2, 8, 64))) % 256


def insert_token(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    at = random.randint(0, len(data))
    end = at if random.random() < 0.5 else min(len(data), at + random.randint(1, 4))
    data[at:end] = random.choice(TOKENS)


def insert_junk(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    at = random.randint(0, len(data))
    data[at:at] = random.randbytes(random.choice((1, 2, 4, 32, 64)))


def splice(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Go on with the rest of another valid encoding."""
    other = random.choice(seeds)
    data[random.randint(0, len(data)) :] = other[random.randint(0, len(other)) :]


def replace_value(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Put a value of another kind where a text format has one."""
    found = list(VALUE.finditer(data[:4096]))
    if found:
        start, end = random.choice(found).span()
        data[start:end] = random.choice(VALUES)


def repeat(data: bytearray, random: Random, seeds: Sequence[bytes]) -> None:
    """Repeat one byte very often: deep nesting, long numbers. Rare, as it is slow."""
    if random.random() < 0.1:
        at = random.randint(0, len(data))
        unit = random.choice((b"[", b"{", b"(", b"9", b"\x81", b"\x9f", b"\x91", b"\x0a", b"a."))
        data[at:at] = unit * random.choice((20, 20, 100, 100, 2_000, 20_000))


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_byte,
    truncate,
    remove,
    duplicate,
    duplicate_all,
    move,
    change_length,
    insert_token,
    insert_junk,
    splice,
    replace_value,
    repeat,
)


def pick_slice(data: bytearray, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 2, 4, 8, 34, 66, 200)))


def mutate(seeds: Sequence[bytes], random: Random) -> bytes:
    """Give a spoilt encoding: mostly one with a few mutations, sometimes mere junk."""
    if random.random() < 0.03:
        return random.randbytes(random.choice((0, 1, 8, 64, 256)))
    data = bytearray(random.choice(seeds))
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choice(MUTATIONS)(data, random, seeds)
        del data[MAX_BYTES:]
    return bytes(data)
