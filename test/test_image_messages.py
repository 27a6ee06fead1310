# SPDX-License-Identifier: Apache-2.0
"""Image messages to numpy: each encoding, padded or not, in both byte orders."""

import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.messages.camera_info import camera_from_info
from lisa_ros.messages.image import (
    SUPPORTED_ENCODINGS,
    compressed_to_rgb,
    depth_to_metres,
    depth_unit_doubt,
    image_fields,
    image_to_rgb,
    mask_fields,
    stored_pixels,
)

H, W = 6, 8
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
VALUES = RGB[:, :, 0].astype(np.uint16) * 257 + 13
ALPHA = np.full((H, W, 1), 77, np.uint8)


def message(pixels, encoding, padding=0, big=False, height=H, width=W, kind=array.array):
    """Return an Image whose rows end with `padding` bytes that are not pixels."""
    pixels = pixels.astype(pixels.dtype.newbyteorder('>' if big else '<'))
    rows = [row.tobytes() + b'\xab' * padding for row in pixels]
    data = b''.join(rows)
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big),
        step=len(rows[0]),
        data=array.array('B', data) if kind is array.array else kind(data),
    )


def grey_to_rgb(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


def stretch_contrast(values):
    """Return the image expected of depth or range values that are all valid."""
    values = values.astype(np.float64)
    return grey_to_rgb(
        ((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)
    )


INTERLEAVED = {
    'rgb8': (RGB, RGB),
    'bgr8': (RGB[:, :, ::-1], RGB),
    '8UC3': (RGB[:, :, ::-1], RGB),
    'rgba8': (np.concatenate([RGB, ALPHA], 2), RGB),
    'bgra8': (np.concatenate([RGB[:, :, ::-1], ALPHA], 2), RGB),
    '8UC4': (np.concatenate([RGB[:, :, ::-1], ALPHA], 2), RGB),
    'mono8': (GREY, grey_to_rgb(GREY)),
    '8UC1': (GREY, grey_to_rgb(GREY)),
    'mono16': (VALUES, grey_to_rgb((VALUES >> 8).astype(np.uint8))),
    'rgb16': (RGB.astype(np.uint16) * 256 + 5, RGB),
    'bgr16': (RGB[:, :, ::-1].astype(np.uint16) * 256 + 5, RGB),
    'rgba16': (np.concatenate([RGB, ALPHA], 2).astype(np.uint16) * 256, RGB),
    'bgra16': (np.concatenate([RGB[:, :, ::-1], ALPHA], 2).astype(np.uint16) * 256, RGB),
    '16UC1': (VALUES, stretch_contrast(VALUES)),
    '32FC1': (VALUES.astype(np.float32) / 7, stretch_contrast(VALUES)),
}
PADDINGS = (0, 1, 3, 8)


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('encoding', INTERLEAVED)
def test_an_image_is_read_with_any_padding_and_byte_order(encoding, padding, big):
    stored, expected = INTERLEAVED[encoding]
    converted = image_to_rgb(message(stored, encoding, padding, big))
    assert converted.shape == (H, W, 3)
    assert converted.dtype == np.uint8
    tolerance = 1 if encoding in ('16UC1', '32FC1') else 0  # float32 rounding of the stretch
    assert np.abs(converted.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize(
    ('encoding', 'first_luma'), [('yuv422', 1), ('uyvy', 1), ('yuv422_yuy2', 0), ('yuyv', 0)]
)
def test_packed_yuv_is_converted_to_rgb(encoding, first_luma, padding):
    pairs = np.zeros((H, W // 2, 4), np.uint8)
    pairs[:, :, first_luma::2] = 81  # pure red in BT.601: Y 81, U 90, V 240
    pairs[:, :, 1 - first_luma] = 90
    pairs[:, :, 3 - first_luma] = 240
    converted = image_to_rgb(message(pairs.reshape(H, W, 2), encoding, padding))
    assert np.abs(converted.astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize(('encoding', 'first'), [('nv12', (90, 240)), ('nv21', (240, 90))])
def test_planar_yuv_is_converted_to_rgb(encoding, first, padding):
    planes = np.full((H * 3 // 2, W), 81, np.uint8)
    planes[H:, 0::2], planes[H:, 1::2] = first
    converted = image_to_rgb(message(planes, encoding, padding))
    assert converted.shape == (H, W, 3)
    assert np.abs(converted.astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_is_converted_to_rgb(pattern, bits, padding):
    colour = {'r': 200, 'g': 100, 'b': 50}
    tile = np.array([colour[c] for c in pattern], f'u{bits // 8}').reshape(2, 2) << (bits - 8)
    converted = image_to_rgb(
        message(np.tile(tile, (H // 2, W // 2)), f'bayer_{pattern}{bits}', padding)
    )
    assert np.array_equal(
        converted, np.broadcast_to(np.array([200, 100, 50], np.uint8), (H, W, 3))
    )


def test_every_supported_encoding_is_tested():
    tested = {*INTERLEAVED, 'yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12', 'nv21'}
    tested |= {f'bayer_{p}{b}' for p in ('rggb', 'bggr', 'gbrg', 'grbg') for b in (8, 16)}
    assert tested == set(SUPPORTED_ENCODINGS)


@pytest.mark.parametrize('kind', [array.array, bytes, list, lambda d: np.frombuffer(d, np.uint8)])
def test_data_may_be_array_bytes_list_or_numpy(kind):
    assert np.array_equal(image_to_rgb(message(RGB, 'rgb8', 3, kind=kind)), RGB)


def test_rgb8_is_not_copied_even_when_padded():
    source = message(RGB, 'rgb8', 5)
    assert np.shares_memory(image_to_rgb(source), np.frombuffer(source.data, np.uint8))


def test_the_last_row_may_lack_its_padding():
    source = message(RGB, 'rgb8', 4)
    source.data = source.data[:-4]
    assert np.array_equal(image_to_rgb(source), RGB)


def test_a_step_of_zero_means_rows_without_padding():
    source = message(RGB, 'rgb8')
    source.step = 0
    assert np.array_equal(image_to_rgb(source), RGB)


def test_an_unknown_encoding_is_an_error():
    with pytest.raises(ImageError, match=r"'rgb9' is not supported.*rgb8"):
        image_to_rgb(message(RGB, 'rgb9'))


def test_short_data_is_an_error_with_both_lengths():
    source = message(RGB, 'rgb8')
    source.data = source.data[:-1]
    with pytest.raises(ImageError, match=r'short: 143 bytes.*needs 144'):
        image_to_rgb(source)


def padded_rows(height, width, channels, rows, stride):
    """Return the bytes of an image whose buffer has more rows, and more pixels in each."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    stored = np.zeros((rows, stride, channels), np.uint8)
    stored[:height, :width] = pixels
    return pixels, stored.tobytes()


@pytest.mark.parametrize(
    ('size', 'encoding', 'channels', 'rows', 'stride', 'step'),
    [
        ((308, 410), 'bgr8', 3, 320, 416, 1230),  # ROS 1's raspicam_node: rows of 1248 bytes
        ((240, 320), 'bgra8', 4, 240, 352, 1360),  # rows of 1408 bytes
        ((48, 60), 'rgb8', 3, 48, 64, 0),
    ],
)
def test_rows_that_are_longer_than_the_step_are_an_error(
    size, encoding, channels, rows, stride, step
):
    _, data = padded_rows(*size, channels, rows, stride)
    source = SimpleNamespace(
        height=size[0], width=size[1], encoding=encoding, is_bigendian=0, step=step, data=data
    )
    with pytest.raises(ImageError, match=rf'is long: {len(data)} bytes, .*: set step to the leng'):
        image_to_rgb(source)


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('more', [0, 1, 2, 5])
def test_more_rows_than_the_height_are_ignored(more, padding):
    source = message(RGB, 'rgb8', padding)
    rest = bytes(more * source.step)
    # the last row may lack its padding, and trailing data may be less than a row
    for data in (rest, rest[: len(rest) - padding], bytes(source.step - 1)):
        longer = SimpleNamespace(**{**vars(source), 'data': bytes(source.data) + data})
        assert np.array_equal(image_to_rgb(longer), RGB)


@pytest.mark.parametrize(('encoding', 'channels'), [('mono8', 1), ('bgr8', 3)])
def test_the_rest_of_a_page_of_memory_is_ignored(encoding, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 80, channels), np.uint8)
    data = pixels.tobytes() + bytes(-pixels.size % 4096)
    assert len(data) > pixels.size + 2 * 80 * channels
    source = SimpleNamespace(
        height=90, width=80, encoding=encoding, is_bigendian=0, step=80 * channels, data=data
    )
    assert np.array_equal(image_to_rgb(source), np.broadcast_to(pixels[..., ::-1], (90, 80, 3)))


def test_the_only_row_of_a_line_camera_may_be_followed_by_anything():
    row = np.random.default_rng(0).integers(0, 256, 640, np.uint8)
    source = SimpleNamespace(
        height=1, width=640, encoding='mono8', is_bigendian=0, step=640,
        data=row.tobytes() + bytes(4096 - 640),
    )  # fmt: skip
    assert np.array_equal(image_to_rgb(source)[0, :, 0], row)


@pytest.mark.parametrize('encoding', ['nv12', 'nv21'])
def test_planar_yuv_may_end_at_a_page_of_memory(encoding):
    planes = np.random.default_rng(0).integers(0, 256, (540, 640), dtype=np.uint8)
    source = message(planes, encoding, height=360, width=640)
    expected = image_to_rgb(source)
    source.data = planes.tobytes() + bytes(-planes.size % 4096)  # four rows more
    assert len(source.data) == planes.size + 4 * 640
    assert np.array_equal(image_to_rgb(source), expected)


@pytest.mark.parametrize('encoding', ['nv12', 'nv21'])
def test_planar_yuv_with_more_rows_is_an_error(encoding):
    """A decoder may have padded Y to 16 rows, so that the colours start later."""
    source = message(np.full((H * 3 // 2, W), 81, np.uint8), encoding)
    for more in (8 * W, 3 * 8 * W, 3 * 4096 + 1):
        source.data = bytes(9 * W + more)
        with pytest.raises(ImageError, match=rf'is long: .* {9 * W}: .*after the last row of Y'):
            image_to_rgb(source)
    source.data = bytes(9 * W + 3 * W + 1)
    assert image_to_rgb(source).shape == (H, W, 3)


@pytest.mark.parametrize('encoding', ['nv12', 'nv21'])
def test_planar_yuv_may_have_a_step_that_counts_the_colours(encoding):
    planes = np.random.default_rng(0).integers(0, 256, (H * 3 // 2, W), dtype=np.uint8)
    source = message(planes, encoding)
    expected = image_to_rgb(source)
    source.step = W * 3 // 2
    assert np.array_equal(image_to_rgb(source), expected)
    source.data = source.data[:-1]
    with pytest.raises(ImageError, match=r'is short: 71 bytes, .*with step 12'):
        image_to_rgb(source)


def test_an_image_without_pixels_has_no_stored_values():
    empty = message(GREY, 'mono8', height=0, width=0)
    empty.step = 0
    assert stored_pixels(empty, 'u1', 1).shape == (0, 0, 1)


def test_a_step_smaller_than_a_row_is_an_error():
    source = message(RGB, 'rgb8')
    source.step = 20
    with pytest.raises(ImageError, match=r'step 20 is too small.*24 bytes'):
        image_to_rgb(source)


def test_an_empty_image_is_an_error():
    with pytest.raises(ImageError, match=r'0 x 6 pixels is empty'):
        image_to_rgb(message(RGB, 'rgb8', width=0))


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 8), (6, 1)])
def test_a_bayer_image_of_one_row_or_column_is_an_error(height, width):
    with pytest.raises(ImageError, match=f'{width} x {height} pixels; expected 2 or more'):
        image_to_rgb(message(GREY[:height, :width], 'bayer_rggb8', height=height, width=width))


def test_yuv_with_an_odd_width_is_an_error():
    with pytest.raises(ImageError, match=r'even width, not 7'):
        image_to_rgb(message(np.zeros((H, 7, 2), np.uint8), 'yuv422', width=7))


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('encoding', ['16UC1', 'mono16'])
def test_millimetres_become_metres_and_zero_becomes_nan(encoding, padding, big):
    depth = np.full((H, W), 1234, np.uint16)
    depth[0, 0] = 0
    converted = depth_to_metres(message(depth, encoding, padding, big))
    assert converted.dtype == np.float32
    assert np.isnan(converted[0, 0])
    assert np.isnan(converted).sum() == 1
    assert converted[3, 3] == pytest.approx(1.234)


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', PADDINGS)
def test_metres_are_kept_and_invalid_depth_becomes_nan(padding, big):
    depth = np.full((H, W), 1.5, np.float32)
    depth[0, :4] = [0, np.nan, np.inf, -1]
    source = message(depth, '32FC1', padding, big)
    converted = depth_to_metres(source)
    assert np.isnan(converted).sum() == 4
    assert converted[3, 3] == 1.5
    assert not np.shares_memory(converted, np.frombuffer(source.data, np.uint8))


@pytest.mark.parametrize(
    ('values', 'encoding', 'text'),
    [
        (np.float32(799), '32FC1', 'beyond 799 m, read as metres.* is this in millimetres'),
        (np.uint16(1), '16UC1', 'nearer than 0.001 m, read as millimetres.* is this in metres'),
        (np.float32(0.004), '32FC1', 'nearer than 0.004 m'),
    ],
)
def test_depth_in_another_unit_is_refused_with_the_cure(values, encoding, text):
    depth = np.full((H, W), values)
    depth[:2] = 0
    with pytest.raises(ImageError, match=text):
        depth_to_metres(message(depth, encoding))


@pytest.mark.parametrize(
    ('values', 'encoding'),
    [(np.float32(0.02), '32FC1'), (np.float32(150), '32FC1'), (np.uint16(65535), '16UC1')],
)
def test_depth_of_a_camera_with_an_unusual_range_is_taken(values, encoding):
    depth = np.full((H, W), values)
    depth[0, 0] = 1  # a pixel at a distance that no camera measures
    assert np.isfinite(depth_to_metres(message(depth, encoding))).all()


def test_the_sky_of_a_simulated_camera_is_no_other_unit():
    depth = np.full((H, W), 1000, np.float32)
    depth[-1] = 30  # the ground
    assert depth_to_metres(message(depth, '32FC1')).max() == 1000


def test_the_ground_far_below_a_drone_is_no_other_unit():
    depth = np.linspace(250.5, 260.25, H * W, dtype=np.float32).reshape(H, W)
    assert np.array_equal(depth_to_metres(message(depth, '32FC1')), depth)


def test_noise_under_a_covered_lens_is_no_other_unit():
    depth = np.zeros((H, W), np.uint16)
    depth[0, :2] = 3
    assert np.isfinite(depth_to_metres(message(depth, '16UC1'))).sum() == 2


def test_depth_without_a_valid_pixel_has_any_unit():
    assert np.isnan(depth_to_metres(message(np.zeros((H, W), np.uint16), '16UC1'))).all()


def test_depth_that_is_read_in_a_doubtful_unit_is_named():
    """Such as that of an ensenso camera in millimetres: one cannot know."""
    millimetres = np.linspace(480.5, 620.25, H * W, dtype=np.float32).reshape(H, W)
    doubt = depth_unit_doubt(message(millimetres, '32FC1', padding=3))
    assert doubt.startswith('nearly all of the depth is beyond 487')
    assert '32FC1 must be in metres (REP-118)' in doubt
    for doubtful in (
        message(VALUES, 'mono16'),
        SimpleNamespace(format='mono16; compressedDepth png', data=b''),
    ):
        assert depth_unit_doubt(doubtful).startswith('mono16 has no unit in REP-118; it is read')


def test_the_unit_of_other_depth_is_not_doubtful():
    metres = np.full((H, W), 1000, np.float32)  # the sky of a simulated camera
    metres[-1] = 30  # and the ground
    few = np.full((H, W), np.nan, np.float32)
    few[0, :2] = 1000
    for depth in (metres, metres / 500, few, np.full_like(metres, np.inf)):
        assert depth_unit_doubt(message(depth, '32FC1')) == ''
    assert depth_unit_doubt(message(VALUES, '16UC1')) == ''
    assert depth_unit_doubt(SimpleNamespace(format='32FC1; compressedDepth png', data=b'')) == ''
    broken = message(metres, '32FC1')
    broken.data = broken.data[:-1]
    with pytest.raises(ImageError, match='short'):
        depth_unit_doubt(broken)


def test_a_colour_image_is_refused_as_depth():
    with pytest.raises(ImageError, match=r"depth encoding 'rgb8'.*REP-118"):
        depth_to_metres(message(RGB, 'rgb8'))


def compressed(extension, pixels, name):
    data = array.array('B', cv2.imencode(extension, pixels)[1].tobytes())
    return SimpleNamespace(format=name, data=data)


@pytest.mark.parametrize('name', ['png', 'rgb8; png compressed bgr8', 'bgr8; png compressed bgr8'])
def test_a_compressed_image_in_bgr_order_is_read_as_rgb(name):
    assert np.array_equal(compressed_to_rgb(compressed('.png', RGB[:, :, ::-1], name)), RGB)


def test_a_compressed_image_in_rgb_order_is_recognized_by_its_format():
    swapped = compressed('.png', RGB, 'rgb8; png compressed rgb8')
    assert np.array_equal(compressed_to_rgb(swapped), RGB)


def test_compressed_jpeg_grey_and_16_bit_images_are_read():
    uniform = np.full((16, 16, 3), (30, 120, 200), np.uint8)
    jpeg = compressed_to_rgb(compressed('.jpg', uniform[:, :, ::-1], 'jpeg'))
    assert np.abs(jpeg.astype(int) - uniform).max() <= 4
    assert np.array_equal(compressed_to_rgb(compressed('.png', GREY, 'png')), grey_to_rgb(GREY))
    sixteen = compressed('.png', VALUES, 'mono16; png compressed ')
    assert np.array_equal(compressed_to_rgb(sixteen), grey_to_rgb((VALUES >> 8).astype(np.uint8)))


@pytest.mark.parametrize('data', [b'', b'not an image'])
def test_a_broken_compressed_image_is_an_error(data):
    with pytest.raises(ImageError, match=f"'jpeg' cannot be decoded: {len(data)} bytes"):
        compressed_to_rgb(SimpleNamespace(format='jpeg', data=data))


def test_compressed_depth_is_refused_as_colour():
    with pytest.raises(ImageError, match=r'is depth'):
        compressed_to_rgb(SimpleNamespace(format='16UC1; compressedDepth png', data=b'x'))


def test_message_fields_are_read_back_unchanged():
    assert np.array_equal(image_to_rgb(SimpleNamespace(**image_fields(RGB, 'rgb8'))), RGB)
    mask = GREY > 100
    fields = mask_fields(mask)
    assert (fields['encoding'], fields['step']) == ('mono8', W)
    pixels = image_to_rgb(SimpleNamespace(**fields))[:, :, 0]
    assert np.array_equal(pixels, mask * 255)
    with pytest.raises(ImageError, match=r'float32.*is no rgb8'):
        image_fields(RGB.astype(np.float32), 'rgb8')


def info(k, **changes):
    region = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    fields = {
        'width': 640, 'height': 480, 'k': k, 'd': [], 'distortion_model': '', 'roi': region,
        'p': [400.0, 0, 300, 0, 0, 410, 200, 0, 0, 0, 1, 0], 'binning_x': 0, 'binning_y': 0,
        'header': SimpleNamespace(frame_id=''),
    }  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


K = [500.0, 0, 320, 0, 510, 240, 0, 0, 1]


def test_the_camera_matches_the_published_image():
    full = camera_from_info(info(K))
    assert full.k.tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
    assert full.size == (640, 480)
    region = SimpleNamespace(x_offset=20, y_offset=40, width=600, height=400)
    cropped = camera_from_info(info(K, roi=region, binning_x=2, binning_y=2))
    assert cropped.k.tolist() == [[250, 0, 150], [0, 255, 100], [0, 0, 1]]
    assert cropped.size == (300, 200)


def test_a_rectified_image_has_the_camera_of_p_and_no_distortion():
    distortion = {'d': [0.1, 0, 0, 0, 0], 'distortion_model': 'plumb_bob'}
    assert camera_from_info(info(K, **distortion)).distortion.tolist() == [0.1, 0, 0, 0, 0]
    assert camera_from_info(info(K, **distortion)).distortion_model == 'plumb_bob'
    rectified = camera_from_info(info(K, **distortion), rectified=True)
    assert rectified.k.tolist() == [[400, 0, 300], [0, 410, 200], [0, 0, 1]]
    assert len(rectified.distortion) == 0


def test_a_ros_1_camera_info_is_read():
    ros_2 = info(K)
    fields = {name.upper() if name in 'kpd' else name: v for name, v in vars(ros_2).items()}
    ros_1 = SimpleNamespace(**fields)
    assert camera_from_info(ros_1).k.tolist() == camera_from_info(ros_2).k.tolist()


def test_an_uncalibrated_camera_is_an_error():
    with pytest.raises(ImageError, match=r'not calibrated: K has fx 0.*: calibrate the camera'):
        camera_from_info(info([0.0] * 9, p=[0.0] * 12))
    for place in (0, 2, 5):
        k = [*K[:place], float('nan'), *K[place + 1 :]]
        with pytest.raises(ImageError, match=r'not calibrated: .*nan'):
            camera_from_info(info(k))


@pytest.mark.parametrize(
    ('changes', 'rectified', 'text'),
    [
        ({'k': [0.0] * 9}, False, 'K has fx 0, .*; P has them: set image_is_rectified to true if'),
        ({'p': [0.0] * 12}, True, 'P has fx 0, .*; K has them: set image_is_rectified to false'),
        # a P that stands for no lens
        ({'k': [0.0] * 9, 'p': list(np.eye(3, 4).ravel())}, False, 'K has .*: calibrate the cam'),
        ({'k': [0.0] * 9, 'p': []}, False, 'K has .*: calibrate the camera'),
        ({'k': [], 'p': [0.0] * 12}, True, 'P has .*: calibrate the camera'),
    ],
)
def test_a_camera_info_without_the_matrix_of_its_image_names_the_other(changes, rectified, text):
    with pytest.raises(ImageError, match=f'camera_info is not calibrated: {text}'):
        camera_from_info(info(**{'k': K, **changes}), rectified)


def region(x=0, y=0, width=0, height=0):
    return SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height)


@pytest.mark.parametrize(
    'roi',
    [
        region(700, 450, 640, 480),  # K, width and height are those of the cropped image
        region(200, 0, 441, 480),
        region(0, 1, 640, 480),
        region(20, 40),
    ],
)
def test_a_region_outside_of_its_sensor_is_an_error(roi):
    text = rf'roi {roi.width} x {roi.height} at .* not inside .* 640 x 480: .*a roi of zeros'
    with pytest.raises(ImageError, match=text):
        camera_from_info(info(K, roi=roi))
    camera_from_info(info(K, roi=roi, width=0, height=0))  # it may be inside


def test_the_size_of_the_region_beside_the_matrix_of_the_sensor_is_read():
    """The hand camera of a Baxter publishes this (github.com/sniekum/ar_track_alvar/pull/40)."""
    k = [404.0, 0, 631.07, 0, 404.0, 375.69, 0, 0, 1]
    message = info(k, width=640, height=400, roi=region(320, 200, 640, 400))
    camera = camera_from_info(message)
    assert camera.size == (640, 400)
    assert tuple(camera.k[:2, 2].round(2)) == (311.07, 175.69)


def test_a_region_may_reach_the_end_of_the_sensor():
    assert camera_from_info(info(K, roi=region(200, 0, 440, 480))).size == (440, 480)
    full = region(width=1280, height=960)  # width and height are those of the binned image
    assert camera_from_info(info(K, roi=full, binning_x=2, binning_y=2)).size == (640, 480)
    rounded = region(0, 0, 642, 480)  # up to whole binned pixels
    assert camera_from_info(info(K, roi=rounded, binning_x=3, binning_y=3)).size == (214, 160)


@pytest.mark.parametrize(
    ('centre', 'changes'),
    [
        ((160, 120), {'binning_x': 2, 'binning_y': 2}),
        ((130, 140), {'binning_x': 2, 'binning_y': 2}),
        ((79, 57), {'binning_x': 4, 'binning_y': 4}),
        ((160, 240), {'binning_x': 2}),
        ((150, 100), {'roi': region(300, 250, 300, 200)}),
        ((75, 50), {'roi': region(300, 250, 300, 200), 'binning_x': 2, 'binning_y': 2}),
    ],
)
def test_the_principal_point_of_the_published_image_is_an_error(centre, changes):
    k = [500.0, 0, centre[0], 0, 510, centre[1], 0, 0, 1]
    text = rf'K .* \({centre[0]}, {centre[1]}\), the centre of .* sensor of 640 x 480: publish'
    with pytest.raises(ImageError, match=text):
        camera_from_info(info(k, **changes))
    p = [*k[:3], 0, *k[3:6], 0, *k[6:], 0]
    with pytest.raises(ImageError, match='P in camera_info has the principal point'):
        camera_from_info(info(K, p=p, **changes), rectified=True)
    camera_from_info(info(k, width=0, height=0, **changes))  # not known to be wrong


@pytest.mark.parametrize(
    ('centre', 'changes'),
    [
        ((260, 190), {'binning_x': 2, 'binning_y': 2}),  # far from the centre
        ((230, 240), {'binning_x': 4, 'binning_y': 4}),
        ((-100, 900), {'binning_x': 2, 'binning_y': 2}),  # a lens that is shifted on purpose
        ((160, 120), {'roi': region(0, 0, 320, 240)}),  # a region round the centre of such a lens
        ((282, 205), {'roi': region(70, 70, 564, 410)}),  # nearly the whole sensor
        ((320, 240), {'roi': region(0, 100, 320, 200)}),
        ((320, 240), {'roi': region(320, 0, 320, 480), 'binning_x': 2, 'binning_y': 2}),
    ],
)
def test_an_unusual_principal_point_of_the_full_sensor_is_taken(centre, changes):
    k = [500.0, 0, centre[0], 0, 510, centre[1], 0, 0, 1]
    camera = camera_from_info(info(k, **changes))
    roi, binning = changes.get('roi', region()), changes.get('binning_x', 1)
    expected = (centre[0] - roi.x_offset) / binning, (centre[1] - roi.y_offset) / binning
    assert camera.k[:2, 2].tolist() == list(expected)


def with_changes(values, changes):
    return [changes.get(place, value) for place, value in enumerate(values)]


P = info(K).p


@pytest.mark.parametrize(
    ('k', 'error'),
    [
        ([500.0, 0, 0, 0, 510, 0, 320, 240, 1], r'\[500 0 0; 0 510 0; 320 240 1\]; .*row by row'),
        (with_changes(K, {1: 30.0}), r'K .*\[500 30 320; .*expected \[fx 0 cx; 0 fy cy; 0 0 1\]'),
        (with_changes(K, {3: 1.0}), 'not that of a camera'),
        (with_changes(K, {8: 0.0}), 'not that of a camera'),
        (with_changes(K, {0: 1e-6, 4: 1e-6}), 'fx 1e-06, fy 1e-06; expected 6.4 to 6.4e'),
        (with_changes(K, {0: 0.8, 4: 0.8, 2: 0.5, 5: 0.5}), 'in pixels, not as fractions'),
        (with_changes(K, {0: 1e12}), 'fx 1e.12, fy 510; expected 6.4 to'),
        (K[:8], 'K in camera_info has 8 numbers; expected 9'),
    ],
)
def test_a_matrix_that_is_not_that_of_a_camera_is_an_error(k, error):
    with pytest.raises(ImageError, match=error) as caught:
        camera_from_info(info(k))
    assert '\n' not in str(caught.value)
    assert camera_from_info(info(k), rectified=True).k[0, 0] == 400  # K is not read


@pytest.mark.parametrize(
    ('p', 'error'),
    [
        (with_changes(P, {1: 30.0}), r'expected \[fx 0 cx Tx; 0 fy cy Ty; 0 0 1 0\]'),
        (with_changes(P, {10: 0.0}), 'P in camera_info is not that of a camera'),
        (with_changes(P, {0: 1e-6}), 'P in camera_info has the focal lengths'),
        ([0.0] * 12, 'not calibrated'),
        ([], 'P in camera_info has 0 numbers; expected 12'),
    ],
)
def test_the_matrix_of_a_rectified_image_is_checked_in_the_same_way(p, error):
    with pytest.raises(ImageError, match=error):
        camera_from_info(info(K, p=p), rectified=True)
    assert camera_from_info(info(K, p=p)).k[0, 0] == 500  # P is not read


@pytest.mark.parametrize(
    'changes',
    [
        {1: 1.5},  # a skew, as MATLAB fits it
        {1: 1e-14, 3: -1e-13, 8: 1 + 1e-12},  # rounded
        {0: 100.0, 4: 100.0},  # a fisheye lens
        {0: 60_000.0, 4: 60_000.0},  # a telescope
        {2: -100.0, 5: 900.0},  # a principal point outside of the image
    ],
)
def test_the_matrix_of_an_unusual_camera_is_read(changes):
    k = with_changes(K, changes)
    for size in ((640, 480), (0, 0)):
        camera = camera_from_info(info(k, width=size[0], height=size[1]))
        assert camera.k.ravel().tolist() == k
    stereo = with_changes(P, {3: -24.0})  # Tx of the right camera
    assert camera_from_info(info(K, p=stereo), rectified=True).k[0].tolist() == [400, 0, 300]


def convert_with_cv_bridge(encoding, stored, output_encoding):
    """Return a sensor_msgs/Image and the array that cv_bridge converts it to."""
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge needs a ROS installation')
    from sensor_msgs.msg import Image

    source = Image(**vars(message(np.ascontiguousarray(stored), encoding)))
    return source, cv_bridge.CvBridge().imgmsg_to_cv2(source, output_encoding)


COLOURS = [name for name in INTERLEAVED if name[0].isalpha()]
BAYER = [f'bayer_{pattern}8' for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')]


@pytest.mark.parametrize('encoding', [*COLOURS, 'yuv422', *BAYER])
def test_colours_equal_cv_bridge(encoding):
    stored = RGB[:, :, :2] if encoding == 'yuv422' else GREY
    stored = INTERLEAVED[encoding][0] if encoding in INTERLEAVED else stored
    source, reference = convert_with_cv_bridge(encoding, stored, 'rgb8')
    # 16 bits: cv_bridge divides by 257 and rounds; we keep the upper byte. YUV and Bayer: its
    # OpenCV may have another version, which rounds differently.
    tolerance = 0 if encoding.endswith('8') and encoding not in BAYER else 1
    assert np.abs(image_to_rgb(source).astype(int) - reference).max() <= tolerance


@pytest.mark.parametrize('encoding', ['bayer_rggb10', 'bayer_rggb12', 'bayer_rggb12p'])
def test_a_raw_mosaic_of_an_unknown_packing_is_refused(encoding):
    with pytest.raises(ImageError, match=rf'{encoding}.* is not supported; .*bayer_rggb16'):
        image_to_rgb(message(VALUES, encoding))


def test_an_image_of_one_value_is_black_and_one_without_values_is_refused():
    for value in (0, 700):
        assert not image_to_rgb(message(np.full((H, W), value, np.uint16), '16UC1')).any()
    for value in (np.nan, np.inf):
        with pytest.raises(ImageError, match='image of 32FC1 has no finite value; expected'):
            image_to_rgb(message(np.full((H, W), value, np.float32), '32FC1'))


@pytest.mark.parametrize('encoding', ['8UC1', '8UC3', '8UC4', '16UC1', '32FC1'])
def test_values_equal_cv_bridge(encoding):
    """cv_bridge does not treat these encodings as colours: it returns the stored values."""
    source, reference = convert_with_cv_bridge(encoding, INTERLEAVED[encoding][0], 'passthrough')
    reference = reference.reshape(H, W, -1)
    if encoding in ('16UC1', '32FC1'):
        unit = 0.001 if encoding == '16UC1' else 1.0
        depth = depth_to_metres(source)
        np.testing.assert_allclose(depth, reference[:, :, 0] * unit, rtol=1e-6)
    elif encoding == '8UC1':
        assert np.array_equal(image_to_rgb(source), np.repeat(reference, 3, axis=2))
    else:  # in BGR order by the convention of OpenCV
        assert np.array_equal(image_to_rgb(source), reference[:, :, 2::-1])


class GpuBuffer:
    """rosidl_buffer.Buffer of ROS 2 Lyrical, as its stub file declares it: no buffer protocol."""

    backend_type = 'cuda'

    def __init__(self, data):
        self._data = bytes(data)

    def __len__(self):
        return len(self._data)

    def to_bytes(self):
        return self._data


def test_data_in_the_memory_of_a_gpu_are_copied():
    np.testing.assert_array_equal(image_to_rgb(message(RGB, 'rgb8', kind=GpuBuffer)), RGB)
    depth = depth_to_metres(message(VALUES, '16UC1', kind=GpuBuffer))
    np.testing.assert_allclose(depth, VALUES / 1000, rtol=1e-6)
    png = cv2.imencode('.png', RGB[:, :, ::-1])[1].tobytes()
    compressed = SimpleNamespace(format='rgb8; png compressed bgr8', data=GpuBuffer(png))
    np.testing.assert_array_equal(compressed_to_rgb(compressed), RGB)
