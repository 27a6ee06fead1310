# SPDX-License-Identifier: Apache-2.0
"""Every setting of the nodes once: name, type, default, sentence, range, and when it may change.

The nodes' parameters, the files in config/ and the README's table are made from these classes or
compared with them by a test.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lisa_ros.settings_schema import ValidatedSettings, as_yaml, parameter
from lisa_ros.voice.settings import VoiceSettings


@dataclass(frozen=True)
class Settings(ValidatedSettings):
    """The settings of lisa_node.

    Raises:
        SettingsError: a value of another type, outside its range or not among its choices.
    """

    YAML_NOTES: ClassVar[tuple[str, ...]] = (
        "QoS of an input (sensor data: best effort, keep last 5), by the topic's full name:",
        'qos_overrides:',
        '  /image:',
        '    subscription: {reliability: reliable, history: keep_last, depth: 1}',
    )

    model: str = parameter(
        'lisa-tabletop',
        'The LISA model: lisa-tabletop (in the package), a folder, or a hub id such as '
        'xinlai/LISA-7B-v1',
        at_configure=True,
    )
    vision_tower: str = parameter(
        '',
        'CLIP of the model, folder or hub id; empty: the one that the checkpoint names',
        at_configure=True,
    )
    template: str = parameter(
        '',
        'Conversation template, llava_v1 or llava_llama_2 (13B-llama2); empty: as the model says',
        choices=('', 'llava_v1', 'llava_llama_2', 'plain'),
        at_configure=True,
    )
    device: str = parameter(
        'auto',
        'Where the model runs: cpu, cuda, cuda:1; auto: the GPU where there is one',
        at_configure=True,
    )
    precision: str = parameter(
        'auto',
        'Numbers of the weights; auto: bf16 on a GPU, fp32 on a CPU; int8 and nf4 need '
        'bitsandbytes',
        choices=('auto', 'fp32', 'bf16', 'fp16', 'int8', 'nf4'),
        at_configure=True,
    )
    threads: int = parameter(
        0,
        'CPU threads of the model; 1 where others use the cores, too: several wait for one '
        'another then, for seconds; 0: as torch chooses',
        low=0,
        high=256,
        at_configure=True,
    )
    autostart: bool = parameter(
        True,
        'Configure and activate at start; false: wait for a lifecycle manager',
        read_only=True,
    )
    image_transport: str = parameter(
        'raw',
        'Picture topic: raw is image, compressed is image/compressed (jpeg or png)',
        choices=('raw', 'compressed'),
        at_configure=True,
    )
    frames_kept: int = parameter(
        8,
        'Newest images, depth images and camera infos kept for matching [messages each]',
        low=1,
        high=100,
        at_configure=True,
    )
    depth_tolerance: float = parameter(
        0.05,
        'Largest difference of stamps between an image and its depth and camera info; without '
        'such a camera info the last one holds [s]',
        low=0.0,
        high=10.0,
    )
    image_timeout: float = parameter(
        30.0,
        'How long a command waits for the first image before it fails [s]',
        low=0.1,
        high=3600.0,
    )
    dialogue_turns: int = parameter(
        1,
        'Earlier questions and answers that a command may refer to ("and the bowl?"); 0: every '
        'command stands alone',
        low=0,
        high=16,
    )
    dialogue_boxes: bool = parameter(
        False,
        'Earlier answers tell the model where their masks were, as boxes in words; no released '
        'model was taught to read them',
    )
    goals_kept: int = parameter(
        64,
        'Goals of ~/segment that may wait; one more is rejected [goals]',
        low=1,
        high=1000,
    )
    camera: str = parameter(
        '',
        "The one camera's name: goals of ~/segment that name another are not answered; empty: any",
    )
    cameras: tuple[str, ...] = parameter(
        (),
        'Names of several cameras, [front, wrist]: topics are front/image, ~/front/mask and so '
        'on; empty: one camera, image and ~/mask',
        read_only=True,
    )
    image_is_rectified: bool = parameter(
        False,
        'Images are rectified (image_rect): P of camera_info holds, and no lens distortion',
    )
    target_frame: str = parameter(
        '',
        'Frame that ~/target is given in, by tf2_ros; empty: that of the image',
    )
    gravity_frame: str = parameter(
        '',
        'Frame whose z is up (odom, base_link): boxes stand upright; empty: the table in the '
        'depth image says what is up',
    )
    transform_timeout: float = parameter(
        0.1,
        "How long a transform at the image's stamp is waited for [s]",
        low=0.0,
        high=5.0,
    )
    tracker: str = parameter(
        'flow',
        'What carries masks to newer images on ~/tracked, while somebody listens there: optical '
        'flow, or SAM 2 or EdgeTAM from tracker_model',
        choices=('flow', 'sam2', 'edgetam', 'off'),
        at_configure=True,
    )
    tracker_model: str = parameter(
        '',
        'Weights of tracker sam2 or edgetam, folder or hub id (facebook/sam2.1-hiera-tiny)',
        at_configure=True,
    )
    requery: str = parameter(
        'never',
        'When the last question is asked again while ~/tracked is listened to: on drift (or when '
        'a thing is lost), on a timer, or never',
        choices=('drift', 'timer', 'never'),
    )
    requery_period: float = parameter(
        2.0,
        'Time between an answer and the same question again; of drift: at least [s]',
        low=0.1,
        high=3600.0,
    )
    requery_drift: float = parameter(
        0.5,
        'Drift of a tracked mask from which on the question is asked again [0..1]',
        low=0.0,
        high=1.0,
    )
    watch_rate: float = parameter(
        2.0,
        'Most answers a second to a standing command ("watch: the red mug") [Hz]',
        low=0.01,
        high=100.0,
    )
    max_new_tokens: int = parameter(
        512,
        'Longest answer [tokens]',
        low=1,
        high=2048,
    )
    confidence_threshold: float = parameter(
        0.0,
        'Masks with a lower score are left out, NOT_FOUND when none remains; 0: as the '
        'model says [0..1]',
        low=0.0,
        high=1.0,
    )
    refine: str = parameter(
        'auto',
        "Whether masks are brought to the image's edges: of a coarse mask decoder they gain, of "
        'the released ones they lose what the original would give; auto: as the model says',
        choices=('auto', 'on', 'off'),
    )
    overlay_opacity: float = parameter(
        0.45,
        'How strongly ~/overlay tints a mask [0..1]',
        low=0.0,
        high=1.0,
    )
    overlay_width: int = parameter(
        640,
        'Least width of ~/overlay; smaller images are enlarged [pixels]',
        low=1,
        high=3840,
    )
    diagnostics_period: float = parameter(
        1.0,
        'Time between two messages on /diagnostics [s]',
        low=0.1,
        high=60.0,
        read_only=True,
    )


if __name__ == '__main__':  # python -m lisa_ros.settings config
    for kind, node, file in (
        (Settings, 'lisa_node', 'lisa'),
        (VoiceSettings, 'voice_node', 'voice'),
    ):
        (Path(sys.argv[1]) / f'{file}.yaml').write_text(as_yaml(kind, node), encoding='utf-8')
