# SPDX-License-Identifier: Apache-2.0
"""Targets: what clients send to a served model, and what a server sends to its clients."""

import importlib.util
import io
import json

import numpy as np
from PIL import Image
from target import Target

from lisa_ros.results import LisaDetails, ScoreFeatures, Segmentation, Status
from lisa_ros.serving.query_format import MaskFormat, RawImage, SegmentQuery, query_json
from lisa_ros.serving.query_reading import QueryLimits, parse_query
from lisa_ros.serving.wire_format import Served, answer_json, encode_request, result_of

SHAPE = (6, 9)
BOUNDARY = 'x' * 32


def query(**fields):
    return SegmentQuery('find it', stream='front', region=(0, 0, 4, 4), **fields)


def answer(masks):
    logits = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
    details = LisaDetails((1, 2), (ScoreFeatures(0.5, 0.5, 0.5, 0.5),) * 2)
    result = Segmentation(
        *('find it', 'Here.', '[SEG] [SEG]'),
        *(logits > 0, logits, np.ones(2, np.float32), Status.FOUND),
        details=details,
        names=('mug', ''),
    )
    document = answer_json(result, query(masks=masks, confidence=True), SHAPE, Served('m'))
    return json.dumps(document).encode()


def request(media_type, image, **fields):
    content_type, body = encode_request(image, media_type, query(**fields))
    return body.replace(content_type.rpartition('=')[2].encode(), BOUNDARY.encode())


def requests():
    png, jpeg = io.BytesIO(), io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (*SHAPE, 3), np.uint8)
    Image.fromarray(pixels).save(png, 'PNG')
    Image.fromarray(pixels).save(jpeg, 'JPEG')
    raw = RawImage(SHAPE[1], SHAPE[0], 'bgr8')
    return [
        request('image/png', png.getvalue()),
        request('image/jpeg', jpeg.getvalue()),
        request('application/octet-stream', pixels.tobytes(), raw=raw),
    ]


def read_request(content, folder):
    from lisa_ros.serving.limits import ServerLimits
    from lisa_ros.serving.multipart import decode_upload, read_upload

    limits = ServerLimits(image_pixels=10_000)
    upload = read_upload(f'multipart/form-data; boundary={BOUNDARY}', content, limits)
    image = decode_upload(upload, limits.image_pixels)
    upload.query.backend_query(image.shape[:2])


def read_answer(content, folder):
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return
    result_of(document)


TARGETS = {
    'serving_query': Target(
        lambda content, folder: parse_query(content, QueryLimits()),
        lambda: [query_json(query(masks=masks)).encode() for masks in MaskFormat],
        is_json=True,
    ),
    'serving_answer': Target(
        read_answer, lambda: [answer(masks) for masks in MaskFormat], is_json=True
    ),
}
if importlib.util.find_spec('python_multipart'):  # the extra `serve`
    TARGETS['serving_request'] = Target(read_request, requests)
