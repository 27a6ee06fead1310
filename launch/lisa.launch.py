# SPDX-License-Identifier: Apache-2.0
"""Start lisa_node, and if asked for voice_node and RViz.

    ros2 launch lisa_ros lisa.launch.py image:=/camera/image_raw

All other parameters are in config/lisa.yaml and config/voice.yaml. A wrong argument ends the
launch with one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_context import LaunchContext
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription
from lisa_ros.launch_arguments import (
    cameras_in_file,
    choice,
    existing_file,
    full_name,
    input_remappings,
    is_on,
    items,
    output_qos,
)

CONFIG = Path(get_package_share_directory('lisa_ros')) / 'config'
FROM_FILE = 'empty: from params_file'
ARGUMENTS = {  # name: default, description
    'model': ('', f'lisa-tabletop, a folder or a hub id; {FROM_FILE}'),
    'vision_tower': ('', f'CLIP of the model, folder or hub id; {FROM_FILE}'),
    'template': ('', f'conversation template of the prompt; {FROM_FILE}'),
    'device': ('', f'device: cpu, cuda or auto; {FROM_FILE}'),
    'precision': ('', f'weights: fp32, bf16, fp16, int8, nf4 or auto; {FROM_FILE}'),
    'allow_download': ('', f'true: download the CLIP of a local folder; {FROM_FILE}'),
    'image': ('', 'colour image topic, without /compressed; empty: image'),
    'depth': ('', 'topic of the depth image, registered to the image; empty: depth'),
    'camera_info': ('', 'camera info topic of the image; empty: camera_info'),
    'cameras': (
        '',
        'names of several cameras: cameras:=front,wrist. Then image, depth and camera_info have '
        f'one topic for each, separated by commas too; empty: front/image and so on. {FROM_FILE}',
    ),
    'target_frame': ('', f'TF frame of the pose on ~/target; {FROM_FILE}'),
    'gravity_frame': ('', f'TF frame with z up, for upright 3D boxes; {FROM_FILE}'),
    'map_frame': ('', f'fixed TF frame in which the node remembers places, as map; {FROM_FILE}'),
    'output_reliability': (
        '',
        'reliability of the images and clouds that the node publishes: reliable or best_effort; '
        f'{FROM_FILE}',
    ),
    'params_file': (str(CONFIG / 'lisa.yaml'), 'parameter file of lisa_node'),
    'namespace': ('', 'namespace of the nodes and of their relative topics'),
    'use_sim_time': ('', f'true: use the clock of a simulator or a bag (/clock); {FROM_FILE}'),
    'autostart': ('', f'false: wait for a lifecycle manager; {FROM_FILE}'),
    'respawn': ('true', 'start lisa_node again, 0.2 s after it has ended'),
    'log_level': ('info', 'of lisa_node and voice_node: debug, info, warn, error or fatal'),
    'voice': ('false', 'true: start voice_node, for spoken commands'),
    'voice_params_file': (str(CONFIG / 'voice.yaml'), 'parameter file of voice_node'),
    'audio': ('audio', 'audio topic: 16-bit samples, one channel, 16 kHz'),
    'rviz': ('false', 'true: start RViz with config/lisa.rviz; needs rviz2'),
}

RESPAWN_DELAY = 0.2  # [s]
LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
RELIABILITIES = ('reliable', 'best_effort')
TEXT_PARAMETERS = (
    *('model', 'vision_tower', 'template', 'device', 'precision', 'target_frame', 'map_frame'),
    'gravity_frame',
)
SHOWN = (  # outputs of the node that config/lisa.rviz shows
    *('overlay', 'mask', 'confidence', 'scene_points', 'object_points', 'target', 'markers'),
    *('tracked/overlay', 'tracked/object_points', 'tracked/target'),
)


# ---- nodes


def node_parameters(given: dict[str, str], cameras: list[str], node: str) -> dict[str, Any]:
    """Return the parameters that are given as arguments; they replace those of the file."""
    parameters: dict[str, Any] = {
        name: ParameterValue(given[name], value_type=str)
        for name in TEXT_PARAMETERS
        if given[name]
    }
    for name in ('allow_download', 'use_sim_time', 'autostart'):
        if given[name]:
            parameters[name] = is_on(name, given[name])
    if given['cameras']:
        parameters['cameras'] = cameras
    if given['output_reliability']:
        reliability = choice('output_reliability', given['output_reliability'], RELIABILITIES)
        parameters |= output_qos(reliability, node, cameras)
    return parameters


def lisa_node(given: dict[str, str], cameras: list[str], node: str) -> LifecycleNode:
    return LifecycleNode(
        package='lisa_ros',
        executable='lisa_node',
        name='lisa',
        namespace=given['namespace'],
        parameters=[given['params_file'], node_parameters(given, cameras, node)],
        remappings=input_remappings(given, cameras),
        ros_arguments=['--log-level', choice('log_level', given['log_level'], LOG_LEVELS)],
        output='screen',
        respawn=is_on('respawn', given['respawn']),
        respawn_delay=RESPAWN_DELAY,
    )


def voice_node(given: dict[str, str], cameras: list[str]) -> Node:
    """Return voice_node; it speaks the answers of the first camera."""
    camera = f'{cameras[0]}/' if cameras else ''
    parameters = [existing_file('voice_params_file', given['voice_params_file'])]
    if given['use_sim_time']:
        parameters.append({'use_sim_time': is_on('use_sim_time', given['use_sim_time'])})
    return Node(
        package='lisa_ros',
        executable='voice_node',
        namespace=given['namespace'],
        parameters=parameters,
        # relative names, so the namespace applies to them as to the node's
        remappings=[
            ('audio', given['audio']),
            ('command', 'lisa/command'),
            ('say', f'lisa/{camera}explanation'),
        ],
        ros_arguments=['--log-level', choice('log_level', given['log_level'], LOG_LEVELS)],
        output='screen',
    )


def rviz(given: dict[str, str], cameras: list[str]) -> Node:
    """Return RViz; it shows the first camera."""
    camera = f'{cameras[0]}/' if cameras else ''
    images = items(given['image']) or [f'{camera}image']
    return Node(
        package='rviz2',
        executable='rviz2',
        namespace=given['namespace'],
        arguments=['-d', str(CONFIG / 'lisa.rviz')],
        parameters=[{'use_sim_time': is_on('use_sim_time', given['use_sim_time'] or 'false')}],
        # lisa.rviz has absolute names: make them relative, so the namespace applies to them.
        remappings=[
            ('/image', images[0]),
            *((f'/lisa/{name}', f'lisa/{camera}{name}') for name in SHOWN),
        ],
    )


def start_nodes(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    params_file = existing_file('params_file', given['params_file'])
    pushed = context.launch_configurations.get('ros_namespace', '')  # by PushRosNamespace
    node = full_name(pushed, given['namespace'], 'lisa')
    cameras = items(given['cameras']) or cameras_in_file(params_file, node)
    nodes = [lisa_node(given, cameras, node)]
    if is_on('voice', given['voice']):
        nodes.append(voice_node(given, cameras))
    if is_on('rviz', given['rviz']):
        nodes.append(rviz(given, cameras))
    return nodes


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_nodes)])
