# SPDX-License-Identifier: Apache-2.0
"""The parameters of lisa_node: name, type, default, description, range, when they may change.

They are written once, here. The node declares its parameters from this class (`ros2 param
describe` shows the descriptions), and the files in config/ and the README's table are generated:

    python -m lisa_ros.settings config      # config/lisa.yaml and config/voice.yaml
    python docs/tables.py                   # README.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lisa_ros.images.pixel_limit import DEFAULT_MAX_IMAGE_PIXELS, LARGEST_MAX_IMAGE_PIXELS
from lisa_ros.model.limits import Limits
from lisa_ros.perception.backend import AnswerStyle, InferenceOptions
from lisa_ros.resources import DEFAULT_MODEL
from lisa_ros.settings_schema import ValidatedSettings, as_yaml, parameter
from lisa_ros.tracking.requery import RequeryRule
from lisa_ros.vlm.profiles import PROFILES
from lisa_ros.voice.settings import VoiceSettings

_TOPIC_NAME = '[A-Za-z][A-Za-z0-9_]*'  # one level of a topic's name


@dataclass(frozen=True)
class Settings(ValidatedSettings):
    """The parameters of lisa_node.

    Raises:
        SettingsError: a value has another type, is outside its range or not among its choices.
    """

    YAML_NOTES: ClassVar[tuple[str, ...]] = (
        "QoS by the topic's full name. Inputs have by default best effort, volatile, keep last 5",
        '(a latched camera_info is received, too), outputs have reliable, volatile, keep last 10',
        '(~/segmentation 1000; ~/label_info is latched; not of ~/state and ~/places):',
        'qos_overrides:',
        '  /image:',
        '    subscription: {reliability: reliable, history: keep_last, depth: 1}',
        '  /camera_info:',
        '    subscription: {reliability: reliable, durability: transient_local}',
        '  /lisa/mask:',
        '    publisher: {reliability: best_effort, history: keep_last, depth: 1}',
    )

    # ---- model

    model: str = parameter(
        DEFAULT_MODEL,
        'LISA model: lisa-tabletop (part of this package), a folder, or a hub id such as '
        'xinlai/LISA-7B-v1. vlm+sam:NAME, with a folder or hub id such as '
        'Ricky06662/VisionReasoner-7B: a vision-language model that points, with SAM 2. '
        'http://server:8000 or https: the model of `lisa-ros serve` on another machine; images '
        'are sent there, and this machine needs no PyTorch',
        at_configure=True,
    )
    segmenter_model: str = parameter(
        '',
        'SAM 2 of a vlm+sam model: a folder or hub id; empty: facebook/sam2.1-hiera-large',
        at_configure=True,
    )
    vlm_url: str = parameter(
        '',
        'Server that runs the vision-language model of a vlm+sam model, such as '
        'http://gpu-server:8000/v1 (vLLM, SGLang, llama.cpp, transformers serve, clouds): images '
        'are sent there. NAME in model is its name at the server; empty: it runs in this node',
        at_configure=True,
    )
    api_key_env: str = parameter(
        '',
        'Name of the environment variable with the key for vlm_url, or with the token for a model '
        'on a server, not the key itself; empty: no key',
        at_configure=True,
    )
    api_key_file: str = parameter(
        '',
        'File with the key for vlm_url, or with the token for a model on a server, one line; '
        'empty: none. Give this or api_key_env',
        at_configure=True,
    )
    server_image: str = parameter(
        'jpeg',
        'How images are sent to a model on a server: jpeg; png or raw: without loss, so that '
        'masks are the same as of a local model. A region is cut out first; a JPEG is made '
        'smaller if the model does not see more',
        choices=('jpeg', 'png', 'raw'),
        at_configure=True,
    )
    server_jpeg_quality: int = parameter(
        90,
        'Quality of JPEG images that are sent to a model on a server [1..100]',
        minimum=1,
        maximum=100,
        at_configure=True,
    )
    fallback_model: str = parameter(
        '',
        'Model that answers while the server of model cannot be reached: any other model, which '
        'this machine loads, too, or a second server; empty: such requests end as UNREACHABLE',
        at_configure=True,
    )
    vision_tower: str = parameter(
        '',
        "Folder or hub id of the model's CLIP; empty: the one that the model's config.json names",
        at_configure=True,
    )
    template: str = parameter(
        '',
        'Conversation template of the prompt; empty: chosen from the config of the model '
        '(llava_llama_2 for LISA-13B-llama2, vicuna_v1 for SESAME, LISAt and READ, llava_v1 for '
        'LISA-7B and LISA++). Of a vlm+sam model: the profile, chosen from its name and type',
        choices=('', 'llava_v1', 'llava_llama_2', 'vicuna_v1', 'plain', *PROFILES),
        at_configure=True,
    )
    device: str = parameter(
        'auto',
        'Device of the model: cpu, cuda, cuda:1; auto: the GPU if there is one',
        at_configure=True,
    )
    precision: str = parameter(
        'auto',
        'Number format of the weights; auto: bf16 on a GPU, fp32 on a CPU. int8 and nf4 quantize '
        'the language model and need a GPU and bitsandbytes. No effect with vlm_url',
        choices=('auto', 'fp32', 'bf16', 'fp16', 'int8', 'nf4'),
        at_configure=True,
    )
    allow_download: bool = parameter(
        False,
        "Download the CLIP that a local folder's config.json names by its hub id. A hub id that "
        'you give as model or vision_tower is downloaded, with its CLIP, without this',
        at_configure=True,
    )
    model_sha256: str = parameter(
        '',
        'Load the model only if its folder, or its only weight file, has this SHA-256 '
        '(lisa-ros checksum MODEL prints it); empty: any',
        at_configure=True,
    )
    model_lock: str = parameter(
        '',
        'Lock file with the checksums, and the revisions of hub ids, of all that is loaded '
        '(lisa-ros checksum MODEL --write-lock FILE writes it); empty: none',
        at_configure=True,
    )
    max_input_side: int = parameter(
        Limits.input_side,
        'Largest input of CLIP and SAM that a model may claim [pixels]. Released models have 224 '
        'and 1024; the memory of an answer grows with the fourth power',
        minimum=32,
        maximum=16384,
        at_configure=True,
    )
    max_model_size: float = parameter(
        0.0,
        'Largest size of the weights in the chosen precision [GB]; 0: the free memory of the '
        'device',
        minimum=0.0,
        maximum=10000.0,
        at_configure=True,
    )
    cache_memory: int = parameter(
        512,
        'Memory for what the language model knows of earlier prompts, so that a further question '
        'about an image, or a further turn, reads only its own words [MiB]. 0: nothing is kept, '
        'and the same question about the same image has the same answer to the last bit',
        minimum=0,
        maximum=999_999,
        at_configure=True,
    )
    threads: int = parameter(
        0,
        'CPU threads of PyTorch; 0: as PyTorch chooses. Set 1 when other processes share the '
        'cores: oversubscribed threads can stall for seconds',
        minimum=0,
        maximum=256,
        at_configure=True,
    )

    isolation: str = parameter(
        'process',
        'Where the model runs. process: in a process of its own, which is ended and loaded again '
        'if the model hangs, crashes or uses too much memory; thread: in the node, which must be '
        'restarted then. No effect on a model on a server',
        choices=('process', 'thread'),
        at_configure=True,
    )
    worker_standby: bool = parameter(
        True,
        'Keep a second process ready that has imported PyTorch (about 270 MB): if the process of '
        'the model ends, the model is back a second later, not after five to eight. If the node '
        'dies, it waits 10 s for the next one (Linux). Needs isolation process',
        at_configure=True,
    )
    worker_memory_limit: int = parameter(
        0,
        'End the process of the model if its resident memory, without that of a GPU, is above '
        'this, and load the model again [MiB]; 0: no limit. Needs isolation process',
        minimum=0,
        maximum=999_999,
        at_configure=True,
    )

    # ---- node and inputs

    autostart: bool = parameter(
        True,
        'Configure and activate the node when it starts; false: wait for a lifecycle manager',
        read_only=True,
    )
    bond: bool = parameter(
        True,
        "Tell a lifecycle manager such as Nav2's that the active node is alive, on the topic bond "
        'with the name of the node as id. No effect without the package bondpy',
        read_only=True,
    )
    image_transport: str = parameter(
        'raw',
        'Type of the input image: raw (sensor_msgs/Image on image) or compressed (JPEG or PNG on '
        'image/compressed)',
        choices=('raw', 'compressed'),
        at_configure=True,
    )
    depth_transport: str = parameter(
        'raw',
        'Type of the depth image: raw (sensor_msgs/Image on depth), compressedDepth (PNG or RVL '
        'on depth/compressedDepth) or compressed (PNG or TIFF of 16 bits on depth/compressed)',
        choices=('raw', 'compressedDepth', 'compressed'),
        at_configure=True,
    )
    max_image_pixels: int = parameter(
        DEFAULT_MAX_IMAGE_PIXELS,
        'Largest width times height of an image or depth image [pixels]; larger ones are refused '
        'before they are decoded',
        minimum=1,
        maximum=LARGEST_MAX_IMAGE_PIXELS,
    )
    frames_kept: int = parameter(
        8,
        'Buffer size for matching images, depth images and camera infos by stamp [messages of '
        'each]',
        minimum=1,
        maximum=100,
        at_configure=True,
    )
    depth_tolerance: float = parameter(
        0.05,
        'Largest difference between the stamps of an image and of its depth image or camera info '
        '[s]. Without a camera info this close, the last one is used',
        minimum=0.0,
        maximum=10.0,
    )
    image_timeout: float = parameter(
        30.0,
        'A command fails if no image arrives within this time [s]',
        minimum=0.1,
        maximum=3600.0,
    )
    max_image_age: float = parameter(
        3.0,
        'A query ends as STALE_INPUT if the newest image came longer ago than this, or its stamp '
        'is further from the clock of the node [s]; 0: any age. A goal may set max_age instead',
        minimum=0.0,
        maximum=3600.0,
    )
    self_test_images: str = parameter(
        '',
        'Folder with an annotated image for ~/self_test (labelme, ReasonSeg or PNG masks): its '
        'first query must give its mask; empty: a rendered table with a mug',
    )
    max_command_chars: int = parameter(
        1000,
        'Length limit of a command, and of the query and the dialogue id of a goal [characters]; '
        'longer ones fail',
        minimum=1,
        maximum=100000,
    )
    dialogue_turns: int = parameter(
        1,
        'Earlier queries and answers in the prompt, so that a command can refer to them ("and the '
        'bowl?") [turns]; 0: none',
        minimum=0,
        maximum=16,
    )
    dialogue_boxes: bool = parameter(
        InferenceOptions.dialogue_boxes,
        'Write the boxes of earlier masks into the dialogue as text. No released model was '
        'trained with them',
    )
    goals_kept: int = parameter(
        64,
        'Goals of ~/segment that can wait [goals]; more are rejected',
        minimum=1,
        maximum=1000,
    )
    max_batch: int = parameter(
        0,
        'Largest number of requests that are answered at once when several are due, where the '
        'model can [requests]; 0: 8 on a GPU, 1 on a CPU, where it saves little and the first one '
        'waits for the last',
        minimum=0,
        maximum=64,
    )
    goals_per_client: int = parameter(
        32,
        'Unfinished goals of ~/segment that one client may have [goals]; more are aborted',
        minimum=1,
        maximum=1000,
    )
    stop_ends_goals: bool = parameter(
        False,
        'The command "stop" and ~/stop end goals of ~/segment, too, as CANCELLED; false: only '
        'commands, standing queries and continuous goals',
    )
    camera: str = parameter(
        '',
        'Name of the only camera: goals of ~/segment that name another camera fail; empty: any '
        'name is accepted',
    )
    cameras: tuple[str, ...] = parameter(
        (),
        'Names of several cameras, such as [front, wrist]: inputs are front/image and so on, '
        'outputs ~/front/mask and so on; empty: one camera with image and ~/mask',
        item_pattern=_TOPIC_NAME,
        items='names of letters, digits and _, starting with a letter',
        reserved_items=('tracked',),  # ~/tracked/mask is an output
        read_only=True,
    )

    # ---- geometry

    image_is_rectified: bool = parameter(
        False,
        'The images are rectified (image_rect): use P of the camera info without distortion; '
        'false: use K and D',
    )
    target_frame: str = parameter(
        '',
        "TF frame of the pose on ~/target; empty: the image's frame",
    )
    gravity_frame: str = parameter(
        '',
        'TF frame whose z axis points up (odom, base_link), for upright 3D boxes; empty: up is '
        'the normal of the table in the depth image',
    )
    map_frame: str = parameter(
        '',
        'Fixed TF frame, such as map, in which the node remembers where objects were seen '
        '(~/places, ~/recall); empty: it does not remember',
        at_configure=True,
    )
    places_file: str = parameter(
        '',
        'JSON file that keeps the remembered places over a restart; empty: none',
        at_configure=True,
    )
    places_kept: int = parameter(
        200,
        'Places that are remembered [objects]; the oldest ones are dropped',
        minimum=1,
        maximum=1000,
    )
    place_max_age: float = parameter(
        0.0,
        'A place is forgotten this long after the object was seen there [s]; 0: never',
        minimum=0.0,
        maximum=31_536_000.0,
    )
    place_merge_distance: float = parameter(
        0.15,
        'An object of the same name that is seen nearer to a place than this is the same one [m]',
        minimum=0.0,
        maximum=10.0,
    )
    transform_timeout: float = parameter(
        0.1,
        "Wait at most this long for a transform at the image's stamp [s]",
        minimum=0.0,
        maximum=5.0,
    )

    # ---- tracking

    tracker: str = parameter(
        'flow',
        'Tracker that moves masks to newer images and publishes them on ~/tracked, if subscribed: '
        'flow (optical flow), sam2 or edgetam (need tracker_model), or off',
        choices=('flow', 'sam2', 'edgetam', 'off'),
        at_configure=True,
    )
    tracker_model: str = parameter(
        '',
        'Weights of the tracker sam2 or edgetam: a folder or a hub id such as '
        'facebook/sam2.1-hiera-tiny',
        at_configure=True,
    )
    requery: str = parameter(
        'never',
        'Run the last query again while ~/tracked has subscribers: drift (when a mask drifts, an '
        'object is lost or nothing was found), timer (each requery_period), or never',
        choices=tuple(rule.value for rule in RequeryRule),
        off='never',
    )
    requery_period: float = parameter(
        2.0,
        'Time from an answer to the next run of the same query [s]; requery drift: the minimum '
        'time',
        minimum=0.1,
        maximum=3600.0,
    )
    requery_drift: float = parameter(
        0.5,
        'Drift of a tracked mask above which requery drift runs the query again [0..1]',
        minimum=0.0,
        maximum=1.0,
    )
    watch_rate: float = parameter(
        2.0,
        'Highest answer rate of a standing query ("watch: the red mug") and of a continuous goal '
        '[Hz]',
        minimum=0.01,
        maximum=100.0,
    )

    # ---- answers and outputs

    max_new_tokens: int = parameter(
        InferenceOptions.max_new_tokens,
        'Length limit of an answer [tokens]',
        minimum=1,
        maximum=2048,
    )
    answer_timeout: float = parameter(
        30.0,
        'Longest time for an answer [s]: then it stops with status TIMED_OUT and the masks that '
        'were ready; a model that does not stop is ended (see isolation). 0: no limit',
        minimum=0.0,
        maximum=86400.0,
    )
    confidence_threshold: float = parameter(
        0.0,
        'Drop masks with a lower score [0..1]; the status is NOT_FOUND if none remains; 0: the '
        "model's own threshold",
        minimum=0.0,
        maximum=1.0,
    )
    answer_style: str = parameter(
        AnswerStyle.AUTO.value,
        'What answers consist of: semantic (one mask of all objects that are meant), instances (a '
        'mask of each object), explain (a mask and the reason), text (words without a mask). Adds '
        'the words that the model was trained with to each query; without such words, and with '
        'auto, nothing is added',
        choices=tuple(style.value for style in AnswerStyle),
    )
    similarity_points: str = parameter(
        'auto',
        'Prompt SAM with points, too, where the image resembles [SEG], as READ does. auto: if the '
        'model is a READ',
        choices=('auto', 'on', 'off'),
    )
    refine: str = parameter(
        'auto',
        'Refine mask boundaries with image edges. Improves coarse decoders (lisa-tabletop); makes '
        "released LISA masks differ from the original. auto: as in the model's config.json",
        choices=('auto', 'on', 'off'),
    )
    verify: bool = parameter(
        InferenceOptions.verify,
        'Show a vlm+sam model its own masks and ask whether one of them is right: NOT_FOUND if it '
        'says none. For models that always point; takes one more reading of the image',
    )
    overlay_opacity: float = parameter(
        0.45,
        'Opacity of masks on ~/overlay [0..1]',
        minimum=0.0,
        maximum=1.0,
    )
    overlay_width: int = parameter(
        640,
        'Smallest width of ~/overlay [pixels]; smaller images are enlarged to it',
        minimum=1,
        maximum=3840,
    )
    diagnostics_period: float = parameter(
        1.0,
        'Period of messages on /diagnostics [s]',
        minimum=0.1,
        maximum=60.0,
        read_only=True,
    )


if __name__ == '__main__':  # python -m lisa_ros.settings config
    for settings_class, node, file in (
        (Settings, 'lisa_node', 'lisa'),
        (VoiceSettings, 'voice_node', 'voice'),
    ):
        path = Path(sys.argv[1]) / f'{file}.yaml'
        path.write_text(as_yaml(settings_class, node), encoding='utf-8')
