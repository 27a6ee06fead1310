# SPDX-License-Identifier: Apache-2.0
"""A numerical failure is FAILED with a reason: never NOT_FOUND, never FOUND."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import DATA, backend, load_image
from scripted_backend import ScriptedBackend

from lisa_ros import cli
from lisa_ros.errors import ModelError
from lisa_ros.files.text import is_encodable
from lisa_ros.images.image_file import read_rgb
from lisa_ros.model.finite import all_finite
from lisa_ros.model.lisa import LISA
from lisa_ros.perception.backend import InferenceOptions, LoadOptions, Query
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import SELF_TEST
from lisa_ros.results import ANSWERED, Done, MaskReady, Segmentation, Status, Token

IMAGE = np.zeros((6, 8, 3), np.uint8)
LOGITS = np.ones((1, 6, 8), np.float32)
RIGHT = Segmentation('q', 'a', 'a', LOGITS > 0, LOGITS, np.ones(1, np.float32), Status.FOUND)


class Answering:
    """A backend that answers with these events."""

    def __init__(self, *events):
        self._events = events

    def stream(self, image, query, options, cancel):
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield event


def answer(model, region=None):
    query = Query('q', region=region)
    return list(stream_in_region(model, IMAGE, query, InferenceOptions(), threading.Event()))


def spoiled(array, value):
    array = array.copy()
    array.flat[-1] = value
    return array


def test_a_right_answer_passes_unchanged():
    events = [Token('a'), MaskReady(0, LOGITS[0] > 0, LOGITS[0], 1.0), Done(RIGHT)]
    assert all(a is b for a, b in zip(answer(Answering(*events)), events, strict=True))
    huge = replace(RIGHT, mask_logits=np.full((1, 6, 8), 3e38, np.float32))  # the sum overflows
    assert answer(Answering(Done(huge)))[0].result is huge
    none = replace(RIGHT, masks=np.zeros((0, 0, 0), bool), mask_logits=np.zeros((0, 0, 0)))
    none = replace(none, scores=np.zeros(0), status=Status.FAILED, reason='no connection')
    assert answer(Answering(Done(none)))[0].result is none
    (done,) = answer(Answering(Done(none)), region=(1, 1, 3, 2))
    assert (done.result.reason, done.result.masks.shape) == ('no connection', (0, 6, 8))


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'mask_logits': spoiled(LOGITS, np.nan)}, 'NaN or infinity in mask logits'),
        ({'mask_logits': spoiled(LOGITS, np.inf)}, 'NaN or infinity in mask logits'),
        ({'mask_logits': LOGITS[:, :, :7]}, r'mask logits .* of shape \(1, 6, 7\)'),
        ({'mask_logits': LOGITS.astype(np.int64)}, 'type int64; expected .* float32'),
        ({'masks': np.ones((1, 7, 9), bool)}, r'masks .* of shape \(1, 7, 9\).*\(1, 6, 8\)'),
        ({'masks': np.ones((6, 8), bool)}, r'of shape \(6, 8\)'),
        ({'masks': np.ones((2, 6, 8), bool)}, r'logits .* of shape \(1, 6, 8\).*\(2, 6, 8\)'),
        ({'masks': LOGITS}, 'type float32; expected .* bool'),
        ({'masks': None}, 'as NoneType; expected an array'),
        ({'scores': np.array([np.nan])}, 'NaN or infinity in scores'),
        ({'scores': np.array([1.5])}, r'score 1\.5; expected 0 to 1'),
        ({'scores': np.ones(2)}, r'scores .* of shape \(2,\)'),
        ({'names': ('a', 'b')}, '2 names of 1 masks; expected one for each'),
        ({'names': ['a']}, r"the names \['a'\]; expected a tuple of texts"),
        ({'names': (None,)}, r'the names \(None,\); expected a tuple of texts'),
        ({'answer': 'ok \ud83d'}, r"the text 'ok \\ud83d' with half a character"),
        ({'answer_raw': '\ude00'}, r"the text '\\ude00' with half a character"),
        ({'reason': 'caf\udce9: lost'}, r"the text 'caf\\udce9: lost' with half a character"),
        ({'names': ('\ud83d',)}, r"the text '\\ud83d' with half a character"),
        ({'answer': None}, 'returned None as a text'),
        ({'status': 'FOUND'}, "status of the answer is 'FOUND'"),
        (
            {'masks': LOGITS[:0] > 0, 'mask_logits': LOGITS[:0], 'scores': np.zeros(0)},
            'FOUND without a mask',
        ),
    ],
)  # fmt: skip
def test_a_wrong_result_is_failed(changes, reason):
    for region in (None, (0, 0, 8, 6)):
        *_, done = answer(Answering(Token('a'), Done(replace(RIGHT, **changes))), region)
        assert re.search(reason, done.result.reason), done.result.reason
        assert (done.result.status, len(done.result.masks)) == (Status.FAILED, 0)


@pytest.mark.parametrize(
    'event',
    [
        MaskReady(0, LOGITS[0] > 0, spoiled(LOGITS[0], np.nan), 1.0),
        MaskReady(0, LOGITS[0] > 0, LOGITS[0], np.nan),
        MaskReady(0, LOGITS[0] > 0, LOGITS[0], 'high'),
        MaskReady(0, np.ones((9, 7), bool), np.ones((9, 7)), 1.0),
        MaskReady(0, LOGITS > 0, LOGITS, 1.0),
        MaskReady(0, LOGITS[0] > 0, LOGITS[0], 1.0, None),
        MaskReady(0, LOGITS[0] > 0, LOGITS[0], 1.0, 'mug \ud83d'),
        Token(None),
        Token('ok \ud83d'),
        'a',
        ModelError('the model computed NaN'),
        Done({'status': 1}),
    ],
)
def test_the_first_wrong_event_ends_the_answer(event):
    first, done = answer(Answering(Token('a'), event, Done(RIGHT)))
    assert first == Token('a')
    assert done.result.status is Status.FAILED
    assert done.result.reason
    assert is_encodable(done.result.reason)


def test_whole_characters_pass():
    text = '\U0001f600 caf\xe9 \ufeff \ufffd \x00'
    result = replace(RIGHT, answer=text, answer_raw=text, reason=text, names=(text,))
    assert answer(Answering(Token(text), Done(result)))[-1].result is result


def test_masks_of_a_region_are_checked_before_they_are_pasted():
    (done,) = answer(Answering(Done(RIGHT)), region=(1, 1, 3, 2))  # masks of the whole image
    assert done.result.status is Status.FAILED
    assert 'expected (1, 2, 3)' in done.result.reason
    assert done.result.masks.shape == (0, 6, 8)


def test_an_answer_ends_with_its_first_result_or_as_failed():
    assert len(answer(Answering(Done(RIGHT), Token('more')))) == 1
    *_, done = answer(Answering(Token('a')))
    assert 'without a result' in done.result.reason
    with pytest.raises(RuntimeError, match='broken'):  # not a numerical failure
        answer(Answering(RuntimeError('broken')))


def test_a_scripted_nan_is_failed():
    result = answer(ScriptedBackend({'': {'masks': 'nan'}}))[-1].result
    assert result.status is Status.FAILED
    assert 'NaN' in result.reason
    assert 'try bf16 or fp32' in result.reason


def test_the_command_line_reports_it_and_fails(tmp_path, capsys):
    (tmp_path / 'script.json').write_text('{"": {"masks": "nan"}}')
    image = str(DATA / 'images' / 'coffee.webp')
    model = f'scripted:{tmp_path}/script.json'
    assert cli.main(['segment', image, 'the mug', '--model', model, '--json']) == 1
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.startswith('lisa-ros: the model returned NaN')


# ---- LISA: where the first wrong number appears


@pytest.fixture
def lisa():
    """The toy, whose parts are small."""
    return backend(256)


@pytest.fixture
def weight_of(lisa):
    """Return a weight, which is restored after the test."""
    saved = []

    def weight_of(name):
        weight = lisa.model.get_parameter(name).data
        saved.append((weight, weight.clone()))
        return weight

    lisa.clear_cache()
    yield weight_of
    for weight, copy in saved:
        weight.copy_(copy)
    lisa.clear_cache()


QUERY = 'segment the mug'
SHORT = InferenceOptions(max_new_tokens=5)
CUT = InferenceOptions(max_new_tokens=3)  # after its [SEG]
FORCED = replace(SHORT, typed_specials=True)  # "[SEG]" makes a mask whatever is seen


@pytest.mark.parametrize(
    ('name', 'value', 'noun'),
    [
        ('clip.embeddings.patch_embedding.weight', np.nan, "CLIP's features"),
        ('mm_projector.bias', np.inf, "CLIP's features"),
        ('llm.model.layers.1.mlp.up_proj.weight', np.nan, 'scores of the next token'),
        ('llm.model.norm.weight', np.inf, 'scores of the next token'),
        ('llm.lm_head.weight', np.nan, 'scores of the next token'),
        ('sam.vision_encoder.layers.1.mlp.lin1.weight', np.nan, "SAM's features"),
        ('text_hidden_fcs.2.weight', np.nan, 'mask of [SEG]'),
        ('sam.mask_decoder.iou_prediction_head.proj_out.bias', np.nan, 'predicted IoU'),
    ],
)
def test_nan_in_any_part_is_failed_and_named(name, value, noun, lisa, weight_of):
    image = load_image('coffee')
    weight_of(name).fill_(value)
    result = Segmenter(lisa, FORCED).segment(image, f'{QUERY} [SEG]')
    assert result.status is Status.FAILED
    assert noun in result.reason
    assert 'the weights are damaged' in result.reason


def test_nan_in_a_given_answer_is_an_error(lisa, weight_of):
    weight_of('text_hidden_fcs.2.weight').fill_(np.nan)
    with pytest.raises(ModelError, match='mask of'):
        lisa.teacher_forced(load_image('coffee'), QUERY)


def test_all_weights_nan_is_failed():
    lisa = LisaBackend.load('lisa-tabletop', LoadOptions(device='cpu', precision='fp32'))
    assert Segmenter(lisa, SHORT).segment(load_image('coffee'), QUERY).status in ANSWERED
    lisa.clear_cache()
    for weight in lisa.model.parameters():
        weight.data.fill_(np.nan)
    assert Segmenter(lisa, SHORT).segment(load_image('coffee'), QUERY).status is Status.FAILED


@pytest.fixture(scope='module')
def tabletop():
    return LisaBackend.load('lisa-tabletop', LoadOptions(device='cpu', precision='fp32'))


@pytest.mark.parametrize('count', [1, 2])
def test_an_answer_that_is_cut_off_before_its_mask_is_not_an_absent_object(count, tabletop):
    image, options = read_rgb(SELF_TEST / 'table.webp'), InferenceOptions(max_new_tokens=count)
    segmenter = Segmenter(tabletop, options)
    alone = segmenter.segment(image, QUERY)
    assert (alone.status, len(alone.masks)) == (Status.FAILED, 0)
    assert alone.reason.startswith(f'the answer was cut off after {count} tokens: raise max_new')
    assert alone.answer  # the words are kept
    for result in segmenter.segment_batch([(image, QUERY), (image, 'segment the bowl')]):
        assert (result.status, result.reason) == (Status.FAILED, alone.reason)


def test_an_answer_that_is_cut_off_after_its_mask_is_found_and_says_so(tabletop):
    image = read_rgb(SELF_TEST / 'table.webp')
    cut, whole = (Segmenter(tabletop, options).segment(image, QUERY) for options in (CUT, SHORT))
    assert cut.status is whole.status is Status.FOUND
    assert 'cut off after 3 tokens' in cut.reason
    assert not whole.reason
    np.testing.assert_array_equal(cut.masks, whole.masks)
    given = tabletop.teacher_forced(image, QUERY)  # an answer without an end, but given
    assert not given.reason


def test_a_transient_failure_is_not_kept(lisa, weight_of):
    image = load_image('coffee')
    expected = Segmenter(lisa, SHORT).segment(image, QUERY)
    lisa.clear_cache()
    for name in ('clip.embeddings.patch_embedding.weight', 'sam.vision_encoder.pos_embed'):
        weight = weight_of(name)
        right = weight.clone()
        weight.fill_(np.nan)
        lisa.encode_images([image])
        assert Segmenter(lisa, FORCED).segment(
            image, f'{QUERY} [SEG]'
        ).status is Status.FAILED  # fmt: skip
        weight.copy_(right)
    result = Segmenter(lisa, SHORT).segment(image, QUERY)
    assert (result.status, result.token_ids) == (expected.status, expected.token_ids)


def test_fp16_that_overflows_is_failed(lisa, weight_of):
    weight_of('mm_projector.weight').mul_(1e4)
    half = LISA(lisa.model.config).half()
    half.load_state_dict(lisa.model.state_dict())
    half_lisa = LisaBackend(half.eval(), lisa.tokenizer, lisa.clip_preprocessing)
    result = Segmenter(half_lisa, SHORT).segment(load_image('coffee'), QUERY)
    assert result.status is Status.FAILED
    assert 'fp16 overflowed: try bf16 or fp32' in result.reason


# ---- the sum that proves it


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_sum_that_overflows_is_no_failure(dtype):
    largest = torch.finfo(dtype).max
    assert all_finite(torch.full((4, 5), largest, dtype=dtype))
    assert all_finite(torch.zeros(0, dtype=dtype))
    for value in (torch.nan, torch.inf, -torch.inf):
        values = torch.full((4, 5), largest, dtype=dtype)
        values[2, 3] = value
        assert not all_finite(values)
        values = torch.zeros(4, 5, dtype=dtype)
        values[2, 3] = value
        assert not all_finite(values)
    assert not all_finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype))
