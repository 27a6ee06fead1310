# SPDX-License-Identifier: Apache-2.0
"""Microphones of other rates and channels, with a stand-in for PortAudio: there is no device."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('soxr', reason="needs pip install 'lisa_ros[voice]'")

from lisa_ros.errors import DataError, SettingsError
from lisa_ros.voice.microphone import Microphone

RATE = 16000


class PortAudio(ModuleType):
    """The module sounddevice with one device that has some pairs of rate and channels."""

    class PortAudioError(Exception):
        """As sounddevice's."""

    def __init__(self, *formats, name='USB Sound'):
        super().__init__('sounddevice')
        self.formats, self.name, self.streams = formats, name, []

    def query_devices(self, device, kind):
        self._check(device, kind)
        rate, channels = self.formats[-1]
        return {'default_samplerate': float(rate), 'max_input_channels': channels}

    def _check(self, device, kind='input'):
        if device is not None and device not in self.name:
            raise ValueError(f'No {kind} device\nmatching {device!r}')
        if not self.formats:
            raise self.PortAudioError('Error querying device -1')

    def InputStream(self, *, device, samplerate, channels, **options):
        self._check(device)
        if (samplerate, channels) not in self.formats:
            raise self.PortAudioError('Error opening InputStream: Invalid sample rate')
        stream = SimpleNamespace(start=lambda: None, close=options['finished_callback'])
        self.streams.append((samplerate, channels, options))
        return stream


class Sink:
    """Keeps what a microphone delivers."""

    def __init__(self):
        self.pieces, self.overflows, self.ends = [], 0, []

    def take_samples(self, samples):
        self.pieces.append(samples)

    def report_overflow(self):
        self.overflows += 1

    def report_end(self, message):
        self.ends.append(message)


def opened(monkeypatch, library, name=''):
    monkeypatch.setitem(sys.modules, 'sounddevice', library)
    sink = Sink()
    return Microphone(name, sink), sink


def record(library, samples, overflow=False):
    """Deliver samples, (n, channels), in blocks, as PortAudio does."""
    _, _, options = library.streams[-1]
    for block in np.array_split(samples.astype(options['dtype']), 50):
        options['callback'](block, len(block), None, SimpleNamespace(input_overflow=overflow))


def tone(rate, channels):
    """Return two seconds of 440 Hz in the first channel, (n, channels)."""
    samples = np.zeros((2 * rate, channels))
    samples[:, 0] = 0.5 * channels * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    return samples


@pytest.mark.parametrize(
    ('formats', 'used'),
    [
        ([(16000, 1), (48000, 2)], (16000, 1)),
        ([(48000, 1), (48000, 2)], (48000, 1)),
        ([(44100, 1), (44100, 128)], (44100, 1)),
        ([(48000, 2)], (48000, 2)),
        ([(8000, 1)], (8000, 1)),
        ([(16000, 4)], (16000, 4)),
    ],
)
def test_audio_of_any_device_is_mono_at_16_khz(monkeypatch, formats, used):
    library = PortAudio(*formats)
    _, sink = opened(monkeypatch, library)
    assert [stream[:2] for stream in library.streams] == [used]
    record(library, tone(*used))
    samples = np.concatenate(sink.pieces)
    assert samples.ndim == 1
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(2 * RATE, abs=0.1 * RATE)  # the filter holds some back
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * RATE / len(samples) == pytest.approx(440, abs=1)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


def test_lost_audio_is_reported(monkeypatch):
    library = PortAudio((16000, 1))
    _, sink = opened(monkeypatch, library, 'USB')
    record(library, tone(16000, 1), overflow=True)
    assert sink.overflows == 50


@pytest.mark.parametrize(
    ('library', 'name', 'message'),
    [
        (PortAudio(), '', r'microphone \(default\): Error querying device -1; plug it in'),
        (PortAudio((16000, 1)), 'HDMI', "HDMI: No input device matching 'HDMI'; .*sounddevice"),
    ],
)
def test_a_microphone_that_cannot_be_opened_is_an_error(monkeypatch, library, name, message):
    with pytest.raises(SettingsError, match=message):
        opened(monkeypatch, library, name)


def test_another_rate_without_soxr_is_an_error_when_it_is_opened(monkeypatch):
    monkeypatch.setitem(sys.modules, 'soxr', None)
    opened(monkeypatch, PortAudio((16000, 1)))
    with pytest.raises(DataError, match=r'audio at 48000 Hz.*soxr'):
        opened(monkeypatch, PortAudio((48000, 2)))


def test_a_microphone_that_is_unplugged_is_reported_and_a_closed_one_is_not(monkeypatch):
    library = PortAudio((16000, 1))
    microphone, sink = opened(monkeypatch, library, 'USB')
    microphone.close()
    assert sink.ends == []
    _, sink = opened(monkeypatch, library, 'USB')
    library.streams[-1][2]['finished_callback']()
    (message,) = sink.ends
    assert message.startswith('microphone USB has ended: it was unplugged')
    assert 'start voice_node again' in message
