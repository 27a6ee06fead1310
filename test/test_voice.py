# SPDX-License-Identifier: Apache-2.0
"""Speech to commands without ROS: the real detector and engines on sound of flite's voices."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('pocketsphinx', reason="needs pip install 'lisa_ros[voice]'")
pytest.importorskip('silero_vad', reason="needs pip install 'lisa_ros[voice]'")
pytest.importorskip('rapidfuzz', reason="needs pip install 'lisa_ros[voice]'")

from lisa_ros import cli
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.session.command_parser import STOP
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES, SIZES
from lisa_ros.voice import audio, engines
from lisa_ros.voice.engines import Transcript
from lisa_ros.voice.listener import Listener, Outcome, listener_of
from lisa_ros.voice.settings import VoiceSettings
from lisa_ros.voice.vad import UtteranceDetector
from lisa_ros.voice.vocabulary import Vocabulary, normalize, plural

SOUNDS = Path(__file__).parent / 'data' / 'voice'
RATE = audio.RATE


@pytest.fixture(scope='module')
def vocabulary():
    return Vocabulary.named('lisa-tabletop')


@pytest.fixture(scope='module')
def sphinx(vocabulary):
    return engines.load('pocketsphinx', vocabulary, 'hey lisa', '', 'cpu')


def said(name):
    """A WAV file's sound between half seconds of a room's quiet hiss."""
    samples = np.pad(audio.read_wav(SOUNDS / f'{name}.wav'), RATE)
    hiss = 5e-4 * np.random.default_rng(0).standard_normal(len(samples))
    return (samples + hiss).astype(np.float32)


def heard(listener, samples, piece=1600):
    """All that a listener hears of samples that come in pieces."""
    found = []
    for start in range(0, len(samples), piece):
        found += listener.feed(samples[start : start + piece])
    return [*found, *listener.finish()]


class Parrot:
    """An engine that hears what it is told to; for what the listener makes of words."""

    name = 'parrot'

    def __init__(self, *words):
        self.words = list(words)

    def hear(self, samples):
        return self.words.pop(0)


# ---- sound


def test_sixteen_bit_samples_come_back():
    samples = np.array([0.0, 0.5, -0.5, -1.0, 0.999], np.float32)
    assert np.allclose(audio.from_pcm16(audio.to_pcm16(samples)), samples, atol=1e-4)


def test_half_a_sample_is_named():
    with pytest.raises(DataError, match='3 bytes of sound'):
        audio.from_pcm16(b'abc')


def test_a_wav_file_of_another_rate_and_two_channels_is_heard_at_ours(tmp_path):
    import wave

    t = np.arange(44100) / 44100
    tone = (np.sin(2 * np.pi * 440 * t) * 20000).astype('<i2')
    with wave.open(str(tmp_path / 'tone.wav'), 'wb') as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(np.stack([tone, tone], 1).tobytes())
    samples = audio.read_wav(tmp_path / 'tone.wav')
    assert len(samples) == pytest.approx(RATE, abs=2)
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * RATE / len(samples) == pytest.approx(440, abs=1.5)


@pytest.mark.parametrize('content', [b'', b'RIFF', b'no sound at all'])
def test_what_is_no_wav_file_is_one_line(tmp_path, content):
    (tmp_path / 'x.wav').write_bytes(content)
    with pytest.raises(DataError, match=r'x\.wav: no WAV file'):
        audio.read_wav(tmp_path / 'x.wav')


# ---- what can be said


def test_the_vocabulary_of_lisa_tabletop_has_its_things_looks_and_needs(vocabulary):
    assert list(vocabulary.things) == list(OBJECT_CATEGORIES)
    assert {*COLOURS, *SIZES} <= set(vocabulary.looks)
    needs = {normalize(need) for kind in OBJECT_CATEGORIES.values() for need in kind.needs}
    assert needs <= set(vocabulary.needs)


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ('Find the red mug.', 'please hand me a red mug'),
        ('Please segment the pan in this image.', 'the pan'),
        ('something to read', 'Hand me something to read, please!'),
        ('watch the mug', 'the mug'),
        ('stop it', 'cancel'),
    ],
)
def test_verb_article_and_courtesy_change_nothing(vocabulary, one, other):
    assert vocabulary.meaning(one) == vocabulary.meaning(other)


def test_other_things_mean_something_else(vocabulary):
    ways = ['the mug', 'the red mug', 'all the mugs', 'and the mug', 'stop', 'the mug and the pan']
    assert len({vocabulary.meaning(way) for way in ways}) == len(ways)


def test_what_can_be_said_stands_as_it_is(vocabulary):
    assert vocabulary.understand('hand me the red mug') == ('hand me the red mug', 1.0)
    assert vocabulary.understand('watch the red mug') == ('watch: the red mug', 1.0)


def test_what_was_misspelt_becomes_the_nearest_thing_and_less_sure(vocabulary):
    command, sure = vocabulary.understand('Where is the wramekin?')
    assert vocabulary.meaning(command) == 'ramekin'
    assert 0.5 < sure < 1
    assert vocabulary.understand('the weather is nice today')[1] < 0.5
    assert vocabulary.understand('please') == ('', 0.0)


def test_plurals_are_those_of_the_grammar_that_the_model_learnt():
    from lisa_ros.tabletop import answer_text

    assert all(plural(kind) == answer_text._plural(kind) for kind in OBJECT_CATEGORIES)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('things: mug', 'things must be a list'),
        ('objects: [mug]', 'expected looks, needs.*found .*objects'),
        ('verbs: [find]', 'nothing can be said'),
        ('{', 'cannot be read'),
        ('- mug', 'expected looks'),
    ],
)
def test_a_broken_vocabulary_is_named(tmp_path, text, message):
    (tmp_path / 'v.yaml').write_text(text)
    with pytest.raises(SettingsError, match=message):
        Vocabulary.load(tmp_path / 'v.yaml')


def test_a_small_vocabulary_will_do(tmp_path):
    (tmp_path / 'v.yaml').write_text('things: [drill, wrench]\nverbs: [get]\n')
    small = Vocabulary.load(tmp_path / 'v.yaml')
    engine = engines.load('pocketsphinx', small, '', '', 'cpu')
    assert engine.transcribe(said('find_the_yellow_mug')).confidence < 0.5


def test_a_word_without_a_pronunciation_is_named(tmp_path):
    small = Vocabulary(things=('florbel',))
    with pytest.raises(SettingsError, match='no pronunciation for florbel'):
        engines.load('pocketsphinx', small, '', '', 'cpu')
    told = Vocabulary(things=('florbel',), sounds={'florbel': 'F L AO R B EH L'})
    assert engines.load('pocketsphinx', told, '', '', 'cpu').name == 'pocketsphinx'


# ---- engines


def test_a_command_is_heard_and_sure(sphinx):
    words = sphinx.hear(said('find_the_yellow_mug'))
    assert words.text == 'find the yellow mug'
    assert words.confidence > 0.5


def test_talk_that_is_no_command_is_not_sure(sphinx):
    assert sphinx.hear(said('open_the_window')).confidence < 0.2


def test_an_engine_that_is_not_there_is_named(vocabulary):
    with pytest.raises(SettingsError, match='no speech engine'):
        engines.load('parrot', vocabulary, '', '', 'cpu')
    with pytest.raises(SettingsError, match='only what a vocabulary can say'):
        engines.load('pocketsphinx', None, '', '', 'cpu')
    with pytest.raises(SettingsError, match='speech_model'):
        engines.load('whisper', None, '', '', 'cpu')
    with pytest.raises(SettingsError, match='no/such'):
        engines.load('whisper', None, '', './no/such', 'cpu')


def test_whisper_of_a_folder_hears(tmp_path):
    """A tiny one with random weights: it says nothing sensible, through the whole real path."""
    whisper_of_toy_size(tmp_path)
    engine = engines.load('whisper', None, '', str(tmp_path), 'cpu')
    words = engine.transcribe(said('stop'))
    assert isinstance(words.text, str)
    assert 0 <= words.confidence <= 1


def whisper_of_toy_size(folder):
    from tokenizers import Tokenizer, models
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=40, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=80,
        decoder_start_token_id=1, eos_token_id=2, pad_token_id=2, bos_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.begin_suppress_tokens = model.generation_config.suppress_tokens = None
    model.save_pretrained(folder)
    vocabulary = {f'w{i}': i for i in range(40)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token='w0'))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token='w2', pad_token='w2')
    WhisperProcessor.tokenizer_class = 'PreTrainedTokenizerFast'
    fast.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def test_moonshine_hears_any_english():
    pytest.importorskip('moonshine_voice', reason="needs pip install 'lisa_ros[moonshine]'")
    engine = engines.load('moonshine', None, '', '', 'cpu')
    assert 'yellow' in engine.transcribe(said('find_the_yellow_mug')).text.lower()
    vocabulary = Vocabulary.named('lisa-tabletop')
    assert vocabulary.meaning(engine.transcribe(said('stop')).text) == 'stop'


# ---- utterances


def test_utterances_are_cut_out_and_torch_keeps_its_threads():
    torch.set_num_threads(2)
    speech = UtteranceDetector()
    assert torch.get_num_threads() == 2
    row = np.concatenate([said('stop'), said('find_the_yellow_mug')])
    ended = [u for u in speech.feed(row) if u.ended]
    assert len(ended) == 2
    lengths = [len(u.samples) / RATE for u in ended]
    assert 0.5 < lengths[0] < 1.8 < lengths[1] < 3.5


def test_how_sound_is_cut_into_pieces_does_not_matter():
    row = said('find_the_yellow_mug')

    def utterance(piece):
        speech = UtteranceDetector()
        ends = []
        for start in range(0, len(row), piece):
            ends += [u for u in speech.feed(row[start : start + piece]) if u.ended]
        return ends

    (whole,), (parts,) = utterance(len(row)), utterance(333)
    assert np.array_equal(whole.samples, parts.samples)


def test_the_end_of_the_sound_ends_an_utterance():
    speech = UtteranceDetector()
    row = said('find_the_yellow_mug')[: int(2.0 * RATE)]
    assert not any(u.ended for u in speech.feed(row))
    assert [u.ended for u in speech.finish()] == [True]


def test_noise_alone_is_no_utterance():
    speech = UtteranceDetector()
    hiss = 0.05 * np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
    assert not list(speech.feed(hiss))


# ---- from sound to commands


def test_a_command_comes_out_after_guesses(sphinx, vocabulary):
    listener = Listener(sphinx, vocabulary, partial=0.5)
    found = heard(listener, said('find_the_yellow_mug'))
    assert found[-1].outcome is Outcome.COMMAND
    assert found[-1].command == 'find the yellow mug'
    assert {h.outcome for h in found[:-1]} == {Outcome.PARTIAL}
    assert all(h.command == '' for h in found[:-1])


def test_other_talk_is_told_and_does_nothing(sphinx, vocabulary):
    (found,) = heard(Listener(sphinx, vocabulary, partial=0), said('open_the_window'))
    assert found.outcome is Outcome.UNSURE
    assert found.confidence < 0.5


def test_stop_acts_while_it_is_being_said(sphinx, vocabulary):
    listener = Listener(sphinx, vocabulary, partial=0.1)
    row = said('stop')
    spoken = RATE + len(audio.read_wav(SOUNDS / 'stop.wav'))  # where the word ends
    first = []
    for start in range(0, len(row), 800):
        first += [(start + 800, h) for h in listener.feed(row[start : start + 800])]
    (at, found), *others = [(at, h) for at, h in first if h.outcome is Outcome.COMMAND]
    assert found.command == 'stop'
    assert not others  # the end of the word is no second command
    assert (at - spoken) / RATE < 0.4  # the pause that ends what is said is half a second


def test_speech_without_words_is_said_so(vocabulary):
    listener = Listener(Parrot(Transcript('', 0.0)), vocabulary, partial=0)
    (found,) = heard(listener, said('stop'))
    assert (found.outcome, found.command) == (Outcome.EMPTY, '')


def test_any_words_are_a_command_without_a_vocabulary():
    listener = Listener(Parrot(), None)
    assert listener.judge(Transcript('Find the wrench.', 0.9))[:1] == (Outcome.COMMAND,)
    assert listener.judge(Transcript('Find the wrench.', 0.3))[:1] == (Outcome.UNSURE,)


def test_the_wake_phrase_opens_the_ear_for_a_while(vocabulary):
    now = [0.0]
    listener = Listener(
        Parrot(), vocabulary, wake='Hey Lisa', awake=5.0, clock=lambda: now[0]
    )  # fmt: skip

    def judged(text):
        outcome, _, command, _ = listener.judge(Transcript(text, 1.0))
        return outcome, command

    assert judged('find the mug') == (Outcome.ASLEEP, '')
    assert judged('hey lisa find the mug') == (Outcome.COMMAND, 'find the mug')
    assert judged('find the pan') == (Outcome.ASLEEP, '')  # each command is called for
    assert judged('Hey, Lisa!')[0] is Outcome.AWAKE
    now[0] = 4.0
    assert judged('find the pan') == (Outcome.COMMAND, 'find the pan')
    assert judged('hey lisa')[0] is Outcome.AWAKE
    now[0] = 20.0
    assert judged('find the pan') == (Outcome.ASLEEP, '')
    assert judged('stop') == (Outcome.COMMAND, 'stop')  # at any time


def test_the_orders_that_stop_can_be_said(vocabulary):
    assert all(vocabulary.meaning(way) == 'stop' for way in STOP)
    assert 'stop' in vocabulary.sayable


# ---- lisa-ros listen


def test_the_command_line_tells_what_it_understands(capsys):
    files = [str(SOUNDS / 'find_the_yellow_mug.wav'), str(SOUNDS / 'stop.wav')]
    assert cli.main(['listen', *files, '--json']) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['command'] for line in lines] == ['find the yellow mug', 'stop']
    assert {line['outcome'] for line in lines} == {'COMMAND'}


def test_a_file_without_speech_is_said_so(tmp_path, capsys):
    audio.write_wav(tmp_path / 'quiet.wav', np.zeros(RATE, np.float32))
    assert cli.main(['listen', str(tmp_path / 'quiet.wav')]) == 0
    assert 'no speech in 1.0 s' in capsys.readouterr().out


def test_settings_make_the_listener():
    listener, about = listener_of(VoiceSettings(wake_phrase='hey lisa'))
    assert isinstance(listener, Listener)
    assert about.startswith('pocketsphinx listens for ')
    assert about.endswith('after "hey lisa"')


def test_a_click_is_nothing_and_what_follows_is_heard(sphinx, vocabulary):
    listener = Listener(sphinx, vocabulary, partial=0.1)
    row = said('find_the_yellow_mug')
    click = row[RATE + 2400 : RATE + 3600]  # 75 ms of a word
    found = heard(listener, np.concatenate([np.zeros(RATE, np.float32), click, row]))
    assert [h.command for h in found if h.outcome is Outcome.COMMAND] == ['find the yellow mug']
    assert {h.outcome for h in found} <= {Outcome.PARTIAL, Outcome.COMMAND}


def sentence(rng, rules, text):
    """A random sentence of a JSGF rule, by its alternatives, options and references."""
    alternatives = [part.strip() for part in text.split(' | ')]
    words = []
    for part in alternatives[rng.integers(len(alternatives))].split():
        optional, name = part.startswith('['), part.strip('[]')
        if name.startswith('/') or (optional and rng.random() < 0.5):
            continue  # a weight; or left out
        words.append(sentence(rng, rules, rules[name[1:-1]]) if name[0] == '<' else name)
    return ' '.join(words)


def test_whatever_the_grammar_makes_is_understood_as_it_stands(vocabulary):
    lines = vocabulary.grammar().replace('public ', '').splitlines()[2:]
    rules = dict(line.rstrip(';')[1:].split('> = ', 1) for line in lines if line)
    rng = np.random.default_rng(0)
    said = {sentence(rng, rules, rules['said']) for _ in range(5000)}
    assert len(said) > 2000
    lost = [words for words in said if vocabulary.understand(words)[1] < 1]
    assert not lost, lost[:10]
