# SPDX-License-Identifier: Apache-2.0
"""CompressedImage messages as image_transport and drivers write them: colour and depth."""

import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.images.rvl import decode_rvl
from lisa_ros.messages.compressed_format import CompressedFormat
from lisa_ros.messages.image import compressed_to_rgb, depth_to_metres, image_to_rgb

H, W = 48, 64
Y, X = np.mgrid[:H, :W]
# smooth and coloured, so that a demosaiced image is close to it
RGB = np.dstack([40 + 2 * X, 250 - 2 * X - Y, 60 + 3 * Y]).astype(np.uint8)
BGR = np.ascontiguousarray(RGB[..., ::-1])
GREY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
GREY_RGB = np.repeat(GREY[..., None], 3, axis=2)
WIDE = RGB.astype(np.uint16) * 257


def encoded(pixels, suffix):
    """Return a file as OpenCV's encoder writes it; like a driver's, it takes colours for BGR."""
    return cv2.imencode(suffix, np.ascontiguousarray(pixels))[1].tobytes()


def message(text, data):
    return SimpleNamespace(format=text, data=data)


def mosaic(pattern):
    """Return RGB as a sensor with this Bayer pattern sees it."""
    pixels = np.empty((H, W), np.uint8)
    for place, colour in enumerate(pattern):
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        pixels[rows, columns] = RGB[rows, columns, 'rgb'.index(colour)]
    return pixels


COLOURS = {  # format: (data, expected)
    'rgb8; png compressed bgr8': (encoded(BGR, '.png'), RGB),
    'rgb8; png compressed rgb8': (encoded(RGB, '.png'), RGB),
    'bgr8; png compressed ': (encoded(BGR, '.png'), RGB),
    'png': (encoded(BGR, '.png'), RGB),
    'rgba8; png compressed bgra8': (encoded(np.dstack([BGR, GREY]), '.png'), RGB),
    'yuv422_yuy2; png compressed bgr8': (encoded(BGR, '.png'), RGB),
    'bgr8; tiff compressed bgr8': (encoded(BGR, '.tiff'), RGB),
    'bgr8; tiff compressed ': (encoded(BGR, '.tiff'), RGB),
    'rgb8; tiff compressed ': (encoded(RGB, '.tiff'), RGB),  # as it is, without a conversion
    'mono8; png compressed ': (encoded(GREY, '.png'), GREY_RGB),
    'mono16; png compressed ': (encoded(GREY.astype(np.uint16) * 257, '.png'), GREY_RGB),
    'rgb16; png compressed bgr16': (encoded(WIDE[..., ::-1], '.png'), RGB),
    'bgr16; png compressed bgr16': (encoded(WIDE[..., ::-1], '.png'), RGB),
    'png ': (encoded(GREY.astype(np.uint16) << 4, '.png'), GREY_RGB),  # a camera of 12 bits
}


@pytest.mark.parametrize('text', COLOURS)
def test_colours_are_those_of_the_image_before_compression(text):
    data, expected = COLOURS[text]
    np.testing.assert_array_equal(compressed_to_rgb(message(text, data)), expected)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize(
    ('text', 'suffix', 'scale'),
    [
        ('bayer_{}8; jpeg compressed ', '.jpg', 1),  # ROS 1
        ('bayer_{0}8; jpeg compressed bayer_{0}8', '.jpg', 1),  # ROS 2, jpeg_compress_bayer
        ('bayer_{}8; jpeg compressed mono8', '.jpg', 1),  # a driver that names the file's type
        ('bayer_{}8; png compressed ', '.png', 1),
        ('BAYER_{}8;PNG compressed', '.png', 1),
        ('bayer_{}16; png compressed ', '.png', 257),
        ('bayer_{}12; png compressed ', '.png', 16),
        ('bayer_{}10; png', '.png', 4),
        ('bayer_{}14; tiff compressed ', '.tiff', 64),
        ('bayer_{}12; jpeg compressed ', '.jpg', 1),  # the driver has made 8 bits of it
    ],
)
def test_a_compressed_mosaic_becomes_colours(pattern, text, suffix, scale):
    pixels = mosaic(pattern)
    if scale > 1:
        pixels = pixels.astype(np.uint16) * scale
    image = compressed_to_rgb(message(text.format(pattern), encoded(pixels, suffix)))
    inner = np.abs(image.astype(int) - RGB)[2:-2, 2:-2]
    assert inner.mean() < 3
    assert inner.max() < 25


def test_a_dark_mosaic_of_12_bits_stays_dark():
    dark = mosaic('rggb').astype(np.uint16)  # a sixteenth of the range
    image = compressed_to_rgb(message('bayer_rggb12; png compressed ', encoded(dark, '.png')))
    assert np.abs(image.astype(int) - RGB // 16).max() <= 2


@pytest.mark.parametrize(
    ('text', 'data', 'expected'),
    [
        (
            'bayer_rggb12p; png compressed ',
            encoded(GREY, '.png'),
            'not supported; expected one of bayer_rggb8, .*bayer_grbg14: let the driver',
        ),
        ('bayer_rgbw8; jpeg compressed mono8', encoded(GREY, '.jpg'), 'is not supported'),
        (
            'bayer_rggb12; png compressed ',
            encoded(mosaic('rggb') * np.uint16(257), '.png'),
            'has values up to 63479; expected 12 bits, 0 to 4095',
        ),
        (
            'bayer_rggb8; tiff compressed ',
            encoded(GREY.astype(np.float32) / 255, '.tiff'),
            'a Bayer image of float32; expected values of 8 or 16 bits',
        ),
    ],
)
def test_a_mosaic_that_is_not_known_is_refused(text, data, expected):
    with pytest.raises(ImageError, match=expected):
        compressed_to_rgb(message(text, data))


def test_colours_of_an_unknown_mosaic_are_read():
    colours = compressed_to_rgb(message('bayer_rgbw8; png compressed bgr8', encoded(BGR, '.png')))
    np.testing.assert_array_equal(colours, RGB)


def test_colours_and_grey_of_a_bayer_camera_stay_as_they_are():
    colours = compressed_to_rgb(message('bayer_rggb8; png compressed bgr8', encoded(BGR, '.png')))
    np.testing.assert_array_equal(colours, RGB)
    # image_transport of ROS 2 converts a mosaic to grey before it compresses it
    grey = compressed_to_rgb(message('bayer_rggb8; png compressed mono8', encoded(GREY, '.png')))
    np.testing.assert_array_equal(grey, GREY_RGB)


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
def test_values_without_a_range_are_stretched_as_in_raw_images(suffix):
    values = (X * 11 + Y).astype(np.uint16)
    raw = SimpleNamespace(
        height=H, width=W, encoding='16UC1', is_bigendian=0, step=2 * W, data=values.tobytes()
    )
    compressed = message(f'16UC1; {suffix[1:]} compressed ', encoded(values, suffix))
    image = compressed_to_rgb(compressed)
    np.testing.assert_array_equal(image, image_to_rgb(raw))
    assert image.max() == 255


@pytest.mark.parametrize(
    ('text', 'data', 'expected'),
    [
        ('h264', b'\0\0\0\1\x67' + bytes(99), 'is a video stream, expected single images'),
        ('bgr8; ffmpeg', bytes(99), 'is a video stream'),
        (
            'jpeg',
            encoded(BGR, '.jpg')[:-99],
            'cannot be decoded: .* truncated .*; expected a whole image file: save or send it',
        ),
        ('32FC1; tiff compressed ', encoded(np.full((H, W), np.nan), '.tiff'), 'no finite value'),
        ('jpeg', bytes(9), r"cannot be decoded: 9 bytes, it starts with b'\\x00"),
        ('rgb8; png compressed bgr8', encoded(BGR, '.png')[:200], 'cannot be decoded: 200 bytes'),
        ('bayer_rggb8; png compressed ', encoded(GREY[:1], '.png'), '64 x 1 pixels; expected 2'),
        ('16UC1; compressedDepth png', b'x', 'is depth, expected a colour image'),
    ],
)
def test_data_that_are_no_image_are_an_error_with_the_format(text, data, expected):
    with pytest.raises(ImageError, match=expected):
        compressed_to_rgb(message(text, data))


def test_a_compressed_image_is_limited_by_its_header():
    huge = cv2.imencode('.png', np.zeros((3000, 3000), np.uint8))[1].tobytes()
    assert len(huge) < 50_000
    text = "'png' has 3000 x 3000 pixels; expected at most 8,000,000 in all"
    with pytest.raises(ImageError, match=text):
        compressed_to_rgb(message('png', huge), max_pixels=8_000_000)
    raw = SimpleNamespace(
        height=48, width=64, encoding='rgb8', is_bigendian=0, step=192, data=RGB.tobytes()
    )
    with pytest.raises(ImageError, match='64 x 48 pixels; expected at most 3,071 in all'):
        image_to_rgb(raw, max_pixels=3071)


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('rgb8; jpeg compressed bgr8', ('rgb8', 'jpeg', 'bgr8')),
        ('rgb8;jpeg compressed', ('rgb8', 'jpeg', '')),
        ('16UC1; compressedDepth rvl', ('16uc1', 'compresseddepth', '')),
        ('jpeg', ('', 'jpeg', '')),
        ('', ('', '', '')),
        ('rgb8; jpeg compressed rgb8;', ('rgb8', 'jpeg', 'rgb8')),
        ('; ; compressed compressed ;', ('', 'compressed', 'compressed')),
    ],
)
def test_any_text_is_a_format(text, parts):
    parsed = CompressedFormat.parse(text)
    assert (parsed.encoding, parsed.codec, parsed.stored) == parts


# ---- depth

MILLIMETRES = (500 + X * 40 + Y).astype(np.uint16)
MILLIMETRES[(X + Y) % 7 == 0] = 0
MILLIMETRES[5:9] = 0
METRES = np.where(MILLIMETRES == 0, np.nan, MILLIMETRES / 1000).astype(np.float32)
HEADER = struct.Struct('<iff')


def encode_rvl(values):
    """Return an RVL stream: a direct port of CompressRVL of Wilson's paper."""
    nibbles = []

    def write(number):
        while True:
            nibble, number = number & 7, number >> 3
            nibbles.append(nibble | (8 if number else 0))
            if not number:
                return

    pixels, i, previous = values.ravel().tolist(), 0, 0
    while i < len(pixels):
        zeros = next((n for n, p in enumerate(pixels[i:]) if p), len(pixels) - i)
        i += zeros
        length = next((n for n, p in enumerate(pixels[i:]) if not p), len(pixels) - i)
        write(zeros)
        write(length)
        for pixel in pixels[i : i + length]:
            difference, previous = pixel - previous, pixel
            write(2 * difference if difference >= 0 else -2 * difference - 1)
        i += length
    nibbles += [0] * (-len(nibbles) % 8)
    words = [
        int(''.join(f'{n:x}' for n in nibbles[k : k + 8]), 16) for k in range(0, len(nibbles), 8)
    ]
    return struct.pack(f'<{len(words)}I', *words)


def compressed_depth(codec, values):
    if codec == 'rvl':
        return struct.pack('<II', W, H) + encode_rvl(values)
    return encoded(values, '.png')


@pytest.mark.parametrize('codec', ['png', 'rvl'])
def test_compressed_depth_in_millimetres_is_read(codec):
    data = HEADER.pack(0, 1.5, float('nan')) + compressed_depth(codec, MILLIMETRES)
    depth = depth_to_metres(message(f'16UC1; compressedDepth {codec}', data))
    np.testing.assert_allclose(depth, METRES, rtol=1e-6)


@pytest.mark.parametrize('codec', ['png', 'rvl'])
def test_compressed_inverse_depth_is_read_in_metres(codec):
    z0, largest = 100.0, 10.0  # depth_quantization and depth_max of image_transport
    a = z0 * (z0 + 1)
    b = 1 - a / largest
    with np.errstate(invalid='ignore'):
        inverse = np.nan_to_num(a / METRES + b).astype(np.uint16)
    data = HEADER.pack(0, a, b) + compressed_depth(codec, inverse)
    depth = depth_to_metres(message(f'32FC1; compressedDepth {codec}', data))
    np.testing.assert_array_equal(np.isnan(depth), np.isnan(METRES))
    step = METRES**2 / a  # of depth, for one step of inverse depth
    assert np.nanmax(np.abs(depth - METRES) / step) < 1.02


@pytest.mark.parametrize(
    ('text', 'data'),
    [
        ('16UC1; compressedDepth', HEADER.pack(0, 0, 0) + encoded(MILLIMETRES, '.png')),
        ('16UC1; compressedDepth png', encoded(MILLIMETRES, '.png')),  # without its header
        ('16UC1; png compressed ', encoded(MILLIMETRES, '.png')),
        ('mono16; png compressed ', encoded(MILLIMETRES, '.png')),
        ('16UC1; tiff compressed ', encoded(MILLIMETRES, '.tiff')),
        ('32FC1; tiff compressed ', encoded(METRES, '.tiff')),
    ],
)
def test_other_ways_to_compress_depth_are_read(text, data):
    np.testing.assert_allclose(depth_to_metres(message(text, data)), METRES, rtol=1e-6)


@pytest.mark.parametrize(
    ('text', 'data', 'expected'),
    [
        ('rgb8; jpeg compressed bgr8', encoded(BGR, '.jpg'), 'is not depth; expected such as'),
        ('compressedDepth', encoded(MILLIMETRES, '.png'), 'is not depth'),
        (
            '16UC1; jpeg compressed ',
            encoded(GREY, '.jpg'),
            'uint8 .*with png or rvl, not with jpeg',
        ),
        ('16UC1; compressedDepth png', bytes(12), '12 bytes, shorter than a header'),
        ('16UC1; compressedDepth png', bytes(99), 'cannot be decoded: 87 bytes'),
        (
            '32FC1; compressedDepth png',
            bytes(12) + encoded(MILLIMETRES, '.png'),
            'quantization 0, 0',
        ),
        ('16UC1; compressedDepth rvl', bytes(15), '3 bytes, too few for RVL'),
        ('16UC1; compressedDepth rvl', bytes(20), '0 x 0 pixels is empty'),
        (
            '16UC1; compressedDepth rvl',
            bytes(12) + struct.pack('<II', 60_000, 60_000) + bytes(8),
            '60000 x 60000 pixels; expected at most 50,000,000',
        ),
        (
            '16UC1; compressedDepth rvl',
            bytes(12) + compressed_depth('rvl', MILLIMETRES)[:-40],
            '64 x 48 pixels cannot be decoded: the RVL stream',
        ),
    ],
)
def test_depth_that_cannot_be_read_is_an_error(text, data, expected):
    with pytest.raises(ImageError, match=expected):
        depth_to_metres(message(text, data))


def test_rvl_of_any_values_is_read_and_damage_is_an_error():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 1.0):
        values = rng.integers(0, 65536, 999) * (rng.random(999) < density)
        stream = encode_rvl(values)
        np.testing.assert_array_equal(decode_rvl(stream, 999), values)
        for _ in range(50):
            damaged = bytearray(stream[: rng.integers(0, len(stream) + 1)])
            for place in rng.integers(0, max(1, len(damaged)), min(3, len(damaged))):
                damaged[place] = rng.integers(256)
            try:
                assert decode_rvl(bytes(damaged), 999).shape == (999,)
            except ValueError as error:
                assert 'RVL' in str(error)
