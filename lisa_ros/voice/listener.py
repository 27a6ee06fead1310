# SPDX-License-Identifier: Apache-2.0
"""Recognizes commands in an audio stream.

    samples -> utterances (vad.py) -> transcripts (engines.py) -> commands (interpreter.py)
            -> Recognition: a command, or the reason why there is none

"stop" is recognized before the utterance has ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from lisa_ros.voice.audio import RATE
from lisa_ros.voice.engines import Engine, load_engine
from lisa_ros.voice.interpreter import (
    Interpreter,
    Outcome,
    Recognition,
    Transcript,
    make_interpreter,
)
from lisa_ros.voice.settings import VoiceSettings
from lisa_ros.voice.vad import Utterance, UtteranceDetector

_FIRST_PARTIAL = 0.6  # length of an utterance at its first partial result [s]
_MIN_SPEECH = 0.15  # utterances with less speech are dropped as noise, such as a click [s]


class Listener:
    """Recognizes commands in one audio stream. Not thread-safe."""

    def __init__(
        self,
        engine: Engine,
        interpreter: Interpreter,
        *,
        partial_every: float = 0.7,
        pause: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Make a listener; `make_listener` makes one from settings.

        Args:
            engine: transcribes the utterances.
            interpreter: turns their transcripts into commands.
            partial_every: period of partial results [s]; 0: none.
            pause: silence that ends an utterance [s].
            clock: a monotonic clock [s].

        Raises:
            SettingsError: the package silero-vad is not installed.
        """
        self._detector = UtteranceDetector(pause)
        self._engine, self._interpreter = engine, interpreter
        self._partial_every, self._clock = partial_every, clock
        self._next_partial = _FIRST_PARTIAL  # length of the utterance [s]
        self._stopped = False  # a "stop" was reported in the utterance before its end

    def hears_speech(self) -> bool:
        """Return whether an utterance has begun and not ended. From any thread."""
        return self._detector.in_utterance

    def feed(self, samples: np.ndarray) -> Iterator[Recognition]:
        """Process the next samples, (n,) float32 at 16 kHz; yield the results."""
        for utterance in self._detector.feed(samples):
            yield from self._recognize(utterance)

    def finish(self) -> Iterator[Recognition]:
        """End the stream; yield the result of the utterance that has not ended."""
        for utterance in self._detector.finish():
            yield from self._recognize(utterance)

    def _recognize(self, utterance: Utterance) -> Iterator[Recognition]:
        """Yield the result of an utterance, or a partial one when it is due."""
        length = len(utterance.samples) / RATE
        if utterance.ended:
            stopped, self._stopped, self._next_partial = self._stopped, False, _FIRST_PARTIAL
            if stopped or utterance.speech_seconds < _MIN_SPEECH:
                return
            start = self._clock()
            recognition = self._interpreter.interpret(self._transcribe(utterance))
            yield dataclasses.replace(recognition, seconds=self._clock() - start)
        elif self._partial_every and not self._stopped and length >= self._next_partial:
            self._next_partial = length + self._partial_every
            recognition = self._interpreter.preview(self._transcribe(utterance))
            if recognition.is_stop:
                self._stopped = True
                yield recognition
            elif recognition.text:
                yield dataclasses.replace(
                    recognition, outcome=Outcome.PARTIAL, command='', seconds=length
                )

    def _transcribe(self, utterance: Utterance) -> Transcript:
        return self._engine.transcribe(utterance.samples)


def make_listener(settings: VoiceSettings) -> tuple[Listener, str]:
    """Return a listener with these settings, and its description for the log, in one line.

    Raises:
        SettingsError: the engine or the vocabulary is not available.
    """
    interpreter = make_interpreter(settings)
    engine = load_engine(
        settings.engine,
        interpreter.vocabulary,
        settings.wake_phrase,
        settings.speech_model,
        settings.device,
    )
    listener = Listener(
        engine, interpreter, partial_every=settings.partial_every, pause=settings.pause
    )
    return listener, f'{engine.name} listens for {interpreter}'
