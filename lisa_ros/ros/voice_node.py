# SPDX-License-Identifier: Apache-2.0
"""voice_node: sound in, commands out.

    audio (topic), a microphone or a WAV file -> lisa_ros.voice -> ~/heard, command
    say (optional) -> espeak-ng

`command` is remapped to the other node's `~/command` by launch/lisa.launch.py. What was not clear
is told on `~/heard` and does nothing.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from std_msgs.msg import String, UInt8MultiArray

from lisa_ros.errors import LisaError, SettingsError
from lisa_ros.msg import Heard
from lisa_ros.ros import parameters
from lisa_ros.ros.runtime import spin
from lisa_ros.ros.throttled_log import ThrottledLog
from lisa_ros.voice import audio, listener
from lisa_ros.voice.listener import Outcome, listener_of
from lisa_ros.voice.settings import VoiceSettings

_BEHIND = 10.0  # sound that may wait to be heard [s]; more is left out
_PIECE = 0.1  # of a WAV file at a time [s]
_PATIENCE = 60.0  # for somebody to hear a WAV file's commands [s]


class VoiceNode(Node):
    """Listens in a thread of its own; publishes what it hears.

    Raises:
        SettingsError, DataError: an engine, a vocabulary or a source that is not there.
    """

    def __init__(self) -> None:
        super().__init__('voice')
        parameters.declare(self, VoiceSettings)
        settings = parameters.read(self, VoiceSettings)
        self._listener, about = listener_of(settings)
        self._heard = self.create_publisher(Heard, '~/heard', 10)
        self._command = self.create_publisher(String, 'command', 10)
        self._complain = ThrottledLog(self.get_logger().warning)
        self._sounds: queue.Queue[np.ndarray | None] = queue.Queue()  # None: its end
        self._over, self._speaking = threading.Event(), threading.Event()
        self._source = self._listen_to(settings)
        if settings.say:
            self._to_say: queue.Queue[str] = queue.Queue()
            self.create_subscription(String, 'say', lambda told: self._to_say.put(told.data), 10)
            threading.Thread(target=self._say, daemon=True).start()
        self._worker = threading.Thread(target=self._listen, daemon=True)
        self._worker.start()
        self.get_logger().info(f'{about}; sound: {settings.source}')

    # ---- sound in

    def _listen_to(self, settings: VoiceSettings) -> object:
        """Open the source of sound; return what must be kept for it."""
        if settings.source == 'topic':
            qos = parameters.sensor_qos()
            qos.depth = 200  # pieces are small and come in bursts
            return self.create_subscription(
                _audio(settings.audio_type),
                'audio',
                lambda piece: self._take(np.asarray(piece.data, np.uint8)),
                qos,
                qos_overriding_options=parameters.qos_overrides(),
            )
        if settings.source == 'microphone':
            return _microphone(settings.microphone, self._hear, self._lost)
        samples = audio.read_wav(Path(settings.source).expanduser())
        player = threading.Thread(target=self._play, args=(samples,), daemon=True)
        player.start()
        return player

    def _take(self, data: np.ndarray) -> None:
        """Hear a message's samples; a broken one is told and loses nothing else."""
        try:
            self._hear(audio.from_pcm16(data))
        except LisaError as error:
            self._complain(f'audio: {error}', 'audio')

    def _lost(self) -> None:
        if not self._speaking.is_set():
            self._complain('the microphone was not read in time: some sound is lost', 'lost')

    def _hear(self, samples: np.ndarray) -> None:
        """Put samples in the queue of the thread that listens; any thread may call this."""
        if self._speaking.is_set():
            return  # its own voice
        waiting = self._sounds.qsize() * len(samples) / audio.RATE
        if waiting > _BEHIND:
            late = f'{waiting:.0f} s of sound wait: the engine is too slow; some is left out'
            self._complain(late, 'late')
            return
        self._sounds.put(samples)

    def _play(self, samples: np.ndarray) -> None:
        """Hear a WAV file as fast as it would sound, once somebody takes the commands."""
        end = time.monotonic() + _PATIENCE
        while not self._command.get_subscription_count() and time.monotonic() < end:
            if self._over.wait(0.1):
                return
        step = int(_PIECE * audio.RATE)
        samples = np.pad(samples, (0, audio.RATE))  # the silence that ends what is said
        began = time.monotonic()
        for start in range(0, len(samples), step):
            if self._over.wait(max(0.0, began + start / audio.RATE - time.monotonic())):
                return
            self._hear(samples[start : start + step])
        self._sounds.put(None)

    # ---- commands out

    def _listen(self) -> None:
        """Hear what is in the queue until the node ends. The thread's own function."""
        while not self._over.is_set():
            try:
                samples = self._sounds.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                of = self._listener.finish() if samples is None else self._listener.feed(samples)
                for heard in of:
                    self._tell(heard)
            except Exception as error:  # noqa: BLE001  # one bad sound never ends the node
                self._complain(f'not heard: {type(error).__name__}: {error}')
            if samples is None:
                self.get_logger().info('the sound is at its end')

    def _tell(self, heard: listener.Heard) -> None:
        """Publish what was heard, and the command if it is one."""
        told = Heard(
            outcome=getattr(Heard, heard.outcome.value),
            text=heard.text,
            command=heard.command,
            confidence=heard.confidence,
            seconds=heard.seconds,
        )
        told.header.stamp = self.get_clock().now().to_msg()
        self._heard.publish(told)
        if heard.outcome is Outcome.COMMAND:
            self._command.publish(String(data=heard.command))
        if heard.outcome is not Outcome.PARTIAL:
            words = f'"{heard.text}"' + (f' as "{heard.command}"' if heard.command else '')
            self.get_logger().info(
                f'{heard.outcome.value} {heard.confidence:.2f} {words}: {_MEANS[heard.outcome]}'
            )

    def _say(self) -> None:
        """Speak what comes, one after the other, and hear nothing meanwhile."""
        while not self._over.is_set():
            try:
                text = self._to_say.get(timeout=0.2)
            except queue.Empty:
                continue
            program = shutil.which('espeak-ng') or shutil.which('espeak')
            if program is None:
                self._complain('say: espeak-ng is not installed: apt install espeak-ng')
                continue
            self._speaking.set()
            try:
                subprocess.run([program, '--', text], check=False, capture_output=True, timeout=60)  # noqa: S603
            except (OSError, subprocess.TimeoutExpired) as error:
                self._complain(f'say: {error}')
            finally:
                self._speaking.clear()

    def stop(self) -> None:
        """End the threads."""
        self._over.set()
        self._worker.join(timeout=5)
        with contextlib.suppress(AttributeError):
            self._source.close()  # a microphone


_MEANS = {
    Outcome.COMMAND: 'sent',
    Outcome.UNSURE: 'not sure enough, nothing is done',
    Outcome.EMPTY: 'no words, nothing is done',
    Outcome.ASLEEP: 'without the wake phrase, nothing is done',
    Outcome.AWAKE: 'listening',
}


def _audio(kind: str) -> type:
    """Return the type of messages on `audio`; either has bytes in `data`."""
    if kind in ('auto', 'AudioData'):
        try:
            from audio_common_msgs.msg import AudioData

            return AudioData
        except ImportError as error:
            if kind == 'AudioData':
                raise SettingsError(
                    'audio_type AudioData needs the package audio_common_msgs'
                ) from error
    return UInt8MultiArray


def _microphone(name: str, hear: Callable[[np.ndarray], None], lost: Callable[[], None]):
    """Return an open microphone; `hear` and `lost` are called from PortAudio's thread."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio, which it calls, is not there
        raise SettingsError(
            f'a microphone needs sounddevice and PortAudio ({error}): pip install sounddevice, '
            'apt install libportaudio2'
        ) from error

    def told(samples: np.ndarray, _count: int, _time: object, status) -> None:
        if status.input_overflow:
            lost()
        hear(samples[:, 0].copy())

    try:
        stream = sounddevice.InputStream(
            samplerate=audio.RATE, channels=1, dtype='float32', device=name or None, callback=told
        )
        stream.start()
    except (sounddevice.PortAudioError, ValueError) as error:
        raise SettingsError(f'microphone {name or "of the system"}: {error}') from error
    return stream


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    rclpy.init(args=args)
    try:
        node = VoiceNode()
    except (LisaError, ParameterException) as error:
        rclpy.logging.get_logger('voice').fatal(str(error))
        rclpy.try_shutdown()
        return 1
    spin(node)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # launch passes on what the terminal sent already
    node.stop()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
