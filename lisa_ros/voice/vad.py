# SPDX-License-Identifier: Apache-2.0
"""Where in a sound somebody speaks: utterances are cut out of a stream (Silero's detector)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lisa_ros.errors import SettingsError
from lisa_ros.voice.audio import RATE

_CHUNK = 512  # samples that the detector takes at 16 kHz
_SPEECH = 0.5  # probability from which a chunk counts as speech; it ends 0.15 below
_BEFORE = 0.3  # of the sound before it was noticed belongs to an utterance [s]
_LONGEST = 10.0  # utterance [s]; more is a talk, and cut


@dataclass(frozen=True)
class Utterance:
    """What somebody said, or has said so far."""

    samples: np.ndarray  # (n,) float32, with some silence at either end
    spoken: float  # of it, speech [s]
    ended: bool


class UtteranceDetector:
    """Cuts utterances out of a stream of samples. For one thread."""

    def __init__(self, pause: float = 0.5):
        """Begin.

        Args:
            pause: silence that ends an utterance [s].

        Raises:
            SettingsError: the detector is not installed.
        """
        threads = torch.get_num_threads()
        try:
            import silero_vad  # it leaves torch with one thread, for everybody in the process
        except ImportError as error:
            raise SettingsError(
                "speech needs the package silero-vad: pip install 'lisa_ros[voice]'"
            ) from error
        self._detector = silero_vad.load_silero_vad()
        torch.set_num_threads(threads)
        self._pause = pause
        self._rest = np.zeros(0, np.float32)  # less than a chunk
        self._kept: list[np.ndarray] = []  # chunks of the utterance, or of what came before it
        self._speaking, self._spoken, self._silent = False, 0, 0  # chunks

    def feed(self, samples: np.ndarray) -> Iterator[Utterance]:
        """Yield what the next samples, (n,) float32, tell: utterances as they grow and end."""
        samples = np.concatenate([self._rest, np.asarray(samples, np.float32)])
        whole = len(samples) // _CHUNK * _CHUNK
        self._rest = samples[whole:]
        for chunk in samples[:whole].reshape(-1, _CHUNK):
            yield from self._take(chunk)

    def finish(self) -> Iterator[Utterance]:
        """Yield the utterance that the end of the sound cuts short, and begin anew."""
        if self._speaking:
            yield from self._end()
        self._detector.reset_states()
        self._rest = np.zeros(0, np.float32)

    def _take(self, chunk: np.ndarray) -> Iterator[Utterance]:
        with torch.no_grad():
            likely = float(self._detector(torch.from_numpy(chunk.copy()), RATE))
        self._kept.append(chunk)
        if not self._speaking:
            if likely < _SPEECH:
                del self._kept[: -round(_BEFORE * RATE / _CHUNK)]
                return
            self._speaking, self._spoken, self._silent = True, 0, 0
        silent = likely < _SPEECH - 0.15
        self._silent = self._silent + 1 if silent else 0
        self._spoken += not silent
        seconds = len(self._kept) * _CHUNK / RATE
        if self._silent * _CHUNK >= self._pause * RATE or seconds > _LONGEST:
            yield from self._end()
        else:
            yield self._utterance(ended=False)

    def _end(self) -> Iterator[Utterance]:
        utterance = self._utterance(ended=True)
        self._kept, self._speaking = [], False
        yield utterance

    def _utterance(self, ended: bool) -> Utterance:
        return Utterance(np.concatenate(self._kept), self._spoken * _CHUNK / RATE, ended)
