# SPDX-License-Identifier: Apache-2.0
"""Random messages and requests that no honest client sends, for each input of the node.

Each function takes a `random.Random` and depends on nothing else, so a seed repeats a flood. All
messages are valid for DDS: what is wrong is their content.
"""

from __future__ import annotations

import array
import random
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState
from lisa_ros.action import Segment
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_srvs.srv import Trigger
from type_description_interfaces.srv import GetTypeDescription

NAN, INFINITY = float('nan'), float('inf')
_NUMBERS = (NAN, INFINITY, -INFINITY, 0.0, -1.0, 1e-30, 1e30, 1e300, 0.5, 50.0)
_SIDES = (0, 1, 2, 3, 7, 16, 63, 64, 65, 160)  # of images that carry all their pixels
_HUGE = (2**16, 2**31 - 1, 2**31, 2**32 - 1)  # of images that do not
_ENCODINGS = {  # bytes of a pixel
    'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1, 'mono16': 2, 'rgb16': 6, '8UC1': 1,
    '8UC3': 3, '16UC1': 2, '16SC1': 2, '32FC1': 4, '64FC1': 8, '32SC1': 4, '32FC3': 12,
    'bayer_rggb8': 1, 'bayer_gbrg16': 2, 'yuv422': 2, 'yuv422_yuy2': 2, 'nv12': 2, 'nv21': 2,
}  # fmt: skip
_NO_ENCODINGS = ('', 'RGB8', 'rgb', 'rgb8; jpeg compressed', '8UC', '99XC7', '\N{SNOWMAN}')
_TEXTS = ('', ' ', '\n\t', '\N{SNOWMAN}' * 50, '<image>', '[SEG]', '{}', '%s%n', '../../etc', '"')
_NAMES = ('', '.', 'a b', '\N{SNOWMAN}', 'x' * 3000, 'qos_overrides./image.subscription.depth')
_LISTS = {  # fields of ParameterValue that hold lists
    'bool_array_value': [True], 'integer_array_value': [2**63 - 1], 'byte_array_value': [b'\xff'],
    'double_array_value': [NAN], 'string_array_value': ['', '\N{SNOWMAN}'],
}  # fmt: skip
_LABELS = ('', 'create', 'fly', 'x' * 3000, '\N{SNOWMAN}', 'transition_success', 'on_activate')
# Deactivate and the shutdowns would work in the active state: the flood asks them on purpose only.
_IMPOSSIBLE = (0, 1, 2, 3, *range(8, 100), 250, 255)
QUERIES = ('the mug', 'what can I eat?', 'the other one', 'everything on the table', 'the dragon')


@dataclass(frozen=True)
class ServiceRequest:
    """A request to a service of the node."""

    service_type: type
    name: str  # below the node's name
    request: Any


def huge_text(rng: random.Random) -> str:
    """Return a long text: most have thousands of characters, one in twenty half a million."""
    unit = rng.choice(('a', 'the mug ', '\N{SNOWMAN}', '\n', "' "))
    return unit * (rng.choice((100, 1000, 5000)) if rng.random() < 0.95 else 500_000 // len(unit))


def stamp(rng: random.Random) -> Time:
    """Return a stamp that is far from now, or not valid."""
    seconds = rng.choice((-(2**31), -1, 0, 1, 1_700_000_000, 2**31 - 1))
    return Time(sec=seconds, nanosec=rng.choice((0, 999_999_999, 10**9, 2**32 - 1)))


def image(rng: random.Random) -> Image:
    """Return an image with up to three faults: size, step, encoding, stamp, frame."""
    encoding = rng.choice(tuple(_ENCODINGS))
    height, width = rng.choice(_SIDES), rng.choice(_SIDES)
    step = width * _ENCODINGS[encoding]
    message = Image(height=height, width=width, encoding=encoding, step=step)
    content = rng.randbytes(height * step)
    if rng.random() < 0.1:  # floats that are not numbers
        content = b'\xff' * len(content)
    for fault in rng.sample(range(7), rng.randrange(4)):
        content = _spoil(rng, message, content, fault)
    message.data = array.array('B', content)
    return message


def _spoil(rng: random.Random, message: Image, content: bytes, fault: int) -> bytes:
    """Add a fault to an image; return its bytes."""
    if fault == 0:
        return content[: rng.randrange(len(content) + 1)]
    if fault == 1:
        return content + rng.randbytes(rng.randrange(1, 5000))
    if fault == 2:
        message.step = rng.choice((0, 1, message.step + 1, 2**31, 2**32 - 1))
    elif fault == 3:
        message.encoding = rng.choice((*_NO_ENCODINGS, *_ENCODINGS, huge_text(rng)))
    elif fault == 4:
        message.height = rng.choice(_HUGE)
    elif fault == 5:
        message.width = rng.choice(_HUGE)
    else:
        message.header.stamp = stamp(rng)
        message.header.frame_id = rng.choice(('', '\N{SNOWMAN}', huge_text(rng)))
        message.is_bigendian = rng.randrange(256)
    return content


def camera_info(rng: random.Random) -> CameraInfo:
    """Return a camera info of an impossible camera."""

    def side() -> int:
        return rng.choice((*_SIDES, *_HUGE))

    message = CameraInfo(width=side(), height=side())
    message.k = [rng.choice(_NUMBERS) for _ in range(9)]
    message.p = [rng.choice(_NUMBERS) for _ in range(12)]
    message.r = [rng.choice(_NUMBERS) for _ in range(9)]
    message.d = [rng.choice(_NUMBERS) for _ in range(rng.choice((0, 1, 4, 5, 8, 14, 1000)))]
    message.distortion_model = rng.choice(('', 'plumb_bob', 'fisheye', 'x' * 5000))
    message.binning_x, message.binning_y = side(), side()
    message.roi = region(rng)
    message.header.stamp = stamp(rng)
    return message


def region(rng: random.Random) -> RegionOfInterest:
    """Return a region that may be empty, outside the image, or larger than it."""
    names = ('x_offset', 'y_offset', 'width', 'height')
    return RegionOfInterest(**{name: rng.choice((*_SIDES, *_HUGE)) for name in names})


def query(rng: random.Random, serial: str) -> str:
    """Return a query that begins with a serial number, so that its answer is found."""
    chance = rng.random()
    if chance < 0.5:
        return f'{serial} {rng.choice(QUERIES)}'
    return f'{serial} {rng.choice(_TEXTS) if chance < 0.8 else huge_text(rng)}'


def control_command(rng: random.Random) -> str:
    """Return a command that has no answer of its own: "stop", or a standing query."""
    words = ('stop', ' STOP. ', 'stop!', 'watch: the mug', 'watch:  ' + huge_text(rng)[:900])
    return rng.choice(words)


def goal(rng: random.Random, serial: str) -> Segment.Goal:
    """Return a goal with absurd fields; a quarter of them are about the camera's image."""
    message = Segment.Goal(query=query(rng, serial), want_explanation=rng.random() < 0.2)
    if rng.random() < 0.25:
        return message
    message.camera = rng.choice(('', '', 'absent', '\N{SNOWMAN}', huge_text(rng)))
    message.dialogue = rng.choice(('', 'a', '\N{SNOWMAN}', huge_text(rng)))
    message.max_age = rng.choice((0.0, NAN, INFINITY, -1.0, 1e-30, 1e30))
    message.continuous = rng.random() < 0.1
    if rng.random() < 0.5:
        message.region = region(rng)
    if rng.random() < 0.5:
        message.image = image(rng)
    return message


def _parameter(rng: random.Random, names: tuple[str, ...]) -> Parameter:
    value = ParameterValue(
        type=rng.randrange(256) if rng.random() < 0.3 else rng.randrange(10),
        bool_value=rng.random() < 0.5,
        double_value=rng.choice(_NUMBERS),
        integer_value=rng.choice((2**63 - 1, -(2**63), -1, 0, 1)),
        string_value=rng.choice((*_TEXTS, huge_text(rng))),
        **{name: items for name, items in _LISTS.items() if rng.random() < 0.3},
    )
    return Parameter(name=rng.choice((*_NAMES, *names)), value=value)


def parameter_request(rng: random.Random, names: tuple[str, ...]) -> ServiceRequest:
    """Return a request to one of the services of parameters.

    Args:
        rng: the source of chance.
        names: of the node's parameters.
    """
    parameters = [_parameter(rng, names) for _ in range(rng.randrange(5))]
    asked = [rng.choice((*_NAMES, *names)) for _ in range(rng.randrange(4))]
    depth = rng.choice((0, 1, 2**64 - 1))
    service_type, name, fields = rng.choice(
        [
            (SetParameters, 'set_parameters', {'parameters': parameters}),
            (SetParameters, 'set_parameters', {'parameters': parameters}),
            (SetParametersAtomically, 'set_parameters_atomically', {'parameters': parameters}),
            (DescribeParameters, 'describe_parameters', {'names': asked}),
            (GetParameters, 'get_parameters', {'names': asked}),
            (GetParameterTypes, 'get_parameter_types', {'names': asked}),
            (ListParameters, 'list_parameters', {'prefixes': asked, 'depth': depth}),
            (GetTypeDescription, 'get_type_description', _type_description(rng)),
        ]
    )
    return ServiceRequest(service_type, name, service_type.Request(**fields))


def _type_description(rng: random.Random) -> dict[str, str]:
    hashes = ('', 'RIHS01_', 'RIHS01_' + '0' * 64, 'x' * 3000, '\N{SNOWMAN}')
    return {'type_name': rng.choice(_NAMES), 'type_hash': rng.choice(hashes)}


def lifecycle_request(rng: random.Random) -> ServiceRequest:
    """Return a request for a transition that is impossible while the node is active, or a look."""
    if rng.random() < 0.2:
        service_type, name = rng.choice(
            [
                (GetState, 'get_state'),
                (GetAvailableStates, 'get_available_states'),
                (GetAvailableTransitions, 'get_available_transitions'),
            ]
        )
        return ServiceRequest(service_type, name, service_type.Request())
    transition = Transition(id=rng.choice(_IMPOSSIBLE), label=rng.choice(_LABELS))
    return ServiceRequest(ChangeState, 'change_state', ChangeState.Request(transition=transition))


def trigger_request(rng: random.Random) -> ServiceRequest:
    """Return a request to stop, to forget the dialogue, or (rarely) for the self-test."""
    name = rng.choices(('stop', 'reset_dialogue', 'self_test'), (10, 10, 1))[0]
    return ServiceRequest(Trigger, name, Trigger.Request())
