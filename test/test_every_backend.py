# SPDX-License-Identifier: Apache-2.0
"""What every backend has in common, asked from outside: answers, errors, dialogue, commands."""

import gc
import json
import threading
import weakref

import numpy as np
import pytest
import torch
from every_backend import NAMES, make_models, networks
from PIL import Image

from lisa_ros import cli
from lisa_ros.errors import ImageError, QueryError
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions, Query
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.results import ANSWERED, Dialogue, Done, MaskReady, Status, Token

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp('models'))


@pytest.fixture(scope='module', params=NAMES)
def model(request, models):
    return models[request.param]


@pytest.fixture(scope='module')
def backend(model):
    return model.load()


def events_of(backend, model, query=None, image=None, cancel=None, **options):
    query = query if isinstance(query, Query) else Query(query or model.query)
    image = model.image if image is None else image
    return stream_in_region(
        backend, image, query, InferenceOptions(**options), cancel or threading.Event()
    )


def answer(backend, model, *arguments, **options):
    """Return the result of a query; its events are checked."""
    *events, done = events_of(backend, model, *arguments, **options)
    assert isinstance(done, Done)
    masks = [event for event in events if isinstance(event, MaskReady)]
    assert all(isinstance(event, Token | MaskReady) for event in events)
    result = done.result
    assert [event.index for event in masks] == list(range(len(result.masks)))
    for event, mask, logits in zip(masks, result.masks, result.mask_logits, strict=True):
        assert np.array_equal(event.mask, mask)
        assert np.array_equal(event.mask_logits, logits)
    assert result.masks.shape[1:] == model.image.shape[:2]
    assert result.masks.shape == result.mask_logits.shape
    assert (result.masks.dtype, result.mask_logits.dtype) == (bool, np.float32)
    assert np.array_equal(result.masks, result.mask_logits > 0)
    assert np.isfinite(result.mask_logits).all()
    assert result.scores.shape == (len(result.masks),)
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    assert all(seconds >= 0 for seconds in result.timings.values())
    return result


def test_an_answer_has_masks_scores_and_words(backend, model):
    result = answer(backend, model)
    assert (result.status, result.reason, result.query) == (Status.FOUND, '', model.query)
    assert result.masks.any()
    assert result.answer
    assert '[SEG]' not in result.answer
    text = ''.join(e.text for e in events_of(backend, model) if isinstance(e, Token))
    assert text == result.answer_raw
    again = answer(backend, model)
    assert again.answer == result.answer
    np.testing.assert_allclose(again.mask_logits, result.mask_logits, atol=1e-3)


@pytest.mark.parametrize('tokens', [0, 1])
def test_a_cancelled_answer_has_the_status_cancelled(tokens, backend, model):
    cancel, events = threading.Event(), []
    if not tokens:
        cancel.set()
    for event in events_of(backend, model, cancel=cancel):
        events.append(event)
        cancel.set()
    result = events[-1].result
    assert result.status is Status.CANCELLED
    assert sum(isinstance(event, MaskReady) for event in events) == len(result.masks)
    assert answer(backend, model).status is Status.FOUND  # the next one is whole


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (None, 'the image is a NoneType; expected a numpy'),
        (np.zeros((40, 60), np.uint8), r'expected \(H, W, 3\)'),
        (np.zeros((3, 40, 60), np.uint8), r'expected \(H, W, 3\)'),
        (np.full((40, 60, 3), np.nan, np.float32), 'is float32; expected uint8'),
        (np.zeros((0, 60, 3), np.uint8), 'empty'),
    ],
    ids=['none', 'grey', 'channels first', 'nan', 'empty'],
)
def test_a_wrong_image_is_an_error_of_the_call(image, message, backend, model):
    arguments = (Query(model.query), InferenceOptions(), threading.Event())
    with pytest.raises(ImageError, match=message):
        stream_in_region(backend, image, *arguments)
    region = Query(model.query, region=(0, 0, 8, 8))
    with pytest.raises(ImageError, match=message):
        stream_in_region(backend, image, region, *arguments[1:])


def test_an_empty_query_is_an_error_of_the_call(backend, model):
    for text in ('', ' \n '):
        with pytest.raises(QueryError, match='the query is empty'):
            stream_in_region(
                backend, model.image, Query(text), InferenceOptions(), threading.Event()
            )


def test_half_a_character_in_a_query_is_an_error_of_the_call(backend, model):
    query = Query('the caf\udce9')
    with pytest.raises(QueryError, match='half a character'):
        stream_in_region(backend, model.image, query, InferenceOptions(), threading.Event())


def test_a_region_s_masks_are_those_of_the_whole_image(backend, model):
    x, y, width, height = region = (10, 20, 90, 100)
    result = answer(backend, model, Query(model.query, region=region))
    outside = np.ones(model.image.shape[:2], bool)
    outside[y : y + height, x : x + width] = False
    assert not result.masks[:, outside].any()


def test_a_dialogue_is_read_if_the_backend_says_so(backend, model):
    dialogue = Dialogue()
    for text in (model.query, 'and the flag?', 'and the other one?'):
        result = answer(backend, model, Query(text, dialogue))
        assert result.status in ANSWERED
        if not backend.capabilities.dialogue:
            alone = answer(backend, model, Query(text))
            assert alone.answer_raw == result.answer_raw
        dialogue = dialogue.extended(result)
    assert len(dialogue.turns) == 3


@pytest.mark.parametrize(
    'options',
    [
        *({'answer_style': style} for style in AnswerStyle),
        {'confidence_threshold': 1.0},
        {'refine': True},
        {'verify': True},
        {'similarity_points': True},
        {'dialogue_boxes': True, 'typed_specials': True, 'answer_timeout': 60.0},
    ],
    ids=str,
)
def test_options_that_a_backend_lacks_are_ignored(options, backend, model):
    result = answer(backend, model, **options)
    assert result.status in ANSWERED
    assert (result.scores >= options.get('confidence_threshold', 0)).all()


def test_the_token_limit_ends_an_answer(backend, model):
    for result in (answer(backend, model, max_new_tokens=count) for count in (1, 2)):
        assert result.status in (*ANSWERED, Status.FAILED)
        assert bool(result.reason) == (result.status is Status.FAILED)


def test_images_that_were_encoded_before_have_the_same_masks(backend, model):
    other = np.ascontiguousarray(model.image[::-1])
    backend.clear_cache()
    expected = [answer(backend, model, image=image) for image in (model.image, other)]
    backend.clear_cache()
    backend.encode_images([model.image, other])
    for image, alone in zip((model.image, other), expected, strict=True):
        result = answer(backend, model, image=image)
        assert result.answer_raw == alone.answer_raw
        np.testing.assert_allclose(result.mask_logits, alone.mask_logits, atol=1e-3)


def fill_with_nan(backend):
    with torch.no_grad():
        for network in networks(backend):
            for weight in network.parameters():
                weight.fill_(torch.nan)


def test_nan_is_a_failure_and_the_memory_of_a_model_can_be_freed(model):
    backend = model.load()
    parts = [weakref.ref(part) for part in (backend, *networks(backend))]
    assert len(parts) > 1 or model.name.startswith('scripted:')
    fill_with_nan(backend)
    query = model.query if len(parts) > 1 else 'nan'
    (*_, done) = events_of(backend, model, query)
    assert done.result.status is Status.FAILED
    assert 'NaN' in done.result.reason
    del backend
    gc.collect()
    assert [part() for part in parts] == [None] * len(parts)


# ---- commands


def test_labelled_images_are_evaluated(model, tmp_path, capsys):
    for name, image in (('a', model.image), ('b', model.image[::-1])):
        folder = tmp_path / 'images' / name
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder.with_suffix('.png'))
        Image.new('L', image.shape[1::-1], 255).save(folder / 'the rocket.png')
    command = ['evaluate', 'images', str(tmp_path / 'images'), '--out', str(tmp_path / 'out')]
    assert cli.main([*command, *model.arguments]) == 0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert len(report['cases']) == 2
    for case in report['cases']:
        assert case['status'] in ('FOUND', 'NOT_FOUND')
        assert 0 <= case['iou'] <= 1


def test_a_chat_has_answers_and_their_images(model, tmp_path, monkeypatch, capsys):
    Image.fromarray(model.image).save(tmp_path / 'image.png')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    lines = iter([model.query, 'and the flag?', '/reset', model.query, '/quit'])
    monkeypatch.setattr('builtins.input', lambda _: next(lines))
    command = ['chat', '--image', str(tmp_path / 'image.png'), '--out', str(tmp_path / 'out')]
    assert cli.main([*command, *model.arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.count(' s, ') == 3, printed
    assert '! ' not in printed
    assert len(list((tmp_path / 'out').iterdir())) == 3
