# SPDX-License-Identifier: Apache-2.0
"""Recognizes commands in an audio stream.

    samples -> utterances (vad.py) -> transcripts (engines.py) -> commands (vocabulary.py)
            -> Recognition: a command, or the reason why there is none

The confidence of a command is the confidence of the engine times that of the match between the
transcript and a sentence of the vocabulary. Below a threshold the command is reported, but not
executed. "stop" is recognized before the utterance has ended.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lisa_ros.session.command_parser import CommandKind, parse_command
from lisa_ros.voice.audio import RATE
from lisa_ros.voice.engines import Engine, Transcript, load_engine
from lisa_ros.voice.settings import VoiceSettings
from lisa_ros.voice.vad import Utterance, UtteranceDetector
from lisa_ros.voice.vocabulary import Vocabulary, normalize

_FIRST_PARTIAL = 0.6  # length of an utterance at its first partial result [s]
_MIN_SPEECH = 0.15  # utterances with less speech are dropped as noise, such as a click [s]


class Outcome(enum.Enum):
    """Outcome of an utterance; the values are the constants of lisa_ros/msg/Heard."""

    PARTIAL = 'PARTIAL'  # the utterance has not ended
    COMMAND = 'COMMAND'
    UNSURE = 'UNSURE'  # the confidence is below the threshold
    EMPTY = 'EMPTY'  # speech in which no words were recognized
    ASLEEP = 'ASLEEP'  # the wake phrase is missing: not a command
    AWAKE = 'AWAKE'  # only the wake phrase was spoken: a command may follow


@dataclass(frozen=True)
class Recognition:
    """The result of an utterance, or of its part so far."""

    outcome: Outcome
    text: str  # as the engine wrote it
    command: str  # the command to send; empty except for COMMAND and UNSURE
    confidence: float  # probability of the command, 0..1
    # time from the end of the utterance to this result; for PARTIAL: length of the utterance [s]
    seconds: float = 0.0


class Listener:
    """Recognizes commands in one audio stream. Not thread-safe."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary | None = None,
        *,
        confidence_threshold: float = 0.7,
        wake_phrase: str = '',
        awake: float = 8.0,
        partial_every: float = 0.7,
        pause: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Make a listener; `make_listener` makes one from settings.

        Args:
            engine: transcribes the utterances.
            vocabulary: the sentences that can be said; None: any text is a command.
            confidence_threshold: lowest confidence of a command, 0..1.
            wake_phrase: phrase that must precede each command; empty: all speech can be a command.
            awake: how long a command is accepted after the wake phrase was spoken alone [s].
            partial_every: period of partial results [s]; 0: none.
            pause: silence that ends an utterance [s].
            clock: a monotonic clock [s].

        Raises:
            SettingsError: the package silero-vad is not installed.
        """
        self._detector = UtteranceDetector(pause)
        self._engine, self._vocabulary = engine, vocabulary
        self._threshold, self._wake_phrase = confidence_threshold, normalize(wake_phrase)
        self._awake, self._partial_every, self._clock = awake, partial_every, clock
        self._awake_until = float('-inf')  # by the clock
        self._next_partial = _FIRST_PARTIAL  # length of the utterance [s]
        self._stopped = False  # a "stop" was reported in the utterance before its end

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
            recognition = self.interpret(self._engine.transcribe(utterance.samples))
            yield dataclasses.replace(recognition, seconds=self._clock() - start)
        elif self._partial_every and not self._stopped and length >= self._next_partial:
            self._next_partial = length + self._partial_every
            recognition = self.interpret(self._engine.transcribe(utterance.samples))
            if recognition.outcome is Outcome.COMMAND and _is_stop(recognition.command):
                self._stopped = True
                yield recognition
            elif recognition.text:
                yield dataclasses.replace(
                    recognition, outcome=Outcome.PARTIAL, command='', seconds=length
                )

    def interpret(self, transcript: Transcript) -> Recognition:
        """Return the result of a transcript; its `seconds` are 0."""
        text = transcript.text
        if not normalize(text):
            return Recognition(Outcome.EMPTY, text, '', 0.0)
        spoken, has_wake_phrase = self._without_wake_phrase(normalize(text))
        command, confidence = spoken, transcript.confidence
        if spoken and self._vocabulary is not None:
            command, match_confidence = self._vocabulary.match(spoken)
            confidence *= match_confidence
        is_sure = confidence >= self._threshold
        if self._wake_phrase and not _is_stop(command):
            if not has_wake_phrase and self._clock() > self._awake_until:
                return Recognition(Outcome.ASLEEP, text, '', confidence)
            if is_sure:
                self._awake_until = float('-inf') if spoken else self._clock() + self._awake
        if not is_sure:
            return Recognition(Outcome.UNSURE, text, command, confidence)
        outcome = Outcome.COMMAND if spoken else Outcome.AWAKE
        return Recognition(outcome, text, command, confidence)

    def _without_wake_phrase(self, text: str) -> tuple[str, bool]:
        """Return a text without the wake phrase at its start, and whether it was there."""
        phrase = self._wake_phrase
        if phrase and (text == phrase or text.startswith(phrase + ' ')):
            return text[len(phrase) :].strip(), True
        return text, False


def _is_stop(command: str) -> bool:
    return parse_command(command).kind is CommandKind.STOP


def make_listener(settings: VoiceSettings) -> tuple[Listener, str]:
    """Return a listener with these settings, and its description for the log, in one line.

    Raises:
        SettingsError: the engine or the vocabulary is not available.
    """
    vocabulary = Vocabulary.open(settings.vocabulary) if settings.vocabulary else None
    engine = load_engine(
        settings.engine, vocabulary, settings.wake_phrase, settings.speech_model, settings.device
    )
    listener = Listener(
        engine,
        vocabulary,
        confidence_threshold=settings.confidence_threshold,
        wake_phrase=settings.wake_phrase,
        awake=settings.awake,
        partial_every=settings.partial_every,
        pause=settings.pause,
    )
    commands = (
        'any command' if vocabulary is None else f'{len(vocabulary.sentence_by_meaning)} commands'
    )
    wake = f' after "{settings.wake_phrase}"' if settings.wake_phrase else ''
    return listener, f'{engine.name} listens for {commands}{wake}'
