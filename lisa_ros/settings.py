# SPDX-License-Identifier: Apache-2.0
"""Every setting of the nodes once: name, type, default, sentence, range, and when it may change.

The nodes' parameters, the files in config/ and the README's table are made from these classes or
compared with them by a test.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisa_ros.errors import SettingsError


@dataclass(frozen=True)
class About:
    """What is to know about a setting besides its name, type and default."""

    sentence: str  # what it does, with the unit in brackets
    low: float | None = None  # both ends belong to the range
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False  # fixed when the node starts
    at_configure: bool = False  # read on configure: it may change only while unconfigured


class Checked:
    """A dataclass of settings; building one checks every value."""

    def __post_init__(self) -> None:
        """Check every value; integers are taken where a float is asked for, lists as tuples."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check(field, value)
            if isinstance(value, list):  # [''] is ROS's way to say an empty list
                object.__setattr__(self, field.name, tuple(filter(None, value)))


def setting(default: Any, sentence: str, **about: Any) -> Any:
    """Return a dataclass field that carries an `About`; the keywords are its fields."""
    return dataclasses.field(default=default, metadata={'about': About(sentence, **about)})


@dataclass(frozen=True)
class Settings(Checked):
    """The settings of lisa_node.

    Raises:
        SettingsError: a value of another type, outside its range or not among its choices.
    """

    model: str = setting(
        'lisa-tabletop',
        'The LISA model: lisa-tabletop (in the package), a folder, or a hub id such as '
        'xinlai/LISA-7B-v1',
        at_configure=True,
    )
    vision_tower: str = setting(
        '',
        'CLIP of the model, folder or hub id; empty: the one that the checkpoint names',
        at_configure=True,
    )
    template: str = setting(
        '',
        'Conversation template, llava_v1 or llava_llama_2 (13B-llama2); empty: as the model says',
        choices=('', 'llava_v1', 'llava_llama_2', 'plain'),
        at_configure=True,
    )
    device: str = setting(
        'auto',
        'Where the model runs: cpu, cuda, cuda:1; auto: the GPU where there is one',
        at_configure=True,
    )
    precision: str = setting(
        'auto',
        'Numbers of the weights; auto: bf16 on a GPU, fp32 on a CPU; int8 and nf4 need '
        'bitsandbytes',
        choices=('auto', 'fp32', 'bf16', 'fp16', 'int8', 'nf4'),
        at_configure=True,
    )
    threads: int = setting(
        0,
        'CPU threads of the model; 1 where others use the cores, too: several wait for one '
        'another then, for seconds; 0: as torch chooses',
        low=0,
        high=256,
        at_configure=True,
    )
    autostart: bool = setting(
        True,
        'Configure and activate at start; false: wait for a lifecycle manager',
        read_only=True,
    )
    image_transport: str = setting(
        'raw',
        'Picture topic: raw is image, compressed is image/compressed (jpeg or png)',
        choices=('raw', 'compressed'),
        at_configure=True,
    )
    frames_kept: int = setting(
        8,
        'Newest images, depth images and camera infos kept for matching [messages each]',
        low=1,
        high=100,
        at_configure=True,
    )
    depth_tolerance: float = setting(
        0.05,
        'Largest difference of stamps between an image and its depth and camera info; without '
        'such a camera info the last one holds [s]',
        low=0.0,
        high=10.0,
    )
    image_timeout: float = setting(
        30.0,
        'How long a command waits for the first image before it fails [s]',
        low=0.1,
        high=3600.0,
    )
    dialogue_turns: int = setting(
        1,
        'Earlier questions and answers that a command may refer to ("and the bowl?"); 0: every '
        'command stands alone',
        low=0,
        high=16,
    )
    dialogue_boxes: bool = setting(
        False,
        'Earlier answers tell the model where their masks were, as boxes in words; no released '
        'model was taught to read them',
    )
    goals_kept: int = setting(
        64,
        'Goals of ~/segment that may wait; one more is rejected [goals]',
        low=1,
        high=1000,
    )
    camera: str = setting(
        '',
        "The one camera's name: goals of ~/segment that name another are not answered; empty: any",
    )
    cameras: tuple[str, ...] = setting(
        (),
        'Names of several cameras, [front, wrist]: topics are front/image, ~/front/mask and so '
        'on; empty: one camera, image and ~/mask',
        read_only=True,
    )
    image_is_rectified: bool = setting(
        False,
        'Images are rectified (image_rect): P of camera_info holds, and no lens distortion',
    )
    target_frame: str = setting(
        '',
        'Frame that ~/target is given in, by tf2_ros; empty: that of the image',
    )
    gravity_frame: str = setting(
        '',
        'Frame whose z is up (odom, base_link): boxes stand upright; empty: the table in the '
        'depth image says what is up',
    )
    transform_timeout: float = setting(
        0.1,
        "How long a transform at the image's stamp is waited for [s]",
        low=0.0,
        high=5.0,
    )
    tracker: str = setting(
        'flow',
        'What carries masks to newer images on ~/tracked, while somebody listens there: optical '
        'flow, or SAM 2 or EdgeTAM from tracker_model',
        choices=('flow', 'sam2', 'edgetam', 'off'),
        at_configure=True,
    )
    tracker_model: str = setting(
        '',
        'Weights of tracker sam2 or edgetam, folder or hub id (facebook/sam2.1-hiera-tiny)',
        at_configure=True,
    )
    requery: str = setting(
        'never',
        'When the last question is asked again while ~/tracked is listened to: on drift (or when '
        'a thing is lost), on a timer, or never',
        choices=('drift', 'timer', 'never'),
    )
    requery_period: float = setting(
        2.0,
        'Time between an answer and the same question again; of drift: at least [s]',
        low=0.1,
        high=3600.0,
    )
    requery_drift: float = setting(
        0.5,
        'Drift of a tracked mask from which on the question is asked again [0..1]',
        low=0.0,
        high=1.0,
    )
    watch_rate: float = setting(
        2.0,
        'Most answers a second to a standing command ("watch: the red mug") [Hz]',
        low=0.01,
        high=100.0,
    )
    max_new_tokens: int = setting(
        512,
        'Longest answer [tokens]',
        low=1,
        high=2048,
    )
    confidence_threshold: float = setting(
        0.0,
        'Masks with a lower score are left out, NOT_FOUND when none remains; 0: as the '
        'model says [0..1]',
        low=0.0,
        high=1.0,
    )
    refine: str = setting(
        'auto',
        "Whether masks are brought to the image's edges: of a coarse mask decoder they gain, of "
        'the released ones they lose what the original would give; auto: as the model says',
        choices=('auto', 'on', 'off'),
    )
    overlay_opacity: float = setting(
        0.45,
        'How strongly ~/overlay tints a mask [0..1]',
        low=0.0,
        high=1.0,
    )
    overlay_width: int = setting(
        640,
        'Least width of ~/overlay; smaller images are enlarged [pixels]',
        low=1,
        high=3840,
    )
    diagnostics_period: float = setting(
        1.0,
        'Time between two messages on /diagnostics [s]',
        low=0.1,
        high=60.0,
        read_only=True,
    )


@dataclass(frozen=True)
class VoiceSettings(Checked):
    """The settings of voice_node.

    Raises:
        SettingsError: a value of another type, outside its range or not among its choices.
    """

    source: str = setting(
        'topic',
        'Where sound comes from: topic (audio), microphone, or a WAV file, played once',
        read_only=True,
    )
    audio_type: str = setting(
        'auto',
        'Messages on audio, 16-bit samples, one channel, 16 kHz: AudioData (audio_common_msgs) or '
        'UInt8MultiArray (std_msgs); auto: AudioData where audio_common_msgs is installed',
        choices=('auto', 'AudioData', 'UInt8MultiArray'),
        read_only=True,
    )
    microphone: str = setting(
        '',
        'Which microphone, by name or part of it (python -m sounddevice lists them); empty: the '
        "system's",
        read_only=True,
    )
    engine: str = setting(
        'pocketsphinx',
        'What makes words of speech',
        choices=('pocketsphinx', 'moonshine', 'whisper'),
        read_only=True,
    )
    speech_model: str = setting(
        '',
        'Model of engine whisper, folder or hub id (openai/whisper-small.en)',
        read_only=True,
    )
    device: str = setting(
        'auto',
        'Where whisper runs: cpu or cuda; auto: the GPU where there is one',
        read_only=True,
    )
    vocabulary: str = setting(
        'lisa-tabletop',
        'What can be said: a YAML file, or a model folder that has one (vocabulary.yaml); empty: '
        'anything (moonshine and whisper alone)',
        read_only=True,
    )
    confidence_threshold: float = setting(
        0.7,
        'Confidence from which words are a command; below they are told on ~/heard alone [0..1]',
        low=0.0,
        high=1.0,
        read_only=True,
    )
    wake_phrase: str = setting(
        '',
        'What must be said first ("hey lisa"); empty: everything said is meant for the robot',
        read_only=True,
    )
    awake: float = setting(
        8.0,
        'How long the wake phrase alone makes it listen [s]',
        low=0.5,
        high=3600.0,
        read_only=True,
    )
    pause: float = setting(
        0.5,
        'Silence that ends what is said [s]',
        low=0.1,
        high=5.0,
        read_only=True,
    )
    partial_every: float = setting(
        0.7,
        'Time between two guesses at what is being said; 0: none before its end [s]',
        low=0.0,
        high=10.0,
        read_only=True,
    )
    say: bool = setting(
        False,
        'Speak what comes on say, by espeak-ng; it does not listen meanwhile',
        read_only=True,
    )


def about(field: dataclasses.Field) -> About:
    """Return what is to know about one of `dataclasses.fields(Settings)`."""
    return field.metadata['about']


def check(field: dataclasses.Field, value: Any) -> None:
    """Raise a SettingsError if the value is not one that the field takes."""
    known = about(field)
    kind = type(field.default)
    if kind is tuple:
        _check_names(field.name, value)
        return
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise SettingsError(f'{field.name} is {value!r}; expected a {kind.__name__}')
    if known.choices and value not in known.choices:
        choices = ', '.join(repr(choice) for choice in known.choices)
        raise SettingsError(f'{field.name} is {value!r}; expected one of {choices}')
    # Not "value < low": a NaN is in no range and must not slip through.
    if known.low is not None and not known.low <= value <= known.high:
        raise SettingsError(f'{field.name} is {value}; expected {known.low} to {known.high}')


def _check_names(name: str, value: Any) -> None:
    """Raise a SettingsError if the value is no list of names that topics can have."""
    if value in ([''], ('',)):  # none: ROS cannot tell what an empty list is of
        return
    named = isinstance(value, list | tuple) and all(
        isinstance(one, str) and re.fullmatch('[A-Za-z][A-Za-z0-9_]*', one) for one in value
    )
    if not named or len(set(value)) < len(value) or 'tracked' in value:
        raise SettingsError(
            f'{name} is {value!r}; expected names that differ, of letters, digits and _, none of '
            'them "tracked"'
        )


def as_yaml(kind: type[Checked], node: str) -> str:
    """Return the file in config/ that has every parameter of a node with its default."""
    lines = [
        '# SPDX-License-Identifier: Apache-2.0',
        f'# Every parameter of {node} with its default; made from lisa_ros/settings.py.',
    ]
    if any(about(field).at_configure for field in dataclasses.fields(kind)):
        lines += [
            '# Those marked * are read on configure: change them while the node is unconfigured.'
        ]
    lines += ['/**:', '  ros__parameters:']
    for field in dataclasses.fields(kind):
        known = about(field)
        notes = []
        if known.choices:
            notes.append('one of ' + ', '.join(choice or "''" for choice in known.choices))
        if known.low is not None:
            notes.append(f'{known.low:g} to {known.high:g}')
        notes += ['*'] * known.at_configure + ['read-only'] * known.read_only
        sentence = f'{known.sentence} ({"; ".join(notes)})' if notes else known.sentence
        lines += [f'    # {line}' for line in textwrap.wrap(sentence, 92)]
        # JSON of a number or a truth value is YAML too; words need no quotes unless empty.
        value = field.default if isinstance(field.default, str) else json.dumps(field.default)
        if field.default == ():
            value = "['']"
        lines.append(f'    {field.name}: {value or repr("")}')
    if kind is not Settings:
        return '\n'.join(lines) + '\n'
    lines += [
        '',
        "    # QoS of an input (sensor data: best effort, keep last 5), by the topic's full name:",
        '    # qos_overrides:',
        '    #   /image:',
        '    #     subscription: {reliability: reliable, history: keep_last, depth: 1}',
    ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':  # python -m lisa_ros.settings config
    for kind, node, file in (
        (Settings, 'lisa_node', 'lisa'),
        (VoiceSettings, 'voice_node', 'voice'),
    ):
        (Path(sys.argv[1]) / f'{file}.yaml').write_text(as_yaml(kind, node), encoding='utf-8')
