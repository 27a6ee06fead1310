# SPDX-License-Identifier: Apache-2.0
"""`lisa_node`: hears images and commands, says masks and their reason. Wiring only.

Threads: one executor thread runs the callbacks, and each returns at once but for the transitions
that `~/change_state` asks for: configure holds it while the weights load, deactivate until the
model has stopped. Autostart has a thread of its own, so that the node answers while it loads; the
self-test is a coroutine. The model runs on the session's thread, which also publishes the answers
(rclpy's `publish` may be called from any thread). No MultiThreadedExecutor: under a 30 Hz camera
with depth it left four commands of sixty lying for 1 to 2 s, one executor thread left one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import qos_policy_name_from_kind
from rclpy.subscription import Subscription
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from lisa_ros import masks, regions
from lisa_ros.conversions import (
    camera_matrix,
    compressed_to_rgb,
    depth_to_metres,
    image_fields,
    image_to_rgb,
)
from lisa_ros.dialogues import Dialogues
from lisa_ros.errors import ImageError, LisaError, SettingsError
from lisa_ros.geometry import centroid
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.orders import Kind, order
from lisa_ros.results import Dialogue, Done, MaskReady, Segmentation, Status
from lisa_ros.ros import diagnostics, messages, parameters
from lisa_ros.ros.goals import Asker, Goals
from lisa_ros.session import Frame, Request, Session
from lisa_ros.settings import Settings

if TYPE_CHECKING:
    from lisa_ros.segmenter import Segmenter

_SUCCESS = TransitionCallbackReturn.SUCCESS
# For timers: with use_sim_time, a bag that begins anew or is paused would hold a ROS timer back.
_STEADY = Clock(clock_type=ClockType.STEADY_TIME)
_THROTTLE = 5.0  # least time between two complaints of one cause [s]
_TOPICS = Asker(lambda result, message: None, public=True)  # who is told where nobody else asked
_PATIENCE = 10.0  # how long deactivate and the end of the process wait for a busy model [s]


def guarded(transition: Callable) -> Callable:
    """Log what a transition raises: rclpy turns it into ERROR and drops the traceback."""

    @functools.wraps(transition)
    def run(self: LisaNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except LisaError as error:  # the user can mend it: one line, and the state stays
            self.get_logger().error(f'{transition.__name__[3:]} failed: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception:  # noqa: BLE001  # a bug: logged whole, the node stays up unconfigured
            self.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    return run


class LisaNode(LifecycleNode):
    """Hears `image`, `depth`, `camera_info`, `~/command`; all decisions are the Session's.

    It starts itself unless `autostart` is off. configure loads the weights
    (seconds to minutes), activate subscribes, deactivate cancels what runs, cleanup frees the
    memory. Every output carries stamp and frame of the image it is about.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Make an unconfigured node named `lisa`."""
        super().__init__('lisa', **kwargs)
        self.loading = False  # whether configure is reading the weights
        self._lisa: Segmenter | None = None  # there while configured
        self._dialogues = Dialogues()  # they outlive a deactivate, and end with a cleanup
        self._session: Session | None = None  # there while active
        self._inputs: list[tuple[Subscription, diagnostics.TopicWatch]] = []
        self._commands: Subscription | None = None
        self._seconds = 0.0  # how long the last answer took
        self._complaints: dict[str, float] = {}  # causes told lately, and when [s, monotonic]
        parameters.declare(self, Settings, lambda: self.loading or self._lisa is not None)
        self._settings = parameters.read(self, Settings)
        self.add_post_set_parameters_callback(self._on_parameters)
        self.create_service(Trigger, '~/reset_dialogue', self._on_reset_dialogue)
        self.create_service(
            Trigger,
            '~/self_test',
            self._on_self_test,
            # Of its own: a callback that awaits holds its group, and the others must go on.
            callback_group=MutuallyExclusiveCallbackGroup(),
        )
        # There from the start: one made anew on activate would leave goals of before unanswered.
        self._goals = Goals(
            self, lambda: self._session, lambda: self._settings.camera, self._complain
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_timer(
            self._settings.diagnostics_period,
            self._publish_diagnostics,
            clock=_STEADY,
        )
        threading.Thread(target=self._start, name='lisa-autostart', daemon=True).start()

    def _start(self) -> None:
        """Configure and activate, if the parameter `autostart` says so; stay up if that fails."""
        if not self._settings.autostart:
            self.get_logger().info('autostart is off: waiting for configure and activate')
        elif self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def stop(self) -> bool:
        """End what runs, in whatever state the node is; False if it cannot be ended in time."""
        session = self._session
        return not self.loading and (session is None or session.close(_PATIENCE))

    # Transitions

    @guarded
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the weights and make the publishers."""
        self.loading = True  # from here on a change of what is read now would be lost
        try:
            settings = self._settings = parameters.read(self, Settings)
            self.get_logger().info(f'loading {settings.model} ...')
            began = time.monotonic()
            self._lisa = _load(settings)
        finally:
            self.loading = False
        create = functools.partial(self.create_lifecycle_publisher, qos_profile=10)
        self._segmentation = create(SegmentationMessage, '~/segmentation')
        self._mask = create(Image, '~/mask')
        self._confidence = create(Image, '~/confidence')
        self._overlay = create(Image, '~/overlay')
        self._explanation = create(String, '~/explanation')
        self.get_logger().info(f'{settings.model} loaded in {time.monotonic() - began:.1f} s')
        return super().on_configure(state)

    @guarded
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the session and hear the inputs; undo both if that fails."""
        super().on_activate(state)  # publishers first: an answer may come at once
        try:
            self._activate()
        except Exception:
            self._unhear()
            super().on_deactivate(state)
            raise
        return _SUCCESS

    def _activate(self) -> None:
        settings = self._settings
        self._session = session = Session(
            self._segment,
            self._finished,
            report=self.get_logger().error,
            frames_kept=settings.frames_kept,
            depth_tolerance=settings.depth_tolerance,
            image_timeout=settings.image_timeout,
            dialogue_turns=settings.dialogue_turns,
            dialogues=self._dialogues,
            goals_kept=settings.goals_kept,
            watch_rate=settings.watch_rate,
            now=lambda: self.get_clock().now().nanoseconds,
        )
        session.start()
        if settings.image_transport == 'compressed':
            # As image_transport names it: /compressed goes behind the name after remapping.
            topic = self.resolve_topic_name('image') + '/compressed'
            self._hear(CompressedImage, topic, session.offer_image, needed=True)
        else:
            self._hear(Image, 'image', session.offer_image, needed=True)
        self._hear(Image, 'depth', session.offer_depth)
        self._hear(CameraInfo, 'camera_info', session.offer_camera_info)
        # A new subscription after the session: whoever finds it may command.
        self._commands = self.create_subscription(
            String, '~/command', lambda message: self._ordered(session, message.data), 10
        )
        self.get_logger().info(
            f'ready: images on {self._inputs[0][1].topic}, commands on {self._commands.topic_name}'
        )

    def _ordered(self, session: Session, said: str) -> None:
        """Do what was said on `~/command`."""
        wanted = order(said)
        if wanted.kind is Kind.STOP:
            stopped = session.stop()
            self.get_logger().info('stopped' if stopped else f'{said!r}: there is nothing to stop')
        elif wanted.kind is Kind.WATCH and wanted.text:
            session.watch(wanted.text)
            self.get_logger().info(f'watching {wanted.text!r} until "stop"')
        else:
            session.command(wanted.text)

    @guarded
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel what runs and hear nothing more; fail, and stay active, while the model is busy.

        So inactive means that nobody uses model and publishers: cleanup may free them, and
        activate may give the model to a new session.
        """
        self._unhear()
        return super().on_deactivate(state)

    @guarded
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model's memory."""
        self._release()
        return super().on_cleanup(state)

    @guarded
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End from whatever state."""
        self._unhear()
        self._release()
        return super().on_shutdown(state)

    @guarded
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured, so that a cure can be tried."""
        self._unhear()
        self._release()
        return _SUCCESS

    def _release(self) -> None:
        if self._lisa is None:
            return
        self._lisa = None
        self._dialogues.forget()
        for publisher in (
            self._segmentation,
            self._mask,
            self._confidence,
            self._overlay,
            self._explanation,
        ):
            self.destroy_lifecycle_publisher(publisher)
        gc.collect()  # the model is full of cycles
        torch = sys.modules.get('torch')
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()  # back to the driver, for the other processes

    # Inputs

    def _hear(
        self, kind: type, topic: str, offer: Callable[[int, Any], None], needed: bool = False
    ) -> None:
        """Subscribe to an input; the callback keeps the message as it is and returns."""
        watch = diagnostics.TopicWatch(self.resolve_topic_name(topic), needed)

        def keep(message: Any) -> None:
            watch.heard()
            offer(messages.stamp_ns(message.header), message)

        def incompatible(event: Any) -> None:
            watch.incompatible = qos_policy_name_from_kind(event.last_policy_kind)
            self.get_logger().warning(
                f'a publisher of {watch.topic} offers a QoS that does not fit '
                f'({watch.incompatible}): set qos_overrides.{watch.topic}.subscription.*'
            )

        try:
            subscription = self.create_subscription(
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

    def _unhear(self) -> None:
        """Close the session and the inputs, from whatever state of theirs.

        Raises:
            LisaError: the model is still busy; the session is closed, but its thread lives.
        """
        if self._session is None:
            return
        if not self._session.close(_PATIENCE):
            raise LisaError(
                f'the model is still busy {_PATIENCE:g} s after it was told to stop, and looks at '
                'that after each token: try again in a while'
            )
        self._session = None
        for subscription in (self._commands, *(subscription for subscription, _ in self._inputs)):
            if subscription is not None:
                self.destroy_subscription(subscription)
        self._commands, self._inputs = None, []

    def _on_parameters(self, changes: list[Any]) -> None:
        """Take over what may change while the node runs."""
        self._settings = settings = parameters.read(self, Settings)
        if self._session:
            self._session.depth_tolerance = settings.depth_tolerance
            self._session.image_timeout = settings.image_timeout
            self._session.dialogue_turns = settings.dialogue_turns
            self._session.goals_kept = settings.goals_kept
            self._session.watch_rate = settings.watch_rate

    # Services

    def _on_reset_dialogue(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        if self._session:
            self._session.reset_dialogue()
        response.success = self._session is not None
        response.message = 'dialogue forgotten' if response.success else 'the node is not active'
        return response

    async def _on_self_test(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Answer a command about a grey picture, through the whole path but the topics.

        It awaits the answer, so the other callbacks go on meanwhile.
        """
        session = self._session
        if session is None:
            response.message = 'the node is not active: configure and activate it'
            return response
        if session.busy:
            response.message = 'busy with a command: ask again when it is answered'
            return response
        picture = np.full((240, 320, 3), 128, np.uint8)
        source = messages.image(Header(), image_fields(picture, 'rgb8'))
        executor = self.executor
        answered = Future(executor=executor)

        def tell(result: Segmentation, _: SegmentationMessage) -> None:  # on the session's thread
            answered.set_result(result)
            executor.wake()  # not every rclpy looks at what awaits the future by itself

        session.command('segment the mug', Frame(0, source), Asker(tell))
        result = await answered  # it comes for sure: a session ends every request
        response.success = result.status in (Status.FOUND, Status.NOT_FOUND)
        inputs = ', '.join(f'{watch.topic} {watch.rate():.1f} Hz' for _, watch in self._inputs)
        spoken = result.reason or f'the model answers in {sum(result.timings.values()):.2f} s'
        response.message = f'{spoken}; inputs: {inputs}'
        return response

    # Requests, on the session's thread

    def _segment(self, frame: Frame, request: Request, dialogue: Dialogue) -> Segmentation:
        self._lisa.max_new_tokens = self._settings.max_new_tokens
        self._lisa.confidence_threshold = self._settings.confidence_threshold or None
        asker = request.tag or _TOPICS
        asker.began(frame)
        began = time.monotonic()
        whole = picture = _picture(frame)
        if asker.region:
            picture = regions.cropped(whole, asker.region)
            dialogue = regions.dialogue_within(dialogue, asker.region)
        converted = time.monotonic() - began
        text = (
            f'{request.text} {self._lisa.model.config.explain}' if asker.explain else request.text
        )
        for event in self._lisa.stream(picture, text, dialogue=dialogue, cancel=request.cancelled):
            if isinstance(event, Done):
                result = event.result
            elif asker.region and isinstance(event, MaskReady):
                asker.heard(regions.mask_in_whole(event, asker.region, whole.shape[:2]))
            else:
                asker.heard(event)
        if asker.region:
            result = regions.result_in_whole(result, asker.region, whole.shape[:2])
        timings = {'convert': converted, **result.timings}
        return dataclasses.replace(result, query=request.text, timings=timings)

    def _finished(self, request: Request, frame: Frame | None, result: Segmentation) -> None:
        """Tell the end of a request to whoever waits for it, and to the topics."""
        asker = request.tag or _TOPICS
        if request.standing and result.status is Status.CANCELLED:
            return  # it made room, and will be asked again
        self._seconds = time.monotonic() - request.since
        header = frame.image.header if frame else Header()
        try:
            message = messages.segmentation(header, result, self._centroids(frame, result))
        except Exception as error:  # a bug: who asked is told, or would wait for ever
            result = dataclasses.replace(result, status=Status.FAILED, reason=f'internal: {error}')
            asker.answered(
                result, SegmentationMessage(status=int(result.status), reason=result.reason)
            )
            raise
        asker.answered(result, message)
        if not asker.public or not self.context.ok():
            return  # after Ctrl-C during an answer there is nobody to tell any more
        try:
            self._publish(message, frame, result)
        except RuntimeError:  # rclpy's RCLError is one
            if self.context.ok():
                raise

    def _publish(
        self, message: SegmentationMessage, frame: Frame | None, result: Segmentation
    ) -> None:
        """Publish an answer; all outputs carry the header of its image."""
        header = message.header
        if result.status is Status.FAILED:
            self._complain(f'{result.query!r} failed: {result.reason}', result.reason)
        else:
            self.get_logger().info(
                f'{result.query!r}: {result.status.name}, {result.answer or result.reason!r} '
                f'({self._seconds:.2f} s)'
            )
        self._segmentation.publish(message)
        if result.mask_logits.shape[1:] == (0, 0):
            return  # it ended before there was a picture
        self._mask.publish(messages.label_image(header, result))
        self._confidence.publish(messages.confidence_image(header, result))
        unsaid = result.status is Status.NOT_FOUND and result.reason  # its words name what is not
        if result.answer:
            self._explanation.publish(String(data=unsaid or result.answer))
        if self._overlay.get_subscription_count():
            self._overlay.publish(self._draw(header, frame, result))

    def _centroids(self, frame: Frame | None, result: Segmentation) -> list[np.ndarray | None]:
        """Return each mask's centroid, None where depth or camera info do not allow one."""
        nowhere = [None] * len(result.masks)
        if frame is None or frame.depth is None or not nowhere:
            return nowhere
        if frame.camera_info is None:
            self._complain("no centroid: there is depth, but no camera_info at the image's stamp")
            return nowhere
        try:
            depth = depth_to_metres(frame.depth)
            intrinsics = camera_matrix(frame.camera_info)
            return [centroid(depth, mask, intrinsics) for mask in result.masks]
        except ImageError as error:
            self._complain(f'no centroid: {error}')
            return nowhere

    def _complain(self, line: str, cause: str = '') -> None:
        """Log a line, of one cause only every few seconds (rclpy would hide others, too).

        Without a cause the line itself is it.
        """
        now, cause = time.monotonic(), cause or line
        if now - self._complaints.get(cause, -_THROTTLE) >= _THROTTLE:
            recent = {said: at for said, at in self._complaints.items() if now - at < _THROTTLE}
            self._complaints = {**recent, cause: now}
            self.get_logger().error(line)

    def _draw(self, header: Header, frame: Frame, result: Segmentation) -> Image:
        labels = [f'{number}  {score:.2f}' for number, score in enumerate(result.scores, 1)]
        drawn = masks.overlay(
            _picture(frame),
            result.masks,
            labels,
            [result.query, result.answer or result.reason],
            opacity=self._settings.overlay_opacity,
            least_width=self._settings.overlay_width,
        )
        return messages.image(header, image_fields(drawn, 'rgb8'))

    # Diagnostics

    def _publish_diagnostics(self) -> None:
        lisa, session = self._lisa, self._session  # another thread may free them meanwhile
        device = str(lisa.device) if lisa else ''
        name = self.get_fully_qualified_name()
        statuses = [diagnostics.model_status(name, self._settings, device)]
        for _, watch in self._inputs:
            publishers = self.count_publishers(watch.topic)
            statuses.append(diagnostics.topic_status(name, watch, publishers))
        if session:
            statuses.append(diagnostics.request_status(name, session, self._seconds))
        array = DiagnosticArray(status=statuses)
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def _picture(frame: Frame) -> np.ndarray:
    """Return the frame's image as RGB, (H, W, 3) uint8."""
    compressed = isinstance(frame.image, CompressedImage)
    return compressed_to_rgb(frame.image) if compressed else image_to_rgb(frame.image)


def _load(settings: Settings) -> Segmenter:
    """Load the model that the settings name, within their threads."""
    import torch  # here, not above: torch and transformers take seconds to import, and the

    from lisa_ros.segmenter import Segmenter  # node is to be seen in the graph before that

    if settings.threads:
        torch.set_num_threads(settings.threads)
    return Segmenter.load(
        settings.model,
        device=settings.device,
        precision=settings.precision,
        vision_tower=settings.vision_tower or None,
        template=settings.template or None,
    )


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    rclpy.init(args=args)
    try:
        node = LisaNode()
    except ParameterException as error:
        rclpy.logging.get_logger('lisa').fatal(str(error))
        rclpy.try_shutdown()
        return 1
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # launch passes on what the terminal sent already
    if not node.stop():  # loading or a long step: neither can be interrupted, nor leaves anything
        os._exit(0)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
