# SPDX-License-Identifier: Apache-2.0
"""The answers of POST /v1/segment, as JSON and as server-sent events, and the body of a request.

An answer carries what `Backend.stream` gives: a client gets the same masks, scores, texts and
token ids as from a model of its own. Of the mask logits it gets the sign, and 8 bits of
probability if the query asks for `confidence`. The query itself: `query_format`. Neither torch
nor Ray nor a web framework is imported. Any thread.

Letters: N masks, H x W the image [px].
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lisa_ros.error_text import one_line
from lisa_ros.errors import ImageError, ModelError
from lisa_ros.images.pixel_limit import check_image_size
from lisa_ros.perception.masks import (
    MAX_MASKS,
    area,
    bounding_box,
    confidence_image,
)
from lisa_ros.results import (
    Event,
    LisaDetails,
    MaskReady,
    ScoreFeatures,
    Segmentation,
    Status,
    Token,
)
from lisa_ros.serving.mask_coding import (
    decode_png_text,
    decode_rle_text,
    encode_png_text,
    encode_rle_text,
    logits_of,
)
from lisa_ros.serving.query_format import MaskFormat, SegmentQuery, query_json

JSON_TYPE, EVENTS_TYPE = 'application/json', 'text/event-stream'
RAW_TYPE = 'application/octet-stream'
IMAGE_TYPES = {'image/jpeg': 'JPEG', 'image/png': 'PNG'}  # Pillow's names
SEGMENT_PATH = '/v1/segment'
# raised while a document of another shape is read
_WRONG_CONTENT = (LookupError, TypeError, ValueError, AttributeError, OverflowError, ImageError)
_MASK_KEYS = ('rle', 'png', 'confidence')  # all that the pixels of a mask are read from
TOKEN_EVENT, MASK_EVENT, DONE_EVENT, ERROR_EVENT = 'token', 'mask', 'done', 'error'


@dataclass(frozen=True)
class Served:
    """Which model has answered, and how."""

    model: str
    version: str = ''  # digest of the weights; empty: unknown


# ---- request


def encode_request(image: bytes, media_type: str, query: SegmentQuery) -> tuple[str, bytes]:
    """Return the content type and the body of a request.

    Args:
        image: a file, or raw pixels if `query.raw` is set.
        media_type: a key of IMAGE_TYPES, or RAW_TYPE.
        query: the question.
    """
    boundary = secrets.token_hex(16)
    body = b''.join(
        (
            _part_head(boundary, 'query', JSON_TYPE),
            query_json(query).encode(),
            b'\r\n',
            _part_head(boundary, 'image', media_type),
            image,
            f'\r\n--{boundary}--\r\n'.encode(),
        )
    )
    return f'multipart/form-data; boundary={boundary}', body


def _part_head(boundary: str, name: str, media_type: str) -> bytes:
    disposition = f'form-data; name="{name}"' + ('; filename="image"' if name == 'image' else '')
    return (
        f'--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: {media_type}\r\n\r\n'
    ).encode()


# ---- answer


@dataclass(frozen=True)
class SentMask:
    """A mask that went out as an event, before the answer."""

    document: dict[str, object]  # of the event
    event: MaskReady


def answer_json(
    result: Segmentation,
    query: SegmentQuery,
    shape: tuple[int, int],
    served: Served,
    sent: Sequence[SentMask] = (),
) -> dict[str, object]:
    """Return the JSON of an answer.

    Args:
        result: of the backend.
        query: how masks are written.
        shape: (H, W) of the image.
        served: the model.
        sent: masks that went out before; one that is in the answer, too, is not encoded again.
    """
    sent_by_index = {each.event.index: each for each in sent}
    features = result.score_features if len(result.score_features) == len(result.masks) else ()
    names = result.names or ('',) * len(result.masks)
    return {
        'status': result.status.name,
        'reason': result.reason,
        'command': result.query,
        'answer': result.answer,
        'answer_raw': result.answer_raw,
        'width': shape[1],
        'height': shape[0],
        'masks': [
            (
                _sent_mask_json(mask, logits, float(score), sent_by_index.get(index))
                or _mask_json(mask, logits, float(score), query)
            )
            | ({'features': vars(features[index]).copy()} if features else {})
            | {'name': name}
            for index, (mask, logits, score, name) in enumerate(
                zip(result.masks, result.mask_logits, result.scores, names, strict=True)
            )
        ],
        'tokens': list(result.token_ids) if result.details else None,
        'times': {name: float(seconds) for name, seconds in result.timings.items()},
        'time_to_first_mask': result.time_to_first_mask,
        'yes_probability': result.yes_probability,
        'token_count': result.token_count,
        'model': served.model,
        'version': served.version,
    }


def _mask_json(
    mask: np.ndarray, logits: np.ndarray, score: float, query: SegmentQuery
) -> dict[str, object]:
    """Return the JSON of a (H, W) mask."""
    document: dict[str, object] = {
        'score': score,
        'box': list(bounding_box(mask)),
        'area': area(mask),
    }
    if query.masks is MaskFormat.RLE:
        document['rle'] = {'size': list(mask.shape), 'counts': encode_rle_text(mask)}
    else:
        document['png'] = encode_png_text(mask)
    if query.confidence:
        document['confidence'] = encode_png_text(confidence_image(logits[None]))
    return document


def _sent_mask_json(
    mask: np.ndarray, logits: np.ndarray, score: float, sent: SentMask | None
) -> dict[str, object] | None:
    """Return the JSON of a (H, W) mask from that of its event; None: that is another mask."""
    if sent is None:
        return None
    event = sent.event
    if not np.array_equal(mask, event.mask) or not np.array_equal(logits, event.mask_logits):
        return None
    keys = [key for key in ('box', 'area', *_MASK_KEYS) if key in sent.document]
    return {'score': score, **{key: sent.document[key] for key in keys}}


def event_json(event: Token | MaskReady, query: SegmentQuery) -> tuple[str, dict[str, object]]:
    """Return the name and the JSON of an event before the last one."""
    if isinstance(event, Token):
        return TOKEN_EVENT, {'text': event.text, 'token_id': event.token_id}
    height, width = event.mask.shape
    mask = _mask_json(event.mask, event.mask_logits, float(event.score), query)
    place = {'index': event.index, 'width': width, 'height': height}
    return MASK_EVENT, {**place, **mask, 'name': event.name}


def event_bytes(name: str, document: dict[str, object] | str) -> bytes:
    """Return a server-sent event; `document` may be JSON already, on one line."""
    data = document if isinstance(document, str) else json.dumps(document)
    return f'event: {name}\ndata: {data}\n\n'.encode()


# ---- reading an answer


def result_of(
    document: object,
    sent: Sequence[SentMask] = (),
    shape: tuple[int, int] | None = None,
) -> Segmentation:
    """Return the result of an answer's JSON.

    Args:
        document: of the answer.
        sent: masks that came before it; one that is in the answer, too, is not decoded again.
        shape: (H, W) of the image that was sent; None: any.

    Raises:
        ModelError: it is not an answer of this API, or about an image of another size.
    """
    try:
        return _result(document, sent, shape)
    except _WRONG_CONTENT as error:
        raise _foreign(error) from error


def served_of(document: dict[str, object]) -> Served:
    """Return which model has given an answer; `document` is one that `result_of` has read."""
    return Served(str(document.get('model') or ''), str(document.get('version') or ''))


def event_of(name: str, document: object, shape: tuple[int, int] | None = None) -> Event:
    """Return an event of an answer's stream; of `done` take `result_of`.

    Args:
        name: of the event.
        document: its JSON.
        shape: (H, W) of the image that was sent; None: any.

    Raises:
        ModelError: it is not an event of this API, or about an image of another size.
    """
    try:
        if name == TOKEN_EVENT:
            token_id = document['token_id']
            return Token(str(document['text']), None if token_id is None else int(token_id))
        if name == MASK_EVENT:
            mask, logits = _read_mask(document, _size(document, shape))
            score, name = float(document['score']), _read_name(document)
            return MaskReady(int(document['index']), mask, logits, score, name)
    except _WRONG_CONTENT as error:
        raise _foreign(error) from error
    raise _foreign(ValueError(f'an event {name!r}'))


def _foreign(error: Exception) -> ModelError:
    return ModelError(
        f'the server sent no answer of this API ({type(error).__name__}: {one_line(error)}); '
        'check that the address is that of `lisa-ros serve`, of the same version'
    )


def _result(
    document: dict, sent: Sequence[SentMask], shape: tuple[int, int] | None
) -> Segmentation:
    size = _size(document, shape)
    masks_json = document['masks']
    if len(masks_json) > MAX_MASKS:
        raise ValueError(f'{len(masks_json)} masks')
    sent_by_index: dict[int, SentMask] = {each.event.index: each for each in sent}
    pairs = [
        _known_mask(mask, sent_by_index.get(index), size) or _read_mask(mask, size)
        for index, mask in enumerate(masks_json)
    ]
    tokens = document['tokens']
    features = [ScoreFeatures(**mask['features']) for mask in masks_json if 'features' in mask]
    first_mask = document['time_to_first_mask']
    yes, count = document['yes_probability'], document['token_count']
    names = tuple(map(_read_name, masks_json))
    details = None if tokens is None else LisaDetails(tuple(map(int, tokens)), tuple(features))
    return Segmentation(
        query=str(document['command']),
        answer=str(document['answer']),
        answer_raw=str(document['answer_raw']),
        masks=_stack([mask for mask, _ in pairs], size, bool),
        mask_logits=_stack([logits for _, logits in pairs], size, np.float32),
        scores=np.array([mask['score'] for mask in masks_json], np.float32),
        status=Status[document['status']],
        reason=str(document['reason']),
        timings={str(name): float(value) for name, value in document['times'].items()},
        time_to_first_mask=None if first_mask is None else float(first_mask),
        details=details,
        yes_probability=None if yes is None else float(yes),
        token_count=None if count is None else int(count),
        names=names if any(names) else (),
    )


def _read_name(document: dict) -> str:
    """Return the name of a mask; '' of a server that sends none, as older ones."""
    name = document.get('name', '')
    if not isinstance(name, str):
        raise TypeError('a name that is no text')
    return name


def _size(document: dict, expected: tuple[int, int] | None) -> tuple[int, int]:
    """Return (H, W) of the image: run lengths of a few bytes may claim any size."""
    height, width = int(document['height']), int(document['width'])
    if expected is not None and (height, width) != tuple(expected):
        raise ValueError(
            f'it is about an image of {width} x {height} pixels; the one that was sent has '
            f'{expected[1]} x {expected[0]}'
        )
    check_image_size(width, height, 'the image of an answer')
    return height, width


def _read_mask(document: dict, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask, (H, W) bool, and its logits, (H, W) float32."""
    if 'rle' in document:
        mask = decode_rle_text(document['rle']['counts'], size)
    else:
        mask = decode_png_text(document['png'], size) > 0
    confidence = document.get('confidence')
    pixels = None if confidence is None else decode_png_text(confidence, size)
    return mask, logits_of(mask, pixels)


def _known_mask(
    document: dict, sent: SentMask | None, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the mask and the logits of an event, if they are those of a document."""
    if sent is None or sent.event.mask.shape != size:
        return None
    is_same = all(document.get(key) == sent.document.get(key) for key in _MASK_KEYS)
    return (sent.event.mask, sent.event.mask_logits) if is_same else None


def _stack(rows: list[np.ndarray], size: tuple[int, int], dtype: type) -> np.ndarray:
    """Return (N, H, W) of N arrays (H, W)."""
    return np.stack(rows) if rows else np.zeros((0, *size), dtype)
