# SPDX-License-Identifier: Apache-2.0
"""From a stream of sound to commands, and to nothing where nothing clear was said.

    samples -> utterances (`speech`) -> words (`engines`) -> what was meant (`vocabulary`)
            -> Heard: a command; or why it is none

A command must be sure: the engine's confidence in its words times their likeness to something that
can be said. Below, it is told and does nothing. "stop" acts while it is being said.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lisa_ros.session.command_parser import CommandKind, parse_command
from lisa_ros.voice import engines
from lisa_ros.voice.audio import RATE
from lisa_ros.voice.engines import Engine, Transcript
from lisa_ros.voice.settings import VoiceSettings
from lisa_ros.voice.vad import Utterance, UtteranceDetector
from lisa_ros.voice.vocabulary import Vocabulary, normalize

_FIRST = 0.6  # of an utterance before the first guess at what is being said [s]
_SHORTEST = 0.15  # speech in an utterance [s]; less is a click


class Outcome(enum.Enum):
    """What became of what was heard."""

    PARTIAL = 'PARTIAL'  # somebody is still speaking
    COMMAND = 'COMMAND'
    UNSURE = 'UNSURE'  # words, but too likely other ones were said
    EMPTY = 'EMPTY'  # speech without a word that could be made out
    ASLEEP = 'ASLEEP'  # the wake phrase did not come first
    AWAKE = 'AWAKE'  # the wake phrase alone: a command may follow


@dataclass(frozen=True)
class Heard:
    """What was heard."""

    outcome: Outcome
    text: str  # as the engine wrote it
    command: str  # what was meant, as it can be sent; empty but for COMMAND and UNSURE
    confidence: float  # that this was said, 0..1
    seconds: float  # from the end of the speech until now; of PARTIAL: spoken so far


class Listener:
    """Listens to one stream. For one thread."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary | None = None,
        *,
        sure: float = 0.7,
        wake: str = '',
        awake: float = 8.0,
        partial: float = 0.7,
        pause: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Take what hears and what can be said.

        Args:
            engine: for the words.
            vocabulary: what can be said; None: whatever the engine writes is a command.
            sure: confidence from which words are a command.
            wake: phrase that must come first; empty: everything said is meant for the robot.
            awake: how long the wake phrase alone makes it listen [s].
            partial: between guesses at what is being said [s]; 0: none before the end.
            pause: silence that ends an utterance [s].
            clock: seconds.
        """
        self._speech, self._engine, self._vocabulary = UtteranceDetector(pause), engine, vocabulary
        self._sure, self._wake, self._awake = sure, normalize(wake), awake
        self._partial, self._clock = partial, clock
        self._until = float('-inf')  # awake
        self._next = _FIRST  # length of the utterance at which the next guess is due [s]
        self._acted = False  # on the utterance at hand, before its end

    def feed(self, samples: np.ndarray) -> Iterator[Heard]:
        """Yield what the next samples, (n,) float32 at 16 kHz, tell."""
        for utterance in self._speech.feed(samples):
            yield from self._heard(utterance)

    def finish(self) -> Iterator[Heard]:
        """Yield what the end of the sound tells."""
        for utterance in self._speech.finish():
            yield from self._heard(utterance)

    def _heard(self, utterance: Utterance) -> Iterator[Heard]:
        seconds = len(utterance.samples) / RATE
        if utterance.ended:
            acted, self._acted, self._next = self._acted, False, _FIRST
            if acted or utterance.spoken < _SHORTEST:
                return
            began = self._clock()
            heard = self.judge(self._engine.transcribe(utterance.samples))
            yield Heard(*heard, self._clock() - began)
        elif self._partial and not self._acted and seconds >= self._next:
            self._next = seconds + self._partial
            outcome, text, command, confidence = self.judge(
                self._engine.transcribe(utterance.samples)
            )
            stop = outcome is Outcome.COMMAND and parse_command(command).kind is CommandKind.STOP
            if stop:
                self._acted = True
                yield Heard(outcome, text, command, confidence, 0.0)
            elif text:
                yield Heard(Outcome.PARTIAL, text, '', confidence, seconds)

    def judge(self, words: Transcript) -> tuple[Outcome, str, str, float]:
        """Return what becomes of an engine's words: outcome, text, command, confidence."""
        text = words.text
        if not normalize(text):
            return Outcome.EMPTY, text, '', 0.0
        said, called = self._called(normalize(text))
        command, confidence = said, words.confidence
        if said and self._vocabulary is not None:
            command, likeness = self._vocabulary.understand(said)
            confidence *= likeness
        sure, stop = confidence >= self._sure, parse_command(command).kind is CommandKind.STOP
        if self._wake and not stop:
            if not called and self._clock() > self._until:
                return Outcome.ASLEEP, text, '', confidence
            if sure:
                self._until = float('-inf') if said else self._clock() + self._awake
        if not sure:
            return Outcome.UNSURE, text, command, confidence
        return (Outcome.COMMAND if said else Outcome.AWAKE), text, command, confidence

    def _called(self, text: str) -> tuple[str, bool]:
        """Return a text without the wake phrase before it, and whether that was there."""
        if self._wake and (text == self._wake or text.startswith(self._wake + ' ')):
            return text[len(self._wake) :].strip(), True
        return text, False


def listener_of(settings: VoiceSettings) -> tuple[Listener, str]:
    """Return the listener that settings ask for, and a line about it.

    Raises:
        SettingsError: an engine or a vocabulary that is not there.
    """
    vocabulary = Vocabulary.named(settings.vocabulary) if settings.vocabulary else None
    engine = engines.load(
        settings.engine, vocabulary, settings.wake_phrase, settings.speech_model, settings.device
    )
    listener = Listener(
        engine,
        vocabulary,
        sure=settings.confidence_threshold,
        wake=settings.wake_phrase,
        awake=settings.awake,
        partial=settings.partial_every,
        pause=settings.pause,
    )
    words = 'anything' if vocabulary is None else f'{len(vocabulary.sayable)} commands'
    wake = f' after "{settings.wake_phrase}"' if settings.wake_phrase else ''
    return listener, f'{engine.name} listens for {words}{wake}'
