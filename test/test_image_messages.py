# SPDX-License-Identifier: Apache-2.0
"""Every encoding, padded or not, in both byte orders, against pixels worked out by hand."""

import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from lisa_ros.errors import ImageError
from lisa_ros.messages.image import (
    SUPPORTED_ENCODINGS,
    camera_from_info,
    compressed_to_rgb,
    depth_to_metres,
    image_fields,
    image_to_rgb,
    mask_fields,
)

H, W = 6, 8
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
VALUES = RGB[:, :, 0].astype(np.uint16) * 257 + 13
ALPHA = np.full((H, W, 1), 77, np.uint8)


def message(pixels, encoding, padding=0, big=False, height=H, width=W, kind=array.array):
    """Build an Image whose rows carry `padding` bytes of noise at their end."""
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


def grey3(picture):
    return np.repeat(picture[:, :, None], 3, axis=2)


def stretched(values):
    """The picture of a range image whose values are all valid."""
    values = values.astype(np.float64)
    return grey3(((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8))


INTERLEAVED = {
    'rgb8': (RGB, RGB),
    'bgr8': (RGB[:, :, ::-1], RGB),
    '8UC3': (RGB[:, :, ::-1], RGB),
    'rgba8': (np.concatenate([RGB, ALPHA], 2), RGB),
    'bgra8': (np.concatenate([RGB[:, :, ::-1], ALPHA], 2), RGB),
    '8UC4': (np.concatenate([RGB[:, :, ::-1], ALPHA], 2), RGB),
    'mono8': (GREY, grey3(GREY)),
    '8UC1': (GREY, grey3(GREY)),
    'mono16': (VALUES, grey3((VALUES >> 8).astype(np.uint8))),
    'rgb16': (RGB.astype(np.uint16) * 256 + 5, RGB),
    'bgr16': (RGB[:, :, ::-1].astype(np.uint16) * 256 + 5, RGB),
    'rgba16': (np.concatenate([RGB, ALPHA], 2).astype(np.uint16) * 256, RGB),
    'bgra16': (np.concatenate([RGB[:, :, ::-1], ALPHA], 2).astype(np.uint16) * 256, RGB),
    '16UC1': (VALUES, stretched(VALUES)),
    '32FC1': (VALUES.astype(np.float32) / 7, stretched(VALUES)),
}
PADDINGS = (0, 1, 3, 8)


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('encoding', INTERLEAVED)
def test_pixels_come_out_whatever_the_padding_and_byte_order(encoding, padding, big):
    stored, expected = INTERLEAVED[encoding]
    got = image_to_rgb(message(stored, encoding, padding, big))
    assert got.shape == (H, W, 3)
    assert got.dtype == np.uint8
    tolerance = 1 if encoding in ('16UC1', '32FC1') else 0  # the stretch rounds in float32
    assert np.abs(got.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize(
    ('encoding', 'first_luma'), [('yuv422', 1), ('uyvy', 1), ('yuv422_yuy2', 0), ('yuyv', 0)]
)
def test_packed_yuv_gives_its_colours(encoding, first_luma, padding):
    pairs = np.zeros((H, W // 2, 4), np.uint8)
    pairs[:, :, first_luma::2] = 81  # pure red in BT.601: Y 81, U 90, V 240
    pairs[:, :, 1 - first_luma] = 90
    pairs[:, :, 3 - first_luma] = 240
    got = image_to_rgb(message(pairs.reshape(H, W, 2), encoding, padding))
    assert np.abs(got.astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize(('encoding', 'first'), [('nv12', (90, 240)), ('nv21', (240, 90))])
def test_planar_yuv_gives_its_colours(encoding, first, padding):
    planes = np.full((H * 3 // 2, W), 81, np.uint8)
    planes[H:, 0::2], planes[H:, 1::2] = first
    got = image_to_rgb(message(planes, encoding, padding))
    assert got.shape == (H, W, 3)
    assert np.abs(got.astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_gives_its_colours(pattern, padding):
    colour = {'r': 200, 'g': 100, 'b': 50}
    tile = np.array([colour[c] for c in pattern], np.uint8).reshape(2, 2)
    got = image_to_rgb(message(np.tile(tile, (H // 2, W // 2)), f'bayer_{pattern}8', padding))
    assert np.array_equal(got, np.broadcast_to(np.array([200, 100, 50], np.uint8), (H, W, 3)))


def test_every_supported_encoding_is_tested():
    tested = {*INTERLEAVED, 'yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12', 'nv21'}
    tested |= {f'bayer_{p}8' for p in ('rggb', 'bggr', 'gbrg', 'grbg')}
    assert tested == set(SUPPORTED_ENCODINGS)


@pytest.mark.parametrize('kind', [array.array, bytes, list, lambda d: np.frombuffer(d, np.uint8)])
def test_data_may_be_an_array_bytes_a_list_or_numpy(kind):
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


def test_an_unknown_encoding_is_named():
    with pytest.raises(ImageError, match=r"'rgb9' is not supported.*rgb8"):
        image_to_rgb(message(RGB, 'rgb9'))


def test_short_data_says_what_came_and_what_is_needed():
    source = message(RGB, 'rgb8')
    source.data = source.data[:-1]
    with pytest.raises(ImageError, match=r'short: 143 bytes.*needs 144'):
        image_to_rgb(source)


def test_a_step_below_the_row_is_named():
    source = message(RGB, 'rgb8')
    source.step = 20
    with pytest.raises(ImageError, match=r'step 20 is too small.*24 bytes'):
        image_to_rgb(source)


def test_an_empty_image_is_named():
    with pytest.raises(ImageError, match=r'0 x 6 pixels is empty'):
        image_to_rgb(message(RGB, 'rgb8', width=0))


def test_odd_yuv_is_named():
    with pytest.raises(ImageError, match=r'even width, not 7'):
        image_to_rgb(message(np.zeros((H, 7, 2), np.uint8), 'yuv422', width=7))


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('encoding', ['16UC1', 'mono16'])
def test_millimetres_become_metres_and_zero_is_invalid(encoding, padding, big):
    depth = np.full((H, W), 1234, np.uint16)
    depth[0, 0] = 0
    got = depth_to_metres(message(depth, encoding, padding, big))
    assert got.dtype == np.float32
    assert np.isnan(got[0, 0])
    assert np.isnan(got).sum() == 1
    assert got[3, 3] == pytest.approx(1.234)


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', PADDINGS)
def test_metres_stay_and_what_is_no_distance_is_invalid(padding, big):
    depth = np.full((H, W), 1.5, np.float32)
    depth[0, :4] = [0, np.nan, np.inf, -1]
    source = message(depth, '32FC1', padding, big)
    got = depth_to_metres(source)
    assert np.isnan(got).sum() == 4
    assert got[3, 3] == 1.5
    assert not np.shares_memory(got, np.frombuffer(source.data, np.uint8))


def test_a_colour_picture_is_no_depth():
    with pytest.raises(ImageError, match=r"depth encoding 'rgb8'.*REP-118"):
        depth_to_metres(message(RGB, 'rgb8'))


def compressed(extension, picture, name):
    data = array.array('B', cv2.imencode(extension, picture)[1].tobytes())
    return SimpleNamespace(format=name, data=data)


@pytest.mark.parametrize('name', ['png', 'rgb8; png compressed bgr8', 'bgr8; png compressed bgr8'])
def test_a_file_with_the_usual_order_gives_rgb(name):
    assert np.array_equal(compressed_to_rgb(compressed('.png', RGB[:, :, ::-1], name)), RGB)


def test_a_file_with_swapped_channels_says_so_in_its_format():
    swapped = compressed('.png', RGB, 'rgb8; png compressed rgb8')
    assert np.array_equal(compressed_to_rgb(swapped), RGB)


def test_jpeg_grey_and_sixteen_bit_files_are_read():
    flat = np.full((16, 16, 3), (30, 120, 200), np.uint8)
    jpeg = compressed_to_rgb(compressed('.jpg', flat[:, :, ::-1], 'jpeg'))
    assert np.abs(jpeg.astype(int) - flat).max() <= 4
    assert np.array_equal(compressed_to_rgb(compressed('.png', GREY, 'png')), grey3(GREY))
    sixteen = compressed('.png', VALUES, 'mono16; png compressed ')
    assert np.array_equal(compressed_to_rgb(sixteen), grey3((VALUES >> 8).astype(np.uint8)))


@pytest.mark.parametrize('data', [b'', b'not a picture'])
def test_a_broken_file_is_named(data):
    with pytest.raises(ImageError, match=f"'jpeg' cannot be decoded: {len(data)} bytes"):
        compressed_to_rgb(SimpleNamespace(format='jpeg', data=data))


def test_depth_is_no_colour_picture():
    with pytest.raises(ImageError, match=r'is depth'):
        compressed_to_rgb(SimpleNamespace(format='16UC1; compressedDepth png', data=b'x'))


def test_fields_read_back_as_they_were():
    assert np.array_equal(image_to_rgb(SimpleNamespace(**image_fields(RGB, 'rgb8'))), RGB)
    mask = GREY > 100
    fields = mask_fields(mask)
    assert (fields['encoding'], fields['step']) == ('mono8', W)
    back = image_to_rgb(SimpleNamespace(**fields))[:, :, 0]
    assert np.array_equal(back, mask * 255)
    with pytest.raises(ImageError, match=r'float32.*is no rgb8'):
        image_fields(RGB.astype(np.float32), 'rgb8')


def info(k, **changes):
    region = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    fields = {
        'width': 640, 'height': 480, 'k': k, 'd': [], 'distortion_model': '', 'roi': region,
        'p': [400.0, 0, 300, 0, 0, 410, 200, 0, 0, 0, 1, 0], 'binning_x': 0, 'binning_y': 0,
    }  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


K = [500.0, 0, 320, 0, 510, 240, 0, 0, 1]


def test_the_camera_fits_the_published_picture():
    whole = camera_from_info(info(K))
    assert whole.k.tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
    assert whole.size == (640, 480)
    region = SimpleNamespace(x_offset=20, y_offset=40, width=600, height=400)
    cropped = camera_from_info(info(K, roi=region, binning_x=2, binning_y=2))
    assert cropped.k.tolist() == [[250, 0, 150], [0, 255, 100], [0, 0, 1]]
    assert cropped.size == (300, 200)


def test_a_rectified_picture_has_the_projection_s_camera_and_no_lens():
    lens = {'d': [0.1, 0, 0, 0, 0], 'distortion_model': 'plumb_bob'}
    assert camera_from_info(info(K, **lens)).distortion.tolist() == [0.1, 0, 0, 0, 0]
    assert camera_from_info(info(K, **lens)).model == 'plumb_bob'
    straight = camera_from_info(info(K, **lens), rectified=True)
    assert straight.k.tolist() == [[400, 0, 300], [0, 410, 200], [0, 0, 1]]
    assert len(straight.distortion) == 0


def test_a_camera_info_of_ros_1_is_read():
    old = info(K)
    fields = {name.upper() if name in 'kpd' else name: v for name, v in vars(old).items()}
    assert (
        camera_from_info(SimpleNamespace(**fields)).k.tolist() == camera_from_info(old).k.tolist()
    )


def test_an_uncalibrated_camera_is_named():
    with pytest.raises(ImageError, match=r'not calibrated: fx 0'):
        camera_from_info(info([0.0] * 9))


def of_cv_bridge(encoding, stored, wanted):
    """Our message and the picture that cv_bridge makes of it."""
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge comes with a ROS install only')
    from sensor_msgs.msg import Image

    source = Image(**vars(message(np.ascontiguousarray(stored), encoding)))
    return source, cv_bridge.CvBridge().imgmsg_to_cv2(source, wanted)


COLOURS = [name for name in INTERLEAVED if name[0].isalpha()]
BAYER = [f'bayer_{pattern}8' for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')]


@pytest.mark.parametrize('encoding', [*COLOURS, 'yuv422', *BAYER])
def test_colours_equal_those_of_cv_bridge(encoding):
    stored = RGB[:, :, :2] if encoding == 'yuv422' else GREY
    stored = INTERLEAVED[encoding][0] if encoding in INTERLEAVED else stored
    source, theirs = of_cv_bridge(encoding, stored, 'rgb8')
    # 16 bits: they divide by 257 and round, we keep the upper byte. YUV and Bayer: their OpenCV
    # may be of another version, and round otherwise.
    tolerance = 0 if encoding.endswith('8') and encoding not in BAYER else 1
    assert np.abs(image_to_rgb(source).astype(int) - theirs).max() <= tolerance


@pytest.mark.parametrize('encoding', ['8UC1', '8UC3', '8UC4', '16UC1', '32FC1'])
def test_numbers_equal_those_of_cv_bridge(encoding):
    """To cv_bridge these are no colours, and come out as they are stored."""
    source, theirs = of_cv_bridge(encoding, INTERLEAVED[encoding][0], 'passthrough')
    theirs = theirs.reshape(H, W, -1)
    if encoding in ('16UC1', '32FC1'):
        unit = 0.001 if encoding == '16UC1' else 1.0
        ours = depth_to_metres(source)
        np.testing.assert_allclose(ours, theirs[:, :, 0] * unit, rtol=1e-6)
    elif encoding == '8UC1':
        assert np.array_equal(image_to_rgb(source), np.repeat(theirs, 3, axis=2))
    else:  # the order that OpenCV has by convention
        assert np.array_equal(image_to_rgb(source), theirs[:, :, 2::-1])
