# SPDX-License-Identifier: Apache-2.0
"""The numbers in a grey image file, for depth and ids. Any thread.

Pillow spreads grey samples over all of 8 or 16 bits: those of 2 and 4 bits (PNG, TIFF), those of a
PGM with another maximum than 255 or 65535, and those of a JPEG 2000 of other depths. That is right
for photos. Depth and ids are numbers: here they get back their values.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from lisa_ros.errors import ImageError

_FEW_BITS = re.compile('L;([24])')  # Pillow's names for grey of 2 and 4 bits
_PGM_DECODERS = ('ppm', 'ppm_plain')  # their last argument is the maximum; others do not scale
_WHITE = {'L': 255, 'I': 65535}  # in Pillow's modes of a PGM
_CODESTREAM = b'\xff\x4f\xff\x51'  # the first two markers of JPEG 2000: SOC, SIZ
_DEPTH_OFFSET = 42  # of the depth of the first channel, from the first marker [bytes]
_SIGNED = 0x80  # bit of that byte; the others are the depth - 1


def sample_scale(image: Image.Image, source: Path | bytes) -> Fraction | None:
    """Return the factor by which Pillow will multiply the grey samples of an opened image.

    None: the stored values do not follow from the decoded ones.

    Args:
        image: opened, not decoded yet.
        source: the file, or its bytes.
    """
    if image.format == 'JPEG2000':
        return _jpeg2000_scale(
            source.read_bytes() if isinstance(source, Path) else source, image.mode
        )
    if not image.tile:
        return Fraction(1)
    decoder, _, _, arguments = image.tile[0]
    if decoder in _PGM_DECODERS and image.mode in _WHITE:
        return Fraction(_WHITE[image.mode], arguments[-1])
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    few_bits = _FEW_BITS.match(str(raw_mode))
    return Fraction(255, 2 ** int(few_bits[1]) - 1) if few_bits else Fraction(1)


def stored_values(samples: np.ndarray, scale: Fraction | None, name: str) -> np.ndarray:
    """Return grey samples divided by the factor of `sample_scale`, in their shape and type.

    The factor is at least 1, so rounding gives each value back.

    Raises:
        ImageError: the factor is None; the text names the file by `name`.
    """
    if scale is None:
        raise ImageError(
            f'{name} is a JPEG 2000 of samples that are signed, deeper than 16 bits, or cut to 8 '
            f'bits by this Pillow ({PIL.__version__}); expected 1 to 16 bits without sign, none '
            'of them lost: save it as PNG'
        )
    if scale == 1:
        return samples
    doubled = 2 * samples.astype(np.int64) * scale.denominator + scale.numerator
    return (doubled // (2 * scale.numerator)).astype(samples.dtype)


def _jpeg2000_scale(encoded: bytes, mode: str) -> Fraction | None:
    """Return the factor of a JPEG 2000, which Pillow shifts to the top of 8 or 16 bits.

    Older versions of Pillow (10.2) open 9 bits in mode "L", of 8 bits, and values are lost.
    """
    start = encoded.find(_CODESTREAM)
    depth = encoded[start + _DEPTH_OFFSET :][:1]
    if start < 0 or not depth or depth[0] & _SIGNED:
        return None
    bits = depth[0] + 1
    if bits > 16 or (bits > 8 and mode == 'L'):
        return None
    return Fraction(2 ** ((8 if bits <= 8 else 16) - bits))
