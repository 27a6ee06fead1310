# SPDX-License-Identifier: Apache-2.0
"""Names of a node's input topics, and how to give an input the topic that is published."""

from __future__ import annotations

from collections.abc import Sequence

TRANSPORTS = ('compressed', 'compressedDepth', 'theora', 'ffmpeg')  # last levels of topics
_READABLE = {'image': ('raw', 'compressed'), 'depth': ('raw', 'compressed', 'compressedDepth')}
_RAW = 'raw'
_COMPRESSED_TYPE = 'sensor_msgs/msg/CompressedImage'


def split_transport(topic: str) -> tuple[str, str]:
    """Return the topic to which image_transport adds a transport, and the transport.

    An example: /camera/image and compressed for /camera/image/compressed.
    """
    base, _, transport = topic.rpartition('/')
    return (base, transport) if transport in TRANSPORTS else (topic, _RAW)


def publish_cure(
    topic: str, type_name: str, similar: Sequence[str], node: str, cameras: Sequence[str]
) -> str:
    """Return how an image input without publishers gets a topic that is published.

    Args:
        topic: full name of the input, after remapping.
        type_name: its type.
        similar: published topics, at least one: first those of the same name with another
            transport, then those of the same type.
        node: full name of the node.
        cameras: values of the node's parameter `cameras`.
    """
    base, transport = split_transport(topic) if type_name == _COMPRESSED_TYPE else (topic, _RAW)
    name = _input_names(node, cameras).get(base, '')
    same_name = [split_transport(other)[1] for other in similar if _base(other) == base]
    if same_name:
        return _transport_cure(
            'depth' if 'depth' in (name or base).lower() else 'image', same_name
        )
    same_transport = [other for other in similar if split_transport(other)[1] == transport]
    if type_name == _COMPRESSED_TYPE and not same_transport:
        return f'remap it: -r {topic}:={similar[0]}'  # the parameter adds the transport to a name
    target = _base((same_transport or similar)[0])
    if name:
        return f'remap it: -r {name}:={target}'
    return f'correct the remapping of the input: {target} in place of {base}'


def _base(topic: str) -> str:
    return split_transport(topic)[0]


def _input_names(node: str, cameras: Sequence[str]) -> dict[str, str]:
    """Return the names of the node's inputs before remapping, by their full names."""
    namespace = node.rpartition('/')[0]
    prefixes = [f'{camera}/' for camera in cameras if camera] or ['']
    names = [f'{prefix}{kind}' for prefix in prefixes for kind in ('image', 'depth')]
    return {f'{namespace}/{name}': name for name in names}


def _transport_cure(kind: str, published: Sequence[str]) -> str:
    """Return the cure for an image or depth image that is published with other transports."""
    readable = [transport for transport in published if transport in _READABLE[kind]]
    if readable:
        return f'set the parameter {kind}_transport to {readable[0]}'
    return f'ros2 run image_transport republish: the node reads {", ".join(_READABLE[kind])}'
