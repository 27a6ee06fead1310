# SPDX-License-Identifier: Apache-2.0
"""Speech to commands without ROS: the real detector and engines on speech made by flite."""

import json
import re
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('pocketsphinx', reason="needs pip install 'lisa_ros[voice]'")
pytest.importorskip('silero_vad', reason="needs pip install 'lisa_ros[voice]'")
pytest.importorskip('rapidfuzz', reason="needs pip install 'lisa_ros[voice]'")

from lisa_ros import cli
from lisa_ros.english import plural
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.optional_packages import install_command
from lisa_ros.session.command_parser import STOP
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES, SIZES
from lisa_ros.voice import audio, engines
from lisa_ros.voice.interpreter import Interpreter, Outcome, Transcript, is_stop
from lisa_ros.voice.listener import Listener, make_listener
from lisa_ros.voice.settings import VoiceSettings
from lisa_ros.voice.transcript_text import normalize
from lisa_ros.voice.vad import UtteranceDetector
from lisa_ros.voice.vocabulary import Vocabulary

SOUNDS = Path(__file__).parent / 'data' / 'voice'
RATE = audio.RATE


@pytest.fixture(scope='module')
def vocabulary():
    return Vocabulary.open('lisa-tabletop')


@pytest.fixture(scope='module')
def sphinx(vocabulary):
    return engines.load_engine('pocketsphinx', vocabulary, 'hey lisa', '', 'cpu')


def speech(name):
    """Return the samples of a WAV file with a second of quiet noise before and after."""
    samples = np.pad(audio.read_wav(SOUNDS / f'{name}.wav'), RATE)
    hiss = 5e-4 * np.random.default_rng(0).standard_normal(len(samples))
    return (samples + hiss).astype(np.float32)


def recognize(listener, samples, piece=1600):
    """Feed samples piece by piece; return all results."""
    recognitions = []
    for start in range(0, len(samples), piece):
        recognitions += listener.feed(samples[start : start + piece])
    return [*recognitions, *listener.finish()]


class ScriptedEngine:
    """An engine that returns transcripts from a list."""

    name = 'scripted'

    def __init__(self, *transcripts):
        self.transcripts = list(transcripts)

    def transcribe(self, samples):
        return self.transcripts.pop(0)


# ---- audio


def test_pcm16_round_trip():
    samples = np.array([0.0, 0.5, -0.5, -1.0, 0.999], np.float32)
    assert np.allclose(audio.from_pcm16(audio.to_pcm16(samples)), samples, atol=1e-4)


def test_an_odd_number_of_bytes_is_refused():
    with pytest.raises(DataError, match='3 bytes of audio'):
        audio.from_pcm16(b'abc')


def test_a_stereo_wav_file_of_another_rate_is_converted(tmp_path):
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


@pytest.mark.parametrize('content', [b'', b'RIFF', b'not audio'])
def test_a_file_that_is_not_a_wav_file_is_an_error(tmp_path, content):
    (tmp_path / 'x.wav').write_bytes(content)
    with pytest.raises(DataError, match=r'x\.wav: cannot be read as a WAV file'):
        audio.read_wav(tmp_path / 'x.wav')


# ---- vocabulary


def test_the_vocabulary_of_lisa_tabletop_has_its_objects_attributes_and_needs(vocabulary):
    assert list(vocabulary.objects) == list(OBJECT_CATEGORIES)
    assert {*COLOURS, *SIZES} <= set(vocabulary.attributes)
    needs = {normalize(need) for category in OBJECT_CATEGORIES.values() for need in category.needs}
    assert needs <= set(vocabulary.needs)


@pytest.mark.parametrize(
    ('text', 'same'),
    [
        ('Find the red mug.', 'please hand me a red mug'),
        ('Please segment the pan in this image.', 'the pan'),
        ('something to read', 'Hand me something to read, please!'),
        ('watch the mug', 'the mug'),
        ('stop it', 'cancel'),
    ],
)
def test_verb_article_and_courtesy_do_not_change_the_meaning(vocabulary, text, same):
    assert vocabulary.meaning(text) == vocabulary.meaning(same)


def test_different_targets_have_different_meanings(vocabulary):
    commands = [
        'the mug',
        'the red mug',
        'all the mugs',
        'and the mug',
        'stop',
        'the mug and the pan',
    ]
    assert len({vocabulary.meaning(command) for command in commands}) == len(commands)


def test_a_sentence_of_the_vocabulary_is_returned_unchanged(vocabulary):
    assert vocabulary.match('hand me the red mug') == ('hand me the red mug', 1.0)
    assert vocabulary.match('watch the red mug') == ('watch: the red mug', 1.0)


@pytest.mark.parametrize(
    ('text', 'command'),
    [
        ('watch the cofee pot', 'watch: the coffee pot'),
        ('Watch the water botle.', 'watch: the water bottle'),
        ('watch all the yellow coffee pot', 'watch: all the yellow coffee pots'),
        ('watch the water bottle left of the mugg', 'watch: the water bottle left of the mug'),
        ('please watch the coffee pot', 'watch: the coffee pot'),
        ('please watch the tallest coffe pot', 'watch: the tallest coffee pot'),
        ('watch something to drink from', 'watch: something to drink from'),
    ],
)
def test_watch_is_kept_whatever_it_precedes(vocabulary, text, command):
    matched, confidence = vocabulary.match(text)
    assert matched == command
    assert confidence > 0.7


def test_watch_precedes_neither_stop_nor_what_refers_to_the_dialogue(vocabulary):
    assert vocabulary.match('watch stop') == ('stop', 1.0)
    assert vocabulary.match('stop watching') == ('stop watching', 1.0)
    assert vocabulary.match('the other one') == ('the other one', 1.0)
    for text in ('watch the other one', 'watch and the bowl', 'watch', 'please watch'):
        assert vocabulary.match(text)[1] < 0.7
    small = Vocabulary(dialogue_phrases=('the other one',))
    assert small.match('watch the other one') == ('', 0.0)


@pytest.mark.parametrize(
    ('text', 'command'),
    [
        ('Please stop.', 'stop'),
        ('Stop, please!', 'stop'),
        ('Stop that.', 'stop that'),
        ('Stop this, please.', 'stop'),
        ('stop the', 'stop'),
        ('Never mind, please.', 'stop'),
        ('cancel this', 'cancel this'),
        ('stop stop', 'stop'),
        ('please watch stop', 'stop'),
        ('stopp', 'stop'),
    ],
)
def test_stop_is_understood_with_courtesy(vocabulary, text, command):
    matched, confidence = vocabulary.match(text)
    assert matched == command
    assert confidence > 0.7
    asleep = Interpreter(vocabulary, wake_phrase='hey lisa')
    assert asleep.interpret(Transcript(text, 1.0)).command == command


def test_an_object_may_be_named_stop():
    small = Vocabulary(verbs=('find',), objects=('stop', 'stop sign'))
    assert small.match('find the stop') == ('find the stop', 1.0)
    assert small.match('find the stop sign') == ('find the stop sign', 1.0)
    assert small.match('Please stop.')[0] == 'please stop'
    assert is_stop('please stop')


def test_a_misspelt_name_becomes_the_most_similar_with_less_confidence(vocabulary):
    command, confidence = vocabulary.match('Where is the wramekin?')
    assert vocabulary.meaning(command) == 'ramekin'
    assert 0.5 < confidence < 1
    assert vocabulary.match('the weather is nice today')[1] < 0.5
    assert vocabulary.match('please') == ('', 0.0)


@pytest.mark.parametrize(
    ('noun', 'expected'), [('mug', 'mugs'), ('storage box', 'storage boxes'), ('scissors',) * 2]
)
def test_plural(noun, expected):
    assert plural(noun) == expected


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('objects: mug', 'objects must be a list'),
        ('things: [mug]', 'found .*things.*expected only the keys attributes, dialogue_phrases'),
        ('verbs: [find]', 'has no sentences'),
        ('{', 'cannot be read'),
        ('- mug', 'found list; expected only the keys attributes'),
        ('{objects: [mug], 3: [a], when: [b]}', "found .*'3', 'when'"),
        ('{objects: [mug], 2.5: [a]}', "found .*'2.5'"),
        ('{objects: [mug], null: [a], when: [b]}', "found .*'None', 'when'"),
        (
            '{objects: [mug], pronunciations: [mug]}',
            r"pronunciations is \['mug'\]; expected a word and its CMU",
        ),
        (
            '{objects: [mug], pronunciations: M AH G}',
            "pronunciations is 'M AH G'; expected a word and its CMU",
        ),
        (
            '{objects: [mug], pronunciations: 7}',
            'pronunciations is 7; expected a word and its CMU',
        ),
        (
            '{objects: [mug], pronunciations: {mug: [M, AH, G]}}',
            'pronunciations of mug is .*expected text',
        ),
    ],
)
def test_a_broken_vocabulary_is_an_error(tmp_path, text, message):
    (tmp_path / 'v.yaml').write_text(text)
    with pytest.raises(SettingsError, match=message):
        Vocabulary.load(tmp_path / 'v.yaml')


def test_a_small_vocabulary_is_enough(tmp_path):
    (tmp_path / 'v.yaml').write_text('objects: [drill, wrench]\nverbs: [get]\n')
    small = Vocabulary.load(tmp_path / 'v.yaml')
    engine = engines.load_engine('pocketsphinx', small, '', '', 'cpu')
    assert engine.transcribe(speech('find_the_yellow_mug')).confidence < 0.5


def test_a_word_without_a_pronunciation_is_an_error(tmp_path):
    small = Vocabulary(objects=('florbel',))
    with pytest.raises(SettingsError, match='no pronunciation for florbel'):
        engines.load_engine('pocketsphinx', small, '', '', 'cpu')
    complete = Vocabulary(objects=('florbel',), pronunciations={'florbel': 'F L AO R B EH L'})
    assert engines.load_engine('pocketsphinx', complete, '', '', 'cpu').name == 'pocketsphinx'


# ---- engines


def test_a_command_is_recognized_with_confidence(sphinx):
    transcript = sphinx.transcribe(speech('find_the_yellow_mug'))
    assert transcript.text == 'find the yellow mug'
    assert transcript.confidence > 0.5


def test_other_talk_has_low_confidence(sphinx):
    assert sphinx.transcribe(speech('open_the_window')).confidence < 0.2


def test_an_engine_that_is_not_available_is_an_error(vocabulary):
    with pytest.raises(SettingsError, match='no speech engine'):
        engines.load_engine('none such', vocabulary, '', '', 'cpu')
    with pytest.raises(SettingsError, match='only sentences of a vocabulary'):
        engines.load_engine('pocketsphinx', None, '', '', 'cpu')
    with pytest.raises(SettingsError, match='speech_model'):
        engines.load_engine('whisper', None, '', '', 'cpu')
    with pytest.raises(SettingsError, match='no/such'):
        engines.load_engine('whisper', None, '', './no/such', 'cpu')


@pytest.mark.parametrize(
    ('engine', 'module', 'extra'),
    [
        ('pocketsphinx', 'pocketsphinx', 'voice'),
        ('moonshine', 'moonshine_voice', 'moonshine'),
    ],
)
def test_the_error_of_an_engine_that_is_not_installed_names_its_extra(
    engine, module, extra, vocabulary, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=re.escape(install_command(extra))):
        engines.load_engine(engine, vocabulary, '', '', 'cpu')


@pytest.mark.parametrize('device', ['cuda:99', 'gpu'])
def test_whisper_on_a_device_that_is_not_there_is_an_error(device, tmp_path):
    with pytest.raises(SettingsError, match=device):
        engines.load_engine('whisper', None, '', str(tmp_path), device)


@pytest.mark.parametrize('stored', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('device', ['cpu', *['cuda'] * torch.cuda.is_available()])
def test_whisper_is_loaded_from_a_folder(tmp_path, stored, device):
    """A tiny model with random weights: its text has no meaning, but all steps run."""
    write_toy_whisper(tmp_path, stored)
    engine = engines.load_engine('whisper', None, '', str(tmp_path), device)
    transcript = engine.transcribe(speech('stop'))
    assert isinstance(transcript.text, str)
    assert 0 <= transcript.confidence <= 1


def write_toy_whisper(folder, dtype):
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
    model.to(dtype).save_pretrained(folder)
    vocabulary = {f'w{i}': i for i in range(40)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='w0'))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='w2', pad_token='w2')
    WhisperProcessor.tokenizer_class = 'PreTrainedTokenizerFast'
    fast.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def test_moonshine_recognizes_any_english():
    pytest.importorskip('moonshine_voice', reason="needs pip install 'lisa_ros[moonshine]'")
    engine = engines.load_engine('moonshine', None, '', '', 'cpu')
    assert 'yellow' in engine.transcribe(speech('find_the_yellow_mug')).text.lower()
    vocabulary = Vocabulary.open('lisa-tabletop')
    assert vocabulary.meaning(engine.transcribe(speech('stop')).text) == 'stop'


# ---- utterances


def test_utterances_are_cut_out_and_the_number_of_threads_is_kept():
    torch.set_num_threads(2)
    detector = UtteranceDetector()
    assert torch.get_num_threads() == 2
    samples = np.concatenate([speech('stop'), speech('find_the_yellow_mug')])
    ended = [u for u in detector.feed(samples) if u.ended]
    assert len(ended) == 2
    lengths = [len(u.samples) / RATE for u in ended]
    assert 0.5 < lengths[0] < 1.8 < lengths[1] < 3.5


def test_the_size_of_the_pieces_does_not_matter():
    samples = speech('find_the_yellow_mug')

    def utterances(piece):
        detector = UtteranceDetector()
        ended = []
        for start in range(0, len(samples), piece):
            ended += [u for u in detector.feed(samples[start : start + piece]) if u.ended]
        return ended

    (at_once,), (in_pieces,) = utterances(len(samples)), utterances(333)
    assert np.array_equal(at_once.samples, in_pieces.samples)


def test_the_end_of_the_stream_ends_an_utterance():
    detector = UtteranceDetector()
    samples = speech('find_the_yellow_mug')[: int(2.0 * RATE)]
    assert not any(u.ended for u in detector.feed(samples))
    assert [u.ended for u in detector.finish()] == [True]


def test_a_new_stream_does_not_begin_with_the_end_of_the_last_one():
    detector = UtteranceDetector()
    noise = np.full(RATE, 0.001, np.float32)
    assert not list(detector.feed(noise))
    assert not list(detector.finish())
    samples = speech('find_the_yellow_mug')
    after, alone = (
        [u for u in d.feed(samples) if u.ended] for d in (detector, UtteranceDetector())
    )
    assert np.array_equal(after[0].samples, alone[0].samples)


def test_noise_is_not_an_utterance():
    detector = UtteranceDetector()
    hiss = 0.05 * np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
    assert not list(detector.feed(hiss))


# ---- from audio to commands


def test_a_command_follows_partial_results(sphinx, vocabulary):
    listener = Listener(sphinx, Interpreter(vocabulary), partial_every=0.5)
    recognitions = recognize(listener, speech('find_the_yellow_mug'))
    assert recognitions[-1].outcome is Outcome.COMMAND
    assert recognitions[-1].command == 'find the yellow mug'
    assert {r.outcome for r in recognitions[:-1]} == {Outcome.PARTIAL}
    assert all(r.command == '' for r in recognitions[:-1])


def test_other_talk_is_reported_as_unsure(sphinx, vocabulary):
    (recognition,) = recognize(
        Listener(sphinx, Interpreter(vocabulary), partial_every=0), speech('open_the_window')
    )
    assert recognition.outcome is Outcome.UNSURE
    assert recognition.confidence < 0.5


def test_stop_is_recognized_before_the_utterance_ends(sphinx, vocabulary):
    listener = Listener(sphinx, Interpreter(vocabulary), partial_every=0.1)
    samples = speech('stop')
    end_of_word = RATE + len(audio.read_wav(SOUNDS / 'stop.wav'))
    recognitions = []
    for start in range(0, len(samples), 800):
        recognitions += [(start + 800, r) for r in listener.feed(samples[start : start + 800])]
    (at, stop), *others = [(at, r) for at, r in recognitions if r.outcome is Outcome.COMMAND]
    assert stop.command == 'stop'
    assert not others  # the end of the utterance is not a second command
    assert (at - end_of_word) / RATE < 0.4  # the pause that ends an utterance is 0.5 s


def test_speech_without_words_is_empty(vocabulary):
    engine = ScriptedEngine(Transcript('', 0.0))
    listener = Listener(engine, Interpreter(vocabulary), partial_every=0)
    (recognition,) = recognize(listener, speech('stop'))
    assert (recognition.outcome, recognition.command) == (Outcome.EMPTY, '')


def test_without_a_vocabulary_any_text_is_a_command():
    outcomes = [
        Interpreter().interpret(Transcript('Find the wrench.', confidence)).outcome
        for confidence in (0.9, 0.3)
    ]
    assert outcomes == [Outcome.COMMAND, Outcome.UNSURE]


@pytest.mark.parametrize(
    'text',
    [
        'Finde die größte Tasse.',
        'encuentra el tazón pequeño',
        '給我杯子',
        'लाल कप ढूंढो',
        'the 2.5 mm screw',
        "what's left of the mug?",
        'front: the mug',
    ],
)
def test_without_a_vocabulary_a_transcript_is_sent_as_it_is(text):
    recognition = Interpreter().interpret(Transcript(text, 1.0))
    assert (recognition.outcome, recognition.command) == (Outcome.COMMAND, text)


@pytest.mark.parametrize(
    ('phrase', 'text', 'outcome', 'command'),
    [
        ('Hör zu', 'Hör zu: finde die größte Tasse.', 'COMMAND', 'finde die größte Tasse.'),
        ('Hör zu', 'Ho\u0308r zu, finde die Tasse', 'COMMAND', 'finde die Tasse'),
        ('你好', '你好給我杯子', 'COMMAND', '給我杯子'),
        ('你好', '你好，給我杯子。', 'COMMAND', '給我杯子。'),
        ('你好', '你好！', 'AWAKE', ''),
        ('你好', '給我杯子', 'ASLEEP', ''),
        ('नमस्ते', 'नमस्ते, लाल कप ढूंढो', 'COMMAND', 'लाल कप ढूंढो'),
        ('hey lisa', 'Hey, Lisa! Find the 2.5 mm screw.', 'COMMAND', 'Find the 2.5 mm screw.'),
        ('hey lisa', '"Hey Lisa", find the mug', 'COMMAND', 'find the mug'),
        ('hey lisa', 'Hey Lisa)', 'AWAKE', ''),
        ('hey lisa', 'Hey Lisandra, find the mug', 'ASLEEP', ''),
        ('hey lisa', 'hey', 'ASLEEP', ''),
        ('hey lisa', 'Hey Lisa... "Find the cup."', 'COMMAND', 'Find the cup.'),
        ('hey lisa', '“Hey Lisa, find the cup.”', 'COMMAND', 'find the cup.'),
        ('hey lisa', 'Hey Lisa, "A4" paper please', 'COMMAND', '"A4" paper please'),
        ('hey "lisa"', 'Hey "Lisa", find the "A4"', 'COMMAND', 'find the "A4"'),
        ('hey lisa', 'Hey Lisa / find the cup', 'COMMAND', 'find the cup'),
        ('hey lisa', 'Hey Lisa, -2 apples', 'COMMAND', '-2 apples'),
        ('hey lisa', 'Hey Lisa - 2 apples', 'COMMAND', '2 apples'),
        ('hola lisa', 'Hola Lisa, ¿dónde está?', 'COMMAND', '¿dónde está?'),
        ('سلام لیزا', 'سلام لیزا، فنجان', 'COMMAND', 'فنجان'),
        ('नमस्ते', 'नमस्ते। लाल कप', 'COMMAND', 'लाल कप'),
        ('リサ', 'リサーチを見せて', 'ASLEEP', ''),
        ('リサ', 'リサは、どこ', 'COMMAND', 'は、どこ'),
        ('リサ', 'リサ、カップ', 'COMMAND', 'カップ'),
        ('hey lisa', 'Stop, please!', 'COMMAND', 'Stop, please!'),
        ('  ', 'Find the mug.', 'COMMAND', 'Find the mug.'),
    ],
)
def test_the_wake_phrase_may_be_in_any_script(phrase, text, outcome, command):
    recognition = Interpreter(wake_phrase=phrase).interpret(Transcript(text, 1.0))
    assert (recognition.outcome.value, recognition.command) == (outcome, command)


def test_a_wake_phrase_without_words_is_an_error():
    with pytest.raises(SettingsError, match=r"wake_phrase is '\?!'; expected words"):
        make_listener(VoiceSettings(wake_phrase='?!'))


def test_the_words_of_a_vocabulary_may_be_in_any_script(tmp_path):
    (tmp_path / 'v.yaml').write_text(
        'verbs: [finde]\nobjects: [größte tasse, "7up"]\n'
        'pronunciations: {größte: G R AO S T, tasse: T AA S, finde: F IH N D, 7up: S EH V}\n'
    )
    german = Vocabulary.load(tmp_path / 'v.yaml')
    assert german.match('Finde the größte Tasse.') == ('finde the größte tasse', 1.0)
    assert {'größte', 'tasse', '7up'} <= german.words('hör zu')
    with pytest.raises(SettingsError, match='no pronunciation for hör, zu'):
        engines.load_engine('pocketsphinx', german, 'hör zu', '', 'cpu')
    assert engines.load_engine('pocketsphinx', german, '', '', 'cpu').name == 'pocketsphinx'


@pytest.mark.parametrize(
    ('text', 'command'),
    [
        ('[BLANK_AUDIO]', None),
        ('(music)', None),
        ('*coughs* [ Silence ]', None),
        ('（音楽）', None),
        ('♪♪', None),
        ('(door closes) Find the mug. [BLANK_AUDIO]', 'Find the mug.'),
        ('*sighs* stop', 'stop'),
        ('2 * 3 * 4', '2 * 3 * 4'),
        ('find the mug (', 'find the mug ('),
    ],
)
def test_descriptions_of_sounds_are_no_commands(vocabulary, text, command):
    recognition = Interpreter().interpret(Transcript(text, 1.0))
    assert recognition.text == text
    assert recognition.command == (command or '')
    assert recognition.outcome is (Outcome.COMMAND if command else Outcome.EMPTY)
    if command is None:
        heard = Interpreter(vocabulary).interpret(Transcript(text, 1.0))
        assert heard.outcome is Outcome.EMPTY


def test_after_the_wake_phrase_a_command_is_accepted_for_a_while(vocabulary):
    now = [0.0]
    interpreter = Interpreter(
        vocabulary, wake_phrase='Hey Lisa', awake=5.0, clock=lambda: now[0]
    )  # fmt: skip

    def interpret(text):
        recognition = interpreter.interpret(Transcript(text, 1.0))
        return recognition.outcome, recognition.command

    assert interpret('find the mug') == (Outcome.ASLEEP, '')
    assert interpret('hey lisa find the mug') == (Outcome.COMMAND, 'find the mug')
    assert interpret('find the pan') == (Outcome.ASLEEP, '')  # each command needs the wake phrase
    assert interpret('Hey, Lisa!')[0] is Outcome.AWAKE
    now[0] = 4.0
    assert interpret('find the pan') == (Outcome.COMMAND, 'find the pan')
    assert interpret('hey lisa')[0] is Outcome.AWAKE
    now[0] = 20.0
    assert interpret('find the pan') == (Outcome.ASLEEP, '')
    assert interpret('stop') == (Outcome.COMMAND, 'stop')  # at any time


def recognized(transcripts, vocabulary=None):
    """Return the results of utterances, each with one partial transcript and then its own."""
    engine = ScriptedEngine(*(Transcript(text, 1.0) for text in transcripts))
    interpreter = Interpreter(vocabulary, wake_phrase='hey lisa')
    listener = Listener(engine, interpreter, partial_every=100.0)
    results = []
    for _ in range(len(transcripts) // 2):
        results += recognize(listener, speech('find_the_yellow_mug'))
    assert not engine.transcripts
    return [(result.outcome, result.command) for result in results]


def test_a_partial_transcript_does_not_use_up_the_wake_phrase(vocabulary):
    command = 'find the mug next to the bowl'
    transcripts = ['hey', 'hey lisa', 'find the mug', command]
    for words, expected in ((None, command), (vocabulary, vocabulary.match(command)[0])):
        _, awake, partial, (outcome, spoken) = recognized(transcripts, words)
        assert awake == (Outcome.AWAKE, '')
        assert partial == (Outcome.PARTIAL, '')
        assert (outcome, spoken) == (Outcome.COMMAND, expected)


def test_a_partial_transcript_does_not_wake_it():
    transcripts = ['hey lisa', 'hey lisp machines', 'find the mug', 'find the mug']
    results = recognized(transcripts)
    assert [outcome for outcome, _ in results] == [
        *(Outcome.PARTIAL, Outcome.ASLEEP, Outcome.PARTIAL, Outcome.ASLEEP),
    ]


def test_stop_in_a_partial_transcript_needs_no_wake_phrase_and_leaves_it_awake():
    engine = ScriptedEngine(*(Transcript(t, 1.0) for t in ('hey', 'hey lisa', 'stop', 'a', 'a')))
    listener = Listener(
        engine, Interpreter(wake_phrase='hey lisa', awake=1e6), partial_every=100.0
    )
    for outcomes in ([Outcome.PARTIAL, Outcome.AWAKE], [Outcome.COMMAND]):
        results = recognize(listener, speech('find_the_yellow_mug'))
        assert [result.outcome for result in results] == outcomes
    results = recognize(listener, speech('find_the_yellow_mug'))
    assert [result.command for result in results] == ['', 'a']


def test_the_stop_words_are_sayable(vocabulary):
    assert all(vocabulary.meaning(text) == 'stop' for text in STOP)
    assert 'stop' in vocabulary.sentence_by_meaning


# ---- lisa-ros listen


def test_the_command_line_prints_the_commands_of_wav_files(capsys):
    files = [str(SOUNDS / 'find_the_yellow_mug.wav'), str(SOUNDS / 'stop.wav')]
    assert cli.main(['listen', *files, '--json']) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['command'] for line in lines] == ['find the yellow mug', 'stop']
    assert {line['outcome'] for line in lines} == {'COMMAND'}


def test_a_file_without_speech_is_reported(tmp_path, capsys):
    with wave.open(str(tmp_path / 'quiet.wav'), 'wb') as file:
        file.setparams((1, 2, RATE, 0, 'NONE', ''))
        file.writeframes(bytes(2 * RATE))
    assert cli.main(['listen', str(tmp_path / 'quiet.wav')]) == 0
    assert 'no speech in 1.0 s' in capsys.readouterr().out


def test_a_listener_is_made_from_settings():
    listener, description = make_listener(VoiceSettings(wake_phrase='hey lisa'))
    assert isinstance(listener, Listener)
    assert description.startswith('pocketsphinx listens for ')
    assert description.endswith('after "hey lisa"')


def test_a_click_is_ignored_and_the_next_command_is_recognized(sphinx, vocabulary):
    listener = Listener(sphinx, Interpreter(vocabulary), partial_every=0.1)
    samples = speech('find_the_yellow_mug')
    click = samples[RATE + 2400 : RATE + 3600]  # 75 ms of a word
    recognitions = recognize(
        listener, np.concatenate([np.zeros(RATE, np.float32), click, samples])
    )
    assert [r.command for r in recognitions if r.outcome is Outcome.COMMAND] == [
        'find the yellow mug'
    ]
    assert {r.outcome for r in recognitions} <= {Outcome.PARTIAL, Outcome.COMMAND}


def random_sentence(rng, rules, rule):
    """Return a random sentence of a JSGF rule: alternatives, options and references."""
    alternatives = [part.strip() for part in rule.split(' | ')]
    words = []
    for part in alternatives[rng.integers(len(alternatives))].split():
        optional, name = part.startswith('['), part.strip('[]')
        if name.startswith('/') or (optional and rng.random() < 0.5):
            continue  # a weight, or an option that is left out
        is_rule = name[0] == '<'
        words.append(random_sentence(rng, rules, rules[name[1:-1]]) if is_rule else name)
    return ' '.join(words)


@pytest.mark.parametrize('wake_phrase', ['', 'hey lisa'])
def test_pocketsphinx_can_hear_each_polite_stop(vocabulary, wake_phrase, tmp_path):
    sphinx = pytest.importorskip('pocketsphinx', reason="needs pip install 'lisa_ros[voice]'")
    file = tmp_path / 'lisa.gram'
    file.write_text(vocabulary.grammar(wake_phrase))
    grammar, decoder = sphinx.Jsgf(str(file)), sphinx.Decoder(lm=None, loglevel='FATAL')
    rule = grammar.get_rule('lisa.command')
    automaton = grammar.build_fsg(rule, decoder.get_logmath(), 1.0)
    polite = [text for stop in STOP for text in (stop, f'please {stop}', f'{stop} please')]
    assert [text for text in polite if not automaton.accept(text)] == []
    assert not automaton.accept('stop the mug')


def test_every_sentence_of_the_grammar_is_understood_unchanged(vocabulary):
    lines = vocabulary.grammar().replace('public ', '').splitlines()[2:]
    rules = dict(line.rstrip(';')[1:].split('> = ', 1) for line in lines if line)
    rng = np.random.default_rng(0)
    sentences = {random_sentence(rng, rules, rules['command']) for _ in range(5000)}
    assert len(sentences) > 2000
    lost = [text for text in sentences if vocabulary.match(text)[1] < 1]
    assert not lost, lost[:10]
