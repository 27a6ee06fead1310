# SPDX-License-Identifier: Apache-2.0
"""Audio from a microphone, with PortAudio: mono at 16 kHz, whatever the device delivers.

Threads: PortAudio's thread calls the methods of the sink.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lisa_ros.error_text import one_line
from lisa_ros.errors import SettingsError
from lisa_ros.voice.audio import RATE, Resampler

if TYPE_CHECKING:
    import sounddevice


class AudioSink(Protocol):
    """The receiver of the audio."""

    def take_samples(self, samples: np.ndarray) -> None:
        """Take the next samples, (n,) float32 at 16 kHz."""

    def report_overflow(self) -> None:
        """Take notice of audio that was lost before these samples."""

    def report_end(self, message: str) -> None:
        """Take notice that no more samples come, and why; called at most once."""


class Microphone:
    """An open microphone."""

    def __init__(self, name: str, sink: AudioSink):
        """Open a microphone at 16 kHz, or at its own rate if it has no other.

        Args:
            name: or a part of it; empty: the default of the system.
            sink: receives the audio.

        Raises:
            SettingsError: sounddevice or PortAudio is not installed, there is no such microphone,
                or it cannot be opened.
            DataError: the microphone has another rate and the package soxr is not installed.
        """
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: PortAudio is not installed
            raise SettingsError(
                f'a microphone needs sounddevice and PortAudio ({error}): pip install '
                'sounddevice, apt install libportaudio2'
            ) from error
        self._device, self._sink, self._resampler = name or None, sink, Resampler()
        self._rate, self._is_closing = RATE, False
        self._name = name or '(default)'
        try:
            self._stream = self._open(sounddevice)
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise SettingsError(
                f'microphone {self._name}: {one_line(error)}; plug it in, end programs that use '
                'it, or set microphone to a name that `python -m sounddevice` lists'
            ) from error

    def close(self) -> None:
        """Stop and close the microphone."""
        self._is_closing = True
        self._stream.close()

    def _open(self, library: ModuleType) -> sounddevice.InputStream:
        """Return a stream with 16 kHz and one channel, or else what the device has."""
        try:
            return self._stream_of(library, 1)
        except library.PortAudioError:
            device = library.query_devices(self._device, 'input')
        self._rate = int(device['default_samplerate'])
        self._resampler.push(np.zeros(0, np.float32), self._rate)  # now, not in the callback
        try:
            return self._stream_of(library, 1)
        except library.PortAudioError:
            return self._stream_of(library, device['max_input_channels'])

    def _stream_of(self, library: ModuleType, channels: int) -> sounddevice.InputStream:
        return library.InputStream(
            samplerate=self._rate,
            channels=channels,
            dtype='float32',
            device=self._device,
            callback=self._take_block,
            finished_callback=self._end,
        )

    def _take_block(
        self, block: np.ndarray, _frames: int, _time: object, status: sounddevice.CallbackFlags
    ) -> None:
        """Pass on a block, (n, channels) float32."""
        if status.input_overflow:
            self._sink.report_overflow()
        self._sink.take_samples(self._resampler.push(block.mean(1), self._rate))

    def _end(self) -> None:
        if not self._is_closing:
            self._sink.report_end(
                f'microphone {self._name} has ended: it was unplugged, or its driver failed; plug '
                'it in and start voice_node again'
            )
