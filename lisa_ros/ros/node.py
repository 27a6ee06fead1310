# SPDX-License-Identifier: Apache-2.0
"""`lisa_node`: hears images and commands, says masks and their reason. Wiring only.

Threads: one executor thread runs the callbacks, and each returns at once but for the transitions
that `~/change_state` asks for: configure holds it while the weights load, deactivate until the
model has stopped. Autostart has a thread of its own, so that the node answers while it loads; the
self-test is a coroutine. The model runs on the threads of the cameras' sessions, by turns, which
also publish the answers (rclpy's `publish` may be called from any thread). No
MultiThreadedExecutor: under a 30 Hz camera with depth it left four commands of sixty lying for 1
to 2 s, one executor thread left one.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.subscription import Subscription
from rclpy.task import Future
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.messages.image import image_fields
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.results import Event, Segmentation, Status
from lisa_ros.ros import diagnostics, fastdds, message_types, parameters
from lisa_ros.ros.action_server import RequestListener, SegmentActionServer
from lisa_ros.ros.camera_pipeline import CameraPipeline, NodeContext
from lisa_ros.ros.runtime import spin
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.ros.transforms import Transforms
from lisa_ros.session.command_parser import parse_command, select_cameras
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.model_lock import ModelLock
from lisa_ros.session.scheduler import RequestScheduler
from lisa_ros.settings import Settings
from lisa_ros.tracking.optical_flow import FlowTracker
from lisa_ros.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lisa_ros.perception.segmenter import Segmenter

_SUCCESS = TransitionCallbackReturn.SUCCESS
# For timers: with use_sim_time, a bag that begins anew or is paused would hold a ROS timer back.
_STEADY = Clock(clock_type=ClockType.STEADY_TIME)
_PATIENCE = 10.0  # how long deactivate and the end of the process wait for a busy model [s]


def log_transition_errors(transition: Callable) -> Callable:
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
        self._commands: Subscription | None = None  # there while active
        complain = ThrottledLog(self.get_logger().error)
        parameters.declare(self, Settings, lambda: self.loading or self._lisa is not None)
        self._settings = parameters.read(self, Settings)
        shared = NodeContext(
            node=self,
            settings=lambda: self._settings,
            stream=self._stream,
            explained=lambda text: f'{text} {self._lisa.model.config.explain}',
            tracker=lambda: _tracker(self._settings),
            transforms=Transforms(self, lambda: self._settings.transform_timeout),
            turns=ModelLock(),
            complain=complain,
        )
        names = self._settings.cameras or ('',)
        self._cameras = {name: CameraPipeline(shared, name) for name in names}
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
        self._goals = SegmentActionServer(self, self._session_of, complain)
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
        return not self.loading and self._close()

    # Transitions

    @log_transition_errors
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the weights and make the publishers."""
        self.loading = True  # from here on a change of what is read now would be lost
        try:
            settings = self._settings = parameters.read(self, Settings)
            self.get_logger().info(f'loading {settings.model} ...')
            began = time.monotonic()
            self._lisa = _load(settings)
            for camera in self._cameras.values():
                camera.configure()
        except Exception:
            self._release()
            raise
        finally:
            self.loading = False
        self.get_logger().info(f'{settings.model} loaded in {time.monotonic() - began:.1f} s')
        return super().on_configure(state)

    @log_transition_errors
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the session and hear the inputs; undo both if that fails."""
        super().on_activate(state)  # publishers first: an answer may come at once
        try:
            self._activate()
        except Exception:
            self._unsubscribe()
            super().on_deactivate(state)
            raise
        return _SUCCESS

    def _activate(self) -> None:
        for camera in self._cameras.values():
            camera.activate()
        # A new subscription after the sessions: whoever finds it may command.
        self._commands = self.create_subscription(String, '~/command', self._on_command, 10)
        images = ', '.join(camera.topics[0].topic for camera in self._cameras.values())
        self.get_logger().info(
            f'ready: images on {images}, commands on {self._commands.topic_name}'
        )

    def _on_command(self, message: String) -> None:
        """Do what was said on `~/command`; of several cameras, to those that are meant."""
        names, said = tuple(self._cameras), message.data
        if len(names) > 1:
            names, said = select_cameras(said, names)
            if not names:
                has = ', '.join(self._cameras)
                self.get_logger().error(f'{message.data!r}: no such camera; there are {has}')
        for name in names:
            self._cameras[name].handle_command(parse_command(said), said)

    @log_transition_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel what runs and hear nothing more; fail, and stay active, while the model is busy.

        So inactive means that nobody uses model and publishers: cleanup may free them, and
        activate may give the model to a new session.
        """
        self._unsubscribe()
        return super().on_deactivate(state)

    @log_transition_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model's memory."""
        self._release()
        return super().on_cleanup(state)

    @log_transition_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End from whatever state."""
        self._unsubscribe()
        self._release()
        return super().on_shutdown(state)

    @log_transition_errors
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured, so that a cure can be tried."""
        self._unsubscribe()
        self._release()
        return _SUCCESS

    def _release(self) -> None:
        if self._lisa is None:
            return
        self._lisa = None
        for camera in self._cameras.values():
            camera.release()
        gc.collect()  # the model is full of cycles
        torch = sys.modules.get('torch')
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()  # back to the driver, for the other processes

    def _close(self) -> bool:
        """End what runs; False if the model is still busy after a while."""
        for camera in self._cameras.values():
            if camera.session:
                camera.session.close(0)  # all at once: none begins what another one ended
        return all(camera.close(_PATIENCE) for camera in self._cameras.values())

    def _unsubscribe(self) -> None:
        """Close the sessions and the inputs, from whatever state of theirs.

        Raises:
            LisaError: the model is still busy; the sessions are closed, but a thread lives.
        """
        if not self._close():
            raise LisaError(
                f'the model is still busy {_PATIENCE:g} s after it was told to stop, and looks at '
                'that after each token: try again in a while'
            )
        for camera in self._cameras.values():
            camera.unsubscribe()
        if self._commands is not None:
            self.destroy_subscription(self._commands)
        self._commands = None

    def _on_parameters(self, changes: list[Any]) -> None:
        """Take over what may change while the node runs."""
        self._settings = parameters.read(self, Settings)
        for camera in self._cameras.values():
            camera.apply_settings(self._settings)

    def _sessions(self) -> list[RequestScheduler]:
        """Return the cameras' sessions, none while the node is not active."""
        return [camera.session for camera in self._cameras.values() if camera.session]

    def _session_of(self, name: str) -> RequestScheduler | None:
        """Return the session of the camera that a goal names; None while inactive.

        Raises:
            SettingsError: there is no such camera, or there are several and none is named.
        """
        only = self._settings.camera
        if tuple(self._cameras) == ('',):
            if name and only and name != only:
                raise SettingsError(f'no camera {name!r}: this node has {only!r}')
            return self._cameras[''].session
        if name not in self._cameras and (name or len(self._cameras) > 1):
            has = ', '.join(map(repr, self._cameras))
            raise SettingsError(
                f'no camera {name!r}: this node has {has}'
                if name
                else f'several cameras, {has}: the goal has to name one'
            )
        return self._cameras[name or next(iter(self._cameras))].session

    # Services

    def _on_reset_dialogue(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        for session in self._sessions():
            session.reset_dialogue()
        response.success = bool(self._sessions())
        response.message = 'dialogue forgotten' if response.success else 'the node is not active'
        return response

    async def _on_self_test(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Answer a command about a grey picture, through the whole path but the topics.

        It awaits the answer, so the other callbacks go on meanwhile.
        """
        sessions = self._sessions()
        if not sessions:
            response.message = 'the node is not active: configure and activate it'
            return response
        if any(session.busy for session in sessions):
            response.message = 'busy with a command: ask again when it is answered'
            return response
        picture = np.full((240, 320, 3), 128, np.uint8)
        source = message_types.make.image(Header(), image_fields(picture, 'rgb8'))
        executor = self.executor
        answered = Future(executor=executor)

        def tell(result: Segmentation, _: SegmentationMessage) -> None:  # on the session's thread
            answered.set_result(result)
            executor.wake()  # not every rclpy looks at what awaits the future by itself

        sessions[0].submit_command(
            'segment the mug', SyncedMessages(0, source), RequestListener(tell)
        )
        result = await answered  # it comes for sure: a session ends every request
        response.success = result.status in (Status.FOUND, Status.NOT_FOUND)
        inputs = ', '.join(f'{watch.topic} {watch.rate():.1f} Hz' for watch in self._topics())
        spoken = result.reason or f'the model answers in {sum(result.timings.values()):.2f} s'
        response.message = f'{spoken}; inputs: {inputs}'
        return response

    def _topics(self) -> list[diagnostics.TopicWatch]:
        return [watch for camera in self._cameras.values() for watch in camera.topics]

    # The model, on the sessions' threads by turns

    def _stream(self, *arguments: Any, **named: Any) -> Iterator[Event]:
        self._lisa.max_new_tokens = self._settings.max_new_tokens
        self._lisa.dialogue_boxes = self._settings.dialogue_boxes
        self._lisa.refine = {'on': True, 'off': False}.get(self._settings.refine)
        self._lisa.confidence_threshold = self._settings.confidence_threshold or None
        return self._lisa.stream(*arguments, **named)

    # Diagnostics

    def _publish_diagnostics(self) -> None:
        lisa = self._lisa  # another thread may free it meanwhile
        device = str(lisa.device) if lisa else ''
        name = self.get_fully_qualified_name()
        statuses = [diagnostics.model_status(name, self._settings, device)]
        for watch in self._topics():
            publishers = self.count_publishers(watch.topic)
            statuses.append(diagnostics.topic_status(name, watch, publishers))
        for camera in self._cameras.values():
            session = camera.session
            if session:
                own = f'{name} {camera.name}'.rstrip()
                statuses.append(diagnostics.request_status(own, session, camera.seconds))
        array = DiagnosticArray(status=statuses)
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def _tracker(settings: Settings) -> Tracker | None:
    """Return a new tracker as the settings want it, None where tracking is off."""
    if settings.tracker == 'off':
        return None
    if settings.tracker == 'flow':
        return FlowTracker()
    from lisa_ros.model.device import resolve_device
    from lisa_ros.tracking.video_model import load_video_tracker

    device = resolve_device(settings.device)
    return load_video_tracker(settings.tracker, settings.tracker_model, device)


def _load(settings: Settings) -> Segmenter:
    """Load the model that the settings name, within their threads."""
    import torch  # here, not above: torch and transformers take seconds to import, and the

    from lisa_ros.perception.segmenter import (
        Segmenter,  # node is to be seen in the graph before that
    )

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
    fastdds.configure_shared_memory()
    rclpy.init(args=args)
    try:
        node = LisaNode()
    except ParameterException as error:
        rclpy.logging.get_logger('lisa').fatal(str(error))
        rclpy.try_shutdown()
        return 1
    spin(node)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # launch passes on what the terminal sent already
    if not node.stop():  # loading or a long step: neither can be interrupted, nor leaves anything
        os._exit(0)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
