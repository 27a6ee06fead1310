# SPDX-License-Identifier: Apache-2.0
"""The description of the HTTP API, as GET /openapi.json shows it (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Iterable

from lisa_ros import __version__
from lisa_ros.perception.backend import AnswerStyle
from lisa_ros.results import Status
from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.problems import PROBLEM_TYPE, Problem
from lisa_ros.serving.query_format import RAW_CHANNELS
from lisa_ros.serving.query_reading import QueryLimits
from lisa_ros.serving.wire_format import (
    DONE_EVENT,
    ERROR_EVENT,
    EVENTS_TYPE,
    JSON_TYPE,
    MASK_EVENT,
    SEGMENT_PATH,
    TOKEN_EVENT,
)

_TEXT, _TRUTH = {'type': 'string'}, {'type': 'boolean'}
_NUMBER, _INTEGER = {'type': 'number'}, {'type': 'integer'}
_PIXELS = {'type': 'integer', 'minimum': 0, 'maximum': 1_000_000}
_RETRY_AFTER = {
    'Retry-After': {'description': 'seconds until a new try makes sense', 'schema': _INTEGER}
}


def openapi(limits: ServerLimits, *, has_tokens: bool) -> dict[str, object]:
    """Return the document.

    Args:
        limits: of the server.
        has_tokens: whether clients need a token.
    """
    document: dict[str, object] = {
        'openapi': '3.1.0',
        'info': {
            'title': 'lisa-ros serve',
            'version': __version__,
            'description': 'An image and a command in, masks and an answer out.',
        },
        'paths': {
            SEGMENT_PATH: {'post': _segment(limits, has_tokens=has_tokens)},
            '/v1/models': {
                'get': _get('The model', JSON_TYPE, _models_schema(), has_tokens=has_tokens)
            },
            '/healthz': {'get': _get('The process lives', JSON_TYPE, _object(status=_TEXT))},
            '/readyz': {
                'get': _get('A replica answers', JSON_TYPE, _object(status=_TEXT), not_ready=True)
            },
            '/metrics': {'get': _get('Metrics of Prometheus', 'text/plain', _TEXT)},
            '/openapi.json': {'get': _get('This document', JSON_TYPE, {'type': 'object'})},
        },
        'components': {
            'schemas': {
                'Query': _query_schema(limits.query),
                'Answer': _answer_schema(),
                'Problem': _problem_schema(),
            },
        },
    }
    if has_tokens:
        document['components']['securitySchemes'] = {'token': {'type': 'http', 'scheme': 'bearer'}}
    return document


def _segment(limits: ServerLimits, *, has_tokens: bool) -> dict[str, object]:
    body = {
        'type': 'object',
        'required': ['image', 'query'],
        'additionalProperties': False,
        'properties': {
            'image': {'type': 'string', 'format': 'binary', 'maxLength': limits.body_bytes},
            'query': {'$ref': '#/components/schemas/Query'},
        },
    }
    return {
        'operationId': 'segment',
        'summary': 'Answer a command about an image',
        'requestBody': {
            'required': True,
            'content': {
                'multipart/form-data': {
                    'schema': body,
                    'encoding': {
                        'image': {
                            'contentType': 'image/jpeg, image/png, application/octet-stream'
                        },
                        'query': {'contentType': JSON_TYPE},
                    },
                }
            },
        },
        'responses': {
            '200': {
                'description': 'The answer; as events: token, mask, then done or error',
                'content': {
                    JSON_TYPE: {'schema': {'$ref': '#/components/schemas/Answer'}},
                    EVENTS_TYPE: {'schema': _event_schema()},
                },
            },
            **_problems(
                problem for problem in Problem if problem is not Problem.UNAUTHORIZED or has_tokens
            ),
        },
        **_security(has_tokens=has_tokens),
    }


def _get(
    summary: str,
    media_type: str,
    schema: dict,
    *,
    has_tokens: bool = False,
    not_ready: bool = False,
) -> dict[str, object]:
    problems = [Problem.WRONG_HOST]
    problems += [Problem.UNAUTHORIZED] if has_tokens else []
    problems += [Problem.NOT_READY] if not_ready else []
    return {
        'summary': summary,
        'responses': {
            '200': {'description': summary, 'content': {media_type: {'schema': schema}}},
            **_problems(problems),
        },
        **_security(has_tokens=has_tokens),
    }


def _security(*, has_tokens: bool) -> dict[str, object]:
    return {'security': [{'token': []}]} if has_tokens else {}


def _problems(problems: Iterable[Problem]) -> dict[str, object]:  # an iterable of Problem
    by_status: dict[int, list[str]] = {}
    for problem in problems:
        by_status.setdefault(problem.status, []).append(problem.value.title)
    return {
        str(status): {
            'description': '; '.join(titles),
            'content': {PROBLEM_TYPE: {'schema': {'$ref': '#/components/schemas/Problem'}}},
            **({'headers': _RETRY_AFTER} if status in (429, 503) else {}),
        }
        for status, titles in sorted(by_status.items())
    }


def _object(*, required: tuple[str, ...] | None = None, **properties: dict) -> dict[str, object]:
    return {
        'type': 'object',
        'additionalProperties': False,
        'required': list(properties if required is None else required),
        'properties': properties,
    }


def _list(items: dict, **limits: int) -> dict[str, object]:
    return {'type': 'array', 'items': items, **limits}


def _or_null(schema: dict) -> dict[str, object]:
    return {**schema, 'type': [schema['type'], 'null']}


def _query_schema(limits: QueryLimits) -> dict[str, object]:
    command = {
        'type': 'string',
        'minLength': 1,
        'maxLength': limits.command_chars,
        'pattern': r'\S',
    }
    seconds = {'type': 'number', 'minimum': 0.001, 'maximum': limits.deadline}
    size = _list(_PIXELS, minItems=2, maxItems=2)
    box = _list({'type': 'integer', 'minimum': 0, 'maximum': 100}, minItems=4, maxItems=4)
    turn = _object(
        required=('command', 'answer'),
        command={'type': 'string', 'maxLength': limits.command_chars},
        answer={'type': 'string', 'maxLength': limits.answer_chars},
        boxes=_list(box, maxItems=limits.shown_masks),
        yes_no=_TRUTH,
    )
    side = {'type': 'integer', 'minimum': 1, 'maximum': 1_000_000}
    return _object(
        required=('command',),
        command=command,
        stream={'type': 'string', 'maxLength': limits.stream_chars},
        dialogue=_list(turn, maxItems=limits.turns),
        shown=_list(_object(size=size, counts=_TEXT), maxItems=limits.shown_masks),
        explain=_TRUTH,
        yes_no=_TRUTH,
        region=_or_null(_list(_PIXELS, minItems=4, maxItems=4)),
        deadline=_or_null(seconds),
        options=_object(
            required=(),
            max_new_tokens={'type': 'integer', 'minimum': 1, 'maximum': limits.new_tokens},
            answer_style={'enum': [style.value for style in AnswerStyle]},
            confidence_threshold=_or_null({'type': 'number', 'minimum': 0, 'maximum': 1}),
            refine=_or_null(_TRUTH),
            similarity_points=_or_null(_TRUTH),
            dialogue_boxes=_TRUTH,
            typed_specials=_TRUTH,
            answer_timeout=_or_null(seconds),
            verify=_TRUTH,
        ),
        masks={'enum': ['rle', 'png'], 'default': 'rle'},
        confidence=_TRUTH,
        raw={
            'anyOf': [
                {'type': 'null'},
                _object(width=side, height=side, encoding={'enum': list(RAW_CHANNELS)}),
            ]
        },
    )


def _answer_schema() -> dict[str, object]:
    features = _object(
        text_prob=_NUMBER, seg_prob=_NUMBER, mean_mask_prob=_NUMBER, predicted_iou=_NUMBER
    )
    mask = _object(
        required=('score', 'box', 'area', 'name'),
        score=_NUMBER,
        box=_list(_INTEGER, minItems=4, maxItems=4),
        area=_INTEGER,
        rle=_object(size=_list(_INTEGER, minItems=2, maxItems=2), counts=_TEXT),
        png=_TEXT,
        confidence=_TEXT,
        features=features,
        name=_TEXT,
    )
    return _object(
        status={'enum': [status.name for status in Status]},
        reason=_TEXT,
        command=_TEXT,
        answer=_TEXT,
        answer_raw=_TEXT,
        width=_INTEGER,
        height=_INTEGER,
        masks=_list(mask),
        tokens={'type': ['array', 'null'], 'items': _INTEGER},
        times={'type': 'object', 'additionalProperties': _NUMBER},
        time_to_first_mask={'type': ['number', 'null']},
        yes_probability={'type': ['number', 'null']},
        token_count={'type': ['integer', 'null']},
        model=_TEXT,
        version=_TEXT,
    )


def _event_schema() -> dict[str, object]:
    """Return the schema of each server-sent event."""
    names = [TOKEN_EVENT, MASK_EVENT, DONE_EVENT, ERROR_EVENT]
    data = {**_TEXT, 'contentMediaType': JSON_TYPE}
    return _object(event={'enum': names}, data=data)


def _models_schema() -> dict[str, object]:
    model = _object(
        name=_TEXT,
        version=_TEXT,
        precision=_TEXT,
        device=_TEXT,
        capabilities={'type': 'object'},
        input_side={'type': ['integer', 'null']},
    )
    return _object(models=_list(model), replicas=_INTEGER)


def _problem_schema() -> dict[str, object]:
    return _object(
        type={'enum': [problem.value.name for problem in Problem]},
        title=_TEXT,
        status=_INTEGER,
        detail=_TEXT,
    )
