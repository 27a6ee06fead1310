# SPDX-License-Identifier: Apache-2.0
"""ros2 launch lisa_ros evaluate.launch.py bag:=BAG commands:=commands.yaml out:=report."""

from pathlib import Path

from ament_index_python.packages import get_package_prefix
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

EVALUATE = Path(get_package_prefix('lisa_ros')) / 'lib' / 'lisa_ros' / 'evaluate'
ARGUMENTS = {  # as of `lisa-ros evaluate bag`; name: default (None: must be given), sentence
    'bag': (None, 'the bag to ask about'),
    'commands': (None, 'commands.yaml, see docs/evaluation.md'),
    'out': (None, 'folder for the report'),
    'truth': ('', 'a folder of <stamp>.png, a topic, or labelled pictures; empty: none'),
    'topic': ('', 'pictures; empty: the only one of the bag'),
    'model': ('lisa-tabletop', 'models, one or several with a space in between'),
    'device': ('auto', 'cpu, cuda or auto'),
    'precision': ('auto', 'fp32, bf16, fp16, int8, nf4 or auto'),
    'live': ('true', "through the node, on the bag's clock; false: offline"),
    'rate': ('1.0', 'of a live replay, times real time'),
    'laps': ('1', 'how often a live replay plays the bag'),
    'sim_time': ('false', "whether the node runs on the bag's time"),
}
FLAGS = ('live', 'sim_time')


def evaluation(context):
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    words = [str(EVALUATE), 'bag', given.pop('bag')]
    for name, value in given.items():
        option = f'--{name.replace("_", "-")}'
        if name in FLAGS:
            words += [option] if value.lower() == 'true' else []
        elif value:
            values = value.split() if name == 'model' else [value]
            words += [word for one in values for word in (option, one)]
    return [ExecuteProcess(cmd=words, output='screen')]


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=sentence)
        for name, (default, sentence) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=evaluation)])
