# SPDX-License-Identifier: Apache-2.0
"""Decode an image, from a file or from the bytes of a message: the only decoder of the package.

    image = read_rgb(Path('photo.jpg'))                    # (H, W, 3) uint8 RGB, upright
    samples = decode_samples(data, 'name', upright=False)  # at its depth: 8, 16 bit, grey or RGB
    depth = decode_values(Path('depth.pgm'), 'name')       # the numbers in the file

Pillow decodes, OpenCV only colour of 16 bits, which Pillow would cut to 8. The size is checked
against a limit before any pixel is decoded. A truncated file is an error.

Rules: alpha is dropped. Palette, CMYK and 1-bit images become RGB or grey. Of several frames (GIF,
MPO, TIFF) the first one is used. Deeper samples: see bit_depth.py. EXIF orientation is applied to
files, because every viewer does so; not to messages, because their camera_info and depth are those
of the stored pixels. Any thread.
"""

from __future__ import annotations

import contextlib
import io
import stat
import warnings
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin

from lisa_ros.errors import ImageError
from lisa_ros.files.access import access_problem, describe_error
from lisa_ros.images.bit_depth import exchange_black_and_white, to_uint8
from lisa_ros.images.jpeg_scans import count_scans, with_more_data
from lisa_ros.images.orientation import (
    SIDEWAYS,
    exif_tags,
    orientation_in,
    orientation_of,
    turn_of,
    turned_upright,
)
from lisa_ros.images.part_limit import check_parts
from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS, check_image_size
from lisa_ros.images.rare_tiff import (
    TIFF_MAGIC,
    WHITE_IS_ZERO,
    check_planes,
    decode_rare_tiff,
    tiff_tags,
)
from lisa_ros.images.stored_values import sample_scale, stored_values
from lisa_ros.images.unknown_format import MAGIC_SIZE, describe_unknown, is_heic

# Pillow's other plugins are for rare formats; one of them runs Ghostscript.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF')
GREY_MODES = ('L', 'I;16', 'I;16B', 'I;16L', 'I;16N', 'I', 'F')
_TIFF_SIZE = 256, 257  # tags; Pillow 10 turns the size of a TIFF only when it is decoded
# A damaged or huge file is an ImageError; Pillow would also print a line for each strange tag.
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
_NEVER = None, lambda magic: False  # a format that this Pillow is built without
_SEND_AGAIN = (
    '; expected a whole image file: save or send it again, without loss of bytes, or as PNG'
)
_MAX_SCANS = 100  # of JPEG
_SCANS = 'scans of JPEG'  # a key of Image.info
_JPEG_FORMATS = ('JPEG', 'MPO')
_EXPECTED = f'a JPEG or PNG file, or {", ".join(FORMATS[2:])}'


def read_rgb(path: Path, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> np.ndarray:
    """Return the image of a file, (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises:
        ImageError: there is no such file, it is not a whole image, it has more than `max_pixels`,
            or its values have no known range.
    """
    return _rgb(decode_samples(path, str(path), max_pixels=max_pixels), str(path))


def decode_rgb(
    encoded: bytes,
    name: str,
    max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    *,
    upright: bool = True,
) -> np.ndarray:
    """Return the image of a file in memory, as `read_rgb`.

    Args:
        encoded: the file's bytes.
        name: for errors.
        max_pixels: limit of width times height.
        upright: apply the EXIF orientation.

    Raises:
        ImageError: as `read_rgb`.
    """
    return _rgb(decode_samples(encoded, name, upright=upright, max_pixels=max_pixels), name)


def decode_samples(
    source: Path | bytes,
    name: str,
    *,
    upright: bool = True,
    max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
) -> np.ndarray:
    """Return the samples of an image, at the depth that they are stored with.

    Grey of other depths than 8 and 16 bits is spread over them: black is 0, white the largest.

    Args:
        source: a file, or its bytes.
        name: for errors.
        upright: apply the EXIF orientation.
        max_pixels: limit of width times height.

    Returns:
        (H, W) grey, or (H, W, 3) in the order red, green, blue as the file's format defines it.
        uint8, uint16, int32, float32 or float64 in native byte order.

    Raises:
        ImageError: as `read_rgb`, except for the range of the values.
    """
    return _decoded(source, name, upright, max_pixels)[0]


def decode_values(
    source: Path | bytes, name: str, *, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> np.ndarray:
    """Return the numbers in an image file, such as depth, without its EXIF orientation.

    As `decode_samples`, but grey of any depth has the values that are stored.

    Raises:
        ImageError: as `decode_samples`, or the stored values are not known.
    """
    samples, scale = _decoded(source, name, False, max_pixels)
    return samples if samples.ndim == 3 else stored_values(samples, scale, name)


def image_size(path: Path, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Return (width, height) of an upright image [px], from its header.

    Raises:
        ImageError: it cannot be opened, or has more than `max_pixels`.
    """
    try:
        with open_image(path, str(path), max_pixels) as image:
            stored = (
                tuple(map(image.tag_v2.get, _TIFF_SIZE)) if image.format == 'TIFF' else image.size
            )
            return stored[::-1] if orientation_of(image) in SIDEWAYS else stored
    except ImageError:
        samples = _rare_tiff(path, str(path), max_pixels)
        if samples is None:
            raise
        return samples.shape[1], samples.shape[0]


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 to 8; 1: stored upright.

    Raises:
        ImageError: it cannot be opened.
    """
    return orientation_in(_tags(path))


def has_white_as_zero(path: Path) -> bool:
    """Return whether a file is a TIFF whose tag says that its value 0 is white.

    Raises:
        ImageError: it cannot be opened.
    """
    tag, white = WHITE_IS_ZERO
    return _tags(path).get(tag) == white


# ---- parts, also for mask_file.py


@contextlib.contextmanager
def open_image(
    source: Path | bytes,
    name: str,
    max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    kind: str = 'an image',
) -> Iterator[Image.Image]:
    """Yield an image whose size is checked and whose pixels are not decoded yet.

    What the body raises becomes an ImageError, too: "NAME cannot be read as KIND: ...".
    """
    try:
        with _byte_stream(source) as stream:
            image = _identify(stream)
            check_image_size(*image.size, name, max_pixels)
            if image.format == 'TIFF':
                check_planes(image.tag_v2, name)
            yield image
    except ImageError:
        raise
    except Exception as error:  # on damaged data, decoders raise anything
        raise ImageError(f'{name} {_failure(source, error, kind)}') from error


def black_as_zero(image: Image.Image, samples: np.ndarray) -> np.ndarray:
    """Return the samples of a decoded image with black as 0, also those of a TIFF with white as 0.

    Pillow exchanges black and white of 8 bits and fewer.
    """
    tag, white = WHITE_IS_ZERO
    if image.format != 'TIFF' or image.tag_v2.get(tag) != white or samples.dtype.itemsize == 1:
        return samples
    return exchange_black_and_white(native(samples))


def has_deep_colour(image: Image.Image) -> bool:
    """Return whether an image has several channels of 16 bits, which Pillow would cut to 8."""
    return ';16' in _raw_mode(image) and image.mode not in GREY_MODES


def deep_colour(image: Image.Image, source: Path | bytes) -> np.ndarray:
    """Return the channels of an image with deep colour, (H, W, 3 or 4) uint16: RGB, alpha.

    Pillow decodes it first: it raises on damaged data, where OpenCV logs and returns a part.
    """
    image.load()
    stored = cv2.imdecode(np.frombuffer(_bytes(source), np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.ndim != 3:
        raise ValueError('its colours of 16 bits cannot be decoded')
    return stored[:, :, [2, 1, 0, 3][: stored.shape[2]]]


def check_complete(image: Image.Image, source: Path | bytes) -> None:
    """Raise a ValueError for a decoded JPEG whose last scan is cut, although the file has an end.

    The decoder says nothing and takes grey of 128 for missing pixels. So a file of one scan whose
    last pixel is not of that grey is complete, and costs nothing. Another one is decoded once more
    with more data: the pixels of a complete one stay the same.
    """
    if image.format not in _JPEG_FORMATS:
        return
    last = image.getpixel((image.width - 1, image.height - 1))
    if image.info[_SCANS] == 1 and image.mode in ('L', 'RGB') and set(np.ravel(last)) != {128}:
        return
    with io.BytesIO(with_more_data(_bytes(source))) as stream:
        longer = np.asarray(JpegImagePlugin.JpegImageFile(stream))
    if not np.array_equal(longer, np.asarray(image)):
        raise ValueError('image file is truncated: its last scan is cut')


def _checked_scans(format_name: str, stream: io.BufferedIOBase) -> int:
    """Return the number of scans of a JPEG, 0 of another format.

    Raises:
        ValueError: it is a JPEG or PNG that takes very long to read or decode.
    """
    if format_name not in ('JPEG', 'PNG'):
        return 0
    content = stream.read()
    stream.seek(0)
    check_parts(content)
    scans = count_scans(content) if format_name == 'JPEG' else 0
    if scans > _MAX_SCANS:
        raise ValueError(f'it has {scans} scans; expected at most {_MAX_SCANS}: save it again')
    return scans


def native(samples: np.ndarray) -> np.ndarray:
    """Return samples in this machine's byte order."""
    return samples.astype(samples.dtype.newbyteorder('='), copy=False)


def _tags(path: Path) -> Mapping[int, Any]:
    """Return the tags of EXIF or TIFF of a file; none if they are damaged or missing.

    Raises:
        ImageError: the file cannot be opened.
    """
    try:
        with open_image(path, str(path)) as image:
            return image.tag_v2 if image.format == 'TIFF' else exif_tags(image)
    except ImageError:
        if _rare_tiff(path, str(path), DEFAULT_MAX_IMAGE_PIXELS) is None:
            raise
        return tiff_tags(path.read_bytes())


def _bytes(source: Path | bytes) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source


def _byte_stream(source: Path | bytes) -> io.BufferedIOBase:
    """Return the bytes of a file or of memory.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is a pipe, which would be waited for, or a device, which may have no end.
    """
    if not isinstance(source, Path):
        return io.BytesIO(source)
    if not stat.S_ISREG(source.stat().st_mode) and not source.is_dir():
        raise ValueError(f'{access_problem(source)}; expected a file')
    return source.open('rb')


def _failure(source: Path | bytes, error: Exception, kind: str) -> str:
    """Return what is wrong with a file or its bytes, and the cure."""
    reason = str(error) or type(error).__name__
    if not isinstance(source, Path):
        cure = '' if 'expected' in reason else _SEND_AGAIN
        return f'cannot be decoded: {len(source)} bytes, {reason}{cure}'
    if isinstance(error, OSError) and error.errno is not None:
        return f'cannot be read as {kind}: {describe_error(source, error)}'
    # it is there, with other content
    cure = '' if 'expected' in reason else '; copy it again, or save it as PNG'
    return f'cannot be read as {kind}: {reason}{cure}'


def _identify(stream: io.BufferedIOBase) -> Image.Image:
    """Return the image of a stream, opened by the plugin for its first bytes.

    `Image.open` would do the same, but also apply Pillow's own limit of pixels, which is a global
    variable and warns on stderr below twice its value.
    """
    magic = stream.read(MAGIC_SIZE)
    stream.seek(0)
    if is_heic(magic):  # some of them start as AVIF, too
        raise ValueError(describe_unknown(magic, _EXPECTED))
    Image.init()
    for name, (factory, accept) in ((name, Image.OPEN.get(name, _NEVER)) for name in FORMATS):
        if accept(magic) is True:
            scans = _checked_scans(name, stream)
            image = factory(stream, '')
            image.info[_SCANS] = scans
            return image
    raise ValueError(describe_unknown(magic, _EXPECTED))


def _decoded(
    source: Path | bytes, name: str, upright: bool, max_pixels: int
) -> tuple[np.ndarray, Fraction | None]:
    """Return what `decode_samples` returns, and the factor that is in grey: `sample_scale`."""
    try:
        with open_image(source, name, max_pixels) as image:
            scale = sample_scale(image, source)
            deep = has_deep_colour(image)
            samples = deep_colour(image, source)[:, :, :3] if deep else _samples(image)
            check_complete(image, source)
            return turned_upright(samples, turn_of(image) if upright else 1), scale
    except ImageError:
        samples = _rare_tiff(source, name, max_pixels)
        if samples is None:
            raise
        return samples, Fraction(1)


def _samples(image: Image.Image) -> np.ndarray:
    """Return the samples of an image that Pillow decodes without loss."""
    raw_mode = _raw_mode(image)
    if image.mode in ('1', 'LA', 'La'):
        image = image.convert('L')
    pixels = np.asarray(image if image.mode in GREY_MODES else image.convert('RGB'))
    samples = native(black_as_zero(image, pixels))
    is_widened = image.mode == 'I' and raw_mode.startswith('I;16')  # a grey PNG, by Pillow 10
    return samples.astype(np.uint16) if is_widened else samples


def _raw_mode(image: Image.Image) -> str:
    """Return the kind of samples in the file, such as "I;16B"; to ask before they are decoded."""
    return str(image.tile[0][3]) if image.tile else ''


def _rare_tiff(source: Path | bytes, name: str, max_pixels: int) -> np.ndarray | None:
    """Return the samples of a TIFF that Pillow does not know; None for another or damaged file."""
    try:
        with _byte_stream(source) as stream:
            if stream.read(4) not in TIFF_MAGIC:  # it may be a huge file of another kind
                return None
        return decode_rare_tiff(_bytes(source), name, max_pixels)
    except ImageError:
        raise
    except Exception:  # noqa: BLE001  # the caller reports Pillow's reason
        return None


def _rgb(samples: np.ndarray, name: str) -> np.ndarray:
    samples = to_uint8(samples, name)
    return samples if samples.ndim == 3 else np.repeat(samples[:, :, None], 3, axis=2)
