# SPDX-License-Identifier: Apache-2.0
"""voice_node over DDS: sound on a topic or from a WAV file, commands to the real node."""

import itertools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
pytest.importorskip('lisa_ros.msg', reason='needs the built interfaces: make setup')
pytest.importorskip('pocketsphinx', reason="needs pip install 'lisa_ros[voice]'")

from lisa_ros.msg import Heard
from ros_graph import START, NodeProcess, Peer, executable, image
from std_msgs.msg import String, UInt8MultiArray

from lisa_ros.messages import bag
from lisa_ros.messages.segmentation import mask_from_message
from lisa_ros.perception import masks
from lisa_ros.resources import SAMPLE
from lisa_ros.voice import audio as sound

pytestmark = pytest.mark.ros

SOUNDS = Path(__file__).parent / 'data' / 'voice'
VOICE = executable('voice_node', 'lisa_ros.ros.voice_node')
LISTENS = 'listens for'


class Ear(Peer):
    """A peer that also plays sound and hears what was understood."""

    def __init__(self, name='voice', audio='/audio', kind=UInt8MultiArray):
        super().__init__()
        self.kind = kind
        self.listen(f'/{name}/heard', Heard, 'voice')
        self.listen('/command', String, 'command')
        self.sound = self.node.create_publisher(kind, audio, 10)
        self.say = self.node.create_publisher(String, '/say', 10)

    def play(self, name):
        """Publish a WAV file and the quiet after it, a fifth of a second at a time."""
        samples = np.pad(sound.read_wav(SOUNDS / f'{name}.wav'), sound.RATE)
        for start in range(0, len(samples), sound.RATE // 5):
            data = sound.to_pcm16(samples[start : start + sound.RATE // 5]).tobytes()
            self.sound.publish(self.kind(data=data))
            self.settle(0.02)

    def outcome(self):
        """Wait for the end of what was said; return what became of it."""

        def last():
            return [h for h in self.heard['voice'] if h.outcome != Heard.PARTIAL]

        self.wait(last, START, 'an outcome')
        self.settle(0.3)
        (found,) = last()
        self.heard['voice'].clear()
        return found


@pytest.fixture(scope='module')
def voice(tmp_path_factory):
    log = tmp_path_factory.mktemp('voice') / 'voice.log'
    node = NodeProcess(log, {'audio_type': 'UInt8MultiArray', 'say': True}, program=VOICE)
    node.wait_to_say(LISTENS)
    yield node
    assert node.stop() == 0, node.said()
    assert 'Traceback' not in node.said(), node.said()


@pytest.fixture(scope='module')
def ear(voice):
    someone = Ear()
    someone.wait(lambda: someone.sound.get_subscription_count(), START, 'a node that listens')
    someone.settle(0.5)
    yield someone
    someone.close()


def commands(ear):
    found = [message.data for message in ear.heard['command']]
    ear.heard['command'].clear()
    return found


def test_what_was_said_is_told_and_sent_as_a_command(ear):
    ear.play('find_the_yellow_mug')
    heard = ear.outcome()
    assert heard.outcome == Heard.COMMAND
    assert heard.text == heard.command == 'find the yellow mug'
    assert heard.confidence > 0.5
    assert heard.header.stamp.sec > 0
    assert commands(ear) == ['find the yellow mug']


def test_other_talk_is_told_and_not_sent(ear):
    ear.play('open_the_window')
    assert ear.outcome().outcome == Heard.UNSURE
    assert commands(ear) == []


def test_broken_sound_is_named_and_the_next_is_heard(ear, voice):
    ear.sound.publish(UInt8MultiArray(data=b'abc'))
    voice.wait_to_say('3 bytes of sound')
    ear.play('stop')
    assert ear.outcome().command == 'stop'
    assert commands(ear) == ['stop']


def test_messages_of_audio_common_are_heard_as_well(tmp_path):
    reason = 'needs audio_common_msgs of ROS, which has no wheel'
    audio = pytest.importorskip('audio_common_msgs.msg', reason=reason)
    node = NodeProcess(
        tmp_path / 'voice.log', {'audio_type': 'auto'},
        '-r', '__node:=other', '-r', 'audio:=/other/audio', program=VOICE,
    )  # fmt: skip
    someone = Ear('other', '/other/audio', audio.AudioData)
    try:
        node.wait_to_say(LISTENS)
        someone.wait(someone.sound.get_subscription_count, START, 'a node that listens')
        someone.settle(0.5)
        someone.play('find_the_yellow_mug')
        assert someone.outcome().command == 'find the yellow mug'
        assert commands(someone) == ['find the yellow mug']
    finally:
        someone.close()
        assert node.stop() == 0, node.said()


def test_an_answer_is_spoken_or_it_is_said_why_not(ear, voice):
    ear.say.publish(String(data='Sure.'))
    if shutil.which('espeak-ng') or shutil.which('espeak'):
        ear.settle(2.0)
        ear.play('stop')  # it hears again when it has spoken
        assert ear.outcome().command == 'stop'
    else:
        voice.wait_to_say('espeak-ng is not installed')


@pytest.mark.parametrize(
    ('setting', 'value', 'message'),
    [
        ('vocabulary', '/no/such.yaml', 'cannot be read'),
        ('source', '/no/such.wav', 'no WAV file'),
        ('engine', 'whisper', 'speech_model'),
        ('engine', 'ears', 'expected one of'),
        ('pause', 0.0, 'pause out of range'),
    ],
)
def test_a_wrong_setting_is_one_line_and_the_node_ends(tmp_path, setting, value, message):
    node = NodeProcess(tmp_path / 'voice.log', {setting: value}, program=VOICE)
    assert node.process.wait(START) == 1
    assert message in node.said()
    assert 'Traceback' not in node.said()


def test_a_spoken_command_gives_the_mask_of_what_it_means(tmp_path):
    """A WAV file into voice_node while the sample bag plays into lisa_node, round and round."""
    lisa = NodeProcess(tmp_path / 'lisa.log', {'threads': 1})
    voice = NodeProcess(
        tmp_path / 'voice.log',
        {'source': SOUNDS / 'find_the_yellow_mug.wav'},
        '-r', 'command:=lisa/command', '-r', '__ns:=/', program=VOICE,
    )  # fmt: skip
    peer = Peer()
    try:
        peer.wait_until_active(lisa)
        answers = peer.heard['segmentation']
        for frame in itertools.cycle(bag.read_images(SAMPLE / 'bag', '/camera/color/image_raw')):
            assert voice.process.poll() is None, voice.said()
            peer.show(image(frame.pixels, stamp=divmod(frame.stamp, 10**9)), settle=False)
            peer.settle(0.1)  # as fast as it was recorded
            if answers:
                break
        (answer,) = answers
        stamp = answer.header.stamp.sec * 10**9 + answer.header.stamp.nanosec
        assert answer.query == 'find the yellow mug'
        assert answer.status == answer.FOUND
        ids = cv2.imread(str(SAMPLE / 'truth' / f'{stamp}.png'), cv2.IMREAD_UNCHANGED)
        assert masks.iou(mask_from_message(answer.instances[0].mask), ids == 4) > 0.8
    finally:
        peer.close()
        assert voice.stop() == 0
        assert lisa.stop() == 0
