# SPDX-License-Identifier: Apache-2.0
"""WAV files as recorders, phones and telephone systems write them."""

import struct

import numpy as np
import pytest

from lisa_ros.errors import DataError
from lisa_ros.voice import audio

RATE = audio.RATE
WAVE = np.sin(np.arange(RATE // 10) * 0.1).astype(np.float32) * 0.8
PCM = 1, 0xFFFE  # format codes; 0xFFFE: WAVE_FORMAT_EXTENSIBLE


def wav(samples, code, channels=1, rate=RATE, data_size=None, before=b''):
    """Return a WAV file of encoded samples, (n,) of any type or (n, bytes) uint8."""
    width = samples.nbytes // len(samples)
    data = np.repeat(samples, channels, axis=0).tobytes()
    frame = width * channels
    subformat = b''
    if isinstance(code, tuple):  # an extensible header of this format
        subformat = struct.pack('<HHI', 22, 8 * width, 0) + struct.pack('<H', code[0])
        subformat += bytes.fromhex('000000001000800000aa00389b71')
        code = 0xFFFE
    header = struct.pack('<HHIIHH', code, channels, rate, rate * frame % 2**32, frame, 8 * width)
    header += subformat
    size = len(data) if data_size is None else data_size
    body = b'WAVE' + before + b'fmt ' + struct.pack('<I', len(header)) + header
    body += b'data' + struct.pack('<I', size) + data
    return b'RIFF' + struct.pack('<I', len(body)) + body


def three_bytes(samples):
    values = (samples * (2**23 - 1)).astype('<i4')
    return values.view(np.uint8).reshape(-1, 4)[:, :3]


S16 = (WAVE * 32767).astype('<i2')
G711 = {  # of ITU-T G.711: code -> sample of 16 bits
    7: {0xFF: 0, 0x7F: 0, 0x80: 32124, 0x00: -32124, 0xEF: 132, 0x6F: -132, 0xAA: 5372},
    6: {0xD5: 8, 0x55: -8, 0xAA: 32256, 0x2A: -32256, 0x80: 5504, 0x00: -5504, 0xC5: 264},
}
WAVS = {  # kind: (file, largest difference)
    'pcm 8': (wav(((WAVE + 1) * 127.5).astype(np.uint8), 1), 0.02),
    'pcm 16': (wav(S16, 1), 1e-4),
    'pcm 16 extensible': (wav(S16, (1,)), 1e-4),
    'pcm 24': (wav(three_bytes(WAVE), 1), 1e-6),
    'pcm 24 extensible': (wav(three_bytes(WAVE), (1,)), 1e-6),
    'pcm 32': (wav((WAVE.astype(float) * (2**31 - 1)).astype('<i4'), 1), 1e-6),
    'float 32': (wav(WAVE.astype('<f4'), 3), 0),
    'float 32 extensible': (wav(WAVE.astype('<f4'), (3,)), 0),
    'float 64': (wav(WAVE.astype('<f8'), 3), 0),
    'four channels': (wav(three_bytes(WAVE), (1,), channels=4), 1e-6),
    'other chunks': (wav(S16, 1, before=b'LIST' + struct.pack('<I', 3) + b'abc\0'), 1e-4),
    'stopped, size 0': (wav(S16, 1, data_size=0), 1e-4),
    'stopped, size unknown': (wav(S16, 1, data_size=0xFFFFFFFF), 1e-4),
    'stopped, half a sample': (wav(S16, 1, data_size=0xFFFFFFFF) + b'\1', 1e-4),
}


@pytest.mark.parametrize('kind', WAVS)
def test_every_kind_of_wav_file_has_its_samples(kind, tmp_path):
    data, tolerance = WAVS[kind]
    (tmp_path / 'x.wav').write_bytes(data)
    samples = audio.read_wav(tmp_path / 'x.wav')
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, WAVE, atol=tolerance)


@pytest.mark.parametrize('code', G711)
def test_samples_of_telephones_are_those_of_g711(code, tmp_path):
    codes = np.array(list(G711[code]), np.uint8)
    for header in (code, (code,)):
        (tmp_path / 'x.wav').write_bytes(wav(codes, header))
        samples = audio.read_wav(tmp_path / 'x.wav')
        assert (samples * 32768).tolist() == list(G711[code].values())


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (wav(S16, 2), 'samples of 2 bytes in ADPCM; expected PCM .*ffmpeg -i'),
        (wav(np.zeros(9, np.uint8), 0x55), 'in MP3; expected PCM .*ffmpeg -i'),
        (wav(np.zeros((9, 5), np.uint8), 1), 'samples of 5 bytes in PCM'),
        (wav(np.full(9, np.nan, '<f4'), 3), 'not numbers'),
        (wav(S16, 1, rate=1), 'a sample rate of 1 Hz'),
        (wav(S16, 1, rate=2**32 - 1), 'a sample rate of 4294967295 Hz'),
        (wav(S16, 1, channels=0), 'frames of 0 bytes for 0 channels'),
        (wav(S16, 1)[:40], r"it has no chunk b'data'"),
        (wav(S16, 1)[:20], 'cannot be read as a WAV file'),
        (b'fLaC' + bytes(40), r"starts with b'fLaC"),
        (b'ID3\x03' + bytes(40), r"starts with b'ID3"),
    ],
)
def test_a_wav_file_of_another_kind_is_an_error_with_the_cure(data, message, tmp_path):
    (tmp_path / 'x.wav').write_bytes(data)
    with pytest.raises(DataError, match=message):
        audio.read_wav(tmp_path / 'x.wav')
