# SPDX-License-Identifier: Apache-2.0
"""One camera of the node: connects its inputs, scheduler, answers and tracking.

A node has one of these, or one for each name in `cameras`. They share the inference thread.

Threads: the methods run on the executor's thread or on that of autostart, and return at once,
except `close`. Answers are published on the scheduler's delivery thread (answers.py), tracked
masks on the tracking worker's (tracking_output.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lisa_ros.error_text import shortened
from lisa_ros.health.outcomes import Outcome
from lisa_ros.results import Status, unanswered
from lisa_ros.ros import configuration
from lisa_ros.ros.answers import AnswerReceiver, ClientListener, TopicListener
from lisa_ros.ros.context import NodeClock, NodeContext
from lisa_ros.ros.inputs import CameraInputs, TopicWatch
from lisa_ros.ros.publishers import CameraPublishers, LocalizedResult
from lisa_ros.ros.tracking_output import TrackingOutput
from lisa_ros.session.command_parser import CommandKind, ParsedCommand
from lisa_ros.session.dialogue_history import DialogueStore
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.inference_thread import InferenceThread
from lisa_ros.session.place_memory import asks_about_the_past
from lisa_ros.session.request import RequestListener
from lisa_ros.session.scheduler import RequestScheduler
from lisa_ros.settings import Settings
from lisa_ros.tracking.tracker import Tracker
from lisa_ros.tracking.worker import TrackingWorker


@dataclass(frozen=True)
class _ActiveParts:
    """What a camera has while the node is active."""

    scheduler: RequestScheduler
    listener: TopicListener
    tracking: TrackingWorker[SyncedMessages] | None  # None: tracking is off
    inputs: CameraInputs


class CameraPipeline:
    """One camera; see the module's docstring for threads."""

    def __init__(self, context: NodeContext, name: str):
        """Make a camera without topics; the name of the only camera may be empty."""
        self.name = name
        self._context = context
        self._prefix = f'{name}/' if name else ''
        self._log_prefix = f'{name}: ' if name else ''
        self._dialogues = DialogueStore()  # kept while inactive, cleared by cleanup
        self._tracker: Tracker | None = None
        self._publishers: CameraPublishers | None = None  # while configured
        self._parts: _ActiveParts | None = None  # while active

    # ---- lifecycle

    def configure(self) -> None:
        """Make the publishers and the tracker.

        Raises:
            LisaError: the tracker's weights cannot be loaded.
        """
        self._tracker = configuration.load_tracker(self._context.settings.value)
        self._publishers = CameraPublishers(self._context, f'~/{self._prefix}')

    def activate(self, inference: InferenceThread) -> None:
        """Start the scheduler and the tracking worker, and subscribe to the inputs.

        Raises:
            SettingsError: an input cannot be subscribed to.
        """
        settings = self._context.settings.value
        if self._context.transforms.is_used:
            self._context.transforms.listen()
        self._publishers.publish_label_info()
        self._parts = parts = self._make_parts(inference, settings)
        if parts.tracking is not None:
            parts.tracking.start()
        parts.scheduler.start()
        parts.inputs.subscribe(self._prefix, settings.image_transport, settings.depth_transport)
        self.apply_settings(self._context.settings.value)  # may have changed meanwhile

    def _make_parts(self, inference: InferenceThread, settings: Settings) -> _ActiveParts:
        tracking_output = TrackingOutput(self._context, self._publishers.tracked)
        tracking = None
        if self._tracker is not None:
            self._tracker.reset()
            policy = configuration.requery_policy(settings)
            tracking = TrackingWorker(self._tracker, tracking_output, policy)
        listener = TopicListener(self._context, self.name, self._publishers, tracking)
        node = self._context.node
        scheduler = RequestScheduler(
            inference,
            listener,
            configuration.session_options(settings),
            dialogues=self._dialogues,
            clock=NodeClock(node),
            log=node.get_logger(),
        )
        tracking_output.connect(scheduler)
        return _ActiveParts(scheduler, listener, tracking, CameraInputs(node, scheduler, tracking))

    def close(self, timeout: float) -> bool:
        """Cancel all requests and end the threads; False if model or tracker are still busy.

        Args:
            timeout: how long to wait for both of them together [s].
        """
        parts, deadline = self._parts, time.monotonic() + timeout
        if parts is None:
            return True
        if not parts.scheduler.close(timeout):
            return False
        left = max(0.0, deadline - time.monotonic())
        return parts.tracking is None or parts.tracking.close(left)

    def unsubscribe(self) -> None:
        """Remove the inputs; call it after `close` has returned True."""
        if self._parts is not None:
            self._parts.inputs.destroy()
        self._parts = None

    def restart(self, inference: InferenceThread) -> None:
        """Accept requests again after `close` has returned False, with new threads.

        A thread that has not ended keeps the old tracker, so a new one is loaded.

        Raises:
            LisaError: the tracker's weights cannot be loaded, or an input cannot be subscribed to.
        """
        if self._parts is None:
            return
        self.unsubscribe()
        self._tracker = configuration.load_tracker(self._context.settings.value)
        self.activate(inference)

    def release(self) -> None:
        """Free publishers and tracker, forget the dialogues; call `unsubscribe` first."""
        self._dialogues.clear()
        if self._publishers is not None:
            self._publishers.destroy()
        self._publishers = self._tracker = None

    def apply_settings(self, settings: Settings) -> None:
        """Apply parameters that may change while the node is active."""
        parts = self._parts  # read once: autostart may undo a failed activation meanwhile
        if parts is None:
            return
        parts.scheduler.set_options(configuration.session_options(settings))
        if parts.tracking is not None:
            parts.tracking.set_policy(configuration.requery_policy(settings))

    # ---- while active

    @property
    def scheduler(self) -> RequestScheduler | None:
        """The camera's scheduler; None while the node is inactive."""
        parts = self._parts
        return None if parts is None else parts.scheduler

    @property
    def inputs(self) -> list[TopicWatch]:
        """The input topics, that of the colour image first; none while the node is inactive."""
        parts = self._parts
        return [] if parts is None else parts.inputs.watches

    @property
    def newest_position(self) -> Outcome | None:
        """Whether the last 3D positions could be computed; None: there were none."""
        publishers = self._publishers  # another thread may release them
        outcomes = () if publishers is None else publishers.answers.positions.newest
        return outcomes[-1] if outcomes else None

    def client_listener(self, receiver: AnswerReceiver, is_public: bool) -> RequestListener:
        """Return the listener of a request whose client waits for the answer.

        Args:
            receiver: the client.
            is_public: publish the answer on the topics, too.
        """
        return ClientListener(self._parts.listener, receiver, is_public)

    def handle_command(self, command: ParsedCommand) -> None:
        """Handle a command from ~/command; no effect while the node is inactive."""
        scheduler, log = self.scheduler, self._context.log
        if scheduler is None:
            return
        is_watch = command.kind is CommandKind.WATCH and bool(command.text)
        if command.kind is CommandKind.STOP:
            stopped = ', '.join(self.stop())
            nothing = f'{shortened(command.text)!r}: there is nothing to stop'
            log.info(self._log_prefix + (f'stopped {stopped}' if stopped else nothing))
        elif is_watch and scheduler.set_standing_query(command.text):
            log.info(f'{self._log_prefix}watching {shortened(command.text)!r} until "stop"')
        elif self.asks_memory(command):
            self._answer_from_memory(command.text)
        else:  # also a standing query that is empty or too long: the answer says so
            scheduler.submit_command(command.text)

    def asks_memory(self, command: ParsedCommand) -> bool:
        """Return whether a command asks where an object was seen last; the same on all cameras."""
        settings = self._context.settings.value
        return (
            command.kind is CommandKind.ASK
            and self._context.places.is_on
            and len(command.text) <= settings.max_command_chars  # else the scheduler says so
            and asks_about_the_past(command.text)
        )

    def _answer_from_memory(self, question: str) -> None:
        """Answer where an object was seen last, without a look."""
        text = self._context.places.answer(question)
        result = replace(unanswered(question, Status.NOT_FOUND, ''), answer=text, answer_raw=text)
        publishers = self._publishers
        if publishers is None:  # released by another thread
            return
        message = publishers.answers.message(None, result, LocalizedResult(None, ()))
        publishers.answers.publish_status(message)
        publishers.publish_explanation(text)
        self._context.node.get_logger().info(
            f'{self._log_prefix}{shortened(question)!r}: {shortened(text)!r} (from memory)'
        )

    def stop(self) -> list[str]:
        """End the standing query, all commands and the tracking; return what was stopped."""
        parts = self._parts
        if parts is None:
            return []
        stopped = parts.scheduler.stop()
        if parts.tracking is None:
            return stopped
        was_tracking = parts.tracking.stop()
        # An answer that was complete before is published after this; it would be tracked again.
        parts.scheduler.call_after_delivery(parts.tracking.stop)
        return stopped + ['tracking'] * was_tracking
