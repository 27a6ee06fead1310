# SPDX-License-Identifier: Apache-2.0
"""ros2 launch lisa_ros evaluate.launch.py bag:=BAG commands:=commands.yaml out:=report."""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_prefix
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.launch_context import LaunchContext
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription
from lisa_ros.launch_arguments import is_on

EVALUATE = Path(get_package_prefix('lisa_ros')) / 'lib' / 'lisa_ros' / 'evaluate'
# Arguments of `lisa-ros evaluate bag`: default (None: required) and description.
ARGUMENTS = {
    'bag': (None, 'bag of ROS 2 or ROS 1 to evaluate on'),
    'commands': (None, 'YAML file of queries, see docs/evaluation.md'),
    'out': (None, 'folder for the report'),
    'ground_truth': ('', 'folder of <stamp>.png, topic of ids or labelled images; empty: none'),
    'topic': ('', 'image topic; empty: the only one in the bag'),
    'model': ('lisa-tabletop', 'model, or several separated by spaces'),
    'device': ('auto', 'device of the model: cpu, cuda or auto'),
    'precision': ('auto', 'weights: fp32, bf16, fp16, int8, nf4 or auto'),
    'live': ('true', 'true: play the bag to the node; false: offline'),
    'rate': ('1.0', 'live: playback speed, 1 is real time'),
    'laps': ('1', 'live: how many times the bag is played'),
    'sim_time': ('false', 'live: true: the node uses bag time (/clock)'),
}
FLAGS = ('live', 'sim_time')


def start_evaluation(context: LaunchContext) -> list[ExecuteProcess]:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    command = [str(EVALUATE), 'bag', values.pop('bag')]
    for name, value in values.items():
        option = f'--{name.replace("_", "-")}'
        if name in FLAGS:
            command += [option] if is_on(name, value) else []
        elif name == 'model':
            command += [part for model in value.split() for part in (option, model)]
        elif value:
            command += [option, value]
    return [ExecuteProcess(cmd=command, output='screen')]


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_evaluation)])
