# SPDX-License-Identifier: Apache-2.0
"""One camera of the node: its images in, its session, its answers out, and what follows them.

A node has one of these, or one for each name in `cameras`. They share the model, by turns.

Threads: callbacks of inputs run on the executor's thread and return at once. `_segment` and
`_finished` run on the session's thread, `_show` and `_track` on the follower's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_policy_name_from_kind
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from lisa_ros.errors import ImageError, SettingsError
from lisa_ros.messages.image import depth_to_metres
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.perception import roi
from lisa_ros.results import Dialogue, Done, MaskReady, Segmentation, Status
from lisa_ros.ros import diagnostics, message_types, parameters
from lisa_ros.ros.action_server import RequestListener
from lisa_ros.ros.publishers import AnswerPublishers, LocalizedResult, rgb_image
from lisa_ros.ros.transforms import Transforms
from lisa_ros.session.command_parser import CommandKind, ParsedCommand
from lisa_ros.session.dialogue_history import DialogueStore
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.model_lock import ModelLock
from lisa_ros.session.request import Request
from lisa_ros.session.scheduler import RequestScheduler
from lisa_ros.settings import Settings
from lisa_ros.tracking.tracker import Tracker, TrackingState
from lisa_ros.tracking.worker import RequeryPolicy, TrackerFrame, TrackingWorker

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # reliable, too
_TOPICS = RequestListener(
    lambda result, message: None, public=True
)  # who is told where nobody else asked


@dataclass(frozen=True)
class NodeContext:
    """What the cameras of a node have in common."""

    node: LifecycleNode
    settings: Callable[[], Settings]  # the present ones
    stream: Callable[..., Any]  # of the model, as Segmenter.stream; on one thread at a time
    explained: Callable[[str], str]  # a question that asks for the reason, too
    tracker: Callable[[], Tracker | None]  # a new one, None where tracking is off
    transforms: Transforms
    turns: ModelLock
    complain: Callable[..., None]


class CameraPipeline:
    """One camera; the module's docstring has its threads."""

    def __init__(self, shared: NodeContext, name: str):
        """Make a camera that neither hears nor says anything yet; its name may be empty."""
        self.name = name
        self._shared, self._node = shared, shared.node
        self._dialogues = DialogueStore()  # they outlive a deactivate, and end with a cleanup
        self.session: RequestScheduler | None = None  # there while active
        self._tracker: Tracker | None = None
        self._outputs = self._tracked = self._explanation = self._labels = None  # configured
        self._question: tuple[str, Dialogue, RequestListener] | None = (
            None  # the last one, to ask it again
        )
        self._follower: TrackingWorker | None = None
        self._inputs: list[tuple[Subscription, diagnostics.TopicWatch]] = []
        self.seconds = 0.0  # how long the last answer took
        self._asked = 0.0  # when the last answer came, or was asked for again [s, monotonic]

    # ---- lifecycle

    def configure(self) -> None:
        """Make the publishers and the tracker.

        Raises:
            LisaError: the tracker's weights cannot be loaded.
        """
        self._tracker = self._shared.tracker()
        own = f'~/{self.name}/' if self.name else '~/'
        shared = self._shared
        common = (shared.settings, shared.transforms, shared.complain)
        self._outputs = AnswerPublishers(self._node, own, *common)
        self._tracked = AnswerPublishers(self._node, f'{own}tracked/', *common)
        create = self._node.create_lifecycle_publisher
        self._explanation = create(String, f'{own}explanation', 10)
        if message_types.vision is not None:
            self._labels = create(message_types.vision.LabelInfo, f'{own}label_info', _LATCHED)

    def activate(self) -> None:
        """Start the session and hear the inputs.

        Raises:
            SettingsError: an input cannot be subscribed to.
        """
        shared, settings = self._shared, self._shared.settings()
        if settings.target_frame or settings.gravity_frame:
            shared.transforms.listen()
        if self._labels is not None:  # latched: before the first mask, for whoever comes
            header = Header(stamp=self._node.get_clock().now().to_msg())
            self._labels.publish(message_types.make.label_info(header))
        self.session = session = RequestScheduler(
            self._segment,
            self._finished,
            report=self._node.get_logger().error,
            frames_kept=settings.frames_kept,
            image_timeout=settings.image_timeout,
            dialogues=self._dialogues,
            now=lambda: self._node.get_clock().now().nanoseconds,
            turns=shared.turns,
        )
        self.apply_settings(settings)
        if self._tracker is not None:
            self._tracker.reset()
            self._follower = TrackingWorker(
                self._tracker,
                newest=session.newest_frame,
                show=self._show,
                tell=self._track,
                wanted=self._tracked.has_subscribers,
                checked=self._ask_again,
                report=lambda line: shared.complain(line, 'tracking'),
            )
            self._follower.start()
        session.start()
        prefix = f'{self.name}/' if self.name else ''
        if settings.image_transport == 'compressed':
            # As image_transport names it: /compressed goes behind the name after remapping.
            topic = self._node.resolve_topic_name(f'{prefix}image') + '/compressed'
            self._hear(CompressedImage, topic, session.add_image, needed=True)
        else:
            self._hear(Image, f'{prefix}image', session.add_image, needed=True)
        self._hear(Image, f'{prefix}depth', session.add_depth)
        self._hear(CameraInfo, f'{prefix}camera_info', session.add_camera_info)

    def close(self, patience: float) -> bool:
        """End session and follower; False if model or tracker are still busy after so long [s]."""
        if self.session is not None and not self.session.close(patience):
            return False
        return self._follower is None or self._follower.close(patience)

    def unsubscribe(self) -> None:
        """Hear the inputs no more; the session is closed."""
        self.session = self._follower = None
        for subscription, _ in self._inputs:
            self._node.destroy_subscription(subscription)
        self._inputs = []

    def release(self) -> None:
        """Free publishers and tracker, and forget what was said, in whatever state they are."""
        self._dialogues.clear()
        for outputs in (self._outputs, self._tracked):
            if outputs is not None:
                outputs.destroy()
        for publisher in (self._explanation, self._labels):
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)
        self._outputs = self._tracked = self._explanation = self._labels = self._tracker = None

    def apply_settings(self, settings: Settings) -> None:
        """Take over what may change while the node runs."""
        if self.session:
            self.session.depth_tolerance = settings.depth_tolerance
            self.session.image_timeout = settings.image_timeout
            self.session.dialogue_turns = settings.dialogue_turns
            self.session.goals_kept = settings.goals_kept
            self.session.watch_rate = settings.watch_rate

    # ---- inputs

    @property
    def topics(self) -> list[diagnostics.TopicWatch]:
        """The inputs, the image first."""
        return [watch for _, watch in self._inputs]

    def _hear(
        self, kind: type, topic: str, offer: Callable[[int, Any], None], needed: bool = False
    ) -> None:
        """Subscribe to an input; the callback keeps the message as it is and returns."""
        watch = diagnostics.TopicWatch(self._node.resolve_topic_name(topic), needed)

        def keep(message: Any) -> None:
            watch.heard()
            offer(message_types.stamp_ns(message.header), message)
            follower = self._follower
            if follower is not None:
                follower.notify()

        def incompatible(event: Any) -> None:
            watch.incompatible = qos_policy_name_from_kind(event.last_policy_kind)
            self._node.get_logger().warning(
                f'a publisher of {watch.topic} offers a QoS that does not fit '
                f'({watch.incompatible}): set qos_overrides.{watch.topic}.subscription.*'
            )

        try:
            subscription = self._node.create_subscription(
                kind,
                topic,
                keep,
                parameters.sensor_qos(),
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=incompatible),
                qos_overriding_options=parameters.qos_overrides(),
            )
        except Exception as error:  # of many kinds: rclpy has one for each way to be wrong
            raise SettingsError(
                f'no subscription to {watch.topic}: {error}; qos_overrides are read at start: '
                'start the node anew with others'
            ) from error
        self._inputs.append((subscription, watch))

    def handle_command(self, order: ParsedCommand, said: str) -> None:
        """Do what was said on `~/command`."""
        session, log = self.session, self._node.get_logger()
        own = f'{self.name}: ' if self.name else ''
        if session is None:
            return
        if order.kind is CommandKind.STOP:
            following = self._follower is not None and self._follower.stop()
            stopped = session.stop() or following
            log.info(f'{own}stopped' if stopped else f'{own}{said!r}: there is nothing to stop')
        elif order.kind is CommandKind.WATCH and order.text:
            session.set_standing_query(order.text)
            log.info(f'{own}watching {order.text!r} until "stop"')
        else:
            session.submit_command(order.text)

    # ---- requests, on the session's thread

    def _segment(
        self, frame: SyncedMessages, request: Request, dialogue: Dialogue
    ) -> Segmentation:
        asker = request.tag or _TOPICS
        asker.began(frame)
        if self._follower is not None and asker.public:
            self._follower.on_query(frame)
            again = dataclasses.replace(_TOPICS, region=asker.region, explain=asker.explain)
            self._question = request.text, dialogue, again
        began = time.monotonic()
        whole = seen = rgb_image(frame)
        if asker.region:
            seen = roi.crop(whole, asker.region)
            dialogue = roi.crop_dialogue(dialogue, asker.region)
        converted = time.monotonic() - began
        text = self._shared.explained(request.text) if asker.explain else request.text
        for event in self._shared.stream(seen, text, dialogue=dialogue, cancel=request.cancelled):
            if isinstance(event, Done):
                result = event.result
            elif asker.region and isinstance(event, MaskReady):
                asker.heard(roi.paste_mask(event, asker.region, whole.shape[:2]))
            else:
                asker.heard(event)
        if asker.region:
            result = roi.paste_result(result, asker.region, whole.shape[:2])
        timings = {'convert': converted, **result.timings}
        return dataclasses.replace(result, query=request.text, timings=timings)

    def _finished(
        self, request: Request, frame: SyncedMessages | None, result: Segmentation
    ) -> None:
        """Tell the end of a request to whoever waits for it, and to the topics."""
        asker = request.tag or _TOPICS
        if request.standing and result.status is Status.CANCELLED:
            return  # it made room, and will be asked again
        self.seconds = time.monotonic() - request.since
        try:
            placed = self._outputs.localize(frame, result, always=True)
            message = self._outputs.message(frame, result, placed)
        except Exception as error:  # a bug: who asked is told, or would wait for ever
            result = dataclasses.replace(result, status=Status.FAILED, reason=f'internal: {error}')
            failed = SegmentationMessage(
                query=result.query, status=int(result.status), reason=result.reason
            )
            asker.answered(result, failed)
            if asker.public:
                self._outputs.publish_status(failed)
            raise
        asker.answered(result, message)
        if not asker.public or not self._node.context.ok():
            return  # after Ctrl-C during an answer there is nobody to tell any more
        if self._follower is not None and result.status in (Status.FOUND, Status.NOT_FOUND):
            self._follower.on_answer(frame, result)
            self._asked = time.monotonic()
        self._log(result)
        self._publish(frame, result, placed, message)

    def _publish(
        self,
        frame: SyncedMessages | None,
        result: Segmentation,
        placed: LocalizedResult,
        message: SegmentationMessage,
    ) -> None:
        """Publish an answer."""
        unanswered = result.status not in (Status.FOUND, Status.NOT_FOUND)
        if unanswered and not len(result.masks):  # no mask is not a mask of nothing
            self._outputs.publish_status(message)
            return
        self._outputs.publish(frame, result, placed, lambda: message)
        # where a mask was left out, the words name what is not
        left_out = result.status is Status.NOT_FOUND and result.reason
        if result.answer:
            self._outputs.publish_safely(self._explanation, String(data=left_out or result.answer))

    def _log(self, result: Segmentation) -> None:
        name = f'{self.name}: ' if self.name else ''
        if result.status is Status.FAILED:
            line = f'{name}{result.query!r} failed: {result.reason}'
            self._shared.complain(line, name + result.reason)
            return
        because = f', {result.reason}' if result.answer and result.reason else ''
        self._node.get_logger().info(
            f'{name}{result.query!r}: {result.status.name}, {result.answer or result.reason!r}'
            f'{because} ({self.seconds:.2f} s)'
        )

    # ---- what follows the answers, on the follower's thread

    def _show(self, frame: SyncedMessages) -> TrackerFrame:
        image = rgb_image(frame)
        return TrackerFrame(frame.stamp, image, self._depth_for_tracker(frame, image.shape[:2]))

    @staticmethod
    def _depth_for_tracker(frame: SyncedMessages, size: tuple[int, int]) -> np.ndarray | None:
        """Return the frame's depth [m], None where it is not the image's own, pixel by pixel."""
        if frame.depth is None or frame.depth.header.frame_id != frame.image.header.frame_id:
            return None
        try:
            depth = depth_to_metres(frame.depth)
        except ImageError:  # it helps, but is not needed
            return None
        return depth if depth.shape == size else None

    def _track(
        self, frame: SyncedMessages, shown: TrackerFrame, result: Segmentation, now: TrackingState
    ) -> None:
        """Tell where the things are on a newer frame."""
        placed = LocalizedResult(None, [None] * len(result.masks))
        if self._tracked.needs_depth():
            placed = self._tracked.localize(frame, result, shown.image)
        lost = [number for number, seen in enumerate(now.tracked, 1) if not seen]
        if lost:
            reason = f'instance {", ".join(map(str, lost))} is lost'
            placed = dataclasses.replace(placed, reason=reason)

        def message() -> SegmentationMessage:
            return self._tracked.message(frame, result, placed, now)

        since = f'{now.age:.1f} s after the answer, drift {now.drift.max(initial=0):.2f}'
        self._tracked.publish(frame, result, placed, message, shown.image, since)

    def _ask_again(self, now: TrackingState | None) -> None:
        """Ask the last question again, with the turns it followed, where that is due."""
        settings, session = self._shared.settings(), self.session
        rule = RequeryPolicy(settings.requery, settings.requery_period, settings.requery_drift)
        if session is None or self._question is None or not rule.due(now, self._asked):
            return
        self._asked = time.monotonic()
        text, turns, asker = self._question
        session.requery(text, turns, asker)
