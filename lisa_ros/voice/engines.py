# SPDX-License-Identifier: Apache-2.0
"""From an utterance to words: the engines, behind one small protocol.

    pocketsphinx  hears only what a vocabulary can say; its model is in its wheel; the default
    moonshine     writes down any English; its model is in its wheel of version 0.0.73 alone
    whisper       any of transformers' speech models, by folder or hub id; wants a GPU

Any other speech node serves, too: let it publish std_msgs/String to the node's `~/command`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lisa_ros.errors import SettingsError
from lisa_ros.voice.audio import RATE
from lisa_ros.voice.vocabulary import Vocabulary

ENGINES = ('pocketsphinx', 'moonshine', 'whisper')


@dataclass(frozen=True)
class Transcript:
    """What an engine made of an utterance."""

    text: str  # lower case or as the engine writes; empty: it made out nothing
    confidence: float  # that these words were said, 0..1; 1.0 where an engine tells none


class Engine(Protocol):
    """Whatever turns sound into words. Not to be called from two threads at once."""

    name: str

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return the words of an utterance, (n,) float32 in -1..1 at 16 kHz."""


def load(name: str, vocabulary: Vocabulary | None, wake: str, model: str, device: str) -> Engine:
    """Return an engine.

    Args:
        name: one of ENGINES.
        vocabulary: what can be said; None: anything.
        wake: phrase that may come first, for engines with a grammar.
        model: of whisper, folder or hub id.
        device: of whisper, cpu, cuda or auto.

    Raises:
        SettingsError: there is no such engine, its package is not installed, it wants a vocabulary
            or a model and has none, or a word of the vocabulary has no pronunciation.
    """
    if name == 'pocketsphinx':
        if vocabulary is None:
            raise SettingsError(
                'pocketsphinx hears only what a vocabulary can say: give vocabulary, or take '
                'engine moonshine or whisper'
            )
        return PocketSphinx(vocabulary, wake)
    if name == 'moonshine':
        return Moonshine()
    if name == 'whisper':
        return Whisper(model, device)
    raise SettingsError(f'no speech engine {name!r}: they are {", ".join(ENGINES)}')


def _missing(package: str) -> SettingsError:
    return SettingsError(f"speech needs the package {package}: pip install 'lisa_ros[voice]'")


class PocketSphinx:
    """CMU's recogniser with a grammar, and a free row of phonemes beside it to judge it by.

    A grammar makes a sentence of anything, noise and other talk too. How much worse its words fit
    the sound than phonemes in any order do tells whether they were said: a word that was is a
    little worse, a word that was not by far.
    """

    name = 'pocketsphinx'

    def __init__(self, vocabulary: Vocabulary, wake: str = ''):
        try:
            import pocketsphinx
        except ImportError as error:
            raise _missing('pocketsphinx') from error
        self._decoder = pocketsphinx.Decoder(
            lm=None, loglevel='FATAL', samprate=RATE, **_BEAMS, silprob=0.1
        )
        self._pronounce(vocabulary, sorted(vocabulary.words(wake)))
        self._decoder.add_jsgf_string('said', vocabulary.grammar(wake))
        self._decoder.add_allphone_file('phonemes')
        self._log = self._decoder.get_logmath().log

    def _pronounce(self, vocabulary: Vocabulary, words: Iterable[str]) -> None:
        """Add the words that the dictionary lacks: as the vocabulary says, or a plural by rule."""
        unknown = []
        for word in words:
            sound = vocabulary.sounds.get(word) or self._decoder.lookup_word(word)
            if sound is None and word.endswith('s'):
                one = vocabulary.sounds.get(word[:-1]) or self._decoder.lookup_word(word[:-1])
                sound = one and f'{one} {"S" if one.split()[-1] in _VOICELESS else "Z"}'
            if not sound:
                unknown.append(word)
            elif not self._decoder.lookup_word(word):
                self._decoder.add_word(word, sound, True)
        if unknown:
            raise SettingsError(
                f"no pronunciation for {', '.join(unknown)}: add it to the vocabulary's `sounds`, "
                'in the phonemes of CMU (ramekin: R AE M AH K IH N)'
            )

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return the most likely sentence of the grammar, and whether it was said."""
        fits = self.fits(samples)
        worst = min((fit for _, fit in fits), default=0.0)
        sure = 1 / (1 + np.exp(-(worst - _DOUBT) / _SLOPE))
        return Transcript(' '.join(word for word, _ in fits), float(sure * _clear(samples)))

    def fits(self, samples: np.ndarray) -> list[tuple[str, float]]:
        """Return the words of the most likely sentence, each with how much worse than free
        phonemes it fits [log of the likelihood per frame of 10 ms].
        """
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
        free = np.zeros(len(samples) // 160 + 2)
        for segment in self._decode('phonemes', pcm):
            first, last = segment.start_frame, segment.end_frame
            free[first : last + 1] = self._log(segment.ascore) / (last + 1 - first)
        found = []
        for segment in self._decode('said', pcm):
            if segment.word.startswith(('<', '[', '+', '(')):  # silence, noises
                continue
            first, last = segment.start_frame, segment.end_frame
            log = self._log(segment.ascore) if segment.ascore > 0 else -7e6  # smallest double
            # a grammar's scores are in 1024ths of the phonemes'
            off = (log / 1024 - free[first : last + 1].sum()) / (last + 1 - first)
            found.append((segment.word.split('(')[0], float(off)))
        return found

    def _decode(self, search: str, pcm: bytes) -> list[Any]:
        self._decoder.activate_search(search)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        return list(self._decoder.seg() or ()) if self._decoder.hyp() is not None else []


# Narrower than the defaults: a grammar of hundreds of words then takes a third of real time.
_BEAMS = {'beam': 1e-40, 'pbeam': 1e-40, 'wbeam': 1e-24, 'maxhmmpf': 1000}
_VOICELESS = ('P', 'T', 'K', 'F', 'TH')
# How much worse the worst word fits at even chances [log per frame of 10 ms]: of 120 commands that
# were spoken (benchmarks/voice.py) words that were said lie above -30 but for a few, others below.
_DOUBT, _SLOPE = -28.0, 3.0
_LOST, _PLAIN = 10.0, 17.0  # speech over noise at which nothing, and everything, can be sure [dB]


def _clear(samples: np.ndarray) -> float:
    """Return how far an utterance stands out of the noise around it, 0..1.

    In loud noise phonemes in any order fit no better than wrong words do, and nothing is sure.
    """
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    quiet, loud = np.percentile((frames**2).mean(1), (10, 90)) + 1e-10
    return float(np.clip((10 * np.log10(loud / quiet) - _LOST) / (_PLAIN - _LOST), 0, 1))


class Moonshine:
    """Moonshine tiny, by Useful Sensors (2410.15608): any English, no confidence."""

    name = 'moonshine'

    def __init__(self) -> None:
        try:
            from moonshine_voice import ModelArch, Transcriber, get_model_path
        except ImportError as error:
            raise _missing('moonshine-voice==0.0.73') from error
        folder = Path(get_model_path('tiny-en'))
        if not folder.is_dir():
            raise SettingsError(
                f'moonshine has no model at {folder}: its wheels after 0.0.73 have none; '
                "pip install 'moonshine-voice==0.0.73'"
            )
        self._transcriber = Transcriber(str(folder), ModelArch.TINY)

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return what was said, with marks and capitals."""
        told = self._transcriber.transcribe_without_streaming(samples.tolist(), RATE)
        return Transcript(' '.join(line.text for line in told.lines).strip(), 1.0)


class Whisper:
    """A speech model of transformers, such as Whisper (2212.04356)."""

    name = 'whisper'

    def __init__(self, model: str, device: str = 'auto'):
        if not model:
            raise SettingsError(
                'whisper needs speech_model: a folder or a hub id (openai/whisper-small.en)'
            )
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        try:
            self._processor = AutoProcessor.from_pretrained(model)
            self._model = AutoModelForSpeechSeq2Seq.from_pretrained(model).to(device).eval()
        except (OSError, ValueError) as error:
            raise SettingsError(f'speech model {model}: {error}') from error
        self._device = device

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return what was said; confident as the mean word is likely."""
        made = self._processor(samples, sampling_rate=RATE, return_tensors='pt')
        with torch.no_grad():
            out = self._model.generate(
                made.input_features.to(self._device),
                return_dict_in_generate=True,
                output_scores=True,
                max_new_tokens=64,
            )
        text = self._processor.batch_decode(out.sequences, skip_special_tokens=True)[0]
        likely = self._model.compute_transition_scores(
            out.sequences, out.scores, normalize_logits=True
        )
        return Transcript(text.strip(), float(likely[0].exp().mean()))
