# SPDX-License-Identifier: Apache-2.0
"""Read the body of POST /v1/segment: two parts, checked before an image is decoded. Any thread.

The parser is python-multipart's. The size of an image is read from its header.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lisa_ros.error_text import short_repr
from lisa_ros.errors import ImageError
from lisa_ros.images.image_file import decode_rgb, open_image
from lisa_ros.images.pixel_limit import check_image_size
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.query_format import RawImage, SegmentQuery
from lisa_ros.serving.query_reading import parse_query
from lisa_ros.serving.wire_format import IMAGE_TYPES, JSON_TYPE, RAW_TYPE

# the client is told what is wrong; a line of log for each request would fill the disk
logging.getLogger('python_multipart').setLevel(logging.ERROR)
_NAMES = ('query', 'image')
_MAGIC = {'image/jpeg': b'\xff\xd8', 'image/png': b'\x89PNG'}
_MAX_HEADERS = 8  # of a part
_MAX_HEADER_BYTES = 1000
_MAX_BOUNDARY = 70  # RFC 2046
_MAX_PREAMBLE = 1000  # text before the first part, which is ignored [bytes]
_MAX_BOUNDARIES = 20  # a request has four, with a part _charset_
_PADDING_CHUNK = 4096  # what is looked at at once [bytes]
_CHARSET = '_charset_'  # name of a part with the encoding of the others (RFC 7578)
_CHARSETS = ('utf-8', 'utf8', 'us-ascii')


@dataclass(frozen=True)
class ImageUpload:
    """A question and its image, not yet decoded."""

    query: SegmentQuery
    image: bytes
    media_type: str


def read_upload(content_type: str, body: bytes, limits: ServerLimits) -> ImageUpload:
    """Return the content of a request.

    Args:
        content_type: of the request.
        body: all of it.
        limits: on pixels and on the query.

    Raises:
        ProblemError: MALFORMED, UNSUPPORTED_MEDIA, TOO_LARGE, INVALID_QUERY or INVALID_IMAGE.
    """
    parts = _parts(_boundary(content_type), body)
    query = parse_query(parts['query'].content, limits.query)
    image = parts['image']
    if not image.media_type:
        media_type = RAW_TYPE if query.raw else _media_type_of(image.content)
        image = dataclasses.replace(image, media_type=media_type)
    expected = (RAW_TYPE,) if query.raw else tuple(IMAGE_TYPES)
    if image.media_type not in expected:
        raise ProblemError(
            Problem.UNSUPPORTED_MEDIA,
            f'the part "image" has the Content-Type {short_repr(image.media_type)}; expected '
            f'{" or ".join(expected)}'
            + ('' if query.raw else f', or {RAW_TYPE} and "raw" in the query'),
        )
    check_upload(image.content, image.media_type, query.raw, limits.image_pixels)
    return ImageUpload(query, image.content, image.media_type)


def check_upload(image: bytes, media_type: str, raw: RawImage | None, max_pixels: int) -> None:
    """Check the kind and the size of an image by its first bytes.

    Raises:
        ProblemError: INVALID_IMAGE or TOO_LARGE.
    """
    try:
        if raw is not None:
            check_image_size(raw.width, raw.height, 'the image', max_pixels)
            if len(image) != math.prod(raw.shape):
                raise ImageError(
                    f'the raw image has {len(image)} bytes; expected {math.prod(raw.shape)} for '
                    f'{raw.width} x {raw.height} pixels of {raw.encoding}, without padding'
                )
            return
        if image and not image.startswith(_MAGIC[media_type]):  # readers of others are not asked
            raise ImageError(
                f'the image begins with {image[:12]!r}, but its Content-Type is {media_type}: '
                f'correct the type, or send a file of {IMAGE_TYPES[media_type]}'
            )
        with open_image(image, 'the image', max_pixels):
            pass
    except ImageError as error:
        raise ProblemError(Problem.INVALID_IMAGE, str(error)) from error


def _media_type_of(image: bytes) -> str:
    """Return the type of an image file by its first bytes; '': it is none that is read."""
    return next((kind for kind, magic in _MAGIC.items() if image.startswith(magic)), '')


def decode_upload(upload: ImageUpload, max_pixels: int) -> np.ndarray:
    """Return the image, (H, W, 3) uint8 RGB, as stored: no EXIF orientation is applied.

    Raises:
        ProblemError: INVALID_IMAGE: it is damaged.
    """
    raw = upload.query.raw
    if raw is not None:
        pixels = np.frombuffer(upload.image, np.uint8).reshape(raw.shape)
        if raw.encoding == 'mono8':
            return np.repeat(pixels, 3, axis=2)
        return pixels if raw.encoding == 'rgb8' else np.ascontiguousarray(pixels[:, :, ::-1])
    try:
        return decode_rgb(upload.image, 'the image', max_pixels, upright=False)
    except ImageError as error:
        raise ProblemError(Problem.INVALID_IMAGE, str(error)) from error


@dataclass(frozen=True)
class _Part:
    media_type: str
    content: bytes


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b'multipart/form-data':
        raise ProblemError(
            Problem.UNSUPPORTED_MEDIA,
            f'the Content-Type is {short_repr(content_type)}; expected multipart/form-data with '
            'the parts "image" and "query"',
        )
    boundary = options.get(b'boundary', b'')
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise _malformed(f'the boundary has {len(boundary)} bytes; expected 1 to {_MAX_BOUNDARY}')
    return boundary


def _parts(boundary: bytes, body: bytes) -> dict[str, _Part]:
    """Return the two parts by their names."""
    reader = _PartReader()
    try:
        parser = MultipartParser(
            boundary,
            reader.callbacks(),
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )
        parser.write(_without_preamble(boundary, body))
        parser.finalize()
    except FormParserError as error:
        raise _malformed(f'the body is no multipart/form-data: {error}') from error
    if not reader.has_ended:
        raise _malformed('the body ends before its last boundary: send all of it')
    if missing := [name for name in _NAMES if name not in reader.parts]:
        raise _malformed(f'the part "{missing[0]}" is missing; expected "image" and "query"')
    return reader.parts


def _without_preamble(boundary: bytes, body: bytes) -> bytes:
    """Return a body as the parser takes it.

    RFC 2046 allows text before the first boundary, and white space behind each. No part has a
    boundary in its content.
    """
    delimiter = b'--' + boundary
    if not body.startswith(delimiter):
        start = body.find(b'\r\n' + delimiter, 0, _MAX_PREAMBLE)
        body = body[start + 2 :] if start >= 0 else body
    return _without_padding(delimiter, body)


def _without_padding(delimiter: bytes, body: bytes) -> bytes:
    """Return a body without white space behind its boundaries.

    It steps from one to the next: one call for all of a large body would hold the interpreter.
    """
    view, pieces, start = memoryview(body), [], 0
    line = b'\r\n' + delimiter
    end = len(delimiter) if body.startswith(delimiter) else _end_of(line, body, 0)
    for _ in range(_MAX_BOUNDARIES):
        if not end:
            break
        padding_end = _end_of_padding(body, end)
        if padding_end > end and body.startswith(b'\r\n', padding_end):
            pieces.append(view[start:end])
            start = padding_end
        end = _end_of(line, body, padding_end)
    return b''.join([*pieces, view[start:]]) if pieces else body


def _end_of(text: bytes, body: bytes, start: int) -> int:
    """Return where a text ends that begins at `start` or later; 0: there is none."""
    hit = body.find(text, start)
    return hit + len(text) if hit >= 0 else 0


def _end_of_padding(body: bytes, start: int) -> int:
    """Return where spaces and tabs end that begin at `start`."""
    while chunk := body[start : start + _PADDING_CHUNK]:
        rest = chunk.lstrip(b' \t')
        start += len(chunk) - len(rest)
        if rest:
            break
    return start


class _PartReader:
    """Collects the parts from the callbacks of a MultipartParser."""

    def __init__(self) -> None:
        self.parts: dict[str, _Part] = {}
        self.has_ended = False
        self._has_charset = False
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._data = b'', b'', []

    def callbacks(self) -> dict[str, object]:
        return {
            'on_part_begin': self._begin,
            'on_header_field': self._add_name,
            'on_header_value': self._add_value,
            'on_header_end': self._end_header,
            'on_part_data': self._add_data,
            'on_part_end': self._end_part,
            'on_end': self._end,
        }

    def _begin(self) -> None:
        self._headers, self._data = {}, []

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b''

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end_part(self) -> None:
        kind, options = parse_options_header(self._headers.get(b'content-disposition', b''))
        name = options.get(b'name', b'').decode('utf-8', 'replace')
        if kind == b'form-data' and name == _CHARSET and not self._has_charset:
            self._read_charset()
            return
        if len(self.parts) == len(_NAMES):
            raise _malformed('the body has more than two parts; expected "image" and "query"')
        if kind != b'form-data' or name not in _NAMES or name in self.parts:
            raise _malformed(
                f'a part has the name {short_repr(name)}; expected "image" and "query", once each'
            )
        media_type, _ = parse_options_header(self._headers.get(b'content-type', b''))
        text = media_type.decode('latin-1').lower()
        if name == 'query' and text not in ('', 'text/plain', JSON_TYPE):
            raise ProblemError(
                Problem.UNSUPPORTED_MEDIA,
                f'the part "query" has the Content-Type {short_repr(text)}; expected {JSON_TYPE}',
            )
        self.parts[name] = _Part(text, b''.join(self._data))

    def _read_charset(self) -> None:
        self._has_charset = True
        charset = b''.join(self._data).decode('latin-1')
        if charset.lower() not in _CHARSETS:
            raise _malformed(f'the encoding is {short_repr(charset)}; expected UTF-8')

    def _end(self) -> None:
        self.has_ended = True


def _malformed(detail: str) -> ProblemError:
    return ProblemError(Problem.MALFORMED, detail)
