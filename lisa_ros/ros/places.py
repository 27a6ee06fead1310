# SPDX-License-Identifier: Apache-2.0
"""The memory of places as topic and service: ~/places, ~/recall and the file that keeps them.

It is on if `map_frame` is set. The objects of each public answer are noted with their places in
that frame, if depth and TF are known.

Threads: `note` runs on the delivery threads of the cameras, which may wait for a transform. The
file is written now and then on a thread of its own, and once more at the end, which `save` waits
for. All else runs on the executor's thread and returns at once.
"""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from geometry_msgs.msg import Point, PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from lisa_ros.error_text import shortened
from lisa_ros.errors import DataError, TransformError
from lisa_ros.geometry.object_3d import Object3D
from lisa_ros.messages.stamp import stamp_ns
from lisa_ros.msg import Place as PlaceMessage
from lisa_ros.msg import PlaceList
from lisa_ros.perception.answer_phrases import object_names
from lisa_ros.perception.masks import bounding_box, shows_one_of, touches_edge
from lisa_ros.results import Segmentation
from lisa_ros.ros.image_decoder import rgb_image
from lisa_ros.ros.parameter_declaration import CurrentSettings
from lisa_ros.ros.qos import latched_qos
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.ros.transforms import Transforms, stamped_header
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.place_file import read_places, write_places
from lisa_ros.session.place_memory import (
    Place,
    PlaceMemory,
    PlaceMemoryOptions,
    asked_name,
    is_pronoun,
    is_same_name,
    is_valid_place,
)
from lisa_ros.settings import Settings
from lisa_ros.srv import Recall

_THUMBNAIL_SIDE = 96  # longer side [px]
_MARGIN = 0.15  # of a thumbnail around the mask's box, as a share of its longer side
_SAVE_PERIOD = 5.0  # between two writings of the file [s]
_PUBLISH_PERIOD = 1.0  # between two messages on ~/places [s]
_OFF = 'the memory of places is off: set map_frame, such as map'
_NOT_CONFIGURED = 'the node is not configured: ros2 lifecycle set it to configure, then activate'


class Places:
    """Notes where objects were seen, publishes, answers and saves it."""

    def __init__(
        self,
        node: LifecycleNode,
        settings: CurrentSettings,
        transforms: Transforms,
        log: ThrottledLog,
    ):
        """Make the topic and the service; `configure` begins to remember."""
        self._node, self._settings = node, settings
        self._transforms, self._log = transforms, log
        self._memory: PlaceMemory | None = None  # None: off
        self._frame, self._file = '', None
        self._published = self._saved = 0  # changes of the memory
        self._published_at = self._saved_at = 0.0  # [s, monotonic]
        self._saving = threading.Lock()
        self._writer = threading.Thread()  # of the file, while it is alive
        self._publisher = node.create_publisher(PlaceList, '~/places', latched_qos())
        node.create_service(Recall, '~/recall', self._on_recall)

    # ---- life

    def configure(self) -> None:
        """Begin to remember, with the places in the file, if `map_frame` is set.

        A file that cannot be read is logged and left as it is.
        """
        settings = self._settings.value
        self._frame, self._memory, self._file = settings.map_frame, None, None
        if not self._frame:
            return
        places: list[Place] = []
        if settings.places_file:
            try:
                file = Path(settings.places_file).expanduser()
                places, self._file = read_places(file, self._frame), file
            except (DataError, OSError, RuntimeError) as error:  # RuntimeError: no such user
                self._node.get_logger().error(f'{error}; places are not saved')
            if places:  # the file knows the frame's name, not the map
                self._node.get_logger().info(
                    f'{file}: {len(places)} places in {self._frame}; if the map is a new one, '
                    'stop the node and delete the file'
                )
        self._memory = PlaceMemory(_options(settings), places)
        self._published, self._saved = -1, 0

    def release(self) -> None:
        """Save and forget the places; ~/places becomes empty."""
        self.save()
        if self._memory is not None:
            self._publish([])
        self._memory = None

    def apply_settings(self, settings: Settings) -> None:
        """Apply parameters that may change while the node is active."""
        if self._memory is not None:
            self._memory.set_options(_options(settings))

    def report_changes(self) -> None:
        """Publish the places if they have changed, and save them now and then."""
        memory = self._memory
        if memory is None:
            return
        if time.monotonic() - self._published_at > _PUBLISH_PERIOD:
            now = self._node.get_clock().now().nanoseconds
            memory.places(now)  # drops those that are too old, which is a change
            changes = memory.changes  # before the list is read: what comes meanwhile comes again
            if changes != self._published:
                self._publish(memory.places(now))
                self._published = changes
        is_due = time.monotonic() - self._saved_at > _SAVE_PERIOD
        is_new = self._file is not None and memory.changes != self._saved
        if is_due and is_new and not self._writer.is_alive():
            self._writer = threading.Thread(target=self.save, name='places-file', daemon=True)
            self._writer.start()

    def _publish(self, places: Sequence[Place]) -> None:
        stamp = self._node.get_clock().now().to_msg()
        header = Header(stamp=stamp, frame_id=self._frame)
        messages = [_message(place, self._frame, with_thumbnail=False) for place in places]
        self._published_at = time.monotonic()
        self._publisher.publish(PlaceList(header=header, places=messages))

    def save(self) -> None:
        """Write the file if the places have changed; an error is logged. Any thread."""
        with self._saving:
            memory, file = self._memory, self._file
            if memory is None or file is None or memory.changes == self._saved:
                return
            changes, self._saved_at = memory.changes, time.monotonic()
            try:
                memory.places(self._node.get_clock().now().nanoseconds)  # drops old ones
                write_places(file, self._frame, memory.stored())
            except DataError as error:
                self._log.error(str(error), 'places_file')
            else:
                self._saved = changes

    # ---- notes and questions

    def note(
        self,
        frame: SyncedMessages,
        result: Segmentation,
        objects: Sequence[Object3D | None],
        camera: str,
    ) -> None:
        """Note the objects of an answer whose 3D position is known.

        A model may show an object twice in one answer: masks of one name that overlap are noted
        once, else the memory would expect two objects from then on.

        Args:
            frame: that the answer is about.
            result: its masks have the size of the image.
            objects: one for each mask; None: its position is unknown.
            camera: name of the camera; may be empty.
        """
        memory = self._memory
        if memory is None or not any(objects):
            return
        header, image = stamped_header(frame), None
        noted: list[tuple[str, np.ndarray]] = []  # names and masks
        seen = []
        for i, (name, located) in enumerate(zip(object_names(result), objects, strict=False)):
            earlier = (mask for other, mask in noted if is_same_name(name, other))
            if located is None or shows_one_of(result.masks[i], earlier):
                continue
            noted.append((name, result.masks[i]))
            pose = PoseStamped(header=header)
            x, y, z = map(float, located.centroid)
            pose.pose.position = Point(x=x, y=y, z=z)
            try:
                position = self._transforms.transform_pose(pose, self._frame).pose.position
            except TransformError as error:
                self._log.error(f'no place to remember: {error}', 'no place to remember')
                return
            if image is None:
                image = rgb_image(frame, self._settings.value.max_image_pixels)
            place = Place(
                name,
                (position.x, position.y, position.z),
                stamp_ns(header),
                float(result.scores[i]),
                camera,
                _thumbnail(image, result.masks[i]),
                is_cut=touches_edge(result.masks[i]),
            )
            if is_valid_place(place):  # else the stamp or the depth is wrong
                seen.append(place)
        memory.add(seen)

    @property
    def is_on(self) -> bool:
        """Whether places are remembered."""
        return self._memory is not None

    def answer(self, question: str) -> str:
        """Return where an object was seen last, for people."""
        memory = self._memory
        if memory is None:
            return self._why_off()
        now = self._node.get_clock().now().nanoseconds
        return self._answer(question, memory.recall(question, now), now)

    def _on_recall(self, request: Recall.Request, response: Recall.Response) -> Recall.Response:
        memory, now = self._memory, self._node.get_clock().now()
        if memory is None:
            response.answer = self._why_off()
            return response
        places = memory.recall(request.query, now.nanoseconds)
        response.header = Header(stamp=now.to_msg(), frame_id=self._frame)
        response.places = [_message(place, self._frame, with_thumbnail=True) for place in places]
        response.ages = [max(0, now.nanoseconds - place.stamp) / 1e9 for place in places]
        response.answer = self._answer(request.query, places, now.nanoseconds)
        return response

    def _why_off(self) -> str:
        return _NOT_CONFIGURED if self._settings.value.map_frame else _OFF

    def _answer(self, question: str, places: Sequence[Place], now: int) -> str:
        name = shortened(asked_name(question))
        if is_pronoun(name):
            return 'Name the object: "where did you last see the mug?"'
        if not places:
            return f'I have not seen the {name}.' if name else 'I remember no object.'
        texts = []
        for place in places:
            x, y, z = place.position
            age = _duration_text((now - place.stamp) / 1e9)
            texts.append(
                f'I last saw the {place.name} {age} ago at ({x:.2f}, {y:.2f}, {z:.2f}) m in '
                f'{self._frame}.'
            )
        return ' '.join(texts)


def _options(settings: Settings) -> PlaceMemoryOptions:
    return PlaceMemoryOptions(
        settings.place_merge_distance, settings.places_kept, settings.place_max_age
    )


def _message(place: Place, frame: str, *, with_thumbnail: bool) -> PlaceMessage:
    x, y, z = place.position
    message = PlaceMessage(
        name=place.name,
        position=Point(x=x, y=y, z=z),
        stamp=Time(nanoseconds=place.stamp).to_msg(),
        confidence=place.confidence,
        camera=place.camera,
        sightings=place.sightings,
    )
    if with_thumbnail and place.thumbnail:
        header = Header(stamp=message.stamp, frame_id=frame)
        message.thumbnail = CompressedImage(header=header, format='jpeg')
        message.thumbnail.data = array.array('B', place.thumbnail)
    return message


def _thumbnail(image: np.ndarray, mask: np.ndarray) -> bytes:
    """Return a JPEG of the object in an (H, W, 3) uint8 RGB image; mask: (H, W) bool."""
    x, y, width, height = bounding_box(mask)
    if not width:
        return b''
    margin = round(_MARGIN * max(width, height))
    part = image[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin]
    scale = min(1.0, _THUMBNAIL_SIDE / max(part.shape[:2]))
    size = tuple(max(1, round(scale * side)) for side in part.shape[1::-1])
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode('.jpg', small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _duration_text(seconds: float) -> str:
    """Return "40 s", "5 min", "3 h" or "2 days"."""
    if seconds < 120:
        return f'{max(0.0, seconds):.0f} s'
    if seconds < 2 * 3600:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.0f} h' if seconds < 48 * 3600 else f'{seconds / 86400:.0f} days'
