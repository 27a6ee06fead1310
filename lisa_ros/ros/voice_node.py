# SPDX-License-Identifier: Apache-2.0
"""voice_node: publishes spoken commands.

    audio (topic), a microphone or a WAV file -> lisa_ros.voice -> ~/heard, command
    whisper/listen (action of whisper_ros) -> vocabulary -> ~/heard, command
    say (topic, optional) -> espeak-ng

launch/lisa.launch.py remaps `command` to `~/command` of lisa_node. Speech that is not recognized
as a command is published on `~/heard` only.

Threads: rclpy's executor runs the callbacks of subscriptions, PortAudio the callback of the
microphone. One thread recognizes speech, and one speaks. Only the recognizing thread uses the
Listener, except for `hears_speech`. With whisper_ros, the executor's thread interprets and
publishes.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rclpy.node import Node
from std_msgs.msg import String, UInt8MultiArray

from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.msg import Heard
from lisa_ros.ros import parameter_declaration
from lisa_ros.ros.qos import input_qos_overrides, sensor_qos
from lisa_ros.ros.runtime import run
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.ros.whisper_client import ACTION, Utterance, WhisperClient
from lisa_ros.voice import audio
from lisa_ros.voice.audio_messages import MessageAudio
from lisa_ros.voice.interpreter import Outcome, Recognition, Transcript, make_interpreter
from lisa_ros.voice.listener import make_listener
from lisa_ros.voice.microphone import Microphone
from lisa_ros.voice.settings import VoiceSettings
from lisa_ros.voice.speaker import Speaker

_MAX_BACKLOG = 10.0  # queued audio that waits for the engine [s]; more is dropped
_WAV_PIECE = 0.1  # a WAV file is queued in pieces of this length [s]
_SUBSCRIBER_TIMEOUT = 60.0  # a WAV file starts after this time without a subscriber [s]
_POLL_PERIOD = 0.2  # how often a waiting thread checks whether the node stops [s]

_OUTCOME_LOG = {
    Outcome.COMMAND: 'sent',
    Outcome.UNSURE: 'confidence below the threshold, not sent',
    Outcome.EMPTY: 'no words, not sent',
    Outcome.ASLEEP: 'without the wake phrase, not sent',
    Outcome.AWAKE: 'listening for a command',
}


class VoiceNode(Node):
    """Recognizes commands in a thread of its own and publishes them.

    Raises:
        SettingsError: the engine, the vocabulary, the microphone or a package is not available.
        DataError: the WAV file cannot be read.
    """

    def __init__(self) -> None:
        super().__init__('voice')
        parameter_declaration.declare(self, VoiceSettings)
        settings = parameter_declaration.read(self, VoiceSettings)
        self._warn = ThrottledLog(self.get_logger()).warning
        if settings.source == 'whisper_ros':  # its own microphone and engine: no audio here
            self._interpreter = make_interpreter(settings)
            description = f'{ACTION} listens for {self._interpreter}'
            self._speaker = Speaker(self._warn)
        else:
            self._listener, description = make_listener(settings)
            self._speaker = Speaker(self._warn, self._listener.hears_speech)
        self._heard_publisher = self.create_publisher(Heard, '~/heard', 10)
        self._command_publisher = self.create_publisher(String, 'command', 10)
        self._message_audio = MessageAudio()
        self._audio: queue.Queue[np.ndarray | None] = queue.Queue()  # None: the end of a WAV file
        self._stopping = threading.Event()
        self._microphone = self._open_source(settings)
        if settings.say:
            self.create_subscription(
                String, 'say', lambda message: self._speaker.say(message.data), 10
            )
        self._worker = threading.Thread(target=self._recognize_audio, daemon=True)
        self._worker.start()
        self.get_logger().info(f'{description}; sound: {settings.source}')

    # ---- audio input

    def _open_source(self, settings: VoiceSettings) -> Microphone | None:
        """Start the audio source; return it if `stop` must close it."""
        if settings.source == 'topic':
            qos = sensor_qos()
            qos.depth = 200  # pieces are small and arrive in bursts
            self.create_subscription(
                _audio_message_type(settings.audio_type),
                'audio',
                self._take_message,
                qos,
                qos_overriding_options=input_qos_overrides(),
            )
            return None
        if settings.source == 'whisper_ros':
            WhisperClient(self, self._take_transcript)
            return None
        if settings.source == 'microphone':
            return Microphone(settings.microphone, self)
        samples = audio.read_wav(Path(settings.source).expanduser())
        threading.Thread(target=self._play, args=(samples,), daemon=True).start()
        return None

    def _take_message(self, message: Any) -> None:
        """Queue the samples of a message; log a broken one."""
        try:
            self.take_samples(self._message_audio.samples(message))
        except LisaError as error:
            self._warn(f'audio: {error}', 'audio')

    def _take_transcript(self, utterance: Utterance) -> None:
        """Publish what whisper_ros understood; while this node spoke, only "stop"."""
        transcript = Transcript(utterance.text, 1.0)
        may_be_own_voice = self._speaker.spoke_during(utterance.began_at, utterance.ended_at)
        if may_be_own_voice and not self._interpreter.preview(transcript).is_stop:
            return
        recognition = self._interpreter.interpret(transcript)
        self._publish(dataclasses.replace(recognition, seconds=utterance.seconds))

    def report_overflow(self) -> None:
        """Log that the microphone has lost audio that was needed. From any thread."""
        if not self._speaker.is_speaking:
            self._warn('microphone overflow: some audio is lost', 'overflow')

    def report_end(self, message: str) -> None:
        """Log why the microphone gives no more audio. From any thread."""
        self.get_logger().error(message)

    def take_samples(self, samples: np.ndarray) -> None:
        """Queue samples for the recognizing thread, except while speaking. From any thread."""
        if self._speaker.is_speaking or not len(samples):
            return  # the node would hear itself; a resampler may hold all samples back
        backlog = self._audio.qsize() * len(samples) / audio.RATE
        if backlog > _MAX_BACKLOG:
            self._warn(
                f'the engine is too slow: {backlog:.0f} s of audio wait, new audio is dropped',
                'backlog',
            )
            return
        self._audio.put(samples)

    def _play(self, samples: np.ndarray) -> None:
        """Queue a WAV file in real time, when `command` has a subscriber. Runs in a thread."""
        deadline = time.monotonic() + _SUBSCRIBER_TIMEOUT
        while not self._command_publisher.get_subscription_count() and time.monotonic() < deadline:
            if self._stopping.wait(0.1):
                return
        piece = int(_WAV_PIECE * audio.RATE)
        samples = np.pad(samples, (0, audio.RATE))  # silence that ends the last utterance
        start_time = time.monotonic()
        for start in range(0, len(samples), piece):
            due = start_time + start / audio.RATE
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                return
            self.take_samples(samples[start : start + piece])
        self._audio.put(None)

    # ---- commands

    def _recognize_audio(self) -> None:
        """Recognize the queued audio until the node stops. Runs in a thread."""
        while not self._stopping.is_set():
            try:
                samples = self._audio.get(timeout=_POLL_PERIOD)
            except queue.Empty:
                continue
            try:
                recognitions = (
                    self._listener.finish() if samples is None else self._listener.feed(samples)
                )
                for recognition in recognitions:
                    self._publish(recognition)
            except Exception as error:  # noqa: BLE001  # one broken piece must not stop the node
                self._warn(f'recognition failed: {type(error).__name__}: {error}')
            if samples is None:
                self.get_logger().info('end of the WAV file')

    def _publish(self, recognition: Recognition) -> None:
        """Publish a recognition on ~/heard and, if it is a command, on `command`."""
        outcome = recognition.outcome
        message = Heard(
            outcome=getattr(Heard, outcome.value),
            text=recognition.text,
            command=recognition.command,
            confidence=recognition.confidence,
            seconds=recognition.seconds,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._heard_publisher.publish(message)
        if outcome is Outcome.COMMAND:
            self._speaker.forget()
            self._command_publisher.publish(String(data=recognition.command))
        if outcome is not Outcome.PARTIAL:
            command = f' as "{recognition.command}"' if recognition.command else ''
            self.get_logger().info(
                f'{outcome.value} {recognition.confidence:.2f} "{recognition.text}"{command}: '
                f'{_OUTCOME_LOG[outcome]}'
            )

    def stop(self) -> bool:
        """Stop the threads and the microphone; return false if the engine is still busy."""
        self._stopping.set()
        self._speaker.stop()
        self._worker.join(timeout=5)
        if self._microphone is not None:
            self._microphone.close()
        return not self._worker.is_alive()


def _audio_message_type(audio_type: str) -> type:
    """Return the message type of `audio`.

    Raises:
        SettingsError: the package that has it is not installed.
    """
    if audio_type == 'UInt8MultiArray':
        return UInt8MultiArray
    try:
        from audio_common_msgs import msg as audio_common
    except ImportError as error:
        if audio_type == 'auto':
            return UInt8MultiArray
        raise SettingsError(
            f'audio_type {audio_type} needs the package audio_common_msgs: install it, or set '
            'audio_type UInt8MultiArray'
        ) from error
    if audio_type == 'auto':  # only mgonzs13's package has an AudioStamped
        return getattr(audio_common, 'AudioStamped', audio_common.AudioData)
    if not hasattr(audio_common, audio_type):
        raise SettingsError(
            f'audio_type {audio_type}: the installed audio_common_msgs, which may be that of '
            'ros-drivers, has no such message: set audio_type AudioData'
        )
    return getattr(audio_common, audio_type)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the node until it is stopped; then end the process."""
    run('voice', VoiceNode, args)


if __name__ == '__main__':
    main()
