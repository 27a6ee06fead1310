# SPDX-License-Identifier: Apache-2.0
"""The Segmenter: events and results of a stream, cancel, image cache, options, errors."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch
from golden import DATA, backend, case_array, cases, generated_ids, load_image, segmenter

from lisa_ros.errors import CheckpointError, ImageError, QueryError, SettingsError
from lisa_ros.perception import answer_builder
from lisa_ros.perception.image_encoder import StageTimer
from lisa_ros.perception.newest_images import MAX_IMAGES
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import Dialogue, Done, MaskReady, Status, Token, Turn

CPU = torch.device('cpu')
THREE = next(case for _, case in cases(256) if case['case'] == 2)  # three [SEG]
NONE = next(case for _, case in cases(256) if case['case'] == 9)  # an answer without a mask
TYPED = next(case for _, case in cases(256) if case['case'] == 26)
SEG_ID = backend(256).tokenizer.seg_token_id


def events_of(case: dict, **options):
    lisa = segmenter(256, case['template'], **options)
    return list(lisa.stream(load_image(case['image']), case['prompt']))


def result_of(case: dict, **options):
    return events_of(case, **options)[-1].result


def test_a_mask_comes_before_the_text_after_it():
    events = events_of(THREE)
    kinds = [type(event) for event in events]
    for event, following in zip(events, [*events[1:], None], strict=True):
        is_seg = isinstance(event, Token) and event.token_id == SEG_ID
        assert is_seg == isinstance(following, MaskReady)
    assert kinds.count(MaskReady) == 3
    assert kinds.index(Done) == len(kinds) - 1


def test_the_events_of_a_stream_add_up_to_its_result():
    *events, done = events_of(THREE)
    result = done.result
    tokens = [event for event in events if isinstance(event, Token)]
    masks = [event for event in events if isinstance(event, MaskReady)]
    assert [token.token_id for token in tokens] == list(result.token_ids)
    assert ''.join(token.text for token in tokens) == result.answer_raw
    assert [mask.index for mask in masks] == [0, 1, 2]
    assert np.array_equal([mask.mask for mask in masks], result.masks)
    assert np.array_equal([mask.mask_logits for mask in masks], result.mask_logits)
    assert np.allclose([mask.score for mask in masks], result.scores)


def test_a_result_has_the_promised_types():
    result = result_of(THREE)
    height, width = THREE['original_size']
    assert result.status is Status.FOUND
    assert (result.masks.shape, result.masks.dtype) == ((3, height, width), bool)
    assert (result.mask_logits.dtype, result.scores.dtype) == (np.float32, np.float32)
    assert np.array_equal(result.masks, result.mask_logits > 0)
    assert ((result.scores > 0) & (result.scores <= 1)).all()
    assert result.query == THREE['prompt']
    assert result.answer_raw == THREE['decoded_new_skip_special']
    assert '[SEG]' not in result.answer
    assert '</s>' not in result.answer_raw
    assert all(seconds >= 0 for seconds in result.timings.values())
    assert {'preprocess', 'prompt', 'tokens', 'masks'} <= set(result.timings)
    assert 0 < result.time_to_first_mask <= sum(result.timings.values()) + 1
    assert len(result.details.score_features) == 3


def test_an_answer_without_a_mask_is_no_error():
    result = result_of(NONE)
    assert result.status is Status.NOT_FOUND
    assert result.masks.shape == (0, *NONE['original_size'])
    assert result.mask_logits.shape == result.masks.shape
    assert result.scores.shape == (0,)
    assert result.time_to_first_mask is None
    assert result.answer == 'The suit of the person is orange.'


def test_masks_below_the_threshold_are_left_out():
    threshold = float(np.sort(result_of(THREE).scores)[1]) - 1e-6
    *events, done = events_of(THREE, confidence_threshold=threshold)
    masks = [event for event in events if isinstance(event, MaskReady)]
    assert [event.index for event in masks] == [0, 1]
    assert np.array_equal([event.mask for event in masks], done.result.masks)
    *events, done = events_of(THREE, confidence_threshold=1.0)
    assert done.result.status is Status.NOT_FOUND
    assert not any(isinstance(event, MaskReady) for event in events)


def test_a_seg_after_the_last_mask_number_is_text_only(monkeypatch):
    assert answer_builder.MAX_MASKS == 254  # of ~/mask
    expected = result_of(THREE)
    monkeypatch.setattr(answer_builder, 'MAX_MASKS', 2)
    *events, done = events_of(THREE)
    assert sum(isinstance(event, MaskReady) for event in events) == 2
    assert done.result.answer_raw == expected.answer_raw
    assert np.array_equal(done.result.masks, expected.masks[:2])


def test_a_typed_seg_makes_no_mask_by_default():
    result = result_of(TYPED)
    assert len(result.masks) == result.token_ids.count(SEG_ID)


@pytest.mark.parity
def test_a_typed_seg_makes_the_first_mask_as_in_the_original_with_typed_specials():
    events = events_of(TYPED, typed_specials=True)
    assert isinstance(events[0], MaskReady)
    result = events[-1].result
    assert list(result.token_ids) == generated_ids(256, TYPED)
    full = case_array(256, TYPED, 'full_s32')
    assert len(full) == 2
    np.testing.assert_allclose(result.mask_logits[:, ::32, ::32], full, atol=5e-3)


def test_in_a_dialogue_only_the_newest_query_has_typed_masks():
    lisa = segmenter(256, TYPED['template'], typed_specials=True)
    image = load_image(TYPED['image'])
    first = lisa.segment(image, TYPED['prompt'])
    second = lisa.segment(image, 'And the spoon?', Dialogue().extended(first))
    assert len(second.masks) == second.token_ids.count(SEG_ID)


def test_explain_appends_the_model_s_prompt_for_a_reason():
    lisa = segmenter(256, 'llava_v1')
    image, text = load_image(THREE['image']), THREE['prompt']
    explained = lisa.segment(image, text, explain=True)
    expected = lisa.segment(image, f'{text} {lisa.backend.model.config.explain}')
    assert explained.query == text
    assert explained.token_ids == expected.token_ids
    assert np.array_equal(explained.mask_logits, expected.mask_logits)


def test_a_region_is_segmented_alone():
    lisa = segmenter(256, THREE['template'])
    image, (x, y, width, height) = load_image(THREE['image']), (20, 10, 200, 150)
    result = lisa.segment(image, THREE['prompt'], region=(x, y, width, height))
    expected = lisa.segment(image[y : y + height, x : x + width], THREE['prompt'])
    assert result.masks.shape[1:] == image.shape[:2]
    part = result.mask_logits[:, y : y + height, x : x + width]
    assert np.array_equal(part, expected.mask_logits)
    assert result.masks.sum() == expected.masks.sum()


def test_a_cancel_keeps_what_was_ready():
    cancel = threading.Event()
    lisa = segmenter(256, THREE['template'])
    events = []
    for event in lisa.stream(load_image(THREE['image']), THREE['prompt'], cancel=cancel):
        events.append(event)
        if isinstance(event, MaskReady):
            cancel.set()
    result = events[-1].result
    assert result.status is Status.CANCELLED
    assert result.reason
    assert len(result.masks) == 1
    first = next(i for i, event in enumerate(events) if isinstance(event, MaskReady))
    assert sum(isinstance(event, Token) for event in events[first:]) <= 2
    assert list(result.token_ids) == generated_ids(256, THREE)[: len(result.token_ids)]


def test_a_cancel_after_the_last_token_changes_nothing():
    cancel = threading.Event()
    lisa = segmenter(256, NONE['template'])
    for event in lisa.stream(load_image(NONE['image']), NONE['prompt'], cancel=cancel):
        if isinstance(event, Token) and event.token_id == lisa.backend.tokenizer.eos_token_id:
            cancel.set()
    assert event.result.status is Status.NOT_FOUND


def test_an_answer_that_takes_too_long_keeps_what_was_ready():
    lisa = segmenter(256, THREE['template'], answer_timeout=2.0)
    start, events = time.monotonic(), []
    for event in lisa.stream(load_image(THREE['image']), THREE['prompt']):
        events.append(event)
        if isinstance(event, MaskReady):
            time.sleep(max(0.0, start + 2.1 - time.monotonic()))
    result = events[-1].result
    assert result.status is Status.TIMED_OUT
    assert 'longer than answer_timeout (2 s)' in result.reason
    assert len(result.masks) == 1
    assert list(result.token_ids) == generated_ids(256, THREE)[: len(result.token_ids)]


def test_without_any_time_the_answer_is_empty():
    result = result_of(THREE, answer_timeout=0.0)
    assert (result.status, result.token_ids) == (Status.TIMED_OUT, ())
    assert result.masks.shape == (0, *THREE['original_size'])


def test_a_time_limit_after_the_last_token_changes_nothing():
    lisa = segmenter(256, NONE['template'], answer_timeout=2.0)
    start = time.monotonic()
    for event in lisa.stream(load_image(NONE['image']), NONE['prompt']):
        if isinstance(event, Token) and event.token_id == lisa.backend.tokenizer.eos_token_id:
            time.sleep(max(0.0, start + 2.1 - time.monotonic()))
    assert event.result.status is Status.NOT_FOUND


def test_a_cancel_may_be_a_function():
    lisa = segmenter(256, THREE['template'])
    result = lisa.segment(load_image(THREE['image']), THREE['prompt'], cancel=lambda: True)
    assert result.status is Status.CANCELLED
    assert result.token_ids == ()


def test_the_same_image_is_encoded_once():
    lisa = segmenter(256, THREE['template'])
    lisa.clear_cache()
    image = load_image(THREE['image'])
    first = lisa.segment(image, THREE['prompt'])
    second = lisa.segment(image.copy(), THREE['prompt'])
    assert {'clip', 'sam'} <= set(first.timings)
    assert not {'clip', 'sam'} & set(second.timings)
    assert first.token_ids == second.token_ids
    # the second prompt is read from its last position on, with the first reply as a draft
    np.testing.assert_allclose(first.mask_logits, second.mask_logits, atol=1e-3)


def test_images_that_are_encoded_ahead_cost_only_their_text():
    lisa = segmenter(256, THREE['template'])
    lisa.clear_cache()
    images = [load_image(THREE['image']), load_image(NONE['image'])]
    lisa.encode_images(images)
    shares = [lisa.segment(image, THREE['prompt']).timings for image in images]
    assert all({'clip', 'sam'} <= set(timings) for timings in shares)
    again = [lisa.segment(image, THREE['prompt']).timings for image in images]
    assert not any({'clip', 'sam'} & set(timings) for timings in again)
    lisa.clear_cache()
    assert 'clip' in lisa.segment(images[0], THREE['prompt']).timings


def test_encoding_ahead_adds_what_is_missing(monkeypatch):
    """CLIP knows an image that was only talked about; SAM has not seen it yet."""
    lisa = segmenter(256, THREE['template'])
    lisa.clear_cache()
    image, encoder, counts = load_image(THREE['image']), lisa.backend.encoder, {}
    encoder.encode(image, StageTimer(encoder.device))
    for name in ('encode_clip', 'encode_sam'):
        encode = getattr(lisa.backend.model, name)

        def count(pixels, name=name, encode=encode):
            counts[name] = counts.get(name, 0) + len(pixels)
            return encode(pixels)

        monkeypatch.setattr(lisa.backend.model, name, count)
    lisa.encode_images([image, load_image(NONE['image'])])
    assert counts == {'encode_clip': 1, 'encode_sam': 2}
    assert 'sam' in lisa.segment(image, THREE['prompt']).timings
    lisa.segment(load_image(NONE['image']), THREE['prompt'])
    assert counts == {'encode_clip': 1, 'encode_sam': 2}


def test_an_image_changed_in_place_is_another_image():
    lisa = segmenter(256, THREE['template'])
    image = load_image(THREE['image']).copy()
    lisa.segment(image, THREE['prompt'])
    image[:] = 0
    assert 'clip' in lisa.segment(image, THREE['prompt']).timings


def test_two_streams_at_once_use_their_own_images():
    lisa = segmenter(256, THREE['template'])
    images = [load_image(THREE['image']), np.zeros((60, 80, 3), np.uint8)]
    alone = [lisa.segment(image, THREE['prompt']) for image in images]
    streams = [lisa.stream(image, THREE['prompt']) for image in images]
    results = {}
    while len(results) < 2:  # one event of each in turn
        for index, stream in enumerate(streams):
            event = next(stream, None)
            if isinstance(event, Done):
                results[index] = event.result
    for index, expected in enumerate(alone):
        assert results[index].token_ids == expected.token_ids
        assert np.array_equal(results[index].mask_logits, expected.mask_logits)


@pytest.mark.parametrize('is_ahead', [False, True], ids=['asked', 'encoded ahead'])
def test_a_mask_is_refined_in_the_image_of_its_own_query(is_ahead):
    lisa = segmenter(256, THREE['template'], refine=True)
    image = load_image(THREE['image'])
    lisa.clear_cache()
    expected = lisa.segment(image, THREE['prompt'])
    lisa.clear_cache()
    buffer = image.copy()
    if is_ahead:
        lisa.encode_images([buffer])
    else:
        lisa.segment(buffer, THREE['prompt'])
    buffer[:] = np.random.default_rng(0).integers(0, 256, buffer.shape)  # the camera's next one
    result = lisa.segment(image, THREE['prompt'])
    assert np.array_equal(result.masks, expected.masks)


def test_the_images_of_several_cameras_are_encoded_once():
    lisa = segmenter(256, THREE['template'])
    lisa.clear_cache()
    image = load_image(THREE['image'])
    cameras = [np.roll(image, 20 * number, axis=1) for number in range(MAX_IMAGES)]

    def are_encoded(*images):
        return ['clip' in lisa.segment(each, THREE['prompt']).timings for each in images]

    assert are_encoded(*cameras, *cameras) == [True] * MAX_IMAGES + [False] * MAX_IMAGES
    assert are_encoded(cameras[0], image[::-1]) == [False, True]
    assert are_encoded(cameras[0], cameras[1]) == [False, True]  # the least recently used went


def test_a_dialogue_that_grew_too_long_loses_its_oldest_turns():
    lisa = segmenter(256, 'llava_v1')
    image, text = load_image(THREE['image']), THREE['prompt']
    long = Turn('where ' * 5000, 'Sure, [SEG] .')
    short = Turn('Where is the cup?', 'Sure, [SEG] .')
    result = lisa.segment(image, text, Dialogue((long, short)))
    expected = lisa.segment(image, text, Dialogue((short,)))
    assert result.token_ids == expected.token_ids
    assert np.array_equal(result.mask_logits, expected.mask_logits)


def test_earlier_boxes_are_in_the_prompt_with_dialogue_boxes():
    lisa = segmenter(256, 'llava_v1')
    image, text = load_image(THREE['image']), THREE['prompt']
    boxes = Dialogue((Turn('Where is the cup?', 'Sure, [SEG] .', ((1, 2, 3, 4),)),))
    written = Dialogue((Turn('Where is the cup?', 'Sure, [SEG] (1, 2, 3, 4) .'),))
    without = lisa.segment(image, text, boxes)
    expected = lisa.segment(image, text, written)
    assert np.abs(without.mask_logits - expected.mask_logits).max() > 0.01
    lisa = segmenter(256, 'llava_v1', dialogue_boxes=True)
    result = lisa.segment(image, text, boxes)
    np.testing.assert_allclose(result.mask_logits, expected.mask_logits, atol=1e-3)


def test_sam_does_not_encode_an_image_without_seg():
    lisa = segmenter(256, NONE['template'])
    lisa.clear_cache()
    assert 'sam' not in lisa.segment(load_image(NONE['image']), NONE['prompt']).timings


def test_errors_come_from_the_call_not_from_the_iteration():
    lisa = segmenter(256)
    with pytest.raises(ImageError, match='float64'):
        lisa.stream(np.zeros((4, 4, 3)), 'where is it')
    with pytest.raises(QueryError, match='empty'):
        lisa.stream(load_image('coffee'), ' ')
    with pytest.raises(QueryError, match='shorten the query'):
        lisa.stream(load_image('coffee'), 'where ' * 5000)
    with pytest.raises(ImageError, match='not within the image'):
        lisa.stream(load_image('coffee'), 'where is it', region=(0, 0, 5000, 10))


def test_an_image_of_one_pixel_is_answered():
    result = segmenter(256).segment(np.zeros((1, 1, 3), np.uint8), 'Segment the nose.')
    assert result.masks.shape[1:] == (1, 1)


def test_the_model_stops_at_its_last_position():
    lisa = segmenter(256, 'llava_v1')
    llama = lisa.backend.model.config.llama
    positions = llama.max_position_embeddings
    try:
        llama.max_position_embeddings = 256 + 62 + 3
        with pytest.raises(QueryError, match='at most 2 fit'):
            lisa.stream(load_image('coffee'), THREE['prompt'])
        lisa = segmenter(256, 'llava_v1', max_new_tokens=1)
        assert len(lisa.segment(load_image('coffee'), THREE['prompt']).token_ids) == 1
    finally:
        llama.max_position_embeddings = positions


def test_options_cannot_be_changed_on_a_live_segmenter():
    with pytest.raises(dataclasses.FrozenInstanceError):
        segmenter(256).options = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        segmenter(256).options.max_new_tokens = 3


def test_a_missing_device_is_an_error():
    with pytest.raises(SettingsError, match='abacus'):
        Segmenter.load('lisa-tabletop', device='abacus')
    absent = f'cuda:{torch.cuda.device_count()}'
    with pytest.raises(SettingsError, match=f'{absent}.*CUDA GPUs'):
        Segmenter.load('lisa-tabletop', device=absent)


def test_an_unknown_model_name_is_an_error():
    with pytest.raises(CheckpointError, match=r'lisa-nothing.*no such folder'):
        Segmenter.load('lisa-nothing', device='cpu')


def test_a_separate_sam_file_must_exist():
    folder, clip = DATA / 'ckpt_256', DATA / 'clip_256'
    with pytest.raises(CheckpointError, match=r'none\.pth.*expected a SAM'):
        Segmenter.load(folder, vision_tower=clip, sam='none.pth', device='cpu')
