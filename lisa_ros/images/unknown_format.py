# SPDX-License-Identifier: Apache-2.0
"""Say what a file is that is no image of a known format, and what to do with it. Any thread."""

from __future__ import annotations

import re

MAGIC_SIZE = 40  # first bytes that tell the format [bytes]
_SHOWN_SIZE = 16
_CONVERT = 'convert it to PNG or JPEG'
_AGAIN = 'download it again'
_KINDS = (  # pattern of the first bytes, kind, cure
    (rb'version https://git-lfs', 'a pointer of Git LFS', 'fetch its content with `git lfs pull`'),
    (rb'\xff\x0a|\0\0\0\x0cJXL ', 'JPEG XL', _CONVERT),
    (rb'\s*(<\?xml.*)?<svg', 'SVG', _CONVERT),
    (rb'\s*<', 'a web page', _AGAIN),
    (rb'\s*\{', 'JSON', _AGAIN),
    (rb'8BPS', 'Photoshop', _CONVERT),
    (rb'%PDF', 'PDF', _CONVERT),
    (rb'v/1\x01', 'OpenEXR', _CONVERT),
    (rb'\x93NUMPY', 'NumPy', _CONVERT),
    (rb'P7|PF', 'PAM or PFM in colour', _CONVERT),
    (rb'PK\x03\x04', 'a zip archive', 'unpack it'),
)
_HEIF_BRANDS = re.compile(rb'hei[cxms]|hev[cxms]')
_AVIF_BRANDS = re.compile(rb'avi[fs]')


def is_heic(magic: bytes) -> bool:
    """Return whether a file starts as a photo of a phone in HEIC; AVIF has the same container."""
    brands = magic[8:] if magic[4:8] == b'ftyp' else b''
    return bool(_HEIF_BRANDS.search(brands)) and not _AVIF_BRANDS.search(brands)


def describe_unknown(magic: bytes, expected: str) -> str:
    """Return what a file is by its first bytes, what was expected, and the cure."""
    if not magic:
        return f'it is empty; expected {expected}: copy it again'
    kind, cure = '', f'{_CONVERT}, or copy it again'
    if is_heic(magic):
        kind, cure = 'HEIC', _CONVERT
    for pattern, name, own_cure in _KINDS:
        if not kind and re.match(pattern, magic, re.DOTALL):
            kind, cure = name, own_cure
    shown = f'{magic[:_SHOWN_SIZE]!r}' + (f' ({kind})' if kind else '')
    return f'it starts with {shown}; expected {expected}: {cure}'
