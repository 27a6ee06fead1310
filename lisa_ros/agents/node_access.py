# SPDX-License-Identifier: Apache-2.0
"""What the tools of an agent need of a running node; ros/agent_access.py implements it.

Threads: every method may be called from any thread, and returns at once unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lisa_ros.results import Region, Status

Point = tuple[float, float, float]  # x, y, z [m]


@dataclass(frozen=True)
class Goal:
    """A query to a node."""

    query: str
    camera: str = ''  # may be empty if the node has only one
    dialogue: str = ''  # goals with the same id form a dialogue; '': no earlier turns
    yes_no: bool = False  # answer with yes or no, without masks


@dataclass(frozen=True)
class Progress:
    """How far a goal is."""

    stage: str = 'sent'  # then queued, looking, answering
    text: str = ''  # of the answer so far
    updates: int = 0  # how many have come


@dataclass(frozen=True)
class ObjectPlace:
    """Where an object is, in the frame of the answer."""

    centroid: Point  # mean of its visible surface
    nearest: Point  # surface point closest to the camera
    box_centre: Point
    box_orientation: tuple[float, float, float, float]  # quaternion x, y, z, w
    box_size: Point  # along the axes of the box [m]
    depth_confidence: float  # fraction of the mask with valid depth, 0..1


@dataclass(frozen=True)
class FoundObject:
    """One mask of an answer."""

    name: str  # what the answer calls it; may be empty
    score: float  # 0..1
    box: Region  # x, y, width, height [px]
    centre: tuple[float, float] | None  # mean x, y of the mask [px]; None: the mask is empty
    area: int  # [px]
    place: ObjectPlace | None  # None: unknown


@dataclass(frozen=True)
class NodeAnswer:
    """How a goal ended."""

    status: Status
    reason: str  # why there is no full answer; else empty
    answer: str  # in words
    frame: str  # of positions; that of the image
    stamp: int  # of the image [ns]; 0: there was none
    image_size: tuple[int, int] | None  # width, height [px]; None without a mask
    objects: tuple[FoundObject, ...] = ()
    place_reason: str = ''  # why places are unknown; else empty
    yes_probability: float | None = None  # of a yes/no question


@dataclass(frozen=True)
class SeenPlace:
    """Where an object was seen last."""

    name: str
    position: Point  # in the frame of the memory
    age: float  # [s]
    confidence: float  # 0..1
    camera: str
    sightings: int


@dataclass(frozen=True)
class Memory:
    """What a node remembers of a query."""

    answer: str  # in words
    frame: str
    places: tuple[SeenPlace, ...]  # the one seen last first


@dataclass(frozen=True)
class Camera:
    """What a camera of a node does."""

    name: str
    has_images: bool
    active_query: str
    standing_query: str
    waiting: int


@dataclass(frozen=True)
class NodeState:
    """What a node does."""

    lifecycle: str  # such as active
    model: str  # '': none is loaded
    device: str
    precision: str
    cameras: tuple[Camera, ...]


@dataclass(frozen=True)
class OverlayWatch:
    """The overlay images of a camera from a moment on."""

    camera: str  # '': the only one
    since: float  # [s, monotonic]


class PendingAnswer(Protocol):
    """A goal that was sent."""

    @property
    def future(self) -> Future[NodeAnswer]:
        """Its end; a LisaError if the node rejected it or sent something that is no answer."""

    @property
    def progress(self) -> Progress:
        """How far it is."""

    def is_lost(self) -> bool:
        """Return whether the node has left the ROS graph; one started in its place is another."""

    def cancel(self) -> None:
        """Ask the node to stop; no effect after the end."""


class NodeAccess(Protocol):
    """A running node, or one that may come."""

    @property
    def name(self) -> str:
        """Its name, such as /arm/lisa."""

    def find(self, timeout: float) -> None:
        """Wait until the node takes goals, up to `timeout` [s].

        Raises:
            LisaError: it does not.
        """

    def state(self) -> NodeState | None:
        """Return the node's last state; None: it has sent none yet."""

    def send(self, goal: Goal, on_change: Callable[[], None]) -> PendingAnswer:
        """Send a goal to a node that was found.

        Args:
            goal: what to ask.
            on_change: called on another thread when there is progress, and at the end.

        Raises:
            LisaError: the node has gone, or the goal is not valid.
        """

    def recall(self, query: str, timeout: float) -> Memory:
        """Return what the node remembers; wait for it, up to `timeout` [s].

        Raises:
            LisaError: it does not answer in time.
        """

    def watch_overlay(self, camera: str, timeout: float) -> OverlayWatch:
        """Receive the overlay images of a camera from now on; wait for their publisher, [s].

        Args:
            camera: as a goal names it.
            timeout: [s].
        """

    def overlay(self, watch: OverlayWatch, stamp: int, timeout: float) -> np.ndarray | None:
        """Return the overlay of the answer about an image, (H, W, 3) uint8 RGB; wait for it.

        Args:
            watch: that began before the goal was sent: an earlier query about the same image has
                an overlay with the same stamp.
            stamp: of the image [ns].
            timeout: [s]; then None is returned.
        """
