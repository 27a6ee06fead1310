# SPDX-License-Identifier: Apache-2.0
"""The self-test: a command about an image with a known answer, through all but the topics.

Threads: `run` is a coroutine on the executor's thread; other callbacks run while it awaits the
answer, which comes from a camera's delivery thread.
"""

from __future__ import annotations

import threading
from pathlib import Path

from rclpy.executors import Executor
from rclpy.task import Future
from std_msgs.msg import Header

from lisa_ros.errors import DataError
from lisa_ros.evaluation.known_answer import KnownAnswer
from lisa_ros.messages.image import image_fields
from lisa_ros.msg import Segmentation as SegmentationMessage
from lisa_ros.resources import SELF_TEST
from lisa_ros.results import ANSWERED, Event, Segmentation, Status, unanswered
from lisa_ros.ros import message_types
from lisa_ros.ros.cameras import Cameras
from lisa_ros.session.frame_buffer import SyncedMessages
from lisa_ros.session.request import Request

SELF_TEST_TIMEOUT = 60.0  # if there is no answer_timeout [s]
_MARGIN = 1.0  # from the end of an answer to its arrival [s]


class _TestReceiver:
    """Waits for the answer, as an `AnswerReceiver`."""

    def __init__(self, executor: Executor):
        self.answer = Future(executor=executor)  # a Segmentation
        self._executor = executor

    def started(self, request: Request, frame: SyncedMessages) -> None:
        """Nobody waits for it."""

    def event(self, event: Event) -> None:
        """Nobody waits for it."""

    def answered(self, result: Segmentation, message: SegmentationMessage) -> None:
        """Wake the coroutine that awaits the answer."""
        self.finish(result)

    def finish(self, result: Segmentation) -> None:
        """Give the coroutine a result; only the first one counts."""
        if not self.answer.done():
            self.answer.set_result(result)
        self._executor.wake()  # some rclpy versions do not wake up when an awaited future is done


async def run_self_test(
    cameras: Cameras, executor: Executor, images: str, timeout: float
) -> tuple[bool, str]:
    """Return whether the model answers rightly, and a line about it and the inputs.

    Args:
        cameras: the first active one is asked.
        executor: of the node.
        images: the setting `self_test_images`.
        timeout: the answer may take this long, and a second more to come here [s].
    """
    active = [camera for camera in cameras if camera.scheduler]
    if not active:
        return False, 'the node is not active: configure and activate it'
    if any(camera.scheduler.is_busy for camera in active):
        return False, 'busy with a command: ask again when it is answered'
    try:
        known = KnownAnswer.read(Path(images).expanduser() if images else SELF_TEST)
    except DataError as error:
        return False, str(error)
    image = message_types.make.image(Header(), image_fields(known.image, 'rgb8'))
    receiver = _TestReceiver(executor)
    request = active[0].scheduler.submit_command(
        known.query,
        SyncedMessages(0, image),
        active[0].client_listener(receiver, is_public=False),
    )
    limit = timeout + _MARGIN
    late = unanswered(request.text, Status.TIMED_OUT, f'no answer within {limit:g} s')
    timer = threading.Timer(limit, receiver.finish, (late,))  # ROS time may stand still
    timer.daemon = True
    timer.start()
    result = await receiver.answer
    timer.cancel()
    active[0].scheduler.cancel(request)  # no effect after its end
    rates = ', '.join(f'{watch.topic} {watch.rate():.1f} Hz' for watch in cameras.inputs)
    error = result.reason if result.status not in ANSWERED else known.error_of(result)
    outcome = error or f'the model answers rightly in {sum(result.timings.values()):.2f} s'
    return not error, f'{outcome}; inputs: {rates}'
