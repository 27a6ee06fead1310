# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest
import torch
from golden import DATA, cases, new_ids, of_case, picture, segmenter, view

import lisa_ros.perception.segmenter
from lisa_ros.errors import CheckpointError, ImageError, QueryError, SettingsError
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import Dialogue, Done, MaskReady, Status, Token, Turn

THREE = next(case for _, case in cases(256) if case['case'] == 2)  # three [SEG]
NONE = next(case for _, case in cases(256) if case['case'] == 9)  # an answer without a mask
TYPED = next(case for _, case in cases(256) if case['case'] == 26)


def ask(case: dict, **settings):
    lisa = view(256, template=case['template'], **settings)
    return lisa.stream(picture(case['image']), case['prompt'])


def result_of(case: dict, **settings):
    return list(ask(case, **settings))[-1].result


def test_a_mask_comes_before_the_words_after_it():
    events = list(ask(THREE))
    kinds = [type(event) for event in events]
    seg = segmenter(256).tokenizer.seg_token_id
    for place, event in enumerate(events):
        said = isinstance(event, Token) and event.token_id == seg
        assert said == (isinstance(events[min(place + 1, len(events) - 1)], MaskReady))
    assert kinds.count(MaskReady) == 3
    assert kinds.index(Done) == len(kinds) - 1


def test_the_pieces_of_a_stream_are_its_result():
    *events, done = ask(THREE)
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


def test_an_answer_without_a_mask_is_no_error():
    result = result_of(NONE)
    assert result.status is Status.NOT_FOUND
    assert result.masks.shape == (0, *NONE['original_size'])
    assert result.mask_logits.shape == result.masks.shape
    assert result.scores.shape == (0,)
    assert result.answer == 'The suit of the person is orange.'


def test_masks_below_the_threshold_are_left_out():
    scores = result_of(THREE).scores
    result = result_of(THREE, confidence_threshold=float(np.sort(scores)[1]) - 1e-6)
    assert len(result.masks) == 2
    events = list(ask(THREE, confidence_threshold=float(np.sort(scores)[1]) - 1e-6))
    ready = [event for event in events if isinstance(event, MaskReady)]
    assert [event.index for event in ready] == [0, 1]
    assert np.array_equal([event.mask for event in ready], result.masks)
    events = list(ask(THREE, confidence_threshold=1.0))
    assert events[-1].result.status is Status.NOT_FOUND
    assert not any(isinstance(event, MaskReady) for event in events)


def test_after_the_last_number_a_seg_is_a_word_only(monkeypatch):
    assert lisa_ros.perception.segmenter.MAX_MASKS == 254  # of ~/mask
    wanted = result_of(THREE)
    monkeypatch.setattr(lisa_ros.perception.segmenter, 'MAX_MASKS', 2)
    events = list(ask(THREE))
    result = events[-1].result
    assert sum(isinstance(event, MaskReady) for event in events) == 2
    assert result.answer_raw == wanted.answer_raw
    assert np.array_equal(result.masks, wanted.masks[:2])


def test_a_typed_seg_makes_no_mask_by_default():
    result = result_of(TYPED)
    assert len(result.masks) == result.token_ids.count(segmenter(256).tokenizer.seg_token_id)


@pytest.mark.parity
def test_a_typed_seg_makes_the_first_mask_as_in_the_original_if_asked():
    events = list(ask(TYPED, typed_specials=True))
    assert isinstance(events[0], MaskReady)
    result = events[-1].result
    assert list(result.token_ids) == new_ids(256, TYPED)
    full = of_case(256, TYPED, 'full_s32')
    assert len(full) == 2
    np.testing.assert_allclose(result.mask_logits[:, ::32, ::32], full, atol=5e-3)


def test_in_a_dialogue_only_the_newest_command_has_typed_masks():
    lisa = view(256, template=TYPED['template'], typed_specials=True)
    image = picture(TYPED['image'])
    first = lisa.segment(image, TYPED['prompt'])
    second = lisa.segment(image, 'And the spoon?', Dialogue().extended(first))
    assert len(second.masks) == second.token_ids.count(lisa.tokenizer.seg_token_id)


def test_a_cancel_keeps_what_was_ready():
    cancel = threading.Event()
    lisa = view(256, template=THREE['template'])
    events = []
    for event in lisa.stream(picture(THREE['image']), THREE['prompt'], cancel=cancel):
        events.append(event)
        if isinstance(event, MaskReady):
            cancel.set()
    result = events[-1].result
    assert result.status is Status.CANCELLED
    assert result.reason
    assert len(result.masks) == 1
    mask = next(i for i, event in enumerate(events) if isinstance(event, MaskReady))
    assert sum(isinstance(event, Token) for event in events[mask:]) <= 2
    assert list(result.token_ids) == new_ids(256, THREE)[: len(result.token_ids)]


def test_a_cancel_that_comes_after_the_last_word_changes_nothing():
    cancel = threading.Event()
    lisa = view(256, template=NONE['template'])
    for event in lisa.stream(picture(NONE['image']), NONE['prompt'], cancel=cancel):
        if isinstance(event, Token) and event.token_id == lisa.tokenizer.eos_token_id:
            cancel.set()
    assert event.result.status is Status.NOT_FOUND


def test_a_cancel_may_be_a_function():
    lisa = view(256, template=THREE['template'])
    result = lisa.segment(picture(THREE['image']), THREE['prompt'], cancel=lambda: True)
    assert result.status is Status.CANCELLED
    assert result.token_ids == ()


def test_the_same_picture_is_encoded_once():
    lisa = view(256, template=THREE['template'])
    lisa._picture = None
    image = picture(THREE['image'])
    first = lisa.segment(image, THREE['prompt'])
    second = lisa.segment(image.copy(), THREE['prompt'])
    assert {'clip', 'sam'} <= set(first.timings)
    assert not {'clip', 'sam'} & set(second.timings)
    assert np.array_equal(first.mask_logits, second.mask_logits)


def test_a_picture_changed_in_place_is_another_picture():
    lisa = view(256, template=THREE['template'])
    image = picture(THREE['image']).copy()
    lisa.segment(image, THREE['prompt'])
    image[:] = 0
    assert 'clip' in lisa.segment(image, THREE['prompt']).timings


def test_a_thread_out_of_turn_does_not_change_the_picture_of_another():
    lisa = view(256, template=THREE['template'])
    lisa._picture = None
    image = picture(THREE['image'])
    wanted = lisa.segment(image, THREE['prompt'])
    known = lisa._picture

    class Meanwhile(Segmenter):
        """Between any two reads, another thread has put its own picture there."""

        reads = 0

        @property
        def _picture(self):
            self.reads += 1
            return known if self.reads == 1 else None

        @_picture.setter
        def _picture(self, _):
            pass

    other = Meanwhile(lisa.model, lisa.tokenizer, lisa.clip_recipe, template=THREE['template'])
    for _ in range(2):  # the picture known, and not
        result = other.segment(image, THREE['prompt'])
        assert np.array_equal(result.mask_logits, wanted.mask_logits)


def test_a_dialogue_that_grew_too_long_loses_its_oldest_turns():
    lisa = view(256, template='llava_v1')
    image, text = picture(THREE['image']), THREE['prompt']
    long = Turn('where ' * 5000, 'Sure, [SEG] .')
    near = Turn('Where is the cup?', 'Sure, [SEG] .')
    result = lisa.segment(image, text, Dialogue((long, near)))
    wanted = lisa.segment(image, text, Dialogue((near,)))
    assert result.token_ids == wanted.token_ids
    assert np.array_equal(result.mask_logits, wanted.mask_logits)


def test_earlier_boxes_are_told_where_they_are_asked_for(monkeypatch):
    lisa = view(256, template='llava_v1')
    image, text = picture(THREE['image']), THREE['prompt']
    told = Dialogue((Turn('Where is the cup?', 'Sure, [SEG] .', ((1, 2, 3, 4),)),))
    words = Dialogue((Turn('Where is the cup?', 'Sure, [SEG] (1, 2, 3, 4) .'),))
    plain = lisa.segment(image, text, told)
    wanted = lisa.segment(image, text, words)
    assert not np.array_equal(plain.mask_logits, wanted.mask_logits)
    monkeypatch.setattr(lisa, 'dialogue_boxes', True)
    assert np.array_equal(lisa.segment(image, text, told).mask_logits, wanted.mask_logits)


def test_sam_does_not_look_at_a_picture_without_seg():
    lisa = view(256, template=NONE['template'])
    lisa._picture = None
    assert 'sam' not in lisa.segment(picture(NONE['image']), NONE['prompt']).timings


def test_errors_come_from_the_call_not_from_the_iteration():
    lisa = segmenter(256)
    with pytest.raises(ImageError, match='float64'):
        lisa.stream(np.zeros((4, 4, 3)), 'where is it')
    with pytest.raises(QueryError, match='empty'):
        lisa.stream(picture('coffee'), ' ')
    with pytest.raises(QueryError, match='shorten the command'):
        lisa.stream(picture('coffee'), 'where ' * 5000)


def test_a_picture_of_one_pixel_is_answered():
    result = segmenter(256).segment(np.zeros((1, 1, 3), np.uint8), 'Segment the nose.')
    assert result.masks.shape[1:] == (1, 1)


def test_the_model_stops_where_its_positions_end():
    lisa = view(256, template='llava_v1')
    room = lisa.model.config.llama.max_position_embeddings
    try:
        lisa.model.config.llama.max_position_embeddings = 256 + 62 + 3
        with pytest.raises(QueryError, match='at most 2 fit'):
            lisa.stream(picture('coffee'), THREE['prompt'])
        lisa.max_new_tokens = 1
        assert len(lisa.segment(picture('coffee'), THREE['prompt']).token_ids) == 1
    finally:
        lisa.model.config.llama.max_position_embeddings = room


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(SettingsError, match='abacus'):
        Segmenter.load('lisa-tabletop', device='abacus')
    absent = f'cuda:{torch.cuda.device_count()}'
    with pytest.raises(SettingsError, match=f'{absent}.*CUDA GPUs'):
        Segmenter.load('lisa-tabletop', device=absent)


def test_an_unknown_name_is_no_model():
    with pytest.raises(CheckpointError, match=r'lisa-nothing.*no such folder'):
        Segmenter.load('lisa-nothing', device='cpu')


def test_a_sam_of_its_own_is_looked_for():
    folder, clip = DATA / 'ckpt_256', DATA / 'clip_256'
    with pytest.raises(CheckpointError, match=r'none\.pth.*expected a SAM'):
        Segmenter.load(folder, vision_tower=clip, sam='none.pth', device='cpu')
