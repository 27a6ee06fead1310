# SPDX-License-Identifier: Apache-2.0
"""Targets: messages of a camera, as CDR bytes."""

import io
import struct

import cv2
import numpy as np
from PIL import Image
from rosbags.typesys import Stores, get_typestore
from target import Target
from test_compressed_images import encode_rvl

from lisa_ros.messages.camera_info import camera_from_info
from lisa_ros.messages.compressed_depth import decode_compressed_depth
from lisa_ros.messages.image import compressed_to_rgb, depth_to_metres, image_to_rgb
from lisa_ros.messages.point_cloud import point_cloud2_fields
from lisa_ros.messages.rgbd import objects_cloud, rgbd_from_messages

MAX_PIXELS = 100_000
HEIGHT, WIDTH = 12, 16
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
INFO = 'sensor_msgs/msg/CameraInfo'
STORE = get_typestore(Stores.ROS2_JAZZY)
RNG = np.random.default_rng(1)
COLOURS = RNG.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
DEPTH = RNG.integers(500, 900, (HEIGHT, WIDTH), np.uint16)


def header():
    time = STORE.types['builtin_interfaces/msg/Time'](7, 5)
    return STORE.types['std_msgs/msg/Header'](time, 'camera')


def image(pixels, encoding):
    pixels = np.ascontiguousarray(pixels)
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    return STORE.types[IMAGE](
        header(), len(rows), pixels.shape[1], encoding, 0, rows.shape[1], rows.ravel()
    )


def camera_info(model='plumb_bob', coefficients=5):
    region = STORE.types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    k = np.array([20, 0, 8, 0, 20, 6, 0, 0, 1.0])
    p = np.array([20, 0, 8, 0, 0, 20, 6, 0, 0, 0, 1, 0.0])
    d = np.full(coefficients, 0.01)
    fields = HEIGHT, WIDTH, model, d, k, np.eye(3).ravel(), p, 0, 0, region
    return STORE.types[INFO](header(), *fields)


def serialized(message, kind):
    return bytes(STORE.serialize_cdr(message, kind))


def deserialized(content, kind):
    """Return the message; None if the bytes are none, which rclpy or rosbags would report."""
    try:
        return STORE.deserialize_cdr(content, kind)
    except Exception:  # noqa: BLE001  # not our code
        return None


# ---- raw images


def image_seeds():
    grey = COLOURS[:, :, 0]
    deep = COLOURS.astype(np.uint16) * 256
    raw = [
        *((COLOURS, encoding) for encoding in ('rgb8', 'bgr8', '8UC3')),
        *((grey, encoding) for encoding in ('mono8', 'bayer_rggb8', '8UC1')),
        *((deep, encoding) for encoding in ('rgb16', 'bgr16')),
        (np.dstack([COLOURS, grey]), 'rgba8'),
        (COLOURS[:, :, :2], 'yuv422_yuy2'),
        *((DEPTH, encoding) for encoding in ('16UC1', 'mono16', 'bayer_rggb16')),
        (DEPTH / np.float32(1000), '32FC1'),
    ]
    planar = image(np.zeros((HEIGHT * 3 // 2, WIDTH), np.uint8), 'nv12')
    planar.height = HEIGHT
    return [serialized(each, IMAGE) for each in (*(image(*each) for each in raw), planar)]


def read_image(content, folder):
    message = deserialized(content, IMAGE)
    if message is None:
        return
    pixels = image_to_rgb(message, MAX_PIXELS)
    assert pixels.shape == (message.height, message.width, 3)
    assert pixels.dtype == np.uint8


def depth_seeds():
    depths = (DEPTH, '16UC1'), (DEPTH, 'mono16'), (DEPTH / np.float32(1000), '32FC1')
    return [serialized(image(*each), IMAGE) for each in depths]


def read_depth(content, folder):
    message = deserialized(content, IMAGE)
    if message is None:
        return
    metres = depth_to_metres(message, MAX_PIXELS)
    assert metres.dtype == np.float32
    assert not np.isinf(metres).any()
    frame = rgbd_from_messages(
        COLOURS, image(COLOURS, 'rgb8'), message, camera_info(), max_pixels=MAX_PIXELS
    )
    masks = np.zeros((1, HEIGHT, WIDTH), bool)
    masks[0, 3:9, 4:12] = True
    for cloud in (frame.cloud(), objects_cloud(frame.localize(masks))):
        point_cloud2_fields(cloud)


# ---- compressed images


def compressed(content, text):
    data = np.frombuffer(content, np.uint8)
    return serialized(STORE.types[COMPRESSED](header(), text, data), COMPRESSED)


def encoded(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def compressed_seeds():
    grey = COLOURS[:, :, 0]
    return [
        compressed(encoded(COLOURS, 'JPEG'), 'jpeg'),
        compressed(encoded(COLOURS, 'PNG'), 'rgb8; png compressed bgr8'),
        compressed(encoded(DEPTH, 'PNG'), '16UC1; png compressed'),
        compressed(encoded(grey, 'JPEG'), 'bayer_rggb8; jpeg compressed'),
        compressed(encoded(DEPTH, 'TIFF'), 'mono16; tiff compressed'),
        compressed(encoded(COLOURS, 'WEBP', lossless=True), 'webp'),
    ]


def read_compressed(content, folder):
    message = deserialized(content, COMPRESSED)
    if message is not None:
        pixels = compressed_to_rgb(message, MAX_PIXELS)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


def compressed_depth_seeds():
    png = cv2.imencode('.png', DEPTH)[1].tobytes()
    config = struct.pack('<iff', 0, 100, 1)  # inverse depth: 100 / metres - 1
    rvl = np.array([WIDTH, HEIGHT], '<i4').tobytes() + encode_rvl(DEPTH)
    return [
        compressed(config + png, '16UC1; compressedDepth png'),
        compressed(config + png, '32FC1; compressedDepth png'),
        compressed(config + rvl, '16UC1; compressedDepth rvl'),
        compressed(png, '16UC1; png compressed'),
    ]


def read_compressed_depth(content, folder):
    message = deserialized(content, COMPRESSED)
    if message is not None:
        assert decode_compressed_depth(message, MAX_PIXELS).ndim == 2


# ---- camera info


def camera_info_seeds():
    models = ('plumb_bob', 5), ('plumb_bob', 0), ('rational_polynomial', 8), ('equidistant', 4)
    return [serialized(camera_info(*each), INFO) for each in models]


def read_camera_info(content, folder):
    message = deserialized(content, INFO)
    if message is None:
        return
    depth = image(DEPTH, '16UC1')
    for rectified in (False, True):
        camera = camera_from_info(message, rectified)
        assert np.isfinite(camera.k).all()
        rgbd_from_messages(COLOURS, image(COLOURS, 'rgb8'), depth, message, rectified=rectified)


TARGETS = {
    'image': Target(read_image, image_seeds),
    'compressed_image': Target(read_compressed, compressed_seeds),
    'depth': Target(read_depth, depth_seeds),
    'compressed_depth': Target(read_compressed_depth, compressed_depth_seeds),
    'camera_info': Target(read_camera_info, camera_info_seeds),
}
