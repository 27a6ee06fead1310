# SPDX-License-Identifier: Apache-2.0
"""What the tools return: types with a JSON schema, which tells a language model each field."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from lisa_ros.agents.node_access import (
    Camera,
    FoundObject,
    Memory,
    NodeAnswer,
    NodeState,
    Point,
    SeenPlace,
)
from lisa_ros.error_text import one_line
from lisa_ros.results import Status

MAX_ITEMS = 20  # of a list
MAX_TEXT = 2000  # characters of a text


class Position(BaseModel):
    """A point in metres."""

    x: float
    y: float
    z: float


class PixelBox(BaseModel):
    """A box in pixels of the image."""

    x: int = Field(description='left edge')
    y: int = Field(description='top edge')
    width: int
    height: int


class PixelPoint(BaseModel):
    """A point in pixels of the image."""

    x: float
    y: float


class SegmentedObject(BaseModel):
    """One object in the image."""

    name: str = Field(description='what the answer calls it; may be empty')
    score: float = Field(description='confidence, 0 to 1')
    box: PixelBox
    centre: PixelPoint | None = Field(description='mean of the mask')
    area: int = Field(description='pixels of the mask')
    position: Position | None = Field(description='in metres in `frame`; null without depth')


class SegmentResult(BaseModel):
    """Objects that a command means."""

    status: Literal['FOUND', 'NOT_FOUND'] = Field(
        description='NOT_FOUND: the model looked, and sees no such object'
    )
    answer: str = Field(description='what the model says')
    reason: str = Field(description='why an object was left out; else empty')
    objects: list[SegmentedObject]
    objects_left_out: int = Field(description=f'beyond the first {MAX_ITEMS}')
    image_width: int | None = Field(description='pixels; null without an object')
    image_height: int | None
    frame: str = Field(description='ROS frame of positions')
    stamp: float = Field(description='time of the image, seconds since 1970')
    note: str = Field(default='', description='what is missing of the result; else empty')


class OrientedBox(BaseModel):
    """The box of an object in 3D."""

    centre: Position
    size: Position = Field(description='lengths along the axes of the box')
    orientation: list[float] = Field(description='quaternion x, y, z, w')


class LocatedObject(BaseModel):
    """An object with its place."""

    name: str = Field(description='what the answer calls it; may be empty')
    score: float = Field(description='confidence, 0 to 1')
    centroid: Position = Field(description='mean of the visible surface')
    nearest: Position = Field(description='surface point closest to the camera')
    box: OrientedBox
    depth_confidence: float = Field(description='part of the object with valid depth, 0 to 1')


class WhereIsResult(BaseModel):
    """Where objects are now."""

    status: Literal['FOUND', 'NOT_FOUND'] = Field(
        description='NOT_FOUND: the model looked, and sees no such object'
    )
    answer: str = Field(description='what the model says')
    objects: list[LocatedObject] = Field(description='in metres')
    objects_left_out: int = Field(description=f'without a place, or beyond the first {MAX_ITEMS}')
    frame: str = Field(
        description='ROS frame of positions; a camera frame has x right, y down, z forward'
    )
    stamp: float = Field(description='time of the image, seconds since 1970')
    note: str = Field(default='', description='why places are missing; else empty')


class AskResult(BaseModel):
    """The answer to a question."""

    answer: str = Field(description='in words')
    yes_probability: float | None = Field(
        description='of yes against no, 0 to 1; null without yes_no'
    )
    objects: int = Field(description='how many objects the answer shows; segment tells where')
    stamp: float = Field(description='time of the image, seconds since 1970')


class RecalledPlace(BaseModel):
    """Where an object was seen last."""

    name: str
    position: Position
    age: float = Field(description='seconds since it was seen')
    confidence: float = Field(description='of the mask, 0 to 1')
    camera: str
    sightings: int = Field(description='answers that showed it at this place')


class RecallResult(BaseModel):
    """What the robot remembers."""

    answer: str = Field(description='in words')
    frame: str = Field(description='ROS frame of positions, in metres')
    places: list[RecalledPlace] = Field(description='the one seen last first')
    places_left_out: int = Field(description=f'beyond the first {MAX_ITEMS}')


class CameraInfo(BaseModel):
    """A camera of the node."""

    name: str = Field(description='the argument `camera` of other tools; empty: the only one')
    has_images: bool = Field(description='whether images arrive')
    active_query: str = Field(description='what the model answers now; else empty')
    standing_query: str = Field(description='what is watched for; else empty')
    waiting: int = Field(description='queries that wait for their turn')


class CamerasResult(BaseModel):
    """The node and its cameras."""

    lifecycle: str = Field(description='queries are answered if it is active')
    model: str = Field(description='empty: none is loaded')
    device: str
    precision: str
    cameras: list[CameraInfo]


def segment_result(answer: NodeAnswer, note: str) -> SegmentResult:
    """Return the result of an answer whose status is FOUND or NOT_FOUND."""
    width, height = answer.image_size or (None, None)
    return SegmentResult(
        status=_found_or_not(answer),
        answer=_text(answer.answer),
        reason=_text(answer.reason),
        objects=[_segmented(detected) for detected in answer.objects[:MAX_ITEMS]],
        objects_left_out=max(0, len(answer.objects) - MAX_ITEMS),
        image_width=width,
        image_height=height,
        frame=_text(answer.frame),
        stamp=_seconds(answer.stamp),
        note=note,
    )


def where_is_result(answer: NodeAnswer) -> WhereIsResult:
    """Return the result of an answer whose status is FOUND or NOT_FOUND."""
    located = [_located(detected) for detected in answer.objects if detected.place is not None]
    return WhereIsResult(
        status=_found_or_not(answer),
        answer=_text(answer.answer),
        objects=located[:MAX_ITEMS],
        objects_left_out=len(answer.objects) - len(located[:MAX_ITEMS]),
        frame=_text(answer.frame),
        stamp=_seconds(answer.stamp),
        note=_text(answer.place_reason),
    )


def ask_result(answer: NodeAnswer) -> AskResult:
    """Return the result of an answer whose status is FOUND or NOT_FOUND."""
    return AskResult(
        answer=_text(answer.answer),
        yes_probability=answer.yes_probability,
        objects=len(answer.objects),
        stamp=_seconds(answer.stamp),
    )


def recall_result(memory: Memory) -> RecallResult:
    """Return the result of what a node remembers."""
    return RecallResult(
        answer=_text(memory.answer),
        frame=_text(memory.frame),
        places=[_recalled(place) for place in memory.places[:MAX_ITEMS]],
        places_left_out=max(0, len(memory.places) - MAX_ITEMS),
    )


def cameras_result(state: NodeState) -> CamerasResult:
    """Return the result of a node's state."""
    return CamerasResult(
        lifecycle=_text(state.lifecycle),
        model=_text(state.model),
        device=_text(state.device),
        precision=_text(state.precision),
        cameras=[_camera(camera) for camera in state.cameras[:MAX_ITEMS]],
    )


def _text(text: str) -> str:
    """Return a text of limited length."""
    return one_line(text, MAX_TEXT)


def _seconds(stamp: int) -> float:
    return stamp / 1e9


def _found_or_not(answer: NodeAnswer) -> Literal['FOUND', 'NOT_FOUND']:
    return 'FOUND' if answer.status is Status.FOUND else 'NOT_FOUND'


def _position(point: Point) -> Position:
    x, y, z = (round(value, 4) for value in point)
    return Position(x=x, y=y, z=z)


def _segmented(detected: FoundObject) -> SegmentedObject:
    x, y, width, height = detected.box
    centre = detected.centre
    return SegmentedObject(
        name=_text(detected.name),
        score=round(detected.score, 4),
        box=PixelBox(x=x, y=y, width=width, height=height),
        centre=centre and PixelPoint(x=round(centre[0], 1), y=round(centre[1], 1)),
        area=detected.area,
        position=detected.place and _position(detected.place.centroid),
    )


def _located(detected: FoundObject) -> LocatedObject:
    place = detected.place
    return LocatedObject(
        name=_text(detected.name),
        score=round(detected.score, 4),
        centroid=_position(place.centroid),
        nearest=_position(place.nearest),
        box=OrientedBox(
            centre=_position(place.box_centre),
            size=_position(place.box_size),
            orientation=[round(value, 5) for value in place.box_orientation],
        ),
        depth_confidence=round(place.depth_confidence, 3),
    )


def _recalled(place: SeenPlace) -> RecalledPlace:
    return RecalledPlace(
        name=_text(place.name),
        position=_position(place.position),
        age=round(place.age, 1),
        confidence=round(place.confidence, 3),
        camera=_text(place.camera),
        sightings=place.sightings,
    )


def _camera(camera: Camera) -> CameraInfo:
    return CameraInfo(
        name=_text(camera.name),
        has_images=camera.has_images,
        active_query=_text(camera.active_query),
        standing_query=_text(camera.standing_query),
        waiting=camera.waiting,
    )
