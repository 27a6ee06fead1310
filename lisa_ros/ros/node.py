# SPDX-License-Identifier: Apache-2.0
"""`lisa_node`: the lifecycle, the services and the parameters of the node. Wiring only.

Threads: one executor thread runs the callbacks. Callbacks return at once, except for transitions
requested on `~/change_state`: configure blocks the executor while the weights load, deactivate
blocks it until the model has stopped or is given up. Autostart has its own thread, so that the
node answers requests while it loads. The self-test is a coroutine. The model runs on one inference
thread for all cameras, or in a process that this thread asks. Each camera publishes its answers on
a delivery thread and its tracked masks on a tracking thread (rclpy's `publish` may be called from
any thread).

The executor is single-threaded: with a 30 Hz RGB-D camera, 1 of 60 commands waited 1 to 2 s; with
a MultiThreadedExecutor, 4 of 60 did.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any, NoReturn

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.subscription import Subscription
from std_msgs.msg import String
from std_srvs.srv import Trigger

from lisa_ros import native_settings
from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.perception.backend import Backend, ReportsNotices, SupervisedBackend
from lisa_ros.ros import configuration, fastdds, fastdds_segments, parameter_declaration
from lisa_ros.ros.action_server import SegmentActionServer
from lisa_ros.ros.bond import ManagerBond
from lisa_ros.ros.cameras import Cameras
from lisa_ros.ros.context import STEADY_CLOCK, NodeContext
from lisa_ros.ros.diagnostics import Diagnostics, ModelParts
from lisa_ros.ros.image_decoder import MessageDecoder
from lisa_ros.ros.memory_reclaim import RECLAIM_PERIOD, reclaim
from lisa_ros.ros.parameter_declaration import CurrentSettings
from lisa_ros.ros.places import Places
from lisa_ros.ros.qos import COMMAND_QOS, creation_fault
from lisa_ros.ros.runtime import run
from lisa_ros.ros.self_test import SELF_TEST_TIMEOUT, run_self_test
from lisa_ros.ros.state_publisher import StatePublisher
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.ros.transforms import Transforms
from lisa_ros.ros.transitions import LifecycleRecord, log_transition_errors
from lisa_ros.session.inference_thread import InferenceThread
from lisa_ros.session.request import CancelReason
from lisa_ros.settings import Settings

_SUCCESS = TransitionCallbackReturn.SUCCESS
_PATIENCE = 0.8  # share of `stop_timeout` after which a busy model is given up
_CHANGE_PERIOD = (
    0.25  # at which the node looks whether an input has stopped or its state changed [s]
)
STOP_TIMEOUT = 10.0  # how long deactivate waits for a busy model [s]


class LisaNode(LifecycleNode):
    """Subscribes to cameras and `~/command`, publishes masks and explanations.

    It starts itself unless `autostart` is off. configure loads the weights (seconds to minutes),
    activate subscribes, deactivate cancels all requests, cleanup frees the memory. Every output
    carries stamp and frame_id of its source image.
    """

    def __init__(self, *, stop_timeout: float = STOP_TIMEOUT, **node_options: Any) -> None:
        """Make an unconfigured node named `lisa`.

        Args:
            stop_timeout: how long deactivate and `stop` wait for a busy model [s].
            node_options: of rclpy's Node.
        """
        super().__init__('lisa', **node_options)
        self._stop_timeout = stop_timeout
        self._is_loading = False  # configure is reading the weights
        self.lifecycle = LifecycleRecord()
        self._backend: Backend | None = None  # while configured, as `_inference`
        self._inference: InferenceThread | None = None
        self._commands: Subscription | None = None  # while active
        self._bond = ManagerBond(self)
        parameter_declaration.declare(self, Settings, self._is_configured)
        self._settings = CurrentSettings(parameter_declaration.read(self, Settings))
        self._log = ThrottledLog(self.get_logger())
        transforms = Transforms(self, self._settings)
        self._places = Places(self, self._settings, transforms, self._log)
        context = NodeContext(self, self._settings, transforms, self._log, self._places)
        self._cameras = Cameras(context)
        self.add_post_set_parameters_callback(self._on_parameters)
        self._create_services()
        # Made here and not on activate: a new server would leave earlier goals unanswered.
        # A client that has left is reported at once, not at the next period.
        self._action_server = SegmentActionServer(
            context, self._cameras, on_departure=self._publish_diagnostics
        )
        self._diagnostics = Diagnostics(context, self._cameras, self._action_server)
        self._state = StatePublisher(context, self._cameras)
        self.create_timer(
            self._settings.value.diagnostics_period,
            self._publish_diagnostics,
            clock=STEADY_CLOCK,
        )
        # A camera that stops is reported at once, too, as all changes on ~/state.
        self.create_timer(_CHANGE_PERIOD, self._report_changes, clock=STEADY_CLOCK)
        self.create_timer(RECLAIM_PERIOD, reclaim, clock=STEADY_CLOCK)
        self._starting = threading.Thread(
            target=self._autostart, name='lisa-autostart', daemon=True
        )
        self._starting.start()

    def _create_services(self) -> None:
        self.create_service(Trigger, '~/stop', self._on_stop)
        self.create_service(Trigger, '~/reset_dialogue', self._on_reset_dialogue)
        # A callback that awaits blocks its group: a group of its own lets other callbacks run.
        group = MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, '~/self_test', self._on_self_test, callback_group=group)

    def _is_configured(self) -> bool:
        """Return whether `at_configure` parameters are in use, so that they may not change."""
        return self._is_loading or self._backend is not None

    def _autostart(self) -> None:
        """Configure and activate if the parameter `autostart` is on; stay up if that fails."""
        if not self._settings.value.autostart:
            self.get_logger().info('autostart is off: waiting for configure and activate')
        elif self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def stop(self) -> bool:
        """Cancel all requests, in any state.

        Returns:
            False if one runs longer than `stop_timeout`, or if a thread still configures or
            activates the node, which may not be destroyed meanwhile.
        """
        is_changing = self._is_loading or self._starting.is_alive()
        is_stopped = self._cameras.close(self._stop_timeout) and not is_changing
        self._places.save()
        return is_stopped

    # ---- transitions

    @log_transition_errors
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the weights and make the publishers."""
        self._is_loading = True  # from now on `at_configure` parameters may not change
        try:
            settings = parameter_declaration.read(self, Settings)
            self._settings.replace(settings)
            self.get_logger().info(f'loading {settings.model} ...')
            start = time.monotonic()
            self._load(settings)
        except BaseException:  # also SystemExit of a model
            self._release()
            raise
        finally:
            self._is_loading = False
        self.get_logger().info(f'{settings.model} loaded in {time.monotonic() - start:.1f} s')
        return super().on_configure(state)

    def _load(self, settings: Settings) -> None:
        self._backend = configuration.load_model(settings, self.get_logger())
        for notice in self._backend.notices if isinstance(self._backend, ReportsNotices) else ():
            self.get_logger().warning(notice)
        self._inference = InferenceThread(
            self._backend,
            MessageDecoder(self._settings),
            configuration.inference_options(settings),
            self.get_logger(),
        )
        # Parameters may have changed before `_on_parameters` saw the thread.
        self._apply_options(self._inference, self._settings.value)
        self._inference.start()
        self._places.configure()
        for camera in self._cameras:
            camera.configure()

    @log_transition_errors
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the schedulers and subscribe to the inputs; undo both if that fails."""
        super().on_activate(state)  # publishers first: an answer may come at once
        try:
            self._activate()
        except Exception:
            self._deactivate()
            super().on_deactivate(state)
            raise
        return _SUCCESS

    def _activate(self) -> None:
        for camera in self._cameras:
            camera.activate(self._inference)
        # Last, and as a new subscription: a client that discovers it may send a command at once.
        self._commands = self._subscribe_to_commands()
        if self._settings.value.bond:
            self._bond.start()
        images = ', '.join(camera.inputs[0].topic for camera in self._cameras)
        self.get_logger().info(
            f'ready: images on {images}, commands on {self._commands.topic_name}'
        )

    def _subscribe_to_commands(self) -> Subscription:
        try:
            return self.create_subscription(String, '~/command', self._on_command, COMMAND_QOS)
        except RuntimeError as error:  # rclpy's RCLError is one
            topic = self.resolve_topic_name('~/command')
            raise SettingsError(creation_fault('subscription', topic, error)) from error

    @log_transition_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel all requests and unsubscribe; a model that does not stop is given up.

        If a tracker or the publishing of an answer does not end either, it fails, and the node
        stays active: with new threads, so that it goes on answering.
        """
        try:
            self._deactivate()
        except LisaError:
            for camera in self._cameras:
                camera.restart(self._inference)
            raise
        return super().on_deactivate(state)

    @log_transition_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the memory of the model."""
        self._release()
        return super().on_cleanup(state)

    @log_transition_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate and free everything, from any state, also if a tracker is still busy."""
        try:
            self._deactivate()
        finally:
            self._release()
        return super().on_shutdown(state)

    @log_transition_errors
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Become unconfigured, so that the cause can be corrected."""
        self._deactivate()
        self._release()
        return _SUCCESS

    def _deactivate(self) -> None:
        """Close the schedulers and remove the inputs, from any state.

        Raises:
            LisaError: a tracker, or the publishing of an answer, does not end.
        """
        self._take_waiting_commands()
        if not self._close_cameras():
            raise LisaError(
                f'a tracker, or the publishing of an answer, is still busy '
                f'{self._stop_timeout:g} s after the request to stop: try again later'
            )
        self._bond.stop()
        self._places.save()
        for camera in self._cameras:
            camera.unsubscribe()
        if self._commands is not None:
            self.destroy_subscription(self._commands)
        self._commands = None

    def _take_waiting_commands(self) -> None:
        """Take the commands that have arrived and were not read yet: each one gets an answer."""
        commands = self._commands
        if commands is None or not self.context.ok():
            return
        for _ in range(COMMAND_QOS.depth):
            try:
                with commands.handle:
                    taken = commands.handle.take_message(String, False)
            except Exception as error:  # noqa: BLE001  # malformed: dropped, as by the executor
                self._log.error(f'reading {commands.topic_name} failed: {error}')
                continue
            if taken is None:
                return
            self._on_command(taken[0])

    def _close_cameras(self) -> bool:
        """Cancel all requests within `stop_timeout`; give up a model that does not stop."""
        if self._cameras.close(_PATIENCE * self._stop_timeout):
            return True
        if self._inference is not None:
            self._inference.abandon(CancelReason.SHUTDOWN)
        return self._cameras.close((1 - _PATIENCE) * self._stop_timeout)

    def _release(self) -> None:
        """Free the model, the publishers and the trackers; no request may be running."""
        backend = self._backend
        if self._inference is not None and not self._inference.close(self._stop_timeout):
            self.get_logger().error(
                'the model has not returned and keeps its memory: restart the node'
            )
        if backend is None:
            return
        if isinstance(backend, SupervisedBackend):
            backend.close()
        self._backend = self._inference = backend = None
        self._places.release()
        for camera in self._cameras:
            camera.release()
        gc.collect()  # the model is full of reference cycles
        torch = sys.modules.get('torch')
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()  # back to the driver, for other processes

    # ---- callbacks

    def _on_command(self, message: String) -> None:
        """Handle a command from ~/command; returns at once."""
        self._cameras.handle_command(message.data)

    def _on_parameters(self, changes: list[Any]) -> None:
        """Apply parameters that may change while the node runs."""
        settings = parameter_declaration.read(self, Settings)
        self._settings.replace(settings)
        inference = self._inference  # another thread may release it
        if inference is not None:
            self._apply_options(inference, settings)
        self._places.apply_settings(settings)
        for camera in self._cameras:
            camera.apply_settings(settings)

    def _apply_options(self, inference: InferenceThread, settings: Settings) -> None:
        options = configuration.inference_options(settings)
        inference.set_options(options, configuration.max_batch(settings, inference.device))

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Stop all cameras, as the command "stop" does."""
        response.success = bool(self._cameras.schedulers)
        stopped = ', '.join(self._cameras.stop())
        response.message = f'stopped {stopped}' if stopped else 'there is nothing to stop'
        if not response.success:
            response.message = 'the node is not active'
        self._log.info(f'~/stop: {response.message}')
        return response

    def _on_reset_dialogue(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        schedulers = self._cameras.schedulers
        for scheduler in schedulers:
            scheduler.reset_dialogue()
        response.success = bool(schedulers)
        response.message = 'dialogue forgotten' if response.success else 'the node is not active'
        return response

    async def _on_self_test(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        timeout = self._settings.value.answer_timeout or SELF_TEST_TIMEOUT
        response.success, response.message = await run_self_test(
            self._cameras, self.executor, self._settings.value.self_test_images, timeout
        )
        return response

    def _publish_diagnostics(self) -> None:
        self._diagnostics.publish(self._model_parts(), self.lifecycle.current)

    def _report_changes(self) -> None:
        model, lifecycle = self._model_parts(), self.lifecycle.current
        self._diagnostics.publish_if_input_stopped(model, lifecycle)
        self._state.publish_if_changed(model, lifecycle)
        self._places.report_changes()

    def _model_parts(self) -> ModelParts:
        backend = None if self._is_loading else self._backend  # another thread may release it
        since = self.lifecycle.current.since if self._is_loading else None
        return ModelParts(backend, self._inference, since)


def main(args: list[str] | None = None, stop_timeout: float = STOP_TIMEOUT) -> NoReturn:
    """Run the node until a signal stops it; then end the process.

    Args:
        args: ROS command-line arguments; None: those of the process.
        stop_timeout: how long deactivate waits for a busy model [s].
    """
    native_settings.apply()
    fastdds.configure_shared_memory()
    fastdds_segments.remove_abandoned_segments()
    run('lisa', lambda: LisaNode(stop_timeout=stop_timeout), args)


if __name__ == '__main__':
    main()
