# SPDX-License-Identifier: Apache-2.0
"""voice_node over DDS: audio on a topic or from a WAV file, commands to the real node."""

import itertools
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')
pytest.importorskip('pocketsphinx', reason="needs pip install 'lisa_ros[voice]'")

from lisa_ros.msg import Heard
from rclpy.action import ActionServer
from rclpy.task import Future
from ros_graph import START, NodeProcess, Peer, executable, image, running_node
from std_msgs.msg import String, UInt8MultiArray

from lisa_ros.messages import bag
from lisa_ros.messages.segmentation import mask_from_message
from lisa_ros.perception import masks
from lisa_ros.resources import SAMPLE
from lisa_ros.ros.whisper_client import beginning
from lisa_ros.voice.audio import RATE, read_wav, to_pcm16

pytestmark = pytest.mark.ros

SOUNDS = Path(__file__).parent / 'data' / 'voice'
VOICE = executable('voice_node', 'lisa_ros.ros.voice_node')
READY_LOG = 'listens for'


class VoicePeer(Peer):
    """A peer that plays audio to the node and receives what it recognized."""

    def __init__(self, name='voice', topic='/audio', message_type=UInt8MultiArray):
        super().__init__()
        self.message_type = message_type
        self.subscribe(f'/{name}/heard', Heard, 'voice')
        self.subscribe('/command', String, 'command')
        self.audio = self.node.create_publisher(message_type, topic, 10)
        self.say = self.node.create_publisher(String, '/say', 10)

    def play(self, name):
        """Publish a WAV file and a second of silence, in pieces of 0.2 s."""
        samples = np.pad(read_wav(SOUNDS / f'{name}.wav'), RATE)
        for start in range(0, len(samples), RATE // 5):
            self.audio.publish(self.audio_message(to_pcm16(samples[start : start + RATE // 5])))
            self.settle(0.02)

    def audio_message(self, pcm):
        """Return a message of 16-bit samples, (2 n,) uint8."""
        if self.message_type.__name__ != 'AudioStamped':
            return self.message_type(data=pcm.tobytes())
        message = self.message_type()  # of mgonzs13: stereo, to try its description
        message.audio.info.rate, message.audio.info.channels = RATE, 2
        message.audio.audio_data.int16_data = np.repeat(pcm.view('<i2'), 2).tolist()
        return message

    def outcome(self):
        """Wait for the end of an utterance; return its message."""

        def final():
            return [m for m in self.received['voice'] if m.outcome != Heard.PARTIAL]

        self.wait(final, START, 'an outcome')
        self.settle(0.3)
        (message,) = final()
        self.received['voice'].clear()
        return message


@pytest.fixture(scope='module')
def voice(tmp_path_factory):
    log = tmp_path_factory.mktemp('voice') / 'voice.log'
    node = NodeProcess(log, {'audio_type': 'UInt8MultiArray', 'say': True}, program=VOICE)
    node.wait_for_output(READY_LOG)
    yield node
    assert node.stop() == 0, node.output()
    assert 'Traceback' not in node.output(), node.output()


@pytest.fixture(scope='module')
def peer(voice):
    peer = VoicePeer()
    peer.wait(lambda: peer.audio.get_subscription_count(), START, 'a subscriber to the audio')
    peer.settle(0.5)
    yield peer
    peer.close()


def commands(peer):
    texts = [message.data for message in peer.received['command']]
    peer.received['command'].clear()
    return texts


def test_a_spoken_command_is_reported_and_sent(peer):
    peer.play('find_the_yellow_mug')
    message = peer.outcome()
    assert message.outcome == Heard.COMMAND
    assert message.text == message.command == 'find the yellow mug'
    assert message.confidence > 0.5
    assert message.header.stamp.sec > 0
    assert commands(peer) == ['find the yellow mug']


def test_speech_that_is_no_command_is_reported_and_not_sent(peer):
    peer.play('open_the_window')
    assert peer.outcome().outcome == Heard.UNSURE
    assert commands(peer) == []


def test_broken_audio_is_logged_and_the_next_is_recognized(peer, voice):
    peer.audio.publish(UInt8MultiArray(data=b'abc'))
    voice.wait_for_output('3 bytes of audio')
    peer.play('stop')
    assert peer.outcome().command == 'stop'
    assert commands(peer) == ['stop']


def test_messages_of_audio_common_are_recognized(tmp_path):
    reason = 'needs audio_common_msgs of ROS, which has no wheel'
    audio_common = pytest.importorskip('audio_common_msgs.msg', reason=reason)
    node = NodeProcess(
        tmp_path / 'voice.log', {'audio_type': 'auto'},
        '-r', '__node:=other', '-r', 'audio:=/other/audio', program=VOICE,
    )  # fmt: skip
    message_type = getattr(audio_common, 'AudioStamped', audio_common.AudioData)
    peer = VoicePeer('other', '/other/audio', message_type)
    try:
        node.wait_for_output(READY_LOG)
        peer.wait(peer.audio.get_subscription_count, START, 'a subscriber to the audio')
        peer.settle(0.5)
        peer.play('find_the_yellow_mug')
        assert peer.outcome().command == 'find the yellow mug'
        assert commands(peer) == ['find the yellow mug']
    finally:
        peer.close()
        assert node.stop() == 0, node.output()


class WhisperServer(VoicePeer):
    """whisper_ros' action server as a stand-in: a goal ends with the next text."""

    def __init__(self, messages, action):
        super().__init__('hearing', '/hearing/audio')
        self.messages, self.action, self.goals = messages, action, []
        self.server = ActionServer(self.node, action.STT, '/whisper/listen', self._listen)

    async def _listen(self, goal):
        self.goals.append(Future())
        text = await self.goals[-1]
        goal.succeed()
        transcription = self.messages.Transcription(text=text, transcription_time=0.25)
        return self.action.STT.Result(transcription=transcription)

    def hear(self, text):
        """End the goal that waits with a text."""
        count = len(self.goals)
        self.wait(lambda: self.goals and not self.goals[-1].done(), START, 'a goal')
        self.goals[-1].set_result(text)
        self.wait(lambda: len(self.goals) > count, START, 'the next goal')


def test_transcripts_of_whisper_ros_become_commands(tmp_path):
    reason = 'needs whisper_msgs of whisper_ros, which has no wheel'
    messages = pytest.importorskip('whisper_msgs.msg', reason=reason)
    from whisper_msgs import action

    node = NodeProcess(
        tmp_path / 'voice.log', {'source': 'whisper_ros'}, '-r', '__node:=hearing', program=VOICE
    )
    server = None
    try:
        node.wait_for_output('start whisper_ros')  # it comes up later
        server = WhisperServer(messages, action)
        server.hear('Find the yellow mug.')
        heard = server.outcome()
        assert (heard.outcome, heard.command) == (Heard.COMMAND, 'find the yellow mug')
        assert heard.seconds == 0.25
        server.hear('What a lovely day it is.')
        assert server.outcome().outcome == Heard.UNSURE
        server.server.destroy()  # it ends while it listens, and comes back
        server.settle(1.5)
        server.server = ActionServer(server.node, action.STT, '/whisper/listen', server._listen)
        server.goals.clear()
        server.hear('Stop!')
        assert server.outcome().command == 'stop'
        assert commands(server) == ['find the yellow mug', 'stop']
    finally:
        if server is not None:
            server.close()
        assert node.stop() == 0, node.output()


def test_only_stop_of_whisper_ros_counts_while_the_node_speaks(tmp_path, monkeypatch):
    messages = pytest.importorskip('whisper_msgs.msg', reason='needs whisper_msgs of whisper_ros')
    from whisper_msgs import action

    espeak, spoken, silence = tmp_path / 'espeak-ng', tmp_path / 'spoken', tmp_path / 'silence'
    espeak.write_text(
        f'#!/bin/sh\necho "$2" >> {spoken}\nwhile [ ! -e {silence} ]; do sleep 0.02; done\n'
    )
    espeak.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    parameters = {'source': 'whisper_ros', 'say': True}
    with running_node(
        tmp_path / 'voice.log', parameters, '-r', '__node:=hearing', program=VOICE
    ) as node:
        node.wait_for_output(READY_LOG)
        server = WhisperServer(messages, action)
        try:
            server.wait(server.say.get_subscription_count, START, 'a subscriber')
            server.say.publish(String(data='Find the bowl.'))
            server.wait(spoken.exists, START, 'speech')
            server.settle(0.5)  # an utterance ended when its transcription began, 0.25 s ago
            server.hear('Find the bowl.')
            server.hear('Please stop.')
            assert server.outcome().command == 'stop'
            silence.touch()
            server.settle(1.5)  # an utterance may have begun a second before
            server.hear('Find the yellow mug.')
            assert server.outcome().command == 'find the yellow mug'
        finally:
            server.close()


@pytest.mark.parametrize(
    ('audio_time', 'expected'), [(0.0, 98.8), (2.0, 96.8), (0.75, 99.05), (2.5, 97.3)]
)
def test_whole_seconds_of_whisper_ros_lack_their_fraction(audio_time, expected):
    assert beginning(99.8, audio_time) == pytest.approx(expected)


def test_stop_is_heard_while_a_standing_query_is_answered_aloud(tmp_path, monkeypatch):
    espeak, spoken = tmp_path / 'espeak-ng', tmp_path / 'spoken'
    espeak.write_text(f'#!/bin/sh\necho "$2" >> {spoken}\nsleep 1\n')
    espeak.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    remap = [part for topic in ('audio', 'say') for part in ('-r', f'{topic}:=/aloud/{topic}')]
    parameters = {'audio_type': 'UInt8MultiArray', 'say': True}
    with running_node(
        tmp_path / 'voice.log', parameters, '-r', '__node:=aloud', *remap, program=VOICE
    ) as node:
        node.wait_for_output(READY_LOG)
        peer = VoicePeer('aloud', '/aloud/audio')
        try:
            say = peer.node.create_publisher(String, '/aloud/say', 10)
            peer.wait(
                lambda: say.get_subscription_count() and peer.audio.get_subscription_count(),
                START,
                'a subscriber',
            )
            answers = (f'The mug is at {n}.' for n in itertools.count())
            deadline = time.monotonic() + START
            while not any(m.outcome == Heard.COMMAND for m in peer.received['voice']):
                assert time.monotonic() < deadline, node.output()
                say.publish(String(data=next(answers)))
                if spoken.exists():
                    peer.play('stop')
                else:
                    peer.settle(0.05)
            assert 'stop' in commands(peer)
        finally:
            peer.close()


def test_a_microphone_that_is_unplugged_is_reported(tmp_path, monkeypatch):
    """PortAudio as a stand-in: there is no microphone to pull out."""
    (tmp_path / 'sounddevice.py').write_text(
        'import threading\n'
        'class PortAudioError(Exception):\n'
        '    pass\n'
        'class InputStream:\n'
        '    def __init__(self, finished_callback, **options):\n'
        '        self.start = threading.Timer(0.1, finished_callback).start\n'
        '    def close(self):\n'
        '        pass\n'
    )
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    with running_node(tmp_path / 'log', {'source': 'microphone'}, program=VOICE) as node:
        node.wait_for_output('microphone (default) has ended: it was unplugged')


def test_an_answer_is_spoken_or_a_warning_says_why_not(peer, voice):
    peer.say.publish(String(data='Sure.'))
    if shutil.which('espeak-ng') or shutil.which('espeak'):
        peer.settle(2.0)
        peer.play('stop')  # it listens again after it has spoken
        assert peer.outcome().command == 'stop'
    else:
        voice.wait_for_output('espeak-ng is not installed')


@pytest.mark.parametrize(
    ('setting', 'value', 'message'),
    [
        ('vocabulary', '/no/such.yaml', 'cannot be read'),
        ('source', '/no/such.wav', 'cannot be read as a WAV file'),
        ('engine', 'whisper', 'speech_model'),
        ('engine', 'ears', 'expected one of'),
        pytest.param(
            'source',
            'whisper_ros',
            'needs the package whisper_msgs',
            marks=pytest.mark.skipif(find_spec('whisper_msgs') is not None, reason='installed'),
        ),
        ('pause', 0.0, 'pause is 0.0; expected 0.1 to 5.0'),
    ],
)
def test_an_invalid_setting_is_one_log_line_and_the_node_exits(tmp_path, setting, value, message):
    node = NodeProcess(tmp_path / 'voice.log', {setting: value}, program=VOICE)
    assert node.process.wait(START) == 1
    assert message in node.output()
    assert 'Traceback' not in node.output()


def test_a_spoken_command_gives_the_mask_of_its_object(tmp_path):
    """A WAV file into voice_node while the sample bag plays into lisa_node in a loop."""
    lisa = NodeProcess(tmp_path / 'lisa.log', {'threads': 1})
    voice = NodeProcess(
        tmp_path / 'voice.log',
        {'source': SOUNDS / 'find_the_yellow_mug.wav'},
        '-r', 'command:=lisa/command', '-r', '__ns:=/', program=VOICE,
    )  # fmt: skip
    peer = Peer()
    try:
        peer.wait_until_active(lisa)
        answers = peer.received['segmentation']
        for frame in itertools.cycle(bag.read_images(SAMPLE / 'bag', '/camera/color/image_raw')):
            assert voice.process.poll() is None, voice.output()
            peer.publish_image(image(frame.pixels, stamp=divmod(frame.stamp, 10**9)), settle=False)
            peer.settle(0.1)  # as fast as it was recorded
            if answers:
                break
        (answer,) = answers
        stamp = answer.header.stamp.sec * 10**9 + answer.header.stamp.nanosec
        assert answer.query == 'find the yellow mug'
        assert answer.status == answer.FOUND
        ids = cv2.imread(str(SAMPLE / 'truth' / f'{stamp}.png'), cv2.IMREAD_UNCHANGED)
        assert masks.iou(mask_from_message(answer.instances[0]), ids == 4) > 0.8
    finally:
        peer.close()
        assert voice.stop() == 0
        assert lisa.stop() == 0
