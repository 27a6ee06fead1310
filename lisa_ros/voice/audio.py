# SPDX-License-Identifier: Apache-2.0
"""Sound as numbers: 16 kHz, one channel, float32 in -1..1."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from lisa_ros.errors import DataError

RATE = 16000  # [Hz], of everything here


def from_pcm16(data: bytes | np.ndarray) -> np.ndarray:
    """Return little-endian 16-bit samples as numbers.

    Raises:
        DataError: an odd number of bytes.
    """
    raw = np.frombuffer(data, np.uint8)
    if len(raw) % 2:
        raise DataError(f'{len(raw)} bytes of sound; 16-bit samples have two each')
    return raw.view('<i2').astype(np.float32) / 32768


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Return samples as little-endian 16-bit ones, (2 n,) uint8."""
    return (np.clip(samples, -1, 1) * 32767).astype('<i2').view(np.uint8)


def read_wav(path: str | Path) -> np.ndarray:
    """Return a WAV file of 16-bit samples as one channel at 16 kHz.

    Raises:
        DataError: it cannot be read, or has other than 16-bit samples; or another rate, and the
            package soxr is not there.
    """
    try:
        with wave.open(str(path)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f'{path}: no WAV file that can be read ({error})') from error
    if width != 2:
        raise DataError(f'{path}: samples of {8 * width} bits; expected 16')
    samples = from_pcm16(data).reshape(-1, channels).mean(1)
    return resampled(samples, rate)


def write_wav(path: str | Path, samples: np.ndarray) -> None:
    """Write samples as a WAV file of 16 bits."""
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(to_pcm16(samples).tobytes())


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return samples of another rate [Hz] at 16 kHz.

    Raises:
        DataError: the package soxr is not there.
    """
    if rate == RATE:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise DataError(
            f'sound at {rate} Hz; expected {RATE}, or the package soxr: '
            "pip install 'lisa_ros[voice]'"
        ) from error
    return soxr.resample(samples, rate, RATE).astype(np.float32)
