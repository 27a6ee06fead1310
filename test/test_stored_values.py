# SPDX-License-Identifier: Apache-2.0
"""Depth and ids are the numbers in a file, whatever the depth of its grey; photos are not dark."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lisa_ros.commands.rgbd_input import read_depth
from lisa_ros.errors import ImageError
from lisa_ros.images.image_file import decode_rgb, decode_values
from lisa_ros.images.mask_file import read_mask
from lisa_ros.images.stored_values import sample_scale, stored_values

H, W = 24, 32  # a multiple of 8 pixels in a row: no bits are padded


def values_up_to(largest):
    """Return (H, W) integers from 0 to `largest`, both of them included."""
    values = np.random.default_rng(0).integers(0, largest + 1, (H, W))
    values[0, :3] = 0, 1, largest
    return values


def pgm(values, largest, *, plain=False):
    header = f'{"P2" if plain else "P5"}\n{W} {H}\n{largest}\n'.encode()
    if plain:
        return header + ' '.join(map(str, values.ravel())).encode()
    return header + values.astype('u1' if largest < 256 else '>u2').tobytes()


def packed(values, bits):
    """Return the rows of values of a few bits each."""
    digits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., -bits:]
    return np.packbits(digits.reshape(H, -1), axis=1)


def png(values, bits):
    def chunk(kind, data):
        body = kind + data
        return struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))

    rows = b''.join(b'\0' + row.tobytes() for row in packed(values, bits))
    header = struct.pack('>IIBBBBB', W, H, bits, 0, 0, 0, 0)
    parts = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows)), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def tiff(values, bits):
    samples = packed(values, bits).tobytes()
    tags = {
        256: W, 257: H, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: H, 279: len(samples)
    }  # fmt: skip
    directory = struct.pack('<H', len(tags))
    for tag, value in tags.items():
        directory += struct.pack('<HHII', tag, 4, 1, value)
    return b'II*\0' + struct.pack('<I', 8 + len(samples)) + samples + directory + bytes(4)


def jpeg2000(values, bits, *, signed=False):
    """Return a codestream of 1 to 16 bits: Pillow writes 8 or 16, and the depth is replaced.

    The stream has the difference of each value from half of the range.
    """
    coded = 8 if bits <= 8 else 16
    moved = values - 2 ** (bits - 1) + 2 ** (coded - 1)
    stream = io.BytesIO()
    Image.fromarray(moved.astype(f'u{coded // 8}')).save(stream, 'JPEG2000', no_jp2=True)
    content = bytearray(stream.getvalue())
    content[42] = bits - 1 | (0x80 if signed else 0)
    return bytes(content)


FILES = {
    **{f'pgm to {n}': pgm(values_up_to(n), n) for n in (1, 20, 100, 254, 255, 256, 1000, 65534)},
    **{f'plain pgm to {n}': pgm(values_up_to(n), n, plain=True) for n in (3, 255, 10000)},
    **{f'png of {bits} bits': png(values_up_to(2**bits - 1), bits) for bits in (1, 2, 4, 8)},
    **{f'tiff of {bits} bits': tiff(values_up_to(2**bits - 1), bits) for bits in (1, 2, 4, 8)},
    **{
        f'jpeg 2000 of {bits} bits': jpeg2000(values_up_to(2**bits - 1), bits)
        for bits in (4, 7, 8, 9, 12, 15, 16)
    },
}


def largest_in(kind):
    number = int(kind.split()[-2 if kind.endswith('bits') else -1])
    return 2**number - 1 if kind.endswith('bits') else number


# Pillow 10.2 opens JPEG 2000 of 9 bits in its mode of 8
CUT = {
    kind
    for kind in FILES
    if largest_in(kind) > 255 and Image.open(io.BytesIO(FILES[kind])).mode == 'L'
}
WHOLE = [kind for kind in FILES if kind not in CUT]


@pytest.mark.parametrize('kind', WHOLE)
def test_ids_are_the_stored_values(kind):
    ids = read_mask(FILES[kind], kind).ids()
    np.testing.assert_array_equal(ids, values_up_to(largest_in(kind)))


@pytest.mark.parametrize('kind', [kind for kind in WHOLE if largest_in(kind) > 255])
def test_depth_has_the_stored_millimetres(kind, tmp_path):
    (tmp_path / 'depth.pgm').write_bytes(FILES[kind])
    depth = read_depth(tmp_path / 'depth.pgm')
    stored = values_up_to(largest_in(kind))
    np.testing.assert_array_equal(np.isnan(depth), stored == 0)
    np.testing.assert_allclose(depth[stored > 0], stored[stored > 0] / 1000, rtol=1e-6)


@pytest.mark.parametrize('kind', WHOLE)
def test_an_image_of_any_depth_ends_at_white(kind):
    stored, largest = values_up_to(largest_in(kind)), largest_in(kind)
    grey = decode_rgb(FILES[kind], kind)[..., 0]
    shifted = 16 if kind == 'jpeg 2000 of 4 bits' else 1  # OpenJPEG's white of 4 bits is 240
    np.testing.assert_allclose(grey, stored * 255 / largest, atol=shifted)


def test_a_mask_of_soft_edges_is_read_at_full_range():
    x = np.broadcast_to(np.arange(W), (H, W))
    edge = np.clip((x - 12) * 10, 0, 100)
    soft = read_mask(pgm(np.where((x < 16) & (x > 11), edge, 100 * (x > 15)), 100), 'soft').mask()
    hard = read_mask(pgm(100 * (x > 15), 100), 'hard').mask()
    np.testing.assert_array_equal(hard, x > 15)
    assert soft[0, 20:].all()
    assert not soft[0, :11].any()


def test_jpeg_2000_of_signed_values_has_no_known_numbers():
    data = jpeg2000(values_up_to(4095), 12, signed=True)
    with pytest.raises(ImageError, match=r'signed is a JPEG 2000 of samples.*save it as PNG'):
        decode_values(data, 'signed')
    with pytest.raises(ImageError, match='signed, deeper than 16 bits'):
        read_mask(data, 'signed').ids()
    assert decode_rgb(data, 'signed').shape == (H, W, 3)


def test_jpeg_2000_that_pillow_cuts_to_8_bits_has_no_known_numbers():
    values = values_up_to(511)
    image = Image.open(io.BytesIO(jpeg2000(values // 2, 8)))  # as Pillow 10.2 opens 9 bits
    scale = sample_scale(image, jpeg2000(values, 9))
    with pytest.raises(ImageError, match=r'cut is .* cut to 8 bits by this Pillow \(\d'):
        stored_values(np.asarray(image), scale, 'cut')
    for kind in CUT:
        with pytest.raises(ImageError, match='cut to 8 bits'):
            read_mask(FILES[kind], kind).ids()


def test_only_the_decoders_of_pgm_scale_the_samples():
    image = Image.open(io.BytesIO(pgm(values_up_to(255), 255)))
    image.tile = [('raw', (0, 0, W, H), 0, ('L', 0, 1))]  # as Pillow 10.2 gives it
    assert sample_scale(image, b'') == 1
