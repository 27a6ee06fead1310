# SPDX-License-Identifier: Apache-2.0
"""Voice activity detection: cuts utterances out of an audio stream (Silero VAD)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lisa_ros.errors import SettingsError
from lisa_ros.optional_packages import install_command
from lisa_ros.voice.audio import RATE

_CHUNK = 512  # samples in one step of the detector at 16 kHz
_SPEECH_PROBABILITY = 0.5  # an utterance starts at a chunk with at least this probability
_SILENCE_PROBABILITY = 0.35  # in an utterance, a chunk with a lower probability is silence
_LEAD_IN = 0.3  # audio before the first speech chunk that is part of the utterance [s]
_MAX_UTTERANCE = 10.0  # longer utterances are cut into parts of this length [s]


@dataclass(frozen=True)
class Utterance:
    """Speech between two pauses. While `ended` is False, it is the part received so far."""

    samples: np.ndarray  # (n,) float32, with some silence at both ends
    speech_seconds: float  # duration of the chunks with speech [s]
    ended: bool


class UtteranceDetector:
    """Cuts utterances out of a stream of samples. Not thread-safe."""

    def __init__(self, pause: float = 0.5):
        """Load the detector.

        Args:
            pause: silence that ends an utterance [s].

        Raises:
            SettingsError: the package silero-vad is not installed.
        """
        threads = torch.get_num_threads()
        try:
            import silero_vad  # sets the number of PyTorch threads of the process to one
        except ImportError as error:
            raise SettingsError(
                f'speech needs the package silero-vad: {install_command("voice")}'
            ) from error
        self._detector = silero_vad.load_silero_vad()
        torch.set_num_threads(threads)
        self._pause = pause
        self._incomplete_chunk = np.zeros(0, np.float32)  # samples that do not fill a chunk yet
        self._chunks: list[np.ndarray] = []  # of the utterance; in silence, its lead-in
        self._speaking = False
        self._speech_chunks = 0  # in the utterance
        self._silent_chunks = 0  # at its end so far

    @property
    def in_utterance(self) -> bool:
        """Whether an utterance has begun and not ended. From any thread."""
        return self._speaking

    def feed(self, samples: np.ndarray) -> Iterator[Utterance]:
        """Process the next samples, (n,) float32; yield the utterance when it grows or ends."""
        samples = np.concatenate([self._incomplete_chunk, np.asarray(samples, np.float32)])
        length = len(samples) // _CHUNK * _CHUNK
        self._incomplete_chunk = samples[length:]
        for chunk in samples[:length].reshape(-1, _CHUNK):
            yield from self._process_chunk(chunk)

    def finish(self) -> Iterator[Utterance]:
        """End the stream: yield the utterance that has not ended, and reset the detector."""
        if self._speaking:
            yield from self._end()
        self._detector.reset_states()
        self._chunks = []
        self._incomplete_chunk = np.zeros(0, np.float32)

    def _process_chunk(self, chunk: np.ndarray) -> Iterator[Utterance]:
        """Process one chunk, (512,) float32; yield the utterance if there is one."""
        with torch.no_grad():
            probability = float(self._detector(torch.from_numpy(chunk.copy()), RATE))
        self._chunks.append(chunk)
        if not self._speaking:
            if probability < _SPEECH_PROBABILITY:
                del self._chunks[: -round(_LEAD_IN * RATE / _CHUNK)]
                return
            self._speaking, self._speech_chunks, self._silent_chunks = True, 0, 0
        is_silent = probability < _SILENCE_PROBABILITY
        self._silent_chunks = self._silent_chunks + 1 if is_silent else 0
        self._speech_chunks += not is_silent
        duration = len(self._chunks) * _CHUNK / RATE
        if self._silent_chunks * _CHUNK >= self._pause * RATE or duration > _MAX_UTTERANCE:
            yield from self._end()
        else:
            yield self._utterance(ended=False)

    def _end(self) -> Iterator[Utterance]:
        """Yield the utterance; the next one begins with the next speech."""
        utterance = self._utterance(ended=True)
        self._chunks, self._speaking = [], False
        yield utterance

    def _utterance(self, ended: bool) -> Utterance:
        speech_seconds = self._speech_chunks * _CHUNK / RATE
        return Utterance(np.concatenate(self._chunks), speech_seconds, ended)
