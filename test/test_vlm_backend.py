# SPDX-License-Identifier: Apache-2.0
"""A vision-language model with SAM 2 as a backend, at toy size: its answers come from a script."""

import dataclasses
import gc
import json
import shutil
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_qwen import save_scripted
from toy_sam2 import toy_image, toy_model

from lisa_ros import cli
from lisa_ros.errors import CheckpointError, ImageError, QueryError, SettingsError
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.model.sam2 import Sam2
from lisa_ros.perception import stopping
from lisa_ros.perception.answer_phrases import object_names
from lisa_ros.perception.backend import InferenceOptions, LoadOptions, Query, ReportsPrecision
from lisa_ros.perception.model_source import DEFAULT_SEGMENTER
from lisa_ros.perception.newest_images import MAX_IMAGES
from lisa_ros.perception.process_backend import ProcessBackend
from lisa_ros.perception.registry import load_backend
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import Dialogue, Done, MaskReady, Status, Token, Turn

IMAGE = toy_image('coffee')  # 180 x 240 [px]
THINK = '<think> The mug is red, the bowl is blue. </think>'
MUG = '{"bbox_2d": [210, 210, 700, 700], "point_2d": [420, 420]}'
BOWL = '{"bbox_2d": [0, 0, 420, 420], "point_2d": [105, 105], "label": "bowl"}'
NAMED = (  # "find the pan and the mug" has another order
    '{"bbox_2d": [210, 210, 700, 700], "label": "the mug"}',
    '{"bbox_2d": [0, 0, 420, 420], "label": "pan"}',
)
BOXES = {MUG: (60.0, 45.0, 200.0, 150.0), BOWL: (0.0, 0.0, 120.0, 90.0)}  # of IMAGE [px]
POINTS = {MUG: ((120.0, 90.0),), BOWL: ((30.0, 22.5),)}
SCRIPTS = {
    'found': (THINK, '<answer>[', MUG, ', ', BOWL, ']', '</answer>', 'never said'),
    'absent': (THINK, '<answer>', '[]', '</answer>'),
    'prose': (THINK, 'I see no mug.'),
    'outside': (THINK, '<answer>[', MUG, ',', '{"bbox_2d": [0, 0, 1900, 40]}', ']', '</answer>'),
    'open': (THINK, '<answer>[', MUG, ', '),
    'swapped': ('<answer>[', NAMED[0], ', ', NAMED[1], ']', '</answer>'),
    'long': tuple(f'word {number} ' for number in range(300)),
}


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Folders of SAM 2, and of a VisionReasoner for each script."""
    root = tmp_path_factory.mktemp('models')
    toy_model().save_pretrained(root / 'sam2')
    for name, pieces in SCRIPTS.items():
        (root / name / 'VisionReasoner-toy').mkdir(parents=True)
        save_scripted(root / name / 'VisionReasoner-toy', *pieces)
    return root


def options_of(folders, **options):
    defaults = {'device': 'cpu', 'segmenter_model': folders / 'sam2', 'max_input_side': 1024}
    return LoadOptions(**(defaults | options))


def name_of(folders, script):
    return f'vlm+sam:{folders / script / "VisionReasoner-toy"}'


@pytest.fixture(scope='module')
def backends(folders):
    return {name: load_backend(name_of(folders, name), options_of(folders)) for name in SCRIPTS}


def answer(backend, query='the mug', image=IMAGE, cancel=None, region=None, **options):
    query = query if isinstance(query, Query) else Query(query, region=region)
    return list(
        stream_in_region(
            backend, image, query, InferenceOptions(**options), cancel or threading.Event()
        )
    )


def test_masks_come_with_the_words_of_their_object(backends, folders):
    events = answer(backends['found'])
    kinds = [type(event) for event in events]
    masks = [event for event in events if isinstance(event, MaskReady)]
    tokens = [event.text for event in events if isinstance(event, Token)]
    result = events[-1].result
    assert tokens == list(SCRIPTS['found'][:-1])  # it stops at </answer>
    assert kinds == [Token] * 3 + [MaskReady] + [Token] * 2 + [MaskReady] + [Token] * 2 + [Done]
    assert result.status is Status.FOUND
    assert result.answer == 'The mug is red, the bowl is blue.'
    assert result.answer_raw == ''.join(tokens)
    assert (result.reason, result.details) == ('', None)
    assert list(result.timings) == ['prompt', 'tokens', 'sam', 'masks']
    assert result.time_to_first_mask > 0
    assert len(masks) == len(result.masks) == 2
    sam2 = Sam2.load(folders / 'sam2', torch.device('cpu'))
    features = sam2.encode(IMAGE)
    for number, name in enumerate((MUG, BOWL)):
        mask = sam2.decode(features, BOXES[name], POINTS[name])
        assert np.array_equal(result.mask_logits[number], mask.logits)
        assert np.array_equal(masks[number].mask, result.masks[number])


def test_scores_are_products_of_the_probabilities(backends):
    backend = backends['found']
    events = answer(backend)
    inputs = backend._vlm.prepare(IMAGE, 'the mug')
    probabilities = [token.probability for token in backend._vlm.generate(inputs, 6)]
    assert all(0.5 < probability < 0.9999 for probability in probabilities)
    # from the begin of the list, and from the comma after the first object
    words = [np.prod(probabilities[1:3]), np.prod(probabilities[3:5])]
    features = backend._sam2.encode(IMAGE)
    for name, words_prob, score in zip((MUG, BOWL), words, events[-1].result.scores, strict=True):
        mask = backend._sam2.decode(features, BOXES[name], POINTS[name])
        assert score == pytest.approx(words_prob * mask.presence * mask.predicted_iou, rel=1e-4)


def test_an_empty_list_is_not_found(backends):
    backends['absent'].clear_cache()
    result = answer(backends['absent'])[-1].result
    assert (result.status, result.reason) == (Status.NOT_FOUND, '')
    assert result.answer == 'The mug is red, the bowl is blue.'
    assert 'sam' not in result.timings  # no object: the image need not be encoded


@pytest.mark.parametrize(
    ('script', 'reason', 'masks'),
    [
        ('prose', 'the answer has no <answer> tag', 0),
        ('outside', 'object 2 has the coordinates [0, 0, 1900, 40]; expected 0 to 840', 1),
        ('open', 'the answer is not whole JSON: it breaks off', 1),
    ],
)
def test_a_broken_answer_has_failed(script, reason, masks, backends):
    events = answer(backends[script])
    result = events[-1].result
    assert result.status is Status.FAILED
    assert result.reason.startswith(f'the answer of the model cannot be used: {reason}')
    assert result.answer.startswith(THINK)  # all text, for the one who looks for the fault
    assert sum(isinstance(event, MaskReady) for event in events) == len(result.masks) == masks


def test_the_token_limit_is_named(backends):
    result = answer(backends['found'], max_new_tokens=4)[-1].result
    assert result.status is Status.FAILED
    assert result.reason.endswith('or is malformed (max_new_tokens: 4)')
    assert len(result.masks) == 1


def test_a_cancel_ends_the_answer_and_keeps_its_masks(backends):
    cancel, events = threading.Event(), []
    for event in stream_in_region(
        backends['found'], IMAGE, Query('the mug'), InferenceOptions(), cancel
    ):
        events.append(event)
        if isinstance(event, MaskReady):
            cancel.set()
    assert [type(event) for event in events] == [Token] * 3 + [MaskReady, Done]
    assert events[-1].result.status is Status.CANCELLED
    assert len(events[-1].result.masks) == 1


def test_an_answer_that_takes_too_long_is_timed_out(backends, monkeypatch):
    now, events = 0.0, []
    monkeypatch.setattr(stopping, 'time', SimpleNamespace(monotonic=lambda: now))
    options = InferenceOptions(answer_timeout=5.0)
    query = Query('the mug')
    for event in stream_in_region(backends['long'], IMAGE, query, options, threading.Event()):
        events.append(event)
        now += 1.0
    result = events[-1].result
    assert result.status is Status.TIMED_OUT
    assert result.answer_raw.startswith('word 0')
    assert len(events) == 6  # five tokens of a second each, and the end


def test_the_images_of_several_cameras_are_encoded_once(backends):
    backend = backends['found']
    cameras = [np.roll(IMAGE, 20 * number, axis=1) for number in range(MAX_IMAGES)]

    def are_encoded(*images):
        answers = [answer(backend, image=image)[-1].result for image in images]
        return ['sam' in result.timings for result in answers]

    backend.clear_cache()
    assert are_encoded(*cameras) == [True] * MAX_IMAGES
    assert are_encoded(*cameras, IMAGE.copy()) == [False] * (MAX_IMAGES + 1)
    assert are_encoded(IMAGE[::-1], IMAGE, cameras[1]) == [True, False, True]  # the oldest went
    backend.clear_cache()
    assert are_encoded(IMAGE) == [True]


def test_a_batch_of_images_is_encoded_before_the_questions(backends):
    backend = backends['found']
    images = [IMAGE, np.ascontiguousarray(IMAGE[:90]), np.ascontiguousarray(IMAGE[::-1])]
    backend.clear_cache()
    expected = [answer(backend, image=image)[-1].result for image in images]
    backend.clear_cache()
    backend.encode_images(images)
    for image, alone in zip(images, expected, strict=True):
        result = answer(backend, image=image)[-1].result
        assert 'sam' not in result.timings
        np.testing.assert_allclose(result.mask_logits, alone.mask_logits, atol=1e-3)
    with pytest.raises(ImageError):
        backend.encode_images([IMAGE[..., 0]])


def test_a_further_question_about_an_image_reads_only_its_own_words(backends, folders):
    backend, other = backends['found'], np.ascontiguousarray(IMAGE[::-1])
    forgetful = load_backend(name_of(folders, 'found'), options_of(folders, cache_bytes=0))
    questions = [(IMAGE, 'the mug'), (other, 'the mug'), (IMAGE, 'the bowl'), (other, 'a cup')]
    backend.clear_cache()
    assert backend.cache_use.prompts == 0
    for image, query in questions:
        results = [answer(each, query, image)[-1].result for each in (backend, forgetful)]
        np.testing.assert_allclose(*(result.scores for result in results), rtol=1e-4)
    assert backend.cache_use.prompts == len(questions)
    assert 0 < backend.cache_use.bytes <= backend.cache_use.limit
    assert forgetful.cache_use == CacheUse(prompts=0, bytes=0, limit=0)


def test_the_other_one_is_not_what_was_shown_before(backends):
    backend = backends['found']
    first = answer(backend, 'the mug')[-1].result
    elsewhere = dataclasses.replace(first, masks=~first.masks)
    result = answer(backend, Query('the other one', Dialogue().extended(elsewhere)))[-1].result
    assert len(result.masks) == 2
    dialogue = Dialogue().extended(first)
    result = answer(backend, Query('the other one', dialogue))[-1].result
    assert result.status is Status.NOT_FOUND
    assert result.reason == 'the model found only an object that was shown before'
    assert len(answer(backend, Query('the mug', dialogue))[-1].result.masks) == 2


def test_only_a_model_for_several_questions_reads_earlier_turns(backends, folders):
    talkative = load_backend(
        name_of(folders, 'absent'), options_of(folders, template='qwen2_5_vl')
    )
    dialogue = Dialogue((Turn('the mug', '[]'),))
    for backend, is_longer in ((backends['absent'], False), (talkative, True)):
        assert backend.capabilities.dialogue == is_longer
        lengths = []
        for query in (Query('the bowl'), Query('the bowl', dialogue)):
            backend.clear_cache()
            answer(backend, query)
            lengths.append(backend.cache_use.bytes)
        assert (lengths[1] > lengths[0]) == is_longer


def test_a_threshold_leaves_out_masks(backends):
    first, second = answer(backends['found'])[-1].result.scores
    result = answer(backends['found'], confidence_threshold=float(min(first, second)) + 1e-4)
    assert len(result[-1].result.masks) == 1
    result = answer(backends['found'], confidence_threshold=1.0)[-1].result
    assert (result.status, len(result.masks)) == (Status.NOT_FOUND, 0)


def test_each_mask_has_the_name_of_its_label(backends):
    events = answer(backends['swapped'], 'find the pan and the mug')
    result = events[-1].result
    assert result.names == object_names(result) == ('mug', 'pan')
    assert [event.name for event in events if isinstance(event, MaskReady)] == ['mug', 'pan']
    assert answer(backends['swapped'], 'all', verify=True)[-1].result.names == ('mug', 'pan')
    region = answer(backends['swapped'], 'all', region=(40, 30, 120, 90))[-1].result
    assert region.names == ('mug', 'pan')
    # a mask that is left out has no name
    worst = int(result.scores.argmin())
    threshold = float(result.scores[worst]) + 1e-4
    kept = answer(backends['swapped'], 'all', confidence_threshold=threshold)[-1].result
    assert kept.names == (('mug', 'pan')[1 - worst],)
    # one label is missing: the command is about both
    assert answer(backends['found'], 'find it')[-1].result.names == ('', 'bowl')


def test_masks_of_an_answer_that_does_not_end_keep_their_names(backends):
    partial = stopping.PartialAnswer('find the pan and the mug', IMAGE.shape[:2])
    for event in answer(backends['swapped'], 'find the pan and the mug')[:-1]:
        partial.add(event)
    result = partial.result(stopping.timed_out(1.0))
    assert (result.status, object_names(result)) == (Status.TIMED_OUT, ('mug', 'pan'))


def test_masks_can_be_refined(backends):
    plain, refined = (
        answer(backends['found'], refine=refine)[-1].result for refine in (None, True)
    )
    assert 'refine' in refined.timings
    assert not np.array_equal(plain.masks, refined.masks)


def test_a_region_is_asked_alone(backends, folders):
    x, y, width, height = region = (40, 30, 120, 90)
    result = answer(backends['found'], region=region)[-1].result
    assert result.masks.shape == (2, *IMAGE.shape[:2])
    part = np.ascontiguousarray(IMAGE[y : y + height, x : x + width])
    expected = answer(backends['found'], image=part)[-1].result.masks
    assert np.array_equal(result.masks[:, y : y + height, x : x + width], expected)


def test_errors_of_a_request_are_raised_by_the_call(backends):
    arguments = (InferenceOptions(), threading.Event())
    with pytest.raises(ImageError, match=r'expected \(H, W, 3\)'):
        backends['found'].stream(IMAGE[..., 0], Query('the mug'), *arguments)
    with pytest.raises(QueryError, match='empty'):
        backends['found'].stream(IMAGE, Query(' ?! '), *arguments)


def test_what_the_backend_says_of_itself(backends):
    backend = backends['found']
    assert isinstance(backend, ReportsPrecision)
    assert (backend.device, backend.precision) == ('cpu', 'fp32')
    assert (backend.capabilities.explains, backend.capabilities.denies) == (True, False)
    assert backend.capabilities.instances
    assert not backend.capabilities.dialogue


# ---- loading


def test_the_answers_of_its_own_process_are_the_same(folders, backends):
    backend = ProcessBackend(name_of(folders, 'found'), options_of(folders, threads=1))
    try:
        there, here = (answer(each)[-1].result for each in (backend, backends['found']))
        assert backend.precision == 'fp32'
        assert np.array_equal(there.masks, here.masks)
        assert (there.answer, there.status) == (here.answer, here.status)
        assert there.names == here.names == ('', 'bowl')
    finally:
        backend.close()


def test_the_template_is_a_profile(folders):
    options = options_of(folders, template='qwen2_5_vl')
    backend = load_backend(name_of(folders, 'found'), options)
    assert backend.capabilities.denies
    result = answer(backend)[-1].result  # the model still answers in pixels of 840 x 840
    assert result.status is Status.FAILED
    assert 'another profile (template) may fit this model' in result.reason
    with pytest.raises(SettingsError, match=r"'llava_v1': .* one of vision_reasoner"):
        load_backend(name_of(folders, 'found'), options_of(folders, template='llava_v1'))


def test_the_default_segmenter_is_not_downloaded_unasked(folders, monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    options = options_of(folders, segmenter_model=None)
    with pytest.raises(CheckpointError, match=rf'{DEFAULT_SEGMENTER} is not in.*segmenter_model'):
        load_backend(name_of(folders, 'found'), options)


@pytest.mark.parametrize(
    ('model', 'segmenter', 'message'),
    [
        ('sam2', 'sam2', "names the model type 'sam2'; expected qwen2_5_vl or qwen3_vl"),
        ('found/VisionReasoner-toy', 'found/VisionReasoner-toy', "the type 'qwen2_5_vl'"),
        ('nothing', 'sam2', 'no such folder'),
    ],
)
def test_models_of_another_kind_are_refused(model, segmenter, message, folders):
    options = options_of(folders, segmenter_model=folders / segmenter)
    with pytest.raises(CheckpointError, match=message):
        load_backend(f'vlm+sam:{folders / model}', options)


def test_a_checksum_is_that_of_the_vision_language_model(folders):
    with pytest.raises(CheckpointError, match=r'VisionReasoner-toy.*SHA-256'):
        load_backend(name_of(folders, 'found'), options_of(folders, sha256='0' * 64))


def test_a_lock_file_pins_sam_2_too(folders, tmp_path, capsys):
    lock, copy = tmp_path / 'lock.json', tmp_path / 'sam2'
    shutil.copytree(folders / 'sam2', copy)
    command = ['checksum', name_of(folders, 'found'), '--write-lock', str(lock)]
    assert cli.main([*command, '--segmenter-model', str(copy)]) == 0
    assert sorted(json.loads(lock.read_text())['models']) == ['VisionReasoner-toy', 'sam2']
    options = options_of(folders, segmenter_model=copy, lock=lock)
    assert answer(load_backend(name_of(folders, 'found'), options))[-1].result.masks.any()
    (copy / 'config.json').write_text((copy / 'config.json').read_text() + ' ')
    with pytest.raises(CheckpointError, match=r'sam2: differs from .*config\.json changed'):
        load_backend(name_of(folders, 'found'), options)


def test_the_default_segmenter_is_locked_if_the_command_may_find_it(
    folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    lock = tmp_path / 'lock.json'
    command = ['checksum', name_of(folders, 'found'), '--write-lock', str(lock)]
    assert cli.main(command) == 1
    assert 'allow the download with' in capsys.readouterr().err
    assert not lock.exists()


def test_a_backend_that_is_dropped_frees_its_memory(folders):
    backend = load_backend(name_of(folders, 'found'), options_of(folders))
    answer(backend)
    models = [weakref.ref(backend._vlm._model), weakref.ref(backend._sam2._model)]
    del backend
    gc.collect()
    assert [model() for model in models] == [None, None]


def test_python_and_the_command_line_take_it(folders, tmp_path, capsys):
    segmenter = Segmenter.load(
        name_of(folders, 'found'), device='cpu', segmenter_model=folders / 'sam2'
    )
    assert len(segmenter.segment(IMAGE, 'the mug').masks) == 2
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / 'image.png')
    command = ['segment', str(tmp_path / 'image.png'), 'the mug', '--device', 'cpu']
    command += ['--model', name_of(folders, 'found'), '--segmenter-model', str(folders / 'sam2')]
    assert cli.main([*command, '--out', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    assert 'The mug is red, the bowl is blue.' in text
    assert all(f'mask {line}, score' in text for line in ('1: mug', '2: bowl'))
    assert cli.main([*command, '--json']) == 0
    masks_json = json.loads(capsys.readouterr().out)['masks']
    assert [mask['name'] for mask in masks_json] == ['mug', 'bowl']


def test_the_model_is_asked_whether_its_masks_are_right(backends):
    """The toy's words after the question are the first of its script: no number, no decision."""
    plain = answer(backends['found'])[-1].result
    events = answer(backends['found'], verify=True)
    result = events[-1].result
    assert 'verify' in result.timings
    kinds = [type(event) for event in events]
    assert kinds == [Token] * 7 + [MaskReady] * 2 + [Done]
    assert result.scores == pytest.approx(plain.scores)
