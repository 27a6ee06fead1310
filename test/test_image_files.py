# SPDX-License-Identifier: Apache-2.0
"""Image files as cameras, phones and editors write them; damaged ones and bombs."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets.annotations import image_size as dataset_image_size
from lisa_ros.datasets.annotations import read_image
from lisa_ros.errors import DataError, ImageError
from lisa_ros.images import jpeg_scans
from lisa_ros.images.image_file import decode_rgb, decode_samples, image_size, read_rgb
from lisa_ros.images.jpeg_scans import count_scans, with_more_data
from lisa_ros.images.mask_file import read_mask
from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS

H, W = 24, 32
Y, X = np.mgrid[:H, :W]
RGB = np.dstack([X * 8, Y * 10, (X + Y) * 4]).astype(np.uint8)  # smooth, no symmetry
GREY = RGB[..., 0]
GREY_RGB = np.repeat(GREY[..., None], 3, axis=2)


def saved(pixels, kind='PNG', mode=None, **options):
    """Return a file of pixels, written by Pillow."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def encoded(pixels, suffix, *options):
    """Return a file of pixels, written by OpenCV; colours are given as RGB."""
    bgr = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(suffix, np.ascontiguousarray(bgr), options)[1].tobytes()


def white_is_zero_tiff(grey, bits, order):
    """Return a TIFF with tag 262 = 0: floats 0 to 1 for 32 and 64 bits, else integers."""
    if bits > 16:
        samples = (1 - grey).astype(f'{order}f{bits // 8}').tobytes()
    elif bits >= 8:
        samples = (2**bits - 1 - grey).astype(f'{order}u{bits // 8}').tobytes()
    else:
        digits = (2**bits - 1 - grey // (255 // (2**bits - 1))).astype(np.uint8)[..., None]
        samples = np.packbits(np.unpackbits(digits, axis=2)[..., -bits:]).tobytes()
    height, width = grey.shape
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: height,
        279: len(samples), 339: 3 if bits > 16 else 1,
    }  # fmt: skip
    directory = struct.pack(f'{order}H', len(tags))
    for tag, value in tags.items():
        directory += struct.pack(f'{order}HHII', tag, 4, 1, value)
    magic = b'II*\0' if order == '<' else b'MM\0*'
    return magic + struct.pack(f'{order}I', 8 + len(samples)) + samples + directory + bytes(4)


FEW = np.where(RGB > 100, RGB.dtype.type(200), RGB.dtype.type(40))  # few colours
WIDE_GREY, WIDE_RGB = GREY.astype(np.uint16), RGB.astype(np.uint16)
ALPHA = np.full((H, W, 1), 255, np.uint8)
LOSSLESS = {
    'png': (saved(RGB), RGB),
    'bmp': (saved(RGB, 'BMP'), RGB),
    'tiff': (saved(RGB, 'TIFF'), RGB),
    'webp': (saved(RGB, 'WEBP', lossless=True), RGB),
    'grey': (saved(GREY), GREY_RGB),
    'rgba': (saved(np.dstack([RGB, ALPHA])), RGB),
    'transparent': (saved(np.dstack([RGB, ALPHA * (X < 9)[..., None]])), RGB),
    'grey and alpha': (saved(np.dstack([GREY, ALPHA])), GREY_RGB),
    'palette': (saved(Image.fromarray(FEW).quantize(8)), FEW),
    'gif': (saved(Image.fromarray(FEW).quantize(8), 'GIF'), FEW),
    '1 bit': (saved(GREY > 99), np.where(GREY_RGB > 99, 255, 0)),
    '16 bit grey': (saved(WIDE_GREY * 257), GREY_RGB),
    '16 bit grey tiff': (encoded(WIDE_GREY * 257, '.tiff'), GREY_RGB),
    '16 bit rgb': (encoded(WIDE_RGB * 257, '.png'), RGB),
    '16 bit rgb tiff': (encoded(WIDE_RGB * 257, '.tiff'), RGB),
    '16 bit rgba': (
        encoded(np.dstack([WIDE_RGB * 257, ALPHA.astype(np.uint16) * 257]), '.png'),
        RGB,
    ),
    '16 bit pgm': (encoded(WIDE_GREY * 257, '.pgm'), GREY_RGB),
    '32 bit integers': (saved(GREY.astype(np.int32) * 257, 'TIFF'), GREY_RGB),
    # cameras of 10, 12 and 14 bits store their values in 16 bits without scaling them
    '10 bits in 16': (saved(WIDE_GREY << 2), GREY_RGB),
    '12 bits in 16': (saved(WIDE_GREY << 4), GREY_RGB),
    '14 bits in 16, rgb': (encoded(WIDE_RGB << 6, '.png'), RGB),
    '8 bits in 16': (saved(WIDE_GREY), GREY_RGB),
    'floats 0..1': (encoded(GREY / np.float32(255), '.tiff'), GREY_RGB),
    'doubles 0..1': (encoded(GREY / 255, '.tiff'), GREY_RGB),
    'float rgb 0..1': (encoded(RGB / np.float32(255), '.tiff'), RGB),
    'two frames': (
        saved(RGB, 'TIFF', save_all=True, append_images=[Image.new('RGB', (5, 5))]),
        RGB,
    ),
}


@pytest.mark.parametrize('kind', LOSSLESS)
def test_every_kind_of_file_gives_its_pixels(kind, tmp_path):
    data, expected = LOSSLESS[kind]
    (tmp_path / 'image').write_bytes(data)
    pixels = read_rgb(tmp_path / 'image')
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(decode_rgb(data, 'x'), expected)
    assert image_size(tmp_path / 'image') == (W, H)


@pytest.mark.parametrize(
    'options', [{}, {'progressive': True}, {'subsampling': 2}, {'mode': 'CMYK'}, {'kind': 'MPO'}]
)
def test_jpeg_files_are_close_to_their_pixels(options):
    data = saved(RGB, **{'kind': 'JPEG', 'quality': 95, **options})
    assert np.abs(decode_rgb(data, 'x').astype(int) - RGB).mean() < 4


def test_a_frame_of_a_usb_camera_without_huffman_tables_is_read():
    data = saved(RGB, 'JPEG', quality=90)
    stripped, place = data[:2], 2
    while data[place + 1] != 0xDA:  # start of scan
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], 'big')
        if data[place + 1] != 0xC4:  # Huffman table
            stripped += data[place:end]
        place = end
    stripped += data[place:]
    assert len(stripped) < len(data) - 400
    np.testing.assert_array_equal(decode_rgb(stripped, 'x'), decode_rgb(data, 'x'))


def test_a_jpeg_of_very_many_scans_is_refused():
    data = saved(RGB, 'JPEG', progressive=True)
    scans = count_scans(data)
    assert 5 < scans < 20
    assert count_scans(saved(RGB, 'JPEG')) == 1
    motion_photo = data + 999 * b'\xff\xda'  # a video, of any bytes
    np.testing.assert_array_equal(decode_rgb(motion_photo, 'x'), decode_rgb(data, 'x'))
    last = data[data.rindex(b'\xff\xda') : -2]
    with pytest.raises(ImageError, match=f'it has {scans + 300} scans; expected at most 100'):
        decode_rgb(data[:-2] + 300 * last + data[-2:], 'x')


@pytest.mark.parametrize('size', [1, 2, 5, 100])
def test_markers_are_found_in_windows_of_any_size(monkeypatch, size):
    data = saved(RGB, 'JPEG', progressive=True)
    data = data[:2] + b'\xff\xff\xff' + data[2:-2] + b'\xff\xff' + data[-2:]
    scans, longer = count_scans(data), with_more_data(data)
    monkeypatch.setattr(jpeg_scans, '_SEARCH_BYTES', size)
    assert (count_scans(data), with_more_data(data)) == (scans, longer)


def planar_tiff(pixels, order):
    """Return a TIFF of (H, W, 3) whose channels lie in a plane each, as of tifffile."""
    planes = pixels.astype(pixels.dtype.newbyteorder(order)).transpose(2, 0, 1)
    size, is_float = planes[0].nbytes, pixels.dtype.kind == 'f'
    rows = [(256, 4, [W]), (257, 4, [H]), (258, 3, [8 * pixels.dtype.itemsize] * 3), (259, 3, [1])]
    rows += [(262, 3, [2]), (273, 4, [0] * 3), (277, 3, [3]), (278, 4, [H]), (279, 4, [size] * 3)]
    rows += [(284, 3, [2]), (339, 3, [3 if is_float else 1] * 3)]
    behind = 8 + 2 + 12 * len(rows) + 4
    start = behind + sum(
        len(values) * (2, 4)[kind - 3] for _, kind, values in rows[2:] if len(values) > 1
    )
    rows[5] = 273, 4, [start + n * size for n in range(3)]
    entries, values_behind = b'', b''
    for tag, kind, values in rows:
        content = struct.pack(f'{order}{len(values)}{"HI"[kind - 3]}', *values)
        if len(content) > 4:
            content, values_behind = (
                struct.pack(order + 'I', behind + len(values_behind)),
                values_behind + content,
            )
        entries += struct.pack(order + 'HHI', tag, kind, len(values)) + content.ljust(4, b'\0')
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, len(rows))
    return head + entries + bytes(4) + values_behind + planes.tobytes()


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_a_tiff_with_a_plane_for_each_channel_is_read_right_or_refused(dtype, order, tmp_path):
    """Both decoders return other colours for planes of more than 8 bits, without an error."""
    full = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    tiff = planar_tiff((RGB / 255 * full).round(4 if full == 1 else 0).astype(dtype), order)
    if dtype is np.uint8:
        np.testing.assert_array_equal(decode_rgb(tiff, 'x'), RGB)
        return
    (tmp_path / 'x.tif').write_bytes(tiff)
    with pytest.raises(ImageError, match=r'in a plane each .*; expected .*: save it so'):
        decode_rgb(tiff, 'x')
    with pytest.raises(ImageError, match='PNG'):
        read_mask(tiff, 'x')
    with pytest.raises(ImageError, match='in a plane each'):
        image_size(tmp_path / 'x.tif')


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('bits', [1, 4, 8, 16, 32, 64])
def test_a_tiff_with_white_as_zero_is_read_with_black_as_zero(bits, order):
    black_is_zero = {
        1: (GREY > 99) * np.uint8(255), 4: GREY // 17 * np.uint8(17), 8: GREY, 16: WIDE_GREY * 257
    }.get(bits, GREY / 255)  # fmt: skip
    image = decode_rgb(white_is_zero_tiff(black_is_zero, bits, order), 'x')
    expected = black_is_zero // 257 if bits == 16 else GREY if bits > 16 else black_is_zero
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=2))


PLAIN_BOTTOM = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
PLAIN_BOTTOM[64:] = 128  # as decoders fill what is missing
JPEGS = {
    'baseline': {},
    'of a camera': {'subsampling': 2, 'quality': 90},
    'optimized': {'optimize': True},
    'progressive': {'progressive': True},
    'restarts': {'restart_marker_blocks': 2},
    'progressive, restarts': {'progressive': True, 'restart_marker_rows': 1},
    'grey': {'mode': 'L'},
    'grey, progressive': {'mode': 'L', 'progressive': True},
    'cmyk': {'mode': 'CMYK'},
    'mpo': {'kind': 'MPO'},
}


@pytest.mark.parametrize('kind', JPEGS)
def test_a_whole_jpeg_with_a_plain_bottom_is_read(kind):
    for pixels in (PLAIN_BOTTOM, PLAIN_BOTTOM[:81, :49], np.full_like(PLAIN_BOTTOM, 128)):
        data = saved(pixels, **{'kind': 'JPEG', **JPEGS[kind]})
        stored = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
        np.testing.assert_array_equal(decode_rgb(data, 'x'), stored)
        np.testing.assert_array_equal(decode_rgb(data + bytes(99), 'x'), stored)


@pytest.mark.parametrize('tail', [b'', bytes(200)])
@pytest.mark.parametrize('kind', JPEGS)
def test_a_cut_jpeg_with_an_end_is_truncated(kind, tail):
    pixels = PLAIN_BOTTOM[:64]
    data = saved(pixels, **{'kind': 'JPEG', **JPEGS[kind]})
    whole = data[: data.index(b'\xff\xd9')]
    start = whole.rindex(b'\xff\xda') + 14
    for cut in np.linspace(start, start + (len(whole) - start) * 0.7, 40).astype(int):
        with pytest.raises(ImageError, match='truncated'):
            decode_rgb(whole[:cut] + tail + b'\xff\xd9', 'x')


def test_a_jpeg_cut_between_two_restarts_is_truncated():
    data = saved(PLAIN_BOTTOM, 'JPEG', restart_marker_rows=1)
    for number in (0, 1):
        end = data.index(bytes([0xFF, 0xD0 + number]))
        for cut in (end, end + 1, end + 2):
            with pytest.raises(ImageError, match='truncated'):
                decode_rgb(data[:cut] + b'\xff\xd9', 'x')


def test_a_jpeg_of_arithmetic_coding_gets_no_more_data():
    data = saved(PLAIN_BOTTOM, 'JPEG', progressive=True)
    assert with_more_data(data) != data
    arithmetic = data.replace(b'\xff\xc2', b'\xff\xca')  # the start of a frame
    assert with_more_data(arithmetic) == arithmetic


def test_a_usual_jpeg_is_decoded_once(monkeypatch):
    monkeypatch.setattr('lisa_ros.images.image_file.with_more_data', None)
    assert decode_rgb(saved(RGB, 'JPEG'), 'x').shape == (H, W, 3)


TURNED = {  # what a camera stores with each EXIF orientation, for the upright RGB
    1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1],
    5: RGB.swapaxes(0, 1), 6: np.rot90(RGB), 7: np.rot90(RGB, 2).swapaxes(0, 1),
    8: np.rot90(RGB, -1),
}  # fmt: skip


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', '16 bit'])
@pytest.mark.parametrize('orientation', TURNED)
def test_the_exif_orientation_is_applied(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation])
    data = saved(stored, 'PNG' if kind == '16 bit' else kind, exif=exif)
    if kind == '16 bit':  # Pillow cannot write it: move the tag into OpenCV's file
        at = data.index(b'eXIf') - 4
        chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], 'big')]
        deep = encoded(stored.astype(np.uint16) * 257, '.png')
        data = deep[:33] + chunk + deep[33:]  # behind the header
    path = tmp_path / 'image'
    path.write_bytes(data)
    np.testing.assert_array_equal(read_rgb(path), RGB)
    assert image_size(path) == dataset_image_size(path) == (W, H)


def test_the_pixels_of_a_message_stay_as_stored():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(TURNED[6])
    samples = decode_samples(saved(stored, exif=exif), 'x', upright=False)
    np.testing.assert_array_equal(samples, stored)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (encoded(RGB.astype(np.float32), '.tiff'), 'float values from 0 to 248; expected 0 to 1'),
        (encoded(GREY - np.float32(5), '.tiff'), 'float values from -5 to 243'),
        (encoded(np.where(X > 3, np.nan, 1).astype(np.float32), '.tiff'), 'float values from nan'),
        (saved(GREY.astype(np.int32) * 70000, 'TIFF'), 'expected at most 16 bits'),
        (saved(GREY.astype(np.int32) - 9, 'TIFF'), 'values from -9 to 239'),
        (b'', 'is empty; expected a JPEG or PNG'),
        (b'<!DOCTYPE html>', "starts with b'<!DOCTYPE html>'"),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', "starts with b'%!PS"),
        (saved(RGB, 'JPEG')[:-20], 'truncated'),
        (saved(RGB)[:-60], 'broken PNG'),
        (saved(RGB)[:60], 'image'),
    ],
)
def test_a_file_without_a_clear_image_is_an_error(data, message, tmp_path):
    path = tmp_path / 'strange.jpg'
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as raised:
        read_rgb(path)
    assert str(raised.value).startswith(str(path))
    assert '\n' not in str(raised.value)
    with pytest.raises(DataError, match=message):
        read_image(path)


@pytest.mark.parametrize(
    ('start', 'kind', 'cure'),
    [
        (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', ' (HEIC)', 'convert it to PNG or JPEG'),
        (b'\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf', ' (HEIC)', 'convert it to PNG or JPEG'),
        (b'\0\0\0\x0cJXL \r\n\x87\n', ' (JPEG XL)', 'convert it to PNG or JPEG'),
        (b'<?xml version="1.0"?>\n<svg width="9">', ' (SVG)', 'convert it to PNG or JPEG'),
        (b'\n<!DOCTYPE html><title>Log in', ' (a web page)', 'download it again'),
        (b'version https://git-lfs.github.com', ' (a pointer of Git LFS)', '`git lfs pull`'),
        (b'\x93NUMPY\x01\0v\0', ' (NumPy)', 'convert it to PNG or JPEG'),
        (b'\r\n\xff\xd8\xff\xe0', '', 'or copy it again'),
        (b'', '', 'copy it again'),
    ],
)
def test_a_file_of_another_format_is_named_with_its_own_cure(start, kind, cure, tmp_path):
    path = tmp_path / 'photo.jpg'
    path.write_bytes(start + (bytes(200) if start else b''))
    for read, is_file in (
        (read_rgb, True),
        (image_size, True),
        (read_mask, True),
        (decode_rgb, False),
    ):
        with pytest.raises(ImageError) as caught:
            read(path) if is_file else read(path.read_bytes(), 'image')
        message = str(caught.value)
        assert f'{kind}; expected a JPEG or PNG file, or WEBP' in message
        assert message.endswith(cure) or '`git lfs pull`' in message
        assert '\n' not in message


def test_a_float_of_16_bits_is_refused_without_noise(capfd):
    """OpenCV writes four lines to stderr about it."""
    tiff = planar_tiff((RGB / 255).astype(np.float16), '<')
    with pytest.raises(ImageError, match=r'unknown pixel mode.* or as PNG'):
        decode_rgb(tiff, 'x')
    assert capfd.readouterr().err == ''


def test_a_folder_or_a_missing_file_is_an_error_with_what_was_expected(tmp_path):
    for read in (read_rgb, image_size):
        with pytest.raises(ImageError, match='read as an image: is a folder; expected a file'):
            read(tmp_path)
        with pytest.raises(ImageError, match=r'x\.png cannot be read as an image: no such file'):
            read(tmp_path / 'x.png')


def bomb(width, height):
    """Return a valid PNG header for a white image of this size; its pixels are missing."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0'))


@pytest.mark.parametrize(
    ('width', 'height'),
    [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (1, DEFAULT_MAX_IMAGE_PIXELS + 1)],
)
def test_a_bomb_is_refused_by_its_header(width, height, tmp_path, capsys):
    path = tmp_path / 'bomb.png'
    path.write_bytes(bomb(width, height))
    message = (
        rf'{width} x {height} pixels; expected at most 50,000,000 in all \(max_image_pixels\)'
    )
    for read in (read_rgb, image_size):
        with pytest.raises(ImageError, match=message):
            read(path)
    with pytest.raises(DataError, match=message):
        dataset_image_size(path)
    assert cli.main(['segment', str(path), 'a mug']) == 1
    assert 'expected at most 50,000,000' in capsys.readouterr().err


def test_other_formats_and_long_sides_are_limited_too(tmp_path):
    for data in (saved(RGB, kind) for kind in ('JPEG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM')):
        with pytest.raises(ImageError, match='32 x 24 pixels; expected at most 767 in all'):
            decode_rgb(data, 'x', max_pixels=767)
        assert decode_rgb(data, 'x', max_pixels=768).shape == (H, W, 3)
    with pytest.raises(ImageError, match='32 x 24 pixels; expected at most 767 in all'):
        decode_rgb(encoded(GREY / 255, '.tiff'), 'x', max_pixels=767)
    with pytest.raises(ImageError, match='sides of at most 32,767'):
        decode_rgb(bomb(40_000, 2), 'x')


@pytest.mark.filterwarnings('ignore::UserWarning')  # pytest undoes the filter of image_file.py
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'PPM'])
def test_damaged_files_raise_no_other_error(kind):
    rng = np.random.default_rng(0)
    original = np.frombuffer(saved(RGB, kind), np.uint8)
    outcomes = set()
    for _ in range(60):
        damaged = original[: rng.integers(1, len(original) + 1)].copy()
        damaged[rng.integers(0, len(damaged), 6)] = rng.integers(0, 256, 6)
        try:
            outcomes.add(decode_rgb(damaged.tobytes(), 'x', max_pixels=10**6).dtype.name)
        except ImageError:
            outcomes.add('error')
    assert outcomes <= {'uint8', 'error'}
    assert 'error' in outcomes
