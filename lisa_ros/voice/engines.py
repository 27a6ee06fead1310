# SPDX-License-Identifier: Apache-2.0
"""Speech recognition engines behind one protocol: an utterance becomes a transcript.

    pocketsphinx  the default; recognizes only sentences of a vocabulary; its wheel has the model
    moonshine     recognizes any English; only the wheel of version 0.0.73 has the model
    whisper       any speech model of transformers, by folder or hub id; a CPU is too slow for it

Other speech nodes can be used instead: they publish std_msgs/String on the node's `~/command`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lisa_ros.errors import SettingsError
from lisa_ros.model.device import resolve_device
from lisa_ros.optional_packages import install_command
from lisa_ros.voice.audio import RATE, to_pcm16
from lisa_ros.voice.interpreter import Transcript
from lisa_ros.voice.settings import ENGINES
from lisa_ros.voice.vocabulary import Vocabulary


class Engine(Protocol):
    """A speech recognizer. Not thread-safe."""

    name: str

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return the transcript of an utterance, (n,) float32 in -1..1 at 16 kHz."""


def load_engine(
    name: str, vocabulary: Vocabulary | None, wake_phrase: str, model: str, device: str
) -> Engine:
    """Return an engine.

    Args:
        name: one of `voice.settings.ENGINES`.
        vocabulary: the sentences that can be said; None: any sentence.
        wake_phrase: phrase that may precede a sentence, for engines with a grammar.
        model: folder or hub id of the speech model, for whisper.
        device: cpu, cuda or auto, for whisper.

    Raises:
        SettingsError: there is no such engine, its package is not installed, the vocabulary or
            model that it needs is not given, a word of the vocabulary has no pronunciation, or
            there is no such device.
    """
    if name == 'pocketsphinx':
        if vocabulary is None:
            raise SettingsError(
                'pocketsphinx recognizes only sentences of a vocabulary, but has none: set the '
                'parameter vocabulary, or set engine to moonshine or whisper'
            )
        return PocketSphinx(vocabulary, wake_phrase)
    if name == 'moonshine':
        return Moonshine()
    if name == 'whisper':
        return Whisper(model, device)
    raise SettingsError(f'no speech engine {name!r}; expected one of {", ".join(ENGINES)}')


def _not_installed(package: str, extra: str) -> SettingsError:
    return SettingsError(f'speech needs the package {package}: {install_command(extra)}')


class PocketSphinx:
    """CMU's recognizer with a grammar; a phoneme search without grammar gives the confidence.

    With a grammar the recognizer returns a sentence for any sound, even for noise. Therefore each
    utterance is decoded a second time as phonemes in any order, the free phonemes. A word that
    was spoken is a little less likely than the free phonemes at its place. A word that was not
    spoken is far less likely.
    """

    name = 'pocketsphinx'

    def __init__(self, vocabulary: Vocabulary, wake_phrase: str = ''):
        try:
            import pocketsphinx
        except ImportError as error:
            raise _not_installed('pocketsphinx', 'voice') from error
        self._decoder = pocketsphinx.Decoder(
            lm=None, loglevel='FATAL', samprate=RATE, **_BEAMS, silprob=0.1
        )
        self._add_pronunciations(vocabulary, sorted(vocabulary.words(wake_phrase)))
        self._decoder.add_jsgf_string('grammar', vocabulary.grammar(wake_phrase))
        self._decoder.add_allphone_file('phonemes')
        self._log = self._decoder.get_logmath().log

    def _add_pronunciations(self, vocabulary: Vocabulary, words: Iterable[str]) -> None:
        """Add words that the dictionary lacks, from the vocabulary or as regular plurals."""

        def phonemes_of(word: str) -> str | None:
            return vocabulary.pronunciations.get(word) or self._decoder.lookup_word(word)

        unknown = []
        for word in words:
            phonemes = phonemes_of(word)
            if phonemes is None and word.endswith('s'):
                singular = phonemes_of(word[:-1])
                if singular:
                    phonemes = f'{singular} {"S" if singular.split()[-1] in _VOICELESS else "Z"}'
            if not phonemes:
                unknown.append(word)
            elif not self._decoder.lookup_word(word):
                self._decoder.add_word(word, phonemes, True)
        if unknown:
            raise SettingsError(
                f'no pronunciation for {", ".join(unknown)}: add it to `pronunciations` in the '
                'vocabulary, in CMU phonemes (ramekin: R AE M AH K IH N)'
            )

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return the most likely sentence of the grammar, with the confidence that it was said."""
        word_fits = self.word_fits(samples)
        worst_fit = min((fit for _, fit in word_fits), default=0.0)
        confidence = 1 / (1 + np.exp(-(worst_fit - _FIT_AT_HALF) / _FIT_SCALE))
        text = ' '.join(word for word, _ in word_fits)
        return Transcript(text, float(confidence * _noise_factor(samples)))

    def word_fits(self, samples: np.ndarray) -> list[tuple[str, float]]:
        """Return the words of the most likely sentence, each with its fit.

        The fit is the log-likelihood of the word minus that of the free phonemes at its place, per
        frame of 10 ms. It is near 0 for a word that was spoken, and far below 0 for others.
        """
        pcm = to_pcm16(samples).tobytes()
        free_log_likelihood = np.zeros(len(samples) // 160 + 2)  # of free phonemes, by frame
        for segment in self._decode('phonemes', pcm):
            first, last = segment.start_frame, segment.end_frame
            free_log_likelihood[first : last + 1] = self._log(segment.ascore) / (last + 1 - first)
        word_fits = []
        for segment in self._decode('grammar', pcm):
            if segment.word.startswith(('<', '[', '+', '(')):  # silence, noises
                continue
            first, last = segment.start_frame, segment.end_frame
            # -7e6: about the logarithm of the smallest double, in the decoder's base
            score = self._log(segment.ascore) if segment.ascore > 0 else -7e6
            log_likelihood = score / 1024  # scores of a grammar are 1024 times those of phonemes
            difference = log_likelihood - free_log_likelihood[first : last + 1].sum()
            fit = difference / (last + 1 - first)
            word_fits.append((segment.word.split('(')[0], float(fit)))
        return word_fits

    def _decode(self, search: str, pcm: bytes) -> list[Any]:
        """Return pocketsphinx's segments of 16-bit samples, by one of the two searches."""
        self._decoder.activate_search(search)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        return list(self._decoder.seg() or ()) if self._decoder.hyp() is not None else []


# Narrower beams than the defaults: with a grammar of hundreds of words, recognition then takes a
# third of the duration of the audio.
_BEAMS = {'beam': 1e-40, 'pbeam': 1e-40, 'wbeam': 1e-24, 'maxhmmpf': 1000}
_VOICELESS = ('P', 'T', 'K', 'F', 'TH')  # phonemes whose plural ends in S instead of Z
# The confidence is a logistic function of the fit of the worst word: 0.5 at the first value, with
# the second as its scale [log-likelihood per frame]. In 120 spoken commands (benchmarks/voice.py)
# the fit of nearly all spoken words is above -30, and that of other words below.
_FIT_AT_HALF, _FIT_SCALE = -28.0, 3.0
# Speech-to-noise ratio at which the confidence is 0, and from which it is not reduced [dB].
_SNR_WITHOUT_SPEECH, _SNR_OF_CLEAR_SPEECH = 10.0, 17.0


def _noise_factor(samples: np.ndarray) -> float:
    """Return a factor for the confidence, 0..1, from the speech-to-noise ratio.

    In loud noise the free phonemes are no more likely than wrong words: the fit then cannot tell
    right words from wrong ones.
    """
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    quiet, loud = np.percentile((frames**2).mean(1), (10, 90)) + 1e-10
    snr = 10 * np.log10(loud / quiet)
    return float(
        np.clip((snr - _SNR_WITHOUT_SPEECH) / (_SNR_OF_CLEAR_SPEECH - _SNR_WITHOUT_SPEECH), 0, 1)
    )


class Moonshine:
    """Moonshine tiny by Useful Sensors (arXiv 2410.15608): recognizes any English.

    It gives no confidence: 1.0 is returned.
    """

    name = 'moonshine'

    def __init__(self) -> None:
        try:
            from moonshine_voice import ModelArch, Transcriber, get_model_path
        except ImportError as error:
            raise _not_installed('moonshine-voice==0.0.73', 'moonshine') from error
        folder = Path(get_model_path('tiny-en'))
        if not folder.is_dir():
            raise SettingsError(
                f'moonshine has no model at {folder}: only the wheel of version 0.0.73 contains '
                f'it; {install_command("moonshine")}'
            )
        self._transcriber = Transcriber(str(folder), ModelArch.TINY)

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return the transcript, with punctuation and capitals."""
        transcript = self._transcriber.transcribe_without_streaming(samples.tolist(), RATE)
        return Transcript(' '.join(line.text for line in transcript.lines).strip(), 1.0)


class Whisper:
    """A speech model of transformers, such as Whisper (arXiv 2212.04356)."""

    name = 'whisper'

    def __init__(self, model: str, device: str = 'auto'):
        if not model:
            raise SettingsError(
                'engine whisper needs the parameter speech_model: a folder or a hub id, such as '
                'openai/whisper-small.en'
            )
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        self._device = resolve_device(device)
        try:
            options = {'local_files_only': Path(model).is_dir(), 'trust_remote_code': False}
            self._processor = AutoProcessor.from_pretrained(model, **options)
            self._model = AutoModelForSpeechSeq2Seq.from_pretrained(model, **options)
        except (OSError, ValueError) as error:
            raise SettingsError(f'speech model {model}: {error}') from error
        if self._device.type == 'cpu':  # as stored, often float16: a CPU is slow with it
            self._model.float()
        self._model.to(self._device).eval()

    def transcribe(self, samples: np.ndarray) -> Transcript:
        """Return the transcript; its confidence is the mean probability of its tokens."""
        inputs = self._processor(samples, sampling_rate=RATE, return_tensors='pt')
        with torch.no_grad():
            output = self._model.generate(
                inputs.input_features.to(self._device, self._model.dtype),
                return_dict_in_generate=True,
                output_scores=True,
                max_new_tokens=64,
            )
        text = self._processor.batch_decode(output.sequences, skip_special_tokens=True)[0]
        log_probabilities = self._model.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        return Transcript(text.strip(), float(log_probabilities[0].exp().mean()))
