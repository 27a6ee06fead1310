# SPDX-License-Identifier: Apache-2.0
"""The parameters of voice_node."""

from __future__ import annotations

from dataclasses import dataclass

from lisa_ros.settings_schema import ValidatedSettings, parameter


@dataclass(frozen=True)
class VoiceSettings(ValidatedSettings):
    """The settings of voice_node.

    Raises:
        SettingsError: a value of another type, outside its range or not among its choices.
    """

    source: str = parameter(
        'topic',
        'Where sound comes from: topic (audio), microphone, or a WAV file, played once',
        read_only=True,
    )
    audio_type: str = parameter(
        'auto',
        'Messages on audio, 16-bit samples, one channel, 16 kHz: AudioData (audio_common_msgs) or '
        'UInt8MultiArray (std_msgs); auto: AudioData where audio_common_msgs is installed',
        choices=('auto', 'AudioData', 'UInt8MultiArray'),
        read_only=True,
    )
    microphone: str = parameter(
        '',
        'Which microphone, by name or part of it (python -m sounddevice lists them); empty: the '
        "system's",
        read_only=True,
    )
    engine: str = parameter(
        'pocketsphinx',
        'What makes words of speech',
        choices=('pocketsphinx', 'moonshine', 'whisper'),
        read_only=True,
    )
    speech_model: str = parameter(
        '',
        'Model of engine whisper, folder or hub id (openai/whisper-small.en)',
        read_only=True,
    )
    device: str = parameter(
        'auto',
        'Where whisper runs: cpu or cuda; auto: the GPU where there is one',
        read_only=True,
    )
    vocabulary: str = parameter(
        'lisa-tabletop',
        'What can be said: a YAML file, or a model folder that has one (vocabulary.yaml); empty: '
        'anything (moonshine and whisper alone)',
        read_only=True,
    )
    confidence_threshold: float = parameter(
        0.7,
        'Confidence from which words are a command; below they are told on ~/heard alone [0..1]',
        low=0.0,
        high=1.0,
        read_only=True,
    )
    wake_phrase: str = parameter(
        '',
        'What must be said first ("hey lisa"); empty: everything said is meant for the robot',
        read_only=True,
    )
    awake: float = parameter(
        8.0,
        'How long the wake phrase alone makes it listen [s]',
        low=0.5,
        high=3600.0,
        read_only=True,
    )
    pause: float = parameter(
        0.5,
        'Silence that ends what is said [s]',
        low=0.1,
        high=5.0,
        read_only=True,
    )
    partial_every: float = parameter(
        0.7,
        'Time between two guesses at what is being said; 0: none before its end [s]',
        low=0.0,
        high=10.0,
        read_only=True,
    )
    say: bool = parameter(
        False,
        'Speak what comes on say, by espeak-ng; it does not listen meanwhile',
        read_only=True,
    )
