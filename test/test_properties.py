# SPDX-License-Identifier: Apache-2.0
"""What holds for every input: conversions, geometry, prompts and parsers, with hypothesis."""

import dataclasses
import itertools
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('hypothesis', reason='needs hypothesis: make setup')

from golden import DATA
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lisa_ros.errors import QueryError, SettingsError
from lisa_ros.geometry.camera import Camera
from lisa_ros.geometry.point_cloud import depth_to_cloud, pack_xyzrgb
from lisa_ros.geometry.rgbd import depth_to_points
from lisa_ros.geometry.rotation import matrix_to_quaternion, quaternion_to_matrix
from lisa_ros.geometry.support_plane import fit_support_plane
from lisa_ros.messages.image import depth_to_metres, image_fields, image_to_rgb, mask_fields
from lisa_ros.messages.point_cloud import point_cloud2_fields
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception.masks import area, bounding_box, decode_rle, encode_rle, iou
from lisa_ros.perception.prompts import TEMPLATES, prompt_ids, training_ids
from lisa_ros.results import SEG, Dialogue, Turn, answer_text
from lisa_ros.session.command_parser import CommandKind, parse_command, select_cameras
from lisa_ros.settings import Settings
from lisa_ros.settings_schema import converted, parameter_info, validate

repeatable = settings(derandomize=True, max_examples=50, deadline=None, database=None)
few = settings(repeatable, max_examples=15)

sides = st.tuples(st.integers(1, 9), st.integers(1, 9))  # height, width
masks = hnp.arrays(bool, sides)
texts = st.text(max_size=40)
words = st.text(st.characters(categories=['L', 'N']), min_size=1, max_size=8)


def message(fields, **changes):
    return SimpleNamespace(**{**fields, **changes})


# ---- images


@repeatable
@given(pixels=hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 2, st.just(3))))
def test_colour_encodings_are_read_as_written(pixels):
    for encoding, order in (('rgb8', np.s_[:]), ('bgr8', np.s_[::-1])):
        read = image_to_rgb(message(image_fields(pixels, encoding)))
        assert np.array_equal(read, pixels[..., order])
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    assert np.array_equal(image_to_rgb(message(image_fields(opaque, 'rgba8'))), pixels)


@repeatable
@given(
    depth=hnp.arrays(np.uint16, sides, elements=st.just(0) | st.integers(10, 65535)),
    padding=st.integers(0, 5),
    big_endian=st.booleans(),
)
def test_depth_in_millimetres_survives_padding_and_byte_order(depth, padding, big_endian):
    stored = depth.astype('>u2' if big_endian else '<u2')
    rows = b''.join(row.tobytes() + b'\xab' * padding for row in stored)
    step = depth.shape[1] * 2 + padding
    fields = message(
        image_fields(depth, '16UC1'), data=rows, step=step, is_bigendian=int(big_endian)
    )
    metres = depth_to_metres(fields)
    assert metres.dtype == np.float32
    valid = depth > 0
    assert np.allclose(metres[valid], depth[valid] / 1000, atol=1e-6)
    assert not np.any(metres[~valid] > 0)


@repeatable
@given(
    depth=hnp.arrays(
        np.float32, sides, elements=st.floats(width=32, min_value=0.0625, max_value=50)
    )
)
def test_depth_in_metres_is_read_as_written(depth):
    assert np.array_equal(depth_to_metres(message(image_fields(depth, '32FC1'))), depth)


# ---- masks


@repeatable
@given(mask=masks)
def test_a_mask_survives_rle_and_a_message(mask):
    encoded = encode_rle(mask)
    assert sum(encoded['counts']) == mask.size
    assert all(count > 0 for count in encoded['counts'][1:])
    assert np.array_equal(decode_rle(encoded), mask)
    assert np.array_equal(image_to_rgb(message(mask_fields(mask)))[..., 0] == 255, mask)


@repeatable
@given(mask=masks)
def test_the_rle_is_that_of_pycocotools(mask):
    coco = pytest.importorskip('pycocotools.mask', reason="needs the extra 'train'")
    encoded = coco.frPyObjects(encode_rle(mask), *mask.shape)
    assert np.array_equal(coco.decode(encoded).astype(bool), mask)


@repeatable
@given(mask=masks)
def test_the_box_of_a_mask_is_the_smallest(mask):
    x, y, width, height = bounding_box(mask)
    assert area(mask[y : y + height, x : x + width]) == area(mask)
    if mask.any():
        inside = mask[y : y + height, x : x + width]
        assert all(inside[edge].any() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1]))


@repeatable
@given(pair=sides.flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 2)))
def test_iou_is_symmetric_and_one_for_equal_masks(pair):
    first, second = pair
    assert iou(first, second) == iou(second, first)
    assert 0 <= iou(first, second) <= 1
    if first.any():
        assert iou(first, first) == 1


# ---- geometry


cameras = st.builds(
    lambda focal, x, y, size: Camera(
        np.array([[focal, 0, x], [0, focal * 1.1, y], [0, 0, 1]]), size
    ),
    st.floats(5, 500),
    st.floats(0, 9),
    st.floats(0, 9),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)


@repeatable
@given(camera=cameras, distance=st.floats(0.1, 20))
def test_a_point_projects_to_its_own_pixel(camera, distance):
    width, height = camera.size
    points = depth_to_points(np.full((height, width), distance, np.float32), camera)
    projected, _ = cv2.projectPoints(
        points.reshape(-1, 1, 3).astype(np.float64), np.zeros(3), np.zeros(3), camera.k, None
    )
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([u, v], -1).reshape(-1, 2)
    assert np.allclose(projected.reshape(-1, 2), pixels, atol=0.01)


@repeatable
@given(k1=st.floats(-0.2, 0.2), k2=st.floats(-0.05, 0.05), p1=st.floats(-0.01, 0.01))
def test_a_ray_through_a_lens_ends_at_its_own_pixel(k1, k2, p1):
    k = np.array([[60.0, 0, 15.5], [0, 62.0, 11.5], [0, 0, 1]])
    distortion = np.array([k1, k2, p1, -p1, 0])
    rays = Camera(k, (32, 24), distortion, 'plumb_bob').rays().reshape(-1, 2).astype(np.float64)
    known = np.isfinite(rays[:, 0])
    assert known.mean() > 0.9
    points = np.column_stack([rays, np.ones(len(rays))])[known]
    projected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, distortion)
    u, v = np.meshgrid(np.arange(32), np.arange(24))
    pixels = np.stack([u, v], -1).reshape(-1, 2)[known]
    assert np.abs(projected.reshape(-1, 2) - pixels).max() < 0.11


@repeatable
@given(depth=hnp.arrays(np.float32, (4, 5), elements=st.floats(width=32)))
def test_a_point_is_valid_exactly_where_its_depth_is(depth):
    camera = Camera(np.array([[20.0, 0, 2], [0, 20, 2], [0, 0, 1]]), (5, 4))
    cloud = depth_to_cloud(np.zeros((4, 5, 3), np.uint8), depth, camera)
    with np.errstate(invalid='ignore'):
        valid = (depth > 0) & (depth < np.inf)
    assert np.array_equal(np.isfinite(cloud[..., 2]), valid)
    assert np.array_equal(cloud[valid, 2], depth[valid])


@repeatable
@given(
    points=hnp.arrays(
        np.float32, st.tuples(st.integers(0, 6), st.just(3)), elements=st.floats(-9, 9, width=32)
    ),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_a_cloud_has_the_bytes_that_pcl_reads(points, colour):
    colours = np.tile(np.uint8(colour), (len(points), 1))
    fields = point_cloud2_fields(pack_xyzrgb(points, colours))
    raw = np.frombuffer(fields['data'], np.uint8).reshape(-1, 16)
    assert fields['width'] == len(raw) == len(points)
    assert np.array_equal(raw[:, :12].copy().view('<f4'), points)
    red, green, blue = colour
    packed = raw[:, 12:].copy().view('<u4').ravel()
    assert (packed == (red << 16 | green << 8 | blue)).all()


@repeatable
@given(values=st.tuples(*[st.floats(-1, 1)] * 4))
def test_a_rotation_survives_its_quaternion(values):
    norm = np.linalg.norm(values)
    assume(norm > 0.1)
    matrix = quaternion_to_matrix(*(np.array(values) / norm))
    assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.isclose(np.linalg.det(matrix), 1)
    quaternion = matrix_to_quaternion(matrix)
    assert quaternion[3] >= 0
    assert np.allclose(quaternion_to_matrix(*quaternion), matrix, atol=1e-6)


@repeatable
@given(values=st.tuples(*[st.floats(-1, 1)] * 4), length=st.floats(0.001, 1000))
def test_the_length_of_a_quaternion_does_not_matter(values, length):
    norm = np.linalg.norm(values)
    assume(norm > 0.1)
    unit = np.array(values) / norm
    matrix = quaternion_to_matrix(*(unit * length))
    assert np.allclose(matrix, quaternion_to_matrix(*unit), atol=1e-12)


@few
@given(tilt=st.floats(-0.5, 0.5), height=st.floats(0.4, 1.2))
def test_the_table_below_a_block_is_found(tilt, height):
    """A camera looks down at a plane with a block of 5 cm on it."""
    size = 64, 48
    k = np.array([[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]])
    camera = Camera(k, size)
    up = np.array([0, -np.sin(tilt), -np.cos(tilt)])
    rays = np.dstack([camera.rays(), np.ones(size[::-1])])
    steepness = rays @ up  # negative where a ray meets the plane
    assume((steepness < -0.2).all())
    depth = (-height / steepness).astype(np.float32)
    mask = np.zeros(size[::-1], bool)
    mask[18:30, 26:38] = True
    depth[mask] = (-(height - 0.05) / steepness)[mask]
    mask_depth = depth.copy()
    mask_depth[29:31, 26:38] = (-height / steepness)[29:31, 26:38]  # the foot of the block
    plane = fit_support_plane(mask_depth, mask, camera)
    assert plane is not None
    assert plane.up @ up > 0.999
    assert abs(plane.offset + height) < 0.01


# ---- prompts


@pytest.fixture(scope='module')
def tokenizer():
    return Tokenizer.load(DATA / 'ckpt_256')


@pytest.mark.parametrize('template', TEMPLATES)
def test_any_query_has_one_image_and_no_special_token_of_its_own(template, tokenizer):
    plain = prompt_ids(tokenizer, template, 'mug')

    @repeatable
    @given(query=texts, special=st.sampled_from(['', SEG, '</s>', '<image>', '<s>', '<im_start>']))
    def check(query, special):
        text = f'{query}{special}{query}'
        assume(text.strip())
        ids = prompt_ids(tokenizer, template, text)
        assert ids.count(IMAGE_TOKEN_INDEX) == 1
        assert ids.count(tokenizer.seg_token_id) == 0
        assert ids[: ids.index(IMAGE_TOKEN_INDEX)] == plain[: plain.index(IMAGE_TOKEN_INDEX)]

    check()


def test_a_long_dialogue_loses_its_oldest_turns_and_keeps_the_query(tokenizer):
    @repeatable
    @given(turns=st.lists(words, max_size=6), limit=st.integers(30, 90))
    def check(turns, limit):
        dialogue = Dialogue(tuple(Turn(turn, f'Sure, {SEG} .') for turn in turns))
        alone = prompt_ids(tokenizer, 'plain', 'the mug')
        ids = prompt_ids(tokenizer, 'plain', 'the mug', dialogue, max_length=limit)
        assert len(alone) <= len(ids) <= limit
        assert ids.count(IMAGE_TOKEN_INDEX) == 1
        assert ids.count(tokenizer.seg_token_id) <= len(turns)
        assert ids[-3:] == alone[-3:]

    check()


@repeatable
@given(text=st.text(' \t\n\r\u00a0\u3000', max_size=9))
def test_a_blank_query_is_refused(text):
    with pytest.raises(QueryError):
        prompt_ids(None, 'plain', text)


@pytest.mark.parametrize('template', TEMPLATES)
def test_half_a_character_is_refused(template, tokenizer):
    with pytest.raises(QueryError, match='half a character'):
        prompt_ids(tokenizer, template, 'the mug \ud83d')
    with pytest.raises(QueryError, match='half a character'):
        training_ids(tokenizer, template, [Turn('the mug', 'Sure \udc00')])
    assert prompt_ids(tokenizer, template, 'the \U0001f375')  # a whole one


def test_pieces_of_a_stream_are_the_decoded_answer(tokenizer):
    @repeatable
    @given(text=texts)
    def check(text):
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        streamed = ''.join(stream.push(index) for index in ids)
        decoded = tokenizer.decode(ids)
        assert decoded.startswith(streamed) or ' '.join(streamed.split()) == ' '.join(
            decoded.split()
        )

    check()


@repeatable
@given(
    parts=st.lists(st.sampled_from([SEG, 'It is', ',', '.', ' ', 'and', 'mug', '\n']), max_size=9)
)
def test_a_readable_answer_has_no_tokens_and_single_spaces(parts):
    text = answer_text(' '.join(parts))
    assert SEG not in text
    assert text == ' '.join(text.split())
    assert text or SEG not in parts


# ---- parsers


@repeatable
@given(text=texts)
def test_any_text_is_one_kind_of_command(text):
    command = parse_command(text)
    if command.kind is CommandKind.ASK:
        assert command.text == text  # a query reaches the model as it was typed
    if command.kind is CommandKind.WATCH:
        assert text.strip().lower().startswith('watch:')
    if command.kind is CommandKind.STOP:
        assert len(text.strip().strip('.! ')) <= len('stop watching')


@repeatable
@given(
    query=words, camera=st.sampled_from(['front', 'rear']), spaces=st.sampled_from(['', ' ', '  '])
)
def test_an_address_is_removed_and_nothing_else(query, camera, spaces):
    cameras = ('front', 'rear')
    assert select_cameras(f'{camera.upper()}{spaces}:{spaces}{query}', cameras) == (
        (camera,),
        query,
    )
    assert select_cameras(f'all: {query}', cameras) == (cameras, query)
    assert select_cameras(query, cameras) == (cameras, query)
    for text in (f'{camera}: watch: {query}', f'watch: {camera}: {query}'):
        addressed, command = select_cameras(text, cameras)
        assert addressed == (camera,)
        assert parse_command(command).kind is CommandKind.WATCH
        assert parse_command(command).text == query


FIELDS = dataclasses.fields(Settings)
yaml_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.sampled_from(['off', 'on', 'yes', 'no', '~', 'null', '1', '0.5', 'nan']),
    st.lists(st.one_of(texts, st.integers()), max_size=3),
)


@repeatable
@given(field=st.sampled_from(FIELDS), value=yaml_values)
def test_any_value_of_a_parameter_is_converted_or_refused(field, value):
    result = converted(field, value)
    try:
        validate(field, result)
    except SettingsError as error:
        assert field.name in str(error)
        return
    assert type(result) is type(field.default) or isinstance(field.default, tuple)
    info = parameter_info(field)
    assert not info.choices or isinstance(field.default, tuple) or result in info.choices
    again = converted(field, result)
    assert again == result or list(again) == list(result)


@pytest.mark.parametrize('field', FIELDS, ids=lambda field: field.name)
def test_every_default_means_itself(field):
    validate(field, converted(field, field.default))
    assert converted(field, field.default) == field.default


@repeatable
@given(
    stamps=st.lists(
        st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 10**9 - 1)), min_size=2
    )
)
def test_stamps_are_ordered_as_their_integers(stamps):
    def header(sec, nanosec):
        return SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec))

    ordered = sorted(stamps)
    integers = [stamp_ns(header(*stamp)) for stamp in ordered]
    assert integers == sorted(integers)
    for (first, second), (a, b) in zip(
        itertools.pairwise(ordered), itertools.pairwise(integers), strict=True
    ):
        assert (first == second) == (a == b)
