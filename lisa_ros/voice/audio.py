# SPDX-License-Identifier: Apache-2.0
"""Audio as arrays: 16 kHz, mono, float32 in -1..1; conversion from and to PCM and WAV."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lisa_ros.errors import DataError
from lisa_ros.optional_packages import install_command
from lisa_ros.voice.wav_file import read_wav_file

RATE = 16000  # sample rate of all arrays in this package [Hz]


def from_pcm16(pcm: bytes | np.ndarray) -> np.ndarray:
    """Return little-endian 16-bit samples as float32 in -1..1.

    Raises:
        DataError: the number of bytes is odd.
    """
    raw = np.frombuffer(pcm, np.uint8)
    if len(raw) % 2:
        raise DataError(
            f'{len(raw)} bytes of audio; expected an even number: 16-bit samples have two each'
        )
    return raw.view('<i2').astype(np.float32) / 32768


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Return n samples as little-endian 16-bit PCM, (2 n,) uint8; values are clipped to -1..1."""
    return (np.clip(samples, -1, 1) * 32767).astype('<i2').view(np.uint8)


def read_wav(path: str | Path) -> np.ndarray:
    """Return the samples of a WAV file, mixed to mono and resampled to 16 kHz.

    Raises:
        DataError: the file cannot be read, see `wav_file`; or it has another sample rate and the
            package soxr is not installed.
    """
    wav = read_wav_file(Path(path))
    return resample(wav.samples.mean(1), wav.rate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return samples of the sample rate `rate` [Hz] at 16 kHz.

    Raises:
        DataError: the rate differs and the package soxr is not installed.
    """
    if rate == RATE:
        return samples
    return _soxr(rate).resample(samples, rate, RATE).astype(np.float32)


class Resampler:
    """Resamples a stream of pieces to 16 kHz without a gap or a click between them; one thread."""

    def __init__(self) -> None:
        """Begin with any rate."""
        self._rate = RATE
        self._stream: Any = None  # soxr.ResampleStream from self._rate

    def push(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return the next samples at 16 kHz; the filter holds back less than 0.1 s.

        Args:
            samples: (n,) float32.
            rate: of the piece [Hz]; another one than before begins a new stream.

        Returns:
            (m,) float32.

        Raises:
            DataError: the rate is not 16 kHz and the package soxr is not installed.
        """
        if rate != self._rate:
            options = {'num_channels': 1, 'dtype': 'float32'}
            new = None if rate == RATE else _soxr(rate).ResampleStream(rate, RATE, **options)
            self._rate, self._stream = rate, new
        return samples if self._stream is None else self._stream.resample_chunk(samples)


def _soxr(rate: int) -> ModuleType:
    """Return the module soxr.

    Raises:
        DataError: it is not installed, and audio has the rate `rate` [Hz].
    """
    try:
        import soxr
    except ImportError as error:
        raise DataError(
            f'audio at {rate} Hz; expected {RATE} Hz, or the package soxr: '
            f'{install_command("voice")}'
        ) from error
    return soxr
