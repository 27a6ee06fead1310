# SPDX-License-Identifier: Apache-2.0
"""Deterministic mutations: of bytes, and of one value of a JSON document."""

import json
import random

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
_WORDS = (b'\0\0\0\0', b'\xff\xff\xff\xff', b'\xff\xff\xff\x7f', b'\0\0\0\x80', b'\1\0\0\0')
HOSTILE_VALUES = (
    *(None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e308, -1e308, float('nan'), float('inf')),
    *(10**9, 10**30, -(10**30), 10**400, -(10**400), 2**31, 2**63, 2**64),
    *('', ' ', '\0', '\ud800', 'nan', '../../etc/passwd', '/etc/passwd', 'a' * 10_000, 'é\u202e'),
    *([], {}, [[]], [None], [0] * 5, ['a', 1], [[0, 0], [1, 1]], {'': None}, {'size': [1, 1]}),
)


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return a copy with one to eight changes."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        rng.choice(_BYTE_CHANGES)(changed, rng)
    return bytes(changed)


def _overwrite_byte(content: bytearray, rng: random.Random) -> None:
    if content:
        value = rng.choice([*_INTERESTING, rng.randrange(256)])
        content[rng.randrange(len(content))] = value


def _flip_bit(content: bytearray, rng: random.Random) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _overwrite_word(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    content[start : start + 4] = rng.choice(_WORDS)


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _remove(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    del content[start : start + rng.randint(1, 16)]


def _repeat(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    part = content[start : start + rng.randint(1, 32)]
    content[start:start] = part * rng.randint(1, 3)


_BYTE_CHANGES = (
    _overwrite_byte,
    _overwrite_byte,
    _flip_bit,
    _overwrite_word,
    _remove,
    _repeat,
    _cut,
)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Return a document with one value replaced, removed or repeated; other bytes if not JSON."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return mutated_bytes(content, rng)
    places = list(_places(document))
    if not places:
        return json.dumps(rng.choice(HOSTILE_VALUES)).encode()
    container, key = rng.choice(places)
    change = rng.randrange(8)
    if change == 0:
        del container[key]
    elif change == 1 and isinstance(container, list):
        container.append(container[key])
    elif change == 2:
        container[key] = [container[key]]
    else:
        container[key] = rng.choice(HOSTILE_VALUES)
    return json.dumps(document).encode()


def _places(document: object):
    """Yield (container, key) of each value in a document."""
    stack = [document]
    while stack:
        container = stack.pop()
        if isinstance(container, dict):
            entries = list(container.items())
        elif isinstance(container, list):
            entries = list(enumerate(container))
        else:
            continue
        for key, value in entries:
            yield container, key
            stack.append(value)
