# SPDX-License-Identifier: Apache-2.0
"""The parameters of voice_node: name, type, default, description, range."""

from __future__ import annotations

from dataclasses import dataclass

from lisa_ros.resources import DEFAULT_MODEL
from lisa_ros.settings_schema import ValidatedSettings, parameter

ENGINES = ('pocketsphinx', 'moonshine', 'whisper')  # of voice/engines.py


@dataclass(frozen=True)
class VoiceSettings(ValidatedSettings):
    """The parameters of voice_node. All are read when the node starts.

    Raises:
        SettingsError: a value has another type, is outside its range or not among its choices.
    """

    source: str = parameter(
        'topic',
        "Audio source: 'topic' (messages on `audio`), 'microphone', or the path of a WAV file, "
        "which is played once. 'whisper_ros': transcripts of the action whisper/listen of "
        'whisper_ros, which has its own microphone and engine; engine, pause and partial_every '
        'have no effect then',
        read_only=True,
    )
    audio_type: str = parameter(
        'auto',
        'Message type on `audio`: AudioData of the audio_common_msgs of ros-drivers or '
        'UInt8MultiArray of std_msgs (16-bit samples, mono, 16 kHz), or AudioStamped of the '
        'audio_common_msgs of mgonzs13 (any samples); auto: that of the installed package, or '
        'UInt8MultiArray without one',
        choices=('auto', 'AudioData', 'AudioStamped', 'UInt8MultiArray'),
        read_only=True,
    )
    microphone: str = parameter(
        '',
        'Name of the microphone or part of it, as `python -m sounddevice` lists it; empty: the '
        "system's default",
        read_only=True,
    )
    engine: str = parameter(
        'pocketsphinx',
        'Speech recognition engine. pocketsphinx recognizes only sentences of the vocabulary; '
        'moonshine and whisper recognize any English',
        choices=ENGINES,
        read_only=True,
    )
    speech_model: str = parameter(
        '',
        'Model of the engine whisper: a folder or a hub id such as openai/whisper-small.en. '
        'Required for whisper, not used by the others',
        read_only=True,
    )
    device: str = parameter(
        'auto',
        'Device of the engine whisper: cpu or cuda; auto: the GPU if there is one',
        read_only=True,
    )
    vocabulary: str = parameter(
        DEFAULT_MODEL,
        'Commands that can be spoken: a YAML file, or a model folder with vocabulary.yaml; empty: '
        'any text is a command (not with pocketsphinx)',
        read_only=True,
    )
    confidence_threshold: float = parameter(
        0.7,
        'Lowest confidence of a command [0..1]. Utterances below it are published on ~/heard only',
        minimum=0.0,
        maximum=1.0,
        read_only=True,
    )
    wake_phrase: str = parameter(
        '',
        'Phrase that must precede each command, such as "hey lisa"; empty: all speech can be a '
        'command. "stop" is accepted without it',
        read_only=True,
    )
    awake: float = parameter(
        8.0,
        'If the wake phrase is spoken alone, a command is accepted for this time after it [s]',
        minimum=0.5,
        maximum=3600.0,
        read_only=True,
    )
    pause: float = parameter(
        0.5,
        'Silence that ends an utterance [s]. With a shorter pause the answer comes earlier, but a '
        'slow speaker may be cut off',
        minimum=0.1,
        maximum=5.0,
        read_only=True,
    )
    partial_every: float = parameter(
        0.7,
        'Period of partial results while a person is speaking [s]; 0: no partial results, and '
        '"stop" is recognized only after the utterance',
        minimum=0.0,
        maximum=10.0,
        read_only=True,
    )
    say: bool = parameter(
        False,
        'Speak the texts on the topic `say` with espeak-ng: always the newest one, and none that '
        'was just spoken. The node does not listen while it speaks, but for two seconds after '
        'each text',
        read_only=True,
    )
