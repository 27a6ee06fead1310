# SPDX-License-Identifier: Apache-2.0
"""Client of the action `listen` of whisper_ros: the transcripts of one utterance after another.

A goal makes whisper_ros listen to its microphone until one utterance has been transcribed. So the
next goal is sent when a transcript arrives. A server that starts later, starts anew or serves
another client is asked again.

Threads: the executor of the node calls everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.node import Node
from rclpy.task import Future

from lisa_ros.errors import SettingsError
from lisa_ros.ros.action_client import action_servers
from lisa_ros.ros.context import STEADY_CLOCK
from lisa_ros.ros.throttled_log import ThrottledLog

ACTION = 'whisper/listen'
_RETRY_PERIOD = 0.5  # [s]


@dataclass(frozen=True)
class Utterance:
    """What was understood."""

    text: str
    began_at: float  # [s, monotonic]; up to a second too early, never too late
    ended_at: float  # [s, monotonic]; with the silence after it
    seconds: float  # that the transcription took


class WhisperClient:
    """Sends goals until its node is destroyed."""

    def __init__(self, node: Node, on_utterance: Callable[[Utterance], None]):
        """Start listening; call `on_utterance` with each one in which words were understood.

        Raises:
            SettingsError: the package whisper_msgs is not installed.
        """
        try:
            from whisper_msgs.action import STT
        except ImportError as error:
            raise SettingsError(
                'source whisper_ros needs the package whisper_msgs: build whisper_ros in the '
                'workspace and source it, or choose another source'
            ) from error
        self._new_goal, self._on_utterance = STT.Goal, on_utterance
        self._warn = ThrottledLog(node.get_logger()).warning
        self._node, self._servers = node, frozenset[bytes]()
        self._client = ActionClient(node, STT, ACTION)
        self._is_listening = False  # a goal was sent and has not ended
        node.create_timer(_RETRY_PERIOD, self._listen, clock=STEADY_CLOCK)

    def _listen(self) -> None:
        """Send a goal if none is being executed."""
        servers = action_servers(self._node, ACTION)
        if servers != self._servers:  # also one that was killed and started again
            self._servers, self._is_listening = servers, False
        if not self._client.server_is_ready():
            self._is_listening = False  # a goal of a server that has left never ends
            self._warn(f'no server of the action {ACTION}: start whisper_ros', 'server')
        elif not self._is_listening:
            self._is_listening = True
            self._client.send_goal_async(self._new_goal()).add_done_callback(self._accepted)

    def _accepted(self, sent: Future) -> None:
        goal: ClientGoalHandle = sent.result()
        if goal.accepted:
            goal.get_result_async().add_done_callback(self._ended)
        else:
            self._is_listening = False
            self._warn(f'{ACTION} serves another client; waiting for it', 'rejected')

    def _ended(self, ended: Future) -> None:
        self._is_listening = False
        if ended.result().status != GoalStatus.STATUS_SUCCEEDED:  # the timer asks again
            self._warn(f'a goal of {ACTION} ended without a transcript', 'ended')
            return
        heard = ended.result().result.transcription
        self._listen()
        if heard.text:
            ended_at = time.monotonic() - heard.transcription_time
            began_at = beginning(ended_at, heard.audio_time)
            self._on_utterance(
                Utterance(heard.text, began_at, ended_at, seconds=heard.transcription_time)
            )


def beginning(ended_at: float, audio_time: float) -> float:
    """Return the earliest time at which an utterance can have begun [s].

    Args:
        ended_at: when its audio ended [s].
        audio_time: length of the audio [s]; whisper_ros leaves out the fraction of a second.
    """
    return ended_at - audio_time - (1.0 if audio_time == int(audio_time) else 0.0)
