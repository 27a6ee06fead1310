# SPDX-License-Identifier: Apache-2.0
"""ros2 launch lisa_ros lisa.launch.py image:=/camera/image_raw; the rest: config/*.yaml."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

CONFIG = Path(get_package_share_directory('lisa_ros')) / 'config'
ARGUMENTS = {  # name: default, sentence
    'model': ('', 'lisa-tabletop, a folder or a hub id; empty: as in params_file'),
    'vision_tower': ('', 'CLIP of the model, folder or hub id; empty: as in params_file'),
    'template': ('', 'conversation template; empty: as in params_file'),
    'device': ('', 'cpu, cuda or auto; empty: as in params_file'),
    'precision': ('', 'fp32, bf16, fp16, int8, nf4 or auto; empty: as in params_file'),
    'image': ('image', 'colour image topic, without /compressed'),
    'depth': ('depth', 'depth topic, registered to the image (optional)'),
    'camera_info': ('camera_info', 'camera info topic of the image (optional)'),
    'params_file': (str(CONFIG / 'lisa.yaml'), 'parameters'),
    'namespace': ('', 'namespace of the node and its relative topics'),
    'voice': ('false', 'whether voice_node hears commands, too'),
    'voice_params_file': (str(CONFIG / 'voice.yaml'), 'parameters of voice_node'),
    'audio': ('audio', 'sound topic, 16-bit samples, one channel, 16 kHz'),
    'rviz': ('false', 'whether to show the overlay in RViz, where rviz2 is installed'),
}

SHOWN = (  # in config/lisa.rviz, of the node's outputs
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
    return [
        Node(
            package='lisa_ros',
            executable='lisa_node',
            namespace=given['namespace'],
            parameters=[given['params_file'], settings],
            remappings=[(name, given[name]) for name in ('image', 'depth', 'camera_info')],
            output='screen',
        )
    ]


def generate_launch_description():
    voice = Node(
        package='lisa_ros',
        executable='voice_node',
        namespace=LaunchConfiguration('namespace'),
        parameters=[LaunchConfiguration('voice_params_file')],
        # relative names: the namespace comes before them as before the node's
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
        # The full names in lisa.rviz, as they are for this node: relative ones get the namespace.
        remappings=[
            ('/image', LaunchConfiguration('image')),
            *((f'/lisa/{name}', f'lisa/{name}') for name in SHOWN),
        ],
        condition=IfCondition(LaunchConfiguration('rviz')),
    )
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=sentence)
        for name, (default, sentence) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=lisa_node), voice, rviz])
