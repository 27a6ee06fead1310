# SPDX-License-Identifier: Apache-2.0
"""Samples of audio messages, by the definitions of both packages named audio_common_msgs."""

import numpy as np
import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from lisa_ros.errors import DataError
from lisa_ros.voice.audio import RATE, to_pcm16
from lisa_ros.voice.audio_messages import MessageAudio

INFO = 'int32 format\nint32 channels\nint32 rate\nint32 chunk\n'
DATA = ''.join(
    f'{kind}[] {kind}_data\n' for kind in ('float32', 'int32', 'int16', 'int8', 'uint8')
)
AUDIO = 'audio_common_msgs/AudioData audio_data\naudio_common_msgs/AudioInfo info\n'
STAMPED = 'std_msgs/Header header\naudio_common_msgs/Audio audio\n'
OLD_STAMPED = (
    'std_msgs/Header header\naudio_common_msgs/AudioData audio\naudio_common_msgs/AudioInfo info\n'
)
TONE = (0.5 * np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE)).astype(np.float32)
EMPTY = {
    'float32_data': np.zeros(0, np.float32),
    'int32_data': np.zeros(0, np.int32),
    'int16_data': np.zeros(0, np.int16),
    'int8_data': np.zeros(0, np.int8),
    'uint8_data': np.zeros(0, np.uint8),
}


@pytest.fixture(scope='module', params=[STAMPED, OLD_STAMPED], ids=['new', 'old'])
def stamped(request):
    """Return a function that makes an AudioStamped of mgonzs13, sent through CDR."""
    store = get_typestore(Stores.ROS2_JAZZY)
    definitions = {
        'AudioInfo': INFO, 'AudioData': DATA, 'Audio': AUDIO, 'AudioStamped': request.param,
    }  # fmt: skip
    for name, text in definitions.items():
        store.register(get_types_from_msg(text, f'audio_common_msgs/msg/{name}'))
    types, kind = store.types, 'audio_common_msgs/msg/AudioStamped'
    time = types['builtin_interfaces/msg/Time'](0, 0)
    header = types['std_msgs/msg/Header'](time, '')

    def make(channels=1, rate=RATE, **lists):
        data = types['audio_common_msgs/msg/AudioData'](**{**EMPTY, **lists})
        info = types['audio_common_msgs/msg/AudioInfo'](8, channels, rate, 512)
        parts = [data, info]
        if request.param == STAMPED:
            parts = [types['audio_common_msgs/msg/Audio'](data, info)]
        message = types[kind](header, *parts)
        return store.deserialize_cdr(store.serialize_cdr(message, kind), kind)

    return make


def test_bytes_are_16_bit_samples():
    message = get_typestore(Stores.ROS2_JAZZY).types['std_msgs/msg/UInt8MultiArray'](
        layout=None, data=to_pcm16(TONE)
    )
    assert np.abs(MessageAudio().samples(message) - TONE).max() < 1e-4


@pytest.mark.parametrize(
    ('name', 'values', 'tolerance'),
    [
        ('float32_data', TONE, 0),
        ('int32_data', (TONE.astype(np.float64) * 2**31).astype(np.int32), 1e-6),
        ('int16_data', (TONE * 2**15).astype(np.int16), 1e-4),
        ('int8_data', (TONE * 2**7).astype(np.int8), 0.01),
        ('uint8_data', (TONE * 127 + 128).astype(np.uint8), 0.02),
    ],
)
def test_each_list_of_the_other_package_is_read(name, values, tolerance, stamped):
    samples = MessageAudio().samples(stamped(**{name: values}))
    assert samples.dtype == np.float32
    assert np.abs(samples - TONE).max() <= tolerance
    audio = stamped(**{name: values}).audio  # Audio or AudioData may be published, too
    assert np.abs(MessageAudio().samples(audio) - TONE).max() <= tolerance


def test_channels_are_mixed_and_other_rates_resampled(stamped):
    stereo = np.stack([TONE, -TONE], 1).ravel()
    assert np.abs(MessageAudio().samples(stamped(2, float32_data=stereo))).max() < 1e-6
    pytest.importorskip('soxr', reason='needs the packages of voice.txt')
    samples = MessageAudio().samples(stamped(1, 2 * RATE, float32_data=np.repeat(TONE, 2)))
    assert 0.9 * RATE <= len(samples) <= RATE
    assert np.abs(samples[100:] - TONE[100 : len(samples)]).max() < 0.05


@pytest.mark.parametrize('rate', [8000, 44100, 48000])
def test_pieces_of_a_stream_have_no_seams(rate, stamped):
    pytest.importorskip('soxr', reason='needs the packages of voice.txt')
    tone = (0.5 * np.sin(np.arange(rate) * 2 * np.pi * 440 / rate)).astype(np.float32)
    audio = MessageAudio()
    pieces = [
        audio.samples(stamped(1, rate, float32_data=tone[start : start + 512]))
        for start in range(0, rate, 512)
    ]
    samples = np.concatenate(pieces)
    assert 0.9 * RATE <= len(samples) <= RATE
    assert np.abs(samples[100:] - TONE[100 : len(samples)]).max() < 0.01


def test_a_topic_may_change_its_rate(stamped):
    pytest.importorskip('soxr', reason='needs the packages of voice.txt')
    audio = MessageAudio()
    for rate in (RATE, 48000, RATE):
        samples = audio.samples(stamped(1, rate, float32_data=TONE))
    assert np.array_equal(samples, TONE)


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'channels': 0, 'int16_data': np.ones(4, np.int16)}, '0 channels'),
        ({'channels': 3, 'int16_data': np.ones(4, np.int16)}, 'expected whole frames'),
        ({'rate': 0, 'int16_data': np.ones(4, np.int16)}, 'at 0 Hz'),
        ({'rate': 2**31 - 1, 'int16_data': np.ones(4, np.int16)}, 'check the audio driver'),
        ({'float32_data': np.float32([np.nan])}, 'NaN'),
        ({'int8_data': np.ones(1, np.int8), 'uint8_data': np.ones(1, np.uint8)}, 'one of them'),
    ],
)
def test_data_that_do_not_fit_their_description_are_an_error(fields, words, stamped):
    with pytest.raises(DataError, match=words):
        MessageAudio().samples(stamped(**fields))


def test_a_message_without_audio_is_an_error(stamped):
    with pytest.raises(DataError, match='set audio_type'):
        MessageAudio().samples(getattr(stamped().audio, 'info', None))
    assert len(MessageAudio().samples(stamped())) == 0
