# SPDX-License-Identifier: Apache-2.0
"""From a transcript to a command: the wake phrase, the vocabulary and the confidence.

The confidence of a command is the confidence of the transcript times that of the match between it
and a sentence of the vocabulary. Below a threshold the command is reported, but not executed.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

from lisa_ros.errors import SettingsError
from lisa_ros.session.command_parser import CommandKind, parse_command
from lisa_ros.voice.settings import VoiceSettings
from lisa_ros.voice.transcript_text import normalize, without_annotations, without_wake_phrase
from lisa_ros.voice.vocabulary import Vocabulary


@dataclass(frozen=True)
class Transcript:
    """The text that an engine recognized in an utterance."""

    text: str  # lower case or as the engine writes it; empty: no words recognized
    confidence: float  # probability of these words, 0..1; 1.0 if the engine has no confidence


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

    @property
    def is_stop(self) -> bool:
        """Whether it is a command that stops."""
        return self.outcome is Outcome.COMMAND and is_stop(self.command)


class Interpreter:
    """Turns transcripts into commands. Not thread-safe."""

    def __init__(
        self,
        vocabulary: Vocabulary | None = None,
        *,
        confidence_threshold: float = 0.7,
        wake_phrase: str = '',
        awake: float = 8.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Make an interpreter; `make_interpreter` makes one from settings.

        Args:
            vocabulary: the sentences that can be said; None: any text is a command, as it was
                transcribed, without the wake phrase and annotations such as "(music)".
            confidence_threshold: lowest confidence of a command, 0..1.
            wake_phrase: phrase that must precede each command; empty: all speech can be a command.
            awake: how long a command is accepted after the wake phrase was spoken alone [s].
            clock: a monotonic clock [s].

        Raises:
            SettingsError: the wake phrase has no words.
        """
        if wake_phrase.strip() and not normalize(wake_phrase):
            raise SettingsError(
                f'wake_phrase is {wake_phrase!r}; expected words such as "hey lisa", or nothing: '
                'all speech can be a command then'
            )
        self.vocabulary = vocabulary
        self._threshold, self._wake_phrase = confidence_threshold, normalize(wake_phrase)
        self._awake, self._clock = awake, clock
        self._awake_until = float('-inf')  # by the clock

    def interpret(self, transcript: Transcript) -> Recognition:
        """Return the result of an utterance that has ended; its `seconds` are 0.

        A wake phrase spoken alone starts the time in which a command is accepted, and the command
        ends it.
        """
        recognition = self.preview(transcript)
        if self._wake_phrase and not is_stop(recognition.command):
            if recognition.outcome is Outcome.AWAKE:
                self._awake_until = self._clock() + self._awake
            elif recognition.outcome is Outcome.COMMAND:
                self._awake_until = float('-inf')
        return recognition

    def preview(self, transcript: Transcript) -> Recognition:
        """Return the result as if an utterance ended here; nothing is remembered of it."""
        text, words = transcript.text, without_annotations(transcript.text)
        if not normalize(words):
            return Recognition(Outcome.EMPTY, text, '', 0.0)
        after_phrase = without_wake_phrase(words, self._wake_phrase) if self._wake_phrase else None
        has_wake_phrase = after_phrase is not None
        spoken = words if after_phrase is None else after_phrase
        command, confidence = spoken, transcript.confidence
        if spoken and self.vocabulary is not None:
            command, match_confidence = self.vocabulary.match(spoken)
            confidence *= match_confidence
        is_awake = not self._wake_phrase or has_wake_phrase or self._clock() <= self._awake_until
        if not is_awake and not is_stop(command):
            return Recognition(Outcome.ASLEEP, text, '', confidence)
        if confidence < self._threshold:
            return Recognition(Outcome.UNSURE, text, command, confidence)
        outcome = Outcome.COMMAND if spoken else Outcome.AWAKE
        return Recognition(outcome, text, command, confidence)

    def __str__(self) -> str:
        """Return what it listens for, for the log."""
        commands = 'any command'
        if self.vocabulary is not None:
            commands = f'{len(self.vocabulary.sentence_by_meaning)} commands'
        return commands + (f' after "{self._wake_phrase}"' if self._wake_phrase else '')


def is_stop(command: str) -> bool:
    """Return whether a command is "stop" or means it."""
    return parse_command(command).kind is CommandKind.STOP


def make_interpreter(settings: VoiceSettings) -> Interpreter:
    """Return an interpreter with these settings.

    Raises:
        SettingsError: the vocabulary cannot be read, or the wake phrase has no words.
    """
    return Interpreter(
        Vocabulary.open(settings.vocabulary) if settings.vocabulary else None,
        confidence_threshold=settings.confidence_threshold,
        wake_phrase=settings.wake_phrase,
        awake=settings.awake,
    )
