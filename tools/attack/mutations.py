"""Damages files as people, disks and strangers do: plain bytes, JSON, msgpack frames, safetensors headers, words."""

import json
import random
import struct
from copy import deepcopy
from typing import Any

import msgpack

from mint.core.files import sha256_of
from mint.core.journal import frame, read_frames

NESTED = "[" * 3000 + "]" * 3000
DIGITS = "9" * 5000  # more than Python turns into a number
_TEXTS = (
    "", " ", "a", "²", "\x00", "\x1b[2J", "../../etc/passwd", "/etc/passwd", "a/b", "\ud800", "x" * 5000, "nan", "inf",
    "-1", "1e999", "0x10", "true", "null", "BF16", "U8", "F8_E4M3", "affine", "mxfp4", "nvfp4", "4/64", "keep", "none",
    "llama", "qwen3_moe", "default", "yarn", "%s%n", "{}", "*", "[", "\\", "\n", "٣", "１",
)  # fmt: skip
_NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 16, 32, 63, 64, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30,
    0.0, -0.0, 0.5, 1.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
_WORDS = (
    "4",
    "8",
    "64",
    "4/64",
    "@",
    "/",
    ",",
    "*",
    "=",
    "bpw",
    "GB",
    "GiB",
    "x",
    "%",
    "min",
    "max",
    "k",
    "e",
    ".",
    "-",
    " ",
)


def _value(chance: random.Random) -> Any:
    kind = chance.randrange(6)
    if kind < 2:
        return chance.choice(_NUMBERS)
    if kind == 2:
        return chance.choice(_TEXTS)
    if kind == 3:
        return chance.choice((None, True, False, [], {}, [[]], [None], {"": None}, [0, 0], [1, 2, 3]))
    if kind == 4:
        return [chance.choice(_NUMBERS) for _ in range(chance.randrange(5))]
    return {chance.choice(_TEXTS): chance.choice(_NUMBERS) for _ in range(chance.randrange(3))}


def mutated(record: Any, chance: random.Random) -> Any:
    """A copy of a record of plain values with one to three of its values gone, doubled, exchanged or nonsense."""
    copy = deepcopy(record)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        parent, key = None, None
        inner = copy
        while isinstance(inner, dict | list) and inner and (parent is None or chance.random() < 0.75):
            parent, key = inner, chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = inner[key]
        if parent is None:
            return _value(chance)
        _spoil(parent, key, chance)
    return copy


def _spoil(parent: Any, key: Any, chance: random.Random) -> None:
    act = chance.randrange(8)
    if act == 0:
        del parent[key]
    elif act == 1 and isinstance(parent, dict):
        parent[chance.choice(_TEXTS)] = parent.pop(key)
    elif act == 1:
        parent.insert(key, deepcopy(parent[key]))
    elif act == 2 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = chance.choice(
            (parent[key] + 1, -parent[key], parent[key] * 2, float(parent[key]), str(parent[key]))
        )
    elif act == 3 and isinstance(parent, dict):
        parent[key] = deepcopy(parent[chance.choice(list(parent))])
    else:
        parent[key] = _value(chance)


def of_bytes(text: bytes, chance: random.Random) -> bytes:
    """Bits flipped, parts gone, doubled or replaced."""
    data = bytearray(text)
    for _ in range(chance.choice((1, 1, 2, 5))):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((1, 1, 4, 8, 64)))
        act = chance.randrange(5)
        if act == 0 and start < len(data):
            data[start] ^= 1 << chance.randrange(8)
        elif act == 1:
            del data[start:stop]
        elif act == 2:
            data[start:start] = data[start:stop]
        elif act == 3:
            data[start:stop] = chance.randbytes(stop - start)
        else:
            del data[start:]
            data += bytes(chance.choice((0, 8, 64)))
    return bytes(data)


def of_json(text: bytes, chance: random.Random) -> bytes:
    """A JSON text with other values, and sometimes no JSON any more."""
    if chance.random() < 0.15:
        return of_bytes(text, chance)
    if chance.random() < 0.03:
        return chance.choice((NESTED, DIGITS, f'{{"a": {DIGITS}}}', f'{{"a": {NESTED}}}', "", "1", "[]")).encode()
    return json.dumps(mutated(json.loads(text), chance)).encode()


def of_safetensors(text: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header, whose length is mostly right."""
    if chance.random() < 0.15:
        return of_bytes(text[: 1 << 14], chance)
    (length,) = struct.unpack("<Q", text[:8])
    header = of_json(text[8 : 8 + length], chance)
    length = len(header) if chance.random() < 0.9 else chance.choice((0, 1, len(header) + 1, 2**40, 2**63, 2**64 - 1))
    return struct.pack("<Q", length) + header + text[8 + struct.unpack("<Q", text[:8])[0] :]


def of_sealed(text: bytes, chance: random.Random) -> bytes:
    """A file of frames with other records and the right checksums and seal, or with damaged bytes."""
    if chance.random() < 0.2:
        return of_bytes(text, chance)
    magic = text[: text.index(b"\n") + 1]
    records = [record for record, _ in read_frames(text, len(magic))]
    is_sealed = isinstance(records[-1], dict) and "end" in records[-1]
    body = records[:-1] if is_sealed else records
    index = chance.randrange(len(body))
    body[index] = mutated(body[index], chance)
    if chance.random() < 0.1:
        body.pop(chance.randrange(len(body)))
    try:
        whole = magic + b"".join(map(frame, body))
    except (ValueError, OverflowError):  # msgpack has no such number or text
        return of_bytes(text, chance)
    return whole + frame({"end": len(body) - 1, "sha256": sha256_of([whole])}) if is_sealed else whole


def of_msgpack(text: bytes, chance: random.Random) -> bytes:
    """A msgpack message with other values, or with damaged bytes."""
    if chance.random() < 0.15:
        return of_bytes(text, chance)
    try:
        packed: bytes = msgpack.packb(mutated(msgpack.unpackb(text, raw=False, strict_map_key=False), chance))
    except (ValueError, OverflowError):
        return of_bytes(text, chance)
    return packed


def of_words(text: bytes, chance: random.Random) -> bytes:
    """A word of the command line with other parts."""
    parts = [chance.choice((*_WORDS, *_TEXTS)) for _ in range(chance.randrange(1, 4))]
    word = text.decode()
    cut = chance.randrange(len(word) + 1)
    return (word[:cut] + "".join(parts) + word[cut + chance.randrange(2) :]).encode(errors="surrogatepass")
