# SPDX-License-Identifier: Apache-2.0
"""Samples of audio messages, whichever package they come from.

Two packages are named audio_common_msgs, and they are told apart by the fields:

- ros-drivers: AudioData has bytes in `data`: 16-bit samples, mono, 16 kHz.
- mgonzs13: AudioStamped has `audio`, with `audio_data` and `info`. The data have a list for each
  sample format, of which one is filled; `info` has the rate and the number of channels. In older
  versions `audio` is the data, and `info` is a field of AudioStamped.

std_msgs/UInt8MultiArray is read as the first one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lisa_ros.errors import DataError
from lisa_ros.voice.audio import RATE, Resampler, from_pcm16

_RATES = (4_000, 384_000)  # smallest and largest sample rate [Hz]
# lists of mgonzs13's AudioData: type, and the value of silence and of full scale
_LISTS = {
    'float32_data': (np.float32, 0.0, 1.0),
    'int32_data': (np.int32, 0.0, 2.0**31),
    'int16_data': (np.int16, 0.0, 2.0**15),
    'int8_data': (np.int8, 0.0, 2.0**7),
    'uint8_data': (np.uint8, 128.0, 128.0),
}


class MessageAudio:
    """The audio of a topic: one stream, in pieces; one thread."""

    def __init__(self) -> None:
        self._resampler = Resampler()

    def samples(self, message: Any) -> np.ndarray:
        """Return the samples of the next message, mixed to mono and resampled to 16 kHz.

        Args:
            message: of one of the types in the module's docstring.

        Returns:
            (n,) float32 in -1..1.

        Raises:
            DataError: the data do not fit their description, the type is unknown, or the rate
                differs and the package soxr is not installed.
        """
        return self._resampler.push(*_mono(message))


def _mono(message: Any) -> tuple[np.ndarray, int]:
    """Return the samples of a message, mixed to mono, and their rate [Hz]."""
    audio = getattr(message, 'audio', message)
    if hasattr(audio, 'audio_data') and hasattr(audio, 'info'):
        return _described_samples(audio.audio_data, audio.info)
    if hasattr(message, 'audio') and hasattr(message, 'info'):
        return _described_samples(audio, message.info)
    if hasattr(message, 'data'):
        return from_pcm16(np.asarray(message.data, np.uint8)), RATE
    if hasattr(message, 'int16_data'):
        return _list_samples(message), RATE
    raise DataError(
        f'a message of {type(message).__name__} has no audio; expected AudioData or AudioStamped '
        'of audio_common_msgs, or std_msgs/UInt8MultiArray: set audio_type'
    )


def _described_samples(data: Any, info: Any) -> tuple[np.ndarray, int]:
    """Return the samples of mgonzs13's AudioStamped, mixed to mono, and their rate [Hz]."""
    samples, channels, rate = _list_samples(data), int(info.channels), int(info.rate)
    if channels < 1 or len(samples) % channels or not _RATES[0] <= rate <= _RATES[1]:
        raise DataError(
            f'{len(samples)} samples of {channels} channels at {rate} Hz; expected whole frames '
            f'of at least one channel at {_RATES[0]} to {_RATES[1]} Hz: check the audio driver'
        )
    return samples.reshape(-1, channels).mean(1, dtype=np.float32), rate


def _list_samples(data: Any) -> np.ndarray:
    """Return the samples of mgonzs13's AudioData as float32 in -1..1."""
    filled = [name for name in _LISTS if len(getattr(data, name, ()))]
    if len(filled) > 1:
        raise DataError(f'audio in {" and ".join(filled)}; expected one of them to be filled')
    if not filled:
        return np.zeros(0, np.float32)
    element_type, silence, full_scale = _LISTS[filled[0]]
    samples = np.asarray(getattr(data, filled[0]), element_type).astype(np.float32)
    if not np.isfinite(samples).all():
        raise DataError(f'audio in {filled[0]} has NaN or infinity: check the audio driver')
    return np.clip((samples - silence) / full_scale, -1, 1)
