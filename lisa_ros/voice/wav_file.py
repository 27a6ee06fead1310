# SPDX-License-Identifier: Apache-2.0
"""Read the kinds of WAV file that recorders, phones and telephone systems write.

PCM of 8, 16, 24 and 32 bits, float of 32 and 64 bits, A-law and mu-law (ITU-T G.711), each plain
or as WAVE_FORMAT_EXTENSIBLE. Python's `wave` reads PCM alone. A file whose recorder was stopped,
so that the size of its data is 0, unknown or too large, is read to its end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lisa_ros.errors import DataError

_PCM, _FLOAT, _A_LAW, _MU_LAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_SUBFORMAT_TAIL = bytes.fromhex('000000001000800000aa00389b71')  # after the two bytes of a format
_AFTER_DATA = (b'LIST', b'id3 ', b'bext', b'fact', b'cue ', b'PEAK')  # chunks
_FORMAT_NAMES = {
    _PCM: 'PCM', _FLOAT: 'float',
    0x02: 'ADPCM', 0x11: 'IMA ADPCM', 0x31: 'GSM 6.10', 0x50: 'MPEG', 0x55: 'MP3', 0xFF: 'AAC',
}  # fmt: skip
_RATES = 1_000, 1_000_000  # a rate outside of these is a damaged header [Hz]
_CURE = 'convert it: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le out.wav'


@dataclass(frozen=True, eq=False)
class WavFile:
    """The samples of a WAV file."""

    samples: np.ndarray  # (n, channels) float32 in -1..1; float files may go beyond
    rate: int  # [Hz]


@dataclass(frozen=True)
class _Format:
    """The chunk "fmt " of a WAV file."""

    code: int  # one of _PCM, _FLOAT, _A_LAW, _MU_LAW, or one that is not supported
    channels: int
    rate: int  # [Hz]
    width: int  # of a sample [bytes]


def read_wav_file(path: Path) -> WavFile:
    """Return the samples of a WAV file.

    Raises:
        DataError: the file cannot be read, is not a WAV file, or is of a kind that is not
            supported; the text says how to convert it.
    """
    try:
        content = path.read_bytes()
        chunks = _chunks(content)
        wav_format = _read_format(chunks[b'fmt '])
        data = chunks[b'data']
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f'{path}: cannot be read as a WAV file ({error})') from error
    except KeyError as error:
        raise DataError(
            f'{path}: cannot be read as a WAV file (it has no chunk {error}); {_CURE}'
        ) from error
    try:
        frame_size = wav_format.width * wav_format.channels
        samples = _decode(data[: len(data) // frame_size * frame_size], wav_format)
    except ValueError as error:
        raise DataError(f'{path}: {error}; {_CURE}') from error
    return WavFile(samples.reshape(-1, wav_format.channels), wav_format.rate)


def _chunks(content: bytes) -> dict[bytes, bytes]:
    """Return the content of each chunk by its id; of several with one id, the first."""
    if content[:4] not in (b'RIFF', b'RF64') or content[8:12] != b'WAVE':
        raise ValueError(f'it starts with {content[:12]!r}; expected RIFF....WAVE')
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from('<4sI', content, position)
        position += 8
        is_unknown = size == 0 and content[position : position + 4] not in _AFTER_DATA
        if name == b'data' and (is_unknown or position + size > len(content)):
            size = len(content) - position  # the recorder was stopped before it wrote the size
        chunks.setdefault(name, content[position : position + size])
        position += size + size % 2
    return chunks


def _read_format(chunk: bytes) -> _Format:
    """Return the content of the chunk "fmt "."""
    code, channels, rate, _, frame_size, _ = struct.unpack_from('<HHIIHH', chunk)
    if code == _EXTENSIBLE and chunk[26:40] == _SUBFORMAT_TAIL:
        (code,) = struct.unpack_from('<H', chunk, 24)
    if channels == 0 or frame_size == 0 or frame_size % channels:
        raise ValueError(f'frames of {frame_size} bytes for {channels} channels')
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f'a sample rate of {rate} Hz; expected {_RATES[0]} to {_RATES[1]}')
    return _Format(code, channels, rate, frame_size // channels)


def _decode(data: bytes, wav_format: _Format) -> np.ndarray:
    """Return samples as float32.

    Raises:
        ValueError: this kind of sample is not supported, or a value is not finite.
    """
    kind = wav_format.code, wav_format.width
    if kind == (_PCM, 1):
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if kind[0] == _PCM and kind[1] in (2, 3, 4):
        return _decode_pcm(data, kind[1])
    if kind in ((_FLOAT, 4), (_FLOAT, 8)):
        samples = np.frombuffer(data, f'<f{kind[1]}').astype(np.float32)
        if not np.isfinite(samples).all():
            raise ValueError('some of its samples are not numbers')
        return samples
    if kind in ((_A_LAW, 1), (_MU_LAW, 1)):
        table = _a_law_table() if kind[0] == _A_LAW else _mu_law_table()
        return table[np.frombuffer(data, np.uint8)]
    name = _FORMAT_NAMES.get(kind[0], f'format {kind[0]:#x}')
    raise ValueError(
        f'samples of {kind[1]} bytes in {name}; expected PCM of 8 to 32 bits, float of 32 or 64 '
        'bits, A-law or mu-law'
    )


def _decode_pcm(data: bytes, width: int) -> np.ndarray:
    """Return signed little-endian PCM of 2, 3 or 4 bytes as float32."""
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = padded.tobytes(), 4
    return np.frombuffer(data, f'<i{width}').astype(np.float32) / np.float32(1 << (8 * width - 1))


def _mu_law_table() -> np.ndarray:
    """Return the sample of each mu-law code, (256,) float32."""
    codes = ~np.arange(256) & 0xFF
    magnitude = ((((codes & 15) << 3) + 0x84) << ((codes >> 4) & 7)) - 0x84
    return (np.where(codes & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _a_law_table() -> np.ndarray:
    """Return the sample of each A-law code, (256,) float32."""
    codes = np.arange(256) ^ 0x55
    exponent, steps = (codes >> 4) & 7, (codes & 15) << 4
    magnitude = np.where(exponent, (steps + 0x108) << np.maximum(exponent - 1, 0), steps + 8)
    return (np.where(codes & 0x80, magnitude, -magnitude) / 32768).astype(np.float32)
