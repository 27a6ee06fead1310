# SPDX-License-Identifier: Apache-2.0
"""A vision-language model at a server, at toy size: its answers, and how each fault ends."""

import base64
import dataclasses
import gc
import io
import json
import logging
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import torch
from chat_server import ModelAnswer, PointsAtRed, make_certificate, running, sent_image
from PIL import Image
from test_vlm_backend import IMAGE, SCRIPTS, THINK, answer, options_of, save_scripted
from toy_sam2 import toy_model

from lisa_ros import cli
from lisa_ros.doctor.model_files import load_and_ask
from lisa_ros.doctor.weights import ModelOptions
from lisa_ros.errors import ModelError, SettingsError
from lisa_ros.files.text import is_encodable
from lisa_ros.health.verdict import Level
from lisa_ros.perception.backend import InferenceOptions, LoadOptions, Query
from lisa_ros.perception.process_backend import ProcessBackend
from lisa_ros.perception.registry import load_backend
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.results import ANSWERED, Dialogue, Status, Token, Turn, unanswered
from lisa_ros.server_connection import retry_after
from lisa_ros.vlm.answer_parsing import AnswerParser
from lisa_ros.vlm.chat_chunks import AnswerPiece, TokenProbability, WholeCharacters, read_chunk
from lisa_ros.vlm.chat_completions import completions_url
from lisa_ros.vlm.coordinate_check import (
    TEST_BOX,
    TEST_QUERY,
    check_coordinates,
    draw_test_image,
)
from lisa_ros.vlm.profiles import PROFILES, choose_served_profile, is_thinking_model
from lisa_ros.vlm.qwen_vl import QwenVL
from lisa_ros.vlm.remote_vlm import RemoteVlm, word_tokens

NAME = 'VisionReasoner-toy'
KEY = 'sk-do-not-print-me-0123456789'
BOX_OF_TEST = [round(share * 840) for share in TEST_BOX]
RIGHT = f'<think>It is red.</think><answer>[{{"bbox_2d": {BOX_OF_TEST}}}]</answer>'
LIMIT = 60.0  # for what must happen at once; machines may be slow [s]


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    toy_model().save_pretrained(root / 'sam2')
    for name in ('found', 'absent'):
        (root / name / NAME).mkdir(parents=True)
        save_scripted(root / name / NAME, *SCRIPTS[name])
    return root


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ('http_proxy', 'https_proxy', 'all_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def load_vlm(folders, script):
    profile = PROFILES['vision_reasoner']
    return QwenVL.load(folders / script / NAME, profile, torch.device('cpu'), 'fp32')


def connect(folders, server, **options):
    options = {'device': 'cpu', 'segmenter_model': folders / 'sam2', **options}
    return load_backend(f'vlm+sam:{NAME}', LoadOptions(vlm_url=server.url, **options))


def scripted(*texts, finish_reason='stop', logprobs=False):
    """An answer that does not depend on the request."""

    def say(handler, body):
        handler.begin()
        for text in texts:
            entry = [{'token': text, 'logprob': 0.0}] if logprobs else None
            handler.piece(text, None, entry)
        handler.piece('', finish_reason)
        handler.end()

    return say


# ---- the same as here


@pytest.fixture(scope='module')
def model_server(folders):
    with running(ModelAnswer(load_vlm(folders, 'found'))) as server:
        yield server


@pytest.fixture(scope='module')
def remote(folders, model_server):
    return connect(folders, model_server)


@pytest.fixture(scope='module')
def local(folders):
    return load_backend(f'vlm+sam:{folders / "found" / NAME}', options_of(folders))


@pytest.mark.parametrize('options', [{}, {'verify': True}, {'region': (40, 30, 120, 90)}])
def test_the_answer_is_that_of_the_model_here(remote, local, options):
    there, here = (answer(backend, **options) for backend in (remote, local))
    assert [type(event) for event in there] == [type(event) for event in here]
    texts = [[e.text for e in events if isinstance(e, Token)] for events in (there, here)]
    assert texts[0] == texts[1]
    there, here = there[-1].result, here[-1].result
    assert np.array_equal(there.mask_logits, here.mask_logits)
    assert there.scores == pytest.approx(here.scores, rel=1e-4)
    assert (there.status, there.answer, there.reason) == (here.status, here.answer, here.reason)
    assert list(there.timings) == list(here.timings)


def test_what_is_sent(remote, model_server, folders):
    answer(remote, 'The Mug?', max_new_tokens=77)
    path, headers, body = model_server.requests[-1]
    assert path == '/v1/chat/completions'
    assert 'Authorization' not in headers
    assert (body['model'], body['temperature'], body['max_tokens']) == (NAME, 0, 77)
    assert (body['stream'], body['logprobs']) == (True, True)
    system, user = body['messages']
    assert system == {'role': 'system', 'content': 'You are a helpful assistant.'}
    image, text = user['content']
    assert text['text'] == PROFILES['vision_reasoner'].request('The Mug?')
    kind, _, data = image['image_url']['url'].partition(';base64,')
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (kind, opened.format, opened.size) == ('data:image/jpeg', 'JPEG', (840, 840))
    expected = np.asarray(Image.fromarray(IMAGE).resize((840, 840), Image.Resampling.BILINEAR))
    assert np.abs(np.asarray(opened).astype(int) - expected).mean() < 2


def test_earlier_turns_are_sent_where_a_model_was_trained_with_them(model_server):
    vlm = RemoteVlm.connect(model_server.url, NAME)
    turns = (Turn('The mug', '[]'), Turn('a bowl', '[{}]'))
    assert len(vlm.prepare(IMAGE, 'it', turns=turns).messages) == 2  # VisionReasoner: no
    vlm.profile = PROFILES['qwen2_5_vl']
    _, *messages = vlm.prepare(IMAGE, 'it', turns=turns).messages
    roles = [message['role'] for message in messages]
    assert roles == ['user', 'assistant', 'user', 'assistant', 'user']
    assert [message['content'] for message in messages[1::2]] == ['[]', '[{}]']
    kinds = [[part['type'] for part in message['content']] for message in messages[::2]]
    assert kinds == [['image_url', 'text'], ['text'], ['text']]
    assert messages[2]['content'][0]['text'] == vlm.profile.request('a bowl')


def test_a_lossless_profile_sends_the_pixels(model_server):
    profile = dataclasses.replace(PROFILES['qwen3_vl'], lossless=True)
    vlm = RemoteVlm.connect(model_server.url, NAME)
    vlm.profile = profile
    prompt = vlm.prepare(IMAGE, 'the mug')
    (user,) = prompt.messages  # Qwen3-VL has no system message
    url = user['content'][0]['image_url']['url']
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2])))
    assert (sent.format, sent.size) == ('PNG', (320, 224))
    assert prompt.resized == sent.size
    expected = Image.fromarray(IMAGE).resize(sent.size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(sent), np.asarray(expected))


def test_what_the_backend_says_of_itself(remote, model_server):
    assert remote.device == f'cpu, {model_server.url}'
    assert remote.precision == ''
    assert (remote.capabilities.explains, remote.capabilities.denies) == (True, False)
    sent, checked = remote.notices
    assert sent == f"images are sent to {model_server.url} for the model '{NAME}' (vlm_url)"
    assert 'the model points at [210, 210, 700, 700], not at the red rectangle' in checked


def test_the_answers_of_its_own_process_are_the_same(folders, remote, model_server):
    options = options_of(folders, threads=1, vlm_url=model_server.url)
    backend = ProcessBackend(f'vlm+sam:{NAME}', options)
    try:
        there, here = (answer(each)[-1].result for each in (backend, remote))
        assert backend.notices == remote.notices
        assert np.array_equal(there.masks, here.masks)
    finally:
        backend.close()


def test_python_and_the_command_line_take_it(folders, model_server, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / 'image.png')
    command = ['segment', str(tmp_path / 'image.png'), 'the mug', '--device', 'cpu']
    command += ['--model', f'vlm+sam:{NAME}', '--segmenter-model', str(folders / 'sam2')]
    command += ['--vlm-url', model_server.url, '--out', str(tmp_path / 'out')]
    assert cli.main(command) == 0
    assert 'The mug is red, the bowl is blue.' in capsys.readouterr().out


def test_connections_are_kept():
    ports = []

    def counted(handler, body):
        ports.append(handler.client_address[1])
        scripted('[', ']')(handler, body)

    with running(counted) as server:
        vlm = RemoteVlm.connect(server.url, 'Qwen2.5-VL')
        prompt = vlm.prepare(IMAGE, 'the mug')
        for _ in range(3):
            assert [token.text for token in vlm.generate(prompt, 9, Stop())] == ['[', ']', '']
    assert len(ports) == 5  # two tests, three questions
    assert len(set(ports)) == 1


def test_reasoning_that_a_server_takes_out_of_its_tags(faulty, fault_server):
    def say(handler, body):
        handler.begin()
        for name, text in (('reasoning_content', 'It [is] '), ('reasoning', 'red.')):
            handler.event({'choices': [{'delta': {name: text}}]})
        sides = sent_image(body['messages'][-1]['content'][0]).size
        handler.piece(f'<answer>{box_text(sides).partition(": ")[2]}</answer>')
        handler.piece('', 'stop')
        handler.end()

    fault_server.answer = say
    result = answer(faulty)[-1].result
    assert (result.status, result.answer) == (Status.FOUND, 'It [is] red.')
    assert result.answer_raw.startswith('<think>It [is] red.</think><answer>')
    plain = RemoteVlm.connect(fault_server.url, 'Qwen2.5-VL')
    assert len(plain.notices) == 2  # what is sent, and no probabilities
    tokens = plain.generate(plain.prepare(IMAGE, 'it'), 99, Stop())
    assert 'red' not in ''.join(token.text for token in tokens)  # its answer is JSON alone


def test_reasoning_and_text_in_one_piece(faulty, fault_server):
    """A server that joins what has gathered, sends the change in the middle of a piece."""

    def say(handler, body):
        sides = sent_image(body['messages'][-1]['content'][0]).size
        text = f'<answer>{box_text(sides).partition(": ")[2]}</answer>'
        handler.begin()
        handler.event({'choices': [{'delta': {'reasoning': 'It is '}}]})
        handler.event({'choices': [{'delta': {'reasoning': 'red.', 'content': text[:20]}}]})
        handler.piece(text[20:], 'stop')
        handler.end()

    fault_server.answer = say
    result = answer(faulty)[-1].result
    assert (result.status, result.answer) == (Status.FOUND, 'It is red.')
    assert result.answer_raw.startswith('<think>It is red.</think><answer>[{"')


def test_characters_that_a_server_cuts_in_half_are_joined(faulty, fault_server):
    def say(handler, body):
        handler.begin()
        for half in ('It \ud83d', '\ude00 is '):
            handler.event({'choices': [{'delta': {'reasoning': half}}]})
        for half in ('<answer>[{"label": "\ud83c', '\udf75 tea", "bbox_2d": '):
            handler.piece(half)
        handler.piece(f'{BOX_OF_TEST}}}]</answer>', 'stop')
        handler.end()

    fault_server.answer = say
    result = answer(faulty)[-1].result
    assert (result.status, result.answer) == (Status.FOUND, 'It \U0001f600 is')
    assert result.names == ('\U0001f375 tea',)
    assert result.answer_raw.startswith('<think>It \U0001f600 is </think><answer>[{"label"')


QWEN3 = 'Qwen/Qwen3-VL-8B-Thinking'
MUG = '[{"bbox_2d": [250, 250, 830, 830], "label": "mug"}]'
OF_TEST = f'[{{"bbox_2d": {[round(1000 * share) for share in TEST_BOX]}, "label": "it"}}]'


def thinking(thoughts, text=MUG, finish_reason='stop', test_answer=None):
    """An answer behind thoughts, whose opening tag is in the prompt; one about a test image."""

    def say(handler, body):
        if TEST_QUERY in body['messages'][-1]['content'][-1]['text']:
            scripted(test_answer or f'{thoughts}</think>{OF_TEST}')(handler, body)
            return
        pieces = [*thoughts, text] if thoughts else [text]
        scripted(*pieces, finish_reason=finish_reason, logprobs=True)(handler, body)

    return say


def connect_to_qwen3(folders, server, name=QWEN3):
    options = LoadOptions(
        vlm_url=server.url,
        template='qwen3_vl',
        device='cpu',
        segmenter_model=folders / 'sam2',
    )
    return load_backend(f'vlm+sam:{name}', options)


@pytest.mark.parametrize('name', [QWEN3, 'mine'])  # of another name: the test tells
@pytest.mark.parametrize(
    'thoughts', ['Is it [1, 2]?\n', f'Is it {OF_TEST}? No.', 'If not I say [].', 'It is {red}.']
)
def test_an_answer_is_behind_the_thoughts(thoughts, name, folders):
    say = thinking(thoughts, f'</think>\n\n```json\n{MUG}\n```')
    with running(say) as server:
        backend = connect_to_qwen3(folders, server, name)
        result = answer(backend)[-1].result
    assert len(backend.notices) == 3
    assert f"the model '{name}' thinks before it answers: max_new_tokens" in backend.notices[-1]
    assert (result.status, result.names, result.answer) == (Status.FOUND, ('mug',), 'mug')
    assert result.answer_raw.startswith(f'<think>{thoughts}</think>')
    turns = (Turn('it', result.answer_raw),)
    ((_, said),) = backend._vlm.profile.exchanges(turns)
    assert said.startswith('```json')  # no later prompt has the thoughts


@pytest.mark.parametrize('finish_reason', ['length', 'stop'])
@pytest.mark.parametrize(
    'thoughts', [f'Maybe {MUG}? No, that is', 'If there is none I say []. So', 'I look']
)
def test_an_answer_that_ends_in_its_thoughts_has_failed(thoughts, finish_reason, folders):
    say = thinking(thoughts, '', finish_reason, f'So</think>{OF_TEST}')
    with running(say) as server:
        result = answer(connect_to_qwen3(folders, server))[-1].result
    assert (result.status, len(result.masks)) == (Status.FAILED, 0)
    assert 'no JSON list behind its thoughts, which do not end: raise max_new' in result.reason
    assert ('(max_new_tokens: 512)' in result.reason) is (finish_reason == 'length')


@pytest.mark.parametrize('text', [MUG, f'\n```json\n{MUG}\n```', f'<think>So</think>{MUG}'])
@pytest.mark.parametrize('reasoning', ['', 'It is [1, 2]'])
def test_a_model_that_thinks_elsewhere_answers(text, reasoning, folders):
    """The server takes the thoughts out, hides them, or the model has none."""

    def say(handler, body):
        handler.begin()
        if reasoning:
            handler.event({'choices': [{'delta': {'reasoning_content': reasoning}}]})
        handler.piece(text)
        handler.piece('', 'stop')
        handler.end()

    with running(say) as server:
        result = answer(connect_to_qwen3(folders, server))[-1].result
    assert (result.status, result.answer_raw) == (Status.FOUND, text)


def test_a_thinking_model_may_answer_at_length(folders):
    thoughts = [f'word {number} ' for number in range(1200)]
    with running(thinking(thoughts, f'</think>{MUG}', test_answer='So')) as server:
        result = answer(connect_to_qwen3(folders, server), max_new_tokens=4096)[-1].result
        assert server.requests[0][2]['max_tokens'] == 1024  # about the test image
        assert server.requests[-1][2]['max_tokens'] == 4096
    assert result.status is Status.FOUND
    assert result.token_count > 1200


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (QWEN3, True),
        ('qwen3-vl:8b-thinking-q4', True),
        ('Qwen3-VL-30B-A3B-Thinking-FP8', True),
        ('Qwen3-VL-8B-Instruct', False),
        ('thinking/Qwen3-VL', False),
        ('Visurf-NoThink', False),
        ('Qwen3-VL-no-thinking', False),
        ('qwen3-vl-non-thinking', False),
    ],
)
def test_a_name_tells_whether_a_model_thinks(name, expected):
    assert is_thinking_model(name) is expected


@pytest.mark.parametrize(
    ('texts', 'whole'),
    [
        (['ok \ud83d', '\ude00!'], 'ok \U0001f600!'),
        (['ok \ud83d', '', '\ude00'], 'ok \U0001f600'),
        (['ok \ud83d'], 'ok \ufffd'),  # the limit of tokens
        (['ok \ud83d', 'no'], 'ok \ufffdno'),
        (['\ude00', 'no'], '\ufffdno'),
        (['\ufeffa\U0001f600\x00', '\ufeff'], '\ufeffa\U0001f600\x00\ufeff'),
    ],
)
def test_half_characters_become_whole_ones(texts, whole):
    characters = WholeCharacters()
    pieces = [*map(AnswerPiece, texts), AnswerPiece('', finish_reason='stop')]
    joined = [characters.join(piece) for piece in pieces]
    assert ''.join(piece.text for piece in joined if piece is not None) == whole
    assert joined[-1].finish_reason == 'stop'
    assert all(piece is None or is_encodable(piece.text) for piece in joined)


def test_the_probabilities_of_both_halves_count():
    halves = [
        AnswerPiece(half, (TokenProbability(half, probability),))
        for half, probability in (('\ud83d', 0.01), ('\ude00', 0.9))
    ]
    characters = WholeCharacters()
    assert characters.join(halves[0]) is None
    (word,) = word_tokens(characters.join(halves[1]))
    assert (word.text, word.probability) == ('\U0001f600', pytest.approx(0.009))


@pytest.mark.parametrize('event', ['retry: 3000', 'id: 7', 'event: ping', 'data:'])
def test_an_event_without_data_is_none(faulty, fault_server, event):
    def say(handler, body):
        handler.begin()
        handler.send(f'{event}\n\n')
        handler.piece(RIGHT)
        handler.send(f'{event}\n\n')
        handler.piece('', 'stop')
        handler.end()

    fault_server.answer = say
    assert answer(faulty)[-1].result.status is Status.FOUND


@pytest.mark.parametrize('reason', ['stop', 'eos', 'eos_token', 'end_turn'])
def test_the_end_of_an_answer_has_several_names(folders, reason):
    with running(thinking('', MUG, reason, OF_TEST)) as server:
        backend = connect_to_qwen3(folders, server, 'mine')
        assert answer(backend)[-1].result.status is Status.FOUND
        server.answer = thinking('', MUG, 'tool_calls')
        assert "finish_reason 'tool_calls'" in answer(backend)[-1].result.reason


@pytest.mark.parametrize('choice', [{'delta': None}, {}], ids=str)
def test_a_chunk_may_add_nothing(folders, choice):
    """As of Azure, which filters an answer while it is written."""

    def say(handler, body):
        handler.begin()
        handler.event(
            {'choices': [{**choice, 'finish_reason': None, 'content_filter_results': {}}]}
        )
        handler.piece(MUG)
        handler.event({'choices': [{**choice, 'index': 0, 'finish_reason': 'stop'}]})
        handler.end()

    with running(say) as server:
        result = answer(connect_to_qwen3(folders, server, 'mine'))[-1].result
    assert result.status is Status.FOUND


@pytest.mark.parametrize(
    'choice',
    [
        {},
        {'index': 0},
        {'message': {'content': RIGHT}, 'finish_reason': 'stop'},
        {'text': RIGHT, 'finish_reason': 'stop'},
        {'delta': 'text', 'finish_reason': None},
        {'delta': [], 'finish_reason': 'stop'},
        {'delta': None, 'finish_reason': 7},
    ],
    ids=str,
)
def test_what_is_no_chunk_is_refused(choice):
    with pytest.raises(ModelError, match='expected a chunk of a chat completion'):
        read_chunk(json.dumps({'choices': [choice]}))


# ---- probabilities


def test_a_server_without_probabilities_still_points(folders, local):
    say = ModelAnswer(load_vlm(folders, 'found'), refuses_logprobs=True, gives_logprobs=False)
    with running(say) as server:
        backend = connect(folders, server)
        assert 'gives no probabilities of tokens (logprobs)' in backend.notices[-1]
        count = len(server.requests)
        result = answer(backend)[-1].result
        assert len(server.requests) == count + 1  # it is not asked for them again
        here = answer(local)[-1].result
        assert np.array_equal(result.masks, here.masks)
        features = backend._sam2.encode(IMAGE)
        mask = backend._sam2.decode(features, (60.0, 45.0, 200.0, 150.0), ((120.0, 90.0),))
        assert result.scores[0] == pytest.approx(mask.presence * mask.predicted_iou, rel=1e-4)


@pytest.mark.parametrize('logprobs', [True, False])
@pytest.mark.parametrize(('number', 'status'), [('0', Status.NOT_FOUND), ('1', Status.FOUND)])
def test_verify_reads_the_number(number, status, logprobs, folders):
    def say(handler, body):
        text = number if body['max_tokens'] == 1 else RIGHT
        scripted(text, logprobs=logprobs)(handler, body)

    with running(say) as server:
        result = answer(connect(folders, server), verify=True)[-1].result
    assert result.status is status
    assert ('none of its objects is right (100%)' in result.reason) is (number == '0')


def test_probabilities_of_choices_are_those_of_the_first_token():
    def say(handler, body):
        handler.begin()
        if body['max_tokens'] > 1:
            handler.piece(RIGHT)
        else:
            others = [{'token': ' 2', 'logprob': -2.0}, {'token': '0', 'logprob': -1.0}]
            entry = {'token': '2', 'logprob': -0.5, 'top_logprobs': others}
            handler.piece('2', None, [entry])
        handler.piece('', 'stop')
        handler.end()

    with running(say) as server:
        vlm = RemoteVlm.connect(server.url, NAME)
        prompt = vlm.prepare_request(IMAGE, 'Which?')
        choice = vlm.choice_probabilities(prompt, ['0', '1', '2'], Stop())
    assert choice.values == pytest.approx((np.exp(-1), 0, np.exp(-0.5) + np.exp(-2)))
    assert choice.is_measured


def says_yes(text=RIGHT, *, tokens=True, alternatives=True, refuses=(), most=20):
    """An answer that begins with "Yes", with a probability of 0.6, or with "No", with 0.3."""

    def say(handler, body):
        if any(field in body for field in refuses):
            handler.error(400, f'unknown: {", ".join(refuses)}')
            return
        if body.get('top_logprobs', 0) > most:
            handler.error(400, f'top_logprobs must be at most {most}')
            return
        if body['max_tokens'] > 1:
            scripted(text, logprobs=tokens and 'logprobs' in body)(handler, body)
            return
        entry = {'token': 'Yes', 'logprob': np.log(0.6)}
        if alternatives and 'top_logprobs' in body:
            entry['top_logprobs'] = [{'token': ' No', 'logprob': np.log(0.3)}]
        handler.begin()
        handler.piece('Yes', None, [entry] if tokens and 'logprobs' in body else None)
        handler.piece('', 'length')
        handler.end()

    return say


def ask_yes_no(backend, dialogue=None):
    query = Query('is it full?', dialogue or Dialogue(), yes_no=True)
    return list(stream_in_region(backend, IMAGE, query, InferenceOptions(), threading.Event()))


def test_yes_is_weighed_against_no(folders):
    with running(says_yes()) as server:
        result = ask_yes_no(connect(folders, server))[-1].result
        assert result.yes_probability == pytest.approx(2 / 3)
        assert (result.answer, result.status) == ('Yes.', Status.NOT_FOUND)
        body = server.requests[-1][2]
        assert (body['max_tokens'], body['top_logprobs']) == (1, 20)
        text = body['messages'][-1]['content'][-1]['text']
        assert text == 'is it full? Answer with yes or no.'


@pytest.mark.parametrize(
    'gives',
    [
        {'alternatives': False},
        {'refuses': ('top_logprobs',)},
        {'tokens': False},
        {'refuses': ('logprobs',)},
    ],
    ids=str,
)
def test_a_probability_of_yes_is_not_invented(gives, folders):
    has_tokens = gives.get('tokens', True) and gives.get('refuses') != ('logprobs',)
    with running(says_yes(**gives)) as server:
        backend = connect(folders, server)
        for _ in range(2):
            count = len(server.requests)
            (done,) = ask_yes_no(backend)
            assert (done.result.status, done.result.yes_probability) == (Status.FAILED, None)
            assert 'gives no probabilities of tokens (top_logprobs)' in done.result.reason
        assert len(server.requests) == count + 1  # what it refused once is not tried again
        answer(backend)
        assert server.requests[-1][2].get('logprobs', False) is has_tokens  # for the scores


def test_a_server_that_allows_fewer_alternatives_is_asked_for_fewer(folders):
    with running(says_yes(most=5)) as server:
        backend, count = connect(folders, server), len(server.requests)
        for _ in range(2):
            assert ask_yes_no(backend)[-1].result.yes_probability == pytest.approx(2 / 3)
        asked = [body['top_logprobs'] for *_, body in server.requests[count:]]
        assert asked == [20, 5, 5]  # what it refused once is not tried again
    with running(says_yes(most=2)) as server:
        backend, count = connect(folders, server), len(server.requests)
        for _ in range(2):
            assert 'top_logprobs' in ask_yes_no(backend)[-1].result.reason
        asked = [body.get('top_logprobs') for *_, body in server.requests[count:]]
        assert asked == [20, 5, None, None]


def names_by_id(text, *names):
    """An answer whose first token and the others at its place have these names."""

    def say(handler, body):
        if body['max_tokens'] > 1:
            scripted(RIGHT, logprobs=True)(handler, body)
            return
        entries = [{'token': name, 'logprob': -1.0 - i} for i, name in enumerate(names)]
        handler.begin()
        handler.piece(text, None, [{**entries[0], 'top_logprobs': entries}])
        handler.piece('', 'length')
        handler.end()

    return say


@pytest.mark.parametrize('number', ['0', '1'])
def test_tokens_that_are_named_by_their_ids_have_no_probability(number, folders):
    """As of vLLM with --return-tokens-as-token-ids."""
    with running(names_by_id(number, 'token_id:15', 'token_id:16')) as server:
        backend = connect(folders, server)
        result = answer(backend, verify=True)[-1].result
        assert result.status is (Status.NOT_FOUND if number == '0' else Status.FOUND)
        server.answer = names_by_id('Yes', 'token_id:9454', 'token_id:2753')
        result = ask_yes_no(backend)[-1].result
    assert (result.status, result.yes_probability) == (Status.FAILED, None)
    assert 'leave out --return-tokens-as-token-ids' in result.reason


@pytest.mark.parametrize(
    ('text', 'names', 'values', 'is_measured'),
    [
        ('0', ('0', '1'), (0.37, 0.14), True),
        ('0', (' 0', '1'), (0.37, 0.14), True),
        (' 0', ('0', ' 1'), (0.37, 0.14), True),
        ('0.', ('0', '1'), (0.37, 0.14), True),  # two tokens in one piece
        ('\ufffd', ('bytes:\\xe6\\x98', '0'), (0.14, 0), True),  # half a character
        ('是', ('\ufffd', '0'), (0.14, 0), True),
        ('0', ('\u25810', '\u25811'), (1, 0), False),  # entries of a vocabulary
        ('So', ('token_id:15', 'token_id:16'), (0, 0), False),
    ],
)
def test_names_of_tokens(text, names, values, is_measured):
    with running(names_by_id(text, *names)) as server:
        vlm = RemoteVlm.connect(server.url, NAME)
        prompt = vlm.prepare_request(IMAGE, 'Which?')
        choice = vlm.choice_probabilities(prompt, ['0', '1'], Stop())
    assert choice.values == pytest.approx(values, abs=0.01)
    assert choice.is_measured is is_measured


def test_pieces_without_probabilities_do_not_end_them(folders):
    def say(handler, body):
        handler.begin()
        for part, entries in (
            (RIGHT[:20], [{'token': RIGHT[:20], 'logprob': -1.0}]),
            (RIGHT[20:], None),
        ):
            handler.piece(part, None, entries)
        handler.piece('', 'stop')
        handler.end()

    with running(say) as server:
        backend = connect(folders, server)
        assert len(backend.notices) == 1
        answer(backend)
        assert server.requests[-1][2]['logprobs'] is True


def test_a_yes_no_question_reads_the_dialogue_and_is_no_turn_of_it(folders):
    with running(says_yes('[]')) as server:
        options = LoadOptions(
            device='cpu',
            segmenter_model=folders / 'sam2',
            vlm_url=server.url,
            template='qwen2_5_vl',
        )
        backend = load_backend('vlm+sam:toy', options)
        found = dataclasses.replace(unanswered('The mug', Status.FOUND, ''), answer_raw='[{}]')
        dialogue = Dialogue().extended(found)
        dialogue = dialogue.extended(ask_yes_no(backend, dialogue)[-1].result)
        messages = server.requests[-1][2]['messages']
        assert [m['role'] for m in messages] == ['system', 'user', 'assistant', 'user']
        assert [turn.yes_no for turn in dialogue.turns] == [False, True]
        query = Query('the bowl', dialogue)
        list(stream_in_region(backend, IMAGE, query, InferenceOptions(), threading.Event()))
        messages = server.requests[-1][2]['messages']
        assert [m['content'] for m in messages if m['role'] == 'assistant'] == ['[{}]']


def test_pieces_are_counted_as_tokens_only_if_they_are(remote, local, folders):
    here = answer(local)[-1].result
    assert answer(remote)[-1].result.token_count == here.token_count > 5
    with running(scripted(RIGHT)) as server:
        assert answer(connect(folders, server))[-1].result.token_count is None


# ---- faults


class Stop:
    """A stop signal with a time limit that does not come."""

    seconds_left = LIMIT

    def __init__(self):
        self.event = threading.Event()

    def is_set(self):
        return self.event.is_set()


def killed(handler, body):
    handler.begin()
    handler.piece(THINK)
    handler.connection.shutdown(socket.SHUT_RDWR)


def ended(handler, body):
    handler.begin()
    handler.piece(THINK)
    handler.end()


def slow(handler, body):
    handler.begin()
    handler.piece(THINK)
    handler.server.released.wait(LIMIT)
    handler.piece(THINK)


def busy(status, **headers):
    def refuse(handler, body):
        handler.error(status, 'the queue is full', **headers)

    return refuse


def closed(handler, body):
    """Close the connection instead of an answer."""
    handler.close_connection = True


def wrong_json(handler, body):
    handler.begin()
    handler.event('{"choices": [{"delta": ')


def page(handler, body):
    content = b'<html>Welcome to nginx</html>'
    handler.begin(kind='text/html', Content_Length=str(len(content)))
    handler.wfile.write(content)


def reported(handler, body):
    handler.begin()
    handler.event({'error': {'message': 'CUDA out of memory'}})


def huge_event(handler, body):
    handler.begin()
    handler.send(b'data: ')
    for _ in range(64):
        handler.send(b'x' * 2**16)


def huge(handler, body):
    handler.begin()
    for _ in range(40):
        handler.piece('', None)
        handler.event({'choices': [], 'padding': 'x' * 2**19})


def endless(handler, body):
    handler.begin()
    number = 0
    while True:
        number += 1
        handler.piece(f'word {number} ')


def redirected(handler, body):
    handler.error(307, 'moved', Location='http://127.0.0.1:9/v1/chat/completions')


@pytest.fixture(scope='module')
def fault_server():
    """A server that answers the test of the start rightly, and then has a fault."""
    with running(scripted(RIGHT)) as server:
        server.released = threading.Event()
        yield server


@pytest.fixture(scope='module')
def faulty(fault_server, folders):
    return connect(folders, fault_server)


@pytest.mark.parametrize(
    ('fault', 'status', 'reason'),
    [
        (killed, Status.UNREACHABLE, 'broke off the connection'),
        (closed, Status.UNREACHABLE, 'disconnected without sending a response.)'),
        (ended, Status.UNREACHABLE, 'ended its answer before it was complete'),
        (busy(429), Status.UNREACHABLE, 'has no capacity (429 Too Many Requests: the queue is'),
        (busy(503, Retry_After='9999'), Status.UNREACHABLE, 'asks to wait 1e+04 s (1 try)'),
        (busy(502), Status.UNREACHABLE, 'does not reach the model (502 Bad Gateway'),
        (busy(500), Status.FAILED, 'fails (500 Internal Server Error: the queue is full)'),
        (busy(404), Status.FAILED, 'refuses the request (404 Not Found: the queue is full)'),
        (busy(401), Status.FAILED, 'give the key with api_key_env or api_key_file'),
        (redirected, Status.FAILED, 'which is not followed: correct vlm_url'),
        (wrong_json, Status.FAILED, 'an event of the answer is not JSON'),
        (page, Status.FAILED, "'<html>Welcome to nginx</html>'; is vlm_url an OpenAI-compatible"),
        (reported, Status.FAILED, 'the server reports an error: CUDA out of memory'),
        (huge_event, Status.FAILED, 'exceeded the 1048576 byte limit'),
        (huge, Status.FAILED, 'sent more than 16 MiB for one answer'),
        (scripted('no', finish_reason='content_filter'), Status.FAILED, "'content_filter'"),
        (scripted(THINK, finish_reason='length'), Status.FAILED, '(max_new_tokens: 512)'),
    ],
)
def test_each_fault_ends_with_its_status_and_cause(faulty, fault_server, fault, status, reason):
    fault_server.answer = fault
    begin = time.monotonic()
    (*_, done) = answer(faulty, answer_timeout=LIMIT)
    assert done.result.status is status
    assert reason in done.result.reason
    assert time.monotonic() - begin < LIMIT / 2
    fault_server.answer = scripted(RIGHT)
    assert answer(faulty)[-1].result.status is Status.FOUND  # the next one is answered


def test_masks_before_a_fault_are_kept(faulty, fault_server):
    def fault(handler, body):
        handler.begin()
        handler.piece(RIGHT.partition('}')[0] + '}, ')
        handler.connection.shutdown(socket.SHUT_RDWR)

    fault_server.answer = fault
    for verify, count in ((False, 1), (True, 0)):
        result = answer(faulty, verify=verify)[-1].result
        assert (result.status, len(result.masks)) == (Status.UNREACHABLE, count)


def test_a_fault_while_masks_are_verified_leaves_none(faulty, fault_server):
    def fault(handler, body):
        (busy(502) if body['max_tokens'] == 1 else scripted(RIGHT))(handler, body)

    fault_server.answer = fault
    (*_, done) = answer(faulty, verify=True)
    assert (done.result.status, len(done.result.masks)) == (Status.UNREACHABLE, 0)


@pytest.mark.parametrize('fault', [slow, endless])
def test_a_deadline_ends_the_answer_and_the_connection(faulty, fault_server, fault):
    fault_server.answer = fault
    fault_server.client_has_gone.clear()
    result = answer(faulty, answer_timeout=0.5, max_new_tokens=2048)[-1].result
    if fault is endless and result.status is Status.FAILED:  # 2048 words came before
        assert 'max_new_tokens: 2048' in result.reason
    else:
        assert result.status is Status.TIMED_OUT
        assert 'answer_timeout' in result.reason
    fault_server.released.set()
    assert fault is slow or fault_server.client_has_gone.wait(LIMIT)


def test_an_endless_answer_ends_at_the_token_limit(faulty, fault_server):
    fault_server.answer = endless
    fault_server.client_has_gone.clear()
    result = answer(faulty, max_new_tokens=40)[-1].result
    assert (result.status, result.answer_raw.count('word')) == (Status.FAILED, 40)
    assert '(max_new_tokens: 40)' in result.reason
    assert fault_server.client_has_gone.wait(LIMIT)


def test_a_cancel_closes_the_connection(faulty, fault_server):
    held = threading.Event()

    def hold(handler, body):
        handler.begin()
        handler.piece(THINK)
        held.set()
        while True:  # until the client has gone
            handler.send(': still here\n\n')
            time.sleep(0.01)

    fault_server.answer = hold
    fault_server.client_has_gone.clear()
    cancel, events = threading.Event(), []
    for event in stream_in_region(faulty, IMAGE, Query('it'), InferenceOptions(), cancel):
        events.append(event)
        assert held.wait(LIMIT)
        cancel.set()
    assert events[-1].result.status is Status.CANCELLED
    assert fault_server.client_has_gone.wait(LIMIT)


def test_a_cancel_ends_a_request_that_waits_to_be_tried_again(faulty, fault_server):
    fault_server.answer = busy(503, Retry_After='25')
    count = len(fault_server.requests)
    cancel = threading.Event()
    stream = stream_in_region(faulty, IMAGE, Query('it'), InferenceOptions(), cancel)
    threading.Thread(target=lambda: (wait_for(fault_server, count + 1), cancel.set())).start()
    (done,) = stream
    assert done.result.status is Status.CANCELLED


def wait_for(server, count):
    end = time.monotonic() + LIMIT
    while len(server.requests) < count and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize('status', [429, 503])
def test_a_busy_server_is_asked_again(faulty, fault_server, status):
    def say(handler, body):
        fault_server.answer = scripted(RIGHT)
        handler.error(status, 'busy', Retry_After='0')

    fault_server.answer, count = say, len(fault_server.requests)
    assert answer(faulty)[-1].result.status is Status.FOUND
    assert len(fault_server.requests) == count + 2


def test_nothing_is_asked_again_after_an_answer_has_begun(faulty, fault_server):
    fault_server.answer, count = killed, len(fault_server.requests)
    assert answer(faulty)[-1].result.status is Status.UNREACHABLE
    assert len(fault_server.requests) == count + 1


def test_a_kept_connection_that_the_server_closes_costs_no_answer(faulty, fault_server):
    """As uvicorn closes one after five seconds, while the next request is on its way."""
    served, count = set(), len(fault_server.requests)

    def once(handler, body):
        (closed if handler.client_address in served else scripted(RIGHT))(handler, body)
        served.add(handler.client_address)

    fault_server.answer = once
    for _ in range(3):
        assert answer(faulty)[-1].result.status is Status.FOUND
    assert len(fault_server.requests) == count + 5


def test_a_broken_connection_is_no_try_of_a_busy_server(faulty, fault_server):
    again = busy(503, Retry_After='0')
    answers = [again, closed, again, closed, scripted(RIGHT)]
    fault_server.answer = lambda handler, body: answers.pop(0)(handler, body)
    assert answer(faulty)[-1].result.status is Status.FOUND


def test_a_server_that_breaks_off_twice_is_not_asked_a_third_time(faulty, fault_server):
    fault_server.answer, count = closed, len(fault_server.requests)
    assert answer(faulty)[-1].result.status is Status.UNREACHABLE
    assert len(fault_server.requests) == count + 2


def test_a_server_may_start_later(folders):
    with socket.socket() as reserved:
        reserved.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{reserved.getsockname()[1]}'
    options = {'device': 'cpu', 'segmenter_model': folders / 'sam2', 'vlm_url': url}
    backend = load_backend(f'vlm+sam:{NAME}', LoadOptions(**options))
    assert 'cannot be reached: Connection refused (3 tries); until' in backend.notices[-1]
    result = answer(backend)[-1].result
    assert (result.status, len(result.masks)) == (Status.UNREACHABLE, 0)
    assert result.reason == f'{url} cannot be reached: Connection refused (3 tries)'


def test_the_test_of_the_start_is_made_up_for(folders, fault_server):
    fault_server.answer = busy(503)
    backend = connect(folders, fault_server)
    assert 'has no capacity' in backend.notices[-1]
    fault_server.answer, count = scripted(RIGHT), len(fault_server.requests)
    assert answer(backend)[-1].result.status is Status.FOUND
    assert len(fault_server.requests) == count + 2  # about the test image, and the query
    assert answer(backend)[-1].result.status is Status.FOUND
    assert len(fault_server.requests) == count + 3


@pytest.mark.skipif(shutil.which('openssl') is None, reason='openssl makes the certificate')
def test_an_unknown_certificate_is_refused(folders, tmp_path, monkeypatch):
    certificate = make_certificate(tmp_path)
    with running(scripted(RIGHT), certificate) as server:
        backend = connect(folders, server)
        assert 'has a certificate that is not trusted (self' in backend.notices[-1]
        result = answer(backend)[-1].result
        assert result.status is Status.UNREACHABLE
        assert 'SSL_CERT_FILE' in result.reason
        assert not server.requests  # nothing was sent
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate[0]))
        backend = connect(folders, server)
        assert answer(backend)[-1].result.status is Status.FOUND
        server.answer = killed
        assert answer(backend)[-1].result.status is Status.UNREACHABLE


def test_a_proxy_is_used(folders, monkeypatch):
    with running(scripted(RIGHT)) as proxy:
        monkeypatch.setenv('http_proxy', proxy.url)
        vlm = RemoteVlm.connect('http://gpu-server.example:8000', NAME)
        assert proxy.requests[-1][0] == 'http://gpu-server.example:8000/v1/chat/completions'
        assert 'without encryption' in vlm.notices[0]


def test_a_backend_that_is_dropped_closes_its_connection(fault_server):
    fault_server.answer = scripted(RIGHT)
    before = threading.enumerate()

    def new_threads():
        return [thread.name for thread in threading.enumerate() if thread not in before]

    vlm = RemoteVlm.connect(fault_server.url, NAME)
    assert 'lisa-vlm' in new_threads()
    loop = vlm._server._loop
    assert not loop.is_closed()
    del vlm
    gc.collect()
    end = time.monotonic() + LIMIT
    while not loop.is_closed() and time.monotonic() < end:
        time.sleep(0.01)
    assert loop.is_closed()
    while 'lisa-vlm' in new_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert 'lisa-vlm' not in new_threads()


# ---- the key


def test_the_key_is_nowhere(folders, monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv('TOY_KEY', KEY)
    caplog.set_level(logging.DEBUG)

    def echo(handler, body):
        """Say what was sent, as some servers do, in every place where text may be."""
        key = handler.headers['Authorization']
        assert key == f'Bearer {KEY}'
        number = len(server.requests) - 1
        if number == 0:
            scripted(RIGHT)(handler, body)
        elif number == 1:
            handler.error(401, f'Incorrect API key provided: {key}')
        elif number == 2:
            handler.begin()
            handler.event(f'{{{key}')
        elif number == 3:
            handler.begin(kind='text/plain', Content_Length=str(len(key)))
            handler.wfile.write(key.encode())
        elif number == 4:
            handler.begin()
            handler.event({'error': {'message': key}})
        elif number == 5:
            scripted(f'I see {key}')(handler, body)
        else:
            handler.error(503, key, Retry_After='9999')

    with running(echo) as server:
        backend = connect(folders, server, api_key_env='TOY_KEY')
        results = [answer(backend, answer_timeout=LIMIT)[-1].result for _ in range(6)]
        Image.fromarray(IMAGE).save(tmp_path / 'image.png')
        command = ['segment', str(tmp_path / 'image.png'), 'it', '--model', f'vlm+sam:{NAME}']
        command += ['--vlm-url', server.url, '--api-key-env', 'TOY_KEY', '--device', 'cpu']
        assert cli.main([*command, '--segmenter-model', str(folders / 'sam2')]) == 1
    assert [result.status for result in results] == [Status.FAILED] * 5 + [Status.UNREACHABLE]
    output = capfd.readouterr()
    everything = (
        f'{results} {backend.notices} {caplog.text} {output.out} {output.err} {vars(backend)}'
    )
    assert 'has no capacity' in output.err
    assert '***' in everything
    assert 'do-not-print' not in everything


@pytest.mark.parametrize('value', [None, '', ' ', 'two words', 'line\nbreak', 'schlüssel'])
def test_a_key_that_cannot_be_one_is_refused(value, monkeypatch):
    if value is None:
        monkeypatch.delenv('TOY_KEY', raising=False)
    else:
        monkeypatch.setenv('TOY_KEY', value)
    with pytest.raises(SettingsError, match='environment variable') as error:
        RemoteVlm.connect('http://127.0.0.1:9', NAME, api_key_env='TOY_KEY')
    assert value is None or not value.strip() or value not in str(error.value)
    with pytest.raises(SettingsError) as error:  # the key in the place of its name
        RemoteVlm.connect('http://127.0.0.1:9', NAME, api_key_env=KEY)
    assert KEY not in str(error.value)


@pytest.mark.parametrize('is_isolated', [False, True])
def test_the_key_may_be_in_a_file(folders, tmp_path, monkeypatch, is_isolated):
    monkeypatch.setenv('TOY_KEY', KEY)
    (tmp_path / 'key').write_text(f'{KEY}\n')
    with running(scripted(RIGHT)) as server:
        options = options_of(folders, threads=1, vlm_url=server.url)
        options = dataclasses.replace(options, api_key_file=tmp_path / 'key')
        backend = (ProcessBackend if is_isolated else load_backend)(f'vlm+sam:{NAME}', options)
        try:
            assert answer(backend)[-1].result.status is Status.FOUND
            connect(folders, server, api_key_env='TOY_KEY')
        finally:
            if is_isolated:
                backend.close()
        keys = {headers.get('Authorization') for _, headers, _ in server.requests}
    assert (len(server.requests), keys) == (3, {f'Bearer {KEY}'})


def test_the_doctor_reads_the_file_too(folders, tmp_path):
    (tmp_path / 'key').write_text(KEY)
    with running(scripted(RIGHT)) as server:
        options = ModelOptions(
            f'vlm+sam:{NAME}',
            segmenter_model=str(folders / 'sam2'),
            vlm_url=server.url,
            api_key_file=str(tmp_path / 'key'),
            device='cpu',
        )
        finding = load_and_ask(dataclasses.asdict(options))
        keys = {headers.get('Authorization') for _, headers, _ in server.requests}
    assert finding['level'] == Level.OK, finding
    assert keys == {f'Bearer {KEY}'}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'api_key_file .*key: no such file'),
        ('', 'has no token'),
        ('two words', 'has no token; expected one line'),
        ('line\nbreak', 'has no token'),
        ('schlüssel', 'has no token'),
    ],
)
def test_a_file_without_a_key_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / 'key').write_text(content, encoding='utf-8')
    with pytest.raises(SettingsError, match=message) as error:
        RemoteVlm.connect('http://127.0.0.1:9', NAME, api_key_file=tmp_path / 'key')
    assert not content or content not in str(error.value)


def test_two_places_of_a_key_are_refused(folders, tmp_path):
    (tmp_path / 'key').write_text(KEY)
    options = options_of(
        folders, vlm_url='http://127.0.0.1:9', api_key_env='TOY_KEY', api_key_file=tmp_path / 'key'
    )
    with pytest.raises(SettingsError, match='api_key_env and api_key_file are both set: expected'):
        load_backend(f'vlm+sam:{NAME}', options)


# ---- settings


@pytest.mark.parametrize(
    ('url', 'expected'),
    [
        ('http://host:8000', 'http://host:8000/v1/chat/completions'),
        ('http://host:8000/', 'http://host:8000/v1/chat/completions'),
        ('https://host/v1/', 'https://host/v1/chat/completions'),
        ('https://host/api/openai', 'https://host/api/openai/chat/completions'),
        ('http://[::1]:8000/v1/chat/completions', 'http://[::1]:8000/v1/chat/completions'),
        ('ftp://host', None),
        ('host:8000', None),
        ('/v1', None),
        ('http://host:port', None),
        ('http://me:secret@host', None),
        ('http://host/v1?key=secret', None),
    ],
)
def test_addresses(url, expected):
    if expected is not None:
        assert str(completions_url(url)) == expected
        return
    with pytest.raises(SettingsError, match='vlm_url') as error:
        completions_url(url)
    assert 'secret' not in str(error.value)


@pytest.mark.parametrize(
    ('name', 'template', 'profile'),
    [
        ('Ricky06662/VisionReasoner-7B', None, 'vision_reasoner'),
        ('Qwen/Qwen2.5-VL-7B-Instruct', None, 'qwen2_5_vl'),
        ('qwen3-vl:8b', None, 'qwen3_vl'),
        ('/models/Seg-Zero-7B', None, 'seg_zero'),
        ('my-model', 'visurf', 'visurf'),
        ('my-model', None, None),
        ('my-model', 'llava_v1', None),
    ],
)
def test_the_served_name_chooses_the_profile(name, template, profile):
    if profile is None:
        with pytest.raises(SettingsError, match='template'):
            choose_served_profile(name, template)
    else:
        assert choose_served_profile(name, template) is PROFILES[profile]


def test_settings_that_contradict_each_other_are_errors(folders):
    options = LoadOptions(vlm_url='http://127.0.0.1:9', segmenter_model=folders / 'sam2')
    with pytest.raises(SettingsError, match=r'vlm_url is for model vlm\+sam:NAME'):
        load_backend('lisa-tabletop', options)
    with pytest.raises(SettingsError, match='model_sha256'):
        load_backend(f'vlm+sam:{NAME}', dataclasses.replace(options, sha256='0' * 64))
    with pytest.raises(SettingsError, match='expected vlm'):
        load_backend('vlm+sam:', options)


@pytest.mark.parametrize(
    ('value', 'seconds'),
    [
        ('3', 3),
        (' 0 ', 0),
        ('\x1e3', 3),
        ('', None),
        ('soon', None),
        ('-1', None),
        ('1.5', None),
        ('\u0663', None),
        ('\u00b2', None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_may_be_a_date():
    assert retry_after('Wed, 21 Oct 2015 07:28:00 GMT') == 0
    assert retry_after('Wed, 21 Oct 2099 07:28:00 GMT') > 1e9
    # the two clocks differ
    assert retry_after('Wed, 21 Oct 2099 07:28:05 GMT', 'Wed, 21 Oct 2099 07:28:00 GMT') == 5
    assert retry_after('Wed, 21 Oct 2015 07:28:05 GMT', 'Wed, 21 Oct 2015 07:28:00 GMT') == 5
    assert retry_after('Wed, 21 Oct 2015 07:28:05 GMT', 'no date') == 0


# ---- coordinates


def box_text(sides, box=TEST_BOX, swapped=False):
    numbers = [share * sides[i % 2] for i, share in enumerate(box)]
    if swapped:
        numbers = [numbers[i] for i in (1, 0, 3, 2)]
    return f'It is here: [{{"bbox_2d": {[round(n, 3) for n in numbers]}, "label": "it"}}]'


@pytest.mark.parametrize(
    ('profile', 'text', 'certain', 'problem'),
    [
        ('qwen2_5_vl', box_text((644, 476)), False, ''),
        ('qwen3_vl', box_text((1000, 1000)), False, ''),
        ('qwen2_5_vl', box_text((1000, 1000)), True, 'thousandths of the image, the profile exp'),
        ('qwen3_vl', box_text((644, 476)), True, 'pixels of the image as it is sent'),
        ('qwen2_5_vl', box_text((1, 1)), True, 'shares of the image, 0 to 1'),
        ('qwen2_5_vl', box_text((644, 476), swapped=True), True, 'y before x'),
        ('qwen3_vl', box_text((1000, 1000), swapped=True), True, 'y before x'),
        ('qwen2_5_vl', box_text((336, 252)), True, '644 x 476 pixels to about 336 x 252 pixels'),
        ('qwen2_5_vl', box_text((300, 400)), False, 'not at the red rectangle'),
        ('qwen2_5_vl', box_text((644, 476), (0.1, 0.1, 0.9, 0.9)), False, 'not at the red rect'),
        ('qwen2_5_vl', 'I see a red rectangle.', False, 'gives no box'),
        ('qwen2_5_vl', '[]', False, 'gives no box'),
        ('qwen3_vl', f'{box_text((644, 476))}?</think>{box_text((1000, 1000))}', False, ''),
        ('qwen3_vl', f'<think>{box_text((644, 476))}', False, "gives no box: '<think>It is here"),
    ],
)
def test_wrong_coordinates_are_noticed(profile, text, certain, problem):
    check = check_coordinates(text, PROFILES[profile], (644, 476))
    assert check.is_certain is certain
    assert problem in check.problem if problem else check.problem == ''


def test_the_test_image_has_the_box():
    red = (draw_test_image() == (220, 20, 20)).all(2)
    rows, columns = np.nonzero(red)
    height, width = red.shape
    box = columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height
    assert box == pytest.approx(TEST_BOX, abs=0.01)


def test_a_model_in_other_units_is_not_loaded(folders, fault_server):
    fault_server.answer = scripted(f'<answer>{box_text((1000, 1000))}</answer>')
    with pytest.raises(SettingsError, match=r'choose another one with template \(qwen3_vl\)'):
        connect(folders, fault_server)
    fault_server.answer = busy(503)
    backend = connect(folders, fault_server)
    fault_server.answer = scripted(f'<answer>{box_text((1000, 1000))}</answer>')
    for _ in range(2):  # a server that starts later is tested before its first answer
        result = answer(backend)[-1].result
        assert (result.status, len(result.masks)) == (Status.FAILED, 0)
        assert 'choose another one with template' in result.reason


# ---- a server that resizes images


LARGE, SMALL = (1120, 896), (196, 196)  # test images of a Qwen2.5-VL, as they are sent
QWEN = 'Qwen/Qwen2.5-VL-7B-Instruct'


def image_with_red(width, height):
    """Return an image with a red rectangle, and its box [px]."""
    image = np.full((height, width, 3), 255, np.uint8)
    x0, y0, x1, y1 = box = width // 10, height // 5, 2 * width // 5, 3 * height // 5
    image[y0:y1, x0:x1] = (220, 20, 20)
    return image, box


def read_box(vlm, image):
    """Return the box in the answer about an image, in its pixels."""
    prompt = vlm.prepare(image, 'the red rectangle')
    parser = AnswerParser(vlm.profile, prompt.resized, (image.shape[1], image.shape[0]))
    (located,) = parser.push(''.join(token.text for token in vlm.generate(prompt, 99, Stop())))
    parser.finish()
    return located.box


@pytest.mark.parametrize('max_pixels', [1280 * 28 * 28, 16384 * 28 * 28])
@pytest.mark.parametrize('size', [(1280, 720), (640, 480), (320, 240), (64, 48)])
def test_a_server_that_leaves_images_as_they_are_passes_two_tests(max_pixels, size):
    with running(say := PointsAtRed(max_pixels=max_pixels)) as server:
        vlm = RemoteVlm.connect(server.url, QWEN)
        assert len(vlm.notices) == 2  # what is sent, and no probabilities
        assert say.seen == [(LARGE, LARGE), (SMALL, SMALL)]
        image, box = image_with_red(*size)
        assert read_box(vlm, image) == pytest.approx(box, abs=max(size) / 56)
        assert len(say.seen) == 3  # no further test


@pytest.mark.parametrize('tokens', [256, 400, 512, 768, 1000, 1100])
def test_a_server_that_reduces_large_images_is_not_loaded(tokens):
    with running(say := PointsAtRed(max_pixels=tokens * 28 * 28)) as server:
        with pytest.raises(SettingsError) as error:
            RemoteVlm.connect(server.url, QWEN)
        ((sent, (width, height)),) = say.seen  # one request is enough to see it
    message = str(error.value)
    resized = f'1120 x 896 pixels to about {width} x {height} pixels'
    assert sent == LARGE
    assert f'{server.url}: the server resizes an image of {resized}' in message
    assert message.endswith(
        'with vLLM --mm-processor-kwargs \'{"min_pixels": 3136, "max_pixels": 1003520}\''
    )


def test_a_server_that_enlarges_small_images_answers_about_others(caplog):
    with running(say := PointsAtRed(min_pixels=256 * 28 * 28)) as server:
        vlm = RemoteVlm.connect(server.url, QWEN)
        (_, notice, _) = vlm.notices
        assert 'resizes an image of 196 x 196 pixels to about 448 x 448 pixels' in notice
        assert '--mm-processor-kwargs' in notice
        assert notice.endswith('about images of less than 448 x 448 pixels may fail')
        for size in ((1280, 720), (640, 480), (448, 448)):  # as they are sent: not smaller
            image, box = image_with_red(*size)
            assert read_box(vlm, image) == pytest.approx(box, abs=max(size) / 56)
        assert len(say.seen) == 5
        image, _ = image_with_red(320, 240)
        for _ in range(2):
            with pytest.raises(ModelError, match='308 x 252 pixels to about 504 x 420') as error:
                read_box(vlm, image)
        assert '--mm-processor-kwargs' in str(error.value)
        assert len(say.seen) == 6  # this size was tested once, and no question asked


def test_an_image_that_the_server_may_enlarge_is_tested_in_its_own_size():
    """A server that takes 190000 pixels makes 448 x 448 of the small image."""
    with running(say := PointsAtRed(min_pixels=190_000)) as server:
        vlm = RemoteVlm.connect(server.url, QWEN)
        assert say.seen[-1] == (SMALL, (448, 448))
        image, box = image_with_red(476, 420)  # 199920 pixels
        for _ in range(2):
            assert read_box(vlm, image) == pytest.approx(box, abs=2)
        assert len(say.seen) == 5  # a test, and two questions


def test_a_server_that_enlarges_starts_later(folders):
    options = {'segmenter_model': folders / 'sam2', 'device': 'cpu'}
    with running(busy(503)) as server:
        options = LoadOptions(vlm_url=server.url, **options)
        backend = load_backend(f'vlm+sam:{QWEN}', options)
        assert 'has no capacity' in backend.notices[-1]
        server.answer = say = PointsAtRed(min_pixels=256 * 28 * 28)
        small = image_with_red(320, 240)[0]
        result = answer(backend, image=small)[-1].result
        assert (result.status, len(result.masks)) == (Status.FAILED, 0)
        assert '--mm-processor-kwargs' in result.reason
        assert [sent for sent, _ in say.seen] == [LARGE, SMALL, (308, 252)]  # tests alone
        result = answer(backend, image=image_with_red(640, 480)[0])[-1].result
        assert result.status in ANSWERED  # by the toy SAM 2
    with running(busy(503)) as server:
        backend = load_backend(f'vlm+sam:{QWEN}', dataclasses.replace(options, vlm_url=server.url))
        server.answer = say = PointsAtRed(max_pixels=512 * 28 * 28)
        for _ in range(2):
            result = answer(backend, image=image_with_red(640, 480)[0])[-1].result
            assert (result.status, len(result.masks)) == (Status.FAILED, 0)
            assert '--mm-processor-kwargs' in result.reason
        assert [sent for sent, _ in say.seen] == [LARGE]


def test_a_test_that_is_cut_off_goes_on_with_the_next_question():
    stop = Stop()
    points = PointsAtRed()

    def cut(handler, body):
        if len(points.seen) == 1:
            stop.event.set()
        points(handler, body)

    with running(busy(503)) as server:
        vlm = RemoteVlm.connect(server.url, QWEN)
        server.answer = cut
        prompt = vlm.prepare(image_with_red(640, 480)[0], 'it')
        assert list(vlm.generate(prompt, 99, stop)) == []
        assert ''.join(t.text for t in vlm.generate(prompt, 99, Stop())).startswith('[{"bbox_2d')
        sizes = [sent for sent, _ in points.seen]
    assert sizes == [LARGE, SMALL, SMALL, (644, 476)]


def test_a_server_that_is_too_slow_for_the_largest_image_is_tested_with_a_usual_one(caplog):
    points, stop = PointsAtRed(), Stop()

    def slow(handler, body):
        if sent_image(body['messages'][-1]['content'][0]).size == LARGE:
            stop.seconds_left = 0
            stop.event.set()
        points(handler, body)

    with running(busy(503)) as server:
        vlm = RemoteVlm.connect(server.url, QWEN)
        server.answer = slow
        image, box = image_with_red(640, 480)
        assert list(vlm.generate(vlm.prepare(image, 'it'), 99, stop)) == []
        assert read_box(vlm, image) == pytest.approx(box, abs=12)
    assert [sent for sent, _ in points.seen] == [LARGE, (644, 476), SMALL, (644, 476)]
    assert 'did not answer in time about the largest test image: one of 640 x 480' in caplog.text


def test_a_server_without_room_for_the_largest_image_is_tested_with_a_usual_one():
    with running(say := PointsAtRed(context=400)) as server:
        vlm = RemoteVlm.connect(server.url, QWEN)
        (_, notice, _) = vlm.notices
        assert 'maximum context length): one of 640 x 480 pixels is sent' in notice
        image, box = image_with_red(640, 480)
        assert read_box(vlm, image) == pytest.approx(box, abs=12)
        sizes = [sent for sent, _ in say.seen]
        assert sizes == [LARGE, LARGE, (644, 476), SMALL, (644, 476)]  # without logprobs, too
    with running(busy(404)) as server, pytest.raises(ModelError, match='404'):
        RemoteVlm.connect(server.url, QWEN)


@pytest.mark.parametrize('status', [413, 500])
def test_a_server_that_fails_at_the_largest_image_is_tested_with_a_usual_one(status):
    with running(say := PointsAtRed(context=400, status=status)) as server:
        vlm = RemoteVlm.connect(server.url, QWEN)
        assert 'one of 640 x 480 pixels is sent' in ' '.join(vlm.notices)
        image, box = image_with_red(640, 480)
        assert read_box(vlm, image) == pytest.approx(box, abs=12)
        assert LARGE in [sent for sent, _ in say.seen]
    with running(busy(500)) as server, pytest.raises(ModelError, match='500'):
        RemoteVlm.connect(server.url, QWEN)


def test_a_model_that_points_a_little_beside_is_not_taken_for_a_server_that_resizes():
    small = (196, 196)
    x0, y0, x1, y1 = (share * 196 for share in TEST_BOX)
    beside = [x0 + 8, y0 + 8, x1 + 5, y1 + 5]
    check = check_coordinates(f'[{{"bbox_2d": {beside}}}]', PROFILES['qwen2_5_vl'], small)
    assert (check.is_certain, check.server_size) == (False, None)
    assert 'not at the red rectangle' in check.problem


@pytest.mark.parametrize('name', ['VisionReasoner-toy', 'Qwen3-VL'])
def test_a_model_that_does_not_count_pixels_of_any_size_is_tested_once(name):
    sides = (1000, 1000) if 'Qwen3' in name else (840, 840)
    text = box_text(sides).partition(': ')[2]
    with running(scripted(text if 'Qwen3' in name else f'<answer>{text}</answer>')) as server:
        assert len(RemoteVlm.connect(server.url, name).notices) == 2
        assert len(server.requests) == 1
