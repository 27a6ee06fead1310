# SPDX-License-Identifier: Apache-2.0
"""Start lisa_node, and if asked for voice_node and RViz.

    ros2 launch lisa_ros lisa.launch.py image:=/camera/image_raw

All other parameters are in config/lisa.yaml and config/voice.yaml.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

CONFIG = Path(get_package_share_directory('lisa_ros')) / 'config'
ARGUMENTS = {  # name: default, description
    'model': ('', 'lisa-tabletop, a folder or a hub id; empty: from params_file'),
    'vision_tower': ('', 'CLIP of the model, folder or hub id; empty: from params_file'),
    'template': ('', 'conversation template of the prompt; empty: from params_file'),
    'device': ('', 'device: cpu, cuda or auto; empty: from params_file'),
    'precision': ('', 'weights: fp32, bf16, fp16, int8, nf4 or auto; empty: from params_file'),
    'allow_download': ('', 'true: download the CLIP of a local folder; empty: from params_file'),
    'image': ('image', 'colour image topic, without /compressed'),
    'depth': ('depth', 'topic of the depth image, registered to the image (optional)'),
    'camera_info': ('camera_info', 'camera info topic of the image (optional)'),
    'params_file': (str(CONFIG / 'lisa.yaml'), 'parameter file of lisa_node'),
    'namespace': ('', 'namespace of the nodes and of their relative topics'),
    'respawn': ('true', 'start lisa_node again, 0.2 s after it has ended'),
    'voice': ('false', 'true: start voice_node, for spoken commands'),
    'voice_params_file': (str(CONFIG / 'voice.yaml'), 'parameter file of voice_node'),
    'audio': ('audio', 'audio topic: 16-bit samples, one channel, 16 kHz'),
    'rviz': ('false', 'true: start RViz with config/lisa.rviz; needs rviz2'),
}

RESPAWN_DELAY = 0.2  # [s]

SHOWN = (  # outputs of the node that config/lisa.rviz shows
    *('overlay', 'mask', 'confidence', 'scene_points', 'object_points', 'target'),
    *('tracked/overlay', 'tracked/object_points', 'tracked/target'),
)


def lisa_node(context):
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    settings = {
        name: ParameterValue(given[name], value_type=str)
        for name in ('model', 'vision_tower', 'template', 'device', 'precision')
        if given[name]
    }
    if given['allow_download']:
        settings['allow_download'] = ParameterValue(given['allow_download'], value_type=bool)
    return [
        LifecycleNode(
            package='lisa_ros',
            executable='lisa_node',
            name='lisa',
            namespace=given['namespace'],
            parameters=[given['params_file'], settings],
            remappings=[(name, given[name]) for name in ('image', 'depth', 'camera_info')],
            output='screen',
            respawn=given['respawn'].lower() in ('true', '1'),
            respawn_delay=RESPAWN_DELAY,
        )
    ]


def generate_launch_description():
    voice = Node(
        package='lisa_ros',
        executable='voice_node',
        namespace=LaunchConfiguration('namespace'),
        parameters=[LaunchConfiguration('voice_params_file')],
        # relative names, so the namespace applies to them as to the node's
        remappings=[
            ('audio', LaunchConfiguration('audio')),
            ('command', 'lisa/command'),
            ('say', 'lisa/explanation'),
        ],
        output='screen',
        condition=IfCondition(LaunchConfiguration('voice')),
    )
    rviz = Node(
        package='rviz2',
        executable='rviz2',
        namespace=LaunchConfiguration('namespace'),
        arguments=['-d', str(CONFIG / 'lisa.rviz')],
        # lisa.rviz has absolute names: make them relative, so the namespace applies to them.
        remappings=[
            ('/image', LaunchConfiguration('image')),
            *((f'/lisa/{name}', f'lisa/{name}') for name in SHOWN),
        ],
        condition=IfCondition(LaunchConfiguration('rviz')),
    )
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=lisa_node), voice, rviz])
