# SPDX-License-Identifier: Apache-2.0
"""The wire format of a served model: queries, answers, events and masks keep what they carry."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from lisa_ros.errors import ImageError, ModelError
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions, Query
from lisa_ros.perception.masks import confidence_image
from lisa_ros.results import (
    Dialogue,
    LisaDetails,
    MaskReady,
    ScoreFeatures,
    Segmentation,
    Status,
    Token,
    Turn,
    unanswered,
)
from lisa_ros.serving import wire_format
from lisa_ros.serving.mask_coding import (
    decode_png_text,
    decode_rle_text,
    encode_png_text,
    encode_rle_text,
)
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.query_format import MaskFormat, RawImage, SegmentQuery, query_json
from lisa_ros.serving.query_reading import QueryLimits, parse_query
from lisa_ros.serving.wire_format import (
    SentMask,
    Served,
    answer_json,
    event_json,
    event_of,
    result_of,
)

repeatable = settings(derandomize=True, max_examples=50, deadline=None, database=None)

SHAPE = (12, 17)
MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30)))


def segmentation(count=2, names=()):
    logits = np.random.default_rng(7).normal(0, 3, (count, *SHAPE)).astype(np.float32)
    features = ScoreFeatures(0.5, 0.25, 0.125, 1.0)
    return Segmentation(
        query='segment the mug',
        answer='It is here.',
        answer_raw='It is [SEG] .',
        masks=logits > 0,
        mask_logits=logits,
        scores=np.linspace(0.3, 0.9, count, dtype=np.float32),
        status=Status.FOUND if count else Status.NOT_FOUND,
        timings={'prompt': 0.1, 'tokens': 0.2},
        time_to_first_mask=0.15 if count else None,
        details=LisaDetails((1, 5, 2), (features,) * count),
        names=names,
    )


@repeatable
@given(mask=MASKS)
def test_run_lengths_are_those_of_pycocotools(mask):
    text = encode_rle_text(mask)
    assert text == coco.encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode()
    assert np.array_equal(decode_rle_text(text, mask.shape), mask)


@repeatable
@given(text=st.text(alphabet=[chr(code) for code in range(40, 120)], max_size=30) | st.text())
def test_damaged_run_lengths_are_an_image_error(text):
    try:
        mask = decode_rle_text(text, SHAPE)
    except ImageError:
        return
    assert mask.shape == SHAPE


@pytest.mark.parametrize('count', [0, 1, 3])
@pytest.mark.parametrize('masks', MaskFormat)
def test_an_answer_keeps_what_a_backend_gives(count, masks):
    query, local = SegmentQuery('x', masks=masks, confidence=True), segmentation(count)
    document = json.loads(json.dumps(answer_json(local, query, SHAPE, Served('m'))))
    remote = result_of(document)
    for name in ('query', 'answer', 'answer_raw', 'status', 'reason', 'timings', 'details'):
        assert getattr(remote, name) == getattr(local, name)
    assert remote.time_to_first_mask == local.time_to_first_mask
    for name in ('masks', 'scores'):
        assert np.array_equal(getattr(remote, name), getattr(local, name))
        assert getattr(remote, name).dtype == getattr(local, name).dtype
    assert np.array_equal(remote.mask_logits > 0, remote.masks)
    assert np.array_equal(
        confidence_image(remote.mask_logits), confidence_image(local.mask_logits)
    )


def test_an_answer_of_another_backend_has_no_details():
    local = unanswered('x', Status.CANCELLED, 'stopped', SHAPE)
    remote = result_of(answer_json(local, SegmentQuery('x'), SHAPE, Served('m')))
    assert (remote.details, remote.status) == (None, Status.CANCELLED)
    assert remote.masks.shape == (0, *SHAPE)


def test_events_keep_their_content():
    query, result = SegmentQuery('x', confidence=True), segmentation(1)
    ready = MaskReady(0, result.masks[0], result.mask_logits[0], 0.5)
    received = event_of(*event_json(ready, query))
    assert (received.index, received.score) == (0, 0.5)
    assert np.array_equal(received.mask, ready.mask)
    assert event_of(*event_json(Token('a', 3), query)) == Token('a', 3)
    assert event_of(*event_json(Token('a'), query)) == Token('a')


def test_names_travel_with_their_masks():
    query, local = SegmentQuery('x'), segmentation(3, ('mug', '', 'pan'))
    document = json.loads(json.dumps(answer_json(local, query, SHAPE, Served('m'))))
    assert result_of(document).names == local.names
    ready = MaskReady(1, local.masks[1], local.mask_logits[1], 0.5, 'mug')
    name, event = event_json(ready, query)
    assert event_of(name, event).name == 'mug'
    assert result_of(document, (SentMask(event, ready),)).names == local.names
    without = answer_json(segmentation(3), query, SHAPE, Served('m'))
    assert result_of(without).names == ()
    for part in (event, *document['masks']):  # as of a server before there were names
        del part['name']
    assert result_of(document).names == ()
    assert event_of(name, event).name == ''
    for wrong in (3, None, ['mug']):
        for part in (event, document['masks'][0]):
            part['name'] = wrong
        with pytest.raises(ModelError, match='a name that is no text'):
            result_of(document)
        with pytest.raises(ModelError, match='a name that is no text'):
            event_of(name, event)


@pytest.mark.parametrize('masks', MaskFormat)
def test_a_mask_that_went_out_before_is_in_the_answer_only_if_it_is_the_same(masks, monkeypatch):
    query, result = SegmentQuery('x', masks=masks, confidence=True), segmentation(3)
    plain = answer_json(result, query, SHAPE, Served('m'))
    changed = result.mask_logits[1] - 1
    events = [
        MaskReady(0, result.masks[0], result.mask_logits[0], 0.1),
        MaskReady(1, changed > 0, changed, 0.2),
    ]
    sent = [SentMask(event_json(event, query)[1], event) for event in events]
    encoded = []

    def count(name):
        encode = getattr(wire_format, name)
        monkeypatch.setattr(wire_format, name, lambda mask: encoded.append(0) or encode(mask))

    count('encode_rle_text')
    count('encode_png_text')
    assert answer_json(result, query, SHAPE, Served('m'), sent) == plain
    assert len(encoded) == 4  # mask and confidence of the two that are not the same


@pytest.mark.parametrize(
    'document', [None, [], {}, {'status': 'FOUND'}, {'height': 'x', 'width': 1}, 'text']
)
def test_a_foreign_answer_is_a_model_error(document):
    with pytest.raises(ModelError, match='lisa-ros serve'):
        result_of(document)
    with pytest.raises(ModelError, match='lisa-ros serve'):
        event_of('mask', document)


def test_a_damaged_mask_of_an_answer_is_a_model_error():
    document = answer_json(segmentation(1), SegmentQuery('x'), SHAPE, Served('m'))
    document['masks'][0]['rle']['counts'] = '00'
    with pytest.raises(ModelError, match='run lengths'):
        result_of(document)


def test_a_query_keeps_its_content():
    shown = np.zeros((2, *SHAPE), bool)
    shown[0, 3:5, 2:9] = True
    dialogue = Dialogue(
        (
            Turn('a', 'It is [SEG] .', ((1, 2, 3, 4),)),
            Turn('b', 'No.'),
            Turn('c?', 'Yes.', yes_no=True),
        ),
        shown,
    )
    local = Query('the other one', dialogue, explain=True, region=(1, 2, 3, 4))
    options = InferenceOptions(max_new_tokens=9, answer_style=AnswerStyle.TEXT, refine=False)
    sent = SegmentQuery.of(
        local,
        options,
        stream='front',
        deadline=2.5,
        masks=MaskFormat.PNG,
        confidence=True,
        raw=RawImage(17, 12, 'bgr8'),
    )
    received = parse_query(query_json(sent).encode(), QueryLimits())
    assert received == sent
    assert received.inference_options(InferenceOptions()) == options
    remote = received.backend_query(SHAPE)
    assert remote == local
    assert remote.dialogue.turns[0].boxes == dialogue.turns[0].boxes
    assert np.array_equal(remote.dialogue.shown, shown)


def test_options_that_are_not_given_are_those_of_the_server():
    received = parse_query(b'{"command": "x", "options": {"refine": null}}', QueryLimits())
    defaults = InferenceOptions(max_new_tokens=7, refine=True)
    assert received.inference_options(defaults) == InferenceOptions(max_new_tokens=7, refine=None)


def test_a_client_with_the_defaults_leaves_the_options_to_the_server():
    sent = SegmentQuery.of(Query('x'), InferenceOptions())
    assert '"options"' not in query_json(sent)
    received = parse_query(query_json(sent).encode(), QueryLimits())
    of_server = InferenceOptions(
        max_new_tokens=100,
        answer_style=AnswerStyle.INSTANCES,
        confidence_threshold=0.4,
        similarity_points=True,
        verify=True,
    )
    assert received.inference_options(of_server) == of_server


@pytest.mark.parametrize(
    'chosen',
    [{'confidence_threshold': 0.0}, {'refine': False}, {'verify': True}, {'max_new_tokens': 5}],
)
def test_an_option_that_a_client_has_chosen_applies(chosen):
    sent = SegmentQuery.of(Query('x'), InferenceOptions(**chosen))
    received = parse_query(query_json(sent).encode(), QueryLimits())
    of_server = InferenceOptions(max_new_tokens=9, confidence_threshold=0.4, refine=True)
    assert received.inference_options(of_server) == replace(of_server, **chosen)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no JSON'),
        ('[1]', 'an object'),
        ('{"command": "x", "comand": 1}', "'comand' is unknown; expected command"),
        ('{}', 'command is missing'),
        ('{"command": " "}', 'command is empty'),
        ('{"command": 3}', 'command is 3; expected a text'),
        ('{"command": "x", "command": "y"}', 'key twice'),
        ('{"command": "\\ud83d"}', 'half characters'),
        ('{"command": "x", "deadline": NaN}', 'NaN is no number'),
        ('{"command": "x", "deadline": 1e999}', 'deadline is inf'),
        ('{"command": "x", "deadline": 0}', 'deadline is 0'),
        ('{"command": "x", "deadline": true}', 'deadline is True'),
        ('{"command": "x", "deadline": ' + '9' * 5000 + '}', 'no JSON'),
        ('{"command": "x", "region": [1, 2, 3]}', 'region is'),
        ('{"command": "x", "region": [1, 2, 3, -4]}', 'region is -4'),
        ('{"command": "x", "region": [1, 2, 3, 4.5]}', 'region is 4.5'),
        ('{"command": "x", "options": {"max_new_tokens": 0}}', 'options.max_new_tokens is 0'),
        ('{"command": "x", "options": {"max_new_tokens": 99999}}', 'integer of 1 to 2048'),
        ('{"command": "x", "options": {"verify": null}}', 'options.verify is missing'),
        ('{"command": "x", "options": {"answer_style": "loud"}}', 'options.answer_style'),
        ('{"command": "x", "options": {"device": "cuda"}}', "options.'device' is unknown"),
        ('{"command": "x", "options": []}', 'options is .*; expected an object'),
        ('{"command": "x", "masks": "tiff"}', "masks is 'tiff'; expected one of rle, png"),
        ('{"command": "x", "raw": {"width": 3}}', 'raw.height is missing'),
        ('{"command": "x", "dialogue": [{"command": 1}]}', r'dialogue\[0\].command is 1'),
        ('{"command": "x", "dialogue": ' + '[' * 100_000, 'no JSON'),
        ('{"command": "' + 'x' * 1001 + '"}', 'has 1001 characters; expected at most 1000'),
        ('{"command": "x", "shown": [{"size": [1000000, 1000000], "counts": ""}]}', 'pixels'),
    ],
)
def test_a_wrong_query_is_an_error_that_names_the_key(text, message):
    with pytest.raises(ProblemError, match=message) as raised:
        parse_query(text.encode('utf-8', 'surrogatepass'), QueryLimits())
    assert raised.value.problem is Problem.INVALID_QUERY


def test_a_query_of_too_many_bytes_is_not_read():
    with pytest.raises(ProblemError, match='has 41 bytes; expected at most 40') as raised:
        parse_query(b'{' + b' ' * 40, QueryLimits(json_bytes=40))
    assert raised.value.problem is Problem.TOO_LARGE


def test_shown_masks_of_another_image_are_refused():
    mask = '{"size": [3, 4], "counts": "<"}'
    query = parse_query(f'{{"command": "x", "shown": [{mask}]}}'.encode(), QueryLimits())
    with pytest.raises(ProblemError, match='shown: a mask has the size'):
        query.backend_query(SHAPE)


@repeatable
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ['command', 'options', 'raw', 'dialogue', 'shown', 'region', 'size', 'x']
            ),
            inner,
            max_size=4,
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_query_or_a_problem(value):
    try:
        parse_query(json.dumps(value).encode(), QueryLimits())
    except ProblemError:
        return
    assert value['command'].strip()


def test_a_chunk_of_a_mask_that_claims_gigabytes_is_refused():
    """OpenCV would allocate them."""
    png = bytearray(base64.b64decode(encode_png_text(np.ones((6, 9), bool))))
    start = png.index(b'IDAT') - 4
    png[start : start + 4] = (0x7FFF_FFFF).to_bytes(4, 'big')
    with pytest.raises(ImageError, match=r"is damaged \(its chunk b'IDAT' ends after"):
        decode_png_text(base64.b64encode(png).decode(), (6, 9))
